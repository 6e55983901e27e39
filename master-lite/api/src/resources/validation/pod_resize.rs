//! A change through the `resize` subresource: cpu and memory of containers and of the pod, nothing else (KEP-1287).
//!
//! Source: upstream `ValidatePodResize` (`pkg/apis/core/validation/validation.go`).

use serde_json::{Map, Value};

use super::errors::{Errors, Path, items, list, same, set, text};
use super::pod::pod_and_spec;
use super::pod_update::copy;
use crate::field::FieldError;
use crate::resources::strategies::pod::qos_class;

const ONLY: &str = "only cpu and memory resources are mutable";

/// A resize of a pod.
pub(in crate::resources) fn pod_resize(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = Path::new("");
    if !old["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
        errors.forbidden(&root, "static pods cannot be resized");
        return errors.0;
    }
    if old["spec"]["os"]["name"] == "windows" {
        errors.forbidden(&root, "windows pods cannot be resized");
        return errors.0;
    }
    pod_and_spec(&mut errors, new);
    let (spec, before, at) = (&new["spec"], &old["spec"], Path::new("spec"));
    let class = old["status"]["qosClass"].as_str().unwrap_or_else(|| qos_class(old));
    if class != qos_class(new) {
        let words = "Pod QOS Class may not change as a result of resizing";
        errors.invalid(&at, &new["status"]["qosClass"], words);
    }
    if !node_resizes(old) {
        errors.forbidden(&at, "Pod running on node without support for resize");
    }
    if !pod_level(&mut errors, spec, before, &at) {
        return errors.0;
    }
    if !list(&old["status"], "nodeAllocatableResourceClaimStatuses").is_empty() {
        errors.forbidden(&at, "pods with node allocatable resource claims cannot be resized");
    }
    if !same_order(&mut errors, spec, before, &at) {
        return errors.0;
    }
    for field in ["initContainers", "containers"] {
        for ((at, now), was) in items(spec, field, &at).zip(list(before, field)) {
            none_removed(&mut errors, now, was, &at.child("resources"), "resource");
        }
    }
    for (now, was) in list(spec, "containers").iter().zip(list(before, "containers")) {
        if !same(&masked(now, was), &masked(was, was)) {
            errors.forbidden(&at, ONLY);
        }
    }
    for ((at, now), was) in items(spec, "initContainers", &at).zip(list(before, "initContainers")) {
        init_container(&mut errors, now, was, &at);
    }
    if errors.0.is_empty() {
        let mut rest = spec.clone();
        for field in ["containers", "initContainers", "resources"] {
            copy(&mut rest, before, field);
        }
        if !same(&rest, before) {
            errors.forbidden(&at, ONLY);
        }
    }
    errors.0
}

/// A node that reports no resources of a running container knows nothing of resizing.
fn node_resizes(pod: &Value) -> bool {
    let running = list(&pod["status"], "containerStatuses").iter().find(|c| set(&c["state"], "running"));
    running.is_none_or(|c| set(c, "resources"))
}

/// False if nothing after it makes sense.
fn pod_level(errors: &mut Errors, spec: &Value, before: &Value, at: &Path) -> bool {
    let at_resources = at.child("resources");
    if set(before, "resources") && !set(spec, "resources") {
        errors.forbidden(&at_resources, "pod-level resources cannot be removed");
        return false;
    }
    none_removed(errors, spec, before, &at_resources, "pod-level resource");
    if !same(&masked(spec, before)["resources"], &masked(before, before)["resources"]) {
        errors.forbidden(at, "only cpu and memory resources are mutable at pod-level");
    }
    true
}

fn same_order(errors: &mut Errors, spec: &Value, before: &Value, at: &Path) -> bool {
    let known = errors.0.len();
    for field in ["containers", "initContainers"] {
        if list(spec, field).len() != list(before, field).len() {
            errors.forbidden(&at.child(field), format!("{field} may not be added or removed on resize"));
            continue;
        }
        for ((at, now), was) in items(spec, field, at).zip(list(before, field)) {
            if text(now, "name") != text(was, "name") {
                let words = format!("{field} may not be renamed or reordered on resize");
                errors.forbidden(&at.child("name"), words);
            }
        }
    }
    errors.0.len() == known
}

/// Requests and limits may change, but not go.
fn none_removed(errors: &mut Errors, now: &Value, was: &Value, at: &Path, what: &str) {
    for side in ["requests", "limits"] {
        let names = |of: &Value| of["resources"][side].as_object().cloned().unwrap_or_default();
        let now = names(now);
        if names(was).keys().any(|name| !now.contains_key(name)) {
            errors.forbidden(&at.child(side), format!("{what} {side} cannot be removed"));
        }
    }
}

fn init_container(errors: &mut Errors, now: &Value, was: &Value, at: &Path) {
    if !same(&masked(now, was), &masked(was, was)) {
        errors.forbidden(at, "only cpu and memory resources for init or sidecar containers are mutable");
    }
    let sidecar = now["restartPolicy"] == "Always";
    if sidecar || same(now, was) {
        return;
    }
    for policy in list(now, "resizePolicy") {
        if policy["restartPolicy"] == "RestartContainer" {
            let words =
                "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
            errors.forbidden(at, words);
        }
    }
}

/// A container or pod spec with the cpu and memory of another, and nothing empty in its resources.
fn masked(of: &Value, from: &Value) -> Value {
    let mut out = of.clone();
    let mut resources = out["resources"].as_object().cloned().unwrap_or_default();
    for side in ["requests", "limits"] {
        let mut amounts = resources.get(side).and_then(Value::as_object).cloned().unwrap_or_default();
        for name in ["cpu", "memory"] {
            match from["resources"][side].get(name) {
                Some(amount) => amounts.insert(name.to_owned(), amount.clone()),
                None => amounts.remove(name),
            };
        }
        put(&mut resources, side, amounts);
    }
    if let Some(map) = out.as_object_mut() {
        put(map, "resources", resources);
    }
    out
}

fn put(map: &mut Map<String, Value>, field: &str, value: Map<String, Value>) {
    if value.is_empty() {
        map.remove(field);
    } else {
        map.insert(field.to_owned(), Value::Object(value));
    }
}
