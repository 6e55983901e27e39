//! The embedded engine: one redb file.
//!
//! One thread writes. It takes all transactions that wait, applies them in one redb transaction, commits it
//! durably (fsync), and only then answers and publishes: many writers share one fsync. Readers use redb's
//! snapshots and never wait for the writer.
//!
//! History (every change with the value before it) is kept for [`Options::history`], in the same file, so that a
//! watch can go on where it stopped also over a restart, and a paged list reads one revision.

mod file;
mod hub;
mod read;
mod tables;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use crate::{
    KeyRange, KeyValue, RangeRequest, RangeResponse, Result, Revision, Store, StoreError, Txn, TxnResponse,
    WatchBatch, WatchRequest, WatchStream,
};
use file::StoreFile;
use hub::Hub;
use writer::Command;

/// Transactions that may wait for the writer before senders wait too.
const QUEUE: usize = 1024;

/// When a read is done again that the engine refused: a write may have failed, and its file be opened again just then.
const READ_AGAIN: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500)];

/// How to open the engine.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file; made if absent, its folder must exist.
    pub path: PathBuf,
    /// Most bytes of pages kept in memory.
    pub cache_bytes: usize,
    /// How long changes are remembered.
    pub history: Duration,
    /// Bytes of the file's filesystem that are left free: nothing but deletes is written when there are fewer, and nothing
    /// at all when there are fewer than a quarter of it. 0: the engine is left to find out, and has its file opened again
    /// each time.
    pub reserve: u64,
}

impl Options {
    /// The defaults: 16 MiB of cache, five minutes of history (as upstream's etcd compaction interval), 16 MiB left free.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { path, cache_bytes: 16 << 20, history: Duration::from_secs(300), reserve: 16 << 20 }
    }
}

/// What readers and the writer share.
struct Shared {
    file: StoreFile,
    hub: Hub,
    /// Newest durable revision.
    revision: AtomicU64,
}

/// A store in one file. Clones share it; it closes when the last clone and watch are gone.
#[derive(Clone)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl EmbeddedStore {
    /// Opens or makes the file, recovering from a crash if there was one. Must be called inside a tokio runtime.
    pub async fn open(options: Options) -> Result<Self> {
        let history = options.history;
        let shared = tokio::task::spawn_blocking(move || Shared::open(options))
            .await
            .map_err(StoreError::engine("open the store"))??;
        let shared = Arc::new(shared);
        let (commands, queue) = mpsc::channel(QUEUE);
        writer::spawn(Arc::clone(&shared), queue, history)?;
        writer::spawn_ticker(commands.downgrade());
        Ok(Self { shared, commands })
    }

    async fn send<T>(&self, make: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(make(reply)).await.map_err(|_closed| StoreError::Closed)?;
        answer.await.map_err(|_closed| StoreError::Closed)?
    }

    /// Reads, and reads again what the engine refuses for a moment.
    async fn read<T: Send + 'static>(
        &self,
        operation: impl Fn(&Database) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let operation = Arc::new(operation);
        let mut pauses = READ_AGAIN.iter();
        loop {
            let operation = Arc::clone(&operation);
            match (self.read_once(move |database| operation(database)).await, pauses.next()) {
                (Err(StoreError::Engine { .. }), Some(pause)) => tokio::time::sleep(*pause).await,
                (result, _) => return result,
            }
        }
    }

    async fn read_once<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || operation(&*shared.file.database()?))
            .await
            .map_err(StoreError::engine("read the store"))?
    }
}

impl Shared {
    fn open(options: Options) -> Result<Self> {
        let (file, revision) = StoreFile::open(options)?;
        Ok(Self { file, hub: Hub::new(revision), revision: AtomicU64::new(revision) })
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str, revision: Option<Revision>) -> Result<Option<KeyValue>> {
        if revision.is_none() {
            let key = key.to_owned();
            return self.read(move |database| read::get(database, &key)).await;
        }
        let range = KeyRange { start: key.to_owned(), end: Some(format!("{key}\0")) };
        let found = self.range(RangeRequest { range, limit: 1, revision }).await?;
        Ok(found.kvs.into_iter().next())
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        self.read(move |database| read::range(database, &request)).await
    }

    async fn count(&self, range: KeyRange) -> Result<u64> {
        self.read(move |database| read::count(database, &range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        self.send(|reply| Command::Txn { txn, reply }).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream> {
        // Registered first, history read second: what is committed in between is in the live part.
        let (published, live) = self.shared.hub.register(&request);
        let mut backlog = VecDeque::new();
        if let Some(start) = request.start_revision
            && start <= published
        {
            let range = request.range.clone();
            let events = self.read(move |database| read::history(database, &range, start, published)).await?;
            backlog.push_back(WatchBatch { revision: published, events });
        }
        Ok(WatchStream::new(backlog, live))
    }

    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.shared.revision.load(Ordering::Acquire))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.send(|reply| Command::Compact { revision, reply }).await
    }

    async fn snapshot(&self, path: &Path) -> Result<Revision> {
        let path = path.to_owned();
        self.read_once(move |database| read::snapshot(database, &path)).await
    }
}
