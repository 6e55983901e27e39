//! Making sockets, or taking over those that exist.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::DnsError;

/// Listening sockets. They may come from [`Sockets::bind`] or from a holder that kept them while the agent
/// was replaced, with queries queued in them.
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
        let mut sockets = Sockets::default();
        for address in addresses.iter().copied() {
            let context = |source| DnsError::Listen { address, source };
            // Port 0 is for tests: the first socket's port is the others' too.
            let mut bound = address;
            for _ in 0..per_address.max(1) {
                let socket = udp(bound).map_err(context)?;
                bound = socket.local_addr().map_err(context)?;
                sockets.udp.push(socket);
            }
            sockets.tcp.push(tcp(bound).map_err(context)?);
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
