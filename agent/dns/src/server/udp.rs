//! Datagrams. Each socket has a thread of its own, so that a query wakes nobody but who answers it. Cluster names are answered in
//! the loop; what must wait for an upstream gets a task, of which the forwarder bounds the number that really waits.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::memo::Memo;
use super::{Service, Step};
use crate::respond::Transport;

/// The longest query that is read, in bytes; real ones are far shorter.
const MAX_QUERY: usize = 4096;

/// The most queries of one socket that may wait; more are dropped, as by a full queue.
const MAX_WAITING: usize = 2048;

/// Queries that are answered before those that wait have their turn.
const MAX_RUN: usize = 64;

/// Answers on a socket, which does not block, until the service's end. What it gives ends with the last answer.
///
/// # Errors
/// The kernel's, when there can be no thread for it.
pub(super) fn serve(
    service: Arc<Service>,
    socket: std::net::UdpSocket,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let (tell, told) = std::sync::mpsc::channel();
    let (ends, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("dns-udp".to_owned()).spawn(move || {
        let made = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            let _registers = runtime.enter();
            Ok((Arc::new(UdpSocket::from_std(socket)?), runtime))
        });
        match made {
            Ok((socket, runtime)) => {
                // Whoever began this waits for it.
                let _ = tell.send(Ok(()));
                let waiting = TaskTracker::new();
                runtime.block_on(async {
                    Socket { service, socket, waiting: waiting.clone(), memo: Memo::default() }.serve().await;
                    waiting.close();
                    waiting.wait().await;
                });
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        }
        drop(ends);
    })?;
    told.recv().map_err(io::Error::other)??;
    // Nothing is ever sent, but the sender dropped.
    Ok(async { drop(ended.await) })
}

struct Socket {
    service: Arc<Service>,
    socket: Arc<UdpSocket>,
    /// Answers that wait for an upstream.
    waiting: TaskTracker,
    memo: Memo,
}

impl Socket {
    async fn serve(mut self) {
        let slots = Arc::new(Semaphore::new(MAX_WAITING));
        let mut query = vec![0u8; MAX_QUERY];
        let mut answer = Vec::new();
        let service = Arc::clone(&self.service);
        let end = service.end.cancelled();
        tokio::pin!(end);
        loop {
            let ready = tokio::select! {
                biased;
                () = &mut end => return,
                ready = self.socket.readable() => ready,
            };
            let run = match ready {
                Ok(()) => self.run(&slots, &mut query, &mut answer).await,
                Err(error) => Err(error),
            };
            match run {
                // There is more.
                Ok(()) => tokio::task::yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Port-unreachable messages of earlier answers come up here as errors.
                    tracing::debug!(%error, "receiving a query failed");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    }

    /// Answers what has come, up to a number.
    async fn run(
        &mut self,
        slots: &Arc<Semaphore>,
        query: &mut [u8],
        answer: &mut Vec<u8>,
    ) -> io::Result<()> {
        for _ in 0..MAX_RUN {
            let (length, peer) = self.socket.try_recv_from(query)?;
            let query = query.get(..length).unwrap_or_default();
            if self.memo.find(query, self.service.serial(), answer) {
                send(&self.socket, peer, answer).await;
                continue;
            }
            match self.service.step(query, Transport::Udp) {
                Step::Silence | Step::Answer(None, _) => {}
                Step::Answer(Some(answer), serial) => {
                    send(&self.socket, peer, &answer).await;
                    if let Some(serial) = serial {
                        self.memo.keep(query, &answer, serial);
                    }
                }
                Step::Wait(pending) => {
                    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { continue };
                    let (service, socket) = (Arc::clone(&self.service), Arc::clone(&self.socket));
                    self.waiting.spawn(async move {
                        if let Some(answer) = service.finish(*pending).await {
                            send(&socket, peer, &answer).await;
                        }
                        drop(slot);
                    });
                }
            }
        }
        Ok(())
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, answer: &[u8]) {
    let sent = match socket.try_send_to(answer, peer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.send_to(answer, peer).await,
        sent => sent,
    };
    if let Err(error) = sent {
        tracing::debug!(%peer, %error, "sending an answer failed");
    }
}
