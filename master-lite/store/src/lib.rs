//! Where API objects rest: an ordered map of keys to bytes with one global revision, as etcd has it.
//!
//! [`Store`] is the seam; [`embedded::EmbeddedStore`] is the default engine (one file, one writer thread, group
//! commit). The store never knows what an object is: values are opaque.
//!
//! Guarantees every backend gives:
//! - A revision is the count of committed transactions that changed something; it never goes back, also not
//!   over a crash.
//! - A transaction is acknowledged after it is durable.
//! - A watch sees each change once, in the order of revisions, with the value before it.

pub mod embedded;
pub mod testing;
mod types;

use std::path::Path;

use async_trait::async_trait;

pub use embedded::{EmbeddedStore, Options};
pub use types::{
    Compare, Event, EventKind, KeyRange, KeyValue, Op, RangeRequest, RangeResponse, Revision, StoreError,
    Txn, TxnResponse, WatchBatch, WatchRequest, WatchStream,
};

/// Result of a store's operation.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// An ordered, durable map with history.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key, as it is now or was at a revision that is not compacted.
    async fn get(&self, key: &str, revision: Option<Revision>) -> Result<Option<KeyValue>>;

    /// Reads keys in order.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse>;

    /// How many keys there are now.
    async fn count(&self, range: KeyRange) -> Result<u64>;

    /// Compares and, if all hold, applies all operations at one new revision.
    async fn txn(&self, txn: Txn) -> Result<TxnResponse>;

    /// Changes from a revision on.
    async fn watch(&self, request: WatchRequest) -> Result<WatchStream>;

    /// Revision of the newest acknowledged transaction, or later. Linearizable: not older than any
    /// transaction acknowledged before the call.
    async fn current_revision(&self) -> Result<Revision>;

    /// Forgets history up to and including `revision`.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// Writes a consistent copy to a new file, from which the embedded engine can be opened.
    async fn snapshot(&self, path: &Path) -> Result<Revision>;
}
