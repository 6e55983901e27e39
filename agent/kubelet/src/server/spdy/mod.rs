//! SPDY/3.1 as far as Kubernetes' streaming uses it: many byte streams over one upgraded connection, opened by the client.
//!
//! The other end is always `moby/spdystream` or something that mimics it, so this speaks SPDY the way that library does:
//! it has no flow control (it neither sends nor honours WINDOW_UPDATE; a receiver that is slow stops reading the
//! connection), it ignores SETTINGS, answers PING, and replies to each SYN_STREAM before data may flow.
//!
//! Everything read is hostile: lengths are bounded before memory is taken, header blocks are bounded after
//! decompression, streams are counted.

mod connection;
mod dictionary;
mod frame;
mod headers;

pub use connection::{Connection, Limits, Stream};
pub use frame::{Decoder, Encoder, Frame};
pub use headers::Headers;

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The peer broke the protocol.
    #[error("spdy protocol error: {0}")]
    Protocol(&'static str),
    /// A header block could not be (de)compressed.
    #[error("spdy header block: {0}")]
    Compression(&'static str),
    /// Reading or writing failed.
    #[error("spdy connection")]
    Io(#[from] std::io::Error),
    /// Nothing was read or written for the idle timeout.
    #[error("spdy connection idle for too long")]
    Idle,
}

/// Shorthand for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;
