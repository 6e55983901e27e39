//! What the status of a kind that keeps pods running may say (`pkg/apis/{apps,core}/validation`).

use serde_json::Value;

use super::errors::{Errors, Path, number};
use crate::field::FieldError;

/// Which counts a status has.
struct Counts {
    /// None may be negative.
    all: &'static [&'static str],
    /// None may exceed `replicas`.
    parts: &'static [&'static str],
}

fn check(new: &Value, old: &Value, counts: &Counts) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (status, at) = (&new["status"], Path::new("status"));
    errors.not_negative(status, counts.all, &at);
    errors.not_negative(status, &["observedGeneration", "collisionCount"], &at);
    for part in counts.parts {
        if number(status, part) > number(status, "replicas") {
            let words = "cannot be greater than status.replicas";
            errors.invalid(&at.child(part), &status[*part], words);
        }
    }
    if !counts.parts.is_empty() && number(status, "availableReplicas") > number(status, "readyReplicas") {
        let words = "cannot be greater than readyReplicas";
        errors.invalid(&at.child("availableReplicas"), &status["availableReplicas"], words);
    }
    if number(status, "collisionCount") < number(&old["status"], "collisionCount") {
        errors.invalid(&at.child("collisionCount"), &status["collisionCount"], "cannot be decremented");
    }
    errors.0
}

/// A Deployment's new status.
pub(in crate::resources) fn deployment_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let counts = Counts {
        all: &[
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
        ],
        parts: &["updatedReplicas", "readyReplicas", "availableReplicas"],
    };
    check(new, old, &counts)
}

/// A ReplicaSet's or a ReplicationController's new status.
pub(in crate::resources) fn replicas_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let counts = Counts {
        all: &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "terminatingReplicas",
        ],
        parts: &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
    };
    check(new, old, &counts)
}

/// A StatefulSet's new status.
pub(in crate::resources) fn stateful_set_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let counts = Counts {
        all: &["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        parts: &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
    };
    check(new, old, &counts)
}

/// A DaemonSet's new status.
pub(in crate::resources) fn daemon_set_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let counts = Counts {
        all: &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ],
        parts: &[],
    };
    check(new, old, &counts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts() {
        let of = |status: Value| json!({"status": status});
        let good =
            of(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 1}));
        assert_eq!(deployment_status(&good, &of(json!({}))), []);
        let bad = of(json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": -1}));
        let shown: Vec<String> = replicas_status(&bad, &good).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "status.availableReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.collisionCount: Invalid value: null: cannot be decremented",
            ]
        );
        let more = of(json!({"replicas": 2, "availableReplicas": 1}));
        assert_eq!(
            stateful_set_status(&more, &of(json!({})))[0].to_string(),
            "status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas"
        );
        assert_eq!(daemon_set_status(&of(json!({"numberReady": -1})), &of(json!({}))).len(), 1);
    }
}
