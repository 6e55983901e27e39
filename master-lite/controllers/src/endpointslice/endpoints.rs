//! Which pods are endpoints of a service, on which ports, and in what state.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::{Selector, meta, pods};

use super::is_endpoint;

/// The node label that says where a node is.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Endpoints that have the same ports, of one address family.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    /// Their ports.
    pub ports: Vec<EndpointPort>,
    /// The endpoints, by address.
    pub endpoints: Vec<Endpoint>,
}

/// The service's selector, if its endpoints are ours to keep.
pub fn selector(service: &Service) -> Option<Selector> {
    super::selector_of(service)
}

/// Whether a pod's change concerns its endpoints (`podEndpointsChanged`).
pub fn differs(old: &Pod, new: &Pod) -> bool {
    let name = |pod: &Pod| pod.spec.as_ref().map(|s| (s.hostname.clone(), s.subdomain.clone()));
    pods::is_ready(old) != pods::is_ready(new)
        || pods::is_terminating(old) != pods::is_terminating(new)
        || pods::is_terminal(old) != pods::is_terminal(new)
        || pods::ips(old) != pods::ips(new)
        || pods::node_name(old) != pods::node_name(new)
        || old.metadata.uid != new.metadata.uid
        || name(old) != name(new)
}

/// The address families of a service: its `ipFamilies`, or IPv4.
fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".into()] } else { families }
}

fn is_of_family(ip: &str, family: &str) -> bool {
    ip.contains(':') == (family == "IPv6")
}

/// Whether the service has no cluster IP.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The port of `pod` that a service port leads to: by number, or by a container port's name.
pub fn find_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

fn ports_of(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(find_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// The endpoint's host name in DNS: for a pod that names this headless service as its subdomain.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|h| !h.is_empty())?;
    let is_ours = spec.subdomain.as_deref() == Some(meta::name(&service.metadata));
    (is_ours && meta::namespace(&pod.metadata) == meta::namespace(&service.metadata)).then_some(hostname)
}

/// Whether not-ready pods count as ready for this service.
pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false)
}

/// The pod's reference in an endpoint.
pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// All endpoints of a service, grouped by address family and ports. A group without endpoints stands for a service
/// that has none: upstream keeps one slice without endpoints then.
pub fn groups(service: &Service, pods: &[Arc<Pod>], node: &dyn Fn(&str) -> Option<Arc<Node>>) -> Vec<Group> {
    let families = families(service);
    let mut found: BTreeMap<(String, String), Group> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_endpoint(pod)) {
        // Deleted by force or not yet started on its node: no one could reach it.
        let ports = ports_of(service, pod);
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        for family in &families {
            let addresses: Vec<String> =
                pods::ips(pod).into_iter().filter(|ip| is_of_family(ip, family)).map(Into::into).collect();
            if addresses.is_empty() {
                continue;
            }
            let key = (family.clone(), serde_json::to_string(&ports).unwrap_or_default());
            let group = found.entry(key).or_insert_with(|| Group {
                address_type: family.clone(),
                ports: ports.clone(),
                endpoints: Vec::new(),
            });
            group.endpoints.push(endpoint(service, pod, addresses, node));
        }
    }
    for family in families {
        if !found.keys().any(|(of, _)| *of == family) {
            let empty = Group { address_type: family.clone(), ..Default::default() };
            found.insert((family, String::new()), empty);
        }
    }
    let mut groups: Vec<Group> = found.into_values().collect();
    for group in &mut groups {
        group.endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        add_hints(service, &mut group.endpoints);
    }
    groups
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    addresses: Vec<String>,
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
) -> Endpoint {
    let (serving, terminating) = (pods::is_ready(pod), pods::is_terminating(pod));
    let node_name = pods::node_name(pod).map(str::to_owned);
    let on = node_name.as_deref().and_then(node);
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        zone: on.and_then(|node| meta::label(&node.metadata, ZONE_LABEL).map(str::to_owned)),
        node_name,
        target_ref: Some(target(pod)),
        ..Default::default()
    }
}

/// `trafficDistribution` names who should use an endpoint: the same zone, or the same node.
fn add_hints(service: &Service, endpoints: &mut [Endpoint]) {
    let wish = service.spec.as_ref().and_then(|s| s.traffic_distribution.as_deref()).unwrap_or_default();
    if !matches!(wish, "PreferClose" | "PreferSameZone" | "PreferSameNode") {
        return;
    }
    for endpoint in endpoints {
        let zone = endpoint
            .zone
            .clone()
            .filter(|_| endpoint.conditions.as_ref().is_some_and(|c| c.ready == Some(true)));
        let Some(zone) = zone else { continue };
        let for_nodes = endpoint
            .node_name
            .clone()
            .filter(|_| wish == "PreferSameNode")
            .map(|name| vec![ForNode { name }]);
        endpoint.hints = Some(EndpointHints { for_zones: Some(vec![ForZone { name: zone }]), for_nodes });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let value = json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec});
        serde_json::from_value(value).unwrap()
    }

    fn pod(ip: &str, ready: bool, extra: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": ip, "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}], "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        for (key, value) in extra.as_object().unwrap() {
            for (inner, value) in value.as_object().unwrap() {
                pod[key][inner] = value.clone();
            }
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[track_caller]
    fn check(service: &Service, pod: Arc<Pod>, ready: bool, serving: bool, terminating: bool) {
        let groups = groups(service, &[pod], &|_| None);
        let conditions = groups[0].endpoints[0].conditions.clone().unwrap();
        let expected = (Some(ready), Some(serving), Some(terminating));
        assert_eq!((conditions.ready, conditions.serving, conditions.terminating), expected);
    }

    #[test]
    fn conditions() {
        let web = service(json!({"ports": [{"port": 80}]}));
        let going = || json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        check(&web, pod("10.0.0.1", true, json!({})), true, true, false);
        check(&web, pod("10.0.0.1", false, json!({})), false, false, false);
        check(&web, pod("10.0.0.1", true, going()), false, true, true);
        let eager = service(json!({"ports": [{"port": 80}], "publishNotReadyAddresses": true}));
        check(&eager, pod("10.0.0.1", false, json!({})), true, false, false);
        check(&eager, pod("10.0.0.1", true, going()), true, true, true);
        let ended = pod("10.0.0.1", false, json!({"status": {"phase": "Succeeded"}}));
        assert!(groups(&web, &[ended], &|_| None)[0].endpoints.is_empty());
    }

    #[test]
    fn ports_by_number_and_name() {
        let pod = pod("10.0.0.1", true, json!({}));
        let port = |target: Value| serde_json::from_value(json!({"port": 80, "targetPort": target})).unwrap();
        assert_eq!(find_port(&pod, &port(json!("http"))), Some(8080));
        assert_eq!(find_port(&pod, &port(json!(9))), Some(9));
        assert_eq!(find_port(&pod, &port(Value::Null)), Some(80));
        assert_eq!(find_port(&pod, &port(json!("nope"))), None);
    }

    #[test]
    fn families_and_host_names() {
        let web = service(json!({"ipFamilies": ["IPv4", "IPv6"], "clusterIP": "None"}));
        let named = pod("fd00::1", true, json!({"spec": {"hostname": "a", "subdomain": "web"}}));
        let groups = groups(&web, &[named], &|_| None);
        assert_eq!(groups.len(), 2);
        assert!(groups[0].endpoints.is_empty());
        assert_eq!(groups[1].endpoints[0].hostname.as_deref(), Some("a"));
    }
}
