//! Trees to messages, byte for byte as upstream's generated marshallers write them: fields by ascending number,
//! maps by sorted key, and every field that is no pointer, list or map even when it is zero.

use super::{
    ProtobufError,
    wire::{put_bytes, put_double, put_number},
};
use crate::{
    schema::{Node, NodeId, Scalar, Schema, Special, Struct},
    time,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use keelson_cron::duration;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Encodes an object of type `node` without an envelope.
pub fn message(schema: &Schema, node: NodeId, object: &Value) -> Result<Vec<u8>, ProtobufError> {
    let mut out = Vec::new();
    Encoder { schema }.body(node, object, "", &mut out)?;
    Ok(out)
}

struct Encoder<'s> {
    schema: &'s Schema,
}

static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

impl Encoder<'_> {
    fn fields(
        &self,
        of: &Struct,
        object: &Map<String, Value>,
        out: &mut Vec<u8>,
    ) -> Result<(), ProtobufError> {
        for field in of.fields.iter().filter(|field| field.number != 0) {
            let name = field.name.as_ref();
            if field.inline {
                if let Some(inner) = self.schema.as_struct(field.node) {
                    let mut body = Vec::new();
                    self.fields(inner, object, &mut body)?;
                    put_bytes(out, field.number, &body);
                }
                continue;
            }
            let value = object.get(name).unwrap_or(&Value::Null);
            match self.schema.node(field.node) {
                Node::List { item, .. } => {
                    for value in value.as_array().into_iter().flatten() {
                        self.value(*item, field.number, value, name, out)?;
                    }
                }
                Node::Map { value: inner, .. } => {
                    let sorted: BTreeMap<_, _> = value.as_object().into_iter().flatten().collect();
                    for (key, value) in sorted {
                        let mut entry = Vec::new();
                        put_bytes(&mut entry, 1, key.as_bytes());
                        self.value(*inner, 2, value, name, &mut entry)?;
                        put_bytes(out, field.number, &entry);
                    }
                }
                Node::Wrapped(_) | Node::Scalar(Scalar::Bytes) if value.is_null() => {}
                _ if value.is_null() && field.pointer => {}
                _ => self.value(field.node, field.number, value, name, out)?,
            }
        }
        Ok(())
    }

    /// One value with its tag; null stands for zero.
    fn value(
        &self,
        node: NodeId,
        number: u32,
        value: &Value,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), ProtobufError> {
        let misfit = || ProtobufError::Value(name.to_owned());
        match self.schema.node(node) {
            Node::Scalar(scalar) => match (scalar, value) {
                (Scalar::Bytes, Value::Null) => {}
                (Scalar::Bytes, Value::String(text)) => {
                    let bytes = STANDARD.decode(text).ok().ok_or_else(misfit)?;
                    put_bytes(out, number, &bytes);
                }
                (Scalar::String, Value::Null) => put_bytes(out, number, b""),
                (Scalar::String, Value::String(text)) => put_bytes(out, number, text.as_bytes()),
                (Scalar::Float64, Value::Null) => put_double(out, number, 0.0),
                (Scalar::Float64, Value::Number(n)) => {
                    put_double(out, number, n.as_f64().ok_or_else(misfit)?)
                }
                (_, Value::Null) => put_number(out, number, 0),
                (Scalar::Bool, Value::Bool(flag)) => put_number(out, number, u64::from(*flag)),
                (Scalar::Uint64 | Scalar::Uint32, Value::Number(n)) => {
                    put_number(out, number, n.as_u64().ok_or_else(misfit)?);
                }
                (Scalar::Int32 | Scalar::Int64, Value::Number(n)) => {
                    put_number(out, number, n.as_i64().ok_or_else(misfit)?.cast_unsigned());
                }
                _ => return Err(misfit()),
            },
            Node::Enum(_) => match value {
                Value::Null => put_bytes(out, number, b""),
                Value::String(text) => put_bytes(out, number, text.as_bytes()),
                _ => return Err(misfit()),
            },
            _ => {
                let mut body = Vec::new();
                self.body(node, value, name, &mut body)?;
                put_bytes(out, number, &body);
            }
        }
        Ok(())
    }

    /// What stands behind the length of a message.
    fn body(&self, node: NodeId, value: &Value, name: &str, out: &mut Vec<u8>) -> Result<(), ProtobufError> {
        match (self.schema.node(node), value) {
            (Node::Struct(of), Value::Object(object)) => self.fields(of, object, out),
            (Node::Struct(of), Value::Null) => self.fields(of, &EMPTY, out),
            (Node::Wrapped(inner), _) => {
                if let Node::List { item, .. } = self.schema.node(*inner) {
                    for value in value.as_array().into_iter().flatten() {
                        self.value(*item, 1, value, name, out)?;
                    }
                }
                Ok(())
            }
            (Node::Special(special), value) => self.special(*special, value, name, out),
            _ => Err(ProtobufError::Value(name.to_owned())),
        }
    }

    fn special(
        &self,
        special: Special,
        value: &Value,
        name: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), ProtobufError> {
        let misfit = || ProtobufError::Value(name.to_owned());
        match (special, value) {
            (Special::Time | Special::MicroTime, Value::Null) => {}
            (Special::Time | Special::MicroTime, Value::String(text)) => {
                let (seconds, nanos) = time::timestamp(text).ok_or_else(misfit)?;
                let nanos = if special == Special::Time { 0 } else { nanos / 1000 * 1000 };
                put_number(out, 1, seconds.cast_unsigned());
                put_number(out, 2, u64::from(nanos));
            }
            (Special::Duration, Value::Null) => put_number(out, 1, 0),
            (Special::Duration, Value::String(text)) => {
                let nanos = duration::parse(text).ok().ok_or_else(misfit)?;
                put_number(out, 1, nanos.cast_unsigned());
            }
            (Special::Quantity, Value::Null) => put_bytes(out, 1, b"0"),
            (Special::Quantity, Value::String(text)) => put_bytes(out, 1, text.as_bytes()),
            (Special::IntOrString, Value::String(text)) => {
                put_number(out, 1, 1);
                put_number(out, 2, 0);
                put_bytes(out, 3, text.as_bytes());
            }
            (Special::IntOrString, Value::Null | Value::Number(_)) => {
                let number = if value.is_null() { 0 } else { value.as_i64().ok_or_else(misfit)? };
                put_number(out, 1, 0);
                put_number(out, 2, number.cast_unsigned());
                put_bytes(out, 3, b"");
            }
            (Special::RawExtension | Special::FieldsV1 | Special::Json, Value::Null) => {}
            (Special::RawExtension | Special::FieldsV1 | Special::Json, value) => {
                let raw = serde_json::to_vec(value).ok().ok_or_else(misfit)?;
                put_bytes(out, 1, &raw);
            }
            (Special::SchemaOrBool, Value::Bool(flag)) => put_number(out, 1, u64::from(*flag)),
            (Special::SchemaOrBool, Value::Object(_)) => {
                put_number(out, 1, 1);
                self.value(self.props()?, 2, value, name, out)?;
            }
            (Special::SchemaOrArray | Special::SchemaOrStrings, Value::Object(_)) => {
                self.value(self.props()?, 1, value, name, out)?;
            }
            (Special::SchemaOrArray, Value::Array(items)) => {
                for item in items {
                    self.value(self.props()?, 2, item, name, out)?;
                }
            }
            (Special::SchemaOrStrings, Value::Array(items)) => {
                for item in items {
                    put_bytes(out, 2, item.as_str().ok_or_else(misfit)?.as_bytes());
                }
            }
            (Special::SchemaOrArray | Special::SchemaOrStrings | Special::SchemaOrBool, Value::Null) => {}
            _ => return Err(misfit()),
        }
        Ok(())
    }

    fn props(&self) -> Result<NodeId, ProtobufError> {
        self.schema.schema_props().ok_or(ProtobufError::NoSchema)
    }
}
