//! Pods that wait for a node.
//!
//! A pod is in one of three places: *active* (to be tried now, by priority and then by age), *backing off* (tried
//! in vain lately), or *unschedulable* (nothing has happened since that could help). An event moves a pod out of
//! the last only if a plugin that rejected it says that the event may help.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use keelson_client::{meta, pods};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::framework::ClusterEvent;
use crate::plugins;

/// First back-off of a pod that was tried in vain; it doubles with each attempt.
const BACKOFF_INITIAL: Duration = Duration::from_secs(1);
/// Longest back-off.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// After so long a pod is tried again even if nothing has happened: no hint is perfect.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(5 * 60);

/// A pod that waits, and what is known of its attempts.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The pod's newest version.
    pub pod: Arc<Pod>,
    /// How often it was tried.
    pub attempts: u32,
    /// The plugins that rejected it last time.
    pub rejected_by: BTreeSet<&'static str>,
    since: Instant,
    tried: Instant,
}

impl Waiting {
    fn backoff_until(&self) -> Instant {
        if self.attempts == 0 {
            return self.tried;
        }
        let doubled = BACKOFF_INITIAL.saturating_mul(1u32.checked_shl(self.attempts - 1).unwrap_or(u32::MAX));
        self.tried + doubled.min(BACKOFF_MAX)
    }

    fn rank(&self) -> Rank {
        (Reverse(pods::priority(&self.pod)), self.since, meta::uid(&self.pod.metadata).to_owned())
    }
}

type Rank = (Reverse<i32>, Instant, String);

#[derive(Default)]
struct State {
    active: BTreeMap<Rank, Waiting>,
    backing_off: HashMap<String, Waiting>,
    unschedulable: HashMap<String, Waiting>,
    /// Uid to place in `active`.
    ranks: HashMap<String, Rank>,
    /// Counts events. A pod that failed while one happened may have missed it, so it only backs off.
    moves: u64,
    closed: bool,
}

impl State {
    fn activate(&mut self, waiting: Waiting) {
        let rank = waiting.rank();
        self.ranks.insert(rank.2.clone(), rank.clone());
        self.active.insert(rank, waiting);
    }

    fn take(&mut self, uid: &str) -> Option<Waiting> {
        if let Some(rank) = self.ranks.remove(uid) {
            return self.active.remove(&rank);
        }
        self.backing_off.remove(uid).or_else(|| self.unschedulable.remove(uid))
    }

    fn retry(&mut self, waiting: Waiting, now: Instant) -> bool {
        if waiting.backoff_until() <= now {
            self.activate(waiting);
            return true;
        }
        self.backing_off.insert(meta::uid(&waiting.pod.metadata).to_owned(), waiting);
        false
    }

    /// Moves what is due to `active`; returns when something will be due next.
    fn mature(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<String> = self
            .backing_off
            .iter()
            .filter(|(_, w)| w.backoff_until() <= now)
            .map(|(uid, _)| uid.clone())
            .chain(
                self.unschedulable
                    .iter()
                    .filter(|(_, w)| w.tried + UNSCHEDULABLE_MAX <= now)
                    .map(|(uid, _)| uid.clone()),
            )
            .collect();
        for uid in due {
            if let Some(waiting) = self.take(&uid) {
                self.activate(waiting);
            }
        }
        let backoff = self.backing_off.values().map(Waiting::backoff_until);
        let stuck = self.unschedulable.values().map(|w| w.tried + UNSCHEDULABLE_MAX);
        backoff.chain(stuck).min()
    }
}

/// The scheduling queue.
#[derive(Default)]
pub struct SchedulingQueue {
    state: Mutex<State>,
    changed: Notify,
}

