//! PodDisruptionBudgets (`pkg/apis/policy/validation`) and ControllerRevisions (`pkg/apis/apps/validation`).

use serde_json::Value;

use super::errors::{Errors, Path, number, set};
use super::rules::{at_most_100_percent, int_or_percent};
use super::{conditions, selectors};
use crate::field::FieldError;

/// A PodDisruptionBudget, new or changed.
pub(in crate::resources) fn disruption_budget(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    if set(spec, "minAvailable") && set(spec, "maxUnavailable") {
        errors.invalid(&at, spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if set(spec, field) {
            int_or_percent(&mut errors, &at.child(field), &spec[field]);
            at_most_100_percent(&mut errors, &at.child(field), &spec[field]);
        }
    }
    if set(spec, "selector") {
        selectors::label_selector(&mut errors, &spec["selector"], &at.child("selector"));
    }
    let policy = &spec["unhealthyPodEvictionPolicy"];
    errors.optional_one_of(
        &at.child("unhealthyPodEvictionPolicy"),
        policy,
        &["AlwaysAllow", "IfHealthyBudget"],
    );
    errors.0
}

/// A PodDisruptionBudget's new status.
pub(in crate::resources) fn disruption_budget_status(new: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (status, at) = (&new["status"], Path::new("status"));
    conditions::conditions(&mut errors, status, &at);
    let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
    errors.not_negative(status, &counts, &at);
    errors.0
}

/// A ControllerRevision, new or changed: what it holds never changes.
pub(in crate::resources) fn controller_revision(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let data = Path::new("data");
    match &new["data"] {
        Value::Null => errors.required(&data, "data is mandatory"),
        Value::Object(_) => {}
        _ => errors.invalid(&data, &new["data"], "error parsing data: must be an object"),
    }
    if number(new, "revision") < 0 {
        let words = "must be greater than or equal to 0";
        errors.invalid(&Path::new("revision"), &new["revision"], words);
    }
    if let Some(old) = old {
        errors.immutable(&data, &new["data"], &old["data"]);
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(errors: Vec<FieldError>, expected: &[&str]) {
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn budgets() {
        let budget = |spec: Value| disruption_budget(&json!({"spec": spec}));
        check(budget(json!({"minAvailable": "50%", "selector": {}})), &[]);
        check(
            budget(json!({"minAvailable": 1, "maxUnavailable": 2})),
            &[
                "spec: Invalid value: {\"maxUnavailable\":2,\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set",
            ],
        );
        check(
            budget(json!({"unhealthyPodEvictionPolicy": "X"})),
            &[
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"X\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
            ],
        );
        assert_eq!(budget(json!({"maxUnavailable": "150%"})).len(), 1);
    }

    #[test]
    fn statuses() {
        let good = json!({"type": "A", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        check(disruption_budget_status(&json!({"status": {"conditions": [good]}})), &[]);
        let bad = json!({"type": "A", "status": "Perhaps"});
        check(
            disruption_budget_status(&json!({"status": {"conditions": [bad], "expectedPods": -1}})),
            &[
                "status.conditions[0].status: Unsupported value: \"Perhaps\": supported values: \"False\", \"True\", \"Unknown\"",
                "status.conditions[0].lastTransitionTime: Required value: must be set",
                "status.conditions[0].reason: Required value: must be set",
                "status.expectedPods: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
    }

    #[test]
    fn revisions_hold_what_they_hold() {
        let old = json!({"data": {"a": 1}, "revision": 1});
        check(controller_revision(&old, None), &[]);
        check(controller_revision(&json!({"data": {"a": 1}, "revision": 2}), Some(&old)), &[]);
        check(
            controller_revision(&json!({"data": {"a": 2}, "revision": -1}), Some(&old)),
            &[
                "revision: Invalid value: -1: must be greater than or equal to 0",
                "data: Invalid value: {\"a\":2}: field is immutable",
            ],
        );
        check(
            controller_revision(&json!({"revision": 1}), None),
            &["data: Required value: data is mandatory"],
        );
    }
}
