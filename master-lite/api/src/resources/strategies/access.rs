//! RBAC and certificates.

use serde_json::{Value, json};

use super::{child, items, set_default};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, metadata, validation};

/// Roles and bindings.
pub struct Rbac;

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

fn is_binding(object: &Value) -> bool {
    object["kind"].as_str().is_some_and(|kind| kind.ends_with("Binding"))
}

impl Strategy for Rbac {
    fn default(&self, object: &mut Value) {
        if let Some(role) = child(object, "roleRef") {
            set_default(role, "apiGroup", RBAC_GROUP);
        }
        for subject in items(object, "subjects") {
            if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
                set_default(subject, "apiGroup", RBAC_GROUP);
            }
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        if is_binding(object) { validation::role_binding(object, None) } else { validation::role(object) }
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if is_binding(new) { validation::role_binding(new, Some(old)) } else { validation::role(new) }
    }

    fn validate_name(&self, name: &str) -> Result<(), String> {
        metadata::path_segment(name)
    }
}

/// CertificateSigningRequests: the requester's identity is the server's to write.
pub struct CertificateSigningRequest;

impl Strategy for CertificateSigningRequest {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "usages", json!(["digital signature", "key encipherment"]));
        }
    }

    fn prepare_for_create(&self, context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({});
        let Some(spec) = child(object, "spec") else { return };
        spec["username"] = context.user.as_str().into();
        let optional = [
            ("uid", json!(context.uid), context.uid.is_empty()),
            ("groups", json!(context.groups), context.groups.is_empty()),
            ("extra", json!(context.extra), context.extra.is_empty()),
        ];
        for (field, value, empty) in optional {
            if let Some(map) = spec.as_object_mut() {
                map.remove(field);
                if !empty {
                    map.insert(field.to_owned(), value);
                }
            }
        }
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, old: &Value) {
        new["spec"] = old["spec"].clone();
        let approval = |c: &Value| matches!(c["type"].as_str(), Some("Approved" | "Denied"));
        let conditions = |v: &Value| v["status"]["conditions"].as_array().cloned().unwrap_or_default();
        match context.subresource.as_str() {
            // Only approval conditions come through approval, only the others through status.
            "approval" => {
                let mut merged: Vec<Value> = conditions(old).into_iter().filter(|c| !approval(c)).collect();
                merged.extend(conditions(new).into_iter().filter(approval));
                new["status"] = old["status"].clone();
                set_conditions(new, merged, &context.now);
            }
            "status" => {
                let mut merged: Vec<Value> = conditions(old).into_iter().filter(approval).collect();
                merged.extend(conditions(new).into_iter().filter(|c| !approval(c)));
                set_conditions(new, merged, &context.now);
            }
            _ => new["status"] = old["status"].clone(),
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::signing_request(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::signing_request_update(new, old, &context.subresource)
    }
}

fn set_conditions(object: &mut Value, mut conditions: Vec<Value>, now: &str) {
    for condition in &mut conditions {
        set_default(condition, "lastUpdateTime", now);
        set_default(condition, "lastTransitionTime", now);
    }
    if object["status"].is_null() {
        object["status"] = json!({});
    }
    if conditions.is_empty() {
        if let Some(map) = object["status"].as_object_mut() {
            map.remove("conditions");
        }
    } else {
        object["status"]["conditions"] = conditions.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approval_changes_only_approval() {
        let old = json!({"spec": {"request": "x"}, "status": {}});
        let mut new = json!({
            "spec": {"request": "y"},
            "status": {"certificate": "z", "conditions": [{"type": "Approved"}, {"type": "Failed"}]},
        });
        let context = StrategyContext {
            subresource: "approval".into(),
            now: "2026-01-01T00:00:00Z".into(),
            ..StrategyContext::default()
        };
        CertificateSigningRequest.prepare_for_update(&context, &mut new, &old);
        assert_eq!(new["spec"]["request"], "x");
        assert!(new["status"]["certificate"].is_null());
        assert_eq!(new["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(new["status"]["conditions"][0]["lastUpdateTime"], "2026-01-01T00:00:00Z");
    }
}
