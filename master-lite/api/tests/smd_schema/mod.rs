//! Schemas in the notation of structured-merge-diff (`schema/elements.go`), for tests against its own data.

#![allow(dead_code, reason = "no test file uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;

use keelson_api::codec::{self, MediaType};
use keelson_api::smd::{Atom, FieldType, List, MapType, Scalar, TypeId, Types};
use serde_json::Value;

/// A schema and the names of its types.
pub struct SmdSchema {
    pub types: Types,
    names: HashMap<String, TypeId>,
    first: TypeId,
}

/// A reference that overrules how the elements of its type belong together; resolved when all types are there.
struct Override {
    at: TypeId,
    of: TypeId,
    relationship: String,
}

struct Loader {
    schema: SmdSchema,
    overrides: Vec<Override>,
}

impl SmdSchema {
    /// Reads a schema's YAML.
    pub fn parse(yaml: &[u8]) -> Self {
        let (schema, _) = codec::parse(MediaType::Yaml, yaml).unwrap();
        let definitions = schema["types"].as_array().unwrap();
        let mut types = Types::default();
        let ids: Vec<TypeId> = definitions.iter().map(|_| types.push(Atom::default())).collect();
        let names = definitions
            .iter()
            .zip(&ids)
            .map(|(definition, id)| (definition["name"].as_str().unwrap_or_default().to_owned(), *id))
            .collect();
        let mut loader = Loader { schema: Self { types, names, first: ids[0] }, overrides: Vec::new() };
        for (definition, id) in definitions.iter().zip(ids) {
            let atom = loader.atom(definition);
            loader.schema.types.set(id, atom);
        }
        for Override { at, of, relationship } in loader.overrides {
            let mut atom = loader.schema.types.atom(of).clone();
            if let Some(map) = &mut atom.map {
                map.atomic = relationship == "atomic";
            } else if let Some(list) = &mut atom.list {
                list.keys = (relationship == "associative").then(|| list.keys.take().unwrap_or_default());
            }
            loader.schema.types.set(at, atom);
        }
        loader.schema
    }

    /// A type by its name.
    pub fn named(&self, name: &str) -> TypeId {
        self.names[name]
    }

    /// The type of whole documents.
    pub fn first(&self) -> TypeId {
        self.first
    }
}

impl Loader {
    fn atom(&mut self, definition: &Value) -> Atom {
        let scalar = definition["scalar"].as_str().map(|name| match name {
            "numeric" => Scalar::Numeric,
            "string" => Scalar::String,
            "boolean" => Scalar::Boolean,
            _ => Scalar::Untyped,
        });
        let list = definition.get("list").filter(|list| !list.is_null()).map(|list| List {
            item: self.reference(&list["elementType"]).unwrap_or(Types::untyped()),
            keys: (list["elementRelationship"] == "associative").then(|| {
                let keys = list["keys"].as_array().into_iter().flatten();
                keys.map(|key| key.as_str().unwrap().to_owned().into()).collect()
            }),
        });
        let map = definition.get("map").filter(|map| !map.is_null()).map(|map| {
            let fields = map["fields"].as_array().cloned().unwrap_or_default();
            let mut fields: Vec<FieldType> = fields
                .iter()
                .map(|field| FieldType {
                    name: field["name"].as_str().unwrap().to_owned().into(),
                    id: self.reference(&field["type"]).unwrap(),
                    default: field.get("default").filter(|default| !default.is_null()).cloned(),
                })
                .collect();
            fields.sort_by(|a, b| a.name.cmp(&b.name));
            MapType {
                fields: fields.into(),
                element: self.reference(&map["elementType"]),
                atomic: map["elementRelationship"] == "atomic",
            }
        });
        Atom { scalar, list, map }
    }

    fn reference(&mut self, reference: &Value) -> Option<TypeId> {
        if !reference.is_object() {
            return None;
        }
        let Some(name) = reference["namedType"].as_str() else {
            let atom = self.atom(reference);
            return Some(self.schema.types.push(atom));
        };
        let of = *self.schema.names.get(name).unwrap_or_else(|| panic!("no type {name}"));
        let Some(relationship) = reference["elementRelationship"].as_str() else { return Some(of) };
        let at = self.schema.types.push(Atom::default());
        self.overrides.push(Override { at, of, relationship: relationship.to_owned() });
        Some(at)
    }
}
