//! Services and EndpointSlices to what the maps should hold.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use keelson_ebpf_abi::{Backend, Be16, Be32, FrontendKey};

/// Label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// What the result depends on beside the API objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeContext {
    /// Name of this node, for `internalTrafficPolicy: Local`.
    pub name: String,
    /// Addresses answered on the node itself (cluster DNS): Services with them are left alone.
    pub local: Vec<Ipv4Addr>,
}

/// One Service port: its endpoints, sorted and without doubles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// Endpoints to choose from.
    pub backends: Vec<Backend>,
    /// Session affinity in seconds, 0 for none.
    pub affinity_seconds: u32,
}

/// What the maps should hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MapImage {
    /// Service ports.
    pub targets: Vec<Target>,
    /// Addresses and ports that clients connect to, each with the index of its target.
    pub frontends: BTreeMap<FrontendKey, usize>,
    /// Addresses that belong to Services: a port without a frontend is refused.
    pub claimed: BTreeSet<Be32>,
}

/// Compiles. The order of the input does not matter; where two Services claim one address and port, the older (by
/// creation, then by name) wins, as the apiserver allows it for externalIPs only.
pub fn compile<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeContext,
) -> MapImage {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        if let (Some(namespace), Some(name)) =
            (slice.metadata.namespace.as_deref(), labels.and_then(|labels| labels.get(SERVICE_NAME)))
            && slice.address_type == "IPv4"
        {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut ordered: Vec<&Service> = services.into_iter().collect();
    ordered.sort_by_key(|service| {
        let meta = &service.metadata;
        (meta.creation_timestamp.clone(), meta.namespace.clone(), meta.name.clone())
    });
    let mut image = MapImage::default();
    for service in ordered {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), service.spec.as_ref())
        else {
            continue;
        };
        let slices = by_service.get(&(namespace, name)).map_or(&[][..], Vec::as_slice);
        add_service(&mut image, service, spec, slices, node);
    }
    image
}

fn add_service(
    image: &mut MapImage,
    service: &Service,
    spec: &ServiceSpec,
    slices: &[&EndpointSlice],
    node: &NodeContext,
) {
    let addresses = addresses(service, spec, node);
    if addresses.is_empty() {
        return;
    }
    let affinity_seconds = match spec.session_affinity.as_deref() {
        Some("ClientIP") => spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(DEFAULT_AFFINITY_SECONDS),
        _ => 0,
    };
    for address in &addresses {
        image.claimed.insert(Be32::from_octets(address.octets()));
    }
    let local_only = spec.internal_traffic_policy.as_deref() == Some("Local");
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol(port) else { continue };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let target = image.targets.len();
        let mut used = false;
        for address in &addresses {
            let key = FrontendKey {
                address: Be32::from_octets(address.octets()),
                port: Be16::new(number),
                protocol,
                pad: 0,
            };
            if let std::collections::btree_map::Entry::Vacant(free) = image.frontends.entry(key) {
                free.insert(target);
                used = true;
            }
        }
        if used {
            image.targets.push(Target {
                backends: backends(port, slices, local_only.then_some(&node.name)),
                affinity_seconds,
            });
        }
    }
}

/// Addresses that clients inside the cluster may use: ClusterIPs, externalIPs and load balancer addresses.
fn addresses(service: &Service, spec: &ServiceSpec, node: &NodeContext) -> BTreeSet<Ipv4Addr> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return BTreeSet::new();
    }
    let cluster = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten());
    let external = spec.external_ips.iter().flatten();
    let balancer = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
        .flatten()
        // ipMode Proxy: the balancer itself must see the traffic (KEP-1860).
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    cluster
        .chain(external)
        .chain(balancer)
        .filter_map(|text| text.parse().ok())
        .filter(|address: &Ipv4Addr| !node.local.contains(address) && !address.is_unspecified())
        .collect()
}

fn protocol(port: &ServicePort) -> Option<u8> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        // The socket hooks see SCTP connects only from 6.x on with a protocol of their own; it is not translated.
        _ => None,
    }
}

