//! Services, EndpointSlices and Nodes to what the maps should hold.
//!
//! Which endpoints a client of this node gets depends on what it asks (kube-proxy's rules for clients that are in the cluster):
//! a ClusterIP, those of `internalTrafficPolicy`; an external or balancer address, or a node port of this node, all; a node
//! port of another node with `externalTrafficPolicy: Local`, that node's, as if it had been asked.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Node, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use keelson_ebpf_abi::{Backend, Be16, Be32, FrontendKey, NodePlace};

/// Label that ties an EndpointSlice to its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// What the result depends on beside the API objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeContext {
    /// Name of this node, for `internalTrafficPolicy: Local`.
    pub name: String,
    /// Addresses of this node's interfaces, beside those that its Node object names.
    pub addresses: Vec<Ipv4Addr>,
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
    /// Addresses of nodes.
    pub nodes: BTreeMap<Be32, NodePlace>,
    /// Keys that several Service ports want, of which one has them.
    pub contested: BTreeSet<FrontendKey>,
}

impl MapImage {
    /// Adds a Service port under those keys that no other has.
    fn add(&mut self, keys: impl IntoIterator<Item = FrontendKey>, target: Target) {
        let index = self.targets.len();
        let mut used = false;
        for key in keys {
            match self.frontends.entry(key) {
                Entry::Vacant(free) => {
                    free.insert(index);
                    used = true;
                }
                Entry::Occupied(_) => {
                    self.contested.insert(key);
                }
            }
        }
        if used {
            self.targets.push(target);
        }
    }
}

/// Compiles. The order of the input does not matter; where two Services claim one address and port, the older (by
/// creation, then by name) wins, as the apiserver allows it for externalIPs only.
pub fn compile<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    nodes: impl IntoIterator<Item = &'a Node>,
    node: &NodeContext,
) -> MapImage {
    let by_service = by_service(slices);
    let mut ordered: Vec<&Service> = services.into_iter().collect();
    ordered.sort_by_cached_key(|service| {
        let meta = &service.metadata;
        (meta.creation_timestamp.clone(), meta.namespace.clone(), meta.name.clone())
    });
    let mut image = MapImage::default();
    let others = add_nodes(&mut image, nodes, node);
    for service in ordered {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), service.spec.as_ref())
        else {
            continue;
        };
        let slices = by_service.get(&(namespace, name)).map_or(&[][..], Vec::as_slice);
        add_service(&mut image, service, spec, slices, node, &others);
    }
    image
}

/// IPv4 slices by the namespace and name of their Service.
pub(crate) fn by_service<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>> {
    let mut found: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        if let (Some(namespace), Some(name)) =
            (slice.metadata.namespace.as_deref(), labels.and_then(|labels| labels.get(SERVICE_NAME)))
            && slice.address_type == "IPv4"
        {
            found.entry((namespace, name)).or_default().push(slice);
        }
    }
    found
}

/// Addresses of the other nodes by their names.
type Others<'a> = BTreeMap<&'a str, Vec<Be32>>;

fn add_nodes<'a>(
    image: &mut MapImage,
    nodes: impl IntoIterator<Item = &'a Node>,
    own: &NodeContext,
) -> Others<'a> {
    let mut others = Others::new();
    let own_name = Some(own.name.as_str());
    for node in nodes {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let addresses = addresses
            .filter(|address| matches!(address.type_.as_str(), "InternalIP" | "ExternalIP"))
            .filter_map(|address| address.address.parse().ok())
            .filter(|address: &Ipv4Addr| !address.is_unspecified() && !address.is_loopback())
            .map(|address| Be32::from_octets(address.octets()));
        let Some(name) = node.metadata.name.as_deref() else { continue };
        let place = if Some(name) == own_name { NodePlace::Here } else { NodePlace::Elsewhere };
        for address in addresses {
            // An address that both claim is this node's: it is where a packet to it would end.
            image.nodes.entry(address).and_modify(|known| *known = place.min(*known)).or_insert(place);
            if place == NodePlace::Elsewhere {
                others.entry(name).or_default().push(address);
            }
        }
    }
    let own = own.addresses.iter().filter(|address| !own.local.contains(address));
    image.nodes.extend(own.map(|address| (Be32::from_octets(address.octets()), NodePlace::Here)));
    others
}

