//! Names outside the cluster: asked of the host's name servers.
//!
//! Every exchange has a socket of its own, so that the kernel picks an unpredictable source port, and an id
//! of its own; an answer counts only when id and question are those that were sent. Equal questions wait
//! for one exchange: when servers forward in a circle, the question that comes back waits for itself and
//! times out once, instead of going round until something breaks. What was answered is kept for a while, see [`cache`].

mod cache;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::respond::{MAX_UDP, Transport};
use cache::Cache;

/// A question as it goes upstream: what makes two of them the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    /// The name's bytes as the asker wrote them, since the answer repeats them.
    name: Vec<Vec<u8>>,
    kind: RecordType,
    class: DNSClass,
    checking_disabled: bool,
    /// The DNSSEC OK bit, when there is EDNS at all.
    edns: Option<bool>,
    tcp: bool,
}

impl Question {
    fn new(query: &Query, checking_disabled: bool, edns: Option<bool>, transport: Transport) -> Self {
        Self {
            name: query.name().iter().map(<[u8]>::to_vec).collect(),
            kind: query.query_type(),
            class: query.query_class(),
            checking_disabled,
            edns,
            tcp: transport == Transport::Tcp,
        }
    }
}

/// The DNSSEC OK bit of a request, when it has EDNS at all.
fn dnssec_ok(request: &Message) -> Option<bool> {
    request.edns.as_ref().map(|edns| edns.flags().dnssec_ok)
}

/// An upstream's answer: its bytes, with an id that is to be replaced.
pub type Answer = Arc<Vec<u8>>;

type Flight = Shared<BoxFuture<'static, Option<Answer>>>;

/// Asks upstream servers.
#[derive(Debug)]
pub struct Forwarder {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    slots: Arc<Semaphore>,
    flights: Arc<Mutex<HashMap<Question, Flight>>>,
    kept: Arc<Mutex<Cache>>,
    /// The server that answered last is asked first.
    preferred: Arc<AtomicUsize>,
}

impl Forwarder {
    /// A forwarder to `servers` that has at most `max_forwards` exchanges under way.
    pub fn new(servers: Vec<SocketAddr>, timeout: Duration, max_forwards: usize) -> Forwarder {
        Forwarder {
            servers,
            timeout,
            slots: Arc::new(Semaphore::new(max_forwards)),
            flights: Arc::default(),
            kept: Arc::default(),
            preferred: Arc::default(),
        }
    }

    /// Whether there is anyone to ask.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Passes on the question of `request`; `None` when no server gave an answer, or too many are asked
    /// already. The answer carries another id than the request.
    pub async fn forward(&self, request: &Message, transport: Transport) -> Option<Answer> {
        let query = request.queries.first()?;
        self.ask(query, request.metadata.checking_disabled, dnssec_ok(request), transport).await
    }

    /// The answer that is kept for the question of `request`, if there is one: no server is asked.
    pub fn kept(&self, request: &Message, transport: Transport) -> Option<Vec<u8>> {
        let query = request.queries.first()?;
        let question =
            Question::new(query, request.metadata.checking_disabled, dnssec_ok(request), transport);
        self.kept.lock().find(&question, Instant::now())
    }

    /// The answer for one name and type.
    pub async fn resolve(&self, name: &Name, kind: RecordType) -> Option<Message> {
        let query = Query::query(name.clone(), kind);
        // Over TCP when it must be: this answer becomes a part of another.
        let answer = self.ask(&query, false, None, Transport::Tcp).await?;
        Message::from_vec(&answer).ok()
    }

