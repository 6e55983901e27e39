//! Pods (`pkg/registry/core/pod/strategy.go`).

use serde_json::{Value, json};

use super::parse_quantity;
use super::pod_template::{default_pod_only, default_pod_spec};
use crate::field::FieldError;
use crate::resources::{Deletion, DeletionRequest, Strategy, StrategyContext};

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
        validate_pod_spec(&object["spec"], "spec")
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if !context.subresource.is_empty() {
            return Vec::new();
        }
        let mut errors = validate_pod_spec(&new["spec"], "spec");
        if frozen(&new["spec"], &old["spec"]) != frozen(&old["spec"], &old["spec"]) {
            errors.push(FieldError::forbidden(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            ));
        }
        errors
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

/// A spec with the fields blanked that an update may change.
fn frozen(spec: &Value, old: &Value) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers"] {
        for container in super::items(&mut spec, list) {
            container["image"] = Value::Null;
        }
    }
    let tolerations = |v: &Value| v["tolerations"].as_array().cloned().unwrap_or_default();
    let kept = tolerations(old).iter().all(|t| tolerations(&spec).contains(t));
    if let Some(map) = spec.as_object_mut() {
        map.remove("activeDeadlineSeconds");
        if kept {
            map.remove("tolerations");
        }
        // Gates may only be taken away.
        let gates = map.remove("schedulingGates").and_then(|g| g.as_array().cloned()).unwrap_or_default();
        let before = old["schedulingGates"].as_array().cloned().unwrap_or_default();
        if gates.iter().any(|g| !before.contains(g)) {
            map.insert("schedulingGates".to_owned(), gates.into());
        }
        let negative = old["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0);
        if negative && map.get("terminationGracePeriodSeconds").and_then(Value::as_i64) == Some(1) {
            map.insert(
                "terminationGracePeriodSeconds".to_owned(),
                old["terminationGracePeriodSeconds"].clone(),
            );
        }
    }
    spec
}

/// The checks without which a pod makes no sense at all.
pub(super) fn validate_pod_spec(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let containers = spec["containers"].as_array().map_or(&[][..], Vec::as_slice);
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = std::collections::HashSet::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            match container["name"].as_str().unwrap_or_default() {
                "" => errors.push(FieldError::required(format!("{at}.name"), "")),
                name => {
                    if let Err(why) = crate::resources::metadata::dns_label(name) {
                        errors.push(FieldError::invalid(format!("{at}.name"), &container["name"], why));
                    } else if !names.insert(name) {
                        errors.push(FieldError::duplicate(format!("{at}.name"), &container["name"]));
                    }
                }
            }
            if container["image"].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::required(format!("{at}.image"), ""));
            }
        }
    }
    let mut volumes = std::collections::HashSet::new();
    for (i, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let name = volume["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.volumes[{i}].name"), ""));
        } else if !volumes.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.volumes[{i}].name"), &volume["name"]));
        }
    }
    for (i, container) in containers.iter().enumerate() {
        for (j, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
            if !volumes.contains(mount["name"].as_str().unwrap_or_default()) {
                errors.push(FieldError {
                    kind: crate::field::ErrorType::NotFound,
                    field: format!("{path}.containers[{i}].volumeMounts[{j}].name"),
                    value: Some(mount["name"].to_string()),
                    detail: String::new(),
                });
            }
        }
    }
    let policy = &spec["restartPolicy"];
    if !matches!(policy.as_str(), None | Some("Always" | "OnFailure" | "Never")) {
        errors.push(FieldError::not_supported(
            format!("{path}.restartPolicy"),
            policy,
            &["Always", "OnFailure", "Never"],
        ));
    }
    errors
}

/// Quality of service from cpu and memory requests and limits, as `status.qosClass` shows it.
pub fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array().into_iter().flatten() {
            for resource in ["cpu", "memory"] {
                let amount = |kind: &str| {
                    parse_quantity(&container["resources"][kind][resource]).filter(|amount| *amount > 0)
                };
                let (request, limit) = (amount("requests"), amount("limits"));
                any |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
            }
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

    #[test]
    fn only_some_fields_change() {
        let old = json!({"spec": {"containers": [{"name": "c", "image": "a"}], "nodeName": "n"}});
        let check = |change: fn(&mut Value), allowed: bool| {
            let mut new = old.clone();
            change(&mut new);
            let errors = Pod.validate_update(&StrategyContext::default(), &new, &old);
            assert_eq!(errors.is_empty(), allowed, "{errors:?}");
        };
        check(|p| p["spec"]["containers"][0]["image"] = "b".into(), true);
        check(|p| p["spec"]["tolerations"] = json!([{"key": "k"}]), true);
        check(|p| p["spec"]["nodeName"] = "m".into(), false);
    }
}
