//! Roles and bindings (`pkg/apis/rbac/validation`).

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, list, set, text};
use super::selectors;
use crate::field::FieldError;
use crate::resources::metadata::{dns_subdomain, path_segment};

const GROUP: &str = "rbac.authorization.k8s.io";

/// A Role or ClusterRole, new or changed.
pub(in crate::resources) fn role(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let namespaced = object["kind"] == "Role";
    for (at, rule) in items(object, "rules", &Path::new("")) {
        if list(rule, "verbs").is_empty() {
            errors.required(&at.child("verbs"), "verbs must contain at least one value");
        }
        let filled = |field: &str| !list(rule, field).is_empty();
        if filled("nonResourceURLs") {
            let (urls, at) = (&rule["nonResourceURLs"], at.child("nonResourceURLs"));
            if namespaced {
                errors.invalid(&at, urls, "namespaced rules cannot apply to non-resource URLs");
            }
            if filled("apiGroups") || filled("resources") || filled("resourceNames") {
                let words = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&at, urls, words);
            }
            continue;
        }
        if !filled("apiGroups") {
            errors.required(&at.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if !filled("resources") {
            errors.required(&at.child("resources"), "resource rules must supply at least one resource");
        }
    }
    if set(object, "aggregationRule") {
        let at = Path::new("aggregationRule");
        if list(&object["aggregationRule"], "clusterRoleSelectors").is_empty() {
            let words = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(&at.child("clusterRoleSelectors"), words);
        }
        for (at, selector) in items(&object["aggregationRule"], "clusterRoleSelectors", &at) {
            selectors::label_selector(&mut errors, selector, &at);
        }
    }
    errors.0
}

/// A RoleBinding or ClusterRoleBinding; `old` if it is changed.
pub(in crate::resources) fn role_binding(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let namespaced = new["kind"] == "RoleBinding";
    let (role, at) = (&new["roleRef"], Path::new("roleRef"));
    if role["apiGroup"] != GROUP {
        errors.unsupported(&at.child("apiGroup"), &json!(text(role, "apiGroup")), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(role, "kind")) {
        errors.unsupported(&at.child("kind"), &json!(text(role, "kind")), kinds);
    }
    match text(role, "name") {
        "" => errors.required(&at.child("name"), ""),
        name => errors.rule(&at.child("name"), &name.into(), path_segment(name)),
    }
    for (at, subject) in items(new, "subjects", &Path::new("")) {
        binding_subject(&mut errors, subject, namespaced, &at);
    }
    if old.is_some_and(|old| old["roleRef"] != *role) {
        errors.invalid(&at, role, "cannot change roleRef");
    }
    errors.0
}

fn binding_subject(errors: &mut Errors, subject: &Value, namespaced: bool, at: &Path) {
    let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
    errors.need(subject, "name", at);
    match text(subject, "kind") {
        "ServiceAccount" => {
            if !name.is_empty() {
                errors.rule(&at.child("name"), &name.into(), dns_subdomain(name));
            }
            if !group.is_empty() {
                errors.unsupported(&at.child("apiGroup"), &group.into(), &[""]);
            }
            if !namespaced && text(subject, "namespace").is_empty() {
                errors.required(&at.child("namespace"), "");
            }
        }
        "User" | "Group" if group != GROUP => {
            errors.unsupported(&at.child("apiGroup"), &group.into(), &[GROUP]);
        }
        "User" | "Group" => {}
        kind => errors.unsupported(&at.child("kind"), &kind.into(), &["ServiceAccount", "User", "Group"]),
    }
}
