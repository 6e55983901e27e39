//! Watches that start further back than the window of recent changes: out of the store's history.
//!
//! The cache begins with the newest state, so that a master is ready as soon as it has read that. The windows fill as
//! changes come; whoever asks for older ones has them read from the store, once for all who ask for that resource.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt as _;
use keelson_api::meta::GroupResource;
use keelson_store::{Event, EventKind, KeyRange, KeyValue, StoreError, WatchRequest};

use super::{CacheEvent, CacheWatch, CachedObject, ResourceCache, WatchCache, store_error};
use crate::filter::Filter;
use crate::keys;
use crate::status::{Result, StatusError};

/// How often a watch is begun anew because the window moved on while history was read.
const ATTEMPTS: usize = 5;

impl WatchCache {
    /// Starts a watch of a resource after `revision`.
    ///
    /// # Errors
    /// 410 (Expired) if the store has forgotten what followed that revision; 500 if it fails.
    pub async fn watch(
        &self,
        cache: &ResourceCache,
        filter: &Arc<Filter>,
        revision: u64,
    ) -> Result<CacheWatch> {
        let resource = &cache.row().storage;
        if let Ok(watch) = cache.watch(filter.clone(), revision) {
            return Ok(watch);
        }
        let mut oldest_served = 0;
        for _ in 0..ATTEMPTS {
            let one_reader = cache.reading_history().await;
            // Who held it before may have read what was missing.
            let window_start = match cache.watch(filter.clone(), revision) {
                Ok(watch) => return Ok(watch),
                Err(window_start) => window_start,
            };
            oldest_served = window_start;
            if cache.needs_history(window_start) {
                let oldest = self.oldest().await?;
                match self.history(resource, cache, oldest).await {
                    Ok((events, _)) => cache.prepend(window_start, events, oldest),
                    // Some of it was forgotten meanwhile.
                    Err(error) if error.code == 410 => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            // Older than what a window may hold: this watch's own.
            let (events, upto) = self
                .history(resource, cache, revision)
                .await
                .map_err(|error| if error.code == 410 { too_old(revision, window_start) } else { error })?;
            drop(one_reader);
            self.wait(upto).await?;
            if let Ok(mut watch) = cache.watch(filter.clone(), upto) {
                watch.backlog.splice(
                    0..0,
                    events.into_iter().filter_map(|event| super::watchers::seen(filter, event)),
                );
                return Ok(watch);
            }
        }
        Err(too_old(revision, oldest_served))
    }

    /// Oldest revision after which the store knows every change.
    async fn oldest(&self) -> Result<u64> {
        let probe = WatchRequest { range: KeyRange::prefix("\0"), start_revision: Some(1), progress: false };
        match self.store.watch(probe).await {
            Ok(_) => Ok(0),
            Err(StoreError::Compacted { oldest }) => Ok(oldest),
            Err(error) => Err(store_error(error)),
        }
    }

    /// A resource's changes after `revision`, and the revision up to which these are all.
    async fn history(
        &self,
        resource: &GroupResource,
        cache: &ResourceCache,
        revision: u64,
    ) -> Result<(VecDeque<Arc<CacheEvent>>, u64)> {
        let prefix = keys::prefix(resource, None);
        let request = WatchRequest {
            range: KeyRange::prefix(&prefix),
            start_revision: Some(revision + 1),
            progress: false,
        };
        if self.store.current_revision().await.map_err(store_error)? <= revision {
            return Ok((VecDeque::new(), revision));
        }
        let mut stream = self.store.watch(request).await.map_err(store_error)?;
        let batch = match stream.next().await {
            Some(batch) => batch.map_err(store_error)?,
            None => return Err(store_error(StoreError::Closed)),
        };
        let mut last = HashMap::new();
        let events = batch
            .events
            .iter()
            .filter_map(|event| read(cache, &prefix, event, &mut last))
            .map(Arc::new)
            .collect();
        Ok((events, batch.revision))
    }
}

/// One change out of the store. `last` holds the newest state read of each key, which is the next change's state before.
fn read(
    cache: &ResourceCache,
    prefix: &str,
    event: &Event,
    last: &mut HashMap<String, Arc<CachedObject>>,
) -> Option<CacheEvent> {
    let rest = event.kv.key.strip_prefix(prefix)?;
    let object =
        |kv: &KeyValue| CachedObject::read(cache.row(), rest, &kv.value, kv.mod_revision).map(Arc::new);
    let prev = match (last.remove(rest), &event.prev) {
        (Some(prev), Some(_)) => Some(prev),
        (_, prev) => prev.as_ref().and_then(object),
    };
    let object = match event.kind {
        EventKind::Delete => None,
        EventKind::Put => Some(object(&event.kv)?),
    };
    if let Some(object) = &object {
        last.insert(rest.to_owned(), object.clone());
    }
    (object.is_some() || prev.is_some()).then(|| CacheEvent::new(event.kv.mod_revision, object, prev))
}

fn too_old(revision: u64, oldest: u64) -> StatusError {
    StatusError::expired(format!("too old resource version: {revision} ({oldest})"))
}
