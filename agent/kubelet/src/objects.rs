//! ConfigMaps and Secrets that pods of this node refer to, and no others.
//!
//! The Node authorizer lets a kubelet watch single objects by name, so there is one watch for each object that is
//! referred to, shared by all pods that do, ended with the last of them. A change wakes the pods at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::pods::podext::{PodExt, container_of_ephemeral};

/// How long a pod waits for the first answer about an object.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// Waits between failed watches. The first is short: the authorizer learns of a new pod a moment after we do.
const RETRY: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// Kind of an object that pods refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// v1 ConfigMap.
    ConfigMap,
    /// v1 Secret.
    Secret,
}

/// An object, either kind.
#[derive(Clone, PartialEq)]
pub enum Object {
    /// v1 ConfigMap.
    ConfigMap(ConfigMap),
    /// v1 Secret.
    Secret(Secret),
}

impl Object {
    /// All keys with their bytes; `data` and `binaryData` of a ConfigMap together.
    pub fn entries(&self) -> Vec<(&str, &[u8])> {
        match self {
            Self::ConfigMap(c) => {
                let text = c.data.iter().flatten().map(|(k, v)| (k.as_str(), v.as_bytes()));
                let binary = c.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice()));
                text.chain(binary).collect()
            }
            Self::Secret(s) => s.data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice())).collect(),
        }
    }

    /// One key as text, as environment variables see it: `binaryData` is not among them.
    pub fn text(&self, key: &str) -> Option<String> {
        match self {
            Self::ConfigMap(c) => c.data.as_ref()?.get(key).cloned(),
            Self::Secret(s) => s.data.as_ref()?.get(key).map(|v| String::from_utf8_lossy(&v.0).into_owned()),
        }
    }

    /// All keys as text.
    pub fn texts(&self) -> Vec<(String, String)> {
        match self {
            Self::ConfigMap(c) => c.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            Self::Secret(s) => {
                let data = s.data.iter().flatten();
                data.map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned())).collect()
            }
        }
    }
}

/// An object, none when it does not exist, or why it can't be known.
pub type Knowledge = Result<Option<Arc<Object>>, String>;

/// What is known of the objects of one pod.
#[derive(Clone, Default)]
pub struct ObjectView {
    known: HashMap<(ObjectKind, String), Knowledge>,
}

impl ObjectView {
    /// An object, or none when it does not exist. The error says why it can't be known.
    pub fn get(&self, kind: ObjectKind, name: &str) -> Knowledge {
        let known = self.known.get(&(kind, name.to_owned())).cloned();
        known.unwrap_or_else(|| Err(format!("object {name:?} not registered")))
    }

    /// An object that must exist. The error is upstream's.
    pub fn require(&self, kind: ObjectKind, name: &str) -> Result<Arc<Object>, String> {
        let word = match kind {
            ObjectKind::ConfigMap => "configmap",
            ObjectKind::Secret => "secret",
        };
        self.get(kind, name)?.ok_or_else(|| format!("{word} {name:?} not found"))
    }

    /// Adds what is known: for tests and snapshots.
    pub fn insert(&mut self, kind: ObjectKind, name: &str, what: Knowledge) {
        self.known.insert((kind, name.to_owned()), what);
    }
}

/// Names of all objects that a pod refers to in environment, volumes and pull secrets.
pub fn references(pod: &Pod) -> BTreeSet<(ObjectKind, String)> {
    let spec = PodExt::spec(pod);
    let mut out = BTreeSet::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            out.insert((kind, name.to_owned()));
        }
    };
    let ephemeral: Vec<Container> = pod.ephemeral_containers().iter().map(container_of_ephemeral).collect();
    for container in spec.containers.iter().chain(pod.init_containers()).chain(&ephemeral) {
        for from in container.env_from.iter().flatten() {
            if let Some(r) = &from.config_map_ref {
                add(ObjectKind::ConfigMap, &r.name);
            }
            if let Some(r) = &from.secret_ref {
                add(ObjectKind::Secret, &r.name);
            }
        }
        for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            if let Some(r) = &source.config_map_key_ref {
                add(ObjectKind::ConfigMap, &r.name);
            }
            if let Some(r) = &source.secret_key_ref {
                add(ObjectKind::Secret, &r.name);
            }
        }
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(s) = &volume.config_map {
            add(ObjectKind::ConfigMap, &s.name);
        }
        if let Some(s) = &volume.secret {
            add(ObjectKind::Secret, s.secret_name.as_deref().unwrap_or_default());
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(s) = &source.config_map {
                add(ObjectKind::ConfigMap, &s.name);
            }
            if let Some(s) = &source.secret {
                add(ObjectKind::Secret, &s.name);
            }
        }
    }
    for secret in spec.image_pull_secrets.iter().flatten() {
        add(ObjectKind::Secret, &secret.name);
    }
    out
}

#[derive(Clone)]
enum State {
    Pending,
    Known(Knowledge),
}

