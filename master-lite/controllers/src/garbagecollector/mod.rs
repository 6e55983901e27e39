//! The garbage collector: what is owned goes with its owners.
//!
//! Metadata-only watches over everything that can be deleted keep a [`graph`]. Its hints are cheap and may be old;
//! before anything is deleted, the object and each of its owners are read from the server.

pub mod graph;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{Delta, EventType, Informer, Recorder, WorkQueue, meta, run_workers};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, Task};
use crate::discovery::{Served, discover};
use crate::error::{Error, Result};
use graph::{FOREGROUND, Graph, Identity, ORPHAN, Work};

const NAME: &str = "garbage-collector-controller";
const ACCOUNT: &str = "generic-garbage-collector";
const WORKERS: usize = 20;
/// How often new kinds of resources are looked for.
const REDISCOVER: Duration = Duration::from_secs(30);
/// How long the first lists may take before work begins without those that lag.
const FIRST_SYNC: Duration = Duration::from_secs(30);
/// Owners known to be gone that are remembered.
const ABSENT: usize = 500;

type Metadata = PartialObjectMeta<DynamicObject>;

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let collector = Arc::new(Collector {
        client: context.client(ACCOUNT),
        recorder: context.recorder(ACCOUNT, NAME),
        graph: Mutex::default(),
        deletions: WorkQueue::new(),
        orphans: WorkQueue::new(),
        kinds: RwLock::default(),
        absent: Mutex::default(),
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let monitors = tokio::spawn(collector.clone().monitor(shutdown.clone()));
        let (deletions, orphans) = (collector.deletions.clone(), collector.orphans.clone());
        let (deleter, orphaner) = (collector.clone(), collector);
        let delete = run_workers(NAME, deletions, WORKERS, shutdown.clone(), move |uid| {
            let collector = deleter.clone();
            async move { collector.attempt_to_delete(&uid).await }
        });
        let orphan = run_workers(NAME, orphans, WORKERS, shutdown, move |uid| {
            let collector = orphaner.clone();
            async move { collector.orphan_dependents(&uid).await }
        });
        tokio::join!(delete, orphan);
        monitors.abort();
    })
}

struct Collector {
    client: Client,
    recorder: Recorder,
    graph: Mutex<Graph>,
    deletions: Arc<WorkQueue<String>>,
    orphans: Arc<WorkQueue<String>>,
    /// How to reach a kind: by API version and kind, and by group and kind for versions that are not preferred.
    kinds: RwLock<HashMap<(String, String), Served>>,
    absent: Mutex<Absent>,
}

/// Owners that were asked for and are not there. A uid never comes back.
#[derive(Default)]
struct Absent {
    known: HashSet<Identity>,
    order: VecDeque<Identity>,
}

