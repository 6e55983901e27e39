//! `components.schemas`: types of the schema tree in OpenAPI's words.

use super::Descriptions;
use super::custom::{self, Dialect};
use crate::custom::Custom;
use crate::resources::Resource;
use crate::schema::{Field, ListKind, Node, NodeId, Scalar, Schema, Special, Struct};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// Collects types and all that they lead to.
pub struct Components<'s> {
    schema: &'s Schema,
    descriptions: Descriptions,
    dialect: Dialect,
    queue: Vec<NodeId>,
    seen: BTreeSet<NodeId>,
    done: BTreeMap<String, Value>,
}

impl<'s> Components<'s> {
    /// Starts with nothing. Whatever the dialect, types are put in the words of OpenAPI 3: it says how much of a custom
    /// resource's schema may be told.
    pub fn new(schema: &'s Schema, descriptions: Descriptions, dialect: Dialect) -> Self {
        Self {
            schema,
            descriptions,
            dialect,
            queue: Vec::new(),
            seen: BTreeSet::new(),
            done: BTreeMap::new(),
        }
    }

    /// The schema tree.
    pub fn schema(&self) -> &'s Schema {
        self.schema
    }

    /// A reference to a type, which will be among the components.
    pub fn reference(&mut self, node: NodeId) -> Value {
        let name = match self.schema.node(node) {
            Node::Struct(of) => {
                if self.seen.insert(node) {
                    self.queue.push(node);
                }
                of.name.to_string()
            }
            Node::Special(special) => self.special(*special),
            _ => return self.inline(node),
        };
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    /// A reference to the objects of a custom resource, or to lists of them. `row` is the view of a version.
    pub fn custom(&mut self, row: &Resource, of: &Custom, list: bool) -> Value {
        let name = custom::name(&row.group, &of.version, &row.kind);
        let object = json!({ "$ref": format!("#/components/schemas/{name}") });
        if !self.done.contains_key(&name) {
            let meta = self.meta("ObjectMeta");
            let value = custom::object(row, of, &meta, self.dialect);
            self.done.insert(name, value);
        }
        if !list {
            return object;
        }
        let name = custom::name(&row.group, &of.version, &row.list_kind());
        if !self.done.contains_key(&name) {
            let meta = self.meta("ListMeta");
            let value = custom::list(row, of, &object, &meta);
            self.done.insert(name.clone(), value);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    fn meta(&mut self, kind: &str) -> Value {
        match self.schema.type_named(&format!("{META}.{kind}")) {
            Some(node) => self.reference(node),
            None => json!({ "type": "object" }),
        }
    }

    /// A reference to the opaque type of patches.
    pub fn patch_reference(&mut self) -> Value {
        let name = format!("{META}.Patch");
        let text = "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.";
        self.done.entry(name.clone()).or_insert_with(|| json!({ "description": text, "type": "object" }));
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    /// All collected types.
    pub fn finish(mut self) -> Value {
        while let Some(node) = self.queue.pop() {
            if let Some(of) = self.schema.as_struct(node) {
                let value = self.object(of);
                self.done.insert(of.name.to_string(), value);
            }
        }
        Value::Object(self.done.into_iter().collect())
    }

    fn object(&mut self, of: &Struct) -> Value {
        let mut out = Map::new();
        if let Some(text) = self.descriptions.of_type(&of.name) {
            out.insert("description".to_owned(), text.into());
        }
        out.insert("type".to_owned(), "object".into());
        let mut required: Vec<String> = Vec::new();
        let mut properties = Map::new();
        let schema = self.schema;
        for field in schema.fields(of) {
            if field.required {
                required.push(field.name.to_string());
            }
            let mut property = self.property(field);
            if let Some(text) = self.describe(of, field) {
                property.insert("description".to_owned(), text.into());
            }
            properties.insert(field.name.to_string(), Value::Object(property));
        }
        if !properties.is_empty() {
            out.insert("properties".to_owned(), Value::Object(properties));
        }
        if !required.is_empty() {
            required.sort();
            out.insert("required".to_owned(), required.into());
        }
        if of.atomic {
            out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        if let Some(gvk) = &of.gvk {
            // Kinds of meta/v1 are registered in every group and version; naming their own is enough to find them.
            let group = if gvk.group == "meta.k8s.io" { "" } else { &gvk.group };
            out.insert(
                "x-kubernetes-group-version-kind".to_owned(),
                json!([{ "group": group, "version": gvk.version, "kind": gvk.kind }]),
            );
        }
        Value::Object(out)
    }

    /// The description of a field: its own, or for a field that came by an inlined type that type's.
    fn describe(&self, of: &Struct, field: &Field) -> Option<String> {
        let mut text = match self.descriptions.of_field(&of.name, &field.name) {
            Some(text) => text,
            None => match field.name.as_ref() {
                // Lists have no schema of their own in k8s-openapi.
                "apiVersion" => {
                    "APIVersion defines the versioned schema of this representation of an object.".to_owned()
                }
                "kind" => {
                    "Kind is a string value representing the REST resource this object represents.".to_owned()
                }
                "items" => "Items is the list of objects.".to_owned(),
                "metadata" => "Standard list metadata.".to_owned(),
                _ => return None,
            },
        };
        if let Node::Enum(values) = self.schema.node(field.node)
            && !text.contains("Possible enum values:")
        {
            text.push_str("\n\nPossible enum values:");
            for value in &values.values {
                text.push_str(&format!("\n - `\"{value}\"`"));
            }
        }
        Some(text)
    }

    fn property(&mut self, field: &Field) -> Map<String, Value> {
        let mut out = match self.inline(field.node) {
            Value::Object(object) => object,
            _ => Map::new(),
        };
        if let Some(reference) = out.remove("$ref") {
            // Siblings of a $ref are ignored by OpenAPI 3.0, hence the detour.
            out.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
        }
        if let Some(default) = self.schema.stated_default(field) {
            out.insert("default".to_owned(), default);
        }
        if let Some(atomic) = field.atomic {
            let kind = if atomic { "atomic" } else { "granular" };
            out.insert("x-kubernetes-map-type".to_owned(), kind.into());
        }
        if let Some(extra) = &field.extra {
            if let Some(key) = &extra.merge_key {
                out.insert("x-kubernetes-patch-merge-key".to_owned(), key.to_string().into());
            }
            let flags =
                [(extra.merge, "merge"), (extra.replace, "replace"), (extra.retain_keys, "retainKeys")];
            let strategies: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
            if !strategies.is_empty() {
                out.insert("x-kubernetes-patch-strategy".to_owned(), strategies.join(",").into());
            }
        }
        out
    }

    /// The schema at a place of use.
    fn inline(&mut self, node: NodeId) -> Value {
        match self.schema.node(node) {
            Node::Scalar(scalar) => scalar_schema(*scalar),
            Node::Enum(inner) => json!({ "type": "string", "enum": inner.values }),
            Node::Special(Special::Any) => json!({ "type": "object" }),
            Node::Special(_) | Node::Struct(_) => self.reference(node),
            Node::Wrapped(inner) => self.inline(*inner),
            Node::List { item, kind, keys } => {
                let mut out = json!({ "type": "array", "items": self.element(*item) });
                match kind {
                    ListKind::Unset => {}
                    ListKind::Atomic => out["x-kubernetes-list-type"] = "atomic".into(),
                    ListKind::Set => out["x-kubernetes-list-type"] = "set".into(),
                    ListKind::Map => out["x-kubernetes-list-type"] = "map".into(),
                }
                if !keys.is_empty() {
                    out["x-kubernetes-list-map-keys"] = json!(keys);
                }
                out
            }
            Node::Map { value, .. } => {
                json!({ "type": "object", "additionalProperties": self.element(*value) })
            }
        }
    }

    fn element(&mut self, node: NodeId) -> Value {
        let schema = self.inline(node);
        match (self.schema.zero_default(node, false), schema) {
            (Some(default), Value::Object(mut schema)) => {
                if let Some(reference) = schema.remove("$ref") {
                    schema.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
                }
                schema.insert("default".to_owned(), default);
                Value::Object(schema)
            }
            (_, schema) => schema,
        }
    }

    /// Name of the component behind a special type, which is added.
    fn special(&mut self, special: Special) -> String {
        let (name, value) = match special {
            Special::Time => (format!("{META}.Time"), json!({ "type": "string", "format": "date-time" })),
            Special::MicroTime => {
                (format!("{META}.MicroTime"), json!({ "type": "string", "format": "date-time" }))
            }
            Special::Duration => (format!("{META}.Duration"), json!({ "type": "string" })),
            Special::FieldsV1 => (format!("{META}.FieldsV1"), json!({ "type": "object" })),
            Special::Quantity => (
                "io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(),
                json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }),
            ),
            Special::IntOrString => (
                "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
                json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] }),
            ),
            Special::RawExtension => {
                ("io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(), json!({ "type": "object" }))
            }
            Special::Json | Special::Any => (format!("{EXTENSIONS}.JSON"), json!({})),
            Special::SchemaOrArray => (format!("{EXTENSIONS}.JSONSchemaPropsOrArray"), json!({})),
            Special::SchemaOrBool => (format!("{EXTENSIONS}.JSONSchemaPropsOrBool"), json!({})),
            Special::SchemaOrStrings => (format!("{EXTENSIONS}.JSONSchemaPropsOrStringArray"), json!({})),
        };
        if !self.done.contains_key(&name) {
            let mut value = value;
            if let Some(text) = self.descriptions.of_type(&name) {
                value["description"] = text.into();
            }
            self.done.insert(name.clone(), value);
        }
        name
    }
}

fn scalar_schema(scalar: Scalar) -> Value {
    match scalar {
        Scalar::String => json!({ "type": "string" }),
        Scalar::Bool => json!({ "type": "boolean" }),
        Scalar::Int32 => json!({ "type": "integer", "format": "int32" }),
        Scalar::Int64 | Scalar::Uint64 | Scalar::Uint32 => json!({ "type": "integer", "format": "int64" }),
        Scalar::Float64 => json!({ "type": "number", "format": "double" }),
        Scalar::Bytes => json!({ "type": "string", "format": "byte" }),
    }
}
