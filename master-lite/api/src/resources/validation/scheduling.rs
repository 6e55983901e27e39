//! What says where a pod may run: affinity, tolerations, spreading, gates, taints.

use serde_json::{Value, json};

use super::errors::{Errors, Path, entries, items, list, number, set, text};
use super::selectors::label_selector;
use crate::resources::metadata::{dns_label, dns_subdomain, label_value, qualified_name};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
pub(super) const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// `affinity` of a pod.
pub(super) fn affinity(errors: &mut Errors, spec: &Value, at: &Path) {
    let (affinity, at) = (&spec["affinity"], at.child("affinity"));
    if set(affinity, "nodeAffinity") {
        node_affinity(errors, &affinity["nodeAffinity"], &at.child("nodeAffinity"));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (rules, at) = (&affinity[kind], at.child(kind));
        for (at, term) in items(rules, REQUIRED, &at) {
            pod_term(errors, term, &at);
        }
        for (at, weighted) in items(rules, PREFERRED, &at) {
            weight(errors, weighted, &at);
            pod_term(errors, &weighted["podAffinityTerm"], &at.child("podAffinityTerm"));
        }
    }
}

fn node_affinity(errors: &mut Errors, affinity: &Value, at: &Path) {
    if set(affinity, REQUIRED) {
        node_selector(errors, &affinity[REQUIRED], &at.child(REQUIRED));
    }
    for (at, preferred) in items(affinity, PREFERRED, at) {
        weight(errors, preferred, &at);
        node_term(errors, &preferred["preference"], &at.child("preference"), false);
    }
}

/// A NodeSelector, wherever it stands.
pub(super) fn node_selector(errors: &mut Errors, selector: &Value, at: &Path) {
    if list(selector, "nodeSelectorTerms").is_empty() {
        errors.required(&at.child("nodeSelectorTerms"), "must have at least one node selector term");
    }
    for (at, term) in items(selector, "nodeSelectorTerms", at) {
        node_term(errors, term, &at, true);
    }
}

fn weight(errors: &mut Errors, term: &Value, at: &Path) {
    let weight = number(term, "weight");
    if !(1..=100).contains(&weight) {
        errors.invalid(&at.child("weight"), &json!(weight), "must be in the range 1-100");
    }
}

