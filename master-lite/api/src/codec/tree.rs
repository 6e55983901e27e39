//! JSON and YAML to trees, with an eye on duplicate keys.

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use std::fmt;

/// A tree as it was written: objects keep every key.
enum Raw {
    Leaf(Value),
    List(Vec<Raw>),
    Object(Vec<(String, Raw)>),
}

/// Parses JSON. The nesting limit is serde_json's 128: what is deeper could not be read by clients that use the
/// same library, those of this process among them.
pub fn json(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let raw: Raw = serde_json::from_slice(body)?;
    Ok(finish(raw))
}

/// Nesting limit of YAML: below that of JSON because the parser needs more stack a level. Clients that send YAML
/// send what people write by hand.
const MAX_YAML_DEPTH: usize = 80;

/// Parses one YAML document.
pub fn yaml(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_YAML_DEPTH, max_documents: 1 },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let raw: Raw = serde_saphyr::from_slice_with_options(body, options).map_err(|error| error.to_string())?;
    Ok(finish(raw))
}

/// Writes one YAML document that readers of YAML 1.1 (Go's) and 1.2 take alike.
pub fn to_yaml(value: &Value) -> Result<Vec<u8>, String> {
    serde_saphyr::to_string(value).map(String::into_bytes).map_err(|error| error.to_string())
}

/// What upstream's strict YAML parser says of the first duplicate key in a document; `None` if there is none.
pub fn yaml_duplicates(body: &[u8]) -> Option<String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: MAX_YAML_DEPTH, max_documents: 1 },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        with_snippet: false,
    };
    let error = serde_saphyr::from_slice_with_options::<Raw>(body, options).err()?;
    let serde_saphyr::Error::DuplicateMappingKey { key, location } = error else { return None };
    let key = key.unwrap_or_default();
    let line = location.line();
    Some(format!(
        "error converting YAML to JSON: yaml: unmarshal errors:\n  line {line}: key {key:?} already set in map"
    ))
}

fn finish(raw: Raw) -> (Value, Vec<String>) {
    let mut duplicates = Vec::new();
    let value = convert(raw, &mut duplicates);
    let complaints = duplicates.into_iter().map(|path| format!("duplicate field {path:?}")).collect();
    (value, complaints)
}

/// The last of duplicate keys wins, as in Go.
fn convert(raw: Raw, duplicates: &mut Vec<String>) -> Value {
    match raw {
        Raw::Leaf(value) => value,
        Raw::List(items) => {
            let mut values = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                let before = duplicates.len();
                values.push(convert(item, duplicates));
                prefix(&mut duplicates[before..], || format!("[{index}]"));
            }
            Value::Array(values)
        }
        Raw::Object(entries) => {
            let mut object = Map::new();
            for (key, value) in entries {
                let before = duplicates.len();
                let value = convert(value, duplicates);
                prefix(&mut duplicates[before..], || key.clone());
                if object.contains_key(&key) {
                    duplicates.push(key.clone());
                }
                object.insert(key, value);
            }
            Value::Object(object)
        }
    }
}

fn prefix(paths: &mut [String], segment: impl Fn() -> String) {
    for path in paths {
        let joint = if path.starts_with('[') { "" } else { "." };
        path.insert_str(0, &format!("{}{joint}", segment()));
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::from(value)))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Raw, E> {
        // JSON has no infinities; YAML does.
        Number::from_f64(value)
            .map(|number| Raw::Leaf(Value::Number(number)))
            .ok_or_else(|| E::custom("json: unsupported value: number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::String(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Leaf(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry::<String, Raw>()? {
            entries.push(entry);
        }
        Ok(Raw::Object(entries))
    }
}
