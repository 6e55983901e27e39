//! Connections: TLS, HTTP/1.1 (with upgrades) and HTTP/2 by ALPN.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::core::Core;
use crate::extension::{Body, BoxError, ConnectionInfo};
use crate::handlers;

/// In the extensions of an answer that goes on by itself, as a watch does: it ends when the server is to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EndsWithServer;

/// How long clients are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For a request's headers, as upstream's ReadHeaderTimeout.
    pub headers: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(10), headers: Duration::from_secs(32) }
    }
}

/// What a client that takes this for a plain HTTP port is told, word for word as Go's server does.
const NOT_PLAIN: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// First byte of every TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;
/// Time for a client to take [`NOT_PLAIN`] and go.
const GOODBYE: Duration = Duration::from_secs(1);
/// Time between HTTP/2 pings, and for their answer: a dead peer's watches end.
const PING: Duration = Duration::from_secs(30);
/// Time that running requests get after a shutdown; watches end at once, as upstream's do.
const DRAIN: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection, upstream's `--http2-max-streams-per-connection`.
const STREAMS: u32 = 1000;
/// Connections at a time; more wait in the socket's backlog.
const CONNECTIONS: usize = 8192;

/// Accepts until `shutdown`, then drains.
pub(crate) async fn accept(
    core: Arc<Core>,
    socket: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    timeouts: Timeouts,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let tracker = TaskTracker::new();
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection =
                    connection(core.clone(), acceptor.clone(), stream, address, timeouts, shutdown.clone());
                tracker.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors or the like: connections that end will free some.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tracker.close();
    if tokio::time::timeout(DRAIN, tracker.wait()).await.is_err() {
        tracing::info!("some connections were still open after the drain");
    }
}

async fn connection(
    core: Arc<Core>,
    acceptor: TlsAcceptor,
    mut stream: TcpStream,
    address: SocketAddr,
    timeouts: Timeouts,
    shutdown: CancellationToken,
) {
    // Small frames of watches must not wait for more (Nagle).
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let handshake = async {
        if is_plain_http(&mut stream).await? {
            refuse_plain(stream).await?;
            return Ok(None);
        }
        acceptor.accept(stream).await.map(Some)
    };
    let stream = match tokio::time::timeout(timeouts.handshake, handshake).await {
        Ok(Ok(Some(stream))) => stream,
        Ok(Ok(None)) => {
            tracing::debug!(%address, "plain HTTP on the TLS port");
            return;
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake failed");
            return;
        }
        Err(_elapsed) => {
            tracing::debug!(%address, "TLS handshake took too long");
            return;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let info = ConnectionInfo {
        peer_certificates: certificates.iter().map(|c| c.clone().into_owned()).collect(),
        remote_addr: Some(address),
    };
    let arrived = Arc::new(Notify::new());
    let arrival = arrived.clone();
    let ending = shutdown.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        arrival.notify_one();
        let core = core.clone();
        let (info, ending) = (info.clone(), ending.clone());
        async move {
            let mut request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
            request.extensions_mut().insert(info);
            let mut response = handlers::handle(core, request).await;
            if response.extensions_mut().remove::<EndsWithServer>().is_some() {
                response = response.map(|body| until(body, ending));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timeouts.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(STREAMS);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // hyper's timer starts once it knows which HTTP it is: a client that never says so has to be timed here.
    let first_request_missing = async {
        if tokio::time::timeout(timeouts.headers, arrived.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = first_request_missing => {
            tracing::debug!(%address, "no request in time");
            return;
        }
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%address, %error, "connection ended");
    }
}

/// A body that has its end when `over`, if not before.
fn until(body: Body, over: CancellationToken) -> Body {
    StreamBody::new(BodyStream::new(body).take_until(over.cancelled_owned())).boxed_unsync()
}

/// Whether a client speaks HTTP where TLS is spoken. Of one that begins a handshake nothing is taken off the socket.
async fn is_plain_http(stream: &mut TcpStream) -> std::io::Result<bool> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 || first == [TLS_HANDSHAKE] {
        return Ok(false);
    }
    let mut start = [0; 5];
    stream.read_exact(&mut start).await?;
    if !matches!(&start, b"GET /" | b"HEAD " | b"POST " | b"PUT /" | b"OPTIO") {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "neither TLS nor HTTP"));
    }
    Ok(true)
}

/// Answers it, and waits a little for its end: closing a socket with unread bytes would throw the answer away.
async fn refuse_plain(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(NOT_PLAIN).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    let drain = async { while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {} };
    // Over time or not, it was told.
    let _ = tokio::time::timeout(GOODBYE, drain).await;
    Ok(())
}
