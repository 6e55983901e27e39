//! Services, endpoints, policies. Addresses and ports are allocated by the server, not here.

use serde_json::{Value, json};

use super::ruled::Ruled;
use super::{child, items, set_default};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, metadata, validation};

/// Services (`pkg/registry/core/service/strategy.go`).
pub struct Service;

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        set_default(spec, "type", "ClusterIP");
        set_default(spec, "sessionAffinity", "None");
        if spec["sessionAffinity"] == "None" {
            if let Some(map) = spec.as_object_mut() {
                map.remove("sessionAffinityConfig");
            }
        } else if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10800}});
        }
        for port in items(spec, "ports") {
            set_default(port, "protocol", "TCP");
            let number = port["port"].clone();
            if port["targetPort"].as_i64() == Some(0) {
                port["targetPort"] = Value::Null;
            }
            set_default(port, "targetPort", number);
        }
        if is_external(spec) {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if spec["type"] != "ExternalName" {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if is_balanced(spec) {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"loadBalancer": {}});
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, old: &Value) {
        if !context.subresource.is_empty() {
            return;
        }
        // What a user left out of a PUT or took over from an older type is carried or dropped as upstream does.
        let old_spec = &old["spec"];
        let Some(spec) = child(new, "spec") else { return };
        if spec["type"] != "ExternalName" && old_spec["type"] != "ExternalName" {
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if let Some(value) = old_spec.get(field).cloned() {
                    set_default(spec, field, value);
                }
            }
        }
        if spec["type"] == "ExternalName" && old_spec["type"] != "ExternalName" {
            // The addresses go back to the pool unless the user changed them by hand, which validation refuses.
            if let Some(map) = spec.as_object_mut() {
                for field in
                    ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
                {
                    map.remove(field);
                }
            }
        }
        let node_ports = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
        let had = matches!(old_spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
        let old_ports = old_spec["ports"].as_array().cloned().unwrap_or_default();
        for port in items(spec, "ports") {
            let same = old_ports
                .iter()
                .find(|old| old["port"] == port["port"] && old["protocol"] == port["protocol"]);
            if node_ports && had {
                if let Some(number) = same.and_then(|old| old.get("nodePort")).cloned() {
                    set_default(port, "nodePort", number);
                }
            } else if !node_ports
                && had
                && same.is_some_and(|old| old["nodePort"] == port["nodePort"])
                && let Some(map) = port.as_object_mut()
            {
                map.remove("nodePort");
            }
        }
        if needs_health_check(spec)
            && needs_health_check(old_spec)
            && let Some(number) = old_spec.get("healthCheckNodePort").cloned()
        {
            set_default(spec, "healthCheckNodePort", number);
        }
        // What the new type has no use for goes with the old one, unless the user set it anew, which validation refuses.
        let needs = |spec: &Value| {
            let balanced = is_balanced(spec);
            [
                ("externalTrafficPolicy", is_external(spec)),
                ("healthCheckNodePort", needs_health_check(spec)),
                ("allocateLoadBalancerNodePorts", balanced),
                ("loadBalancerClass", balanced),
            ]
        };
        for ((field, needed), (_, was_needed)) in needs(spec).into_iter().zip(needs(old_spec)) {
            if was_needed
                && !needed
                && spec[field] == old_spec[field]
                && let Some(map) = spec.as_object_mut()
            {
                map.remove(field);
            }
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::service(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if !context.subresource.is_empty() {
            return Vec::new();
        }
        validation::service_update(new, old)
    }

    fn validate_name(&self, name: &str) -> Result<(), String> {
        // RelaxedServiceNameValidation is on from v1.36.
        metadata::dns_label(name)
    }
}

fn is_balanced(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer"
}

/// Whether clients outside of the cluster may come.
fn is_external(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("NodePort" | "LoadBalancer") => true,
        Some("ClusterIP") => spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty()),
        _ => false,
    }
}

/// Whether a balancer asks the nodes which of them have endpoints.
fn needs_health_check(spec: &Value) -> bool {
    is_balanced(spec) && spec["externalTrafficPolicy"] == "Local"
}