impl SchedulingQueue {
    /// Takes a pod that is new or has changed in a way that may help it.
    pub fn add(&self, pod: Arc<Pod>) {
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            let known = state.take(meta::uid(&pod.metadata));
            match known {
                Some(known) => {
                    // A change of the pod itself may make any plugin change its mind.
                    state.retry(Waiting { pod, ..known }, now);
                }
                None => state.activate(Waiting {
                    pod,
                    attempts: 0,
                    rejected_by: BTreeSet::new(),
                    since: now,
                    tried: now,
                }),
            }
        }
        self.changed.notify_one();
    }

    /// Keeps the pod's newest version, without trying it again for that.
    pub fn refresh(&self, pod: Arc<Pod>) {
        let mut state = self.state.lock();
        let uid = meta::uid(&pod.metadata);
        if let Some(rank) = state.ranks.get(uid).cloned() {
            if let Some(waiting) = state.active.get_mut(&rank) {
                waiting.pod = pod;
            }
        } else if let Some(waiting) = state.backing_off.get_mut(uid) {
            waiting.pod = pod;
        } else if let Some(waiting) = state.unschedulable.get_mut(uid) {
            waiting.pod = pod;
        }
    }

    /// Whether the pod waits here.
    pub fn contains(&self, uid: &str) -> bool {
        let state = self.state.lock();
        state.ranks.contains_key(uid)
            || state.backing_off.contains_key(uid)
            || state.unschedulable.contains_key(uid)
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &str) {
        self.state.lock().take(uid);
    }

    /// Waits for a pod to try, with the number of events so far (for [`failed`](Self::failed)). None when closed.
    pub async fn next(&self) -> Option<(Waiting, u64)> {
        loop {
            let changed = self.changed.notified();
            let due = {
                let mut state = self.state.lock();
                if state.closed {
                    return None;
                }
                let now = Instant::now();
                let due = state.mature(now);
                if let Some((rank, mut waiting)) = state.active.pop_first() {
                    state.ranks.remove(&rank.2);
                    waiting.attempts += 1;
                    waiting.tried = now;
                    return Some((waiting, state.moves));
                }
                due
            };
            match due {
                Some(due) => tokio::select! { () = changed => {}, () = tokio::time::sleep_until(due) => {} },
                None => changed.await,
            }
        }
    }

    /// Takes back a pod for which no node was found. `moves` is what [`next`](Self::next) gave: if events have
    /// happened since, the pod may have missed one, so it is tried again after its back-off.
    pub fn failed(&self, waiting: Waiting, moves: u64) {
        {
            let mut state = self.state.lock();
            let uid = meta::uid(&waiting.pod.metadata).to_owned();
            if state.ranks.contains_key(&uid) || state.backing_off.contains_key(&uid) {
                // It has changed meanwhile and waits again already.
                return;
            }
            if state.moves != moves || waiting.rejected_by.is_empty() {
                state.backing_off.insert(uid, waiting);
            } else {
                state.unschedulable.insert(uid, waiting);
            }
        }
        self.changed.notify_one();
    }

    /// Something happened: pods that it may help are tried again, at once or after their back-off.
    pub fn event(&self, event: &ClusterEvent) {
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            state.moves += 1;
            let woken: Vec<String> = state
                .unschedulable
                .iter()
                .filter(|(_, w)| {
                    w.rejected_by
                        .iter()
                        .any(|name| plugins::filter(name).is_none_or(|filter| filter.wakes(&w.pod, event)))
                })
                .map(|(uid, _)| uid.clone())
                .collect();
            for uid in woken {
                if let Some(waiting) = state.unschedulable.remove(&uid) {
                    state.retry(waiting, now);
                }
            }
        }
        self.changed.notify_one();
    }

    /// Ends [`next`](Self::next).
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": name, "uid": name},
            "spec": {"containers": [], "priority": priority},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn name(waiting: &Waiting) -> &str {
        meta::name(&waiting.pod.metadata)
    }

    #[tokio::test(start_paused = true)]
    async fn priority_then_age() {
        let queue = SchedulingQueue::default();
        queue.add(pod("old", 0));
        tokio::time::advance(Duration::from_millis(1)).await;
        queue.add(pod("new", 0));
        queue.add(pod("vip", 5));
        for expected in ["vip", "old", "new"] {
            let (waiting, _) = queue.next().await.unwrap();
            assert_eq!(name(&waiting), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_wakes_only_whom_it_may_help() {
        let queue = SchedulingQueue::default();
        queue.add(pod("p", 0));
        let (mut waiting, moves) = queue.next().await.unwrap();
        waiting.rejected_by.insert("NodeResourcesFit");
        queue.failed(waiting, moves);
        tokio::time::advance(Duration::from_secs(2)).await;
        queue.event(&ClusterEvent::PodPlaced(pod("q", 0)));
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err());
        queue.event(&ClusterEvent::PodGone(pod("q", 0)));
        let (waiting, _) = queue.next().await.unwrap();
        assert_eq!(waiting.attempts, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_during_the_attempt_is_not_missed() {
        let queue = SchedulingQueue::default();
        queue.add(pod("p", 0));
        let (mut waiting, moves) = queue.next().await.unwrap();
        waiting.rejected_by.insert("NodeResourcesFit");
        queue.event(&ClusterEvent::PodGone(pod("q", 0)));
        let start = Instant::now();
        queue.failed(waiting, moves);
        assert!(queue.next().await.is_some());
        assert_eq!(start.elapsed(), BACKOFF_INITIAL);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_for_ever() {
        let queue = SchedulingQueue::default();
        queue.add(pod("p", 0));
        let (mut waiting, moves) = queue.next().await.unwrap();
        waiting.rejected_by.insert("NodeName");
        let start = Instant::now();
        queue.failed(waiting, moves);
        assert!(queue.next().await.is_some());
        assert_eq!(start.elapsed(), UNSCHEDULABLE_MAX);
    }
}
