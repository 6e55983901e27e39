//! What a pod's fields mean to those who count pods: phase, readiness, availability, resource requests.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::meta;
use keelson_quantity::{self as quantity, Quantity};

/// Resource name to amount.
pub type Resources = BTreeMap<String, Quantity>;

/// The pod's phase; empty counts as `Pending`.
pub fn phase(pod: &Pod) -> &str {
    match pod.status.as_ref().and_then(|s| s.phase.as_deref()) {
        None | Some("") => "Pending",
        Some(phase) => phase,
    }
}

/// Whether the pod has run to its end.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether its deletion has been asked for.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither ended nor being deleted (`controller.IsPodActive`).
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_terminating(pod)
}

/// One condition of the pod's status.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether the pod's `Ready` condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Whether the pod has been ready for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: &Time) -> bool {
    let Some(ready) = condition(pod, "Ready").filter(|c| c.status == "True") else { return false };
    if min_ready_seconds <= 0 {
        return true;
    }
    ready
        .last_transition_time
        .as_ref()
        .is_some_and(|since| meta::since(now, since).as_secs() >= i64::from(min_ready_seconds))
}

/// The node that the pod is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// The node on which the scheduler keeps room for the pod.
pub fn nominated_node(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
}

/// The pod's priority: admission writes it; a pod without one has 0.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// The pod's tolerations.
pub fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

/// The pod's addresses: `podIPs`, or `podIP` alone.
pub fn ips(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else { return Vec::new() };
    match status.pod_ips.as_deref() {
        Some(ips) if !ips.is_empty() => ips.iter().map(|ip| ip.ip.as_str()).collect(),
        _ => status.pod_ip.as_deref().filter(|ip| !ip.is_empty()).into_iter().collect(),
    }
}

/// What the pod takes of its node: the larger of its running containers together and each moment of its start, plus
/// overhead. A restartable init container (KEP-753) runs beside all that follow it.
/// Pod-level resources (KEP-2837) take the place of the containers' where they are set.
///
/// While a resize is under way (KEP-1287) a container counts with the most of what is wanted, allocated and in effect;
/// what the node has refused as infeasible does not count.
pub fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::new() };
    let status = pod.status.as_ref();
    let infeasible =
        condition(pod, "PodResizePending").is_some_and(|c| c.reason.as_deref() == Some("Infeasible"));
    let lists = status.map(|s| [&s.container_statuses, &s.init_container_statuses]);
    let status_of = |name: &str| lists.iter().flatten().copied().flatten().flatten().find(|s| s.name == name);
    let resized = |container: &Container| {
        let wanted = requested(container.resources.as_ref());
        match status_of(&container.name).filter(|s| s.resources.is_some()) {
            Some(s) => effective(wanted, infeasible, s.allocated_resources.as_ref(), s.resources.as_ref()),
            None => wanted,
        }
    };
    let mut running = Resources::new();
    for container in &spec.containers {
        add(&mut running, &resized(container));
    }
    let mut sidecars = Resources::new();
    let mut peak = Resources::new();
    for container in spec.init_containers.iter().flatten() {
        let mut moment;
        if container.restart_policy.as_deref() == Some("Always") {
            moment = resized(container);
            add(&mut running, &moment);
            add(&mut sidecars, &moment);
            moment = sidecars.clone();
        } else {
            moment = requested(container.resources.as_ref());
            add(&mut moment, &sidecars);
        }
        raise(&mut peak, &moment);
    }
    raise(&mut running, &peak);
    let own = requested(spec.resources.as_ref());
    let taken = match status.filter(|s| s.resources.is_some()) {
        Some(s) => effective(own.clone(), infeasible, s.allocated_resources.as_ref(), s.resources.as_ref()),
        None => own.clone(),
    };
    for name in own.into_keys() {
        if name == "cpu" || name == "memory" || name.starts_with("hugepages-") {
            running.insert(name.clone(), taken.get(&name).copied().unwrap_or_default());
        }
    }
    for (name, amount) in spec.overhead.iter().flatten() {
        *running.entry(name.clone()).or_default() += quantity::of(amount);
    }
    running
}

/// The most of what is wanted, allocated and in effect; without what is wanted when the node can't ever give that.
fn effective(
    wanted: Resources,
    infeasible: bool,
    allocated: Option<&BTreeMap<String, Text>>,
    actual: Option<&ResourceRequirements>,
) -> Resources {
    let mut out = if infeasible { Resources::new() } else { wanted };
    raise(&mut out, &amounts(allocated));
    raise(&mut out, &requested(actual));
    out
}

fn requested(resources: Option<&ResourceRequirements>) -> Resources {
    amounts(resources.and_then(|r| r.requests.as_ref()))
}

fn amounts(map: Option<&BTreeMap<String, Text>>) -> Resources {
    map.into_iter().flatten().map(|(name, amount)| (name.clone(), quantity::of(amount))).collect()
}

/// Adds `more` to `total`, resource by resource.
pub fn add(total: &mut Resources, more: &Resources) {
    for (name, amount) in more {
        *total.entry(name.clone()).or_default() += *amount;
    }
}

fn raise(total: &mut Resources, least: &Resources) {
    for (name, amount) in least {
        let present = total.entry(name.clone()).or_default();
        *present = (*present).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(cpu: &str, sidecar: bool) -> serde_json::Value {
        let mut container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        if sidecar {
            container["restartPolicy"] = json!("Always");
        }
        container
    }

    /// A container that wants 2 CPUs, with what is allocated and in effect, and the reason of a pending resize.
    fn check_resize(allocated: &str, actual: &str, pending: &str, milli: i64) {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [container("2", false)]},
            "status": {
                "conditions": [{"type": "PodResizePending", "status": "True", "reason": pending}],
                "containerStatuses": [{
                    "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": {"cpu": allocated}, "resources": {"requests": {"cpu": actual}},
                }],
            },
        }))
        .unwrap();
        assert_eq!(requests(&pod)["cpu"].milli_value(), milli, "{allocated} {actual} {pending}");
    }

    #[test]
    fn resizes_count_with_the_most() {
        check_resize("1", "1", "Deferred", 2000);
        check_resize("3", "1", "Deferred", 3000);
        check_resize("2", "4", "Deferred", 4000);
        check_resize("1", "1500m", "Infeasible", 1500);
    }

    fn check(init: &[(&str, bool)], running: &[&str], overhead: &str, milli: i64) {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": init.iter().map(|(cpu, sidecar)| container(cpu, *sidecar)).collect::<Vec<_>>(),
            "containers": running.iter().map(|cpu| container(cpu, false)).collect::<Vec<_>>(),
            "overhead": {"cpu": overhead},
        }}))
        .unwrap();
        assert_eq!(requests(&pod)["cpu"].milli_value(), milli);
    }

    #[test]
    fn requests_count_init_containers_sidecars_and_overhead() {
        check(&[], &["100m", "200m"], "0", 300);
        check(&[("500m", false)], &["100m"], "0", 500);
        check(&[("100m", true), ("500m", false)], &["100m"], "0", 600);
        check(&[("500m", false), ("100m", true)], &["450m"], "0", 550);
        check(&[], &["100m"], "50m", 150);
    }
}
