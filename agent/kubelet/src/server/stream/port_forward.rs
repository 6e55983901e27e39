//! Port-forwarding: pairs of streams, each pair one TCP connection into the pod.
//!
//! Over SPDY, plain or tunnelled in a WebSocket (KEP-4006), a client opens for each connection an `error` and a `data`
//! stream with the same `requestid` and `port`.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::{Message, WebSocket};
use bytes::{Buf, Bytes};
use futures::{Sink, Stream as _};
use http::{Request, Response, StatusCode};
use keelson_cri::RuntimeService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use super::{STREAM_CREATION, spdy_transport, upgrade, websocket};
use crate::server::answer::text;
use crate::server::spdy::{Connection, Limits, Stream};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Two streams for each connection.
const MAX_STREAMS: usize = 1000;
/// Largest message of the tunnel that is written.
const MAX_WRITE: usize = 32 * 1024;
/// Deadline for reaching the port in the pod.
const CONNECT: Duration = Duration::from_secs(10);

/// Where connections go.
#[derive(Clone)]
struct Target {
    runtime: Arc<dyn RuntimeService>,
    sandbox_id: String,
    /// `name, uid uid`, for messages.
    pod: String,
}

/// Upgrades the connection to what the client asks for and forwards in a task of its own.
pub(crate) async fn port_forward(
    request: Request<Body>,
    runtime: Arc<dyn RuntimeService>,
    sandbox_id: String,
    pod: String,
    idle: Duration,
) -> Response<Body> {
    let target = Target { runtime, sandbox_id, pod };
    let limits = Limits { max_streams: MAX_STREAMS, idle };
    if upgrade::is_websocket(&request) {
        return match websocket::accept(request, &[TUNNEL]).await {
            Err(response) => *response,
            Ok((upgrade, _)) => upgrade.on_upgrade(move |socket| async move {
                match Connection::start(Tunnel { socket, current: Bytes::new() }, limits) {
                    Ok(connection) => forward(connection, target).await,
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "could not start a SPDY connection"
                        );
                    }
                }
            }),
        };
    }
    if !upgrade::is_spdy(&request) {
        return text(
            StatusCode::BAD_REQUEST,
            "unable to upgrade: missing upgrade headers in request: need WebSocket or SPDY/3.1",
        );
    }
    match spdy_transport::switch(&request, &[PROTOCOL]) {
        Err(response) => *response,
        Ok(protocol) => {
            let response = spdy_transport::switching(protocol);
            tokio::spawn(async move {
                if let Some(connection) = spdy_transport::connect(request, limits).await {
                    forward(connection, target).await;
                }
            });
            response
        }
    }
}

/// A half-opened pair, and until when its other half may come.
struct Half {
    error: bool,
    stream: Stream,
    deadline: Instant,
}

async fn forward(mut connection: Connection, target: Target) {
    let mut waiting: HashMap<(String, u16), Half> = HashMap::new();
    let closed = connection.closed();
    loop {
        let next_deadline = waiting.values().map(|half| half.deadline).min();
        let stream = tokio::select! {
            stream = connection.accept() => match stream {
                Some(stream) => stream,
                None => break,
            },
            () = tokio::time::sleep_until(next_deadline.unwrap_or_else(Instant::now)), if next_deadline.is_some() => {
                // Dropped halves are reset.
                waiting.retain(|_, half| half.deadline > Instant::now());
                continue;
            }
        };
        let Some((error, port)) = role(&stream) else {
            tracing::debug!("port-forward stream without a type or port");
            continue;
        };
        // Clients before requestid was made open the error stream first, one pair at a time.
        let key = (stream.headers.get("requestid").unwrap_or_default().to_owned(), port);
        match waiting.remove(&key) {
            Some(half) if half.error != error => {
                let (error, data) = if error { (stream, half.stream) } else { (half.stream, stream) };
                let (target, closed) = (target.clone(), closed.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = one(target, port, error, data) => {}
                        () = closed.cancelled() => {}
                    }
                });
            }
            _ => {
                waiting.insert(key, Half { error, stream, deadline: Instant::now() + STREAM_CREATION });
            }
        }
    }
    connection.close().await;
}

/// Whether it is an error stream, and the port.
fn role(stream: &Stream) -> Option<(bool, u16)> {
    let error = match stream.headers.get("streamtype")? {
        "error" => true,
        "data" => false,
        _ => return None,
    };
    let port: u16 = stream.headers.get("port")?.parse().ok()?;
    (port > 0).then_some((error, port))
}

/// One connection.
async fn one(target: Target, port: u16, mut error: Stream, mut data: Stream) {
    let result =
        match tokio::time::timeout(CONNECT, target.runtime.port_forward(&target.sandbox_id, port)).await {
            Ok(Ok(connection)) => relay(connection, &mut data).await.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err("connection timed out".to_owned()),
        };
    let told = async {
        if let Err(reason) = result {
            let message = format!("error forwarding port {port} to pod {}: {reason}", target.pod);
            error.writer.write_all(message.as_bytes()).await?;
        }
        error.writer.shutdown().await?;
        data.writer.shutdown().await
    };
    if let Err(error) = told.await {
        tracing::debug!(%error, "could not end a forwarded connection");
    }
}

/// Copies both ways. Each side's end of stream is passed on to the other; the pod's ends the connection.
async fn relay(connection: tokio::net::TcpStream, data: &mut Stream) -> io::Result<()> {
    let (mut from_pod, mut to_pod) = connection.into_split();
    let Stream { reader, writer, .. } = data;
    let sending = async {
        tokio::io::copy(reader, &mut to_pod).await?;
        to_pod.shutdown().await
    };
    let receiving = tokio::io::copy(&mut from_pod, writer);
    tokio::pin!(sending, receiving);
    let mut sent = false;
    loop {
        tokio::select! {
            received = &mut receiving => return received.map(|_| ()),
            // A pod that closed for reading may still send: only its own end is the end.
            _ = &mut sending, if !sent => sent = true,
        }
    }
}

/// The bytes of a SPDY connection inside binary messages.
struct Tunnel {
    socket: WebSocket,
    current: Bytes,
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.current = data,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "text message in a tunnel",
                    )));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let take = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..take]);
        self.current.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
        let take = bytes.len().min(MAX_WRITE);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..take]));
        Pin::new(&mut self.socket).start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(take))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io::Error::other)
    }
}
