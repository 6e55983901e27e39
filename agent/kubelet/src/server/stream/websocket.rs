//! exec and attach over a WebSocket: `v5.channel.k8s.io` and its predecessors.
//!
//! Each message begins with its channel: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; in v5 also 255, close, whose one
//! byte of data is the channel that the client has finished. In the `base64.` protocols the channel is a digit, and the
//! data Base64. Before v4 the error channel says nothing of a success, and of a failure a bare text.

use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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

/// What a client may offer, and nothing at all, which is as the oldest.
const PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
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

/// How channels and bytes become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    /// Binary messages.
    Raw,
    /// Text messages with the channel as a digit and the data in Base64.
    Base64,
}

/// What the protocol chosen stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dialect {
    codec: Codec,
    /// The error channel carries a Status in JSON.
    json_status: bool,
    /// Channels can be closed.
    closing: bool,
}

impl Dialect {
    fn of(protocol: &str) -> Self {
        Self {
            codec: if protocol.contains("base64.") { Codec::Base64 } else { Codec::Raw },
            json_status: protocol.starts_with('v'),
            closing: protocol.starts_with("v5."),
        }
    }
}

impl Codec {
    fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        match self {
            Self::Raw => {
                let mut message = BytesMut::with_capacity(bytes.len() + 1);
                message.extend_from_slice(&[channel]);
                message.extend_from_slice(bytes);
                Message::Binary(message.freeze())
            }
            Self::Base64 => Message::Text(format!("{channel}{}", STANDARD.encode(bytes)).into()),
        }
    }

    /// Channel and data; none for what is no message of this codec, which is ignored.
    fn decode(self, message: Bytes) -> Option<(u8, Bytes)> {
        let (&channel, data) = message.split_first()?;
        match self {
            Self::Raw => Some((channel, message.slice(1..))),
            Self::Base64 => Some((channel.checked_sub(b'0')?, STANDARD.decode(data).ok()?.into())),
        }
    }
}

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
    let dialect = Dialect::of(protocol);
    upgrade.on_upgrade(move |socket| async move { session(start(socket, &options, dialect, idle)).await })
}

/// The handshake: the upgrade to finish, and the protocol that was chosen: "" when the client offers none and that is
/// known.
pub(super) async fn accept<'a>(
    request: Request<Body>,
    known: &'a [&'a str],
) -> Result<(WebSocketUpgrade, &'a str), Box<Response<Body>>> {
    let mut offered: Vec<&str> = tokens(&request, &SEC_WEBSOCKET_PROTOCOL).collect();
    if offered.is_empty() {
        offered.push("");
    }
    let Some(protocol) = negotiate(offered.into_iter(), known) else {
        let message =
            format!("unable to upgrade: no known Sec-WebSocket-Protocol offered, server accepts {known:?}");
        return Err(Box::new(text(StatusCode::BAD_REQUEST, message)));
    };
    let (mut parts, _) = request.into_parts();
    let mut upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &())
        .await
        .map_err(|refused| Box::new(refused.into_response()))?;
    if !protocol.is_empty()
        && let Ok(value) = HeaderValue::from_str(protocol)
    {
        upgrade.set_selected_protocol(value);
    }
    Ok((upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE), protocol))
}

enum Out {
    Message(Message),
    /// A channel has ended. The protocol has no word for it in this direction.
    Nothing,
    Close,
}

