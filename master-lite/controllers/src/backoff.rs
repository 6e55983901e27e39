//! Growing delays by key (`k8s.io/client-go/util/flowcontrol.Backoff`).

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

struct Entry {
    delay: Duration,
    at: Instant,
}

/// How often what has expired is looked for.
const PRUNE: Duration = Duration::from_secs(60);

struct State<K> {
    entries: HashMap<K, Entry>,
    pruned: Instant,
}

/// Delays that double each time; one that was not asked for during twice the longest starts afresh.
pub struct Backoff<K> {
    first: Duration,
    longest: Duration,
    state: Mutex<State<K>>,
}

impl<K: Eq + Hash> Backoff<K> {
    /// Delays from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let state = State { entries: HashMap::new(), pruned: Instant::now() };
        Backoff { first, longest, state: Mutex::new(state) }
    }

    /// Takes the key's next step, unless its present delay still runs: then what is left of it.
    ///
    /// # Errors
    /// The time to wait.
    pub fn step(&self, key: K) -> Result<(), Duration> {
        let now = Instant::now();
        let is_live = |entry: &Entry| now - entry.at <= self.longest * 2;
        let mut state = self.state.lock();
        if now - state.pruned >= PRUNE {
            state.entries.retain(|_, entry| is_live(entry));
            state.pruned = now;
        }
        let delay = match state.entries.get(&key).filter(|entry| is_live(entry)) {
            Some(entry) if now < entry.at + entry.delay => return Err(entry.at + entry.delay - now),
            Some(entry) => (entry.delay * 2).min(self.longest),
            None => self.first,
        };
        state.entries.insert(key, Entry { delay, at: now });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn delays_double_and_are_forgotten() {
        let seconds = Duration::from_secs;
        let backoff = Backoff::new(seconds(1), seconds(3));
        assert_eq!(backoff.step("a"), Ok(()));
        assert_eq!(backoff.step("b"), Ok(()));
        assert_eq!(backoff.step("a"), Err(seconds(1)));
        tokio::time::advance(seconds(1)).await;
        assert_eq!(backoff.step("a"), Ok(()));
        assert_eq!(backoff.step("a"), Err(seconds(2)));
        tokio::time::advance(seconds(2)).await;
        assert_eq!(backoff.step("a"), Ok(()));
        assert_eq!(backoff.step("a"), Err(seconds(3)));
        tokio::time::advance(seconds(7)).await;
        assert_eq!(backoff.step("a"), Ok(()));
        assert_eq!(backoff.step("a"), Err(seconds(1)));
    }
}
