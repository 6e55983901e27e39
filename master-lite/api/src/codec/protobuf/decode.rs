//! Messages to trees.

use super::{
    MAGIC, MAX_DEPTH, ProtobufError,
    wire::{Envelope, Reader, Wire, text},
};
use crate::{
    meta::GroupVersionKind,
    schema::{Field, Node, NodeId, Scalar, Schema, Special, Struct},
    time,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use keelson_cron::duration;
use serde_json::{Map, Value, map::Entry};

/// Decodes a message of type `node`. The result holds what was on the wire; normalizing makes it the same tree as
/// that of a JSON body.
pub fn message(schema: &Schema, node: NodeId, bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut object = Map::new();
    let Some(of) = schema.as_struct(node) else { return Err(ProtobufError::NoSchema) };
    Decoder { schema, depth: 0 }.fields(of, bytes, &mut object)?;
    Ok(Value::Object(object))
}

struct Decoder<'s> {
    schema: &'s Schema,
    depth: usize,
}

impl Decoder<'_> {
    fn enter(&self) -> Result<Self, ProtobufError> {
        if self.depth >= MAX_DEPTH {
            return Err(ProtobufError::Depth);
        }
        Ok(Decoder { schema: self.schema, depth: self.depth + 1 })
    }

    /// Merges a message into an object: a field that comes twice is merged or overwritten, as protobuf says.
    fn fields(&self, of: &Struct, bytes: &[u8], into: &mut Map<String, Value>) -> Result<(), ProtobufError> {
        let inner = self.enter()?;
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            // Field numbers ascend, see `Struct::fields`. Unknown ones are dropped, as Go does.
            let Ok(index) = of.fields.binary_search_by_key(&number, |field| field.number) else { continue };
            let field = &of.fields[index];
            if !field.inline {
                inner.field(field, wire, into)?;
            } else if let (Some(target), Wire::Bytes(bytes)) = (self.schema.as_struct(field.node), wire) {
                inner.fields(target, bytes, into)?;
            } else {
                return Err(wrong(&target_name(of), wire));
            }
        }
        Ok(())
    }

    fn field(
        &self,
        field: &Field,
        wire: Wire<'_>,
        into: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        let name = field.name.as_ref();
        match self.schema.node(field.node) {
            Node::List { item, .. } => {
                let Value::Array(items) = into.entry(name).or_insert_with(|| Value::Array(Vec::new())) else {
                    return Ok(());
                };
                if let (Node::Scalar(scalar), Wire::Bytes(packed)) = (self.schema.node(*item), wire)
                    && !matches!(scalar, Scalar::String | Scalar::Bytes | Scalar::Float64)
                {
                    let mut reader = Reader::new(packed);
                    while !reader.is_empty() {
                        items.push(scalar_value(*scalar, Wire::Varint(reader.varint()?), name)?);
                    }
                    return Ok(());
                }
                items.push(self.value(*item, wire, name)?);
                Ok(())
            }
            Node::Map { value, .. } => {
                let Wire::Bytes(bytes) = wire else { return Err(wrong(name, wire)) };
                let (key, entry) = self.map_entry(*value, bytes, name)?;
                if let Value::Object(entries) = into.entry(name).or_insert_with(|| Value::Object(Map::new()))
                {
                    entries.insert(key, entry);
                }
                Ok(())
            }
            Node::Struct(target) => {
                let Wire::Bytes(bytes) = wire else { return Err(wrong(name, wire)) };
                if let Value::Object(object) = into.entry(name).or_insert_with(|| Value::Object(Map::new())) {
                    self.fields(target, bytes, object)?;
                }
                Ok(())
            }
            _ => {
                let value = self.value(field.node, wire, name)?;
                match into.entry(name) {
                    Entry::Vacant(entry) => {
                        entry.insert(value);
                    }
                    Entry::Occupied(mut entry) => {
                        entry.insert(value);
                    }
                }
                Ok(())
            }
        }
    }

    fn map_entry(&self, value: NodeId, bytes: &[u8], name: &str) -> Result<(String, Value), ProtobufError> {
        let mut reader = Reader::new(bytes);
        let mut key = String::new();
        let mut found = None;
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1, Wire::Bytes(bytes)) => key = text(bytes, name)?,
                (2, wire) => found = Some(self.value(value, wire, name)?),
                _ => {}
            }
        }
        Ok((key, found.unwrap_or_else(|| self.schema.zero(value))))
    }

    /// A value that does not merge with an earlier one.
    fn value(&self, node: NodeId, wire: Wire<'_>, name: &str) -> Result<Value, ProtobufError> {
        match self.schema.node(node) {
            Node::Scalar(scalar) => scalar_value(*scalar, wire, name),
            Node::Enum(_) => scalar_value(Scalar::String, wire, name),
            Node::Special(special) => {
                let Wire::Bytes(bytes) = wire else { return Err(wrong(name, wire)) };
                self.special(*special, bytes, name)
            }
            Node::Struct(of) => {
                let Wire::Bytes(bytes) = wire else { return Err(wrong(name, wire)) };
                let mut object = Map::new();
                self.fields(of, bytes, &mut object)?;
                Ok(Value::Object(object))
            }
            Node::Wrapped(inner) => {
                let Wire::Bytes(bytes) = wire else { return Err(wrong(name, wire)) };
                let Node::List { item, .. } = self.schema.node(*inner) else { return Ok(Value::Null) };
                let mut items = Vec::new();
                let mut reader = Reader::new(bytes);
                while let Some((number, wire)) = reader.field()? {
                    if number == 1 {
                        items.push(self.enter()?.value(*item, wire, name)?);
                    }
                }
                Ok(Value::Array(items))
            }
            // Lists of lists and lists of maps have no protobuf form.
            Node::List { .. } | Node::Map { .. } => Err(wrong(name, wire)),
        }
    }

    fn special(&self, special: Special, bytes: &[u8], name: &str) -> Result<Value, ProtobufError> {
        let inner = self.enter()?;
        let mut message = Message::default();
        let mut reader = Reader::new(bytes);
        let mut repeated = Vec::new();
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1, Wire::Varint(value)) => message.one = Some(value),
                (2, Wire::Varint(value)) => message.two = Some(value),
                (1, Wire::Bytes(bytes)) => message.first = Some(bytes),
                (2, Wire::Bytes(bytes)) => repeated.push(bytes),
                (3, Wire::Bytes(bytes)) => message.third = Some(bytes),
                _ => {}
            }
        }
        let schema_of = |bytes: &[u8]| -> Result<Value, ProtobufError> {
            let props = self.schema.schema_props().ok_or(ProtobufError::NoSchema)?;
            inner.value(props, Wire::Bytes(bytes), name)
        };
        Ok(match special {
            Special::Time | Special::MicroTime if bytes.is_empty() => Value::Null,
            Special::Time => time::seconds(message.one.unwrap_or(0).cast_signed()),
            Special::MicroTime => {
                let nanos = u32::try_from(message.two.unwrap_or(0)).unwrap_or(0).min(999_999_999);
                time::micros(message.one.unwrap_or(0).cast_signed(), nanos)
            }
            Special::Duration => Value::String(duration::format(message.one.unwrap_or(0).cast_signed())),
            Special::Quantity => match message.first {
                // A quantity that was never set is zero.
                None | Some(b"") => Value::String("0".to_owned()),
                Some(bytes) => Value::String(text(bytes, name)?),
            },
            Special::IntOrString if message.one == Some(1) => {
                Value::String(text(message.third.unwrap_or_default(), name)?)
            }
            Special::IntOrString => Value::from(int32(message.two.unwrap_or(0))),
            Special::RawExtension | Special::FieldsV1 | Special::Json => match message.first {
                None | Some(b"") => Value::Null,
                Some(raw) if raw.starts_with(MAGIC) => inner.nested(raw)?,
                Some(raw) => match serde_json::from_slice(raw) {
                    Ok(value) => value,
                    Err(error) => {
                        return Err(ProtobufError::Json { field: name.to_owned(), why: error.to_string() });
                    }
                },
            },
            Special::Any => return Err(ProtobufError::NoSchema),
            Special::SchemaOrArray if !repeated.is_empty() => {
                Value::Array(repeated.into_iter().map(schema_of).collect::<Result<_, _>>()?)
            }
            Special::SchemaOrStrings if !repeated.is_empty() => {
                let texts = repeated.into_iter().map(|bytes| text(bytes, name).map(Value::String));
                Value::Array(texts.collect::<Result<_, _>>()?)
            }
            Special::SchemaOrArray | Special::SchemaOrStrings => match message.first {
                Some(bytes) => schema_of(bytes)?,
                None => Value::Null,
            },
            Special::SchemaOrBool => match repeated.last() {
                Some(bytes) => schema_of(bytes)?,
                None => Value::Bool(message.one.unwrap_or(0) != 0),
            },
        })
    }

    /// An object inside of a `RawExtension` with an envelope of its own, as watch events carry it.
    fn nested(&self, raw: &[u8]) -> Result<Value, ProtobufError> {
        let envelope = Envelope::read(raw.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?)?;
        let gvk = GroupVersionKind::from_type_meta(&envelope.api_version, &envelope.kind);
        let node = self.schema.kind(&gvk).ok_or_else(|| ProtobufError::NoMessage(gvk.to_string()))?;
        let mut value = self.value(node, Wire::Bytes(envelope.raw), "raw")?;
        if let Value::Object(fields) = &mut value {
            fields.insert("apiVersion".to_owned(), Value::String(envelope.api_version));
            fields.insert("kind".to_owned(), Value::String(envelope.kind));
        }
        Ok(value)
    }
}

