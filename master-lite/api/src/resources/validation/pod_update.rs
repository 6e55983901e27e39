//! Changes of pods: most of a spec is fixed once it is made.

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, number, same, set, text};
use super::pod::pod_and_spec;
use super::{rules, scheduling};
use crate::field::FieldError;

const FROZEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A change of a pod's metadata or spec.
pub(in crate::resources) fn pod_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    pod_and_spec(&mut errors, new);
    let (spec, before, at) = (&new["spec"], &old["spec"], Path::new("spec"));
    for field in ["containers", "initContainers"] {
        if list(spec, field).len() != list(before, field).len() {
            errors.forbidden(&at.child(field), "pod updates may not add or remove containers");
            return errors.0;
        }
    }
    if !active_deadline(&mut errors, spec, before, &at.child("activeDeadlineSeconds")) {
        return errors.0;
    }
    if !only_added_tolerations(spec, before) {
        let words = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden(&at.child("tolerations"), words);
    }
    for (at, gate) in items(spec, "schedulingGates", &at) {
        if !list(before, "schedulingGates").contains(gate) {
            let words =
                format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "name"));
            errors.forbidden(&at.child("name"), words);
        }
    }
    let mut munged = munge(spec, before);
    if !list(before, "schedulingGates").is_empty() {
        gated(&mut errors, &mut munged, before, &at);
    }
    if !same(&munged, before) {
        errors.forbidden(&at, FROZEN);
    }
    errors.0
}

/// False if nothing after it makes sense.
fn active_deadline(errors: &mut Errors, spec: &Value, before: &Value, at: &Path) -> bool {
    let value = &spec["activeDeadlineSeconds"];
    match (value.as_i64(), before["activeDeadlineSeconds"].as_i64()) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            errors.rule(at, value, rules::in_range(seconds, 0, i64::from(i32::MAX)));
            false
        }
        (Some(seconds), Some(old)) if old < seconds => {
            errors.invalid(at, value, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            errors.invalid(at, value, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

fn only_added_tolerations(spec: &Value, before: &Value) -> bool {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    let now: Vec<Value> = list(spec, "tolerations").iter().map(without_seconds).collect();
    list(before, "tolerations").iter().all(|old| now.contains(&without_seconds(old)))
}

/// The new spec with the old values of all fields that may change.
fn munge(spec: &Value, before: &Value) -> Value {
    let mut munged = spec.clone();
    for field in ["containers", "initContainers"] {
        let containers = munged.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, old) in containers.zip(list(before, field)) {
            copy(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        copy(&mut munged, before, field);
    }
    if number(before, "terminationGracePeriodSeconds") < 0
        && number(&munged, "terminationGracePeriodSeconds") == 1
    {
        copy(&mut munged, before, "terminationGracePeriodSeconds");
    }
    munged
}

pub(super) fn copy(to: &mut Value, from: &Value, field: &str) {
    let Some(map) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.remove(field),
    };
}

/// A pod that waits for its gates may be narrowed down to fewer nodes (KEP-3838).
fn gated(errors: &mut Errors, munged: &mut Value, before: &Value, at: &Path) {
    if munged["nodeSelector"] != before["nodeSelector"] {
        if !scheduling::only_added(munged, before, "nodeSelector") {
            let words = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.invalid(&at.child("nodeSelector"), &munged["nodeSelector"], words);
        }
        copy(munged, before, "nodeSelector");
    }
    let terms = |spec: &Value| {
        let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        list(required, "nodeSelectorTerms").to_vec()
    };
    let (now, old) = (terms(munged), terms(before));
    if munged["affinity"]["nodeAffinity"] == before["affinity"]["nodeAffinity"] {
        return;
    }
    let narrowed = now.len() == old.len()
        && now.iter().zip(&old).all(|(now, old)| {
            ["matchExpressions", "matchFields"]
                .iter()
                .all(|field| list(old, field).iter().all(|rule| list(now, field).contains(rule)))
        });
    if !old.is_empty() && !narrowed {
        let at = at
            .child("affinity")
            .child("nodeAffinity")
            .child("requiredDuringSchedulingIgnoredDuringExecution");
        errors.invalid(&at, &json!(now), "only additions are allowed to required node affinity");
    }
    let old_affinity = &before["affinity"]["nodeAffinity"];
    if !set(munged, "affinity") {
        if !old_affinity.is_null() {
            munged["affinity"] = json!({"nodeAffinity": old_affinity});
        }
    } else if let Some(affinity) = munged.get_mut("affinity") {
        copy(affinity, &before["affinity"], "nodeAffinity");
        if affinity.as_object().is_some_and(serde_json::Map::is_empty) && !set(before, "affinity") {
            copy(munged, before, "affinity");
        }
    }
}

/// A change through the `ephemeralcontainers` subresource: containers are only added.
pub(in crate::resources) fn ephemeral_containers_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    pod_and_spec(&mut errors, new);
    let at = Path::new("spec").child("ephemeralContainers");
    for before in list(&old["spec"], "ephemeralContainers") {
        let name = text(before, "name");
        match list(&new["spec"], "ephemeralContainers").iter().find(|c| text(c, "name") == name) {
            None => {
                errors.forbidden(&at, format!("existing ephemeral containers {name:?} may not be removed\n"))
            }
            Some(now) if !same(now, before) => {
                errors.forbidden(&at, format!("existing ephemeral containers {name:?} may not be changed\n"));
            }
            Some(_) => {}
        }
    }
    errors.0
}
