//! One resource's objects, recent changes and watchers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use keelson_api::resources::Resource;
use parking_lot::RwLock;
use tokio::sync::mpsc;

use super::objects::Objects;
use super::watchers::{Watchers, seen};
use super::{CacheEvent, CachedObject, EventType};
use crate::filter::Filter;

/// Changes kept in memory for watches that start in the past; what is older is in the store's history.
const WINDOW: usize = 1024;

/// What a watcher receives.
#[derive(Debug)]
pub struct WatchMessage {
    /// How the watcher sees the change.
    pub kind: EventType,
    /// The change.
    pub event: Arc<CacheEvent>,
}

/// A started watch.
pub struct CacheWatch {
    /// Changes that had already happened.
    pub backlog: Vec<WatchMessage>,
    /// Changes to come; closes if the watcher is too slow.
    pub live: mpsc::Receiver<WatchMessage>,
}

struct State {
    objects: Objects,
    /// Revision of the last change of this resource.
    revision: u64,
    window: VecDeque<Arc<CacheEvent>>,
    /// A watch may start after this revision.
    window_start: u64,
    /// The window may still be filled from the store's history, back to before the cache was.
    unfilled: bool,
    watchers: Watchers,
}

/// The cache of one stored resource.
pub struct ResourceCache {
    row: Arc<Resource>,
    state: RwLock<State>,
    history: tokio::sync::Mutex<()>,
}

impl State {
    fn new(row: &Resource) -> Self {
        Self {
            objects: Objects::new(row),
            revision: 0,
            window: VecDeque::new(),
            window_start: 0,
            unfilled: false,
            watchers: Watchers::default(),
        }
    }
}

impl ResourceCache {
    pub(super) fn new(row: Arc<Resource>) -> Self {
        let state = RwLock::new(State::new(&row));
        Self { row, state, history: tokio::sync::Mutex::default() }
    }

    /// The storage row.
    pub fn row(&self) -> &Arc<Resource> {
        &self.row
    }

    /// Replaces everything; running watches end.
    pub(super) fn reset(&self, objects: BTreeMap<String, Arc<CachedObject>>, revision: u64) {
        let mut state = State { revision, window_start: revision, unfilled: true, ..State::new(&self.row) };
        for (key, object) in objects {
            state.objects.insert(&key, object);
        }
        *self.state.write() = state;
    }

    /// Applies one change and tells the watchers.
    pub(super) fn apply(
        &self,
        key: &str,
        revision: u64,
        object: Option<Arc<CachedObject>>,
        make: impl FnOnce(u64, Option<Arc<CachedObject>>, Option<Arc<CachedObject>>) -> CacheEvent,
    ) {
        let mut state = self.state.write();
        let prev = match &object {
            Some(object) => state.objects.insert(key, object.clone()),
            None => state.objects.remove(key),
        };
        state.revision = revision;
        if object.is_none() && prev.is_none() {
            return;
        }
        let event = Arc::new(make(revision, object, prev));
        if state.window.len() >= WINDOW
            && let Some(oldest) = state.window.pop_front()
        {
            state.window_start = oldest.revision;
            state.unfilled = false;
        }
        state.window.push_back(event.clone());
        state.watchers.tell(&event, &self.row.plural);
    }

    /// Held by who reads this resource's history from the store, so that many watches that come back at once read it
    /// one after another, and all but the first find it here.
    pub(super) async fn reading_history(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.history.lock().await
    }

    /// Whether the window begins at `window_start` and could begin earlier.
    pub(super) fn needs_history(&self, window_start: u64) -> bool {
        let state = self.state.read();
        state.unfilled && state.window_start == window_start
    }

    /// Puts older changes, all that followed revision `oldest`, before a window that begins at `window_start`; as many
    /// as it may hold.
    pub(super) fn prepend(&self, window_start: u64, mut events: VecDeque<Arc<CacheEvent>>, oldest: u64) {
        let mut state = self.state.write();
        if state.window_start != window_start {
            return;
        }
        events.truncate(events.partition_point(|event| event.revision <= window_start));
        let surplus = (events.len() + state.window.len()).saturating_sub(WINDOW).min(events.len());
        let dropped = events.drain(..surplus).next_back();
        state.window_start = dropped.map_or(oldest.min(window_start), |event| event.revision);
        state.unfilled = false;
        events.append(&mut state.window);
        state.window = events;
    }

    /// Ends all watches; their clients come back.
    pub(super) fn end_watches(&self) {
        self.state.write().watchers = Watchers::default();
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<CachedObject>> {
        self.state.read().objects.get(namespace, name).cloned()
    }

    /// Objects of a namespace or of all, in the order of keys.
    pub fn snapshot(&self, namespace: Option<&str>) -> Vec<Arc<CachedObject>> {
        self.state.read().objects.of(namespace)
    }

    /// Objects that a filter selects, in the order of keys, and the revision at which exactly these were there. `applied`
    /// is what the whole cache had applied before the call: the resource itself may be a little ahead of it.
    pub fn select(&self, filter: &Filter, applied: u64) -> (Vec<Arc<CachedObject>>, u64) {
        let state = self.state.read();
        (state.objects.select(filter), state.revision.max(applied))
    }

    /// Revision of the last change.
    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// True if there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Starts a watch after `revision`. `Err` with the oldest possible revision if the window does not reach back so far.
    pub(super) fn watch(&self, filter: Arc<Filter>, revision: u64) -> Result<CacheWatch, u64> {
        let mut state = self.state.write();
        if revision < state.window_start {
            return Err(state.window_start);
        }
        let first = state.window.partition_point(|event| event.revision <= revision);
        let backlog = state.window.range(first..).filter_map(|event| seen(&filter, event.clone())).collect();
        let live = state.watchers.add(filter);
        Ok(CacheWatch { backlog, live })
    }

    /// Starts a watch with the objects that are there now and the revision of that state.
    pub fn watch_with_state(
        &self,
        filter: Arc<Filter>,
        applied: u64,
    ) -> (Vec<Arc<CachedObject>>, u64, mpsc::Receiver<WatchMessage>) {
        let mut state = self.state.write();
        let objects = state.objects.select(&filter);
        let revision = state.revision.max(applied);
        let live = state.watchers.add(filter);
        (objects, revision, live)
    }
}
