//! Connections, bytes and datagrams, bounded in number and time.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{ASK_LENGTH, PATIENCE, Processor, Towards, ask_name};

/// Bounds of a load.
#[derive(clap::Args)]
struct Bounds {
    /// How long, milliseconds.
    #[arg(long)]
    millis: u64,
    /// How many at most.
    #[arg(long)]
    count: usize,
}

impl Bounds {
    fn end(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.millis)
    }
}

/// Connections to open.
#[derive(clap::Args)]
pub struct ConnectArgs {
    #[command(flatten)]
    towards: Towards,
    #[command(flatten)]
    bounds: Bounds,
    /// Clients that open connections side by side, each the next when it is done with one.
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Name of the endpoint that should answer.
    #[arg(long, default_value_t = 'a')]
    name: char,
}

/// Opens them, each with a request of one byte and an answer of one byte, and prints the nanoseconds of each from before
/// socket(2) until the answer.
pub fn connect(args: &ConnectArgs) -> Result<()> {
    Processor::First.keep()?;
    let next = AtomicUsize::new(0);
    let (began, end) = (Instant::now(), args.bounds.end());
    let each: Vec<Result<Done>> = std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..args.clients.max(1)).map(|_| scope.spawn(|| client(args, &next, end))).collect();
        clients
            .into_iter()
            .map(|client| client.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))?)
            .collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    let (mut ns, mut failed, mut strayed, mut first) = (Vec::new(), 0, 0, None);
    for done in each {
        let done = done?;
        ns.extend(done.ns);
        failed += done.failed;
        strayed += done.strayed;
        first = first.or(done.first);
    }
    if ns.is_empty() {
        bail!("no connection came about: {}", first.unwrap_or_default());
    }
    println!(
        "{}",
        json!({"ns": ns, "seconds": seconds, "failed": failed, "strayed": strayed, "first": first})
    );
    Ok(())
}

/// What a client did.
#[derive(Default)]
struct Done {
    ns: Vec<u64>,
    /// That came to nothing.
    failed: usize,
    /// That reached another endpoint than they should.
    strayed: usize,
    /// What was the matter with the first of either.
    first: Option<String>,
}

fn client(args: &ConnectArgs, next: &AtomicUsize, end: Instant) -> Result<Done> {
    let mut done = Done::default();
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= args.bounds.count || Instant::now() > end {
            return Ok(done);
        }
        let (to, began) = (args.towards.nth(n), Instant::now());
        match ask_name(to, PATIENCE) {
            Ok(name) if char::from(name) == args.name => done.ns.push(nanos(began.elapsed())),
            Ok(other) => {
                done.strayed += 1;
                done.first.get_or_insert_with(|| format!("{to}: {:?} answered", char::from(other)));
            }
            Err(error) => {
                done.failed += 1;
                done.first.get_or_insert_with(|| format!("{to}: {error}"));
            }
        }
    }
}

/// What a duration is in nanoseconds.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What to send.
#[derive(clap::Args)]
pub struct StreamArgs {
    #[command(flatten)]
    towards: Towards,
    /// How long, milliseconds.
    #[arg(long)]
    millis: u64,
}

/// Sends, and prints how many bytes arrived in which time.
pub fn stream(args: &StreamArgs) -> Result<()> {
    Processor::First.keep()?;
    let to = args.towards.nth(0);
    let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let buffer = vec![0; 256 << 10];
    let began = Instant::now();
    stream.write_all(&[ASK_LENGTH])?;
    let end = began + Duration::from_millis(args.millis);
    while Instant::now() < end {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived).context("learn how much arrived")?;
    let (bytes, seconds) = (u64::from_le_bytes(arrived), began.elapsed().as_secs_f64());
    println!("{}", json!({"bytes": bytes, "seconds": seconds}));
    Ok(())
}

/// How a UDP socket is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sockets {
    /// One, connected.
    Connected,
    /// One, which names the destination with each request.
    Unconnected,
    /// A new one for each request, connected, as resolvers do.
    Fresh,
}

/// Datagrams to send.
#[derive(clap::Args)]
pub struct UdpArgs {
    #[command(flatten)]
    towards: Towards,
    #[command(flatten)]
    bounds: Bounds,
    /// With which sockets.
    #[arg(long)]
    sockets: Sockets,
}

/// Sends requests, each after the answer to the one before, and prints the nanoseconds of each.
pub fn udp(args: &UdpArgs) -> Result<()> {
    Processor::First.keep()?;
    let to = args.towards.nth(0);
    let (began, end) = (Instant::now(), args.bounds.end());
    let mut ns = Vec::new();
    let mut asking = Asking::new(args.sockets, to)?;
    while ns.len() < args.bounds.count && Instant::now() < end {
        let asked = Instant::now();
        asking.ask().with_context(|| format!("ask {to} over UDP, {:?}", args.sockets))?;
        ns.push(nanos(asked.elapsed()));
    }
    println!("{}", json!({"ns": ns, "seconds": began.elapsed().as_secs_f64()}));
    Ok(())
}

/// A client over UDP.
pub struct Asking {
    to: SocketAddrV4,
    sockets: Sockets,
    socket: UdpSocket,
}

impl Asking {
    /// One that has asked nothing yet.
    pub fn new(sockets: Sockets, to: SocketAddrV4) -> Result<Self> {
        Ok(Self { to, sockets, socket: open(sockets, to)? })
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self) -> Result<()> {
        const REQUEST: [u8; 64] = [0; 64];
        let mut answer = [0; 64];
        if self.sockets == Sockets::Fresh {
            self.socket = open(self.sockets, self.to)?;
        }
        if self.sockets == Sockets::Unconnected {
            self.socket.send_to(&REQUEST, self.to)?;
            let (_, from) = self.socket.recv_from(&mut answer)?;
            if from != SocketAddr::V4(self.to) {
                bail!("the answer of {} comes from {from}", self.to);
            }
        } else {
            self.socket.send(&REQUEST)?;
            self.socket.recv(&mut answer)?;
        }
        Ok(())
    }
}

fn open(sockets: Sockets, to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if sockets != Sockets::Unconnected {
        socket.connect(to)?;
    }
    Ok(socket)
}
