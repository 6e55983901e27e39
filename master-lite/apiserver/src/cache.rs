//! The watch cache: every object of every stored resource in memory, with the recent changes.
//!
//! One task reads the store's changes in order and applies them; reads and watches are served from here. A reader
//! that needs the newest state asks the store for its revision and waits until the cache has reached it
//! ([`WatchCache::wait`]), so a client always reads its own writes.
//!
//! Each event is encoded once per shape, whoever watches it. A watcher that doesn't keep up is dropped: its client
//! comes back with the last resourceVersion it saw.

mod history;
mod objects;
mod resource;
mod run;
mod watchers;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use keelson_api::meta::GroupResource;
use keelson_api::resources::{Resource, ResourceTable};
use keelson_store::{Store, StoreError};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::watch;

pub use resource::{CacheWatch, ResourceCache, WatchMessage};

use crate::authz::relations::References;
use crate::extension::ObjectReader;
use crate::filter::Filter;
use crate::status::{Result, StatusError};
use crate::stored::{Spliced, StoredError};

/// How long a read waits for the cache to reach a revision, as upstream does.
const WAIT: Duration = Duration::from_secs(3);

/// An object as the cache holds it.
#[derive(Debug)]
pub struct CachedObject {
    /// Namespace; empty for cluster-scoped resources.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Revision of its last change (of its deletion in DELETED events).
    pub revision: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Values of the storage row's selectable fields, in their order.
    pub fields: Box<[Box<str>]>,
    spliced: Spliced,
    /// Whether trees are kept: of pods they would be most of the master's memory.
    keeps_value: bool,
    value: OnceLock<Arc<Value>>,
    references: OnceLock<Arc<References>>,
}

impl CachedObject {
    /// Reads a stored value. `None`, and a log line, if it can't be read.
    pub fn read(storage: &Resource, rest: &str, stored: &[u8], revision: u64) -> Option<Self> {
        let (namespace, name) = match rest.split_once('/') {
            Some((namespace, name)) => (namespace, name),
            None => ("", rest),
        };
        let spliced = match Spliced::new(stored, revision) {
            Ok(spliced) => spliced,
            Err(error) => {
                tracing::error!(%error, resource = %storage.plural, key = rest, "unreadable object in the store");
                return None;
            }
        };
        // Of most objects no more is ever looked at; those of which more is are parsed whole then.
        let paths: Vec<&str> =
            std::iter::once("metadata.labels").chain(crate::filter::selectable_paths(storage)).collect();
        let picked = match crate::pick::pick(spliced.json(), &paths) {
            Ok(picked) => picked,
            Err(error) => {
                tracing::error!(%error, resource = %storage.plural, key = rest, "unreadable object in the store");
                return None;
            }
        };
        let labels = picked["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
            .collect();
        Some(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            revision,
            labels,
            fields: crate::filter::selectable_values(storage, &picked),
            spliced,
            keeps_value: storage.group_resource() != GroupResource::new("", "pods"),
            value: OnceLock::new(),
            references: OnceLock::new(),
        })
    }

    /// The same object as it is shown when it is deleted at `revision`.
    pub fn deleted_at(&self, revision: u64) -> Self {
        Self {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            revision,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            spliced: self.spliced.at_revision(revision),
            keeps_value: self.keeps_value,
            value: OnceLock::new(),
            references: OnceLock::new(),
        }
    }

    /// JSON in the storage version, with its resourceVersion.
    pub fn json(&self) -> &Bytes {
        self.spliced.json()
    }

    /// Its metadata as it stands in the JSON.
    ///
    /// # Errors
    /// If it is none, which was found out when the object was read.
    pub fn metadata(&self) -> Result<&RawValue, StoredError> {
        self.spliced.metadata()
    }

    /// As a tree; parsed once and kept, unless the object is one of many.
    pub fn value(&self) -> Arc<Value> {
        // That it is JSON was seen when the object was read.
        let parse = || Arc::new(self.spliced.value().unwrap_or(Value::Null));
        if self.keeps_value { self.value.get_or_init(parse).clone() } else { parse() }
    }

