//! exec, attach and port-forward: sessions over whatever the client speaks.
//!
//! The kubelet negotiates: a client (or the apiserver in its place) asks for a WebSocket or for SPDY/3.1, and each
//! becomes the same [`Streams`]. What a session does with them doesn't depend on the transport.

mod options;
mod pipe;
mod port_forward;
mod resize;
mod session;
mod spdy_transport;
mod status;
mod upgrade;
mod websocket;

pub(super) use options::{StreamOptions, query_pairs};
pub(super) use pipe::{ByteReader, PacketWriter};
pub(super) use port_forward::port_forward;
pub(super) use session::{Kind, serve_session};
pub(super) use upgrade::is_upgrade;
pub(super) use websocket::idled;

use std::time::Duration;

use futures::future::BoxFuture;
use keelson_cri::{BoxWrite, TerminalSize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long a client may take to open the streams that it announced: upstream's DefaultStreamCreationTimeout.
const STREAM_CREATION: Duration = Duration::from_secs(30);

/// The streams of one exec or attach session, as the session sees them.
pub(super) struct Streams {
    /// What the client types.
    pub stdin: Option<ByteReader>,
    /// To the client.
    pub stdout: Option<BoxWrite>,
    /// To the client.
    pub stderr: Option<BoxWrite>,
    /// The error stream: how it ended.
    pub error: BoxWrite,
    /// Terminal sizes.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    /// Whether the error stream carries a Status in JSON (v4 and later) or bare text.
    pub json_status: bool,
    /// Cancelled when the client is gone.
    pub closed: CancellationToken,
    /// Flushes what was written and closes the connection.
    pub finish: Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>,
}
