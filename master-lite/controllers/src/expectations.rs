//! What a controller has asked for and not yet seen in its cache.
//!
//! A replica set that has created pods must not count its pods again before the cache has them, or it would
//! create them twice. Deletions are tracked by pod, for their events may come twice (the deletion timestamp
//! first, then the end).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use keelson_client::{Delta, Key, meta};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Expectations older than this have been missed; the controller goes on without them.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

struct Entry {
    creations: i64,
    deletions: HashSet<Key>,
    at: Instant,
}

/// Expectations by owner.
#[derive(Default)]
pub struct Expectations(Mutex<HashMap<Key, Entry>>);

impl Expectations {
    /// Whether all that was expected of `owner` has been seen, or waited for long enough.
    pub fn satisfied(&self, owner: &Key) -> bool {
        self.0.lock().get(owner).is_none_or(|entry| {
            (entry.creations <= 0 && entry.deletions.is_empty()) || entry.at.elapsed() > TIMEOUT
        })
    }

    /// Expects so many new objects, and these to go.
    pub fn expect(&self, owner: &Key, creations: usize, deletions: HashSet<Key>) {
        let creations = i64::try_from(creations).unwrap_or(i64::MAX);
        self.0.lock().insert(owner.clone(), Entry { creations, deletions, at: Instant::now() });
    }

    /// One new object was seen, or will never be.
    pub fn creation_observed(&self, owner: &Key) {
        if let Some(entry) = self.0.lock().get_mut(owner) {
            entry.creations -= 1;
        }
    }

    /// This object was seen going, or will never be.
    pub fn deletion_observed(&self, owner: &Key, object: &Key) {
        if let Some(entry) = self.0.lock().get_mut(owner) {
            entry.deletions.remove(object);
        }
    }

    /// Notes what `delta` shows of an object of `owner`: a deletion counts from its timestamp on.
    pub fn observe<O: kube::Resource>(&self, owner: &Key, delta: &Delta<O>) {
        let object = &**delta.object();
        if object.meta().deletion_timestamp.is_some() || matches!(delta, Delta::Deleted(_)) {
            self.deletion_observed(owner, &Key::of(object));
        } else if matches!(delta, Delta::Added(_)) {
            self.creation_observed(owner);
        }
    }

    /// Forgets the owner.
    pub fn forget(&self, owner: &Key) {
        self.0.lock().remove(owner);
    }
}

/// Versions that our own writes gave to objects. Until the cache shows them, a pass would work with what was
/// before, and count or make things twice.
#[derive(Default)]
pub struct OwnWrites(Mutex<HashMap<Key, (String, u64)>>);

impl OwnWrites {
    /// Remembers an object as the API returned it.
    pub fn note<K: kube::Resource>(&self, key: &Key, written: &K) {
        let version = (meta::uid(written.meta()).to_owned(), meta::revision(written.meta()));
        self.0.lock().insert(key.clone(), version);
    }

    /// Whether `cached` is as new as what was written.
    pub fn is_seen<K: kube::Resource>(&self, key: &Key, cached: &K) -> bool {
        let mut written = self.0.lock();
        let is_behind = written.get(key).is_some_and(|(uid, revision)| {
            uid == meta::uid(cached.meta()) && meta::revision(cached.meta()) < *revision
        });
        if !is_behind {
            written.remove(key);
        }
        !is_behind
    }

    /// Forgets the object.
    pub fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_expected_is_waited_for_and_not_for_ever() {
        let (expectations, owner) = (Expectations::default(), Key::new("ns", "rs"));
        assert!(expectations.satisfied(&owner));
        expectations.expect(&owner, 2, HashSet::new());
        expectations.creation_observed(&owner);
        assert!(!expectations.satisfied(&owner));
        expectations.creation_observed(&owner);
        assert!(expectations.satisfied(&owner));
        let pod = Key::new("ns", "p");
        expectations.expect(&owner, 0, HashSet::from([pod.clone()]));
        expectations.deletion_observed(&owner, &Key::new("ns", "q"));
        assert!(!expectations.satisfied(&owner));
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.satisfied(&owner));
    }

    #[test]
    fn own_writes_are_waited_for() {
        let (writes, key) = (OwnWrites::default(), Key::new("ns", "a"));
        let object = |uid: &str, version: &str| k8s_openapi::api::core::v1::ConfigMap {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                uid: Some(uid.into()),
                resource_version: Some(version.into()),
                ..Default::default()
            },
            ..Default::default()
        };
        assert!(writes.is_seen(&key, &object("1", "9")));
        writes.note(&key, &object("1", "10"));
        assert!(!writes.is_seen(&key, &object("1", "9")));
        assert!(writes.is_seen(&key, &object("1", "11")));
        writes.note(&key, &object("1", "20"));
        assert!(writes.is_seen(&key, &object("2", "19")), "another object has the name");
    }
}
