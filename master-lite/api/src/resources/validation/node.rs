//! Nodes.

use std::collections::HashSet;

use serde_json::Value;

use super::errors::{Errors, Path, entries, items, list, text};
use super::scheduling::TAINT_EFFECTS;
use super::{resources, rules};
use crate::field::{ErrorType, FieldError};
use crate::resources::metadata::{label_value, qualified_name};

/// A new Node.
pub(in crate::resources) fn node(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    common(&mut errors, object);
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let mut families = Vec::new();
    for (at, range) in items(spec, "podCIDRs", &at) {
        match rules::cidr(range.as_str().unwrap_or_default()) {
            Ok((address, _)) => families.push(address.is_ipv4()),
            Err(why) => errors.invalid(&at, range, why),
        }
    }
    if families.len() > 2 || matches!(families[..], [first, second] if first == second) {
        let words = "may specify no more than one CIDR for each IP family";
        errors.invalid(&at.child("podCIDRs"), &spec["podCIDRs"], words);
    }
    errors.0
}

fn common(errors: &mut Errors, object: &Value) {
    // Upstream says `metadata.taints`, though they lie in the spec.
    taints(errors, &object["spec"], &Path::new("metadata"));
    for field in ["capacity", "allocatable"] {
        let at = Path::new("status").child(field);
        for (name, amount) in entries(&object["status"], field) {
            resources::quantity(errors, name, amount, &at.child(name));
        }
    }
}

fn taints(errors: &mut Errors, spec: &Value, at: &Path) {
    let mut seen = HashSet::new();
    for (at, taint) in items(spec, "taints", at) {
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        errors.rule(&at.child("key"), &key.into(), qualified_name(key));
        errors.rule(&at.child("value"), &taint["value"], label_value(text(taint, "value")));
        errors.one_of(&at.child("effect"), &taint["effect"], TAINT_EFFECTS);
        if !seen.insert((key, effect)) {
            errors.0.push(FieldError {
                kind: ErrorType::Duplicate,
                field: (&at).into(),
                value: Some(taint.to_string()),
                detail: "taints must be unique by key and effect pair".to_owned(),
            });
        }
    }
}

/// A change of a Node or its status.
pub(in crate::resources) fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    common(&mut errors, new);
    let mut addresses = Vec::new();
    for (at, address) in items(&new["status"], "addresses", &Path::new("status")) {
        if addresses.contains(&address) {
            errors.duplicate(&at, address);
        }
        addresses.push(address);
    }
    let (spec, before, at) = (&new["spec"], &old["spec"], Path::new("spec"));
    let ranges = list(before, "podCIDRs");
    if !ranges.is_empty() && ranges != list(spec, "podCIDRs") {
        let words = "node updates may not change podCIDR except from \"\" to valid";
        errors.forbidden(&at.child("podCIDRs"), words);
    } else if ranges.is_empty() {
        for (at, range) in items(spec, "podCIDRs", &at) {
            errors.rule(&at, range, rules::cidr(range.as_str().unwrap_or_default()).map(drop));
        }
    }
    let provider = text(before, "providerID");
    if !provider.is_empty() && text(spec, "providerID") != provider {
        let words = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden(&at.child("providerID"), words);
    }
    errors.0
}
