//! A watch that goes on where it stopped, over every kill.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, WatchEvent, WatchParams};

use super::ledger::{Change, Write};
use super::master::Access;

#[derive(Default)]
struct Seen {
    changes: Vec<Change>,
    watches: usize,
}

/// What was seen.
pub struct Report(Seen);

impl Report {
    /// Changes of objects whose names begin so.
    pub fn of(&self, prefix: &str) -> Vec<Change> {
        self.0.changes.iter().filter(|change| change.name.starts_with(prefix)).cloned().collect()
    }

    /// Changes after a resourceVersion.
    pub fn after(&self, revision: u64) -> Vec<Change> {
        self.0.changes.iter().filter(|change| change.revision > revision).cloned().collect()
    }

    pub fn changes(&self) -> usize {
        self.0.changes.len()
    }

    /// How often it began.
    pub fn watches(&self) -> usize {
        self.0.watches
    }
}

pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watcher {
    /// Follows ConfigMaps of namespace `default` from `revision` on.
    pub fn start(access: Access, revision: String) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(follow(access, revision, seen.clone()));
        Self { seen, task }
    }

    /// Waits until an object was seen, and ends.
    pub async fn until(self, name: &str, patience: Duration) -> Report {
        let deadline = Instant::now() + patience;
        loop {
            if self.seen.lock().unwrap().changes.last().is_some_and(|change| change.name == name) {
                break;
            }
            if self.task.is_finished() {
                self.task.await.unwrap();
                panic!("the watch ended");
            }
            assert!(Instant::now() < deadline, "{name} was never seen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.task.abort();
        Report(std::mem::take(&mut self.seen.lock().unwrap()))
    }
}

async fn follow(access: Access, mut revision: String, seen: Arc<Mutex<Seen>>) {
    loop {
        // Broken off, or not up yet: both pass.
        drop(watch(&access, &mut revision, &seen).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One watch, until it breaks off.
async fn watch(
    access: &Access,
    revision: &mut String,
    seen: &Mutex<Seen>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let api: Api<ConfigMap> = Api::default_namespaced(access.client().await?);
    let mut events = std::pin::pin!(api.watch(&WatchParams::default(), revision).await?);
    seen.lock().unwrap().watches += 1;
    while let Some(event) = events.try_next().await? {
        let (map, deleted) = match event {
            WatchEvent::Added(map) | WatchEvent::Modified(map) => (map, false),
            WatchEvent::Deleted(map) => (map, true),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => panic!("resuming at {revision}: {status:?}"),
        };
        let at = map.metadata.resource_version.unwrap();
        let (now, last): (u64, u64) = (at.parse().unwrap(), revision.parse().unwrap());
        assert!(now > last, "{now} was seen after {last}");
        *revision = at;
        let name = map.metadata.name.unwrap();
        // Objects that everyone gets, such as kube-root-ca.crt, are not the writers'.
        let Some(n) = map.data.as_ref().and_then(|data| data.get("n")) else { continue };
        let write = if deleted { Write::Delete } else { Write::Put(n.parse().unwrap()) };
        seen.lock().unwrap().changes.push(Change { name, write, revision: now });
    }
    Ok(())
}
