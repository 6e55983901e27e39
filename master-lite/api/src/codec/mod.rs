//! Request bodies to trees and back: JSON, YAML and Kubernetes protobuf.

mod protobuf;
mod tree;

pub use protobuf::ProtobufError;

use crate::{
    meta::GroupVersionKind,
    schema::{NodeId, Schema, TypeError},
};
use serde_json::Value;

/// Encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaType {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

impl MediaType {
    /// From a `Content-Type` header; parameters are ignored. An absent or empty header means JSON.
    pub fn from_content_type(header: &str) -> Option<Self> {
        match header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "application/json" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }

    /// The media type without parameters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// What to do with unknown and duplicate fields: the `fieldValidation` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and tell the client in `Warning` headers. The default of the API.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl FieldValidation {
    /// From the query parameter; empty means the default. `None` for values that are not allowed.
    pub fn from_query(value: &str) -> Option<Self> {
        match value {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// A decoded body.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The normalized object; `apiVersion` and `kind` are set.
    pub object: Value,
    /// What it is.
    pub gvk: GroupVersionKind,
    /// For `Warning` headers, such as `unknown field "spec.foo"`.
    pub warnings: Vec<String>,
}

/// A body that can't be taken. All of these are 400 BadRequest.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes are no JSON.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Json(#[source] serde_json::Error),
    /// The bytes are no YAML, or more than one document.
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
    /// The bytes are no Kubernetes protobuf.
    #[error(transparent)]
    Protobuf(#[from] ProtobufError),
    /// A value does not fit its field.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// The body is not an object.
    #[error(
        "couldn't get version/kind; json parse error: json: cannot unmarshal {0} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
    )]
    NotAnObject(&'static str),
    /// The tree is deeper than any client could read back.
    #[error("couldn't get version/kind; json parse error: exceeded max depth")]
    Depth,
    /// Unknown or duplicate fields under [`FieldValidation::Strict`].
    #[error("strict decoding error: {}", .0.join(", "))]
    Strict(Vec<String>),
    /// The schema has no such kind.
    #[error("no kind {:?} is registered for version {:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"", .0.kind, .0.api_version())]
    UnknownKind(GroupVersionKind),
    /// The object is of another group or version than the request's path.
    #[error("the API version in the data ({got}) does not match the expected API version ({expected})")]
    WrongVersion {
        /// apiVersion of the object.
        got: String,
        /// apiVersion of the path.
        expected: String,
    },
    /// The object is of another kind than the request's path takes.
    #[error("{} in version {:?} cannot be handled as a {expected}", got.kind, got.version)]
    WrongKind {
        /// What the object says it is.
        got: GroupVersionKind,
        /// Kind that the path takes.
        expected: String,
    },
}

impl CodecError {
    /// The message of the 400 Status that upstream's handlers answer with, for an object of kind `gvk`.
    pub fn status_message(&self, gvk: &GroupVersionKind) -> String {
        match self {
            Self::WrongVersion { .. } | Self::WrongKind { .. } => self.to_string(),
            _ => format!(
                "{} in version {:?} cannot be handled as a {}: {self}",
                gvk.kind, gvk.version, gvk.kind
            ),
        }
    }
}

/// Most complaints that a strict decoding error or the warnings list; upstream's limit.
const MAX_STRICT_ERRORS: usize = 100;

/// Nesting limit of a tree: what serde_json parses.
const MAX_DEPTH: usize = 127;

fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(fields) => levels == 0 || fields.values().any(|field| deeper_than(field, levels - 1)),
        _ => false,
    }
}

