//! Static defaults: those that the schema states field by field.
//!
//! Defaults that depend on other fields, or that upstream keeps in code without a marker, belong to the strategies
//! of the resources.

use crate::{
    meta::GroupVersionKind,
    schema::{Node, NodeId, Schema},
};
use serde_json::Value;

/// Fills in the static defaults of a normalized object of a built-in kind. Kinds without a schema are left alone.
///
/// As upstream's generated defaulters do, a default is set only inside of objects that are there: a pointer to
/// a struct that is absent stays absent.
pub fn apply(gvk: &GroupVersionKind, object: &mut Value) {
    let schema = Schema::builtin();
    if let Some(node) = schema.kind(gvk) {
        walk(schema, node, object);
    }
}

fn walk(schema: &Schema, node: NodeId, value: &mut Value) {
    match (schema.node(node), value) {
        (Node::Struct(of), Value::Object(object)) => {
            for field in schema.fields(of) {
                match (object.get_mut(field.name.as_ref()), field.default()) {
                    (Some(present), None) => walk(schema, field.node, present),
                    (Some(present), Some(default)) => {
                        let unset =
                            present.is_null() || !field.pointer && *present == schema.zero(field.node);
                        if unset {
                            *present = default.clone();
                        }
                        walk(schema, field.node, present);
                    }
                    // A zero that Go's encoder leaves out again.
                    (None, Some(default))
                        if !field.pointer && field.omitempty && *default == schema.zero(field.node) => {}
                    (None, Some(default)) => {
                        object.insert(field.name.to_string(), default.clone());
                    }
                    (None, None) => {}
                }
            }
        }
        (Node::List { item, .. }, Value::Array(items)) => {
            for value in items {
                walk(schema, *item, value);
            }
        }
        (Node::Map { value: inner, .. }, Value::Object(entries)) => {
            for (_, value) in entries.iter_mut() {
                walk(schema, *inner, value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_stated_defaults_and_only_where_there_is_an_object() {
        let check = |kind: &str, mut object: Value, want: Value| {
            apply(&GroupVersionKind::new("", "v1", kind), &mut object);
            assert_eq!(object, want);
        };
        check(
            "Service",
            json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}}),
            json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
        );
        check("Service", json!({"spec": {}}), json!({"spec": {}}));
        check(
            "Pod",
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1, "protocol": ""}]}]}}),
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1, "protocol": "TCP"}]}]}}),
        );
        check("Pod", json!({}), json!({}));
        check(
            "Pod",
            json!({"spec": {"imagePullSecrets": [{}], "containers": [{"startupProbe": {"grpc": {"port": 1}}}]}}),
            json!({"spec": {"imagePullSecrets": [{}],
                "containers": [{"startupProbe": {"grpc": {"port": 1, "service": ""}}}]}}),
        );
    }
}
