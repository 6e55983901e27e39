//! The agent's side of the worker: finds or starts it, and tells it what there is to answer.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::{Stream, StreamExt, pin_mut};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::wire::{self, Hello, Order, SERVING};
use super::{ARGV0, Place};
use crate::config::{DnsConfig, Upstreams};
use crate::zone::{Zone, ZoneChange};
use crate::{DnsError, Sockets};

/// How long a worker may take to say who it is.
const HELLO: Duration = Duration::from_secs(10);

/// Time between the end of a worker and the start of the next, so that one that can't live doesn't take the machine.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves cluster DNS on `config.listen` by a worker, and keeps that alive, until `shutdown`; the worker stays.
/// `changes` begins what it is to be told, anew for each worker.
///
/// # Errors
/// [`DnsError`] when there can be no worker.
pub async fn keep<S: Stream<Item = ZoneChange>>(
    mut changes: impl FnMut() -> S,
    config: DnsConfig,
    place: Place,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    // The worker opens no files: the servers go with the order.
    let config = DnsConfig { upstreams: Upstreams::Servers(config.upstream_servers()), ..config };
    // What the worker would refuse.
    Zone::new(&config)?;
    let mut sockets = Sockets::default();
    loop {
        let told = async {
            let mut worker = obtain(&config, &place, &mut sockets).await?;
            let ended = worker.tell(&sockets, changes()).await;
            tracing::warn!(reason = %ended, "the DNS worker is gone, another is started");
            tokio::time::sleep(PAUSE).await;
            Ok(())
        };
        tokio::select! {
            told = told => told?,
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Ends every worker that agents left in a place, for when no agent is to come any more. There may be none.
///
/// # Errors
/// The folder can't be read, or a worker does not listen to reason.
pub async fn retire(place: &Place) -> io::Result<()> {
    if !place.dir.exists() {
        return Ok(());
    }
    for socket in folder(&place.dir)? {
        match Worker::meet(socket.clone()).await {
            Ok((mut worker, _sockets)) => {
                wire::send_first(&mut worker.stream, &Order::Retire, &[]).await?;
                // It lets go of the connection as it ends.
                let _ = timeout(HELLO, wire::receive::<String>(&mut worker.stream)).await?;
            }
            // Nobody listens there any more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
        std::fs::remove_file(&socket)?;
    }
    Ok(())
}

/// A worker that lives.
struct Worker {
    stream: UnixStream,
    hello: Hello,
    socket: PathBuf,
    /// What it is told first.
    order: Order,
    /// Those that it replaces. They wait for an order, and answer meanwhile.
    predecessors: Vec<Worker>,
}

/// The worker that is there, if it is the right one, or a new one. `sockets` are held here as well: while they are open
/// here, what is asked while there is no worker waits in them.
async fn obtain(config: &DnsConfig, place: &Place, sockets: &mut Sockets) -> Result<Worker, DnsError> {
    let identity = super::identity(&place.program).map_err(DnsError::Worker)?;
    let wanted = serde_json::to_value(config).map_err(|error| DnsError::Worker(error.into()))?;
    let mut found = Vec::new();
    for socket in folder(&place.dir).map_err(DnsError::Worker)? {
        match Worker::meet(socket.clone()).await {
            Ok((worker, theirs)) => {
                // Of several, all have the same ones; one that was never told anything has none.
                if sockets.is_empty() {
                    *sockets = Sockets::from_fds(theirs).map_err(DnsError::Worker)?;
                }
                found.push(worker);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                // Nobody listens there any more.
                std::fs::remove_file(&socket).map_err(DnsError::Worker)?;
            }
            Err(error) => tracing::warn!(socket = %socket.display(), %error, "a DNS worker does not answer"),
        }
    }
    let right =
        |worker: &Worker| worker.hello.identity == identity && worker.hello.config.as_ref() == Some(&wanted);
    if let Some(index) = found.iter().position(right) {
        let worker = found.swap_remove(index);
        tracing::info!("the DNS worker goes on");
        return Ok(Worker { predecessors: found, ..worker });
    }
    let when_whole = found.iter().any(|worker| worker.hello.config.is_some());
    *sockets = std::mem::take(sockets).complete(&config.listen, config.sockets_per_address)?;
    let worker = Worker::start(place).await.map_err(DnsError::Worker)?;
    tracing::info!(replaces = found.len(), "a DNS worker is started");
    let order = Order::Serve { config: Box::new(config.clone()), when_whole };
    Ok(Worker { order, predecessors: found, ..worker })
}

/// The sockets in the workers' folder.
fn folder(dir: &Path) -> io::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir)?;
    // Whoever can connect to a worker can make it answer anything.
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700))?;
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

impl Worker {
    /// Connects to one that runs; the descriptors are its listening sockets.
    async fn meet(socket: PathBuf) -> io::Result<(Self, Vec<OwnedFd>)> {
        let meeting = async {
            let mut stream = UnixStream::connect(&socket).await?;
            let (hello, fds) = wire::receive_first(&mut stream).await?;
            let socket = socket.clone();
            Ok((Self { stream, hello, socket, order: Order::Follow, predecessors: Vec::new() }, fds))
        };
        timeout(HELLO, meeting).await.map_err(io::Error::from)?
    }

    /// Starts one.
    async fn start(place: &Place) -> io::Result<Self> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let socket = place.dir.join(format!("{}.sock", now.as_nanos()));
        let listener = UnixListener::bind(&socket)?;
        let mut command = tokio::process::Command::new(&place.program);
        command.arg0(ARGV0).env_clear().envs(place.env.iter().cloned());
        // It outlives this process; dropped, it is still reaped.
        let child = command.stdin(Stdio::from(OwnedFd::from(listener))).spawn()?;
        drop(child);
        Ok(Self::meet(socket).await?.0)
    }

    /// Tells it of changes, and retires its predecessors when it answers in their place; why that ended.
    async fn tell(&mut self, sockets: &Sockets, changes: impl Stream<Item = ZoneChange>) -> io::Error {
        let fds: Vec<_> = match self.order {
            Order::Serve { .. } => sockets.fds().collect(),
            Order::Follow | Order::Retire => Vec::new(),
        };
        if let Err(error) = wire::send_first(&mut self.stream, &self.order, &fds).await {
            return error;
        }
        let predecessors = std::mem::take(&mut self.predecessors);
        let (mut from, mut to) = self.stream.split();
        let listening = async {
            let word: String = wire::receive(&mut from).await?;
            if word != SERVING {
                return Err(io::Error::other("the worker said something unknown"));
            }
            for mut old in predecessors {
                // One that is gone needs no telling.
                let _ = wire::send_first(&mut old.stream, &Order::Retire, &[]).await;
                let _ = std::fs::remove_file(&old.socket);
            }
            // It says nothing more: this waits for its end.
            wire::receive::<String>(&mut from).await
        };
        let telling = async {
            pin_mut!(changes);
            while let Some(change) = changes.next().await {
                wire::send(&mut to, &change).await?;
            }
            Err(io::Error::other("there is nothing more to tell"))
        };
        let ended: io::Result<()> = tokio::select! {
            heard = listening => heard.map(drop),
            told = telling => told,
        };
        ended.err().unwrap_or_else(|| io::Error::other("the worker said something unknown"))
    }
}
