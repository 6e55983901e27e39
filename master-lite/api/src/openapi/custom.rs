//! Custom resources among the components (`apiextensions-apiserver/pkg/controller/openapi`).

use serde_json::{Map, Value, json};

use crate::custom::Custom;
use crate::resources::Resource;

const PRESERVE: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_METADATA: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const CONVENTIONS: &str =
    "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";

/// Which document a schema is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAPI 2, which has neither alternatives nor null.
    V2,
    /// OpenAPI 3.
    V3,
}

/// `com.example.v1.Foo` for `Foo` of `example.com/v1`.
pub fn name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{version}.{kind}", parts.join("."))
}

/// Adds what a published schema says of its kind.
fn tag(schema: &mut Value, row: &Resource, version: &str, kind: &str) {
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": row.group, "version": version, "kind": kind}]);
    if !row.selectable_fields.is_empty() {
        schema["x-kubernetes-selectable-fields"] =
            row.selectable_fields.iter().map(|field| json!({"fieldPath": field.name})).collect();
    }
}

/// The schema of an object. `row` is the view of the version; `meta` refers to ObjectMeta.
pub fn object(row: &Resource, custom: &Custom, meta: &Value, dialect: Dialect) -> Value {
    let stated = custom.schema().map(|schema| &schema.openapi).filter(|schema| schema.is_object());
    // With any property declared, kubectl takes all others for unknown.
    let mut out = match stated {
        Some(schema) if dialect == Dialect::V3 || schema[PRESERVE] != true => {
            let mut out = publish(schema, dialect);
            type_properties(&mut out, API_VERSION, KIND, meta);
            embedded(&mut out, meta, dialect);
            out
        }
        _ => json!({"type": "object"}),
    };
    tag(&mut out, row, &custom.version, &row.kind);
    out
}

/// The schema of a list of objects; `item` refers to the object, `meta` to ListMeta.
pub fn list(row: &Resource, custom: &Custom, item: &Value, meta: &Value) -> Value {
    let kind = row.list_kind();
    let items = json!({
        "description": format!("List of {}. More info: {CONVENTIONS}", row.plural),
        "type": "array", "items": item,
    });
    let mut out = json!({
        "description": format!("{kind} is a list of {}", row.kind),
        "type": "object", "required": ["items"], "properties": {"items": items},
    });
    type_properties(&mut out, API_VERSION, KIND, meta);
    out["properties"]["metadata"] = described(meta, LIST_METADATA);
    tag(&mut out, row, &custom.version, &kind);
    out
}

fn described(reference: &Value, text: &str) -> Value {
    json!({"description": text, "allOf": [reference]})
}

fn type_properties(schema: &mut Value, api_version: &str, kind: &str, meta: &Value) {
    if !schema["properties"].is_object() {
        schema["properties"] = Value::Object(Map::new());
    }
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({"description": api_version, "type": "string"});
    properties["kind"] = json!({"description": kind, "type": "string"});
    properties["metadata"] = described(meta, METADATA);
}

/// Objects within the object have metadata too.
fn embedded(schema: &mut Value, meta: &Value, dialect: Dialect) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|inner| embedded(inner, meta, dialect));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(key).filter(|inner| inner.is_object()) {
            embedded(inner, meta, dialect);
        }
    }
    if schema[EMBEDDED] != true || (dialect == Dialect::V2 && schema[PRESERVE] == true) {
        return;
    }
    let api_version = format!(
        "apiVersion defines the versioned schema of this representation of an object. More info: {CONVENTIONS}#resources"
    );
    let kind = format!(
        "kind is a string value representing the type of this object. In CamelCase. More info: {CONVENTIONS}#types-kinds"
    );
    type_properties(schema, &api_version, &kind, meta);
    if !schema["required"].is_array() {
        schema["required"] = json!([]);
    }
    if let Some(required) = schema["required"].as_array_mut() {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|has| has == name) {
                required.push(name.into());
            }
        }
    }
}

