//! Whether this node takes a pod at all. Source: upstream `pkg/kubelet/lifecycle/predicate.go`.
//!
//! A pod that asks for what this node can't do is failed with a reason; a field is never ignored.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::podext::{PodExt, container_of_ephemeral, is_sidecar};
use super::qos::{Side, amount, pod_amount};
use crate::node::is_extended;
use crate::status::generate::Verdict;

fn unsupported(what: impl Into<String>) -> Option<Verdict> {
    let message = format!("Pod was rejected: {}", what.into());
    Some(Verdict { reason: "PodFeatureUnsupported".into(), message })
}

/// Looks for fields that this node does not honour. `selinux`: the kernel has SELinux enabled; where it has not, its
/// options mean nothing and are accepted, as upstream's runtimes do.
pub fn unsupported_features(pod: &Pod, selinux: bool) -> Option<Verdict> {
    let spec = PodExt::spec(pod);
    if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
        let message = format!("Failed to admit pod as the OS field doesn't match node OS: {:?}", os.name);
        return Some(Verdict { reason: "PodOSNotSupported".into(), message });
    }
    if spec.host_users == Some(false) {
        return unsupported("user namespaces (hostUsers: false) are not supported by this node");
    }
    if spec.runtime_class_name.as_deref().is_some_and(|n| !n.is_empty()) {
        return unsupported("runtimeClassName is not supported by this node");
    }
    if spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty()) {
        return unsupported("resource claims are not supported by this node");
    }
    let shared = spec.security_context.as_ref();
    if shared.is_some_and(|s| s.windows_options.is_some()) {
        return unsupported("windowsOptions do not apply to a Linux node");
    }
    if selinux && shared.is_some_and(|s| s.se_linux_options.is_some()) {
        return unsupported("SELinux options are not supported by this node");
    }
    if shared.and_then(|s| s.app_armor_profile.as_ref()).is_some_and(|p| p.type_ != "Unconfined") {
        return app_armor();
    }
    let ephemeral: Vec<Container> = pod.ephemeral_containers().iter().map(container_of_ephemeral).collect();
    for container in spec.containers.iter().chain(pod.init_containers()).chain(&ephemeral) {
        if let Some(verdict) = unsupported_in_container(container, selinux) {
            return Some(verdict);
        }
    }
    None
}

fn app_armor() -> Option<Verdict> {
    let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned();
    Some(Verdict { reason: "AppArmor".into(), message })
}

/// The same for one container: ephemeral ones arrive after the pod was taken.
pub fn unsupported_in_container(container: &Container, selinux: bool) -> Option<Verdict> {
    let name = &container.name;
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return unsupported(format!("container {name}: volumeDevices are not supported by this node"));
    }
    if container.resources.as_ref().is_some_and(|r| r.claims.as_ref().is_some_and(|c| !c.is_empty())) {
        return unsupported(format!("container {name}: resource claims are not supported by this node"));
    }
    if container.restart_policy_rules.iter().flatten().any(|r| r.action != "Restart") {
        return unsupported(format!("container {name}: restart rules know the action Restart only"));
    }
    if container.env.iter().flatten().any(|e| e.value_from.as_ref().is_some_and(|v| v.file_key_ref.is_some()))
    {
        return unsupported(format!("container {name}: fileKeyRef is not supported by this node"));
    }
    let own = container.security_context.as_ref()?;
    if own.windows_options.is_some() {
        return unsupported(format!("container {name}: windowsOptions do not apply to a Linux node"));
    }
    if selinux && own.se_linux_options.is_some() {
        return unsupported(format!("container {name}: SELinux options are not supported by this node"));
    }
    if own.app_armor_profile.as_ref().is_some_and(|p| p.type_ != "Unconfined") {
        return app_armor();
    }
    None
}