/// Fields of the small messages behind special types.
#[derive(Default)]
struct Message<'a> {
    one: Option<u64>,
    two: Option<u64>,
    first: Option<&'a [u8]>,
    third: Option<&'a [u8]>,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a negative int32 travels as ten bytes; the low half is it"
)]
fn int32(value: u64) -> i32 {
    value as i32
}

fn scalar_value(scalar: Scalar, wire: Wire<'_>, name: &str) -> Result<Value, ProtobufError> {
    Ok(match (scalar, wire) {
        (Scalar::String, Wire::Bytes(bytes)) => Value::String(text(bytes, name)?),
        (Scalar::Bytes, Wire::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        (Scalar::Bool, Wire::Varint(value)) => Value::Bool(value != 0),
        (Scalar::Int32, Wire::Varint(value)) => Value::from(int32(value)),
        (Scalar::Int64, Wire::Varint(value)) => Value::from(value.cast_signed()),
        (Scalar::Uint32, Wire::Varint(value)) => Value::from(int32(value).cast_unsigned()),
        (Scalar::Uint64, Wire::Varint(value)) => Value::from(value),
        // JSON has no NaN or infinity; neither has a use in any field.
        (Scalar::Float64, Wire::Fixed64(bits)) => {
            serde_json::Number::from_f64(f64::from_bits(bits)).map_or(Value::from(0), Value::Number)
        }
        _ => return Err(wrong(name, wire)),
    })
}

fn wrong(name: &str, wire: Wire<'_>) -> ProtobufError {
    ProtobufError::WireType { field: name.to_owned(), wire: wire.kind() }
}

fn target_name(of: &Struct) -> String {
    of.name.rsplit('.').next().unwrap_or_default().to_owned()
}
