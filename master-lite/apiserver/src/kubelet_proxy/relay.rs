//! Sends one request on and brings the answer back; joins the two connections if the answer is an upgrade.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::Instant;

use super::headers::{forwarded, is_upgrade, without_hops};
use crate::extension::{Body, Result, StatusError};

/// A joined stream on which nothing moves for so long is closed, as upstream's kubelet does
/// (`streamingConnectionIdleTimeout`).
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

/// How often idleness is looked at.
const CHECK: Duration = Duration::from_secs(60);

/// Where a request goes on an open connection, and how long the head of its answer may take.
pub(crate) struct Destination {
    /// Connection to the backend.
    pub(crate) sender: SendRequest<Body>,
    /// `Host` header.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) target: String,
    /// Deadline for the answer's head.
    pub(crate) patience: Duration,
    /// What the backend is told besides what the client said.
    pub(crate) headers: HeaderMap,
}

/// Relays. An answer other than an upgrade is returned with its body still streaming.
pub(crate) async fn relay(mut request: Request<Body>, mut to: Destination) -> Result<Response<Body>> {
    let client =
        is_upgrade(request.headers()).then(|| request.extensions_mut().remove::<OnUpgrade>()).flatten();
    if is_upgrade(request.headers()) && client.is_none() {
        return Err(StatusError::bad_request("this connection can't be upgraded: use HTTP/1.1"));
    }
    let (parts, body) = request.into_parts();
    let uri: Uri = to.target.parse().map_err(|e| StatusError::bad_request(format!("bad path: {e}")))?;
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = uri;
    *onward.version_mut() = Version::HTTP_11;
    *onward.headers_mut() = forwarded(&parts.headers);
    let host =
        to.authority.parse().map_err(|_bad_header| StatusError::internal("backend has no valid name"))?;
    onward.headers_mut().insert(header::HOST, host);
    onward.headers_mut().extend(to.headers);

    let answer = match tokio::time::timeout(to.patience, to.sender.send_request(onward)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Err(StatusError::service_unavailable(format!("error trying to reach service: {error}")));
        }
        Err(_elapsed) => return Err(StatusError::timeout("the backend did not answer")),
    };
    match client {
        Some(client) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(join(client, answer)),
        _ if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Err(StatusError::service_unavailable("the backend changed the protocol without being asked to"))
        }
        _ => Ok(returned(answer)),
    }
}

/// The backend's answer as ours.
fn returned(answer: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    parts.headers = without_hops(&parts.headers);
    parts.version = Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

/// Answers 101 with the backend's headers; once both sides have switched, bytes flow until one of them ends.
fn join(client: OnUpgrade, mut answer: Response<Incoming>) -> Response<Body> {
    let mut response = Response::new(crate::extension::full_body(bytes::Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let backend = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let (client, backend) = match tokio::try_join!(client, backend) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "stream was not upgraded"),
        };
        pump(TokioIo::new(client), TokioIo::new(backend), IDLE, CHECK).await;
    });
    response
}

/// Copies both ways until an end or until nothing has moved for `idle`.
async fn pump(
    client: impl AsyncRead + AsyncWrite + Unpin,
    backend: impl AsyncRead + AsyncWrite + Unpin,
    idle: Duration,
    check: Duration,
) {
    let activity = Arc::new(Activity { start: Instant::now(), last: AtomicU64::new(0) });
    let mut client = Watched { inner: client, activity: activity.clone() };
    let mut backend = Watched { inner: backend, activity: activity.clone() };
    let watchdog = async {
        while activity.quiet() < idle {
            tokio::time::sleep(check).await;
        }
    };
    tokio::select! {
        copied = copy_bidirectional(&mut client, &mut backend) => match copied {
            Ok((up, down)) => tracing::debug!(up, down, "stream ended"),
            // Either side may simply vanish.
            Err(error) => tracing::debug!(%error, "stream broke"),
        },
        () = watchdog => tracing::debug!("stream closed: idle"),
    }
}

/// When something was last read, as milliseconds since the start.
struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    fn mark(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn quiet(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// A stream whose reads are noted.
struct Watched<S> {
    inner: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        if poll.is_ready() {
            self.activity.mark();
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_flow_both_ways_and_idle_streams_end() {
        let (mut client, near) = duplex(64);
        let (mut backend, far) = duplex(64);
        let task = tokio::spawn(pump(near, far, Duration::from_millis(200), Duration::from_millis(20)));
        client.write_all(b"ping").await.unwrap();
        let mut buf = [0; 4];
        backend.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"ping");
        backend.write_all(b"pong").await.unwrap();
        client.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"pong");
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
        assert_eq!(client.read(&mut buf).await.unwrap(), 0, "closed after idling");
    }
}
