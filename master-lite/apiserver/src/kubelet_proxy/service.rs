//! Which endpoints stand behind a service: pure functions over Services, EndpointSlices and Pods.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use keelson_api::meta::GroupResource;
use serde_json::Value;

use super::dial::Endpoint;
use crate::authz::rbac::text;
use crate::extension::ObjectReader;

/// Why a service can't be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// There is no such service.
    #[error("service {0:?} not found")]
    NotFound(String),
    /// It has no endpoints by its nature.
    #[error("unsupported service type {0:?}")]
    Type(String),
    /// It has no such port.
    #[error("no service port {port} found for service {service:?}")]
    NoPort {
        /// The port asked for.
        port: u16,
        /// The service's name.
        service: String,
    },
    /// None of its endpoints is ready.
    #[error("no endpoints available for service {0:?}")]
    NoEndpoints(String),
}

/// One address of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Where it is, the node as the slice says.
    pub(super) endpoint: Endpoint,
    /// Name of the pod that it stands for.
    pub(super) pod: Option<String>,
}

/// The ready endpoints of a service's port, in the service's first address family if it has some there (as
/// `k8s.io/apiserver/pkg/util/proxy.ResolveEndpoint` prefers).
pub(super) fn resolve(
    reader: &dyn ObjectReader,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Vec<Endpoint>, ServiceError> {
    let service = reader
        .get(&GroupResource::new("", "services"), Some(namespace), name)
        .ok_or_else(|| ServiceError::NotFound(format!("{namespace}/{name}")))?;
    let kind = text(&service, "/spec/type");
    if kind == "ExternalName" {
        return Err(ServiceError::Type(kind.to_owned()));
    }
    let port_name = port_name(&service, u64::from(port))
        .ok_or_else(|| ServiceError::NoPort { port, service: name.to_owned() })?;
    let found = candidates(&slices(reader, namespace, name), port_name);
    let v6 = text(&service, "/spec/ipFamilies/0") == "IPv6";
    let (preferred, others): (Vec<_>, Vec<_>) =
        found.into_iter().map(|c| c.endpoint).partition(|e| e.address.is_ipv6() == v6);
    let found = if preferred.is_empty() { others } else { preferred };
    if found.is_empty() {
        return Err(ServiceError::NoEndpoints(name.to_owned()));
    }
    Ok(found)
}

/// The name of a service's port of that number.
pub(crate) fn port_name(service: &Value, number: u64) -> Option<&str> {
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports.find(|p| p["port"].as_u64() == Some(number)).map(|p| text(p, "/name"))
}

/// The EndpointSlices of a service.
pub(crate) fn slices(reader: &dyn ObjectReader, namespace: &str, name: &str) -> Vec<Arc<Value>> {
    let mut found = reader.list(&GroupResource::new("discovery.k8s.io", "endpointslices"), Some(namespace));
    found.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name);
    found
}

/// Every ready address of the slices' port of that name.
pub(super) fn candidates(slices: &[Arc<Value>], port_name: &str) -> Vec<Candidate> {
    let mut out = Vec::new();
    for slice in slices {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let port = ports.find(|p| text(p, "/name") == port_name);
        let port = port.and_then(|p| p["port"].as_u64()).and_then(|p| u16::try_from(p).ok());
        let Some(port) = port else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            // Unset means unknown, which counts as ready.
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            // Of several addresses consumers use the first, says the API. A domain name isn't one.
            let Ok(ip) = text(endpoint, "/addresses/0").parse::<IpAddr>() else { continue };
            let node = Some(text(endpoint, "/nodeName")).filter(|n| !n.is_empty()).map(str::to_owned);
            let is_pod = endpoint["targetRef"]["kind"] == "Pod";
            let pod = is_pod.then(|| text(endpoint, "/targetRef/name").to_owned());
            out.push(Candidate { endpoint: Endpoint { address: SocketAddr::new(ip, port), node }, pod });
        }
    }
    out
}