fn start(socket: WebSocket, options: &StreamOptions, dialect: Dialect, idle: Duration) -> Streams {
    let (sink, source) = socket.split();
    let (out, messages) = mpsc::channel(QUEUE);
    let closed = CancellationToken::new();
    let (stdin_tx, stdin) = mpsc::channel(QUEUE);
    let (resize_tx, resize) = mpsc::channel(QUEUE);
    let input =
        Input { stdin: options.stdin.then_some(stdin_tx), resize: options.tty.then_some(resize_tx), dialect };
    let codec = dialect.codec;
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
        let make = move |bytes: &[u8]| Out::Message(codec.encode(channel, bytes));
        Box::new(PacketWriter::new(out.clone(), make, || Out::Nothing, None))
    };
    // Tells the client that the connection stands, as upstream does with an empty message.
    let first = if options.stdout {
        STDOUT
    } else if options.stderr {
        STDERR
    } else {
        ERROR
    };
    let _ = out.try_send(Out::Message(codec.encode(first, &[])));
    Streams {
        stdin: options.stdin.then(|| ByteReader::new(stdin, None)),
        stdout: options.stdout.then(|| output(STDOUT)),
        stderr: options.stderr.then(|| output(STDERR)),
        error: output(ERROR),
        resize: options.tty.then(|| resize::sizes(ByteReader::new(resize, None))),
        json_status: dialect.json_status,
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

/// Returns when nothing has passed for `idle`.
pub(crate) async fn idled(mut active: tokio::sync::watch::Receiver<()>, idle: Duration) {
    while let Ok(Ok(())) = tokio::time::timeout(idle, active.changed()).await {}
}

struct Input {
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: Option<mpsc::Sender<Bytes>>,
    dialect: Dialect,
}

async fn read(
    mut source: SplitStream<WebSocket>,
    mut input: Input,
    activity: tokio::sync::watch::Sender<()>,
) {
    while let Some(Ok(message)) = source.next().await {
        activity.send_replace(());
        // Either kind of message will do, as upstream.
        let data = match message {
            Message::Binary(_) | Message::Text(_) => message.into_data(),
            Message::Close(_) => return,
            // tungstenite answers pings itself.
            Message::Ping(_) | Message::Pong(_) => continue,
        };
        if input.dialect.closing
            && let Some((&CLOSE, rest)) = data.split_first()
        {
            match rest {
                [STDIN] => input.stdin = None,
                [RESIZE] => input.resize = None,
                _ => {}
            }
            continue;
        }
        match input.dialect.codec.decode(data) {
            Some((STDIN, data)) => {
                if let Some(stdin) = &input.stdin
                    && !data.is_empty()
                {
                    // Fails when the process closed its input: the rest is dropped.
                    let _ = stdin.send(data).await;
                }
            }
            Some((RESIZE, data)) => {
                if let Some(resize) = &input.resize {
                    // Objects need no newline between them here, but the parser wants one.
                    let _ = resize.send(Bytes::from([&data[..], b"\n"].concat())).await;
                }
            }
            other => {
                let channel = other.map(|(channel, _)| channel);
                tracing::debug!(channel, "message that is not the client's to send");
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
                Out::Message(message) => message,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialects() {
        let check = |protocol: &str, codec: Codec, json_status: bool, closing: bool| {
            assert!(PROTOCOLS.contains(&protocol));
            assert_eq!(Dialect::of(protocol), Dialect { codec, json_status, closing }, "{protocol}");
        };
        check("v5.channel.k8s.io", Codec::Raw, true, true);
        check("v4.channel.k8s.io", Codec::Raw, true, false);
        check("v4.base64.channel.k8s.io", Codec::Base64, true, false);
        check("channel.k8s.io", Codec::Raw, false, false);
        check("base64.channel.k8s.io", Codec::Base64, false, false);
        check("", Codec::Raw, false, false);
    }

    #[test]
    fn messages() {
        let decode = |codec: Codec, bytes: &'static [u8]| codec.decode(Bytes::from_static(bytes));
        let some = |channel: u8, data: &'static str| Some((channel, Bytes::from(data)));
        assert_eq!(decode(Codec::Raw, b"\0foo\n"), some(0, "foo\n"));
        assert_eq!(decode(Codec::Raw, b"\x04"), some(4, ""));
        assert_eq!(decode(Codec::Raw, b""), None);
        assert_eq!(decode(Codec::Base64, b"0Zm9vCg=="), some(0, "foo\n"));
        assert_eq!(decode(Codec::Base64, b"0Zm9vCg="), None);
        assert_eq!(decode(Codec::Base64, b"\0Zm9vCg=="), None);
        assert_eq!(Codec::Base64.encode(1, b"\n"), Message::Text("1Cg==".into()));
        assert_eq!(Codec::Raw.encode(1, b"\n"), Message::Binary(Bytes::from_static(b"\x01\n")));
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_is_decoded(channel in 0_u8..5, data in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            for codec in [Codec::Raw, Codec::Base64] {
                let bytes = codec.encode(channel, &data).into_data();
                proptest::prop_assert_eq!(codec.decode(bytes), Some((channel, Bytes::from(data.clone()))));
            }
        }
    }
}