    async fn ask(
        &self,
        query: &Query,
        checking_disabled: bool,
        edns: Option<bool>,
        transport: Transport,
    ) -> Option<Answer> {
        let question = Question::new(query, checking_disabled, edns, transport);
        if let Some(answer) = self.kept.lock().find(&question, Instant::now()) {
            return Some(Arc::new(answer));
        }
        let flight = {
            let mut flights = self.flights.lock();
            match flights.get(&question) {
                Some(flight) => flight.clone(),
                None => {
                    let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
                    let exchange = Exchange {
                        servers: self.servers.clone(),
                        timeout: self.timeout,
                        preferred: Arc::clone(&self.preferred),
                    };
                    let message = request_for(query, checking_disabled, edns);
                    let (all, kept) = (Arc::clone(&self.flights), Arc::clone(&self.kept));
                    let own = question.clone();
                    // A task of its own: it ends, and clears its entry, whether or not anyone still waits.
                    let task = tokio::spawn(async move {
                        let answer = exchange.run(message, own.tcp).await;
                        if let Some(answer) = &answer {
                            kept.lock().keep(own.clone(), answer, Instant::now());
                        }
                        all.lock().remove(&own);
                        drop(slot);
                        answer.map(Arc::new)
                    });
                    let flight = task.map(|done| done.ok().flatten()).boxed().shared();
                    flights.insert(question, flight.clone());
                    flight
                }
            }
        };
        flight.await
    }
}

/// The request that goes upstream: nothing of the asker's but its question and three bits.
fn request_for(query: &Query, checking_disabled: bool, edns: Option<bool>) -> Message {
    let mut message = Message::query();
    message.metadata.id = rand::random();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(query.clone());
    if let Some(dnssec_ok) = edns {
        let mut out = Edns::new();
        out.set_max_payload(MAX_UDP);
        out.set_dnssec_ok(dnssec_ok);
        message.set_edns(out);
    }
    message
}

struct Exchange {
    servers: Vec<SocketAddr>,
    timeout: Duration,
    preferred: Arc<AtomicUsize>,
}

impl Exchange {
    async fn run(&self, request: Message, tcp: bool) -> Option<Vec<u8>> {
        let bytes = request.to_vec().ok()?;
        let mut refusal = None;
        let first = self.preferred.load(Ordering::Relaxed);
        for n in 0..self.servers.len() {
            let index = (first + n) % self.servers.len();
            let server = self.servers[index];
            match timeout(self.timeout, self.one(server, &request, &bytes, tcp)).await {
                Ok(Ok((answer, ResponseCode::NoError | ResponseCode::NXDomain))) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Some(answer);
                }
                // Another server may know better.
                Ok(Ok((answer, _))) => refusal = Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "upstream name server failed"),
                Err(_elapsed) => tracing::debug!(%server, "upstream name server did not answer in time"),
            }
        }
        refusal
    }

    async fn one(
        &self,
        server: SocketAddr,
        request: &Message,
        bytes: &[u8],
        tcp: bool,
    ) -> io::Result<(Vec<u8>, ResponseCode)> {
        let local: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await?;
        // Connected: the kernel drops what comes from anyone else, and reports a closed port at once.
        socket.connect(server).await?;
        socket.send(bytes).await?;
        let mut buffer = vec![0u8; 4096];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let Some((truncated, code)) = accept(request, &buffer[..length]) else { continue };
            if truncated && tcp {
                return self.one_tcp(server, request, bytes).await;
            }
            buffer.truncate(length);
            return Ok((buffer, code));
        }
    }

    async fn one_tcp(
        &self,
        server: SocketAddr,
        request: &Message,
        bytes: &[u8],
    ) -> io::Result<(Vec<u8>, ResponseCode)> {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(bytes);
        stream.write_all(&framed).await?;
        let mut answer = vec![0u8; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        match accept(request, &answer) {
            Some((_, code)) => Ok((answer, code)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "answer does not match the question")),
        }
    }
}

/// Whether `bytes` answer `request`: its TC bit and response code, or `None`.
fn accept(request: &Message, bytes: &[u8]) -> Option<(bool, ResponseCode)> {
    let answer = Message::from_vec(bytes).ok()?;
    let (asked, told) = (request.queries.first()?, answer.queries.first()?);
    let matches = answer.metadata.id == request.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && asked.name().eq_case(told.name())
        && asked.query_type() == told.query_type()
        && asked.query_class() == told.query_class();
    matches.then_some((answer.metadata.truncation, answer.metadata.response_code))
}
