//! The worker's own side: a process that answers, and follows whichever agent comes.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::wire::{self, Hello, Order, SERVING};
use crate::zone::ZoneChange;
use crate::{DnsConfig, DnsError, SharedZone, Sockets, Zone, server};

/// The user and group "nobody": owns nothing.
const NOBODY: u32 = 65_534;

/// The work of a process for which [`super::requested`] is true: answers until an agent retires it. Must be called before
/// there is a second thread.
///
/// # Errors
/// [`DnsError`] when it can't go on. An agent that lives starts another then.
pub fn run() -> Result<(), DnsError> {
    let identity = super::identity(Path::new("/proc/self/exe")).map_err(DnsError::Worker)?;
    let listener = std::io::stdin().as_fd().try_clone_to_owned().map_err(DnsError::Worker)?;
    drop_privileges().map_err(DnsError::Worker)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Connections, and what the agent says. Datagrams have threads of their own.
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(DnsError::Worker)?;
    runtime.block_on(async {
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true).map_err(DnsError::Worker)?;
        let listener = UnixListener::from_std(listener).map_err(DnsError::Worker)?;
        let (failures, failed) = mpsc::channel(1);
        Worker { identity, live: None, failures }.obey(listener, failed).await
    })
}

/// Leaves the agent's session, and gives up everything that makes the agent privileged. What isn't run by root has
/// nothing to give up but the way back.
fn drop_privileges() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, Gid, Uid, geteuid, set_dumpable_behavior, setsid};
    use rustix::thread::{set_name, set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid};
    // The agent may have been started from a terminal whose signals are not for this process. It leads no group, since it
    // was just forked.
    setsid()?;
    std::env::set_current_dir("/")?;
    set_name(c"keelson-dns")?;
    if geteuid().is_root() {
        caps::clear(None, caps::CapSet::Bounding).map_err(io::Error::other)?;
        set_thread_groups(&[])?;
        set_thread_gid(Gid::from_raw(NOBODY))?;
        // Takes all other sets of capabilities along.
        set_thread_uid(Uid::from_raw(NOBODY))?;
    }
    set_no_new_privs(true)?;
    // After the change of user, which sets it by itself to what suid_dumpable says.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

struct Worker {
    identity: String,
    live: Option<Live>,
    failures: mpsc::Sender<DnsError>,
}

/// What it serves.
struct Live {
    config: DnsConfig,
    zone: SharedZone,
    /// Held beside the server, to be handed over.
    sockets: Sockets,
    /// The server; none while a predecessor reads from the sockets.
    server: Option<JoinHandle<()>>,
    end: CancellationToken,
}

/// How a conversation with an agent ended.
enum Ended {
    Retired,
    /// The agent is gone; the next one will come.
    Gone,
}

impl Worker {
    /// Obeys one agent after the other; the newest counts.
    async fn obey(
        mut self,
        listener: UnixListener,
        mut failures: mpsc::Receiver<DnsError>,
    ) -> Result<(), DnsError> {
        let mut agent = None;
        loop {
            tokio::select! {
                accepted = listener.accept() => agent = Some(accepted.map_err(DnsError::Worker)?.0),
                ended = self.converse(agent.as_mut()) => match ended {
                    Ok(Ended::Retired) => break,
                    Ok(Ended::Gone) => agent = None,
                    Err(error) => {
                        tracing::warn!(%error, "an agent could not be understood");
                        agent = None;
                    }
                },
                Some(error) = failures.recv() => return Err(error),
            }
        }
        if let Some(Live { end, server, .. }) = self.live {
            end.cancel();
            if let Some(server) = server {
                // It bounds its own end; a panic has been reported.
                let _ = server.await;
            }
        }
        Ok(())
    }

    async fn converse(&mut self, agent: Option<&mut UnixStream>) -> io::Result<Ended> {
        let Some(agent) = agent else { return std::future::pending().await };
        let config = self.live.as_ref().map(|live| serde_json::to_value(&live.config)).transpose()?;
        let hello = Hello { identity: self.identity.clone(), config };
        let fds: Vec<_> = self.live.iter().flat_map(|live| live.sockets.fds()).collect();
        wire::send_first(agent, &hello, &fds).await?;
        let (order, fds) = match wire::receive_first::<Order>(agent).await {
            Err(error) if gone(&error) => return Ok(Ended::Gone),
            received => received?,
        };
        match order {
            Order::Retire => return Ok(Ended::Retired),
            Order::Serve { config, when_whole } if self.live.is_none() => {
                let mut live = Live::new(*config, Sockets::from_fds(fds)?)?;
                if !when_whole {
                    live.start(&self.failures)?;
                }
                self.live = Some(live);
            }
            Order::Follow if self.live.is_some() => {}
            Order::Serve { .. } | Order::Follow => return Err(io::Error::other("an order out of turn")),
        }
        let Some(live) = &mut self.live else { return Ok(Ended::Gone) };
        if live.server.is_some() {
            wire::send(agent, &SERVING).await?;
        }
        loop {
            match wire::receive::<ZoneChange>(agent).await {
                Ok(change) => live.zone.write().apply(change),
                Err(error) if gone(&error) => return Ok(Ended::Gone),
                Err(error) => return Err(error),
            }
            if live.server.is_none() && live.zone.read().is_synced() {
                live.start(&self.failures)?;
                wire::send(agent, &SERVING).await?;
            }
        }
    }
}

/// Whether the other side has ended, which an agent may do at any moment.
fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

impl Live {
    fn new(config: DnsConfig, sockets: Sockets) -> io::Result<Self> {
        let zone = Zone::new(&config).map_err(io::Error::other)?;
        let zone = Arc::new(RwLock::new(zone));
        Ok(Self { config, zone, sockets, server: None, end: CancellationToken::new() })
    }

    /// Begins to read from the sockets.
    fn start(&mut self, failures: &mpsc::Sender<DnsError>) -> io::Result<()> {
        let (zone, config) = (self.zone.clone(), self.config.clone());
        let serving = server::serve(zone, config, self.sockets.try_clone()?, self.end.clone());
        let failures = failures.clone();
        self.server = Some(tokio::spawn(async move {
            if let Err(error) = serving.await {
                // The receiver lives as long as the process.
                let _ = failures.send(error).await;
            }
        }));
        Ok(())
    }
}
