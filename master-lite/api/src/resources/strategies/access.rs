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
        let conditions = |v: &Value| v["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let mut wanted = conditions(new);
        match context.subresource.as_str() {
            // An approval writes conditions, of whatever type, and nothing else.
            "approval" => {
                new["status"] = old["status"].clone();
                set_conditions(new, wanted, &conditions(old), &context.now);
            }
            "status" => {
                for kind in ["Approved", "Denied"] {
                    preserve(&mut wanted, &conditions(old), kind);
                }
                set_conditions(new, wanted, &conditions(old), &context.now);
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

/// Puts the old conditions of a type in place of the new ones, unless some were added or taken away: that is for
/// validation to refuse.
fn preserve(conditions: &mut [Value], old: &[Value], kind: &str) {
    let before: Vec<&Value> = old.iter().filter(|c| c["type"] == kind).collect();
    let same: Vec<&mut Value> = conditions.iter_mut().filter(|c| c["type"] == kind).collect();
    if same.len() == before.len() {
        for (condition, before) in same.into_iter().zip(before) {
            *condition = before.clone();
        }
    }
}

fn set_conditions(object: &mut Value, mut conditions: Vec<Value>, old: &[Value], now: &str) {
    for condition in &mut conditions {
        set_default(condition, "lastUpdateTime", now);
        let same = old.iter().find(|o| o["type"] == condition["type"] && o["status"] == condition["status"]);
        let since = same.and_then(|o| o["lastTransitionTime"].as_str()).unwrap_or(now).to_owned();
        set_default(condition, "lastTransitionTime", since);
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
        assert_eq!(new["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(new["status"]["conditions"][0]["lastUpdateTime"], "2026-01-01T00:00:00Z");
        let old = new.clone();
        let mut new = json!({"status": {"conditions": [
            {"type": "Approved", "reason": "other"}, {"type": "Failed", "status": "True"},
        ]}});
        CertificateSigningRequest.prepare_for_update(
            &StrategyContext { subresource: "status".into(), ..context },
            &mut new,
            &old,
        );
        assert_eq!(new["status"]["conditions"][0], old["status"]["conditions"][0]);
    }
}
