//! Pods (`pkg/registry/core/pod/strategy.go`).

use serde_json::{Value, json};

use super::pod_template::{default_pod_only, default_pod_spec};
use crate::field::FieldError;
use crate::resources::{Deletion, DeletionRequest, Strategy, StrategyContext, validation};
use keelson_quantity::Quantity;

/// Pods.
pub struct Pod;

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = super::child(object, "spec") {
            default_pod_spec(spec);
            default_pod_only(spec);
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        let mut status = json!({"phase": "Pending", "qosClass": qos_class(object)});
        let gates = object["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty());
        if gates {
            status["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        object["status"] = status;
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::pod(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        match context.subresource.as_str() {
            "" => validation::pod_update(new, old),
            "ephemeralcontainers" => validation::ephemeral_containers_update(new, old),
            "resize" => validation::pod_resize(new, old),
            _ => Vec::new(),
        }
    }

    fn allow_unconditional_update(&self) -> bool {
        true
    }

    fn deletion(&self, object: &Value, request: &DeletionRequest) -> Deletion {
        let spec_period = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(0);
        let mut seconds = request.grace_period_seconds.unwrap_or(spec_period);
        let unscheduled = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
        let finished = matches!(object["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
        if unscheduled || finished {
            seconds = 0;
        }
        if seconds < 0 {
            seconds = 1;
        }
        if seconds == 0 { Deletion::Immediate } else { Deletion::Graceful { seconds } }
    }
}

/// Quality of service from cpu and memory requests and limits, as `status.qosClass` shows it. Resources of the pod as a
/// whole (KEP-2837) take the place of the containers'.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let own = &spec["resources"];
    let filled = |kind: &str| own[kind].as_object().is_some_and(|map| !map.is_empty());
    if filled("requests") || filled("limits") {
        return class_of(std::iter::once(own));
    }
    let lists = ["initContainers", "containers"].into_iter();
    class_of(
        lists
            .flat_map(|list| spec[list].as_array().into_iter().flatten())
            .map(|container| &container["resources"]),
    )
}

fn class_of<'a>(all: impl Iterator<Item = &'a Value>) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for resources in all {
        for resource in ["cpu", "memory"] {
            let amount = |kind: &str| {
                let amount = resources[kind][resource].as_str()?.parse::<Quantity>().ok()?;
                (amount.sign() > 0).then_some(amount)
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qos() {
        let check = |resources: Value, expected| {
            let pod = json!({"spec": {"containers": [{"resources": resources}]}});
            assert_eq!(qos_class(&pod), expected);
        };
        check(json!({}), "BestEffort");
        check(json!({"requests": {"cpu": "0"}}), "BestEffort");
        check(json!({"requests": {"cpu": "1"}}), "Burstable");
        check(json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed");
        check(
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
            "Guaranteed",
        );
        let whole =
            json!({"spec": {"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "containers": [{}]}});
        assert_eq!(qos_class(&whole), "Guaranteed");
    }

    #[test]
    fn grace() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}});
        let check = |pod: Value, asked: Option<i64>, expected| {
            assert_eq!(Pod.deletion(&pod, &DeletionRequest { grace_period_seconds: asked }), expected);
        };
        check(pod("n", "Running"), None, Deletion::Graceful { seconds: 30 });
        check(pod("n", "Running"), Some(5), Deletion::Graceful { seconds: 5 });
        check(pod("n", "Running"), Some(0), Deletion::Immediate);
        check(pod("", "Pending"), None, Deletion::Immediate);
        check(pod("n", "Succeeded"), None, Deletion::Immediate);
    }
}
