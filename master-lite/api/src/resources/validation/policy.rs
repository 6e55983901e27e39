//! PodDisruptionBudgets (`pkg/apis/policy/validation`) and ControllerRevisions (`pkg/apis/apps/validation`).

use serde_json::Value;

use super::errors::{Errors, Path, items, number, set, text};
use super::rules::{at_most_100_percent, int_or_percent};
use super::selectors;
use crate::field::FieldError;
use crate::resources::metadata::qualified_name;

const REASON_LENGTH: usize = 1024;
const MESSAGE_LENGTH: usize = 32 * 1024;

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
    conditions(&mut errors, status, &at);
    let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
    errors.not_negative(status, &counts, &at);
    errors.0
}

/// `metav1.Condition`s.
fn conditions(errors: &mut Errors, status: &Value, at: &Path) {
    let mut seen: Vec<&str> = Vec::new();
    for (at, condition) in items(status, "conditions", at) {
        let kind = text(condition, "type");
        if seen.contains(&kind) {
            errors.duplicate(&at.child("type"), &condition["type"]);
        }
        seen.push(kind);
        errors.rule(&at.child("type"), &kind.into(), qualified_name(kind));
        if !matches!(text(condition, "status"), "False" | "True" | "Unknown") {
            errors.unsupported(&at.child("status"), &condition["status"], &["False", "True", "Unknown"]);
        }
        if number(condition, "observedGeneration") < 0 {
            let words = "must be greater than or equal to zero";
            errors.invalid(&at.child("observedGeneration"), &condition["observedGeneration"], words);
        }
        if !set(condition, "lastTransitionTime") {
            errors.required(&at.child("lastTransitionTime"), "must be set");
        }
        match text(condition, "reason") {
            "" => errors.required(&at.child("reason"), "must be set"),
            reason => errors.rule(&at.child("reason"), &reason.into(), condition_reason(reason)),
        }
        if text(condition, "reason").len() > REASON_LENGTH {
            errors.too_long(&at.child("reason"), REASON_LENGTH);
        }
        if text(condition, "message").len() > MESSAGE_LENGTH {
            errors.too_long(&at.child("message"), MESSAGE_LENGTH);
        }
    }
}

/// `[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?`
fn condition_reason(reason: &str) -> Result<(), String> {
    let bytes = reason.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"_,:".contains(b);
    let end = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let sound = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.iter().all(inner)
        && bytes.last().is_some_and(|b| end(*b));
    if sound {
        return Ok(());
    }
    Err("a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')".to_owned())
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
        assert!(condition_reason("My:Reason_").is_ok() && condition_reason("1").is_err());
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
