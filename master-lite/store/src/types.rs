//! Plain values of the [`Store`](crate::Store) trait.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::sync::mpsc;

/// Number of a committed transaction; 1 is the empty store.
pub type Revision = u64;

/// A key with its value and revisions, named as in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Full key.
    pub key: String,
    /// Opaque value.
    pub value: Bytes,
    /// Revision that made the key (again).
    pub create_revision: Revision,
    /// Revision of the last change.
    pub mod_revision: Revision,
    /// Number of puts since the key was made.
    pub version: u64,
}

/// Keys from `start` (inclusive) to `end` (exclusive).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: String,
    /// First key that is outside; `None` goes to the end of the store.
    pub end: Option<String>,
}

impl KeyRange {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &str) -> Self {
        Self { start: prefix.to_owned(), end: prefix_end(prefix) }
    }

    /// Keys of a prefix from `start` on, for the next page of a list.
    pub fn prefix_from(prefix: &str, start: String) -> Self {
        Self { start, end: prefix_end(prefix) }
    }

    /// True if the key is inside.
    pub fn contains(&self, key: &str) -> bool {
        key >= self.start.as_str() && self.end.as_deref().is_none_or(|end| key < end)
    }
}

/// The smallest string greater than all that begin with `prefix`.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // UTF-8 sorts as code points do; skip the surrogates, which are no characters.
        let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

/// What to read with [`Store::range`](crate::Store::range).
#[derive(Debug, Clone)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Most keys to return; 0 is no limit.
    pub limit: usize,
    /// State to read; `None` is the newest.
    pub revision: Option<Revision>,
}

/// What a range found.
#[derive(Debug, Clone)]
pub struct RangeResponse {
    /// In the order of keys.
    pub kvs: Vec<KeyValue>,
    /// Keys in the range at that revision, the limit not regarded.
    pub count: u64,
    /// Revision that was read.
    pub revision: Revision,
}

/// A condition: the key's last change was at exactly this revision; 0 means that the key is absent.
#[derive(Debug, Clone)]
pub struct Compare {
    /// Key to look at.
    pub key: String,
    /// Expected `mod_revision`, or 0.
    pub mod_revision: Revision,
}

/// One change of a transaction.
#[derive(Debug, Clone)]
pub enum Op {
    /// Writes a key; it vanishes by itself after `ttl` (from the commit; seconds' precision).
    Put {
        /// Key.
        key: String,
        /// New value.
        value: Bytes,
        /// Time to live.
        ttl: Option<Duration>,
    },
    /// Removes a key; nothing happens if it is absent.
    Delete {
        /// Key.
        key: String,
    },
}

impl Op {
    /// The key that is changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Conditions and changes, all or nothing. No key may be changed twice.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Applied in order at one revision.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Puts `value` if the key's `mod_revision` is the given one (0: if it is absent).
    pub fn put_if(key: &str, mod_revision: Revision, value: Bytes, ttl: Option<Duration>) -> Self {
        Self {
            compares: vec![Compare { key: key.to_owned(), mod_revision }],
            ops: vec![Op::Put { key: key.to_owned(), value, ttl }],
        }
    }

    /// Deletes if the key's `mod_revision` is the given one.
    pub fn delete_if(key: &str, mod_revision: Revision) -> Self {
        Self {
            compares: vec![Compare { key: key.to_owned(), mod_revision }],
            ops: vec![Op::Delete { key: key.to_owned() }],
        }
    }
}

/// How a transaction went.
#[derive(Debug, Clone)]
pub struct TxnResponse {
    /// All conditions held.
    pub succeeded: bool,
    /// Revision of the commit; of the newest state seen if nothing changed.
    pub revision: Revision,
    /// Current state of each compared key, in their order, if a condition did not hold.
    pub current: Vec<Option<KeyValue>>,
}

/// Kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Made or changed.
    Put,
    /// Removed, by a transaction or by its time to live.
    Delete,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Kind of change.
    pub kind: EventKind,
    /// New state; for a delete the value is empty and `mod_revision` is the delete's.
    pub kv: KeyValue,
    /// State before.
    pub prev: Option<KeyValue>,
}

/// What to watch.
#[derive(Debug, Clone)]
pub struct WatchRequest {
    /// Which keys.
    pub range: KeyRange,
    /// First revision to deliver; `None`: what comes after now.
    pub start_revision: Option<Revision>,
    /// Deliver a batch for every commit, with no events in it if none concern the range.
    pub progress: bool,
}

/// Changes of one or more commits.
#[derive(Debug, Clone)]
pub struct WatchBatch {
    /// All changes up to this revision have now been delivered.
    pub revision: Revision,
    /// In order.
    pub events: Vec<Arc<Event>>,
}

/// A running watch: first what history holds, then live changes.
///
/// Ends with [`StoreError::WatchLagged`] if the reader falls behind; the reader may start again where it was.
pub struct WatchStream {
    backlog: VecDeque<WatchBatch>,
    live: mpsc::Receiver<WatchBatch>,
    ended: bool,
}

impl WatchStream {
    pub(crate) fn new(backlog: VecDeque<WatchBatch>, live: mpsc::Receiver<WatchBatch>) -> Self {
        Self { backlog, live, ended: false }
    }
}

impl Stream for WatchStream {
    type Item = Result<WatchBatch, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(batch) = self.backlog.pop_front() {
            return Poll::Ready(Some(Ok(batch)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        match self.live.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(batch)) => Poll::Ready(Some(Ok(batch))),
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(Some(Err(StoreError::WatchLagged)))
            }
        }
    }
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision's history is gone.
    #[error("required revision has been compacted (oldest kept is {oldest})")]
    Compacted {
        /// Oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision is yet to come.
    #[error("required revision is a future revision (current is {current})")]
    FutureRevision {
        /// Newest revision.
        current: Revision,
    },
    /// A transaction changes one key twice.
    #[error("duplicate key given in txn request: {0}")]
    DuplicateKey(String),
    /// The watcher was too slow, or the store closed.
    #[error("watch ended: reader fell behind or store closed")]
    WatchLagged,
    /// The store is shutting down.
    #[error("store is closed")]
    Closed,
    /// The filesystem has too little room left for new values.
    #[error("no space left on the filesystem of the store: {free} bytes are free, {reserve} are kept back")]
    NoSpace {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        reserve: u64,
    },
    /// The engine failed. The transaction may or may not be found after a restart.
    #[error("{operation}")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// The engine's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    pub(crate) fn engine<E>(operation: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Engine { operation, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_ranges() {
        let range = KeyRange::prefix("/a/");
        assert!(range.contains("/a/x"));
        assert!(range.contains("/a/"));
        assert!(!range.contains("/a0"));
        assert!(!range.contains("/a"));
        assert!(KeyRange::prefix("").contains("anything"));
        assert!(KeyRange::prefix("x\u{10FFFF}").contains("x\u{10FFFF}y"));
    }
}
