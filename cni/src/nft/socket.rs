//! The nfnetlink socket: a batch in, acknowledgements out; a dump in, rules out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::message::Message;

const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// What fits every socket's send buffer, with the kernel's overhead.
const USUAL_SEND_BUFFER: usize = 64 * 1024;

/// How long the kernel may take for one answer, in seconds.
const TIMEOUT_SECONDS: i64 = 10;

/// A netfilter socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub fn open() -> io::Result<Socket> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(TIMEOUT_SECONDS, 0))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Socket { fd })
    }

    /// Commits `messages` as one transaction: all or nothing.
    pub fn commit(&self, messages: Vec<Message>) -> io::Result<()> {
        let count = u32::try_from(messages.len()).map_err(io::Error::other)?;
        if count == 0 {
            return Ok(());
        }
        let mut bytes = Message::batch(true).encode(0);
        for (message, sequence) in messages.into_iter().zip(1..) {
            // One acknowledgement stands for all: a thousand would not fit the socket's buffer. Errors come anyway, and
            // before it.
            let flags = if sequence == count { NLM_F_ACK } else { 0 };
            bytes.extend(message.with_flags(flags).encode(sequence));
        }
        bytes.extend(Message::batch(false).encode(count + 1));
        // A transaction is one datagram, however large.
        if bytes.len() > USUAL_SEND_BUFFER {
            setsockopt(&self.fd, sockopt::SndBufForce, &(2 * bytes.len()))?;
        }
        self.send(&bytes)?;
        let mut failure = None;
        loop {
            for answer in self.receive()? {
                let Some(code) = answer.error_code() else { continue };
                if code != 0 && failure.is_none() {
                    failure = Some(io::Error::from_raw_os_error(-code));
                }
                // An error for the batch itself (sequence 0) comes alone.
                if answer.sequence == count || answer.sequence == 0 {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Sends a dump request and returns the bodies of the answers, without the nfgenmsg header.
    pub fn dump(&self, message: Message) -> io::Result<Vec<Vec<u8>>> {
        self.send(&message.with_flags(NLM_F_DUMP).encode(1))?;
        let mut bodies = Vec::new();
        loop {
            for answer in self.receive()? {
                match answer.kind {
                    NLMSG_DONE => return Ok(bodies),
                    NLMSG_ERROR => match answer.error_code().unwrap_or(-libc::EIO) {
                        0 => return Ok(bodies),
                        code => return Err(io::Error::from_raw_os_error(-code)),
                    },
                    _ => bodies.push(answer.body.get(4..).unwrap_or_default().to_vec()),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        sendto(self.fd.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<Answer>> {
        let mut buffer = vec![0u8; 64 * 1024];
        let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        let mut answers = Vec::new();
        while rest.len() >= 16 {
            let field = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
            let length = field(0) as usize;
            if length < 16 || length > rest.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message"));
            }
            answers.push(Answer {
                kind: u16::from_ne_bytes([rest[4], rest[5]]),
                sequence: field(8),
                body: rest[16..length].to_vec(),
            });
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(answers)
    }
}

struct Answer {
    kind: u16,
    sequence: u32,
    body: Vec<u8>,
}

impl Answer {
    /// The negative errno of an NLMSG_ERROR, 0 in an acknowledgement.
    fn error_code(&self) -> Option<i32> {
        let code = self.body.get(..4)?.try_into().ok()?;
        (self.kind == NLMSG_ERROR).then(|| i32::from_ne_bytes(code))
    }
}