/// Endpoints of one Service port: the ready ones, or when there are none those that still serve while terminating
/// (KEP-1669).
fn backends(port: &ServicePort, slices: &[&EndpointSlice], only_node: Option<&String>) -> Vec<Backend> {
    let mut ready = BTreeSet::new();
    let mut draining = BTreeSet::new();
    for slice in slices {
        let wanted = port.name.as_deref().unwrap_or_default();
        let numbers = slice
            .ports
            .iter()
            .flatten()
            .filter(|candidate| {
                candidate.name.as_deref().unwrap_or_default() == wanted
                    && candidate.protocol.as_deref().unwrap_or("TCP")
                        == port.protocol.as_deref().unwrap_or("TCP")
            })
            .filter_map(|candidate| u16::try_from(candidate.port?).ok());
        for number in numbers {
            for endpoint in slice.endpoints.iter().flatten() {
                if only_node.is_some_and(|node| endpoint.node_name.as_ref() != Some(node)) {
                    continue;
                }
                let found = endpoint.addresses.iter().filter_map(|text| text.parse::<Ipv4Addr>().ok()).map(
                    |address| Backend {
                        address: Be32::from_octets(address.octets()),
                        port: Be16::new(number),
                        pad: 0,
                    },
                );
                match state(endpoint) {
                    State::Ready => ready.extend(found),
                    State::Draining => draining.extend(found),
                    State::Away => {}
                }
            }
        }
    }
    if ready.is_empty() { draining } else { ready }.into_iter().collect()
}

enum State {
    Ready,
    Draining,
    Away,
}

fn state(endpoint: &Endpoint) -> State {
    let Some(conditions) = &endpoint.conditions else { return State::Ready };
    // Unset means ready, by the API's documentation.
    if conditions.ready.unwrap_or(true) {
        State::Ready
    } else if conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false) {
        State::Draining
    } else {
        State::Away
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, json};

    use super::*;

    fn service(name: &str, spec: serde_json::Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})).unwrap()
    }

    fn slice(service: &str, port: &str, endpoints: serde_json::Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": format!("{service}-x"), "namespace": "d", "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4", "ports": [{"name": port, "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        }))
        .unwrap()
    }

    /// `address:port -> endpoint endpoint …` lines of the image.
    fn check(services: &[Service], slices: &[EndpointSlice], expected: &[&str]) {
        let node = NodeContext { name: "n1".into(), local: vec![Ipv4Addr::new(10, 96, 0, 10)] };
        let image = compile(services, slices, &node);
        let show =
            |address: Be32, port: Be16| format!("{}:{}", Ipv4Addr::from(address.octets()), port.host());
        let lines: Vec<String> = image
            .frontends
            .iter()
            .map(|(key, target)| {
                let backends: Vec<String> =
                    image.targets[*target].backends.iter().map(|b| show(b.address, b.port)).collect();
                format!("{} -> {}", show(key.address, key.port), backends.join(" "))
            })
            .collect();
        assert_eq!(lines, expected);
    }

    fn web() -> Service {
        service(
            "web",
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"], "ports": [{"name": "http", "port": 80}]}),
        )
    }

    #[test]
    fn ready_endpoints_are_chosen() {
        let endpoints = json!([
            {"addresses": ["10.244.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.244.0.4"]},
        ]);
        check(
            &[web()],
            &[slice("web", "http", endpoints)],
            &["10.96.0.20:80 -> 10.244.0.2:8080 10.244.0.4:8080"],
        );
    }

    #[test]
    fn draining_endpoints_serve_when_none_is_ready() {
        let endpoints = json!([
            {"addresses": ["10.244.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.244.0.5"], "conditions": {"ready": false, "serving": false, "terminating": true}},
        ]);
        check(&[web()], &[slice("web", "http", endpoints)], &["10.96.0.20:80 -> 10.244.0.3:8080"]);
    }

    #[test]
    fn a_service_without_endpoints_keeps_its_frontend() {
        check(&[web()], &[], &["10.96.0.20:80 -> "]);
        check(
            &[web()],
            &[slice("web", "other", json!([{"addresses": ["10.244.0.2"]}]))],
            &["10.96.0.20:80 -> "],
        );
    }

    #[test]
    fn local_traffic_policy_and_local_addresses() {
        let mut local = web();
        local.spec.as_mut().unwrap().internal_traffic_policy = Some("Local".into());
        let endpoints = json!([
            {"addresses": ["10.244.0.2"], "nodeName": "n1"}, {"addresses": ["10.244.1.2"], "nodeName": "n2"},
        ]);
        check(&[local], &[slice("web", "http", endpoints)], &["10.96.0.20:80 -> 10.244.0.2:8080"]);
        let dns =
            service("kube-dns", json!({"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "port": 53}]}));
        let headless = service("h", json!({"clusterIP": "None", "ports": [{"name": "x", "port": 1}]}));
        check(&[dns, headless], &[], &[]);
    }
}