/// Fields of a `JSONSchemaProps` that are published as they are.
const PLAIN: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "default",
    "nullable",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "maxProperties",
    "minProperties",
    "required",
    "enum",
    "externalDocs",
    "example",
    PRESERVE,
    EMBEDDED,
    INT_OR_STRING,
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
];

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// A schema as a document shows it.
fn publish(schema: &Value, dialect: Dialect) -> Value {
    let mut out = Map::new();
    for key in PLAIN {
        // A default may be false, empty or whatever.
        if let Some(value) = schema
            .get(*key)
            .filter(|v| !is_empty(v) || (matches!(*key, "default" | "example") && !v.is_null()))
        {
            out.insert((*key).to_owned(), value.clone());
        }
    }
    if let Some(properties) = schema["properties"].as_object() {
        let inner = properties.iter().map(|(name, inner)| (name.clone(), publish(inner, dialect)));
        out.insert("properties".to_owned(), Value::Object(inner.collect()));
    }
    for key in ["items", "additionalProperties"] {
        match &schema[key] {
            inner @ Value::Object(_) => {
                out.insert(key.to_owned(), publish(inner, dialect));
            }
            Value::Bool(allowed) => {
                out.insert(key.to_owned(), (*allowed).into());
            }
            _ => {}
        }
    }
    match dialect {
        Dialect::V3 => {
            for key in ["allOf", "anyOf", "oneOf"] {
                if let Some(list) = schema[key].as_array().filter(|list| !list.is_empty()) {
                    out.insert(key.to_owned(), list.iter().map(|inner| publish(inner, dialect)).collect());
                }
            }
            if schema["not"].is_object() {
                out.insert("not".to_owned(), publish(&schema["not"], dialect));
            }
            if schema[INT_OR_STRING] == true && !out.contains_key("anyOf") {
                out.insert("anyOf".to_owned(), json!([{"type": "integer"}, {"type": "string"}]));
            }
        }
        Dialect::V2 => older(schema, &mut out),
    }
    Value::Object(out)
}

/// `ToStructuralOpenAPIV2`: what OpenAPI 2 cannot say is left out, and what kubectl would take amiss.
fn older(schema: &Value, out: &mut Map<String, Value>) {
    let flag = |key: &str| schema[key] == true;
    if flag("nullable") {
        out.remove("nullable");
        out.remove("type");
    }
    if flag("nullable") || flag(PRESERVE) {
        out.remove("items");
        out.remove("properties");
    }
    let kind = out.get("type").and_then(Value::as_str).unwrap_or_default();
    if (kind == "array" && !out.contains_key("items")) || (kind == "object" && flag(PRESERVE)) {
        out.remove("type");
    }
    let nullable = |name: &Value| {
        name.as_str().is_some_and(|name| schema["properties"][name]["nullable"] == true)
            && out.contains_key("properties")
    };
    let mut required: Vec<Value> =
        schema["required"].as_array().into_iter().flatten().filter(|name| !nullable(name)).cloned().collect();
    if schema["additionalProperties"]["nullable"] == true {
        required.clear();
    }
    if required.is_empty() {
        out.remove("required");
    } else {
        out.insert("required".to_owned(), required.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_backwards() {
        assert_eq!(name("a.example.com", "v1", "Foo"), "com.example.a.v1.Foo");
    }

    #[test]
    fn alternatives_are_not_for_version_two() {
        let schema = json!({"type": "object", "required": ["a", "n"], "properties": {
            "a": {"type": "integer", "default": 0, "nullable": false, "oneOf": [{"minimum": 1}, {"maximum": -1}]},
            "n": {"type": "array", "nullable": true, "items": {"type": "string"}},
            "free": {"type": "object", PRESERVE: true, "properties": {"x": {"type": "string"}}},
            "port": {INT_OR_STRING: true},
        }});
        assert_eq!(
            publish(&schema, Dialect::V2),
            json!({"type": "object", "required": ["a"], "properties": {
                "a": {"type": "integer", "default": 0}, "n": {}, "free": {PRESERVE: true},
                "port": {INT_OR_STRING: true},
            }})
        );
        let v3 = publish(&schema, Dialect::V3);
        assert_eq!(v3["properties"]["a"]["oneOf"], json!([{"minimum": 1}, {"maximum": -1}]));
        assert_eq!(v3["properties"]["n"]["nullable"], true);
        assert_eq!(v3["properties"]["port"]["anyOf"], json!([{"type": "integer"}, {"type": "string"}]));
    }

    #[test]
    fn embedded_objects_have_metadata() {
        let mut schema =
            json!({"properties": {"o": {"type": "object", EMBEDDED: true, "required": ["kind"]}}});
        embedded(&mut schema, &json!({"$ref": "M"}), Dialect::V3);
        let inner = &schema["properties"]["o"];
        assert_eq!(inner["required"], json!(["kind", "apiVersion"]));
        assert_eq!(inner["properties"]["metadata"]["allOf"], json!([{"$ref": "M"}]));
    }
}