fn add_service(
    image: &mut MapImage,
    service: &Service,
    spec: &ServiceSpec,
    slices: &[&EndpointSlice],
    node: &NodeContext,
    others: &Others<'_>,
) {
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let cluster = parsed(spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()), node);
    let external = external(service, spec, node);
    image.claimed.extend(&cluster);
    let affinity_seconds = affinity_seconds(spec);
    let target = |backends| Target { backends, affinity_seconds };
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol(port) else { continue };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let key = |address, port| FrontendKey { address, port: Be16::new(port), protocol, pad: 0 };
        let mut inside: Vec<FrontendKey> = cluster.iter().map(|address| key(*address, number)).collect();
        let mut outside: Vec<FrontendKey> = external.iter().map(|address| key(*address, number)).collect();
        let node_port = node_port(port);
        let at = |place, port| FrontendKey::node_port(place as u32, Be16::new(port), protocol);
        outside.extend(node_port.map(|port| at(NodePlace::Here, port)));
        if !external_local {
            outside.extend(node_port.map(|port| at(NodePlace::Elsewhere, port)));
        }
        if internal_local {
            image.add(inside, target(backends(port, slices, Some(&node.name))));
            image.add(outside, target(backends(port, slices, None)));
        } else {
            // One target, and so one affinity, whatever the client asks.
            inside.extend(outside);
            image.add(inside, target(backends(port, slices, None)));
        }
        let Some(node_port) = node_port.filter(|_| external_local) else { continue };
        for name in node_names(slices) {
            let Some(addresses) = others.get(name) else { continue };
            let keys = addresses.iter().map(|address| key(*address, node_port));
            let found = backends(port, slices, Some(name));
            if !found.is_empty() {
                image.add(keys, target(found));
            }
        }
        image.add([at(NodePlace::Elsewhere, node_port)], Target::default());
    }
}

pub(crate) fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(DEFAULT_AFFINITY_SECONDS),
        _ => 0,
    }
}

/// externalIPs and addresses of the load balancer. Only ports of the Service are taken there: everything else may be
/// somebody else's, such as the node's whose address it is.
fn external(service: &Service, spec: &ServiceSpec, node: &NodeContext) -> BTreeSet<Be32> {
    let mut found = external_ips(spec, node);
    // A balancer that has to judge by the client's address must see it.
    if source_ranges(spec).is_empty() {
        found.extend(balancer_ips(service, node));
    }
    found
}

pub(crate) fn external_ips(spec: &ServiceSpec, node: &NodeContext) -> BTreeSet<Be32> {
    parsed(spec.external_ips.iter().flatten(), node)
}

pub(crate) fn balancer_ips(service: &Service, node: &NodeContext) -> BTreeSet<Be32> {
    let ingress = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
        .flatten()
        // ipMode Proxy: the balancer itself must see the traffic (KEP-1860).
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    parsed(ingress, node)
}

/// `loadBalancerSourceRanges`; none when they keep no client out.
pub(crate) fn source_ranges(spec: &ServiceSpec) -> Vec<&str> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let ranges: Vec<&str> = ranges.map(|range| range.trim()).collect();
    if ranges.contains(&"0.0.0.0/0") { Vec::new() } else { ranges }
}

fn parsed<'a>(texts: impl Iterator<Item = &'a String>, node: &NodeContext) -> BTreeSet<Be32> {
    texts
        .filter_map(|text| text.parse().ok())
        .filter(|address: &Ipv4Addr| !node.local.contains(address) && !address.is_unspecified())
        .map(|address| Be32::from_octets(address.octets()))
        .collect()
}

/// Names of the nodes that have endpoints.
fn node_names<'a>(slices: &[&'a EndpointSlice]) -> BTreeSet<&'a str> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.filter_map(|endpoint| endpoint.node_name.as_deref()).collect()
}

pub(crate) fn node_port(port: &ServicePort) -> Option<u16> {
    port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

pub(crate) fn protocol(port: &ServicePort) -> Option<u8> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        // The socket hooks see SCTP connects only from 6.x on with a protocol of their own; it is not translated.
        _ => None,
    }
}