    /// What it refers to, if it is a pod; read once and kept.
    fn references(&self) -> Arc<References> {
        self.references.get_or_init(|| Arc::new(References::of(&self.parse()))).clone()
    }

    /// As a tree, without keeping it.
    pub fn parse(&self) -> Value {
        match self.value.get() {
            Some(value) => Value::clone(value),
            None => self.spliced.value().unwrap_or(Value::Null),
        }
    }
}

/// What a watcher is told of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// New, or now selected.
    Added,
    /// Changed, and still selected.
    Modified,
    /// Gone, or no longer selected.
    Deleted,
}

impl EventType {
    /// As in `metav1.WatchEvent`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change.
#[derive(Debug)]
pub struct CacheEvent {
    /// Revision of the change.
    pub revision: u64,
    /// State after; `None` if deleted.
    pub object: Option<Arc<CachedObject>>,
    /// State before; `None` if it is new.
    pub prev: Option<Arc<CachedObject>>,
    /// The state before, as shown when it goes.
    gone: OnceLock<Arc<CachedObject>>,
    /// Encoded frames by type and shape.
    frames: Mutex<Vec<((EventType, u64), Bytes)>>,
}

impl CacheEvent {
    fn new(revision: u64, object: Option<Arc<CachedObject>>, prev: Option<Arc<CachedObject>>) -> Self {
        Self { revision, object, prev, gone: OnceLock::new(), frames: Mutex::new(Vec::new()) }
    }

    /// The object to show for an event of this type.
    pub fn shown(&self, kind: EventType) -> Option<Arc<CachedObject>> {
        match kind {
            EventType::Added | EventType::Modified => self.object.clone(),
            EventType::Deleted => {
                let prev = self.prev.as_ref()?;
                Some(self.gone.get_or_init(|| Arc::new(prev.deleted_at(self.revision))).clone())
            }
        }
    }

    /// The frame of a type in a shape (any number that stands for one), made by the first who asks.
    pub fn frame(
        &self,
        kind: EventType,
        shape: u64,
        make: impl FnOnce(&CachedObject) -> Bytes,
    ) -> Option<Bytes> {
        let found = self.frames.lock().iter().find(|(key, _)| *key == (kind, shape)).map(|(_, f)| f.clone());
        if found.is_some() {
            return found;
        }
        let frame = make(&*self.shown(kind)?);
        self.frames.lock().push(((kind, shape), frame.clone()));
        Some(frame)
    }
}

/// All resources' caches.
pub struct WatchCache {
    store: Arc<dyn Store>,
    resources: RwLock<HashMap<GroupResource, Arc<ResourceCache>>>,
    /// Held while changes are applied, so that a resource can be added between two of them.
    applying: tokio::sync::Mutex<()>,
    /// Everything up to this revision is applied.
    applied: watch::Sender<u64>,
}

impl WatchCache {
    /// Reads the whole store and follows it until the returned task is aborted.
    pub async fn start(
        store: Arc<dyn Store>,
        table: &ResourceTable,
    ) -> Result<(Arc<Self>, tokio::task::JoinHandle<()>), StoreError> {
        let resources = table
            .rows()
            .iter()
            .filter(|row| !row.is_virtual && row.storage == row.group_resource())
            .map(|row| (row.storage.clone(), Arc::new(ResourceCache::new(row.clone()))))
            .collect();
        let cache = Arc::new(Self {
            store,
            resources: RwLock::new(resources),
            applying: tokio::sync::Mutex::new(()),
            applied: watch::Sender::new(0),
        });
        cache.load().await?;
        let task = tokio::spawn(run::follow(Arc::downgrade(&cache)));
        Ok((cache, task))
    }

    /// Cache of a stored resource.
    pub fn resource(&self, resource: &GroupResource) -> Option<Arc<ResourceCache>> {
        self.resources.read().get(resource).cloned()
    }

    /// All caches.
    pub(super) fn all(&self) -> Vec<(GroupResource, Arc<ResourceCache>)> {
        self.resources.read().iter().map(|(resource, cache)| (resource.clone(), cache.clone())).collect()
    }