/// Whether the pod fits beside the others. `others`: pods of this node that are not terminal.
pub fn fits(pod: &Pod, others: &[Arc<Pod>], allocatable: &BTreeMap<String, Quantity>) -> Option<Verdict> {
    let Verdict { reason, message } =
        lacking(pod, others, allocatable).or_else(|| ports_taken(pod, others))?;
    Some(Verdict { reason, message: format!("Pod was rejected: {message}") })
}

/// Whether a host port that the pod wants is another's: a pod that was bound without a scheduler may want one.
fn ports_taken(pod: &Pod, others: &[Arc<Pod>]) -> Option<Verdict> {
    let wanted = host_ports(pod);
    let rest = others.iter().filter(|o| PodExt::uid(&***o) != PodExt::uid(pod) && !o.is_terminal());
    let taken = rest.flat_map(|other| host_ports(other)).any(|t| wanted.iter().any(|w| w.conflicts(&t)));
    taken.then(|| Verdict {
        reason: "NodePorts".into(),
        message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
            .into(),
    })
}

/// A port of the node that a container wants.
struct HostPort<'a> {
    protocol: &'a str,
    /// Empty for every address.
    ip: &'a str,
    port: i32,
}

impl HostPort<'_> {
    fn conflicts(&self, other: &HostPort<'_>) -> bool {
        let overlap = self.ip == other.ip || self.ip.is_empty() || other.ip.is_empty();
        self.port == other.port && self.protocol == other.protocol && overlap
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let sidecars = pod.init_containers().iter().filter(|container| is_sidecar(container));
    let ports = PodExt::spec(pod).containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let published = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let ip = port.host_ip.as_deref().filter(|ip| *ip != "0.0.0.0").unwrap_or_default();
        Some(HostPort { protocol: port.protocol.as_deref().unwrap_or("TCP"), ip, port: number })
    });
    published.collect()
}

