//! What a schema does to an object before it is checked: unknown fields go, defaults come
//! (`apiextensions-apiserver/pkg/apiserver/schema/{pruning,defaulting}`).

use serde_json::{Map, Value};

use super::structural::Structural;
use crate::schema::Schema;

/// Fields that every object has.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// A path as upstream prints it in `unknown field "..."`.
#[derive(Default)]
struct Path(String);

impl Path {
    fn key(&mut self, key: &str) -> usize {
        let before = self.0.len();
        if before > 0 {
            self.0.push('.');
        }
        self.0.push_str(key);
        before
    }

    fn index(&mut self, index: usize) -> usize {
        let before = self.0.len();
        self.0.push_str(&format!("[{index}]"));
        before
    }
}

struct Pruner {
    path: Path,
    unknown: Vec<String>,
}

/// Removes fields that the schema does not know from an object; returns their paths, sorted.
pub fn prune(object: &mut Value, schema: &Structural) -> Vec<String> {
    let mut pruner = Pruner { path: Path::default(), unknown: Vec::new() };
    pruner.prune(object, Some(schema), true);
    pruner.unknown.sort();
    pruner.unknown
}

impl Pruner {
    fn record(&mut self, key: &str) {
        let before = self.path.key(key);
        self.unknown.push(self.path.0.clone());
        self.path.0.truncate(before);
    }

    fn inside(&mut self, key: &str, value: &mut Value, schema: Option<&Structural>) {
        let before = self.path.key(key);
        self.prune(value, schema, false);
        self.path.0.truncate(before);
    }

    fn prune(&mut self, value: &mut Value, schema: Option<&Structural>, root: bool) {
        if let Some(schema) = schema.filter(|schema| schema.preserve_unknown) {
            return self.skip(value, schema, root);
        }
        match value {
            Value::Object(map) => {
                let keys: Vec<String> = map.keys().cloned().collect();
                for key in keys {
                    let meta = META.contains(&key.as_str());
                    if meta && schema.is_some_and(|schema| root || schema.embedded) {
                        continue;
                    }
                    let known = schema.and_then(|schema| match schema.properties.get(&key) {
                        Some(inner) => Some(Some(inner)),
                        None => schema.additional.as_ref().map(|_| schema.additional_schema()),
                    });
                    match (known, map.get_mut(&key)) {
                        (Some(inner), Some(value)) => self.inside(&key, value, inner),
                        _ => {
                            if !meta || !self.path.0.is_empty() {
                                self.record(&key);
                            }
                            map.remove(&key);
                        }
                    }
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    let before = self.path.index(i);
                    self.prune(item, schema.and_then(|schema| schema.items.as_deref()), false);
                    self.path.0.truncate(before);
                }
            }
            _ => {}
        }
    }

    /// Below a field that keeps unknown fields, what is declared is pruned again.
    fn skip(&mut self, value: &mut Value, schema: &Structural, root: bool) {
        match value {
            Value::Object(map) => {
                for (key, value) in map.iter_mut() {
                    if (root || schema.embedded) && META.contains(&key.as_str()) {
                        continue;
                    }
                    if let Some(inner) = schema.properties.get(key) {
                        self.inside(key, value, Some(inner));
                    } else if schema.additional.is_some() {
                        self.inside(key, value, schema.additional_schema());
                    }
                }
            }
            Value::Array(items) => {
                let Some(inner) = schema.items.as_deref() else { return };
                for (i, item) in items.iter_mut().enumerate() {
                    let before = self.path.index(i);
                    self.skip(item, inner, false);
                    self.path.0.truncate(before);
                }
            }
            _ => {}
        }
    }
}

fn is_stray_null(value: &Value, schema: Option<&Structural>) -> bool {
    value.is_null() && schema.is_some_and(|schema| !schema.nullable)
}

/// Fills in the schema's defaults.
pub fn default(value: &mut Value, schema: &Structural) {
    match value {
        Value::Object(map) => {
            for (key, inner) in &schema.properties {
                let Some(wanted) = &inner.default else { continue };
                if map.get(key).is_none_or(|have| is_stray_null(have, Some(inner))) {
                    map.insert(key.clone(), wanted.clone());
                }
            }
            for (key, value) in map.iter_mut() {
                if let Some(inner) = schema.properties.get(key) {
                    default(value, inner);
                } else if let Some(inner) = schema.additional_schema() {
                    default_null(value, inner);
                    default(value, inner);
                }
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.items.as_deref() else { return };
            for item in items {
                default_null(item, inner);
                default(item, inner);
            }
        }
        _ => {}
    }
}

fn default_null(value: &mut Value, schema: &Structural) {
    if is_stray_null(value, Some(schema))
        && let Some(wanted) = &schema.default
    {
        *value = wanted.clone();
    }
}

/// Removes nulls where the schema has neither `nullable` nor a default.
pub fn drop_nulls(value: &mut Value, schema: Option<&Structural>) {
    match value {
        Value::Object(map) => map.retain(|key, value| {
            let inner = schema.and_then(|schema| schema.field(key));
            let stray = is_stray_null(value, inner) && inner.is_some_and(|inner| inner.default.is_none());
            if !stray {
                drop_nulls(value, inner);
            }
            !stray
        }),
        Value::Array(items) => {
            let inner = schema.and_then(|schema| schema.items.as_deref());
            items.iter_mut().for_each(|item| drop_nulls(item, inner));
        }
        _ => {}
    }
}

/// Brings `metadata` of the object, and of the objects that it embeds, into the form of `ObjectMeta`. Returns the
/// paths of unknown fields. With `lenient` (objects out of the store), what does not fit is dropped; otherwise it is
/// an error, whose text is returned.
pub fn coerce_metadata(
    object: &mut Value,
    schema: &Structural,
    lenient: bool,
) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    coerce_one(object, "", lenient, &mut unknown)?;
    coerce_embedded(object, Some(schema), String::new(), true, lenient, &mut unknown)?;
    unknown.sort();
    Ok(unknown)
}

