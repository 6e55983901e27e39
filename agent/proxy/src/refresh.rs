//! The short way from a changed EndpointSlice to the maps: only the Service that it is of is compiled again. Endpoints change
//! more often than anything else here, and how long that takes must not depend on how many other Services there are.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_ebpf_abi::FrontendKey;

use crate::compile::{MapImage, NodeContext, balancer_ips, compile, external_ips, node_port};

/// A target of an image that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refreshed {
    /// Its index.
    pub target: usize,
    /// All keys that lead to it.
    pub keys: Vec<FrontendKey>,
}

/// Puts a Service's endpoints into an image of which all else stays as it is, the Service's other properties included; gives the
/// targets that are others than before. None where that takes a whole compilation: when the Service is reached from
/// outside of the cluster too (which is more than the maps' business), or shares an address and port with another one, or
/// is not in the image. The image may then hold some of the change.
pub(crate) fn refresh(
    image: &mut MapImage,
    service: &Service,
    slices: &[&EndpointSlice],
    node: &NodeContext,
) -> Option<Vec<Refreshed>> {
    if concerns_outside(service, node) {
        return None;
    }
    let part = compile([service], slices.iter().copied(), [], node);
    let mut found: Vec<Refreshed> = Vec::new();
    for (new, target) in part.targets.iter().enumerate() {
        let keys: Vec<FrontendKey> =
            part.frontends.iter().filter(|(_, of)| **of == new).map(|(key, _)| *key).collect();
        let index = *image.frontends.get(keys.first()?)?;
        let is_own = |key| !image.contested.contains(key) && image.frontends.get(key) == Some(&index);
        if !keys.iter().all(is_own) {
            return None;
        }
        let known = image.targets.get_mut(index)?;
        if known != target {
            known.clone_from(target);
            found.push(Refreshed { target: index, keys });
        }
    }
    Some(found)
}

/// Whether clients that are not in the cluster may ask for it, or a balancer for its health.
fn concerns_outside(service: &Service, node: &NodeContext) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.ports.iter().flatten().any(|port| node_port(port).is_some())
        || spec.health_check_node_port.is_some_and(|port| port != 0)
        || !external_ips(spec, node).is_empty()
        || !balancer_ips(service, node).is_empty()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::serde_json::{self, Value, json};

    use super::*;
    use crate::compile::SERVICE_NAME;

    fn service(name: &str, address: u8, more: Value) -> Service {
        let mut spec = json!({
            "clusterIP": format!("10.96.0.{address}"),
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
        });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec})).unwrap()
    }

    fn slice(service: &str, port: &str, endpoints: &[u8]) -> EndpointSlice {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|last| json!({"addresses": [format!("10.244.0.{last}")], "nodeName": "n1"}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": format!("{service}-{port}"), "namespace": "d", "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4", "ports": [{"name": port, "port": 8080}], "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn node() -> NodeContext {
        NodeContext { name: "n1".into(), addresses: Vec::new(), local: Vec::new() }
    }

    /// Refreshes `web` among other Services; gives how many targets changed, and holds that against a whole compilation.
    fn check(web: &Service, others: &[Service], after: &[EndpointSlice], expected: Option<usize>) {
        let services: Vec<&Service> = others.iter().chain([web]).collect();
        let other = slice("other", "a", &[9]);
        let before = [slice("web", "a", &[2]), slice("web", "b", &[3]), other.clone()];
        let mut image = compile(services.iter().copied(), &before, [], &node());
        let slices: Vec<&EndpointSlice> = after.iter().collect();
        let refreshed = refresh(&mut image, web, &slices, &node());
        assert_eq!(refreshed.as_ref().map(Vec::len), expected);
        if refreshed.is_some() {
            let all = after.iter().chain([&other]);
            assert_eq!(image, compile(services, all, [], &node()));
        }
    }

    #[test]
    fn a_refreshed_image_is_the_compiled_one() {
        let web = service("web", 20, json!({}));
        let others = [service("other", 21, json!({})), service("third", 22, json!({}))];
        check(&web, &others, &[slice("web", "a", &[2]), slice("web", "b", &[3])], Some(0));
        check(&web, &others, &[slice("web", "a", &[2]), slice("web", "b", &[3, 4])], Some(1));
        check(&web, &others, &[slice("web", "a", &[5])], Some(2));
        check(&web, &others, &[], Some(2));
        let local =
            service("web", 20, json!({"internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}));
        check(&local, &others, &[slice("web", "a", &[5]), slice("web", "b", &[3])], Some(1));
    }

    #[test]
    fn what_is_more_than_the_maps_is_compiled_whole() {
        let after = [slice("web", "a", &[5])];
        for more in [
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30080}]}),
            json!({"externalIPs": ["203.0.113.7"]}),
            json!({"type": "LoadBalancer", "healthCheckNodePort": 30081}),
        ] {
            check(&service("web", 20, more), &[], &after, None);
        }
        let mut balanced = service("web", 20, json!({}));
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
        balanced.status = serde_json::from_value(status).unwrap();
        check(&balanced, &[], &after, None);
        // Another Service claims its address: who has it is decided among all.
        let thief = service("other", 21, json!({"externalIPs": ["10.96.0.20"]}));
        check(&service("web", 20, json!({})), &[thief], &after, None);
        let mut empty = MapImage::default();
        assert_eq!(refresh(&mut empty, &service("web", 20, json!({})), &[], &node()), None);
    }
}