/// Decodes a body as one of the built-in kinds. An object that names no kind is taken to be `expect`.
pub fn decode(
    media: MediaType,
    body: &[u8],
    expect: &GroupVersionKind,
    validation: FieldValidation,
) -> Result<Decoded, CodecError> {
    let schema = Schema::builtin();
    let node = schema.kind(expect).ok_or_else(|| CodecError::UnknownKind(expect.clone()))?;
    let (mut object, complaints) = parse_with(schema, media, body, Some(node), expect)?;
    let has_type_meta = schema.as_struct(node).is_some_and(|of| schema.field(of, "kind").is_some());
    let gvk = take_type_meta(&mut object, expect)?;
    if !has_type_meta && let Value::Object(fields) = &mut object {
        // A watch event carries neither in JSON, though its protobuf envelope does.
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if gvk.kind != expect.kind {
        return Err(CodecError::WrongKind { got: gvk, expected: expect.kind.clone() });
    }
    let unversioned = schema.kind_struct(expect).is_some_and(|found| {
        found.gvk.as_deref().is_some_and(|own| own.group == "meta.k8s.io") && schema.kind(&gvk) == Some(node)
    });
    if !unversioned && (&gvk.group, &gvk.version) != (&expect.group, &expect.version) {
        return Err(CodecError::WrongVersion { got: gvk.api_version(), expected: expect.api_version() });
    }
    let warnings = normalize(schema, node, &mut object, complaints, validation)?;
    Ok(Decoded { object, gvk, warnings })
}

/// Normalizes a tree that did not come from a body (the result of a patch, say) as [`decode`] does, and returns
/// the warnings.
pub fn normalize_object(
    gvk: &GroupVersionKind,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, CodecError> {
    let schema = Schema::builtin();
    let node = schema.kind(gvk).ok_or_else(|| CodecError::UnknownKind(gvk.clone()))?;
    normalize(schema, node, object, Vec::new(), validation)
}

/// Parses a body without a schema (JSON or YAML only): the tree, and complaints about duplicate fields.
pub fn parse(media: MediaType, body: &[u8]) -> Result<(Value, Vec<String>), CodecError> {
    match media {
        MediaType::Json => tree::json(body).map_err(CodecError::Json),
        MediaType::Yaml => tree::yaml(body).map_err(CodecError::Yaml),
        MediaType::Protobuf => Err(ProtobufError::NoSchema.into()),
    }
}

/// Encodes a normalized object of a built-in kind as Kubernetes protobuf, envelope included.
pub fn encode_protobuf(gvk: &GroupVersionKind, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    protobuf::encode(Schema::builtin(), gvk, object)
}

fn parse_with(
    schema: &Schema,
    media: MediaType,
    body: &[u8],
    node: Option<NodeId>,
    expect: &GroupVersionKind,
) -> Result<(Value, Vec<String>), CodecError> {
    match (media, node) {
        (MediaType::Protobuf, Some(node)) => Ok((protobuf::decode(schema, node, expect, body)?, Vec::new())),
        _ => parse(media, body),
    }
}

/// Reads apiVersion and kind, filling them from `expect` where absent.
fn take_type_meta(object: &mut Value, expect: &GroupVersionKind) -> Result<GroupVersionKind, CodecError> {
    let Value::Object(fields) = object else {
        return Err(CodecError::NotAnObject(match object {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) | Value::Object(_) => "array",
        }));
    };
    let mut text = |key: &str, default: String| match fields.get(key) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        // A wrong type is reported by normalize, with the right words.
        Some(other) if !other.is_null() && other != "" => default,
        _ => {
            fields.insert(key.to_owned(), Value::String(default.clone()));
            default
        }
    };
    let api_version = text("apiVersion", expect.api_version());
    let kind = text("kind", expect.kind.clone());
    Ok(GroupVersionKind::from_type_meta(&api_version, &kind))
}