/// Endpoints of one Service port: the ready ones, or when there are none those that still serve while terminating
/// (KEP-1669).
pub(crate) fn backends(
    port: &ServicePort,
    slices: &[&EndpointSlice],
    only_node: Option<&str>,
) -> Vec<Backend> {
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
                if only_node.is_some_and(|node| endpoint.node_name.as_deref() != Some(node)) {
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

/// Whether an endpoint takes new connections.
pub(crate) fn is_ready(endpoint: &Endpoint) -> bool {
    matches!(state(endpoint), State::Ready)
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

    fn node(name: &str, addresses: &[&str]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"addresses": addresses}}))
            .unwrap()
    }

    fn compiled(services: &[Service], slices: &[EndpointSlice]) -> MapImage {
        let context = NodeContext {
            name: "n1".into(),
            addresses: vec![Ipv4Addr::new(172, 16, 0, 1), Ipv4Addr::new(10, 96, 0, 10)],
            local: vec![Ipv4Addr::new(10, 96, 0, 10)],
        };
        let nodes = [
            node("n1", &["192.0.2.1", "fd00::1", "127.0.0.1"]),
            node("n2", &["192.0.2.2", "198.51.100.2"]),
            node("n3", &["192.0.2.3"]),
        ];
        compile(services, slices, &nodes, &context)
    }

    /// `address:port -> endpoint endpoint …` lines of the image; node ports as `here` and `elsewhere`.
    fn check(services: &[Service], slices: &[EndpointSlice], expected: &[&str]) {
        let image = compiled(services, slices);
        let show =
            |address: Be32, port: Be16| format!("{}:{}", Ipv4Addr::from(address.octets()), port.host());
        let mut lines: Vec<String> = image
            .frontends
            .iter()
            .map(|(key, target)| {
                let backends: Vec<String> =
                    image.targets[*target].backends.iter().map(|b| show(b.address, b.port)).collect();
                let place = [NodePlace::Here, NodePlace::Elsewhere]
                    .into_iter()
                    .find(|place| FrontendKey::node_port(*place as u32, key.port, 6) == *key);
                let asked = match place {
                    Some(NodePlace::Here) => format!("here:{}", key.port.host()),
                    Some(NodePlace::Elsewhere) => format!("elsewhere:{}", key.port.host()),
                    None => show(key.address, key.port),
                };
                format!("{asked} -> {}", backends.join(" "))
            })
            .collect();
        lines.sort();
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

    fn two_nodes() -> [EndpointSlice; 1] {
        let endpoints = json!([
            {"addresses": ["10.244.0.2"], "nodeName": "n1"}, {"addresses": ["10.244.1.2"], "nodeName": "n2"},
        ]);
        [slice("web", "http", endpoints)]
    }

    fn node_port(policies: serde_json::Value) -> Service {
        let mut spec = json!({"type": "NodePort", "clusterIP": "10.96.0.20",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        spec.as_object_mut().unwrap().extend(policies.as_object().unwrap().clone());
        service("web", spec)
    }

    #[test]
    fn node_ports_are_everywhere() {
        let both = "10.244.0.2:8080 10.244.1.2:8080";
        check(
            &[node_port(json!({"externalTrafficPolicy": "Cluster"}))],
            &two_nodes(),
            &[
                &format!("10.96.0.20:80 -> {both}"),
                &format!("elsewhere:30080 -> {both}"),
                &format!("here:30080 -> {both}"),
            ],
        );
        // One target: affinity is to the Service, whatever address was asked.
        assert_eq!(compiled(&[node_port(json!({}))], &two_nodes()).targets.len(), 1);
        // internalTrafficPolicy is about ClusterIPs only.
        check(
            &[node_port(json!({"internalTrafficPolicy": "Local", "externalIPs": ["203.0.113.7"]}))],
            &two_nodes(),
            &[
                "10.96.0.20:80 -> 10.244.0.2:8080",
                &format!("203.0.113.7:80 -> {both}"),
                &format!("elsewhere:30080 -> {both}"),
                &format!("here:30080 -> {both}"),
            ],
        );
    }

    #[test]
    fn other_nodes_with_local_policy_have_their_own_endpoints() {
        let both = "10.244.0.2:8080 10.244.1.2:8080";
        check(
            &[node_port(json!({"externalTrafficPolicy": "Local"}))],
            &two_nodes(),
            &[
                &format!("10.96.0.20:80 -> {both}"),
                "192.0.2.2:30080 -> 10.244.1.2:8080",
                "198.51.100.2:30080 -> 10.244.1.2:8080",
                "elsewhere:30080 -> ",
                &format!("here:30080 -> {both}"),
            ],
        );
    }

    #[test]
    fn addresses_of_nodes_are_known() {
        let image = compiled(&[], &[]);
        let shown: Vec<(String, NodePlace)> = image
            .nodes
            .iter()
            .map(|(address, place)| (Ipv4Addr::from(address.octets()).to_string(), *place))
            .collect();
        let mut expected = vec![
            ("172.16.0.1".to_owned(), NodePlace::Here),
            ("192.0.2.1".to_owned(), NodePlace::Here),
            ("192.0.2.2".to_owned(), NodePlace::Elsewhere),
            ("192.0.2.3".to_owned(), NodePlace::Elsewhere),
            ("198.51.100.2".to_owned(), NodePlace::Elsewhere),
        ];
        expected.sort_by_key(|(address, _)| Be32::from_octets(address.parse::<Ipv4Addr>().unwrap().octets()));
        assert_eq!(shown, expected);
    }

    #[test]
    fn balancers_that_must_see_the_client_are_left_alone() {
        let balanced = |ranges: serde_json::Value, mode: &str| {
            let mut balanced = node_port(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}));
            balanced.status = serde_json::from_value(
                json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": mode}]}}),
            )
            .unwrap();
            let image = compiled(&[balanced], &two_nodes());
            let address = Be32::from_octets([203, 0, 113, 9]);
            // Other ports of the balancer are never refused.
            assert!(!image.claimed.contains(&address));
            image.frontends.keys().any(|key| key.address == address)
        };
        assert!(balanced(json!(null), "VIP"));
        assert!(balanced(json!(["0.0.0.0/0"]), "VIP"));
        assert!(!balanced(json!(["198.51.100.0/24"]), "VIP"));
        assert!(!balanced(json!(null), "Proxy"));
    }
}
