//! Hands committed changes to watchers.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{Event, KeyRange, Revision, WatchBatch, WatchRequest};

/// Commits a watcher may be behind before it is dropped.
const WATCHER_QUEUE: usize = 1024;

struct Watcher {
    range: KeyRange,
    /// First revision to deliver.
    first: Revision,
    progress: bool,
    sender: mpsc::Sender<WatchBatch>,
}

struct State {
    published: Revision,
    watchers: Vec<Watcher>,
}

/// All live watches.
pub(super) struct Hub {
    state: Mutex<State>,
}

impl Hub {
    pub(super) fn new(revision: Revision) -> Self {
        Self { state: Mutex::new(State { published: revision, watchers: Vec::new() }) }
    }

    /// Adds a watcher; returns the revision up to which it must read history itself.
    pub(super) fn register(&self, request: &WatchRequest) -> (Revision, mpsc::Receiver<WatchBatch>) {
        let (sender, receiver) = mpsc::channel(WATCHER_QUEUE);
        let mut state = self.state.lock();
        let published = state.published;
        let first = request.start_revision.unwrap_or(0).max(published + 1);
        state.watchers.push(Watcher {
            range: request.range.clone(),
            first,
            progress: request.progress,
            sender,
        });
        (published, receiver)
    }

    /// Delivers the changes of a commit. A watcher whose queue is full is dropped: it must not slow the others.
    pub(super) fn publish(&self, revision: Revision, events: &[Arc<Event>]) {
        let mut state = self.state.lock();
        state.published = revision;
        state.watchers.retain(|watcher| {
            let events: Vec<_> = events
                .iter()
                .filter(|e| e.kv.mod_revision >= watcher.first && watcher.range.contains(&e.kv.key))
                .cloned()
                .collect();
            if events.is_empty() && !(watcher.progress && revision >= watcher.first) {
                return !watcher.sender.is_closed();
            }
            watcher.sender.try_send(WatchBatch { revision, events }).is_ok()
        });
    }
}
