//! Endpoint slices: the pods behind each service.
//!
//! [`endpoints`] says which pods are endpoints and how they are (also for the legacy Endpoints), [`reconcile`] brings
//! the slices there with as few writes as can be. A pod's change reaches its slices without any batching: how long a
//! rollout sends requests to a pod that is going depends on it.

pub mod endpoints;
pub mod mirroring;
pub mod reconcile;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::{
    Delta, EventType, Informer, Key, Recorder, Selector, WorkQueue, meta, pods, run_workers,
};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::context::{Context, Task};
use crate::error::{Error, Result};
use reconcile::{Plan, SliceOwner};

/// What `endpointslice.kubernetes.io/managed-by` says of our slices.
pub const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
const NAME: &str = "endpointslice-controller";
const WORKERS: usize = 5;
/// Own writes not seen for so long have been missed.
const UNSEEN: Duration = Duration::from_secs(5);

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        recorder: context.recorder(NAME, "endpoint-slice-controller"),
        services: context.informers.services.clone(),
        slices: context.informers.endpoint_slices.clone(),
        pods: context.informers.pods.clone(),
        nodes: context.informers.nodes.clone(),
        queue: WorkQueue::new(),
        writes: OwnWrites::default(),
    });
    let on_service = controller.clone();
    controller.services.on_change(move |delta| on_service.queue.add(Key::of(&**delta.object())));
    let on_slice = controller.clone();
    controller.slices.on_change(move |delta| {
        let slice = delta.object();
        if reconcile::managed_by(slice) == Some(MANAGED_BY)
            && let Some(service) = reconcile::service_of(slice)
        {
            on_slice.writes.seen(&service, slice);
            on_slice.queue.add(service);
        }
    });
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| {
        for service in services_of_change(&on_pod.services, delta) {
            on_pod.queue.add(service);
        }
    });
    let on_node = controller.clone();
    controller.nodes.on_change(move |delta| {
        // Only a node's zone is in the slices.
        let zone = |node: &Node| meta::label(&node.metadata, endpoints::ZONE_LABEL).map(str::to_owned);
        if delta.old().is_none_or(|old| zone(old) != zone(delta.object())) {
            for service in on_node.services.list() {
                on_node.queue.add(Key::of(&*service));
            }
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.services.synced().await;
            controller.slices.synced().await;
            controller.pods.synced().await;
            controller.nodes.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

/// The services whose endpoints a pod's change concerns.
pub fn services_of_change(services: &Informer<Service>, delta: &Delta<Pod>) -> BTreeSet<Key> {
    let pod = delta.object();
    let labels_changed = delta.old().is_some_and(|old| old.metadata.labels != pod.metadata.labels);
    let changed = delta.old().is_none_or(|old| endpoints::differs(old, pod));
    let mut found = BTreeSet::new();
    if !changed && !labels_changed {
        return found;
    }
    for service in services.list_in(meta::namespace(&pod.metadata)) {
        let Some(selector) = endpoints::selector(&service) else { continue };
        let before = delta.old().is_some_and(|old| selector.matches(old.metadata.labels.as_ref()));
        if before || selector.matches(pod.metadata.labels.as_ref()) {
            found.insert(Key::of(&*service));
        }
    }
    found
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    services: Arc<Informer<Service>>,
    slices: Arc<Informer<EndpointSlice>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    queue: Arc<WorkQueue<Key>>,
    writes: OwnWrites,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        let Some(service) = self.services.get(key) else {
            // The garbage collector takes the slices, for the service owns them.
            self.writes.forget(key);
            return Ok(());
        };
        let Some(selector) = endpoints::selector(&service) else { return Ok(()) };
        if self.writes.is_behind(key) {
            // A pass on old slices would make them twice. The watch wakes us with what is missing.
            self.queue.add_after(key.clone(), UNSEEN);
            return Ok(());
        }
        let present = slices_of(&self.slices, &service, MANAGED_BY);
        let pods: Vec<Arc<Pod>> = self
            .pods
            .list_in(&key.namespace)
            .into_iter()
            .filter(|pod| selector.matches(pod.metadata.labels.as_ref()))
            .collect();
        let node = |name: &str| self.nodes.get(&Key::cluster(name));
        let groups = endpoints::groups(&service, &pods, &node);
        let owner = SliceOwner::of_service(&service, MANAGED_BY);
        let plan = reconcile::plan(&owner, &groups, &present);
        apply(&self.client, key, plan, &self.writes, &self.slices).await.inspect_err(|error| {
            if !error.is_namespace_terminating() && !matches!(error, Error::Api(e) if meta::is_conflict(e)) {
                let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
                self.recorder.event(&*service, EventType::Warning, "FailedToUpdateEndpointSlices", message);
            }
        })
    }
}

/// The slices of `service` that `manager` manages.
pub fn slices_of(
    slices: &Informer<EndpointSlice>,
    service: &Service,
    manager: &str,
) -> Vec<Arc<EndpointSlice>> {
    let name = meta::name(&service.metadata);
    let mut owned = slices.controlled_by(meta::uid(&service.metadata));
    owned.retain(|s| {
        reconcile::managed_by(s) == Some(manager)
            && meta::label(&s.metadata, reconcile::SERVICE_LABEL) == Some(name)
            && s.metadata.deletion_timestamp.is_none()
    });
    owned
}

/// Carries out a plan. New slices come first and old ones go last, so that no endpoint is missing in between.
pub async fn apply(
    client: &kube::Client,
    service: &Key,
    plan: Plan,
    writes: &OwnWrites,
    cache: &Informer<EndpointSlice>,
) -> Result {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &service.namespace);
    let params = PostParams::default();
    for slice in plan.create {
        match api.create(&params, &slice).await {
            Ok(made) => writes.wrote(service, &made, cache),
            Err(error) if meta::is_namespace_terminating(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    for slice in plan.update {
        let written = api.replace(meta::name(&slice.metadata), &params, &slice).await?;
        writes.wrote(service, &written, cache);
    }
    for name in plan.delete {
        match api.delete(&name, &DeleteParams::default()).await {
            Err(error) if !meta::is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Versions that we have written and the cache has not shown yet, by service and slice.
#[derive(Default)]
pub struct OwnWrites(Mutex<HashMap<Key, SliceVersions>>);

/// The version that was written of each slice, and when.
type SliceVersions = HashMap<String, (u64, Instant)>;

impl OwnWrites {
    fn wrote(&self, service: &Key, slice: &EndpointSlice, cache: &Informer<EndpointSlice>) {
        let entry = (meta::revision(&slice.metadata), Instant::now());
        let name = meta::name(&slice.metadata).to_owned();
        self.0.lock().entry(service.clone()).or_default().insert(name, entry);
        // The watch may have been faster than the answer. Looking after noting leaves no gap: either the cache has it
        // now, or the watch finds the note.
        if let Some(cached) = cache.get(&Key::of(slice)) {
            self.seen(service, &cached);
        }
    }

    /// The watch has brought this version of a slice.
    pub fn seen(&self, service: &Key, slice: &EndpointSlice) {
        let mut all = self.0.lock();
        let Some(writes) = all.get_mut(service) else { return };
        let name = meta::name(&slice.metadata);
        if writes.get(name).is_some_and(|(revision, _)| meta::revision(&slice.metadata) >= *revision) {
            writes.remove(name);
        }
        if writes.is_empty() {
            all.remove(service);
        }
    }

    /// Whether the cache lacks a write of ours. What the watch never brings is not waited for very long.
    pub fn is_behind(&self, service: &Key) -> bool {
        let mut all = self.0.lock();
        let Some(writes) = all.get_mut(service) else { return false };
        writes.retain(|_, (_, at)| at.elapsed() < UNSEEN);
        !writes.is_empty()
    }

    /// The service is gone.
    pub fn forget(&self, service: &Key) {
        self.0.lock().remove(service);
    }
}

/// Whether the pod may be behind a service at all, as far as its own state goes.
fn is_endpoint(pod: &Pod) -> bool {
    !pods::is_terminal(pod) && !pods::ips(pod).is_empty()
}

/// The selector of a service; none if it has none, or no selector counts (ExternalName).
fn selector_of(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    // An empty selector selects nothing here: the API server would not take it as "all".
    spec.selector.as_ref().filter(|s| !s.is_empty()).map(Selector::from_map)
}
