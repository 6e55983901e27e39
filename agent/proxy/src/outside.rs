//! What clients outside of the cluster may ask this node for: node ports, externalIPs and load balancer addresses, compiled to
//! [`Forward`]s. `externalTrafficPolicy: Local` keeps their address and takes endpoints of this node only.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_cni::services::Forward;
use keelson_ebpf_abi::Be32;

use crate::compile::{
    NodeContext, affinity_seconds, backends, balancer_ips, by_service, external_ips, node_port, protocol,
    source_ranges,
};

/// Compiles, in the order of the input.
pub(crate) fn forwards<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeContext,
) -> Vec<Forward> {
    let by_service = by_service(slices);
    let mut out = Vec::new();
    for service in services {
        let (Some(namespace), Some(name), Some(spec)) =
            (service.metadata.namespace.as_deref(), service.metadata.name.as_deref(), service.spec.as_ref())
        else {
            continue;
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let slices = by_service.get(&(namespace, name)).map_or(&[][..], Vec::as_slice);
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let balanced = balancer_ips(service, node);
        // A range that is not IPv4 lets nobody in here.
        let ranges = source_ranges(spec);
        let sources: Vec<Ipv4Net> = ranges.iter().filter_map(|range| range.parse().ok()).collect();
        for port in spec.ports.iter().flatten() {
            let Some(protocol) = protocol(port) else { continue };
            let found = backends(port, slices, local.then_some(node.name.as_str()));
            if found.is_empty() {
                continue;
            }
            let forward = |address: Option<Be32>, port: u16, sources: &[Ipv4Net]| Forward {
                address: address.map(|address| Ipv4Addr::from(address.octets())),
                port,
                protocol,
                endpoints: found
                    .iter()
                    .map(|b| SocketAddrV4::new(b.address.octets().into(), b.port.host()))
                    .collect(),
                sticky: affinity_seconds(spec) != 0,
                sources: sources.to_vec(),
                keep_source: local,
            };
            out.extend(node_port(port).map(|port| forward(None, port, &[])));
            let Ok(number) = u16::try_from(port.port) else { continue };
            out.extend(external_ips(spec, node).iter().map(|a| forward(Some(*a), number, &[])));
            if ranges.is_empty() || !sources.is_empty() {
                out.extend(balanced.iter().map(|a| forward(Some(*a), number, &sources)));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, json};

    use super::*;
    use crate::compile::SERVICE_NAME;

    fn check(spec: serde_json::Value, expected: &[&str]) {
        let mut whole = json!({"clusterIP": "10.96.0.20", "ports": [{"port": 80, "nodePort": 30080}]});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d"}, "spec": whole,
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}},
        }))
        .unwrap();
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-x", "namespace": "d", "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [
                {"addresses": ["10.244.0.2"], "nodeName": "n1"}, {"addresses": ["10.244.1.2"], "nodeName": "n2"},
            ],
        }))
        .unwrap();
        let node = NodeContext { name: "n1".into(), addresses: Vec::new(), local: Vec::new() };
        let shown: Vec<String> = forwards([&service], [&slice], &node)
            .iter()
            .map(|f| {
                let to: Vec<String> = f.endpoints.iter().map(ToString::to_string).collect();
                let address = f.address.map_or("node".to_owned(), |address| address.to_string());
                let mut line = format!("{address}:{} {}", f.port, to.join(" "));
                for (set, name) in [(f.sticky, " sticky"), (f.keep_source, " keep")] {
                    line += if set { name } else { "" };
                }
                f.sources.iter().for_each(|source| line += &format!(" from {source}"));
                line
            })
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn policies_and_ranges_are_honoured() {
        let both = "10.244.0.2:8080 10.244.1.2:8080";
        let node = format!("node:30080 {both}");
        let balancer = format!("203.0.113.9:80 {both}");
        check(json!({"type": "LoadBalancer"}), &[&node, &balancer]);
        check(
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]}),
            &[&node, &format!("{balancer} from 198.51.100.0/24")],
        );
        check(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["fd00::/8"]}), &[&node]);
        check(
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
                "externalIPs": ["192.0.2.5"]}),
            &[
                "node:30080 10.244.0.2:8080 sticky keep",
                "192.0.2.5:80 10.244.0.2:8080 sticky keep",
                "203.0.113.9:80 10.244.0.2:8080 sticky keep",
            ],
        );
        check(json!({"type": "ExternalName"}), &[]);
    }
}
