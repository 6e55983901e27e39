//! Kinds with few rules.

use serde_json::Value;

use super::errors::{Errors, Path, flag, items, number, set, text};
use crate::field::FieldError;
use crate::resources::metadata::qualified_name;

/// Largest priority of a class that is not the system's own.
const MAX_PRIORITY: i64 = 1_000_000_000;
/// The system's classes and their priorities.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// A Lease, new or changed.
pub(in crate::resources) fn lease(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        errors.invalid(
            &at.child("leaseDurationSeconds"),
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        );
    }
    errors.not_negative(spec, &["leaseTransitions"], &at);
    if let Some(strategy) = spec["strategy"].as_str() {
        // Upstream says `strategy` twice.
        let place = at.child("strategy").child("strategy");
        if strategy.contains('/') {
            errors.rule(&place, &strategy.into(), qualified_name(strategy));
        } else if strategy != "OldestEmulationVersion" {
            errors.unsupported(&place, &strategy.into(), &["OldestEmulationVersion"]);
        }
    }
    if !text(spec, "preferredHolder").is_empty() && text(spec, "strategy").is_empty() {
        errors.forbidden(&at.child("preferredHolder"), "may only be specified if `strategy` is defined");
    }
    errors.0
}

/// A Namespace: its finalizers, and through `status` its phase.
pub(in crate::resources) fn namespace(object: &Value, subresource: &str) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if subresource == "status" {
        let (deleted, phase) = (set(&object["metadata"], "deletionTimestamp"), &object["status"]["phase"]);
        let at = Path::new("status").child("Phase");
        if !deleted && *phase != "Active" {
            errors.invalid(&at, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        } else if deleted && *phase != "Terminating" {
            errors.invalid(&at, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
        return errors.0;
    }
    for (at, finalizer) in items(&object["spec"], "finalizers", &Path::new("spec")) {
        let name = finalizer.as_str().unwrap_or_default();
        errors.rule(&at, finalizer, qualified_name(name));
        if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
            errors.invalid(
                &at,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    errors.0
}

/// A new PriorityClass.
pub(in crate::resources) fn priority_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (name, value) = (text(&object["metadata"], "name"), number(object, "value"));
    if name.starts_with("system-") {
        let why = match SYSTEM_CLASSES.iter().find(|(system, _)| *system == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, priority)) if *priority != value => {
                Some(format!("value of {name} PriorityClass must be {priority}"))
            }
            Some(_) if flag(object, "globalDefault") => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            let words = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            );
            errors.forbidden(&Path::new("metadata").child("name"), words);
        }
    } else if value > MAX_PRIORITY {
        let words = format!("maximum allowed value of a user defined priority is {MAX_PRIORITY}");
        errors.forbidden(&Path::new("value"), words);
    }
    errors.optional_one_of(
        &Path::new("preemptionPolicy"),
        &object["preemptionPolicy"],
        &["PreemptLowerPriority", "Never"],
    );
    errors.0
}

/// A change of a PriorityClass.
pub(in crate::resources) fn priority_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    if number(new, "value") != number(old, "value") {
        errors.forbidden(&Path::new("value"), "may not be changed in an update.");
    }
    errors.immutable(&Path::new("preemptionPolicy"), &new["preemptionPolicy"], &old["preemptionPolicy"]);
    errors.0
}
