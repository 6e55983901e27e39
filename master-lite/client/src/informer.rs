//! One shared, trimmed cache a kind.
//!
//! An [`Informer`] keeps a copy of every object of one kind and calls its handlers, in order and on one task,
//! for every change. The cache is changed before the handlers run, so a handler that enqueues a key can be sure
//! that the worker sees at least that version. `metadata.managedFields` is dropped on arrival: it is often half
//! of an object, and no controller reads it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug};
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::meta;

/// Namespace and name of an object; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace, or nothing.
    pub namespace: String,
    /// The name within it.
    pub name: String,
}

impl Key {
    /// The key of an object in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Key { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Key { namespace: String::new(), name: name.into() }
    }

    /// The key of `object`.
    pub fn of<K: Resource>(object: &K) -> Self {
        Key::new(meta::namespace(object.meta()), meta::name(object.meta()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One change of a cached object.
#[derive(Debug, Clone)]
pub enum Delta<K> {
    /// The object is new to the cache.
    Added(Arc<K>),
    /// The object has a new version; both have the same uid.
    Updated {
        /// What the cache held before.
        old: Arc<K>,
        /// What it holds now.
        new: Arc<K>,
    },
    /// The object is gone; this is its last known state.
    Deleted(Arc<K>),
}

impl<K> Delta<K> {
    /// The newest known state of the object.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Delta::Added(object) | Delta::Deleted(object) => object,
            Delta::Updated { new, .. } => new,
        }
    }

    /// The state before, if there was one.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Delta::Updated { old, .. } => Some(old),
            _ => None,
        }
    }
}

type Handler<K> = Box<dyn Fn(&Delta<K>) + Send + Sync>;

struct Cache<K> {
    objects: HashMap<String, BTreeMap<String, Arc<K>>>,
    /// Names of the objects that an owner (by uid) manages: `controller: true` references only. Those that no one
    /// manages are here too, under [`orphans_of`] their namespace.
    by_controller: HashMap<String, BTreeSet<Key>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Cache { objects: HashMap::new(), by_controller: HashMap::new() }
    }
}

/// The index entry of a namespace's orphans; no uid looks like it.
fn orphans_of(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

fn index_entry(meta: &ObjectMeta) -> String {
    match meta::controller_of(meta) {
        Some(owner) => owner.uid.clone(),
        None => orphans_of(meta::namespace(meta)),
    }
}

impl<K: Resource> Cache<K> {
    fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(&key.namespace)?.get(&key.name)
    }

    fn insert(&mut self, key: &Key, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.remove(key);
        self.by_controller.entry(index_entry(object.meta())).or_default().insert(key.clone());
        self.objects.entry(key.namespace.clone()).or_default().insert(key.name.clone(), object);
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let names = self.objects.get_mut(&key.namespace)?;
        let old = names.remove(&key.name)?;
        if names.is_empty() {
            self.objects.remove(&key.namespace);
        }
        let entry = index_entry(old.meta());
        if let Some(keys) = self.by_controller.get_mut(&entry) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_controller.remove(&entry);
            }
        }
        Some(old)
    }
}

/// A shared cache of one kind, and those who want to hear of its changes.
pub struct Informer<K> {
    cache: RwLock<Cache<K>>,
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    trim: fn(&mut K),
}

impl<K> Default for Informer<K> {
    fn default() -> Self {
        Informer {
            cache: RwLock::default(),
            handlers: Mutex::default(),
            synced: watch::Sender::new(false),
            trim: |_| {},
        }
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// An empty informer. Register handlers first, then [`run`](Self::run) it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// An empty informer whose objects lose, by `trim`, what no one will read.
    pub fn with_trim(trim: fn(&mut K)) -> Arc<Self> {
        Arc::new(Informer { trim, ..Self::default() })
    }

    /// Calls `handler` for every change from now on. A handler must not block.
    pub fn on_change(&self, handler: impl Fn(&Delta<K>) + Send + Sync + 'static) {
        self.handlers.lock().push(Box::new(handler));
    }

    /// The object with this key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.cache.read().get(key).cloned()
    }

