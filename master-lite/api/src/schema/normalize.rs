//! Brings a tree into the one form that upstream's typed round trip gives it.
//!
//! Upstream decodes every request into Go structs and encodes those again. What a client sees follows from that:
//! unknown fields go, `omitempty` zeros go, required zeros appear (`spec: {}`), times and quantities are
//! canonical. Doing the same here makes JSON, YAML and protobuf bodies of one object the same tree.

use super::{Field, Node, NodeId, Scalar, Schema, Special, Struct};
use crate::time;
use base64::{Engine, engine::general_purpose::STANDARD};
use keelson_cron::duration;
use serde_json::{Map, Number, Value};

/// What normalizing found besides the tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Normalized {
    /// Paths of fields that the schema does not know, such as `spec.containers[0].imag`.
    pub unknown: Vec<String>,
}

/// A value does not fit its type. Displays as Go words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeError {
    what: String,
    go_type: String,
    /// Name of the innermost struct, then the names of fields on the way, innermost first.
    owner: Option<String>,
    path: Vec<String>,
    /// Set when a value has the right JSON type but its parser refuses it; then only this is shown.
    refused: Option<String>,
}

impl TypeError {
    fn mismatch(schema: &Schema, node: NodeId, value: &Value) -> Self {
        let what = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) if !number.is_f64() && number.to_string().len() < 10 => "number".to_owned(),
            Value::Number(number) => format!("number {number}"),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        Self { what, go_type: schema.go_type(node), owner: None, path: Vec::new(), refused: None }
    }

    fn refused(why: String) -> Self {
        Self {
            what: String::new(),
            go_type: String::new(),
            owner: None,
            path: Vec::new(),
            refused: Some(why),
        }
    }

    fn inside(mut self, owner: &Struct, field: &str) -> Self {
        if self.owner.is_none() {
            self.owner = owner.name.rsplit('.').next().map(str::to_owned);
        }
        self.path.push(field.to_owned());
        self
    }

    /// Dotted path of the field, without list indexes.
    pub fn path(&self) -> String {
        self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

impl std::fmt::Display for TypeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(refused) = &self.refused {
            return f.write_str(refused);
        }
        match &self.owner {
            Some(owner) => write!(
                f,
                "json: cannot unmarshal {} into Go struct field {owner}.{} of type {}",
                self.what,
                self.path(),
                self.go_type
            ),
            None => write!(f, "json: cannot unmarshal {} into Go value of type {}", self.what, self.go_type),
        }
    }
}

impl std::error::Error for TypeError {}

impl Schema {
    /// Normalizes `value` in place as a value of type `node`. On an error the value is left half done.
    pub fn normalize(&self, node: NodeId, value: &mut Value) -> Result<Normalized, TypeError> {
        let mut report = Normalized::default();
        self.normal(node, value, &mut report)?;
        Ok(report)
    }

    fn normal(&self, node: NodeId, value: &mut Value, report: &mut Normalized) -> Result<(), TypeError> {
        if value.is_null() {
            *value = self.zero(node);
            return Ok(());
        }
        match self.node(node) {
            Node::Scalar(scalar) => self.scalar(*scalar, node, value),
            Node::Enum(_) if value.is_string() => Ok(()),
            Node::Enum(_) => Err(TypeError::mismatch(self, node, value)),
            Node::Special(special) => self.special(*special, node, value, report),
            Node::Wrapped(inner) => self.normal(*inner, value, report),
            Node::List { item, .. } => {
                let Value::Array(items) = value else { return Err(TypeError::mismatch(self, node, value)) };
                for (index, value) in items.iter_mut().enumerate() {
                    let before = report.unknown.len();
                    self.normal(*item, value, report)?;
                    for path in &mut report.unknown[before..] {
                        path.insert_str(0, &format!("[{index}]{}", joint(path)));
                    }
                }
                Ok(())
            }
            Node::Map { value: inner, .. } => {
                let Value::Object(entries) = value else {
                    return Err(TypeError::mismatch(self, node, value));
                };
                for (key, value) in entries.iter_mut() {
                    let before = report.unknown.len();
                    self.normal(*inner, value, report)?;
                    for path in &mut report.unknown[before..] {
                        path.insert_str(0, &format!("{key}{}", joint(path)));
                    }
                }
                Ok(())
            }
            Node::Struct(inner) => {
                let Value::Object(object) = value else { return Err(TypeError::mismatch(self, node, value)) };
                let first = report.unknown.len();
                object.retain(|key, _| {
                    let known = self.field(inner, key).is_some();
                    if !known {
                        report.unknown.push(key.to_owned());
                    }
                    known
                });
                debug_assert!(report.unknown.len() >= first);
                self.normal_fields(inner, object, report)
            }
        }
    }

