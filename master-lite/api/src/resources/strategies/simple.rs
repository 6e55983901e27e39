//! Kinds with little of their own.

use serde_json::{Value, json};

use super::{child, object_at, set_default};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, metadata};

/// A kind with nothing of its own.
pub struct Plain;

impl Strategy for Plain {}

/// A kind whose PUT may create, such as Lease.
pub struct CreateOnUpdate;

impl Strategy for CreateOnUpdate {
    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// ConfigMaps.
pub struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validate_immutable(new, old, &["data", "binaryData"])
    }
}

fn validate_immutable(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    if old["immutable"].as_bool() != Some(true) {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if new["immutable"].as_bool() != Some(true) {
        errors.push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if new[field] != old[field] {
            errors.push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
    errors
}

/// Secrets. `stringData` is written into `data` and never stored.
pub struct Secret;

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        set_default(object, "type", "Opaque");
        let Some(text) = object.as_object_mut().and_then(|o| o.remove("stringData")) else { return };
        let Some(text) = text.as_object() else { return };
        if let Some(data) = object_at(object, "data") {
            use base64::Engine as _;
            for (key, value) in text {
                let bytes = value.as_str().unwrap_or_default().as_bytes();
                data[key] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
            }
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut need = |field: &str| {
            if object["data"][field].is_null() {
                errors.push(FieldError::required(format!("data[{field}]"), ""));
            }
        };
        match object["type"].as_str() {
            Some("kubernetes.io/tls") => {
                need("tls.crt");
                need("tls.key");
            }
            Some("kubernetes.io/dockerconfigjson") => need(".dockerconfigjson"),
            Some("kubernetes.io/service-account-token") => {
                let account = &object["metadata"]["annotations"]["kubernetes.io/service-account.name"];
                if account.as_str().unwrap_or_default().is_empty() {
                    errors.push(FieldError::required(
                        "metadata.annotations[kubernetes.io/service-account.name]",
                        "",
                    ));
                }
            }
            _ => {}
        }
        errors
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate_immutable(new, old, &["data"]);
        if new["type"] != old["type"] {
            errors.push(FieldError::invalid("type", &new["type"], "field is immutable"));
        }
        errors
    }
}

/// Namespaces.
pub struct Namespace;

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        let name = object["metadata"]["name"].clone();
        if name.as_str().is_some_and(|n| !n.is_empty())
            && let Some(labels) = child(object, "metadata").and_then(|m| object_at(m, "labels"))
        {
            labels["kubernetes.io/metadata.name"] = name;
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        if let Some(spec) = object_at(object, "spec")
            && let Some(map) = spec.as_object_mut()
        {
            let list = map.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut()
                && !list.iter().any(|f| f == "kubernetes")
            {
                list.push("kubernetes".into());
            }
        }
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, old: &Value) {
        // Finalizers change only through the finalize subresource.
        if context.subresource.is_empty() {
            new["spec"] = old["spec"].clone();
        }
    }

    fn validate_name(&self, name: &str) -> Result<(), String> {
        metadata::dns_label(name)
    }
}

/// Nodes.
pub struct Node;

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        if let Some(status) = child(object, "status")
            && let Some(capacity) = status.get("capacity").cloned()
        {
            set_default(status, "allocatable", capacity);
        }
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let (cidr, before) = (&new["spec"]["podCIDRs"], &old["spec"]["podCIDRs"]);
        if context.subresource.is_empty()
            && before.as_array().is_some_and(|c| !c.is_empty())
            && cidr != before
        {
            errors.push(FieldError::forbidden(
                "spec.podCIDRs",
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
        errors
    }
}

/// PersistentVolumes.
pub struct PersistentVolume;

impl Strategy for PersistentVolume {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "persistentVolumeReclaimPolicy", "Retain");
            set_default(spec, "volumeMode", "Filesystem");
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }
}

/// PersistentVolumeClaims.
pub struct PersistentVolumeClaim;

impl Strategy for PersistentVolumeClaim {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "volumeMode", "Filesystem");
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }
}

/// PriorityClasses.
pub struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        set_default(object, "preemptionPolicy", "PreemptLowerPriority");
    }
}

/// StorageClasses.
pub struct StorageClass;

impl Strategy for StorageClass {
    fn default(&self, object: &mut Value) {
        set_default(object, "reclaimPolicy", "Delete");
        set_default(object, "volumeBindingMode", "Immediate");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({"stringData": {"a": "x"}, "data": {"b": "eQ=="}});
        Secret.default(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "eA==", "b": "eQ=="}}));
    }

    #[test]
    fn immutable_config_maps() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let new = json!({"immutable": true, "data": {"a": "2"}});
        assert_eq!(ConfigMap.validate_update(&StrategyContext::default(), &new, &old).len(), 1);
        assert_eq!(ConfigMap.validate_update(&StrategyContext::default(), &old, &old), []);
    }
}
