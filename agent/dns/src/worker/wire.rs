//! What the agent and the worker say to each other: frames of JSON over a Unix stream socket, each behind its length.
//!
//! The worker begins each connection with a [`Hello`], and the agent answers with an [`Order`]; either may carry the
//! listening sockets. After that, [`ZoneChange`](crate::zone::ZoneChange)s go one way and [`SERVING`] the other.
//!
//! `Hello` and `Order::Retire` are understood by the programs of every version: whoever replaces a worker knows no more
//! of it than them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::config::DnsConfig;

/// The worker's first frame; its sockets come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Which program it is, see [`super::identity`].
    pub(super) identity: String,
    /// What it serves; none: it has not been told yet. Not a [`DnsConfig`], as that of another version may be other.
    pub(super) config: Option<serde_json::Value>,
}

/// The agent's first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Serve this on the sockets that come with it, and follow what comes after.
    Serve {
        config: Box<DnsConfig>,
        /// Leave the sockets to a predecessor until there is a whole zone to answer from.
        when_whole: bool,
    },
    /// Go on, and follow what comes after.
    Follow,
    /// Finish what was begun, and end.
    Retire,
}

/// The worker's only frame after its hello: it reads from its sockets now.
pub(super) const SERVING: &str = "Serving";

/// Most descriptors that come with one frame: the kernel's own limit (SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// Writes a frame.
pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    to.write_all(&frame).await
}

/// Reads a frame.
pub(super) async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = from.read_u32().await?;
    body(from, length).await
}

async fn body<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<T> {
    let mut bytes = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut bytes).await?;
    if bytes.len() < usize::try_from(length).map_err(io::Error::other)? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Writes a first frame, with descriptors on its first byte.
pub(super) async fn send_first(
    to: &mut UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let message = serde_json::to_vec(message)?;
    let length = u32::try_from(message.len()).map_err(io::Error::other)?.to_be_bytes();
    let sent = to
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::other("too many sockets to hand over"));
            }
            let bytes = [io::IoSlice::new(&length)];
            Ok(rustix::net::sendmsg(&*to, &bytes, &mut control, SendFlags::NOSIGNAL)?)
        })
        .await?;
    to.write_all(&length[sent..]).await?;
    to.write_all(&message).await
}

/// Reads a first frame and the descriptors that come with it.
pub(super) async fn receive_first<T: DeserializeOwned>(
    from: &mut UnixStream,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let (got, fds) = from
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [io::IoSliceMut::new(&mut length)];
            let got = rustix::net::recvmsg(&*from, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
            let mut fds = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            Ok((got, fds))
        })
        .await?;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    from.read_exact(&mut length[got..]).await?;
    Ok((body(from, u32::from_be_bytes(length)).await?, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_version_understands() {
        let hello = r#"{"identity":"x","config":null,"later":1}"#;
        let read: Hello = serde_json::from_str(hello).unwrap();
        assert_eq!(read, Hello { identity: "x".into(), config: None });
        assert_eq!(serde_json::to_string(&Order::Retire).unwrap(), "\"Retire\"");
    }

    #[tokio::test]
    async fn descriptors_come_with_the_first_frame() {
        let (mut one, mut two) = UnixStream::pair().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let fd = std::os::fd::AsFd::as_fd(&socket);
        send_first(&mut one, &Order::Follow, &[fd, fd]).await.unwrap();
        send(&mut one, &SERVING).await.unwrap();
        let (order, fds) = receive_first::<Order>(&mut two).await.unwrap();
        assert_eq!((order, fds.len()), (Order::Follow, 2));
        let same = std::net::UdpSocket::from(fds.into_iter().next().unwrap());
        assert_eq!(same.local_addr().unwrap(), socket.local_addr().unwrap());
        assert_eq!(receive::<String>(&mut two).await.unwrap(), SERVING);
        drop(one);
        assert!(receive_first::<Order>(&mut two).await.is_err());
    }
}
