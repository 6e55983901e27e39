//! Request bodies to trees and back: JSON, YAML and Kubernetes protobuf.

pub(crate) mod protobuf;
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
    /// The metadata of a custom resource is none.
    #[error("{0}")]
    Metadata(String),
    /// The body of a custom resource names no kind.
    #[error("Object 'Kind' is missing in '{0}'")]
    NoKind(String),
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
            Self::WrongVersion { .. } | Self::WrongKind { .. } | Self::NoKind(_) | Self::Metadata(_) => {
                self.to_string()
            }
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

/// A tree that can't be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It has no protobuf form.
    #[error(transparent)]
    Protobuf(#[from] ProtobufError),
    /// The YAML writer refused it.
    #[error("encoding YAML: {0}")]
    Yaml(String),
}

/// Encodes an object by what its `apiVersion` and `kind` say it is.
pub fn encode(media: MediaType, object: &Value) -> Result<Vec<u8>, EncodeError> {
    match media {
        MediaType::Json => Ok(object.to_string().into_bytes()),
        MediaType::Yaml => tree::to_yaml(object).map_err(EncodeError::Yaml),
        MediaType::Protobuf => {
            let text = |key: &str| object[key].as_str().filter(|text| !text.is_empty());
            // Of all answers only APIVersions has no apiVersion.
            let version = text("apiVersion").unwrap_or("v1");
            let gvk = GroupVersionKind::from_type_meta(version, text("kind").unwrap_or_default());
            Ok(encode_protobuf(&gvk, object)?)
        }
    }
}

/// Whether a kind has a protobuf form: built-in kinds but for Tables do.
pub fn has_protobuf(gvk: &GroupVersionKind) -> bool {
    protobuf::message_of(Schema::builtin(), gvk).is_some()
}

/// Parses a configuration for server-side apply, which is YAML or JSON: the tree, and what upstream's strict parser
/// says of duplicate keys, if there are any.
pub fn parse_configuration(body: &[u8]) -> Result<(Value, Option<String>), CodecError> {
    let (tree, duplicates) = parse(MediaType::Yaml, body)?;
    if deeper_than(&tree, MAX_DEPTH) {
        return Err(CodecError::Depth);
    }
    let complaint = (!duplicates.is_empty()).then(|| {
        // A key that the parser can't place is still one too many.
        tree::yaml_duplicates(body).unwrap_or_else(|| duplicates.join(", "))
    });
    Ok((tree, complaint))
}

/// Encodes a normalized object of a built-in kind as Kubernetes protobuf, envelope included.
pub fn encode_protobuf(gvk: &GroupVersionKind, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    protobuf::encode(Schema::builtin(), gvk, object)
}

/// Encodes a list as Kubernetes protobuf, item by item, so that never more than one is in memory as a tree.
///
/// `gvk` is the list's own kind; `metadata` its `ListMeta`.
pub fn encode_protobuf_list(
    gvk: &GroupVersionKind,
    metadata: &Value,
    items: impl Iterator<Item = Value>,
) -> Result<Vec<u8>, ProtobufError> {
    protobuf::encode_list(Schema::builtin(), gvk, metadata, items)
}

/// One frame of a watch in protobuf: a length of four bytes, big endian, and a `WatchEvent` without envelope, around
/// an object that has one.
pub fn protobuf_watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    protobuf::watch_frame(kind, object)
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
        return Err(not_an_object(object));
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

/// An empty list of managed fields resets them, as a list of one empty entry does. Normalizing would drop it, as Go's
/// encoder does, so it becomes the other.
pub(crate) fn keep_reset(object: &mut Value) {
    if let Some(entries) = object.pointer_mut("/metadata/managedFields")
        && entries.as_array().is_some_and(Vec::is_empty)
    {
        *entries = Value::Array(vec![Value::Object(serde_json::Map::new())]);
    }
}

/// Refuses trees that no client could read back.
pub(crate) fn check_depth(object: &Value) -> Result<(), CodecError> {
    if deeper_than(object, MAX_DEPTH) { Err(CodecError::Depth) } else { Ok(()) }
}

/// apiVersion and kind of an object as they stand.
pub(crate) fn type_meta(object: &Value) -> Result<GroupVersionKind, CodecError> {
    if !object.is_object() {
        return Err(not_an_object(object));
    }
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    Ok(GroupVersionKind::from_type_meta(text("apiVersion"), text("kind")))
}

fn not_an_object(value: &Value) -> CodecError {
    CodecError::NotAnObject(match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "array",
    })
}