impl Absent {
    fn insert(&mut self, owner: Identity) {
        if self.known.insert(owner.clone()) {
            self.order.push_back(owner);
        }
        if self.order.len() > ABSENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// What an owner reference leads to.
enum Owner {
    /// An owner that stays.
    Solid,
    /// Nothing.
    Dangling,
    /// An owner that waits for its dependents to go.
    Waiting,
}

impl Collector {
    /// Watches every resource that can be watched and deleted; new ones as they appear.
    async fn monitor(self: Arc<Self>, shutdown: CancellationToken) {
        let mut watched: HashMap<String, CancellationToken> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            match discover(&self.client).await {
                Ok((served, failures)) => {
                    for failure in &failures {
                        tracing::debug!(failure, "discovery failed for a group");
                    }
                    self.learn(&served);
                    let wanted: Vec<Served> = served.into_iter().filter(is_collectable).collect();
                    if failures.is_empty() {
                        let names: HashSet<String> = wanted.iter().map(|s| key(&s.resource)).collect();
                        watched.retain(|name, token| {
                            let keep = names.contains(name);
                            if !keep {
                                token.cancel();
                            }
                            keep
                        });
                    }
                    let mut first = Vec::new();
                    for served in wanted {
                        let name = key(&served.resource);
                        if let Entry::Vacant(new) = watched.entry(name) {
                            let token = new.insert(shutdown.child_token()).clone();
                            first.push(self.clone().watch(&served.resource, token, &mut tasks));
                        }
                    }
                    let synced = async {
                        for informer in &first {
                            informer.synced().await;
                        }
                    };
                    // Kinds are independent of each other: nothing is deleted because a list is not there yet,
                    // for owners are read from the server. So lagging lists only delay.
                    let _ = tokio::time::timeout(FIRST_SYNC, synced).await;
                }
                Err(error) => {
                    tracing::debug!(error = %meta::message(&error), "discovery failed, will retry");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(REDISCOVER) => {}
            }
        }
    }

    fn learn(&self, served: &[Served]) {
        let mut kinds = self.kinds.write();
        kinds.clear();
        for one in served {
            let resource = &one.resource;
            kinds.insert((resource.api_version.clone(), resource.kind.clone()), one.clone());
            kinds.insert((format!("{}/*", resource.group), resource.kind.clone()), one.clone());
        }
    }

    fn watch(
        self: Arc<Self>,
        resource: &ApiResource,
        shutdown: CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Arc<Informer<Metadata>> {
        // Owners, finalizers and times are all that is read; this cache holds every object of the cluster.
        let informer = Informer::<Metadata>::with_trim(|object| {
            object.metadata.labels = None;
            object.metadata.annotations = None;
        });
        let api: Api<Metadata> = Api::all_with(self.client.clone(), resource);
        let (api_version, kind) = (resource.api_version.clone(), resource.kind.clone());
        informer.on_change(move |delta| {
            let work = match delta {
                Delta::Deleted(object) => self.graph.lock().remove(meta::uid(&object.metadata)),
                other => self.graph.lock().observe(&api_version, &kind, &other.object().metadata),
            };
            self.enqueue(work);
        });
        tasks.spawn(informer.clone().run(api, watcher::Config::default().any_semantic(), shutdown));
        informer
    }

    fn enqueue(&self, work: Vec<Work>) {
        for work in work {
            match work {
                Work::Delete(uid) => self.deletions.add(uid),
                Work::Orphan(uid) => self.orphans.add(uid),
            }
        }
    }

    fn resolve(&self, api_version: &str, kind: &str) -> Option<Served> {
        let kinds = self.kinds.read();
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        kinds
            .get(&(api_version.to_owned(), kind.to_owned()))
            .or_else(|| kinds.get(&(format!("{group}/*"), kind.to_owned())))
            .cloned()
    }

    fn api(&self, identity: &Identity) -> Result<Api<Metadata>> {
        let Some(served) = self.resolve(&identity.api_version, &identity.kind) else {
            return Err(Error::Pending(format!(
                "no matches for kind {:?} in version {:?}",
                identity.kind, identity.api_version
            )));
        };
        Ok(if served.namespaced {
            Api::namespaced_with(self.client.clone(), &identity.namespace, &served.resource)
        } else {
            Api::all_with(self.client.clone(), &served.resource)
        })
    }

    /// The object, if it is still the one that the uid names.
    async fn fetch(&self, identity: &Identity) -> Result<Option<ObjectMeta>> {
        let found = self.api(identity)?.get_opt(&identity.name).await?;
        Ok(found.map(|object| object.metadata).filter(|found| meta::uid(found) == identity.uid))
    }

    async fn attempt_to_delete(&self, uid: &str) -> Result {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        if node.deleting && !node.deleting_dependents {
            // It goes by itself; its dependents are looked at when it has gone.
            return Ok(());
        }
        let Some(latest) = self.fetch(&node.identity).await? else {
            // If a watch has seen it, the watch will say that it is gone.
            let work = self.graph.lock().remove_unobserved(uid);
            self.enqueue(work);
            return Ok(());
        };
        if node.deleting_dependents {
            return self.finish_foreground(&node.identity, &latest).await;
        }
        let owners = latest.owner_references.clone().unwrap_or_default();
        if owners.is_empty() {
            return Ok(());
        }
        let (mut solid, mut dangling, mut waiting) = (0, Vec::new(), Vec::new());
        for owner in &owners {
            match self.classify(&node.identity, owner).await? {
                Owner::Solid => solid += 1,
                Owner::Dangling => dangling.push(owner.uid.clone()),
                Owner::Waiting => waiting.push(owner.uid.clone()),
            }
        }
        if solid > 0 {
            let gone: Vec<String> = dangling.into_iter().chain(waiting).collect();
            return if gone.is_empty() { Ok(()) } else { self.disown(&node.identity, &latest, &gone).await };
        }
        let dependents = self.graph.lock().dependents(uid);
        if !waiting.is_empty() && !dependents.is_empty() {
            if dependents.iter().any(|d| d.deleting_dependents) {
                // Perhaps a circle: everyone would wait for the next. Let no one wait for this one.
                self.unblock(&node.identity, &latest).await?;
            }
            return self.delete(&node.identity, &latest, PropagationPolicy::Foreground).await;
        }
        let finalizers = latest.finalizers.clone().unwrap_or_default();
        let policy = if finalizers.iter().any(|f| f == ORPHAN) {
            PropagationPolicy::Orphan
        } else if finalizers.iter().any(|f| f == FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        self.delete(&node.identity, &latest, policy).await
    }

    async fn classify(&self, item: &Identity, owner: &OwnerReference) -> Result<Owner> {
        let Some(served) = self.resolve(&owner.api_version, &owner.kind) else {
            // Its definition may come back: what can't be asked for is not known to be gone.
            return Err(Error::Pending(format!("no matches for kind {:?}", owner.kind)));
        };
        if served.namespaced && item.namespace.is_empty() {
            let about = k8s_openapi::api::core::v1::ObjectReference {
                api_version: Some(item.api_version.clone()),
                kind: Some(item.kind.clone()),
                name: Some(item.name.clone()),
                uid: Some(item.uid.clone()),
                ..Default::default()
            };
            let message = format!(
                "ownerRef [{}/{}, namespace: , name: {}, uid: {}] does not exist in namespace \"\"",
                owner.api_version, owner.kind, owner.name, owner.uid
            );
            self.recorder.event_on(about, EventType::Warning, "OwnerRefInvalidNamespace", message);
            return Ok(Owner::Solid);
        }
        let identity = Identity {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            namespace: if served.namespaced { item.namespace.clone() } else { String::new() },
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        };
        if self.absent.lock().known.contains(&identity) {
            return Ok(Owner::Dangling);
        }
        match self.fetch(&identity).await? {
            None => {
                self.absent.lock().insert(identity);
                Ok(Owner::Dangling)
            }
            Some(found) => {
                let waits = found.deletion_timestamp.is_some()
                    && found.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                Ok(if waits { Owner::Waiting } else { Owner::Solid })
            }
        }
    }

    /// Lets an object go that waits for its dependents, when none of those that block is left.
    async fn finish_foreground(&self, item: &Identity, latest: &ObjectMeta) -> Result {
        let dependents = self.graph.lock().dependents(&item.uid);
        let blocks = |node: &graph::Node| {
            node.owners.iter().any(|o| o.uid == item.uid && o.block_owner_deletion == Some(true))
        };
        let blocking: Vec<_> = dependents.iter().filter(|node| blocks(node)).collect();
        if blocking.is_empty() {
            return self.drop_finalizer(item, latest, FOREGROUND).await;
        }
        for dependent in blocking.iter().filter(|node| !node.deleting_dependents) {
            self.deletions.add(dependent.identity.uid.clone());
        }
        Ok(())
    }

    async fn orphan_dependents(&self, uid: &str) -> Result {
        let (node, dependents) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(uid).cloned() else { return Ok(()) };
            let dependents = graph.dependents(uid);
            (node, dependents)
        };
        for dependent in dependents {
            if let Some(latest) = self.fetch(&dependent.identity).await? {
                self.disown(&dependent.identity, &latest, std::slice::from_ref(&node.identity.uid)).await?;
            }
        }
        match self.fetch(&node.identity).await? {
            Some(latest) => self.drop_finalizer(&node.identity, &latest, ORPHAN).await,
            None => Ok(()),
        }
    }

    async fn disown(&self, item: &Identity, latest: &ObjectMeta, owners: &[String]) -> Result {
        let present = latest.owner_references.clone().unwrap_or_default();
        let kept: Vec<_> = present.iter().filter(|o| !owners.contains(&o.uid)).cloned().collect();
        if kept.len() == present.len() {
            return Ok(());
        }
        self.patch(item, latest, json!({"ownerReferences": kept})).await
    }

    async fn unblock(&self, item: &Identity, latest: &ObjectMeta) -> Result {
        let mut owners = latest.owner_references.clone().unwrap_or_default();
        owners.iter_mut().for_each(|owner| owner.block_owner_deletion = Some(false));
        self.patch(item, latest, json!({"ownerReferences": owners})).await
    }

    async fn drop_finalizer(&self, item: &Identity, latest: &ObjectMeta, finalizer: &str) -> Result {
        let present = latest.finalizers.clone().unwrap_or_default();
        let kept: Vec<_> = present.iter().filter(|f| *f != finalizer).collect();
        if kept.len() == present.len() {
            return Ok(());
        }
        self.patch(item, latest, json!({"finalizers": kept})).await
    }

    /// Patches metadata of the very version that was read.
    async fn patch(&self, item: &Identity, latest: &ObjectMeta, mut fields: serde_json::Value) -> Result {
        fields["uid"] = json!(latest.uid);
        fields["resourceVersion"] = json!(latest.resource_version);
        let patch = Patch::Merge(json!({"metadata": fields}));
        match self.api(item)?.patch(&item.name, &PatchParams::default(), &patch).await {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Deletes the very version whose owners were looked at.
    async fn delete(&self, item: &Identity, latest: &ObjectMeta, policy: PropagationPolicy) -> Result {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: latest.uid.clone(),
                resource_version: latest.resource_version.clone(),
            }),
            ..Default::default()
        };
        match self.api(item)?.delete(&item.name, &params).await {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn key(resource: &ApiResource) -> String {
    format!("{}/{}", resource.api_version, resource.plural)
}

fn is_collectable(served: &Served) -> bool {
    // Events are many, expire by themselves, and own and are owned by nothing.
    served.supports(&["delete", "list", "watch"]) && served.resource.kind != "Event"
}