    fn normal_fields(
        &self,
        of: &Struct,
        object: &mut Map<String, Value>,
        report: &mut Normalized,
    ) -> Result<(), TypeError> {
        for field in &of.fields {
            if field.inline {
                if let Some(inner) = self.as_struct(field.node) {
                    self.normal_fields(inner, object, report)?;
                }
                continue;
            }
            let keep = match object.get_mut(field.name.as_ref()) {
                Some(value) if !value.is_null() => {
                    let before = report.unknown.len();
                    self.normal(field.node, value, report).map_err(|e| e.inside(of, &field.name))?;
                    for path in &mut report.unknown[before..] {
                        path.insert_str(0, &format!("{}{}", field.name, joint(path)));
                    }
                    self.is_written(field, value)
                }
                _ => {
                    let zero = if field.pointer { Value::Null } else { self.zero(field.node) };
                    let written = self.is_written(field, &zero);
                    if written {
                        object.insert(field.name.to_string(), zero);
                    }
                    written
                }
            };
            if !keep {
                object.remove(field.name.as_ref());
            }
        }
        Ok(())
    }

    /// Whether Go's encoder writes a field that holds this (normalized) value.
    fn is_written(&self, field: &Field, value: &Value) -> bool {
        if field.omitzero && value.is_null() {
            return false;
        }
        if !field.omitempty {
            return true;
        }
        if field.pointer {
            return !value.is_null();
        }
        match self.node(field.node) {
            Node::Struct(_) => true,
            // Structs behind a JSON form of their own: omitempty has no effect on them.
            Node::Special(special) => {
                *special == Special::Any && !value.is_null() || *special != Special::Any
            }
            Node::List { .. } | Node::Wrapped(_) => value.as_array().is_some_and(|items| !items.is_empty()),
            Node::Map { .. } => value.as_object().is_some_and(|entries| !entries.is_empty()),
            Node::Enum(_) => value.as_str().is_some_and(|text| !text.is_empty()),
            Node::Scalar(_) => match value {
                Value::Null => false,
                Value::Bool(flag) => *flag,
                Value::Number(number) => number.as_f64() != Some(0.0),
                Value::String(text) => !text.is_empty(),
                Value::Array(_) | Value::Object(_) => true,
            },
        }
    }

    /// What Go's encoder writes for a zero value of the type.
    pub fn zero(&self, node: NodeId) -> Value {
        match self.node(node) {
            Node::Scalar(Scalar::String) | Node::Enum(_) => Value::String(String::new()),
            Node::Scalar(Scalar::Bool) => Value::Bool(false),
            Node::Scalar(Scalar::Bytes) | Node::List { .. } | Node::Map { .. } | Node::Wrapped(_) => {
                Value::Null
            }
            Node::Scalar(_) => Value::from(0),
            Node::Special(special) => match special {
                Special::Quantity => Value::String("0".to_owned()),
                Special::IntOrString => Value::from(0),
                Special::Duration => Value::String("0s".to_owned()),
                Special::SchemaOrBool => Value::Bool(false),
                _ => Value::Null,
            },
            Node::Struct(inner) => {
                let mut object = Map::new();
                // Nothing is there that could have a wrong type.
                let _ = self.normal_fields(inner, &mut object, &mut Normalized::default());
                Value::Object(object)
            }
        }
    }

