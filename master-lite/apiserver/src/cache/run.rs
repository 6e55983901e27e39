//! Filling the cache and following the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use keelson_store::{Event, EventKind, KeyRange, RangeRequest, StoreError, WatchRequest, WatchStream};

use keelson_api::meta::GroupResource;

use super::{CacheEvent, CachedObject, ResourceCache, WatchCache};
use crate::keys;

impl WatchCache {
    /// Reads everything as it is now. (What led to it is read when a watch asks for it: `history.rs`.)
    pub(super) async fn load(&self) -> Result<(), StoreError> {
        let range = KeyRange::prefix(keys::ROOT);
        let found = self.store.range(RangeRequest { range, limit: 0, revision: None }).await?;
        let mut objects: BTreeMap<GroupResource, BTreeMap<String, Arc<CachedObject>>> = BTreeMap::new();
        for kv in &found.kvs {
            let Some((resource, rest)) = keys::split(&kv.key) else { continue };
            let Some(cache) = self.resource(&resource) else { continue };
            if let Some(object) = CachedObject::read(cache.row(), rest, &kv.value, kv.mod_revision) {
                objects.entry(resource).or_default().insert(rest.to_owned(), Arc::new(object));
            }
        }
        for (resource, cache) in self.all() {
            cache.reset(objects.remove(&resource).unwrap_or_default(), found.revision);
        }
        self.applied.send_replace(found.revision);
        Ok(())
    }

    /// Reads one resource, which came later than the others, as it was at a revision.
    pub(super) async fn fill(
        &self,
        resource: &GroupResource,
        cache: &ResourceCache,
        revision: u64,
    ) -> Result<(), StoreError> {
        let prefix = keys::prefix(resource, None);
        let range = KeyRange::prefix(&prefix);
        let found = self.store.range(RangeRequest { range, limit: 0, revision: Some(revision) }).await?;
        let objects = found
            .kvs
            .iter()
            .filter_map(|kv| {
                let rest = kv.key.strip_prefix(&prefix)?;
                let object = CachedObject::read(cache.row(), rest, &kv.value, kv.mod_revision)?;
                Some((rest.to_owned(), Arc::new(object)))
            })
            .collect::<BTreeMap<_, _>>();
        cache.reset(objects, revision);
        Ok(())
    }

    async fn open_watch(&self) -> Result<WatchStream, StoreError> {
        self.store
            .watch(WatchRequest {
                range: KeyRange::prefix(keys::ROOT),
                start_revision: Some(self.applied() + 1),
                progress: true,
            })
            .await
    }

    fn apply(&self, event: &Event) {
        let Some((resource, rest)) = keys::split(&event.kv.key) else { return };
        let Some(cache) = self.resource(&resource) else { return };
        let revision = event.kv.mod_revision;
        let object = match event.kind {
            EventKind::Delete => None,
            EventKind::Put => {
                let read = CachedObject::read(cache.row(), rest, &event.kv.value, revision);
                if read.is_none() {
                    return;
                }
                read.map(Arc::new)
            }
        };
        cache.apply(rest, revision, object, CacheEvent::new);
    }
}

/// Applies the store's changes for as long as someone holds the cache.
pub(super) async fn follow(cache: Weak<WatchCache>) {
    loop {
        let Some(strong) = cache.upgrade() else { return };
        let opened = strong.open_watch().await;
        drop(strong);
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::error!(%error, "watching the store failed; reading everything again");
                tokio::time::sleep(Duration::from_millis(500)).await;
                let Some(strong) = cache.upgrade() else { return };
                if let Err(error) = strong.load().await {
                    tracing::error!(%error, "reading the store failed");
                }
                continue;
            }
        };
        while let Some(batch) = stream.next().await {
            let Some(strong) = cache.upgrade() else { return };
            match batch {
                Ok(batch) => {
                    let _whole = strong.applying.lock().await;
                    batch.events.iter().for_each(|event| strong.apply(event));
                    strong.applied.send_replace(batch.revision);
                }
                Err(error) => {
                    tracing::warn!(%error, "following the store broke off; resuming");
                    break;
                }
            }
        }
    }
}
