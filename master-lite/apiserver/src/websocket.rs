//! Answers sent over a WebSocket: watches and logs, for browsers (`k8s.io/streaming/pkg/httpstream/wsstream.Reader`, and the
//! watch handler of `k8s.io/apiserver`). What a client sends is ignored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::Error as SocketError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::extension::{Body, Result, StatusError, full_body};

/// Largest message that is read, only to be ignored.
const MAX_MESSAGE: usize = 64 * 1024;

/// How pieces of an answer become messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Text messages, for events in JSON.
    Text,
    /// Binary messages.
    Binary,
    /// Text messages in Base64.
    Base64,
}

/// What an answer is, which decides on the protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Events, each in a message; a protocol that the client names is taken as it is.
    Events,
    /// A stream of bytes, begun with an empty message.
    Stream,
}

/// A client's wish to have its answer over a WebSocket.
pub(crate) struct Upgrade {
    switch: OnUpgrade,
    accept: String,
    protocol: Option<String>,
    framing: Framing,
    greet: bool,
}

impl Upgrade {
    /// The wish of a request, if it has it.
    ///
    /// # Errors
    /// When the handshake is wrong or names no known protocol, or the connection can't be upgraded.
    pub(crate) fn of(request: &mut Request<Body>, content: Content) -> Result<Option<Self>> {
        if !is_websocket(request.headers()) {
            return Ok(None);
        }
        let (accept, protocol, framing) = handshake(request.headers(), content)?;
        let switch = request
            .extensions_mut()
            .remove::<OnUpgrade>()
            .ok_or_else(|| StatusError::bad_request("this connection can't be upgraded: use HTTP/1.1"))?;
        Ok(Some(Self { switch, accept, protocol, framing, greet: content == Content::Stream }))
    }

    /// Answers 101, and sends the body of `answer` over the WebSocket, each frame a message. An answer that is no success
    /// stays what it is.
    pub(crate) fn answer(self, answer: Response<Body>) -> Result<Response<Body>> {
        if answer.status() != StatusCode::OK {
            return Ok(answer);
        }
        let mut response = Response::new(full_body(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let value = |text: &str| {
            HeaderValue::from_str(text)
                .map_err(|_invalid_value| StatusError::bad_request("bad WebSocket handshake"))
        };
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, value(&self.accept)?);
        if let Some(protocol) = &self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value(protocol)?);
        }
        let (framing, greet) = (self.framing, self.greet);
        let body = answer.into_body();
        tokio::spawn(async move {
            match self.switch.await {
                Ok(stream) => serve(TokioIo::new(stream), body, framing, greet).await,
                Err(error) => tracing::debug!(%error, "WebSocket was not opened"),
            }
        });
        Ok(response)
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    has_token(headers, &header::CONNECTION, "upgrade") && has_token(headers, &header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|known| known.eq_ignore_ascii_case(token))
}

/// All comma-separated values of a header.
fn tokens<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// The value of `Sec-WebSocket-Accept`, the protocol to answer with, and what it means.
fn handshake(headers: &HeaderMap, content: Content) -> Result<(String, Option<String>, Framing)> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if text(header::SEC_WEBSOCKET_VERSION) != Some("13") {
        return Err(StatusError::bad_request("bad WebSocket handshake: only version 13 is known"));
    }
    let key = text(header::SEC_WEBSOCKET_KEY)
        .ok_or_else(|| StatusError::bad_request("bad WebSocket handshake: no Sec-WebSocket-Key"))?;
    let offered: Vec<&str> = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL).collect();
    let (protocol, framing) = match (content, offered.as_slice()) {
        (Content::Events, []) => (None, Framing::Text),
        (Content::Events, [one]) => (Some(*one), Framing::Text),
        (Content::Events, _) => {
            return Err(StatusError::bad_request("bad WebSocket handshake: more than one protocol"));
        }
        (Content::Stream, []) => (None, Framing::Binary),
        (Content::Stream, offered) => {
            // The client's order decides.
            let known = |name: &&str| match *name {
                "binary.k8s.io" => Some((Some("binary.k8s.io"), Framing::Binary)),
                "base64.binary.k8s.io" => Some((Some("base64.binary.k8s.io"), Framing::Base64)),
                _ => None,
            };
            offered.iter().find_map(known).ok_or_else(|| {
                StatusError::bad_request(format!(
                    "requested protocol(s) are not supported: {offered:?}; supports [\"\" binary.k8s.io base64.binary.k8s.io]"
                ))
            })?
        }
    };
    Ok((derive_accept_key(key.as_bytes()), protocol.map(str::to_owned), framing))
}

