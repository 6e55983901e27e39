//! A work queue in the shape of client-go's: a key is in it at most once, a key that is being worked on is not
//! handed out again until it is done, and a failing key comes back with exponential back-off.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// First delay of a failing key; it doubles with each failure (`DefaultTypedControllerRateLimiter`).
const BACKOFF_BASE: Duration = Duration::from_millis(5);
/// Longest delay of a failing key.
const BACKOFF_MAX: Duration = Duration::from_secs(1000);

struct State<K> {
    ready: VecDeque<K>,
    /// Keys that need work: those in `ready`, and those to be put there when their present work is done.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    delayed_at: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    closed: bool,
}

/// A deduplicating, delaying, rate-limiting queue of keys.
pub struct WorkQueue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

impl<K: Clone + Eq + Hash + Ord> Default for WorkQueue<K> {
    fn default() -> Self {
        WorkQueue {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                delayed: BTreeSet::new(),
                delayed_at: HashMap::new(),
                failures: HashMap::new(),
                closed: false,
            }),
            changed: Notify::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    fn add(&mut self, key: K) -> bool {
        if self.closed || !self.dirty.insert(key.clone()) {
            return false;
        }
        if self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Moves what is due to `ready`; returns when the next key will be due.
    fn mature(&mut self, now: Instant) -> Option<Instant> {
        while let Some((due, _)) = self.delayed.first() {
            if *due > now {
                return Some(*due);
            }
            if let Some((_, key)) = self.delayed.pop_first() {
                self.delayed_at.remove(&key);
                self.add(key);
            }
        }
        None
    }
}

impl<K: Clone + Eq + Hash + Ord> WorkQueue<K> {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Asks for work on `key`, at once.
    pub fn add(&self, key: K) {
        if self.state.lock().add(key) {
            self.changed.notify_one();
        }
    }

    /// Asks for work on `key` after `delay`. Of several requests for a key the earliest holds.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if let Some(present) = state.delayed_at.get(&key).copied() {
            if present <= due {
                return;
            }
            state.delayed.remove(&(present, key.clone()));
        }
        state.delayed_at.insert(key.clone(), due);
        state.delayed.insert((due, key));
        drop(state);
        self.changed.notify_one();
    }

    /// Asks for work on `key` after its back-off, which grows with each call until [`forget`](Self::forget).
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures += 1;
            *failures - 1
        };
        self.add_after(key, backoff(failures));
    }

    /// Forgets the failures of `key`.
    pub fn forget(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// How often `key` has failed since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Waits for a key to work on; none when the queue is closed. Call [`done`](Self::done) for it afterwards.
    pub async fn get(&self) -> Option<K> {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut state = self.state.lock();
                if state.closed {
                    return None;
                }
                let next = state.mature(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.ready.is_empty() {
                        // One wake-up may stand for several keys.
                        self.changed.notify_one();
                    }
                    return Some(key);
                }
                next
            };
            match next {
                Some(due) => {
                    tokio::select! { () = changed => {}, () = tokio::time::sleep_until(due) => {} }
                }
                None => changed.await,
            }
        }
    }

    /// Says that the work on `key` is over. If it was added meanwhile it is handed out again.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Hands out nothing more; waiting workers end.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_waiters();
        // For a worker between its check and its wait: `notified()` was created before the check, so that
        // notify_waiters reaches it; this permit is for one that has not come so far.
        self.changed.notify_one();
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_BASE.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(BACKOFF_MAX)
}

/// Runs `sync` for each key of `queue` on `workers` tasks until `shutdown`. An error puts the key back with
/// back-off and is logged here, nowhere else; a panic counts as an error.
pub async fn run_workers<K, E, F, Fut>(
    name: &'static str,
    queue: Arc<WorkQueue<K>>,
    workers: usize,
    shutdown: CancellationToken,
    sync: F,
) where
    K: Clone + Eq + Hash + Ord + Display + Send + 'static,
    E: Display + Send,
    F: Fn(K) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send,
{
    let mut tasks = JoinSet::new();
    for _ in 0..workers.max(1) {
        let (queue, sync) = (queue.clone(), sync.clone());
        tasks.spawn(async move {
            while let Some(key) = queue.get().await {
                match AssertUnwindSafe(sync(key.clone())).catch_unwind().await {
                    Ok(Ok(())) => queue.forget(&key),
                    Ok(Err(error)) => {
                        let failures = queue.failures(&key);
                        // The first failures of a key are nearly always a cache that is behind.
                        if failures < 3 {
                            tracing::debug!(controller = name, %key, %error, failures, "sync failed, will retry");
                        } else {
                            tracing::warn!(controller = name, %key, %error, failures, "sync failed, will retry");
                        }
                        queue.add_rate_limited(key.clone());
                    }
                    Err(_) => {
                        tracing::error!(controller = name, %key, "sync panicked, will retry");
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
    shutdown.cancelled().await;
    queue.close();
    // Work in progress is single API calls; it may end by itself, but not for ever.
    let _ =
        tokio::time::timeout(Duration::from_secs(5), async { while tasks.join_next().await.is_some() {} })
            .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_handed_out_once_and_again_when_added_meanwhile() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.get().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.get().await, Some("b"));
        queue.done(&"a");
        assert_eq!(queue.get().await, Some("a"));
        queue.done(&"a");
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.get()).await.is_err());
        queue.close();
        assert_eq!(queue.get().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_keep_the_earliest() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(5));
        assert_eq!(queue.get().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 2);
        queue.done(&"a");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.get()).await.is_err());
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        assert_eq!(backoff(0), Duration::from_millis(5));
        assert_eq!(backoff(3), Duration::from_millis(40));
        assert_eq!(backoff(40), BACKOFF_MAX);
    }

    #[tokio::test]
    async fn workers_retry_errors_and_survive_panics() {
        let queue: Arc<WorkQueue<String>> = WorkQueue::new();
        let shutdown = CancellationToken::new();
        let tries = Arc::new(Mutex::new(0));
        let (count, stop) = (tries.clone(), shutdown.clone());
        queue.add("a".into());
        run_workers("test", queue, 2, shutdown, move |_| {
            let (count, stop) = (count.clone(), stop.clone());
            async move {
                let n = {
                    let mut n = count.lock();
                    *n += 1;
                    *n
                };
                match n {
                    1 => Err("no"),
                    2 => panic!("no"),
                    _ => {
                        stop.cancel();
                        Ok(())
                    }
                }
            }
        })
        .await;
        assert_eq!(*tries.lock(), 3);
    }
}