fn coerce_one(
    object: &mut Value,
    path: &str,
    lenient: bool,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let Some(map) = object.as_object_mut() else { return Ok(()) };
    let prefix = if path.is_empty() { "metadata".to_owned() } else { format!("{path}.metadata") };
    let schema = Schema::builtin();
    let node = schema.type_named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
    let (Some(meta), Some(node)) = (map.get_mut("metadata"), node) else { return Ok(()) };
    if meta.is_null() {
        map.remove("metadata");
        return Ok(());
    }
    match schema.normalize(node, meta) {
        Ok(report) => {
            unknown.extend(report.unknown.iter().map(|field| format!("{prefix}.{field}")));
            Ok(())
        }
        Err(_) if lenient => {
            if !meta.is_object() {
                *meta = Value::Object(Map::new());
            }
            Ok(())
        }
        Err(error) => Err(format!("{prefix}: Invalid value: {meta}: {error}")),
    }
}

fn coerce_embedded(
    value: &mut Value,
    schema: Option<&Structural>,
    path: String,
    root: bool,
    lenient: bool,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let Some(schema) = schema else { return Ok(()) };
    if schema.embedded && !root {
        coerce_one(value, &path, lenient, unknown)?;
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                let inner = schema.field(key);
                if inner.is_some() {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    coerce_embedded(value, inner, path, false, lenient, unknown)?;
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                let inner = schema.items.as_deref();
                coerce_embedded(item, inner, format!("{path}[{i}]"), false, lenient, unknown)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// [`prune`] for a value that is no object of its own: a default.
pub(super) fn prune_inner(value: &mut Value, schema: &Structural) {
    let mut pruner = Pruner { path: Path("default".to_owned()), unknown: Vec::new() };
    pruner.prune(value, Some(schema), false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Structural {
        Structural::read(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string", "default": "A"},
                "n": {"type": "string", "nullable": true, "default": "N"},
                "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {
                    "x": {"type": "integer", "default": 1}}}},
                "l": {"type": "array", "items": {"type": "object", "properties": {"y": {"type": "string"}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"known": {"type": "object", "properties": {"k": {"type": "string"}}}}},
                "obj": {"type": "object", "x-kubernetes-embedded-resource": true,
                    "x-kubernetes-preserve-unknown-fields": true},
            }},
        }}))
    }

    #[test]
    fn unknown_fields_go_and_are_told() {
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"}, "extra": 1,
            "spec": {"b": 1, "m": {"one": {"x": 1, "z": 1}}, "l": [{"y": "1", "q": 1}],
                "free": {"any": {"thing": 1}, "known": {"k": "1", "u": 1}}}});
        let unknown = prune(&mut object, &schema());
        assert_eq!(unknown, ["extra", "spec.b", "spec.free.known.u", "spec.l[0].q", "spec.m.one.z"]);
        assert_eq!(
            object,
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"},
                "spec": {"m": {"one": {"x": 1}}, "l": [{"y": "1"}],
                    "free": {"any": {"thing": 1}, "known": {"k": "1"}}}})
        );
    }

    #[test]
    fn defaults_and_nulls() {
        let mut object = json!({"spec": {"a": null, "n": null, "m": {"one": {}}}});
        drop_nulls(&mut object, Some(&schema()));
        default(&mut object, &schema());
        assert_eq!(object, json!({"spec": {"a": "A", "n": null, "m": {"one": {"x": 1}}}}));
        let mut object = json!({});
        default(&mut object, &schema());
        assert_eq!(object, json!({}));
    }

    #[test]
    fn metadata_is_object_meta() {
        let mut object = json!({"metadata": {"name": "a", "foo": 1},
            "spec": {"obj": {"metadata": {"bar": 1, "name": "b"}}}});
        let unknown = coerce_metadata(&mut object, &schema(), false).unwrap();
        assert_eq!(unknown, ["metadata.foo", "spec.obj.metadata.bar"]);
        assert_eq!(object["spec"]["obj"]["metadata"], json!({"name": "b"}));
        assert!(coerce_metadata(&mut json!({"metadata": {"labels": 1}}), &schema(), false).is_err());
    }
}