/// What the node lacks for the pod beside the others, if anything.
pub fn lacking(pod: &Pod, others: &[Arc<Pod>], allocatable: &BTreeMap<String, Quantity>) -> Option<Verdict> {
    let verdict = |name: &str, requested: i64, used: i64, capacity: i64| Verdict {
        reason: format!("OutOf{name}"),
        message: format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    };
    let rest: Vec<&Arc<Pod>> =
        others.iter().filter(|o| PodExt::uid(&***o) != PodExt::uid(pod) && !o.is_terminal()).collect();
    if let Some(capacity) = allocatable.get("pods").map(|q| amount("pods", q)) {
        let used = i64::try_from(rest.len()).unwrap_or(i64::MAX);
        if used + 1 > capacity {
            return Some(verdict("pods", 1, used, capacity));
        }
    }
    let mut names: Vec<&str> = vec!["cpu", "memory", "ephemeral-storage"];
    // An extended resource that the node's object does not list is not the node's: those of a whole cluster are counted
    // elsewhere.
    let counted = |name: &&str| name.starts_with("hugepages-") || is_extended(name);
    names.extend(allocatable.keys().map(String::as_str).filter(counted));
    for name in names {
        let requested = pod_amount(pod, Side::Requests, name);
        let Some(capacity) = allocatable.get(name).map(|q| amount(name, q)).filter(|_| requested > 0) else {
            continue;
        };
        let used = rest.iter().fold(0_i64, |sum, o| sum.saturating_add(pod_amount(o, Side::Requests, name)));
        if requested.saturating_add(used) > capacity {
            return Some(verdict(name, requested, used, capacity));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    fn check_feature(spec: serde_json::Value, want: Option<&str>) {
        let got = unsupported_features(&pod_json(spec.clone()), false);
        assert_eq!(got.map(|v| v.reason).as_deref(), want, "{spec}");
    }

    #[test]
    fn features() {
        check_feature(json!({"containers": [{"name": "a"}]}), None);
        check_feature(json!({"containers": [], "hostUsers": true}), None);
        check_feature(json!({"containers": [], "hostUsers": false}), Some("PodFeatureUnsupported"));
        check_feature(json!({"containers": [], "os": {"name": "windows"}}), Some("PodOSNotSupported"));
        let armor = json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}, "name": "a"});
        check_feature(json!({"containers": [armor]}), Some("AppArmor"));
    }

    #[test]
    fn selinux_options_mean_nothing_without_selinux() {
        let options =
            json!({"securityContext": {"seLinuxOptions": {"level": "s0"}}, "containers": [{"name": "a"}]});
        assert_eq!(unsupported_features(&pod_json(options.clone()), false), None);
        assert!(unsupported_features(&pod_json(options), true).is_some());
    }

    #[test]
    fn host_ports_are_had_once() {
        let pod = |uid: &str, port: serde_json::Value| {
            let mut p = pod_json(json!({"containers": [{"name": "a", "ports": [port]}]}));
            p.metadata.uid = Some(uid.into());
            p
        };
        let check = |taken: serde_json::Value, wanted: serde_json::Value, free: bool| {
            let verdict =
                fits(&pod("n", wanted.clone()), &[Arc::new(pod("o", taken.clone()))], &BTreeMap::new());
            assert_eq!(verdict.is_none(), free, "{taken} {wanted}");
            if let Some(verdict) = verdict {
                assert_eq!(verdict.reason, "NodePorts");
                assert!(verdict.message.starts_with("Pod was rejected: Predicate NodePorts failed"));
            }
        };
        let on = |ip: &str| json!({"containerPort": 1, "hostPort": 80, "hostIP": ip});
        let any = json!({"containerPort": 1, "hostPort": 80});
        check(any.clone(), any.clone(), false);
        check(any.clone(), json!({"containerPort": 80}), true);
        check(any.clone(), json!({"containerPort": 1, "hostPort": 81}), true);
        check(any.clone(), json!({"containerPort": 1, "hostPort": 80, "protocol": "UDP"}), true);
        check(on("10.0.0.1"), on("10.0.0.2"), true);
        check(on("10.0.0.1"), on("10.0.0.1"), false);
        check(on("10.0.0.1"), on("0.0.0.0"), false);
    }

    #[test]
    fn room() {
        let pod = |uid: &str, cpu: &str| {
            let mut p =
                pod_json(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}));
            p.metadata.uid = Some(uid.into());
            p
        };
        let allocatable =
            BTreeMap::from([("cpu".into(), Quantity("2".into())), ("pods".into(), Quantity("2".into()))]);
        let others = [Arc::new(pod("o", "1500m"))];
        assert_eq!(fits(&pod("n", "500m"), &others, &allocatable), None);
        let verdict = fits(&pod("n", "600m"), &others, &allocatable).unwrap();
        assert_eq!(verdict.reason, "OutOfcpu");
        assert!(verdict.message.ends_with("requested: 600, used: 1500, capacity: 2000"));
        let full = [Arc::new(pod("o", "0")), Arc::new(pod("o2", "0"))];
        assert_eq!(fits(&pod("n", "0"), &full, &allocatable).unwrap().reason, "OutOfpods");
    }

    #[test]
    fn extended_resources_are_counted_where_the_node_has_them() {
        let pod = |uid: &str, name: &str, amount: &str| {
            let resources = json!({"requests": {name: amount}, "limits": {name: amount}});
            let mut p = pod_json(json!({"containers": [{"name": "a", "resources": resources}]}));
            p.metadata.uid = Some(uid.into());
            p
        };
        let allocatable = BTreeMap::from([("example.com/foo".into(), Quantity("5".into()))]);
        let others = [Arc::new(pod("o", "example.com/foo", "2"))];
        assert_eq!(fits(&pod("n", "example.com/foo", "3"), &others, &allocatable), None);
        let verdict = fits(&pod("n", "example.com/foo", "4"), &others, &allocatable).unwrap();
        assert_eq!(verdict.reason, "OutOfexample.com/foo");
        assert!(verdict.message.ends_with("requested: 4, used: 2, capacity: 5"));
        assert_eq!(fits(&pod("n", "example.com/bar", "4"), &others, &allocatable), None);
    }
}
