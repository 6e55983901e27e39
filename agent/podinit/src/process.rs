//! One registered process: its streams, its log and who is attached to it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use keelson_podinit::logline::{Splitter, Stream};
use keelson_podinit::protocol::{self, ProcessState, attach};
use keelson_podinit::record::ExitRecord;

use crate::sys;

/// Bytes read from a stream at once; one attach packet holds them.
const CHUNK: usize = protocol::MAX_ATTACH_PACKET - 1;
/// Most output kept for attach sessions that do not read, once the process has ended. More drops the session.
const MAX_BACKLOG: usize = 256 * 1024;
/// At the end of a process at most this much is read from its pipes before its exit is told: a process that shares the
/// PID namespace may still be writing to them.
const MAX_DRAIN: usize = 4 * 1024 * 1024;

/// One output stream.
pub struct Output {
    pub fd: OwnedFd,
    pub kind: u8,
    splitter: Splitter,
    /// False once it has ended.
    pub open: bool,
    /// Token under which epoll knows it.
    pub token: u64,
}

/// One attach session.
pub struct Attached {
    pub fd: OwnedFd,
    pub token: u64,
    pub stdin: bool,
    /// Packets that the socket would not take yet.
    pub backlog: VecDeque<Vec<u8>>,
    pub backlog_bytes: usize,
    /// When the session last took a packet; it is dropped when it blocks the process for too long.
    pub progress_ns: u64,
    /// Whether the agent is still there.
    pub open: bool,
}

/// A registered process.
pub struct Process {
    pub state: ProcessState,
    pub flags: u8,
    record: OwnedFd,
    log: Option<OwnedFd>,
    /// The last write to the log stopped in the middle of a line.
    torn: bool,
    pub outputs: Vec<Output>,
    /// Write end of stdin, unless it is the pty (then it is the first output's descriptor).
    pub stdin: Option<OwnedFd>,
    pub stdin_token: u64,
    /// Input that the process has not taken yet.
    pub input: Vec<u8>,
    pub attached: Vec<Attached>,
}

impl Process {
    /// Builds it from a registration and its descriptors, in the protocol's order.
    pub fn new(id: String, pid: i32, flags: u8, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let short = || io::Error::from_raw_os_error(libc::EINVAL);
        let mut fds = fds.into_iter();
        let record = fds.next().ok_or_else(short)?;
        let mut log = None;
        let mut outputs = Vec::new();
        let mut stdin = None;
        if flags & protocol::FLAG_EXEC == 0 {
            log = Some(fds.next().ok_or_else(short)?);
            let mut output = |fd: OwnedFd, kind, stream| -> io::Result<()> {
                sys::set_nonblocking(&fd)?;
                outputs.push(Output { fd, kind, splitter: Splitter::new(stream), open: true, token: 0 });
                Ok(())
            };
            output(fds.next().ok_or_else(short)?, attach::STDOUT, Stream::Stdout)?;
            if flags & protocol::FLAG_TTY == 0 {
                output(fds.next().ok_or_else(short)?, attach::STDERR, Stream::Stderr)?;
                if flags & protocol::FLAG_STDIN != 0 {
                    let fd = fds.next().ok_or_else(short)?;
                    sys::set_nonblocking(&fd)?;
                    stdin = Some(fd);
                }
            }
        }
        Ok(Self {
            state: ProcessState { id, pid, exit: None, lost_lines: 0 },
            flags,
            record,
            log,
            torn: false,
            outputs,
            stdin,
            stdin_token: 0,
            input: Vec::new(),
            attached: Vec::new(),
        })
    }