/// Endpoints.
pub struct Endpoints;

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in items(object, "subsets") {
            for port in items(subset, "ports") {
                set_default(port, "protocol", "TCP");
            }
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::endpoints(object, None)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::endpoints(new, Some(old))
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// EndpointSlices.
pub struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn default(&self, object: &mut Value) {
        for port in items(object, "ports") {
            if port.get("name").is_none_or(Value::is_null) {
                port["name"] = "".into();
            }
            set_default(port, "protocol", "TCP");
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::endpoint_slice(object, None)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::endpoint_slice(new, Some(old))
    }
}

/// NetworkPolicies.
pub struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        for (list, _) in [("ingress", "from"), ("egress", "to")] {
            for rule in items(spec, list) {
                for port in items(rule, "ports") {
                    set_default(port, "protocol", "TCP");
                }
            }
        }
        if spec["policyTypes"].as_array().is_none_or(Vec::is_empty) {
            let egress = spec["egress"].as_array().is_some_and(|e| !e.is_empty());
            spec["policyTypes"] = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::network_policy(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        validation::network_policy(new)
    }
}

/// IngressClasses.
pub const INGRESS_CLASS: Ruled = Ruled::new(validation::ingress_class, validation::ingress_class_update)
    .defaults(|object| {
        if let Some(parameters) = child(object, "spec").and_then(|spec| child(spec, "parameters")) {
            set_default(parameters, "scope", "Cluster");
        }
    });

/// IPAddresses.
pub const IP_ADDRESS: Ruled =
    Ruled::new(validation::ip_address, validation::ip_address_update).name(validation::ip_address_name);

/// ServiceCIDRs.
pub const SERVICE_CIDR: Ruled =
    Ruled::new(validation::service_cidr, validation::service_cidr_update).status_alone().warnings(|object| {
        let built_in = object["metadata"]["name"] == "kubernetes";
        let words = "Services are given addresses out of the ServiceCIDR \"kubernetes\" only";
        if built_in { Vec::new() } else { vec![words.to_owned()] }
    });

/// Ingresses.
pub struct Ingress;

impl Strategy for Ingress {
    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::ingress(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        if !context.subresource.is_empty() {
            return Vec::new();
        }
        validation::ingress(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_defaults_and_update() {
        let mut service = json!({"spec": {"ports": [{"port": 80}], "type": "NodePort"}});
        Service.default(&mut service);
        assert_eq!(service["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        assert_eq!(service["spec"]["externalTrafficPolicy"], "Cluster");
        let mut old = service.clone();
        old["spec"]["clusterIP"] = "10.96.0.5".into();
        old["spec"]["ports"][0]["nodePort"] = 30001.into();
        let mut new = service.clone();
        Service.prepare_for_update(&StrategyContext::default(), &mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.5");
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        new["spec"]["clusterIP"] = "10.96.0.6".into();
        assert_eq!(Service.validate_update(&StrategyContext::default(), &new, &old).len(), 1);
    }

    #[test]
    fn what_a_service_no_longer_needs_goes() {
        let old = json!({"spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30002,
            "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "a/b", "ports": [],
        }});
        let updated = |change: Value| {
            let mut new = old.clone();
            new["spec"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            Service.prepare_for_update(&StrategyContext::default(), &mut new, &old);
            let mut left = new["spec"].as_object().unwrap().clone();
            ["type", "ports"].iter().for_each(|field| drop(left.remove(*field)));
            Value::from(left)
        };
        assert_eq!(
            updated(json!({"externalTrafficPolicy": "Cluster"})),
            json!({"externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true, "loadBalancerClass": "a/b"})
        );
        assert_eq!(updated(json!({"type": "NodePort"})), json!({"externalTrafficPolicy": "Local"}));
        assert_eq!(updated(json!({"type": "ClusterIP"})), json!({}));
        // Set anew it stays, for validation to see; left out it is what it was.
        assert_eq!(
            updated(json!({"type": "ClusterIP", "healthCheckNodePort": 30003})),
            json!({"healthCheckNodePort": 30003})
        );
        let mut without = old.clone();
        without["spec"].as_object_mut().unwrap().remove("healthCheckNodePort");
        Service.prepare_for_update(&StrategyContext::default(), &mut without, &old);
        assert_eq!(without, old);
    }
}