    /// Starts to follow a resource that is served from now on, or serves one anew whose row has changed: running
    /// watches end then, as what they show is no longer what is stored.
    pub async fn add(&self, row: Arc<Resource>) -> Result<(), StoreError> {
        let _between_changes = self.applying.lock().await;
        let paths = |row: &Resource| row.selectable_fields.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
        if let Some(cache) = self.resource(&row.storage)
            && paths(cache.row()) == paths(&row)
        {
            cache.end_watches();
            return Ok(());
        }
        let cache = Arc::new(ResourceCache::new(row.clone()));
        self.fill(&row.storage, &cache, self.applied()).await?;
        self.resources.write().insert(row.storage.clone(), cache);
        Ok(())
    }

    /// Forgets a resource; running watches end.
    pub fn remove(&self, resource: &GroupResource) {
        if let Some(cache) = self.resources.write().remove(resource) {
            cache.end_watches();
        }
    }

    /// Revision up to which everything is applied.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Waits until the cache shows everything up to `revision`.
    pub async fn wait(&self, revision: u64) -> Result<()> {
        let mut applied = self.applied.subscribe();
        let reached = tokio::time::timeout(WAIT, applied.wait_for(|applied| *applied >= revision)).await;
        if matches!(reached, Ok(Ok(_))) {
            return Ok(());
        }
        let current = self.applied();
        Err(StatusError::new(
            504,
            "Timeout",
            format!("Too large resource version: {revision}, current: {current}"),
        )
        .with_details(serde_json::json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        })))
    }

    /// Waits until the cache shows everything that was acknowledged before the call.
    pub async fn wait_newest(&self) -> Result<()> {
        let revision = self.store.current_revision().await.map_err(store_error)?;
        self.wait(revision).await
    }
}

/// A store's failure as a client sees it.
pub fn store_error(error: StoreError) -> StatusError {
    match error {
        StoreError::Compacted { oldest } => {
            StatusError::expired(format!("too old resource version (oldest kept is {oldest})"))
        }
        // As upstream passes on what a full etcd says. The store itself has logged it once.
        full @ StoreError::NoSpace { .. } => StatusError::internal(full.to_string()),
        other => {
            tracing::error!(error = %other, "the store failed");
            StatusError::internal("the store failed")
        }
    }
}

impl ObjectReader for WatchCache {
    fn get(&self, resource: &GroupResource, namespace: Option<&str>, name: &str) -> Option<Arc<Value>> {
        Some(self.resource(resource)?.get(namespace.unwrap_or_default(), name)?.value())
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let Some(cache) = self.resource(resource) else { return Vec::new() };
        cache.snapshot(namespace).iter().map(|object| object.value()).collect()
    }

    fn field(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        name: &str,
        field: &str,
    ) -> Option<String> {
        let cache = self.resource(resource)?;
        let place = cache.row().selectable_fields.iter().position(|f| f.name == field)?;
        let object = cache.get(namespace.unwrap_or_default(), name)?;
        Some(object.fields.get(place)?.to_string())
    }

    fn references_on(&self, node: &str, namespace: &str) -> Vec<Arc<References>> {
        let Some(cache) = self.resource(&GroupResource::new("", "pods")) else { return Vec::new() };
        let bound = Filter::field(cache.row(), Some(namespace), "spec.nodeName", node);
        let bound = bound.map(|bound| cache.select(&bound, 0).0).unwrap_or_default();
        bound.iter().map(|pod| pod.references()).collect()
    }

    fn resource_version(&self, resource: &GroupResource) -> u64 {
        self.resource(resource).map_or(0, |cache| cache.revision())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_of_a_full_disk() {
        let status = store_error(StoreError::NoSpace { free: 1, reserve: 2 });
        assert_eq!((status.code, &*status.reason), (500, "InternalError"));
        let text = "Internal error occurred: no space left on the filesystem of the store: 1 bytes are free, 2 are kept back";
        assert_eq!(status.message, text);
    }
}
