//! Mirrors Endpoints that users make for services without a selector into slices, for nothing else reads
//! Endpoints any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use keelson_client::{Informer, Key, WorkQueue, meta, run_workers};
use kube::Api;
use kube::api::DeleteParams;

use super::endpoints::Group;
use super::reconcile::{self, SliceOwner};
use super::{OwnWrites, apply};
use crate::context::{Context, Task};
use crate::error::Result;

/// What `endpointslice.kubernetes.io/managed-by` says of these slices.
pub const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
const NAME: &str = "endpointslicemirroring-controller";
/// Says that these Endpoints are not to be mirrored.
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are mirrored at most.
const MOST: usize = 1000;

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        services: context.informers.services.clone(),
        endpoints: context.informers.endpoints.clone(),
        slices: context.informers.endpoint_slices.clone(),
        queue: WorkQueue::new(),
        writes: OwnWrites::default(),
    });
    let on_service = controller.clone();
    controller.services.on_change(move |delta| on_service.queue.add(Key::of(&**delta.object())));
    let on_endpoints = controller.clone();
    controller.endpoints.on_change(move |delta| on_endpoints.queue.add(Key::of(&**delta.object())));
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
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.services.synced().await;
            controller.endpoints.synced().await;
            controller.slices.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, 2, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

struct Controller {
    client: kube::Client,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    slices: Arc<Informer<EndpointSlice>>,
    queue: Arc<WorkQueue<Key>>,
    writes: OwnWrites,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        if self.writes.is_behind(key) {
            self.queue.add_after(key.clone(), super::UNSEEN);
            return Ok(());
        }
        let present: Vec<Arc<EndpointSlice>> = self
            .slices
            .list_in(&key.namespace)
            .into_iter()
            .filter(|s| reconcile::managed_by(s) == Some(MANAGED_BY))
            .filter(|s| reconcile::service_of(s).as_ref() == Some(key))
            .collect();
        let wanted = self.endpoints.get(key).filter(|endpoints| {
            self.services.get(key).is_some_and(|service| should_mirror(&service, endpoints))
        });
        if let Some(endpoints) = wanted {
            let groups = groups(endpoints.subsets.as_deref().unwrap_or_default());
            let owner = SliceOwner::of_endpoints(&endpoints, MANAGED_BY);
            let plan = reconcile::plan(&owner, &groups, &present);
            return apply(&self.client, key, plan, &self.writes, &self.slices).await;
        }
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for slice in present {
            match api.delete(meta::name(&slice.metadata), &DeleteParams::default()).await {
                Err(error) if !meta::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

fn should_mirror(service: &Service, endpoints: &Endpoints) -> bool {
    let has_selector = service.spec.as_ref().is_some_and(|s| s.selector.is_some());
    !has_selector
        && meta::label(&endpoints.metadata, SKIP_LABEL) != Some("true")
        && meta::annotation(&endpoints.metadata, LEADER_ANNOTATION).is_none()
}

/// The slices' content: subsets by family and ports.
fn groups(subsets: &[EndpointSubset]) -> Vec<Group> {
    let mut found: BTreeMap<(String, String), Group> = BTreeMap::new();
    for subset in subsets {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let text = serde_json::to_string(&ports).unwrap_or_default();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready).take(MOST) {
            let family = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            let group = found.entry((family.to_owned(), text.clone())).or_insert_with(|| Group {
                address_type: family.into(),
                ports: ports.clone(),
                endpoints: Vec::new(),
            });
            group.endpoints.push(endpoint(address, ready));
        }
    }
    found.into_values().collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}
