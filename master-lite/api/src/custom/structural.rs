//! The schema of a custom resource as a tree (`apiextensions-apiserver/pkg/apiserver/schema/structural.go`).

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

use super::format::Format;
use super::rules::{self, Rule};

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ListType {
    /// Replaced as a whole; the default.
    #[default]
    Atomic,
    /// Items are unique.
    Set,
    /// Items are objects, unique by their keys.
    Map,
}

/// What values of undeclared keys must be.
#[derive(Debug, Clone)]
pub enum Additional {
    /// `true`: anything; `false`: no such keys.
    Bool(bool),
    /// A schema.
    Schema(Box<Structural>),
}

/// One node of an `openAPIV3Schema`: structure and value validation.
///
/// This is also the schema tree that a typed merge needs: kinds of lists with their keys, atomic maps, properties,
/// items and values of maps.
#[derive(Debug, Clone, Default)]
pub struct Structural {
    /// OpenAPI type; empty when none is stated.
    pub kind: String,
    /// `null` is a value.
    pub nullable: bool,
    /// `default`.
    pub default: Option<Value>,
    /// Declared fields.
    pub properties: BTreeMap<String, Structural>,
    /// Undeclared fields.
    pub additional: Option<Additional>,
    /// Items of an array.
    pub items: Option<Box<Structural>>,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`; `None` when it is not stated.
    pub list_type: Option<ListType>,
    /// `x-kubernetes-list-map-keys`.
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type: atomic`.
    pub map_atomic: bool,
    /// What values must be like.
    pub checks: Checks,
    /// `x-kubernetes-validations`.
    pub rules: Arc<[Rule]>,
    /// It has such rules, or something in it has.
    pub is_ruled: bool,
}

/// Rules for values.
#[derive(Debug, Clone, Default)]
pub struct Checks {
    /// `format`, if it is one that is checked.
    pub format: Option<Format>,
    /// `maximum` and whether it is exclusive.
    pub maximum: Option<(serde_json::Number, bool)>,
    /// `minimum` and whether it is exclusive.
    pub minimum: Option<(serde_json::Number, bool)>,
    /// `maxLength`, in characters.
    pub max_length: Option<u64>,
    /// `minLength`, in characters.
    pub min_length: Option<u64>,
    /// `pattern` as written and compiled.
    pub pattern: Option<(String, Regex)>,
    /// `maxItems`.
    pub max_items: Option<u64>,
    /// `minItems`.
    pub min_items: Option<u64>,
    /// `multipleOf`.
    pub multiple_of: Option<serde_json::Number>,
    /// `maxProperties`.
    pub max_properties: Option<u64>,
    /// `minProperties`.
    pub min_properties: Option<u64>,
    /// `required`.
    pub required: Vec<String>,
    /// `enum`.
    pub allowed: Vec<Value>,
    /// `allOf`.
    pub all_of: Vec<Structural>,
    /// `anyOf`.
    pub any_of: Vec<Structural>,
    /// `oneOf`.
    pub one_of: Vec<Structural>,
    /// `not`.
    pub not: Option<Box<Structural>>,
}

/// Most bytes of a compiled pattern: a definition may hold thousands of them.
const PATTERN_LIMIT: usize = 1 << 20;

/// Compiles a pattern. Go's RE2 syntax is that of the regex crate, but for few escapes.
pub(super) fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    // Go takes `\/` and its like: an escaped character that needs no escape is itself there and here.
    regex::RegexBuilder::new(pattern).size_limit(PATTERN_LIMIT).build()
}

impl Structural {
    /// A schema that keeps whatever it is given: of a version without a schema.
    pub fn anything() -> Self {
        Self { kind: "object".to_owned(), preserve_unknown: true, ..Self::default() }
    }

    /// Reads a `JSONSchemaProps`. What a definition's validation would refuse is left out.
    pub fn read(schema: &Value) -> Self {
        let text = |key: &str| schema[key].as_str().unwrap_or_default().to_owned();
        let flag = |key: &str| schema[key].as_bool().unwrap_or(false);
        let list = |key: &str| schema[key].as_array().into_iter().flatten().map(Self::read).collect();
        let mut read = Self {
            kind: text("type"),
            nullable: flag("nullable"),
            default: schema.get("default").filter(|v| !v.is_null()).cloned(),
            properties: schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, inner)| (name.clone(), Self::read(inner)))
                .collect(),
            additional: match schema.get("additionalProperties") {
                None | Some(Value::Null) => None,
                Some(Value::Bool(allowed)) => Some(Additional::Bool(*allowed)),
                Some(inner) => Some(Additional::Schema(Box::new(Self::read(inner)))),
            },
            items: schema.get("items").filter(|v| v.is_object()).map(|inner| Box::new(Self::read(inner))),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list_type: match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => Some(ListType::Set),
                Some("map") => Some(ListType::Map),
                Some("atomic") => Some(ListType::Atomic),
                _ => None,
            },
            list_map_keys: strings(&schema["x-kubernetes-list-map-keys"]),
            map_atomic: schema["x-kubernetes-map-type"] == "atomic",
            checks: Checks {
                format: Format::of(&text("type"), &text("format")),
                maximum: bound(schema, "maximum", "exclusiveMaximum"),
                minimum: bound(schema, "minimum", "exclusiveMinimum"),
                max_length: schema["maxLength"].as_u64(),
                min_length: schema["minLength"].as_u64(),
                pattern: schema["pattern"]
                    .as_str()
                    .filter(|text| !text.is_empty())
                    .and_then(|text| Some((text.to_owned(), compile(text).ok()?))),
                max_items: schema["maxItems"].as_u64(),
                min_items: schema["minItems"].as_u64(),
                multiple_of: schema["multipleOf"].as_number().cloned(),
                max_properties: schema["maxProperties"].as_u64(),
                min_properties: schema["minProperties"].as_u64(),
                required: strings(&schema["required"]),
                allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
                all_of: list("allOf"),
                any_of: list("anyOf"),
                one_of: list("oneOf"),
                not: schema.get("not").filter(|v| v.is_object()).map(|inner| Box::new(Self::read(inner))),
            },
            rules: rules::read(schema),
            is_ruled: false,
        };
        let inner = read.properties.values().chain(read.items.as_deref()).chain(read.additional_schema());
        read.is_ruled = !read.rules.is_empty() || inner.into_iter().any(|inner| inner.is_ruled);
        read
    }

    /// The schema of values under undeclared keys, if one is stated.
    pub fn additional_schema(&self) -> Option<&Self> {
        match &self.additional {
            Some(Additional::Schema(inner)) => Some(inner),
            _ => None,
        }
    }

    /// The schema of a field, declared or not.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or_else(|| self.additional_schema())
    }
}

fn bound(schema: &Value, key: &str, exclusive: &str) -> Option<(serde_json::Number, bool)> {
    Some((schema[key].as_number()?.clone(), schema[exclusive].as_bool().unwrap_or(false)))
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