/// Sends the body's frames as messages until one of both ends.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, mut body: Body, framing: Framing, greet: bool) {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    let (mut sink, mut source) = socket.split();
    let sending = async {
        if greet {
            sink.send(message(framing, Bytes::new())).await?;
        }
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data() {
                sink.send(message(framing, data)).await?;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(normal))).await
    };
    let receiving = async { while let Some(Ok(_ignored)) = source.next().await {} };
    tokio::select! {
        sent = sending => match sent {
            Ok(()) | Err(SocketError::ConnectionClosed) => {}
            Err(error) => tracing::debug!(%error, "WebSocket could not be written"),
        },
        // The client is gone, or has had enough.
        () = receiving => {}
    }
}

fn message(framing: Framing, data: Bytes) -> Message {
    match framing {
        Framing::Binary => Message::Binary(data),
        Framing::Base64 => Message::text(STANDARD.encode(data)),
        // Events are JSON, and so UTF-8.
        Framing::Text => Message::text(String::from_utf8_lossy(&data).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;
    use crate::extension::BoxError;

    fn headers(protocol: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            // RFC 6455, 1.3.
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        if !protocol.is_empty() {
            headers.insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        headers
    }

    #[test]
    fn protocols_are_negotiated() {
        let check = |content: Content, offered: &str, want: Option<(Option<&str>, Framing)>| {
            let headers = headers(offered);
            assert!(is_websocket(&headers));
            let got = handshake(&headers, content).ok().map(|(accept, protocol, framing)| {
                assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                (protocol, framing)
            });
            assert_eq!(got, want.map(|(p, f)| (p.map(str::to_owned), f)), "{content:?} {offered}");
        };
        check(Content::Stream, "", Some((None, Framing::Binary)));
        check(Content::Stream, "x, binary.k8s.io", Some((Some("binary.k8s.io"), Framing::Binary)));
        check(
            Content::Stream,
            "base64.binary.k8s.io, binary.k8s.io",
            Some((Some("base64.binary.k8s.io"), Framing::Base64)),
        );
        check(Content::Stream, "channel.k8s.io", None);
        check(Content::Events, "", Some((None, Framing::Text)));
        check(Content::Events, "mine", Some((Some("mine"), Framing::Text)));
        check(Content::Events, "a, b", None);
        let mut old = headers("");
        old.insert("sec-websocket-version", "8".parse().unwrap());
        assert!(handshake(&old, Content::Events).is_err());
        old.remove("upgrade");
        assert!(!is_websocket(&old));
    }

    async fn received(framing: Framing, greet: bool) -> Vec<Message> {
        let (near, far) = tokio::io::duplex(1024);
        let frames = ["one", "two"].map(|text| Ok::<_, BoxError>(Frame::data(Bytes::from(text))));
        let body = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
        tokio::spawn(serve(near, body, framing, greet));
        let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let mut got = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            got.push(message);
        }
        got
    }

    #[tokio::test]
    async fn frames_become_messages() {
        let normal = Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }));
        let text = |text: &str| Message::text(text);
        assert_eq!(received(Framing::Text, false).await, [text("one"), text("two"), normal.clone()]);
        let binary = |text: &'static str| Message::Binary(Bytes::from(text));
        assert_eq!(
            received(Framing::Binary, true).await,
            [binary(""), binary("one"), binary("two"), normal.clone()]
        );
        assert_eq!(received(Framing::Base64, true).await, [text(""), text("b25l"), text("dHdv"), normal]);
    }
}
