//! Sockets: queries in, answers out.

mod memo;
mod sockets;
mod tcp;
mod udp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::Name;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::DnsConfig;
use crate::forward::Forwarder;
use crate::respond::{Decision, Received, Transport, decide, encode, limit, read, reply_to};
use crate::{DnsError, SharedZone};
use memo::Memo;
pub use sockets::Sockets;

/// What every socket's task works with.
#[derive(Debug)]
struct Service {
    zone: SharedZone,
    /// How often the zone has changed.
    serial: Arc<AtomicU32>,
    forwarder: Forwarder,
    /// What was answered over TCP; each socket for datagrams has its own.
    connections: Mutex<Memo>,
    /// Answers that are under way.
    tasks: TaskTracker,
    end: CancellationToken,
}

/// How long answers that were begun may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Answers queries on `sockets` from `zone` until `shutdown`, and then finishes what it has begun: what has not been read
/// stays in the sockets for whoever holds them too.
///
/// # Errors
/// [`DnsError::Socket`] when a socket can't be used; failures after that are logged and survived.
pub async fn serve(
    zone: SharedZone,
    config: DnsConfig,
    sockets: Sockets,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    let servers = config.upstream_servers();
    tracing::info!(listen = ?config.listen, domain = config.domain, upstreams = ?servers, "serving cluster DNS");
    let forwarder = Forwarder::new(servers, config.upstream_timeout, config.max_forwards);
    let tasks = TaskTracker::new();
    let serial = zone.read().serial();
    let connections = Mutex::default();
    let service = Arc::new(Service {
        zone,
        serial,
        forwarder,
        connections,
        tasks: tasks.clone(),
        end: shutdown.clone(),
    });
    for socket in sockets.udp {
        // One that was handed over may have come in any state.
        socket.set_nonblocking(true).map_err(DnsError::Socket)?;
        tasks.spawn(udp::serve(Arc::clone(&service), socket).map_err(DnsError::Socket)?);
    }
    let connections = Arc::new(tokio::sync::Semaphore::new(config.max_connections));
    for listener in sockets.tcp {
        listener.set_nonblocking(true).map_err(DnsError::Socket)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(DnsError::Socket)?;
        tasks.spawn(tcp::serve(Arc::clone(&service), listener, Arc::clone(&connections)));
    }
    shutdown.cancelled().await;
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::info!("some DNS answers did not end in time and are cut");
    }
    Ok(())
}

/// The first step with a query: an answer, or what takes longer.
enum Step {
    Silence,
    /// Out of the zone as it was after so many changes; without a number, one that is not true for as long as the zone is.
    Answer(Option<Vec<u8>>, Option<u32>),
    Wait(Box<Pending>),
}

/// A query that an upstream server must help with.
struct Pending {
    request: Box<Message>,
    help: Help,
    limit: usize,
    transport: Transport,
}

/// What is needed of the upstream server.
enum Help {
    Everything,
    Addresses { reply: Box<Message>, target: Name },
}

impl Service {
    /// How often the zone has changed. An answer out of a zone that is read, and so can't change, goes with this number.
    fn serial(&self) -> u32 {
        self.serial.load(Ordering::Acquire)
    }

    /// Answers from the zone without waiting for anything.
    fn step(&self, bytes: &[u8], transport: Transport) -> Step {
        let request = match read(bytes) {
            Received::Noise => return Step::Silence,
            Received::Malformed(reply) => {
                return Step::Answer(encode(*reply, limit(0, transport)), None);
            }
            Received::Query(request) => request,
        };
        let limit = limit(request.max_payload(), transport);
        let (decision, serial) = {
            let zone = self.zone.read();
            (decide(&zone, &request, !self.forwarder.is_empty()), self.serial())
        };
        let help = match decision {
            Decision::Reply(reply) => return Step::Answer(encode(*reply, limit), Some(serial)),
            Decision::Forward => match self.forwarder.kept(&request, transport) {
                Some(answer) if answer.len() <= limit => {
                    return Step::Answer(with_id_of(&request, answer), None);
                }
                Some(_) | None => Help::Everything,
            },
            Decision::Complete { reply, target } => Help::Addresses { reply, target },
        };
        Step::Wait(Box::new(Pending { request, help, limit, transport }))
    }

    /// Finishes what [`Service::step`] could not.
    async fn finish(&self, pending: Pending) -> Option<Vec<u8>> {
        let Pending { request, help, limit, transport } = pending;
        match help {
            Help::Everything => match self.forwarder.forward(&request, transport).await {
                Some(answer) if answer.len() <= limit => with_id_of(&request, answer.to_vec()),
                Some(_too_long) => {
                    let mut reply = reply_to(&request, ResponseCode::NoError);
                    reply.metadata.truncation = true;
                    reply.metadata.recursion_available = true;
                    encode(reply, limit)
                }
                None => encode(reply_to(&request, ResponseCode::ServFail), limit),
            },
            Help::Addresses { mut reply, target } => {
                let kind = request.queries.first()?.query_type();
                match self.forwarder.resolve(&target, kind).await {
                    Some(answer) => {
                        reply.metadata.response_code = answer.metadata.response_code;
                        reply.add_answers(answer.answers.into_iter().take(MAX_COMPLETED));
                    }
                    None => reply.metadata.response_code = ResponseCode::ServFail,
                }
                encode(*reply, limit)
            }
        }
    }
}

/// An upstream's answer with the id of who asked here.
fn with_id_of(request: &Message, mut answer: Vec<u8>) -> Option<Vec<u8>> {
    answer.get_mut(..2)?.copy_from_slice(&request.metadata.id.to_be_bytes());
    Some(answer)
}

/// The most records that an upstream server may add to an alias.
const MAX_COMPLETED: usize = 64;
