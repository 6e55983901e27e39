//! Kinds with little of their own.

use serde_json::{Value, json};

use super::{child, object_at, set_default};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, metadata, validation};

/// A kind with nothing of its own.
pub struct Plain;

impl Strategy for Plain {}

/// ConfigMaps.
pub struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::config_map(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::config_map_update(new, old)
    }
}

/// Leases.
pub struct Lease;

impl Strategy for Lease {
    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::lease(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        validation::lease(new)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
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
        validation::secret(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::secret_update(new, old)
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

    fn validate_create(&self, context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::namespace(object, &context.subresource)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        validation::namespace(new, &context.subresource)
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

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::node(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::node_update(new, old)
    }
}

/// PriorityClasses.
pub struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        set_default(object, "preemptionPolicy", "PreemptLowerPriority");
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::priority_class(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::priority_class_update(new, old)
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