/// Those that stand for a pod that exists and has the address, on the pod's own node: a slice that a user wrote must not
/// lead the server anywhere else.
pub(super) fn of_pods(
    candidates: Vec<Candidate>,
    pod_of: impl Fn(&str) -> Option<Arc<Value>>,
) -> Vec<Endpoint> {
    let place = |candidate: Candidate| {
        let pod = pod_of(candidate.pod.as_deref()?)?;
        let ip = candidate.endpoint.address.ip();
        let mut ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let has = ips.any(|known| text(known, "/ip").parse() == Ok(ip));
        has.then(|| Endpoint { address: candidate.endpoint.address, node: node_of(&pod) })
    };
    candidates.into_iter().filter_map(place).collect()
}

/// The node that a pod is on.
pub(super) fn node_of(pod: &Value) -> Option<String> {
    Some(text(pod, "/spec/nodeName")).filter(|node| !node.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::authz::fake::FakeReader;

    fn at(address: &str, node: Option<&str>) -> Endpoint {
        Endpoint { address: address.parse().unwrap(), node: node.map(str::to_owned) }
    }

    fn slice(service: &str, endpoints: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "a", "labels": {"kubernetes.io/service-name": service}},
               "ports": [{"name": "web", "port": 8080}, {"name": "none"}], "endpoints": endpoints})
    }

    #[test]
    fn ready_endpoints_of_the_port_are_found() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "p"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["192.0.2.1"], "conditions": {"ready": true}},
            {"addresses": ["fd00::1"], "nodeName": "n2"},
            {"addresses": ["example.com"]},
        ]);
        let service = |name: &str, kind: &str, family: &str| {
            json!({"metadata": {"name": name, "namespace": "a"}, "spec": {"type": kind, "ipFamilies": [family],
                   "ports": [{"name": "web", "port": 80}, {"name": "none", "port": 81}]}})
        };
        let reader = FakeReader::new(vec![
            ("", "services", service("s", "ClusterIP", "IPv4")),
            ("", "services", service("six", "ClusterIP", "IPv6")),
            ("", "services", service("x", "ExternalName", "IPv4")),
            ("discovery.k8s.io", "endpointslices", slice("s", endpoints.clone())),
            ("discovery.k8s.io", "endpointslices", slice("six", endpoints)),
            ("discovery.k8s.io", "endpointslices", slice("other", json!([{"addresses": ["10.9.9.9"]}]))),
        ]);
        assert_eq!(
            resolve(&reader, "a", "s", 80).unwrap(),
            [at("10.0.0.1:8080", Some("n1")), at("192.0.2.1:8080", None)]
        );
        assert_eq!(resolve(&reader, "a", "six", 80).unwrap(), [at("[fd00::1]:8080", Some("n2"))]);
        let error = |name: &str, port: u16| resolve(&reader, "a", name, port).unwrap_err().to_string();
        assert_eq!(error("s", 81), "no endpoints available for service \"s\"");
        assert_eq!(error("s", 82), "no service port 82 found for service \"s\"");
        assert_eq!(error("x", 80), "unsupported service type \"ExternalName\"");
        assert_eq!(error("y", 80), "service \"a/y\" not found");
    }

    #[test]
    fn only_addresses_of_pods_are_proxied_to() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "nodeName": "lie", "targetRef": {"kind": "Pod", "name": "p"}},
            {"addresses": ["10.0.0.9"], "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "p"}},
            {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "gone"}},
            {"addresses": ["10.0.0.1"]},
        ]);
        let pod = Arc::new(json!({"spec": {"nodeName": "n1"}, "status": {"podIPs": [{"ip": "10.0.0.1"}]}}));
        let found = candidates(&[Arc::new(slice("s", endpoints))], "web");
        assert_eq!(found.len(), 4);
        let found = of_pods(found, |name| (name == "p").then(|| pod.clone()));
        assert_eq!(found, [at("10.0.0.1:8080", Some("n1"))]);
    }
}
