//! Exponential back-off. Source: client-go `util/flowcontrol/backoff.go`.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

/// First wait of restarts and pulls.
pub const INITIAL: Duration = Duration::from_secs(10);
/// Longest wait of restarts and pulls.
pub const MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
struct Entry {
    wait: Duration,
    updated: SystemTime,
}

/// Waits by key: doubles with each step, starts over after twice the longest wait without one.
#[derive(Debug, Clone)]
pub struct Backoff<K> {
    initial: Duration,
    max: Duration,
    entries: HashMap<K, Entry>,
}

impl<K: Eq + Hash> Backoff<K> {
    /// A back-off from `initial` to `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max, entries: HashMap::new() }
    }

    /// The wait of a key, zero when there is none.
    pub fn wait<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Duration
    where
        K: std::borrow::Borrow<Q>,
    {
        self.entries.get(key).map_or(Duration::ZERO, |e| e.wait)
    }

    /// Until when a key waits, counted from an event such as the container's end; none when it may go on at `now`.
    pub fn until<Q: Eq + Hash + ?Sized>(
        &self,
        key: &Q,
        since: SystemTime,
        now: SystemTime,
    ) -> Option<SystemTime>
    where
        K: std::borrow::Borrow<Q>,
    {
        let entry = self.entries.get(key)?;
        if self.expired(entry, since) {
            return None;
        }
        let until = since + entry.wait;
        (until > now).then_some(until)
    }

    /// As [`Backoff::until`], counted from the last step.
    pub fn until_since_update<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: SystemTime) -> Option<SystemTime>
    where
        K: std::borrow::Borrow<Q>,
    {
        let updated = self.entries.get(key)?.updated;
        self.until(key, updated, now)
    }

    /// Takes one step: the first gives the initial wait, each later one doubles it.
    pub fn next(&mut self, key: K, since: SystemTime, now: SystemTime) {
        let wait = match self.entries.get(&key) {
            Some(entry) if !self.expired(entry, since) => (entry.wait * 2).min(self.max),
            _ => self.initial,
        };
        self.entries.insert(key, Entry { wait, updated: now });
    }

    /// Forgets a key.
    pub fn reset<Q: Eq + Hash + ?Sized>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
    {
        self.entries.remove(key);
    }

    /// Forgets what has not moved for twice the longest wait.
    pub fn gc(&mut self, now: SystemTime) {
        let max = self.max;
        self.entries.retain(|_, e| now.duration_since(e.updated).is_ok_and(|d| d <= max * 2));
    }

    fn expired(&self, entry: &Entry, since: SystemTime) -> bool {
        since.duration_since(entry.updated).is_ok_and(|d| d > self.max * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap_and_starts_over() {
        let t0 = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut b: Backoff<String> = Backoff::new(INITIAL, MAX);
        let mut now = t0;
        assert_eq!(b.until("k", now, now), None);
        for want in [10, 20, 40, 80, 160, 300, 300] {
            b.next("k".into(), now, now);
            assert_eq!(b.wait("k"), Duration::from_secs(want));
            assert_eq!(b.until("k", now, now), Some(now + Duration::from_secs(want)));
            now += Duration::from_secs(want);
            assert_eq!(b.until_since_update("k", now), None);
        }
        // A container that ran for more than ten minutes starts over.
        let crash = now + Duration::from_secs(601);
        assert_eq!(b.until("k", crash, crash), None);
        b.next("k".into(), crash, crash);
        assert_eq!(b.wait("k"), INITIAL);
        b.gc(crash + Duration::from_secs(601));
        assert_eq!(b.wait("k"), Duration::ZERO);
    }
}
