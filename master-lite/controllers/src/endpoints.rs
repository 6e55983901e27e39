//! The legacy Endpoints object of each service with a selector, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use keelson_client::{EventType, Informer, Key, Recorder, WorkQueue, meta, pods, run_workers};
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::context::{Context, Task};
use crate::endpointslice::{endpoints as slice, services_of_change};
use crate::error::Result;

const NAME: &str = "endpoint-controller";
const WORKERS: usize = 5;
/// Addresses in one object at most; beyond them it is cut and annotated so.
const MOST: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        recorder: context.recorder(NAME, NAME),
        services: context.informers.services.clone(),
        endpoints: context.informers.endpoints.clone(),
        pods: context.informers.pods.clone(),
        queue: WorkQueue::new(),
    });
    let on_service = controller.clone();
    controller.services.on_change(move |delta| on_service.queue.add(Key::of(&**delta.object())));
    let on_endpoints = controller.clone();
    controller.endpoints.on_change(move |delta| on_endpoints.queue.add(Key::of(&**delta.object())));
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| {
        for service in services_of_change(&on_pod.services, delta) {
            on_pod.queue.add(service);
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.services.synced().await;
            controller.endpoints.synced().await;
            controller.pods.synced().await;
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

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    services: Arc<Informer<Service>>,
    endpoints: Arc<Informer<Endpoints>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let present = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            // Only what a controller has made: a user's Endpoints without a service are the user's.
            let ours = present.is_some_and(|e| meta::label(&e.metadata, MANAGED_BY_LABEL) == Some(NAME));
            return match ours {
                false => Ok(()),
                true => match api.delete(&key.name, &DeleteParams::default()).await {
                    Err(error) if !meta::is_not_found(&error) => Err(error.into()),
                    _ => Ok(()),
                },
            };
        };
        let Some(selector) = slice::selector(&service) else { return Ok(()) };
        let pods: Vec<Arc<Pod>> = self
            .pods
            .list_in(&key.namespace)
            .into_iter()
            .filter(|pod| selector.matches(pod.metadata.labels.as_ref()))
            .collect();
        let target = wanted(&service, &pods, present.as_deref());
        if present.as_deref() == Some(&target) {
            return Ok(());
        }
        let (write, reason) = match &present {
            None => (api.create(&PostParams::default(), &target).await, "FailedToCreateEndpoint"),
            Some(_) => {
                (api.replace(&key.name, &PostParams::default(), &target).await, "FailedToUpdateEndpoint")
            }
        };
        match write {
            Ok(_) => Ok(()),
            Err(error) if meta::is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                if !meta::is_conflict(&error) && !meta::is_already_exists(&error) {
                    let verb =
                        if present.is_none() { "create endpoint for service" } else { "update endpoint" };
                    let message = format!("Failed to {verb} {key}: {}", meta::message(&error));
                    self.recorder.event(&target, EventType::Warning, reason, message);
                }
                Err(error.into())
            }
        }
    }
}

/// The Endpoints that the service should have, made from those it has.
fn wanted(service: &Service, pods: &[Arc<Pod>], present: Option<&Endpoints>) -> Endpoints {
    let mut target = present.cloned().unwrap_or_default();
    target.metadata.name = service.metadata.name.clone();
    target.metadata.namespace = service.metadata.namespace.clone();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if slice::is_headless(service) {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(MANAGED_BY_LABEL.into(), NAME.into());
    target.metadata.labels = Some(labels);
    let mut subsets = subsets(service, pods);
    let cut = truncate(&mut subsets, MOST);
    target.subsets = (!subsets.is_empty()).then_some(subsets);
    let mut annotations = target.metadata.annotations.take().unwrap_or_default();
    annotations.remove(OVER_CAPACITY);
    if cut {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    }
    target.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    target
}

/// One subset for each distinct list of ports (`RepackSubsets`), in a fixed order.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let ipv6 = spec.ip_families.as_ref().and_then(|f| f.first()).is_some_and(|f| f == "IPv6");
    let service_ports = spec.ports.unwrap_or_default();
    // By the address and its state: which ports it has.
    let mut by_ports: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for pod in pods {
        let keeps = !pods::is_terminating(pod) || slice::publishes_not_ready(service);
        let ip = pods::ips(pod).into_iter().find(|ip| ip.contains(':') == ipv6);
        let Some(ip) = ip.filter(|_| keeps && !pods::is_terminal(pod)) else { continue };
        let ports: Vec<EndpointPort> = service_ports
            .iter()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone(),
                    port: slice::find_port(pod, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && !(service_ports.is_empty() && slice::is_headless(service)) {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: slice::hostname(service, pod),
            node_name: pods::node_name(pod).map(str::to_owned),
            target_ref: Some(slice::target(pod)),
        };
        let key = serde_json::to_string(&ports).unwrap_or_default();
        let subset = by_ports.entry(key).or_default();
        subset.ports = (!ports.is_empty()).then_some(ports);
        let ready = slice::publishes_not_ready(service) || pods::is_ready(pod);
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let mut subsets: Vec<EndpointSubset> = by_ports.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    subsets
}

/// Cuts to `most` addresses, ready ones first; whether anything was cut.
fn truncate(subsets: &mut Vec<EndpointSubset>, most: usize) -> bool {
    let mut left = most;
    let mut cut = false;
    let mut keep = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            cut |= addresses.len() > left;
            addresses.truncate(left);
            left -= addresses.len();
            if addresses.is_empty() {
                *list = None;
            }
        }
    };
    subsets.iter_mut().for_each(|subset| keep(&mut subset.addresses));
    subsets.iter_mut().for_each(|subset| keep(&mut subset.not_ready_addresses));
    subsets.retain(|subset| subset.addresses.is_some() || subset.not_ready_addresses.is_some());
    cut
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ip: &str, ready: bool) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": ip},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn service() -> Service {
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
        serde_json::from_value(service).unwrap()
    }

    #[test]
    fn ready_and_not_ready_share_a_subset() {
        let target = wanted(&service(), &[pod("10.0.0.2", false), pod("10.0.0.1", true)], None);
        let subsets = target.subsets.clone().unwrap();
        assert_eq!(subsets.len(), 1);
        assert_eq!(subsets[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip, "10.0.0.2");
        let again = wanted(&service(), &[pod("10.0.0.1", true), pod("10.0.0.2", false)], Some(&target));
        assert_eq!(again, target);
    }

    #[test]
    fn too_many_are_cut_and_that_is_said() {
        let pods: Vec<_> = (0..1005u32)
            .map(|n| pod(&std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(), n % 2 == 0))
            .collect();
        let target = wanted(&service(), &pods, None);
        let subset = &target.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), 503);
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 497);
        assert_eq!(meta::annotation(&target.metadata, OVER_CAPACITY), Some("truncated"));
    }
}
