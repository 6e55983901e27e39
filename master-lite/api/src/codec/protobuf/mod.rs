//! Kubernetes protobuf: the `k8s\0` envelope around a proto2 message whose field numbers the schema knows.

mod decode;
mod encode;
pub(crate) mod wire;

use crate::{
    meta::GroupVersionKind,
    schema::{Node, NodeId, Schema},
};
use serde_json::Value;

/// First bytes of every protobuf body.
const MAGIC: &[u8] = b"k8s\0";
/// Nesting limit of messages. It is below JSON's limit, so that what is decoded here can be sent as JSON.
const MAX_DEPTH: usize = 100;

/// Bytes that are no Kubernetes protobuf, or a tree that has no protobuf form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The magic number is missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// The message ends inside of a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A varint is longer than ten bytes.
    #[error("proto: integer overflow")]
    Overflow,
    /// A field has a wire type that its type does not take.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// Field name.
        field: String,
        /// Wire type found.
        wire: u8,
    },
    /// A string is not UTF-8.
    #[error("proto: field {0} holds invalid UTF-8")]
    Utf8(String),
    /// Raw JSON inside of the message does not parse.
    #[error("proto: field {field} holds invalid JSON: {why}")]
    Json {
        /// Field name.
        field: String,
        /// The parser's complaint.
        why: String,
    },
    /// Messages nest too deep.
    #[error("proto: messages nest deeper than {MAX_DEPTH} levels")]
    Depth,
    /// The envelope carries compressed or otherwise encoded content.
    #[error("unable to decode content encoding {0:?}")]
    ContentEncoding(String),
    /// The envelope's content is not protobuf.
    #[error("unable to decode content type {0:?}")]
    ContentType(String),
    /// Protobuf can't be read without a schema.
    #[error("protobuf can only be decoded as a known kind")]
    NoSchema,
    /// The kind has no protobuf form.
    #[error("no protobuf form is known for {0}")]
    NoMessage(String),
    /// The tree does not fit the schema.
    #[error("field {0} does not fit its protobuf type")]
    Value(String),
}

/// Decodes an envelope; `apiVersion` and `kind` are put into the tree as the envelope says them.
pub fn decode(
    schema: &Schema,
    node: NodeId,
    expect: &GroupVersionKind,
    body: &[u8],
) -> Result<Value, ProtobufError> {
    let envelope = wire::Envelope::read(body.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?)?;
    // The kind decides about the message. When it is not the expected one the caller refuses it by name.
    let mut object = if envelope.kind.is_empty() || envelope.kind == expect.kind {
        decode::message(schema, node, envelope.raw)?
    } else {
        Value::Object(serde_json::Map::new())
    };
    if let Value::Object(fields) = &mut object {
        for (key, value) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
            if !value.is_empty() {
                fields.insert(key.to_owned(), Value::String(value));
            }
        }
    }
    Ok(object)
}

/// Encodes an object with its envelope.
pub fn encode(schema: &Schema, gvk: &GroupVersionKind, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    let node = message_of(schema, gvk).ok_or_else(|| ProtobufError::NoMessage(gvk.to_string()))?;
    let raw = encode::message(schema, node, object)?;
    // What has no apiVersion and kind in JSON (a watch event) has an empty type in its envelope.
    let typed = schema.as_struct(node).is_some_and(|of| schema.field(of, "kind").is_some());
    Ok(if typed { wire::envelope(&gvk.api_version(), &gvk.kind, &raw) } else { wire::envelope("", "", &raw) })
}

/// The message of a kind. None if there is no such kind, or it has no protobuf form, as Tables.
pub fn message_of(schema: &Schema, gvk: &GroupVersionKind) -> Option<NodeId> {
    let node = schema.kind(gvk)?;
    schema.as_struct(node)?.fields.iter().any(|field| field.number != 0).then_some(node)
}

/// Encodes a list with its envelope; no more than one item is held as a tree.
pub fn encode_list(
    schema: &Schema,
    gvk: &GroupVersionKind,
    metadata: &Value,
    items: impl Iterator<Item = Value>,
) -> Result<Vec<u8>, ProtobufError> {
    let unknown = || ProtobufError::NoMessage(gvk.to_string());
    let of = message_of(schema, gvk).and_then(|node| schema.as_struct(node)).ok_or_else(unknown)?;
    let field = |name: &str| of.fields.iter().find(|field| field.name.as_ref() == name).ok_or_else(unknown);
    let (meta, list) = (field("metadata")?, field("items")?);
    let Node::List { item, .. } = schema.node(list.node) else { return Err(unknown()) };
    let mut raw = Vec::new();
    wire::put_bytes(&mut raw, meta.number, &encode::message(schema, meta.node, metadata)?);
    for value in items {
        wire::put_bytes(&mut raw, list.number, &encode::message(schema, *item, &value)?);
    }
    Ok(wire::envelope(&gvk.api_version(), &gvk.kind, &raw))
}

/// A `WatchEvent` with its length before it. Upstream's stream serializer writes events without envelope.
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut raw_extension = Vec::with_capacity(object.len() + 8);
    wire::put_bytes(&mut raw_extension, 1, object);
    let mut event = Vec::with_capacity(raw_extension.len() + 32);
    wire::put_bytes(&mut event, 1, kind.as_bytes());
    wire::put_bytes(&mut event, 2, &raw_extension);
    // Objects are a few megabytes at most.
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &event].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn gvk() -> GroupVersionKind {
        GroupVersionKind::new("", "v1", "Pod")
    }

    fn try_decode(body: &[u8]) -> Result<Value, ProtobufError> {
        let schema = Schema::builtin();
        decode(schema, schema.kind(&gvk()).unwrap(), &gvk(), body)
    }

    #[test]
    fn an_object_comes_back() {
        let schema = Schema::builtin();
        let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a",
            "labels": {"b": "1", "a": "2"}, "deletionTimestamp": "2020-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": "http"}, "timeoutSeconds": 3}}],
                "volumes": [{"name": "v", "configMap": {"name": "cm"}}], "terminationGracePeriodSeconds": 0}});
        schema.normalize(schema.kind(&gvk()).unwrap(), &mut object).unwrap();
        let bytes = encode(schema, &gvk(), &object).unwrap();
        let mut back = try_decode(&bytes).unwrap();
        schema.normalize(schema.kind(&gvk()).unwrap(), &mut back).unwrap();
        assert_eq!(back, object);
    }

    #[test]
    fn hostile_bytes_have_names() {
        assert_eq!(try_decode(b"nonsense"), Err(ProtobufError::Magic));
        assert_eq!(try_decode(b"k8s\0\x12\x05\x0a"), Err(ProtobufError::Truncated));
        assert_eq!(
            try_decode(b"k8s\0\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            Err(ProtobufError::Truncated)
        );
        assert_eq!(
            try_decode(b"k8s\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Err(ProtobufError::Overflow)
        );
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(raw in prop::collection::vec(any::<u8>(), 0..200)) {
            let body = wire::envelope("v1", "Pod", &raw);
            let _ = try_decode(&body);
            let _ = try_decode(&raw);
        }

        #[test]
        fn broken_copies_do_not_panic(at in 0_usize..80, byte in any::<u8>()) {
            let schema = Schema::builtin();
            let object = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c",
                "resources": {"limits": {"cpu": "1"}}, "command": ["a", "b"]}]}});
            let mut bytes = encode(schema, &gvk(), &object).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = try_decode(&bytes);
        }
    }
}
