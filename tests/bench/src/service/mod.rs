//! Services under load: the server behind them, the clients, and the objects. A client runs in the network namespace of a pod,
//! and reaches the API server out of that of its host.

mod api;
mod change;
mod fill;
mod load;
mod objects;
mod programs;
mod serve;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

/// What to do.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Answer on TCP and UDP until killed.
    Serve(serve::Args),
    /// Open connections one after another, and time each.
    Connect(load::ConnectArgs),
    /// Send over one connection for a while.
    Stream(load::StreamArgs),
    /// Ask and be answered over UDP.
    Udp(load::UdpArgs),
    /// Create Services, and wait until they are in effect.
    Fill(fill::FillArgs),
    /// Delete Services, and wait until they are gone.
    Remove(fill::RemoveArgs),
    /// Wait until Services are in effect.
    Wait(fill::WaitArgs),
    /// Change the endpoint of a Service, and time until it is in effect.
    Change(change::Args),
    /// Have the kernel count what BPF programs take.
    Programs(programs::Args),
}

/// Does it.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Serve(args) => serve::run(args),
        What::Connect(args) => load::connect(args),
        What::Stream(args) => load::stream(args),
        What::Udp(args) => load::udp(args),
        What::Fill(args) => fill::fill(args),
        What::Remove(args) => fill::remove(args),
        What::Wait(args) => fill::wait(args),
        What::Change(args) => change::run(args),
        What::Programs(args) => programs::run(args),
    }
}

/// Where connections go.
#[derive(clap::Args)]
pub struct Towards {
    /// To this endpoint, by no Service.
    #[arg(long)]
    endpoint: Option<SocketAddrV4>,
    /// To the ClusterIPs of so many Services, each in turn.
    #[arg(long, default_value_t = 1)]
    services: usize,
}

/// Neighbours in time are far from each other in number, and each Service gets its turn: a prime that divides none of the usual
/// numbers of Services.
const STRIDE: usize = 7_919;

impl Towards {
    /// Where the n-th connection goes.
    fn nth(&self, n: usize) -> SocketAddrV4 {
        self.endpoint.unwrap_or_else(|| objects::cluster_ip(n.wrapping_mul(STRIDE) % self.services.max(1)))
    }
}

/// A connection that asks for the endpoint's name; no answer takes longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Asks for the endpoint's name.
const ASK_NAME: u8 = b'n';
/// Asks how many bytes come until the end.
const ASK_LENGTH: u8 = b's';

/// Connects, asks the endpoint for its name, and closes with a reset, which leaves no port behind that has to wait.
fn ask_name(to: SocketAddrV4, patience: Duration) -> std::io::Result<u8> {
    let mut socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddrV4::new(source()?, 0).into())?;
    socket.set_linger(Some(Duration::ZERO))?;
    // Of which connect(2) keeps to the first (socket(7)).
    socket.set_write_timeout(Some(patience))?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(&to.into())?;
    socket.write_all(&[ASK_NAME])?;
    let mut name = [0];
    socket.read_exact(&mut name)?;
    Ok(name[0])
}

/// The next of this namespace's addresses. A connection that was reset is remembered by connection tracking for ten seconds
/// (nf_conntrack_tcp_timeout_close): by turns with all addresses, ports are not used again before.
fn source() -> std::io::Result<Ipv4Addr> {
    static OWN: OnceLock<Vec<Ipv4Addr>> = OnceLock::new();
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let own = match OWN.get() {
        Some(own) => own,
        None => {
            let all = nix::ifaddrs::getifaddrs()?;
            let v4 = all.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
            let own = v4.filter(|address| !address.is_loopback()).collect();
            OWN.get_or_init(|| own)
        }
    };
    let next = NEXT.fetch_add(1, Ordering::Relaxed).checked_rem(own.len()).unwrap_or_default();
    Ok(own.get(next).copied().unwrap_or(Ipv4Addr::UNSPECIFIED))
}

/// Which processor a thread keeps to: clients have the first, servers the last, so that every run has the same places.
#[derive(Clone, Copy)]
enum Processor {
    First,
    Last,
}

impl Processor {
    /// Has the calling thread, and those that it starts, keep to it.
    fn keep(self) -> Result<()> {
        let count = std::thread::available_parallelism()?.get();
        let mut set = CpuSet::new();
        set.set(match self {
            Self::First => 0,
            Self::Last => count - 1,
        })?;
        sched_setaffinity(Pid::from_raw(0), &set).context("keep to a processor")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_gets_its_turn() {
        for services in [1, 2, 1_000, 10_000] {
            let towards = Towards { endpoint: None, services };
            let seen: BTreeSet<_> = (0..services).map(|n| towards.nth(n)).collect();
            assert_eq!(seen.len(), services);
        }
        let endpoint = Some(SocketAddrV4::new([10, 0, 0, 1].into(), 1));
        assert_eq!(Some(Towards { endpoint, services: 9 }.nth(5)), endpoint);
    }
}