fn normalize(
    schema: &Schema,
    node: NodeId,
    object: &mut Value,
    mut complaints: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, CodecError> {
    // A patch, or JSON inside of protobuf, can be nested deeper than the JSON parser would have taken it.
    check_depth(object)?;
    keep_reset(object);
    let report = schema.normalize(node, object)?;
    if validation == FieldValidation::Ignore {
        return Ok(Vec::new());
    }
    complaints.splice(0..0, report.unknown.iter().map(|path| format!("unknown field {path:?}")));
    complain(complaints, validation)
}

/// What becomes of complaints about unknown and duplicate fields: an error or warnings.
pub(crate) fn complain(
    mut complaints: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, CodecError> {
    if validation == FieldValidation::Ignore {
        return Ok(Vec::new());
    }
    complaints.truncate(MAX_STRICT_ERRORS);
    if validation == FieldValidation::Strict && !complaints.is_empty() {
        return Err(CodecError::Strict(complaints));
    }
    Ok(complaints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
    fn configurations_tell_of_duplicates() {
        let (tree, complaint) = parse_configuration(b"a: 1\nb:\n  c: 1\n  c: 2\n").unwrap();
        assert_eq!(tree, serde_json::json!({"a": 1, "b": {"c": 2}}));
        assert_eq!(
            complaint.unwrap(),
            "error converting YAML to JSON: yaml: unmarshal errors:\n  line 4: key \"c\" already set in map"
        );
        assert_eq!(parse_configuration(br#"{"a": [1]}"#).unwrap().1, None);
    }

    #[test]
    fn empty_managed_fields_are_a_reset() {
        let mut pod = serde_json::json!({"metadata": {"managedFields": []}});
        normalize_object(&self::pod(), &mut pod, FieldValidation::Strict).unwrap();
        assert_eq!(pod["metadata"]["managedFields"], serde_json::json!([{}]));
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

    fn check_yaml(object: &Value) {
        let bytes = encode(MediaType::Yaml, object).unwrap();
        let (back, complaints) = parse(MediaType::Yaml, &bytes).unwrap();
        assert_eq!((&back, complaints.len()), (object, 0), "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn yaml_comes_back() {
        // What readers of YAML 1.1, Go's among them, would take for something else.
        for text in
            ["yes", "n", "on", "null", "~", "", "0x1f", "1e3", "010", "1:30", "2020-01-01", "<<", "-", "? a"]
        {
            let object = json!({"a": text, text: [text]});
            check_yaml(&object);
            let bytes = encode(MediaType::Yaml, &object).unwrap();
            assert!(
                !String::from_utf8_lossy(&bytes).contains(&format!("a: {text}\n")),
                "{text} is not quoted"
            );
        }
        let script = "#!/bin/sh\n\techo 'a: b' \n\n  done\n\n";
        check_yaml(
            &json!({"kind": "ConfigMap", "data": {"run.sh": script, "bin": "\u{0}\u{7f}\u{85}\u{2028}\u{feff}😀"},
            "empty": {}, "none": [], "long": "word ".repeat(60), "n": [1, -2.5, true, null, u64::MAX, i64::MIN]}),
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives_yaml(key in ".{0,12}", text in "(.|\n){0,40}", lines in "[ \t\n#:>|a-]{0,12}") {
            check_yaml(&json!({key.clone(): [text.clone(), {"b": lines.clone()}], "z": {key: lines, "y": text}}));
        }
    }

    #[test]
    fn protobuf_lists_and_events() {
        let item = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": []}});
        let gvk = GroupVersionKind::new("", "v1", "PodList");
        let metadata = json!({"resourceVersion": "7", "remainingItemCount": 3});
        let whole = json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": [item("a"), item("b")]});
        let list = encode_protobuf_list(&gvk, &metadata, [item("a"), item("b")].into_iter()).unwrap();
        assert_eq!(list, encode(MediaType::Protobuf, &whole).unwrap());
        let read = decode(MediaType::Protobuf, &list, &gvk, FieldValidation::Strict).unwrap().object;
        assert_eq!((&read["items"][1]["metadata"]["name"], &read["metadata"]), (&json!("b"), &metadata));

        let object = encode_protobuf(&pod(), &item("a")).unwrap();
        let frame = protobuf_watch_frame("ADDED", &object);
        let (length, event) = frame.split_first_chunk::<4>().unwrap();
        assert_eq!(u32::from_be_bytes(*length) as usize, event.len());
        // Field 1 is the type, field 2 the object.
        assert!(event.starts_with(b"\x0a\x05ADDED\x12"), "{event:?}");
        assert!(event.ends_with(&object));

        assert!(has_protobuf(&GroupVersionKind::new("", "v1", "Status")));
        assert!(has_protobuf(&GroupVersionKind::new("meta.k8s.io", "v1", "PartialObjectMetadataList")));
        assert!(!has_protobuf(&GroupVersionKind::new("example.com", "v1", "Thing")));
        assert!(matches!(
            encode(MediaType::Protobuf, &json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table"})),
            Err(EncodeError::Protobuf(ProtobufError::NoMessage(_)))
        ));
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
