//! Quality of service, requests and limits of a pod.
//!
//! Source: upstream `pkg/apis/core/v1/helper/qos` and `component-helpers/resource/helpers.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::podext::{PodExt, is_sidecar};
use keelson_quantity as quantity;

/// `status.qosClass`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has equal requests and limits of cpu and memory.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl QosClass {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

type Resources = BTreeMap<String, Quantity>;

/// Computes the class; the API server's `status.qosClass` is the same function of the same spec.
pub fn qos_class(pod: &Pod) -> QosClass {
    if let Some(own) = &PodExt::spec(pod).resources
        && (has_compute(own.requests.as_ref()) || has_compute(own.limits.as_ref()))
    {
        return class_of(&[(own.requests.as_ref(), own.limits.as_ref())]);
    }
    let all = PodExt::spec(pod).containers.iter().chain(pod.init_containers());
    let pairs: Vec<_> = all
        .map(|c| {
            let r = c.resources.as_ref();
            (r.and_then(|r| r.requests.as_ref()), r.and_then(|r| r.limits.as_ref()))
        })
        .collect();
    class_of(&pairs)
}

fn class_of(pairs: &[(Option<&Resources>, Option<&Resources>)]) -> QosClass {
    let amount =
        |m: Option<&Resources>, name: &str| m.and_then(|m| m.get(name)).map(quantity::of).unwrap_or_default();
    let mut any = false;
    let mut guaranteed = !pairs.is_empty();
    for (requests, limits) in pairs {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(*requests, name), amount(*limits, name));
            any |= request.sign() > 0 || limit.sign() > 0;
            // A request that is not given defaults to the limit, as the API server does.
            guaranteed &= limit.sign() > 0 && (request.is_zero() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

fn has_compute(map: Option<&Resources>) -> bool {
    map.is_some_and(|m| m.contains_key("cpu") || m.contains_key("memory"))
}

/// Which side of `resources` to sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `requests`.
    Requests,
    /// `limits`.
    Limits,
}

/// Amount of one resource of one container, in thousandths for cpu and units for the rest.
pub fn container_amount(container: &Container, side: Side, name: &str) -> i64 {
    let resources = container.resources.as_ref();
    let map = match side {
        Side::Requests => resources.and_then(|r| r.requests.as_ref()),
        Side::Limits => resources.and_then(|r| r.limits.as_ref()),
    };
    map.and_then(|m| m.get(name)).map_or(0, |q| amount(name, q))
}

/// Thousandths for cpu, units for everything else.
pub fn amount(name: &str, q: &Quantity) -> i64 {
    let amount = quantity::of(q);
    if name == "cpu" { amount.milli_value() } else { amount.value() }
}

/// What the whole pod asks for: containers and sidecars together, or the largest init step when that is more,
/// plus overhead; pod-level resources win.
pub fn pod_amount(pod: &Pod, side: Side, name: &str) -> i64 {
    let overhead =
        PodExt::spec(pod).overhead.as_ref().and_then(|o| o.get(name)).map_or(0, |q| amount(name, q));
    if let Some(own) = &PodExt::spec(pod).resources {
        let map = if side == Side::Requests { own.requests.as_ref() } else { own.limits.as_ref() };
        if let Some(q) = map.and_then(|m| m.get(name)) {
            return amount(name, q).saturating_add(overhead);
        }
    }
    let sum =
        |it: &[Container]| it.iter().fold(0_i64, |a, c| a.saturating_add(container_amount(c, side, name)));
    let mut sidecars = 0_i64;
    let mut peak = 0_i64;
    for container in pod.init_containers() {
        let own = container_amount(container, side, name);
        if is_sidecar(container) {
            sidecars = sidecars.saturating_add(own);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(own));
        }
    }
    let total = sum(&PodExt::spec(pod).containers).saturating_add(sidecars).max(peak);
    // Overhead raises a limit only where there is one.
    if side == Side::Limits && total == 0 { 0 } else { total.saturating_add(overhead) }
}

/// All of what [`pod_amount`] says, under every name that the pod or its containers use; none when that is nothing.
pub fn pod_amounts(pod: &Pod, side: Side) -> Option<Resources> {
    let spec = PodExt::spec(pod);
    let all = spec.containers.iter().chain(pod.init_containers()).map(|c| c.resources.as_ref());
    let maps = all.chain([spec.resources.as_ref()]).flatten().flat_map(|r| match side {
        Side::Requests => r.requests.as_ref(),
        Side::Limits => r.limits.as_ref(),
    });
    let overhead = spec.overhead.iter().filter(|_| side == Side::Requests);
    let names: std::collections::BTreeSet<&String> = maps.chain(overhead).flat_map(BTreeMap::keys).collect();
    let text = |name: &str| {
        let amount = pod_amount(pod, side, name);
        let text = if name == "cpu" { format!("{amount}m") } else { amount.to_string() };
        Quantity(quantity::canonical(&text).map_or_else(|_| text.clone(), std::borrow::Cow::into_owned))
    };
    let out: Resources = names.into_iter().map(|name| (name.clone(), text(name))).collect();
    (!out.is_empty()).then_some(out)
}

/// Whether every container of the pod limits this resource: only then does the pod's cgroup get a limit.
pub fn limits_declared(pod: &Pod, name: &str) -> bool {
    if let Some(own) = &PodExt::spec(pod).resources
        && own.limits.as_ref().is_some_and(|m| m.contains_key(name))
    {
        return true;
    }
    PodExt::spec(pod)
        .containers
        .iter()
        .chain(pod.init_containers())
        .all(|c| container_amount(c, Side::Limits, name) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: serde_json::Value, init: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {},
            "spec": {"containers": containers, "initContainers": init}}))
        .unwrap()
    }

    fn check(resources: serde_json::Value, want: QosClass) {
        let p = pod(serde_json::json!([{"name": "c", "resources": resources}]), serde_json::json!([]));
        assert_eq!(qos_class(&p), want, "{resources}");
    }

    #[test]
    fn classes() {
        check(serde_json::json!({}), QosClass::BestEffort);
        check(serde_json::json!({"requests": {"cpu": "0"}}), QosClass::BestEffort);
        check(serde_json::json!({"requests": {"cpu": "1m"}}), QosClass::Burstable);
        check(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), QosClass::Guaranteed);
        check(
            serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
            QosClass::Guaranteed,
        );
        check(
            serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
            QosClass::Burstable,
        );
        check(serde_json::json!({"limits": {"cpu": "1"}}), QosClass::Burstable);
        check(serde_json::json!({"requests": {"nvidia.com/gpu": "1"}}), QosClass::BestEffort);
    }

    #[test]
    fn init_steps_and_sidecars() {
        let cpu = |n: &str| serde_json::json!({"requests": {"cpu": n}});
        let p = pod(
            serde_json::json!([{"name": "a", "resources": cpu("100m")}]),
            serde_json::json!([{"name": "i", "resources": cpu("500m")},
                {"name": "s", "restartPolicy": "Always", "resources": cpu("200m")},
                {"name": "j", "resources": cpu("400m")}]),
        );
        assert_eq!(pod_amount(&p, Side::Requests, "cpu"), 600);
        assert_eq!(pod_amount(&p, Side::Limits, "cpu"), 0);
    }
}