fn node_term(errors: &mut Errors, term: &Value, at: &Path, check_values: bool) {
    for (at, expression) in items(term, "matchExpressions", at) {
        let values = list(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
                &at.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Gt" | "Lt" if values.len() != 1 => errors.required(
                &at.child("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.invalid(
                &at.child("operator"),
                &expression["operator"],
                "not a valid selector operator",
            ),
        }
        errors.rule(&at.child("key"), &expression["key"], qualified_name(text(expression, "key")));
        if check_values {
            for (at, value) in items(expression, "values", &at) {
                errors.rule(&at, value, label_value(value.as_str().unwrap_or_default()));
            }
        }
    }
    for (at, field) in items(term, "matchFields", at) {
        match text(field, "operator") {
            "In" | "NotIn" => {
                if list(field, "values").len() != 1 {
                    errors.required(
                        &at.child("values"),
                        "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                    );
                }
            }
            _ => errors.invalid(&at.child("operator"), &field["operator"], "not a valid selector operator"),
        }
        if text(field, "key") == "metadata.name" {
            for (at, value) in items(field, "values", &at) {
                errors.rule(&at, value, dns_subdomain(value.as_str().unwrap_or_default()));
            }
        } else {
            errors.invalid(&at.child("key"), &field["key"], "not a valid field selector key");
        }
    }
}

fn pod_term(errors: &mut Errors, term: &Value, at: &Path) {
    label_selector(errors, &term["labelSelector"], &at.child("labelSelector"));
    label_selector(errors, &term["namespaceSelector"], &at.child("namespaceSelector"));
    for namespace in list(term, "namespaces") {
        errors.rule(&at.child("namespace"), namespace, dns_label(namespace.as_str().unwrap_or_default()));
    }
    label_keys(errors, term, &["matchLabelKeys", "mismatchLabelKeys"], at);
    if text(term, "topologyKey").is_empty() {
        errors.required(&at.child("topologyKey"), "can not be empty");
    }
    errors.rule(
        &at.child("topologyKey"),
        &json!(text(term, "topologyKey")),
        qualified_name(text(term, "topologyKey")),
    );
}

/// Keys whose values are taken from the pod's own labels.
fn label_keys(errors: &mut Errors, term: &Value, fields: &[&str], at: &Path) {
    let selector = &term["labelSelector"];
    for field in fields {
        if list(term, field).is_empty() {
            continue;
        }
        if selector.is_null() {
            errors.forbidden(&at.child(field), "must not be specified when labelSelector is not set");
            continue;
        }
        for (at, key) in items(term, field, at) {
            errors.rule(&at, key, qualified_name(key.as_str().unwrap_or_default()));
        }
    }
    for (at, key) in items(term, "matchLabelKeys", at) {
        if list(term, "mismatchLabelKeys").contains(key) {
            errors.invalid(&at, key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// `topologySpreadConstraints` of a pod.
pub(super) fn spread(errors: &mut Errors, spec: &Value, at: &Path) {
    let all = list(spec, "topologySpreadConstraints");
    for (i, (at, constraint)) in items(spec, "topologySpreadConstraints", at).enumerate() {
        if number(constraint, "maxSkew") <= 0 {
            errors.invalid(
                &at.child("maxSkew"),
                &json!(number(constraint, "maxSkew")),
                "must be greater than zero",
            );
        }
        if text(constraint, "topologyKey").is_empty() {
            errors.required(&at.child("topologyKey"), "can not be empty");
        }
        let action = text(constraint, "whenUnsatisfiable");
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            let supported = &["DoNotSchedule", "ScheduleAnyway"];
            errors.unsupported(&at.child("whenUnsatisfiable"), &json!(action), supported);
        }
        let same = |field: &str, other: &Value| other[field] == constraint[field];
        if all[i + 1..].iter().any(|other| same("topologyKey", other) && same("whenUnsatisfiable", other)) {
            errors.duplicate(
                &at.child("{topologyKey, whenUnsatisfiable}"),
                &json!(format!("{{{}, {action}}}", text(constraint, "topologyKey"))),
            );
        }
        if let Some(domains) = constraint["minDomains"].as_i64() {
            if domains <= 0 {
                errors.invalid(&at.child("minDomains"), &json!(domains), "must be greater than zero");
            }
            if action != "DoNotSchedule" {
                let words =
                    format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
                errors.invalid(&at.child("minDomains"), &json!(domains), words);
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.optional_one_of(&at.child(policy), &constraint[policy], &["Honor", "Ignore"]);
        }
        label_keys(errors, constraint, &["matchLabelKeys"], &at);
        label_selector(errors, &constraint["labelSelector"], &at.child("labelSelector"));
    }
}

/// `tolerations` of a pod.
pub(super) fn tolerations(errors: &mut Errors, spec: &Value, at: &Path) {
    for (at, toleration) in items(spec, "tolerations", at) {
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        let place = at.child("operator");
        if !key.is_empty() {
            errors.rule(&at.child("key"), &key.into(), qualified_name(key));
        } else if operator != "Exists" {
            let words =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&place, &operator.into(), words);
        }
        if set(toleration, "tolerationSeconds") && effect != "NoExecute" {
            let words = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&at.child("effect"), &effect.into(), words);
        }
        match operator {
            "Equal" | "" => errors.rule(&place, &value.into(), label_value(value)),
            "Exists" if value.is_empty() => {}
            "Exists" => {
                errors.invalid(&place, &value.into(), "value must be empty when `operator` is 'Exists'")
            }
            "Lt" | "Gt" => errors.unsupported(&place, &operator.into(), &["Equal", "Exists", "Lt", "Gt"]),
            _ => errors.unsupported(&place, &operator.into(), &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            errors.one_of(&at.child("effect"), &effect.into(), TAINT_EFFECTS);
        }
    }
}

/// `schedulingGates` of a pod.
pub(super) fn gates(errors: &mut Errors, spec: &Value, at: &Path) {
    let mut seen = Vec::new();
    for (at, gate) in items(spec, "schedulingGates", at) {
        let name = text(gate, "name");
        errors.rule(&at, &name.into(), qualified_name(name));
        if seen.contains(&name) {
            errors.duplicate(&at, &name.into());
        }
        seen.push(name);
    }
}

/// Every key of the old selector is still there with its value.
pub(super) fn only_added(new: &Value, old: &Value, field: &str) -> bool {
    entries(old, field).all(|(key, value)| new[field][key] == *value)
}
