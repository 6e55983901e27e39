//! exec and attach over plain SPDY/3.1: what kubectl before 1.31 and upstream's apiserver speak.

use std::time::Duration;

use axum::body::Body;
use futures::FutureExt;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::upgrade::{ACCEPTED_PROTOCOLS, STREAM_PROTOCOL, negotiate, tokens};
use super::{STREAM_CREATION, StreamOptions, Streams, resize};
use crate::server::answer::text;
use crate::server::spdy::{Connection, Limits, Stream};

/// Protocols for exec and attach. v4: status in JSON. v3: resizing. v2: streams are replied to.
const PROTOCOLS: [&str; 3] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];
/// stdin, stdout, stderr, error, resize, and some to be told apart as wrong.
const MAX_STREAMS: usize = 8;

/// Answers 101 and runs `session` on the streams that the client opens.
pub(super) fn upgrade<F, Fut>(
    request: Request<Body>,
    options: StreamOptions,
    idle: Duration,
    session: F,
) -> Response<Body>
where
    F: FnOnce(Streams) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let protocol = match switch(&request, &PROTOCOLS) {
        Ok(protocol) => protocol,
        Err(response) => return *response,
    };
    let response = switching(protocol);
    tokio::spawn(async move {
        let Some(connection) = connect(request, Limits { max_streams: MAX_STREAMS, idle }).await else {
            return;
        };
        match collect(connection, &options, protocol).await {
            Ok(streams) => session(streams).await,
            Err(error) => tracing::debug!(error, "streaming session refused"),
        }
    });
    response
}

/// The protocol to speak, or the refusal.
pub(super) fn switch<'a>(
    request: &Request<Body>,
    known: &'a [&'a str],
) -> Result<&'a str, Box<Response<Body>>> {
    let offered: Vec<&str> = tokens(request, &STREAM_PROTOCOL).collect();
    if offered.is_empty() {
        let message = "unable to upgrade: X-Stream-Protocol-Version is missing";
        return Err(Box::new(text(StatusCode::BAD_REQUEST, message)));
    }
    negotiate(offered.iter().copied(), known).ok_or_else(|| {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
        );
        let mut response = text(StatusCode::FORBIDDEN, message);
        for protocol in known {
            if let Ok(value) = HeaderValue::from_str(protocol) {
                response.headers_mut().append(ACCEPTED_PROTOCOLS, value);
            }
        }
        Box::new(response)
    })
}

/// The answer 101.
pub(super) fn switching(protocol: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    if let Ok(protocol) = HeaderValue::from_str(protocol) {
        headers.insert(STREAM_PROTOCOL, protocol);
    }
    response
}

/// Waits for the upgrade and starts SPDY on it.
pub(super) async fn connect(request: Request<Body>, limits: Limits) -> Option<Connection> {
    match hyper::upgrade::on(request).await {
        Ok(upgraded) => match Connection::start(TokioIo::new(upgraded), limits) {
            Ok(connection) => Some(connection),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not start a SPDY connection");
                None
            }
        },
        Err(error) => {
            tracing::debug!(%error, "connection was not upgraded");
            None
        }
    }
}

/// Waits until the client has opened all streams that the options call for.
async fn collect(
    mut connection: Connection,
    options: &StreamOptions,
    protocol: &str,
) -> Result<Streams, &'static str> {
    let resizing = options.tty && protocol != "v2.channel.k8s.io";
    let wanted = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr),
        ("resize", resizing),
    ];
    let mut slots: [Option<Stream>; 5] = Default::default();
    let complete =
        |slots: &[Option<Stream>; 5]| slots.iter().zip(wanted).all(|(slot, (_, on))| slot.is_some() || !on);
    let collecting = async {
        while !complete(&slots) {
            let stream = connection.accept().await.ok_or("the client went away")?;
            let kind = stream.headers.get("streamtype").unwrap_or_default();
            let index =
                wanted.iter().position(|(name, on)| *name == kind && *on).ok_or("unexpected stream type")?;
            if slots[index].replace(stream).is_some() {
                return Err("two streams of one type");
            }
        }
        Ok(())
    };
    tokio::time::timeout(STREAM_CREATION, collecting)
        .await
        .map_err(|_elapsed| "timed out waiting for client to create streams")??;
    let [error, stdin, stdout, stderr, resize] = slots;
    let closed = connection.closed();
    let error = error.ok_or("no error stream")?;
    // Directions that a stream isn't used in are simply dropped with the session: the pair holds the stream.
    let output = |stream: Stream| -> keelson_cri::BoxWrite { Box::new(stream.writer) };
    Ok(Streams {
        stdin: stdin.map(|stream| stream.reader),
        stdout: stdout.map(output),
        stderr: stderr.map(output),
        error: output(error),
        resize: resize.map(|stream| resize::sizes(stream.reader)),
        json_status: protocol == "v4.channel.k8s.io",
        closed,
        finish: Box::new(move || connection.close().boxed()),
    })
}