type Key = (ObjectKind, String, String);

/// One watched object; dropping the last handle ends the watch.
pub struct Watched {
    state: watch::Receiver<State>,
    listeners: Arc<Mutex<Vec<Weak<Notify>>>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    async fn get(&self) -> Knowledge {
        let mut state = self.state.clone();
        let first = state.wait_for(|s| matches!(s, State::Known(_)));
        match tokio::time::timeout(FIRST_ANSWER, first).await {
            Ok(Ok(known)) => match &*known {
                State::Known(result) => result.clone(),
                State::Pending => Err("not known yet".into()),
            },
            Ok(Err(_closed)) => Err("watch ended".into()),
            Err(_elapsed) => Err("timed out waiting for the condition".into()),
        }
    }
}

/// All watched objects of this node.
pub struct ObjectCache {
    client: kube::Client,
    watched: Mutex<HashMap<Key, Weak<Watched>>>,
}

/// The objects of one pod, held as long as the pod is here.
#[derive(Clone, Default)]
pub struct PodObjects {
    held: HashMap<(ObjectKind, String), Arc<Watched>>,
}

impl PodObjects {
    /// What is known, waiting for first answers.
    pub async fn view(&self) -> ObjectView {
        let answers =
            self.held.iter().map(|(key, watched)| async move { (key.clone(), watched.get().await) });
        ObjectView { known: futures::future::join_all(answers).await.into_iter().collect() }
    }
}

impl ObjectCache {
    /// A cache that watches nothing yet.
    pub fn new(client: kube::Client) -> Arc<Self> {
        Arc::new(Self { client, watched: Mutex::default() })
    }

    /// Takes up what a pod refers to now; `changed` is notified when any of it changes.
    pub fn register(&self, pod: &Pod, held: &mut PodObjects, changed: &Arc<Notify>) {
        let wanted = references(pod);
        held.held.retain(|key, _| wanted.contains(key));
        for (kind, name) in wanted {
            let slot = (kind, name.clone());
            held.held.entry(slot).or_insert_with(|| self.watch(kind, PodExt::namespace(pod), &name, changed));
        }
    }

    fn watch(&self, kind: ObjectKind, namespace: &str, name: &str, changed: &Arc<Notify>) -> Arc<Watched> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        let mut watched = self.watched.lock();
        if let Some(live) = watched.get(&key).and_then(Weak::upgrade) {
            live.listeners.lock().push(Arc::downgrade(changed));
            return live;
        }
        watched.retain(|_, w| w.strong_count() > 0);
        let (tx, rx) = watch::channel(State::Pending);
        let listeners = Arc::new(Mutex::new(vec![Arc::downgrade(changed)]));
        let client = self.client.clone();
        let publisher = Publisher { tx, listeners: listeners.clone() };
        let task = match kind {
            ObjectKind::ConfigMap => tokio::spawn(follow(
                Api::<ConfigMap>::namespaced(client, namespace),
                key.2.clone(),
                publisher,
                Object::ConfigMap,
            )),
            ObjectKind::Secret => tokio::spawn(follow(
                Api::<Secret>::namespaced(client, namespace),
                key.2.clone(),
                publisher,
                Object::Secret,
            )),
        };
        let live = Arc::new(Watched { state: rx, listeners, task: task.abort_handle() });
        watched.insert(key, Arc::downgrade(&live));
        live
    }
}

struct Publisher {
    tx: watch::Sender<State>,
    listeners: Arc<Mutex<Vec<Weak<Notify>>>>,
}

impl Publisher {
    fn publish(&self, result: Knowledge) {
        let changed = self.tx.send_if_modified(|state| {
            let same = match (&*state, &result) {
                (State::Known(Ok(Some(a))), Ok(Some(b))) => a == b,
                (State::Known(Ok(None)), Ok(None)) => true,
                // A watch that fails says nothing new about an object that is known.
                (State::Known(Ok(_)), Err(_)) => true,
                _ => false,
            };
            if !same {
                *state = State::Known(result);
            }
            !same
        });
        if changed {
            self.listeners.lock().retain(|l| l.upgrade().inspect(|n| n.notify_one()).is_some());
        }
    }
}

async fn follow<K>(api: Api<K>, name: String, publisher: Publisher, wrap: fn(K) -> Object)
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut stream = std::pin::pin!(watcher::watch_object(api, &name));
    let mut failures = 0;
    while let Some(event) = stream.next().await {
        match event {
            Ok(object) => {
                failures = 0;
                publisher.publish(Ok(object.map(|o| Arc::new(wrap(o)))));
            }
            Err(error) => {
                // The first refusals are given another moment before a pod hears of them.
                if failures >= 2 {
                    publisher.publish(Err(error.to_string()));
                }
                tokio::time::sleep(RETRY[failures.min(RETRY.len() - 1)]).await;
                failures += 1;
            }
        }
    }
}