    fn scalar(&self, scalar: Scalar, node: NodeId, value: &mut Value) -> Result<(), TypeError> {
        let fits = match (scalar, &*value) {
            (Scalar::String, Value::String(_)) | (Scalar::Bool, Value::Bool(_)) => true,
            (Scalar::Int32, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            (Scalar::Int64, Value::Number(n)) => n.is_i64(),
            (Scalar::Uint32, Value::Number(n)) => n.as_u64().is_some_and(|n| u32::try_from(n).is_ok()),
            (Scalar::Uint64, Value::Number(n)) => n.is_u64(),
            (Scalar::Float64, Value::Number(n)) => {
                if let Some(whole) = n.as_f64().and_then(whole_number) {
                    *value = Value::Number(whole);
                }
                true
            }
            (Scalar::Bytes, Value::String(text)) => {
                let bytes = decode_base64(text).map_err(TypeError::refused)?;
                *value = Value::String(STANDARD.encode(bytes));
                true
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(TypeError::mismatch(self, node, value)) }
    }

    fn special(
        &self,
        special: Special,
        node: NodeId,
        value: &mut Value,
        report: &mut Normalized,
    ) -> Result<(), TypeError> {
        match (special, &*value) {
            (Special::Time, Value::String(text)) => {
                *value = time::canonical_seconds(text).map_err(TypeError::refused)?;
            }
            (Special::MicroTime, Value::String(text)) => {
                *value = time::canonical_micros(text).map_err(TypeError::refused)?;
            }
            (Special::Duration, Value::String(text)) => {
                let nanos = duration::parse(text).map_err(TypeError::refused)?;
                *value = Value::String(duration::format(nanos));
            }
            (Special::Quantity, Value::String(_) | Value::Number(_)) => {
                let text = match &*value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let canonical = keelson_quantity::canonical(text.trim())
                    .map_err(|error| TypeError::refused(error.to_string()))?;
                *value = Value::String(canonical.into_owned());
            }
            (Special::IntOrString, Value::String(_)) => {}
            (Special::IntOrString, Value::Number(n))
                if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
            (Special::FieldsV1 | Special::RawExtension | Special::Json | Special::Any, _) => {}
            (Special::SchemaOrBool, Value::Bool(_)) => {}
            (Special::SchemaOrArray | Special::SchemaOrBool | Special::SchemaOrStrings, Value::Object(_)) => {
                if let Some(props) = self.schema_props() {
                    self.normal(props, value, report)?;
                }
            }
            (Special::SchemaOrArray, Value::Array(_)) => {
                if let (Some(props), Value::Array(items)) = (self.schema_props(), &mut *value) {
                    for item in items {
                        self.normal(props, item, report)?;
                    }
                }
            }
            (Special::SchemaOrStrings, Value::Array(items)) if items.iter().all(Value::is_string) => {}
            (Special::SchemaOrBool, _) => {
                return Err(TypeError::refused("boolean or JSON schema expected".to_owned()));
            }
            _ => return Err(TypeError::mismatch(self, node, value)),
        }
        Ok(())
    }

    /// The node of `JSONSchemaProps`, which three special types hold.
    pub(crate) fn schema_props(&self) -> Option<NodeId> {
        self.type_named("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
    }
}

/// The character between a segment and the path that follows it.
fn joint(path: &str) -> &'static str {
    if path.starts_with('[') { "" } else { "." }
}

/// A float without a fraction, printed by Go without a decimal point.
fn whole_number(float: f64) -> Option<Number> {
    // Above 2^53 neighbours are more than one apart, and Go changes to exponents at 1e21.
    let whole = float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "bounded by 2^53 on the line above")]
    whole.then(|| Number::from(float as i64))
}

/// Standard base64 with padding; Go skips line breaks inside.
fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let compact: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    STANDARD.decode(&compact).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(length) => length,
            base64::DecodeError::InvalidPadding => compact.len(),
        };
        format!("illegal base64 data at input byte {at}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::GroupVersionKind;
    use serde_json::json;

    fn run(api_version: &str, kind: &str, mut value: Value) -> Result<(Value, Vec<String>), TypeError> {
        let schema = Schema::builtin();
        let node = schema.kind(&GroupVersionKind::from_type_meta(api_version, kind)).unwrap();
        let report = schema.normalize(node, &mut value)?;
        Ok((value, report.unknown))
    }

    #[test]
    fn output_is_that_of_a_go_round_trip() {
        let check = |api: &str, kind: &str, input: Value, output: Value| {
            assert_eq!(run(api, kind, input).unwrap(), (output, Vec::new()));
        };
        check(
            "v1",
            "ConfigMap",
            json!({"metadata": {"name": "a", "labels": {}, "creationTimestamp": null}, "data": {}}),
            json!({"metadata": {"name": "a"}}),
        );
        check(
            "v1",
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "stdin": false, "resources": {"limits":
                {"cpu": "1000m", "memory": 1024}}}], "hostNetwork": false, "enableServiceLinks": false}}),
            json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": {"limits":
                {"cpu": "1", "memory": "1024"}}}], "enableServiceLinks": false}, "status": {}}),
        );
        check(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            json!({"metadata": {"name": "r"}}),
            json!({"metadata": {"name": "r"}, "rules": null}),
        );
        check(
            "v1",
            "Secret",
            json!({"data": {"a": "YQ=="}, "metadata": {"deletionTimestamp": "2020-01-01T02:00:00.9+02:00"}}),
            json!({"data": {"a": "YQ=="}, "metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}}),
        );
    }

    #[test]
    fn unknown_fields_have_paths() {
        let (_, unknown) = run(
            "apps/v1",
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}, {"imagee": 1}]}}, "foo": 1},
                "x": {}, "Spec": 1}),
        )
        .unwrap();
        let mut sorted = unknown;
        sorted.sort();
        assert_eq!(sorted, ["Spec", "spec.foo", "spec.template.spec.containers[1].imagee", "x"]);
    }

    #[test]
    fn mismatches_read_as_gos() {
        let check = |input: Value, text: &str| {
            assert_eq!(run("apps/v1", "Deployment", input).unwrap_err().to_string(), text);
        };
        check(
            json!({"spec": {"replicas": "3"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
        check(
            json!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        );
        check(json!([]), "json: cannot unmarshal array into Go value of type v1.Deployment");
        check(
            json!({"spec": {"replicas": 5_000_000_000_i64}}),
            "json: cannot unmarshal number 5000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        );
    }
}