    /// Every object.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.cache.read().objects.values().flat_map(|names| names.values().cloned()).collect()
    }

    /// The objects of one namespace, by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.cache
            .read()
            .objects
            .get(namespace)
            .map(|names| names.values().cloned().collect())
            .unwrap_or_default()
    }

    /// The objects that the owner with this uid manages.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        let cache = self.cache.read();
        cache
            .by_controller
            .get(uid)
            .map(|keys| keys.iter().filter_map(|key| cache.get(key).cloned()).collect())
            .unwrap_or_default()
    }

    /// The objects of one namespace that no owner manages.
    pub fn orphans_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.controlled_by(&orphans_of(namespace))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.cache.read().objects.values().map(BTreeMap::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cache.read().objects.is_empty()
    }

    /// Returns when the first whole list is in the cache and every handler has seen it.
    pub async fn synced(&self) {
        // The sender lives as long as self, so the wait cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Watches until `shutdown`. Lost watches are taken up again with back-off; a new list is compared with the
    /// cache, so that handlers hear of what was missed.
    pub async fn run(self: Arc<Self>, api: Api<K>, config: watcher::Config, shutdown: CancellationToken) {
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listing: HashMap<Key, Arc<K>> = HashMap::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    tracing::debug!(%error, kind = std::any::type_name::<K>(), "watch failed, will retry");
                }
                Some(Ok(watcher::Event::Apply(object))) => self.apply(object),
                Some(Ok(watcher::Event::Delete(object))) => self.delete(&Key::of(&object), Some(object)),
                Some(Ok(watcher::Event::Init)) => listing.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => {
                    let object = self.trimmed(object);
                    listing.insert(Key::of(&*object), object);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    self.replace(std::mem::take(&mut listing));
                    self.synced.send_replace(true);
                }
            }
        }
    }

    /// Puts a whole list in the cache and tells the handlers of every difference.
    pub fn replace(&self, listing: HashMap<Key, Arc<K>>) {
        let gone: Vec<Key> = self
            .list()
            .iter()
            .map(|object| Key::of(&**object))
            .filter(|key| !listing.contains_key(key))
            .collect();
        for key in gone {
            self.delete(&key, None);
        }
        for (key, object) in listing {
            self.store(key, object);
        }
    }

    /// Puts one object in the cache, as if the watch had brought it.
    pub fn apply(&self, object: K) {
        let object = self.trimmed(object);
        self.store(Key::of(&*object), object);
    }

    fn store(&self, key: Key, object: Arc<K>) {
        let old = self.cache.write().insert(&key, object.clone());
        match old {
            None => self.tell(&Delta::Added(object)),
            Some(old) if old.uid() != object.uid() => {
                // Deleted and made again while no one watched: controllers track state by uid, so they must
                // hear of both.
                self.tell(&Delta::Deleted(old));
                self.tell(&Delta::Added(object));
            }
            Some(old) if old.resource_version() == object.resource_version() => {}
            Some(old) => self.tell(&Delta::Updated { old, new: object }),
        }
    }

    fn delete(&self, key: &Key, last: Option<K>) {
        let old = self.cache.write().remove(key);
        if let Some(old) = old {
            self.tell(&Delta::Deleted(last.map_or(old, |last| self.trimmed(last))));
        }
    }

    fn trimmed(&self, mut object: K) -> Arc<K> {
        object.meta_mut().managed_fields = None;
        (self.trim)(&mut object);
        Arc::new(object)
    }

    fn tell(&self, delta: &Delta<K>) {
        for handler in self.handlers.lock().iter() {
            handler(delta);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn object(name: &str, uid: &str, version: &str, owner: Option<&str>) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.into()),
                namespace: Some("ns".into()),
                uid: Some(uid.into()),
                resource_version: Some(version.into()),
                owner_references: owner.map(|uid| {
                    vec![OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() }]
                }),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn watched() -> (Arc<Informer<ConfigMap>>, Arc<Mutex<Vec<String>>>) {
        let informer = Informer::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        informer.on_change(move |delta: &Delta<ConfigMap>| {
            let what = match delta {
                Delta::Added(_) => "+",
                Delta::Updated { .. } => "~",
                Delta::Deleted(_) => "-",
            };
            log.lock().push(format!("{what}{}", delta.object().name_any()));
        });
        (informer, seen)
    }

    #[test]
    fn changes_reach_cache_then_handlers() {
        let (informer, seen) = watched();
        informer.apply(object("a", "1", "1", None));
        informer.apply(object("a", "1", "1", None));
        informer.apply(object("a", "1", "2", Some("o")));
        assert_eq!(informer.controlled_by("o").len(), 1);
        informer.apply(object("a", "2", "3", None));
        assert!(informer.controlled_by("o").is_empty());
        informer.delete(&Key::new("ns", "a"), None);
        assert_eq!(*seen.lock(), ["+a", "~a", "-a", "+a", "-a"]);
        assert!(informer.is_empty());
    }

    #[test]
    fn a_new_list_tells_what_was_missed() {
        let (informer, seen) = watched();
        informer.apply(object("a", "1", "1", None));
        informer.apply(object("b", "2", "2", None));
        seen.lock().clear();
        let listing = [object("b", "2", "5", None)].into_iter().map(|o| (Key::of(&o), Arc::new(o))).collect();
        informer.replace(listing);
        assert_eq!(*seen.lock(), ["-a", "~b"]);
    }
}
