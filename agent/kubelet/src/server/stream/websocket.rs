//! exec and attach over a WebSocket: `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! Each binary message begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; in v5 also 255, close,
//! whose one byte of data is the channel that the client has finished.

use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::IntoResponse;
use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{FutureExt, SinkExt, StreamExt};
use http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use http::{Request, Response, StatusCode};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::upgrade::{negotiate, tokens};
use super::{ByteReader, PacketWriter, StreamOptions, Streams, resize};
use crate::server::answer::text;

const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Largest message: clients send at most 32 KiB at a time.
pub(super) const MAX_MESSAGE: usize = 4 << 20;
/// Messages that wait, each way.
const QUEUE: usize = 16;
/// How long a finished session may take to flush and to be closed by the client.
const LINGER: Duration = Duration::from_secs(5);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Answers 101 and runs `session` on the channels.
pub(super) async fn upgrade<F, Fut>(
    request: Request<Body>,
    options: StreamOptions,
    idle: Duration,
    session: F,
) -> Response<Body>
where
    F: FnOnce(Streams) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let (upgrade, protocol) = match accept(request, &PROTOCOLS).await {
        Ok(accepted) => accepted,
        Err(response) => return *response,
    };
    let closing = protocol == PROTOCOLS[0];
    upgrade.on_upgrade(move |socket| async move { session(start(socket, &options, closing, idle)).await })
}

/// The handshake: the upgrade to finish, and the protocol that was chosen.
pub(super) async fn accept<'a>(
    request: Request<Body>,
    known: &'a [&'a str],
) -> Result<(WebSocketUpgrade, &'a str), Box<Response<Body>>> {
    let Some(protocol) = negotiate(tokens(&request, &SEC_WEBSOCKET_PROTOCOL), known) else {
        let message =
            format!("unable to upgrade: no known Sec-WebSocket-Protocol offered, server accepts {known:?}");
        return Err(Box::new(text(StatusCode::BAD_REQUEST, message)));
    };
    let (mut parts, _) = request.into_parts();
    let mut upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|refused| Box::new(refused.into_response()))?;
    if let Ok(value) = HeaderValue::from_str(protocol) {
        upgrade.set_selected_protocol(value);
    }
    Ok((upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE), protocol))
}

enum Out {
    Message(Bytes),
    /// A channel has ended. The protocol has no word for it in this direction.
    Nothing,
    Close,
}

fn start(socket: WebSocket, options: &StreamOptions, closing: bool, idle: Duration) -> Streams {
    let (sink, source) = socket.split();
    let (out, messages) = mpsc::channel(QUEUE);
    let closed = CancellationToken::new();
    let (stdin_tx, stdin) = mpsc::channel(QUEUE);
    let (resize_tx, resize) = mpsc::channel(QUEUE);
    let input =
        Input { stdin: options.stdin.then_some(stdin_tx), resize: options.tty.then_some(resize_tx), closing };
    let (activity, active) = tokio::sync::watch::channel(());
    let mut writing = tokio::spawn(write(sink, messages, closed.clone(), activity.clone()));
    let token = closed.clone();
    let mut reading = tokio::spawn(async move {
        tokio::select! {
            () = read(source, input, activity) => {}
            () = idled(active, idle) => tracing::debug!("streaming session idle for too long"),
            () = token.cancelled() => {}
        }
        token.cancel();
    });
    let output = |channel: u8| -> keelson_cri::BoxWrite {
        Box::new(PacketWriter::new(out.clone(), move |bytes| message(channel, bytes), || Out::Nothing, None))
    };
    // Tells the client that the connection stands, as upstream does with an empty message.
    let first = if options.stdout {
        STDOUT
    } else if options.stderr {
        STDERR
    } else {
        ERROR
    };
    let _ = out.try_send(message(first, &[]));
    Streams {
        stdin: options.stdin.then(|| ByteReader::new(stdin, None)),
        stdout: options.stdout.then(|| output(STDOUT)),
        stderr: options.stderr.then(|| output(STDERR)),
        error: output(ERROR),
        resize: options.tty.then(|| resize::sizes(ByteReader::new(resize, None))),
        json_status: true,
        closed: closed.clone(),
        finish: Box::new(move || {
            async move {
                let _ = tokio::time::timeout(LINGER, async {
                    let _ = out.send(Out::Close).await;
                    let _ = (&mut writing).await;
                    let _ = (&mut reading).await;
                })
                .await;
                closed.cancel();
            }
            .boxed()
        }),
    }
}

fn message(channel: u8, bytes: &[u8]) -> Out {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.extend_from_slice(&[channel]);
    message.extend_from_slice(bytes);
    Out::Message(message.freeze())
}

/// Returns when nothing has passed for `idle`.
pub(super) async fn idled(mut active: tokio::sync::watch::Receiver<()>, idle: Duration) {
    while let Ok(Ok(())) = tokio::time::timeout(idle, active.changed()).await {}
}

struct Input {
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: Option<mpsc::Sender<Bytes>>,
    /// v5: channels can be closed.
    closing: bool,
}

async fn read(
    mut source: SplitStream<WebSocket>,
    mut input: Input,
    activity: tokio::sync::watch::Sender<()>,
) {
    while let Some(Ok(message)) = source.next().await {
        activity.send_replace(());
        let data = match message {
            Message::Binary(data) => data,
            Message::Close(_) => return,
            // tungstenite answers pings itself.
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Text(_) => {
                tracing::debug!("text message on a binary protocol");
                return;
            }
        };
        let Some((&channel, rest)) = data.split_first() else { continue };
        match channel {
            STDIN => {
                if let Some(stdin) = &input.stdin
                    && !rest.is_empty()
                {
                    // Fails when the process closed its input: the rest is dropped.
                    let _ = stdin.send(data.slice(1..)).await;
                }
            }
            RESIZE => {
                if let Some(resize) = &input.resize {
                    // Objects need no newline between them here, but the parser wants one.
                    let _ = resize.send(Bytes::from([rest, b"\n"].concat())).await;
                }
            }
            CLOSE if input.closing => match rest.first() {
                Some(&STDIN) => input.stdin = None,
                Some(&RESIZE) => input.resize = None,
                _ => {}
            },
            _ => {
                tracing::debug!(channel, "message on a channel that is not the client's");
                return;
            }
        }
    }
}

async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut messages: mpsc::Receiver<Out>,
    closed: CancellationToken,
    activity: tokio::sync::watch::Sender<()>,
) {
    let work = async {
        while let Some(out) = messages.recv().await {
            activity.send_replace(());
            let message = match out {
                Out::Message(bytes) => Message::Binary(bytes),
                Out::Nothing => continue,
                Out::Close => {
                    let normal = CloseFrame { code: 1000, reason: "".into() };
                    return sink.send(Message::Close(Some(normal))).await;
                }
            };
            sink.send(message).await?;
        }
        Ok(())
    };
    tokio::select! {
        written = work => if let Err(error) = written {
            tracing::debug!(%error, "websocket could not be written");
            closed.cancel();
        },
        () = closed.cancelled() => {}
    }
}
