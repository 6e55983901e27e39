//! Tags, varints, lengths, and the envelope.

use super::{MAGIC, ProtobufError};

/// Reads fields off a slice.
pub struct Reader<'a> {
    bytes: &'a [u8],
}

/// One field as it is on the wire.
#[derive(Debug, Clone, Copy)]
pub enum Wire<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5, which no field of Kubernetes has.
    Fixed32,
}

impl Wire<'_> {
    /// The number of the wire type.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32 => 5,
        }
    }
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next base-128 number.
    pub fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0_u64;
        for index in 0..10 {
            let (first, rest) = self.bytes.split_first().ok_or(ProtobufError::Truncated)?;
            self.bytes = rest;
            value |= u64::from(first & 0x7f) << (7 * index);
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Overflow)
    }

    /// The next field, `None` at the end. Groups, which proto3 and Kubernetes do not have, are refused.
    pub fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, ProtobufError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = match u32::try_from(tag >> 3) {
            Ok(number) if number > 0 => number,
            _ => {
                return Err(ProtobufError::WireType {
                    field: format!("#{}", tag >> 3),
                    wire: (tag & 7) as u8,
                });
            }
        };
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.array::<4>()?;
                Wire::Fixed32
            }
            other => return Err(ProtobufError::WireType { field: format!("#{number}"), wire: other as u8 }),
        };
        Ok(Some((number, wire)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(ProtobufError::Truncated)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtobufError> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(ProtobufError::Truncated)?;
        self.bytes = rest;
        Ok(*taken)
    }
}

/// `runtime.Unknown`.
pub struct Envelope<'a> {
    /// `typeMeta.apiVersion`
    pub api_version: String,
    /// `typeMeta.kind`
    pub kind: String,
    /// The message.
    pub raw: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads what follows the magic number.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ProtobufError> {
        let mut envelope = Self { api_version: String::new(), kind: String::new(), raw: &[] };
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.field()? {
            match (number, wire) {
                (1, Wire::Bytes(bytes)) => {
                    let mut reader = Reader::new(bytes);
                    while let Some((number, wire)) = reader.field()? {
                        match (number, wire) {
                            (1, Wire::Bytes(bytes)) => envelope.api_version = text(bytes, "apiVersion")?,
                            (2, Wire::Bytes(bytes)) => envelope.kind = text(bytes, "kind")?,
                            _ => {}
                        }
                    }
                }
                (2, Wire::Bytes(bytes)) => envelope.raw = bytes,
                (3, Wire::Bytes(bytes)) if !bytes.is_empty() => {
                    return Err(ProtobufError::ContentEncoding(text(bytes, "contentEncoding")?));
                }
                (4, Wire::Bytes(bytes))
                    if !bytes.is_empty() && bytes != b"application/vnd.kubernetes.protobuf" =>
                {
                    return Err(ProtobufError::ContentType(text(bytes, "contentType")?));
                }
                _ => {}
            }
        }
        Ok(envelope)
    }
}

/// UTF-8 text of a field.
pub fn text(bytes: &[u8], field: &str) -> Result<String, ProtobufError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(ProtobufError::Utf8(field.to_owned())),
    }
}

/// Writes the magic number and a `runtime.Unknown`, as upstream does: with empty encoding and type.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + meta.len() + 24);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &meta);
    put_bytes(&mut out, 2, raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// A base-128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of wire type 0.
pub fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

/// A field of wire type 1.
pub fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A field of wire type 2.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
