//! Services without a selector, and their EndpointSlices. The first Service has a UDP port, too.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};

/// Port of the Services.
const PORT: u16 = 80;
/// Port of the endpoints, TCP and UDP.
pub const ENDPOINT_PORT: u16 = 8080;

/// Where Services are created.
pub const SERVICES: &str = "/api/v1/namespaces/default/services";
/// Where EndpointSlices are created.
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// How many Services have an address.
pub const MOST: usize = 50_000;

/// Name of a Service, and of its EndpointSlice.
pub fn name(number: usize) -> String {
    format!("bench-{number}")
}

/// Address and port of a Service, within `10.96.0.0/16` and beside the addresses of the cluster's own.
pub fn cluster_ip(number: usize) -> SocketAddrV4 {
    let part = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    SocketAddrV4::new(Ipv4Addr::new(10, 96, part(16 + number / 250), part(1 + number % 250)), PORT)
}

fn protocols(number: usize) -> &'static [&'static str] {
    if number == 0 { &["TCP", "UDP"] } else { &["TCP"] }
}

/// A Service.
pub fn service(number: usize) -> Value {
    let ports: Vec<Value> = protocols(number)
        .iter()
        .map(|protocol| json!({"name": protocol.to_lowercase(), "port": PORT, "protocol": protocol}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name(number)},
        "spec": {"clusterIP": cluster_ip(number).ip(), "ports": ports},
    })
}

/// Its EndpointSlice.
pub fn slice(number: usize, endpoint: Ipv4Addr) -> Value {
    let ports: Vec<Value> = protocols(number)
        .iter()
        .map(|protocol| json!({"name": protocol.to_lowercase(), "port": ENDPOINT_PORT, "protocol": protocol}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name(number), "labels": {
            "kubernetes.io/service-name": name(number), "endpointslice.kubernetes.io/managed-by": "keelson-bench",
        }},
        "ports": ports, "endpoints": endpoints(endpoint),
    })
}

/// The endpoints of an EndpointSlice that has one.
pub fn endpoints(endpoint: Ipv4Addr) -> Value {
    json!([{"addresses": [endpoint], "conditions": {"ready": true}}])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_are_in_the_range_and_nobody_elses() {
        let all: BTreeSet<Ipv4Addr> = (0..MOST).map(|number| *cluster_ip(number).ip()).collect();
        assert_eq!(all.len(), MOST);
        assert!(all.iter().all(|address| address.octets()[..2] == [10, 96] && address.octets()[2] >= 16));
    }

    #[test]
    fn ports_of_both_have_the_same_names() {
        let names = |ports: &Value| -> Vec<String> {
            ports.as_array().unwrap().iter().map(|port| port["name"].to_string()).collect()
        };
        for number in [0, 1] {
            let (service, slice) = (service(number), slice(number, Ipv4Addr::LOCALHOST));
            assert_eq!(names(&service["spec"]["ports"]), names(&slice["ports"]));
            assert_eq!(
                service["metadata"]["name"],
                slice["metadata"]["labels"]["kubernetes.io/service-name"]
            );
        }
        assert_eq!(service(0)["spec"]["ports"][1]["protocol"], "UDP");
    }
}
