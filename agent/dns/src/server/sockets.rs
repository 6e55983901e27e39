//! Making sockets, or taking over those that exist.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use crate::DnsError;

/// Listening sockets. They may come from [`Sockets::bind`] or from a process that had them before, with queries queued in
/// them.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams; several may share an address.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

/// Receive buffer of a UDP socket in bytes: bursts wait in it while a lookup runs.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

impl Sockets {
    /// Binds every address for TCP and, `per_address` times with SO_REUSEPORT, for UDP.
    ///
    /// # Errors
    /// [`DnsError::Listen`] with the address that failed.
    pub fn bind(addresses: &[SocketAddr], per_address: usize) -> Result<Sockets, DnsError> {
        Sockets::default().complete(addresses, per_address)
    }

    /// These sockets as far as they are of `addresses`, and new ones for addresses that have none, as [`Sockets::bind`]
    /// makes them.
    ///
    /// # Errors
    /// [`DnsError::Listen`] with the address that failed.
    pub fn complete(mut self, addresses: &[SocketAddr], per_address: usize) -> Result<Sockets, DnsError> {
        self.udp.retain(|socket| socket.local_addr().is_ok_and(|address| addresses.contains(&address)));
        self.tcp.retain(|socket| socket.local_addr().is_ok_and(|address| addresses.contains(&address)));
        for address in addresses.iter().copied() {
            let context = |source| DnsError::Listen { address, source };
            // Port 0 is for tests: the first socket's port is the others' too.
            let mut bound = address;
            if !self.udp.iter().any(|socket| socket.local_addr().is_ok_and(|own| own == address)) {
                for _ in 0..per_address.max(1) {
                    let socket = udp(bound).map_err(context)?;
                    bound = socket.local_addr().map_err(context)?;
                    self.udp.push(socket);
                }
            }
            if !self.tcp.iter().any(|socket| socket.local_addr().is_ok_and(|own| own == address)) {
                self.tcp.push(tcp(bound).map_err(context)?);
            }
        }
        Ok(self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.udp.is_empty() && self.tcp.is_empty()
    }

    /// The same sockets once more.
    ///
    /// # Errors
    /// The kernel's, when there are no more descriptors.
    pub fn try_clone(&self) -> io::Result<Sockets> {
        Ok(Sockets {
            udp: self.udp.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?,
            tcp: self.tcp.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?,
        })
    }

    /// All of them, to be sent to another process.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.udp.iter().map(AsFd::as_fd).chain(self.tcp.iter().map(AsFd::as_fd))
    }

    /// What [`Sockets::fds`] was on the other side.
    pub(crate) fn from_fds(fds: Vec<OwnedFd>) -> io::Result<Sockets> {
        let mut sockets = Sockets::default();
        for fd in fds {
            let socket = Socket::from(fd);
            if socket.r#type()? == Type::STREAM {
                sockets.tcp.push(socket.into());
            } else {
                sockets.udp.push(socket.into());
            }
        }
        Ok(sockets)
    }
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    // The kernel caps it at net.core.rmem_max without an error.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted agent must not wait for old connections to time out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bound_stays_and_what_lacks_is_bound() {
        let first = Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 2).unwrap();
        let kept = first.udp[0].local_addr().unwrap();
        let other: SocketAddr = "127.0.0.2:0".parse().unwrap();
        let sent = first.fds().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let more = Sockets::from_fds(sent).unwrap().complete(&[kept, other], 2).unwrap();
        assert_eq!((more.udp.len(), more.tcp.len()), (4, 2));
        let fewer = more.complete(&[kept], 2).unwrap();
        assert_eq!((fewer.udp.len(), fewer.tcp.len()), (2, 1));
        assert!(fewer.udp.iter().all(|socket| socket.local_addr().unwrap() == kept));
        assert!(fewer.complete(&[], 2).unwrap().is_empty());
    }
}
