//! The types of a custom resource, out of its structural schema.

use std::collections::BTreeMap;

use serde_json::Value;

use super::types::{Atom, FieldType, List, MapType, Scalar, TypeId, Types};
use crate::custom::{ListType, Structural};
use crate::schema::Schema;

/// The name of the type of `metadata`.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl Types {
    /// The types of one version of a custom resource, and that of its objects.
    pub fn custom(schema: &Structural) -> (Self, TypeId) {
        let mut maker = Maker { types: Self::default(), copied: BTreeMap::new() };
        let root = maker.convert(schema, true);
        (maker.types, root)
    }
}

struct Maker {
    types: Types,
    /// What was taken over from the built-in types.
    copied: BTreeMap<TypeId, TypeId>,
}

impl Maker {
    fn scalar(&mut self, scalar: Scalar) -> TypeId {
        self.types.push(Atom { scalar: Some(scalar), ..Atom::default() })
    }

    fn convert(&mut self, schema: &Structural, root: bool) -> TypeId {
        if schema.int_or_string {
            return self.scalar(Scalar::Untyped);
        }
        match schema.kind.as_str() {
            "string" => self.scalar(Scalar::String),
            "boolean" => self.scalar(Scalar::Boolean),
            "integer" | "number" => self.scalar(Scalar::Numeric),
            "array" => {
                let item = match &schema.items {
                    Some(items) => self.convert(items, false),
                    None => Types::deduced(),
                };
                let keys = match schema.list_type {
                    None | Some(ListType::Atomic) => None,
                    Some(ListType::Set) => Some(Box::default()),
                    Some(ListType::Map) => {
                        Some(schema.list_map_keys.iter().map(|key| key.clone().into()).collect())
                    }
                };
                self.types.push(Atom { list: Some(List { item, keys }), ..Atom::default() })
            }
            "object" => self.map(schema, root),
            _ => Types::deduced(),
        }
    }

    fn map(&mut self, schema: &Structural, root: bool) -> TypeId {
        let mut fields: BTreeMap<String, FieldType> = BTreeMap::new();
        for (name, inner) in &schema.properties {
            let id = self.convert(inner, false);
            let field = FieldType { name: name.clone().into(), id, default: inner.default.clone() };
            fields.insert(name.clone(), field);
        }
        let free = schema.properties.is_empty() && schema.additional.is_none() || schema.preserve_unknown;
        let element = match schema.additional_schema() {
            Some(inner) => Some(self.convert(inner, false)),
            None => free.then(Types::deduced),
        };
        if root || schema.embedded {
            for name in ["apiVersion", "kind"] {
                let id = self.scalar(Scalar::String);
                fields.insert(name.to_owned(), FieldType { name: name.into(), id, default: None });
            }
            let id = self.metadata();
            let default = Some(Value::Object(serde_json::Map::new()));
            fields.insert("metadata".to_owned(), FieldType { name: "metadata".into(), id, default });
        }
        let map = MapType { fields: fields.into_values().collect(), element, atomic: schema.map_atomic };
        self.types.push(Atom { map: Some(map), ..Atom::default() })
    }

    fn metadata(&mut self) -> TypeId {
        match Schema::builtin().type_named(OBJECT_META) {
            Some(node) => self.copy(Types::of_node(node)),
            None => Types::deduced(),
        }
    }

    /// Takes over a built-in type, with all that it is made of.
    fn copy(&mut self, id: TypeId) -> TypeId {
        if id == Types::deduced() || id == Types::untyped() {
            return id;
        }
        if let Some(done) = self.copied.get(&id) {
            return *done;
        }
        let own = self.types.push(Atom::default());
        self.copied.insert(id, own);
        let mut atom = Types::builtin().atom(id).clone();
        if let Some(list) = &mut atom.list {
            list.item = self.copy(list.item);
        }
        if let Some(map) = &mut atom.map {
            map.element = map.element.map(|element| self.copy(element));
            for field in &mut map.fields {
                field.id = self.copy(field.id);
            }
        }
        self.types.set(own, atom);
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smd::{Set, Typed};
    use serde_json::json;
    use std::borrow::Cow;

    #[test]
    fn a_definition_says_what_is_owned() {
        let schema = Structural::read(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "size": {"type": "integer"},
                "ports": {
                    "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                    "items": {"type": "object", "properties": {
                        "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"},
                    }},
                },
                "names": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "whole": {"type": "array", "items": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "atom": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "string"}}},
                "any": {"x-kubernetes-preserve-unknown-fields": true},
                "either": {"x-kubernetes-int-or-string": true},
            }}}}),
        );
        let (types, id) = Types::custom(&schema);
        let object = json!({
            "apiVersion": "e.com/v1", "kind": "K", "metadata": {"name": "n", "finalizers": ["e.com/f"]},
            "spec": {
                "size": 1, "ports": [{"port": 80}], "names": ["a"], "whole": ["b"], "labels": {"l": "x"},
                "atom": {"a": "x"}, "any": {"deep": {"er": 1}}, "either": "50%",
            },
        });
        let typed = Typed::new(&types, id, Cow::Borrowed(&object), false).unwrap();
        let expected = json!({
            "f:apiVersion": {}, "f:kind": {},
            "f:metadata": {"f:name": {}, "f:finalizers": {"v:\"e.com/f\"": {}}},
            "f:spec": {
                "f:size": {}, "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}},
                "f:names": {"v:\"a\"": {}}, "f:whole": {}, "f:labels": {"f:l": {}}, "f:atom": {},
                "f:any": {"f:deep": {".": {}, "f:er": {}}}, "f:either": {},
            },
        });
        assert_eq!(typed.field_set(), Set::from_fields_v1(&expected).unwrap());
        assert!(Typed::new(&types, id, Cow::Owned(json!({"spec": {"size": "x"}})), false).is_err());
    }
}