fn normalize(
    schema: &Schema,
    node: NodeId,
    object: &mut Value,
    mut complaints: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, CodecError> {
    // A patch, or JSON inside of protobuf, can be nested deeper than the JSON parser would have taken it.
    if deeper_than(object, MAX_DEPTH) {
        return Err(CodecError::Depth);
    }
    let report = schema.normalize(node, object)?;
    if validation == FieldValidation::Ignore {
        return Ok(Vec::new());
    }
    complaints.splice(0..0, report.unknown.iter().map(|path| format!("unknown field {path:?}")));
    complaints.truncate(MAX_STRICT_ERRORS);
    if validation == FieldValidation::Strict && !complaints.is_empty() {
        return Err(CodecError::Strict(complaints));
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> GroupVersionKind {
        GroupVersionKind::new("", "v1", "Pod")
    }

    #[test]
    fn strict_and_warn_speak_as_upstream() {
        let body = br#"{"spec":{"foo":1,"containers":[{"name":"a","name":"b"}]}}"#;
        let error = decode(MediaType::Json, body, &pod(), FieldValidation::Strict).unwrap_err();
        let text =
            "strict decoding error: unknown field \"spec.foo\", duplicate field \"spec.containers[0].name\"";
        assert_eq!(error.to_string(), text);
        assert_eq!(
            error.status_message(&pod()),
            format!("Pod in version \"v1\" cannot be handled as a Pod: {text}")
        );
        let decoded = decode(MediaType::Json, body, &pod(), FieldValidation::Warn).unwrap();
        assert_eq!(
            decoded.warnings,
            ["unknown field \"spec.foo\"", "duplicate field \"spec.containers[0].name\""]
        );
        assert_eq!(decoded.object["spec"]["containers"][0]["name"], "b");
        assert_eq!(decoded.object["kind"], "Pod");
        assert!(decode(MediaType::Json, body, &pod(), FieldValidation::Ignore).unwrap().warnings.is_empty());
    }

    #[test]
    fn yaml_is_the_same_tree() {
        let yaml = b"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - &c {name: a, image: x}\n  hostNetwork: true\n";
        let json = br#"{"metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"x"}],"hostNetwork":true}}"#;
        let one = decode(MediaType::Yaml, yaml, &pod(), FieldValidation::Strict).unwrap();
        let two = decode(MediaType::Json, json, &pod(), FieldValidation::Strict).unwrap();
        assert_eq!(one, two);
        for bad in [&b"a: [1"[..], b"a: 1\n---\nb: 2\n", b"\xff", b"a: &a [*a]"] {
            assert!(decode(MediaType::Yaml, bad, &pod(), FieldValidation::Warn).is_err());
        }
        // Each level has nine copies of the one before: 9^9 nodes if it were expanded.
        let mut bomb = String::from("a0: &a0 x\n");
        for level in 1..10 {
            let copies = vec![format!("*a{}", level - 1); 9].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{copies}]\n"));
        }
        assert!(parse(MediaType::Yaml, bomb.as_bytes()).is_err());
    }

    #[test]
    fn kinds_and_versions_must_match() {
        let check = |body: &str, text: &str| {
            let error = decode(MediaType::Json, body.as_bytes(), &pod(), FieldValidation::Warn).unwrap_err();
            assert_eq!(error.to_string(), text);
        };
        check(
            r#"{"apiVersion":"apps/v1","kind":"Pod"}"#,
            "the API version in the data (apps/v1) does not match the expected API version (v1)",
        );
        check(
            r#"{"apiVersion":"v1","kind":"Service"}"#,
            "Service in version \"v1\" cannot be handled as a Pod",
        );
        let options = GroupVersionKind::new("", "v1", "DeleteOptions");
        for version in ["v1", "apps/v1", "meta.k8s.io/v1"] {
            let body = format!(r#"{{"apiVersion":"{version}","kind":"DeleteOptions"}}"#);
            decode(MediaType::Json, body.as_bytes(), &options, FieldValidation::Strict).unwrap();
        }
    }

    #[test]
    fn hostile_nesting_is_refused() {
        for open in ["[", "{\"a\":"] {
            for levels in [130, 1000, 100_000] {
                let body = open.repeat(levels);
                for media in [MediaType::Json, MediaType::Yaml] {
                    assert!(decode(media, body.as_bytes(), &pod(), FieldValidation::Warn).is_err());
                }
            }
        }
    }
}