    /// Where input goes: the pty, or the pipe while it is open.
    pub fn input_fd(&self) -> Option<RawFd> {
        if self.flags & protocol::FLAG_TTY != 0 {
            if self.flags & protocol::FLAG_STDIN == 0 {
                return None;
            }
            return self.outputs.first().filter(|o| o.open).map(|o| o.fd.as_raw_fd());
        }
        self.stdin.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether an attach session holds the output back.
    pub fn blocked(&self) -> bool {
        self.attached.iter().any(|a| a.open && !a.backlog.is_empty())
    }

    /// Reads one chunk of a stream into the log and to those attached. False when there is nothing to read now.
    pub fn pump(&mut self, index: usize, buf: &mut Vec<u8>, lines: &mut Vec<u8>) -> bool {
        let Some(output) = self.outputs.get_mut(index).filter(|o| o.open) else { return false };
        buf.resize(CHUNK, 0);
        lines.clear();
        let read = sys::read(&output.fd, buf);
        match read {
            Err(err) if matches!(err.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => false,
            // A pty whose last user has gone reads EIO: its end.
            Ok(0) | Err(_) => {
                output.open = false;
                output.splitter.finish(sys::now_ns(), lines);
                self.write_log(lines);
                false
            }
            Ok(len) => {
                let kind = output.kind;
                output.splitter.push(&buf[..len], sys::now_ns(), lines);
                self.write_log(lines);
                self.fan_out(kind, &buf[..len]);
                true
            }
        }
    }

    fn fan_out(&mut self, kind: u8, data: &[u8]) {
        if self.attached.is_empty() {
            return;
        }
        let mut packet = Vec::with_capacity(data.len() + 1);
        packet.push(kind);
        packet.extend_from_slice(data);
        for session in &mut self.attached {
            if session.backlog.is_empty() {
                match sys::send(&session.fd, &packet) {
                    Ok(_) => {
                        session.progress_ns = sys::now_ns();
                        continue;
                    }
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                        session.progress_ns = sys::now_ns()
                    }
                    Err(_) => {
                        session.open = false;
                        continue;
                    }
                }
            }
            session.backlog_bytes += packet.len();
            session.backlog.push_back(packet.clone());
            if session.backlog_bytes > MAX_BACKLOG {
                session.open = false;
            }
        }
    }

    /// Whole lines go out in one write. What the disk refuses is counted, and half a line is taken back, so that nobody takes
    /// it for a whole one; should that fail too, the next write closes it.
    fn write_log(&mut self, lines: &mut Vec<u8>) {
        let Some(log) = self.log.as_ref().filter(|_| !lines.is_empty()) else { return };
        if self.torn {
            lines.insert(0, b'\n');
        }
        let mut rest: &[u8] = lines;
        while !rest.is_empty() {
            match sys::write(log, rest) {
                Ok(0) => break,
                Ok(len) => rest = &rest[len..],
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let lost = rest.iter().filter(|&&b| b == b'\n').count();
        self.state.lost_lines = self.state.lost_lines.saturating_add(u32::try_from(lost).unwrap_or(u32::MAX));
        let written = &lines[..lines.len() - rest.len()];
        if !written.is_empty() {
            let half = written.iter().rev().take_while(|byte| **byte != b'\n').count();
            self.torn = half > 0 && sys::shorten(log, half).is_err();
        }
    }

    /// The process was reaped: reads what its pipes still hold, then writes the record.
    pub fn exited(&mut self, wait_status: i32, buf: &mut Vec<u8>, lines: &mut Vec<u8>) {
        for index in 0..self.outputs.len() {
            let mut drained = 0;
            while drained < MAX_DRAIN && self.pump(index, buf, lines) {
                drained += CHUNK;
            }
        }
        let record = ExitRecord { wait_status, finished_ns: sys::now_ns() };
        // If the disk refuses the record, the agent still gets the event or asks by List.
        let _ = sys::write(&self.record, &record.encode());
        self.state.exit = Some((wait_status, record.finished_ns));
        self.stdin = None;
        self.input = Vec::new();
    }

    /// Writes the log to another file from now on.
    pub fn reopen(&mut self, log: OwnedFd) {
        self.log = Some(log);
        self.torn = false;
    }

    /// Hands waiting input on; gives whether some is left.
    pub fn flush_input(&mut self) -> bool {
        if self.input.is_empty() {
            return false;
        }
        let result = match (self.flags & protocol::FLAG_TTY != 0, &self.stdin) {
            (true, _) => self.outputs.first().map(|o| sys::write(&o.fd, &self.input)),
            (false, Some(stdin)) => Some(sys::write(stdin, &self.input)),
            (false, None) => None,
        };
        match result {
            Some(Ok(len)) => drop(self.input.drain(..len)),
            Some(Err(err)) if err.kind() == io::ErrorKind::WouldBlock => {}
            // The process closed its stdin: input has nowhere to go.
            Some(Err(_)) | None => {
                self.input = Vec::new();
                self.stdin = None;
            }
        }
        !self.input.is_empty()
    }

    /// All streams have ended.
    pub fn drained(&self) -> bool {
        self.outputs.iter().all(|o| !o.open)
    }
}

impl Attached {
    /// Sends what waits; gives whether some is left.
    pub fn flush(&mut self) -> bool {
        while let Some(packet) = self.backlog.front() {
            match sys::send(&self.fd, packet) {
                Ok(_) => {
                    self.backlog_bytes -= packet.len();
                    self.backlog.pop_front();
                    self.progress_ns = sys::now_ns();
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => {
                    self.open = false;
                    return false;
                }
            }
        }
        false
    }
}
