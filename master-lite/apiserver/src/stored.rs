//! The stored form of an object, and how a resourceVersion gets into it.
//!
//! A stored value is four bytes (little endian: an offset) and the object's JSON without a resourceVersion, which
//! is known only after the commit. The offset is where `"resourceVersion":"N",` goes, so that reading never
//! parses: it copies two slices around the number.

use std::ops::Range;

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Bytes before the JSON.
const HEADER: usize = 4;

/// A stored value that this program can't have written.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The offset points outside.
    #[error("stored value has no valid header")]
    Header,
    /// The JSON can't be read.
    #[error("stored value is no JSON")]
    Json(#[from] serde_json::Error),
    /// The value to store is no API object.
    #[error("an object to be stored has no metadata")]
    NoMetadata,
}

/// Encodes an object to be stored. `metadata` must be a non-empty object; its resourceVersion is left out.
/// `kind` and `apiVersion` come first, as Go prints them.
pub fn encode(object: &Value) -> Result<Bytes, StoredError> {
    let map = object.as_object().ok_or(StoredError::NoMetadata)?;
    let mut metadata = map.get("metadata").and_then(Value::as_object).ok_or(StoredError::NoMetadata)?.clone();
    metadata.remove("resourceVersion");
    if metadata.is_empty() {
        return Err(StoredError::NoMetadata);
    }
    let mut out = vec![0; HEADER];
    out.push(b'{');
    for key in ["kind", "apiVersion"] {
        if let Some(value) = map.get(key) {
            push_field(&mut out, key, value)?;
            out.push(b',');
        }
    }
    out.extend_from_slice(b"\"metadata\":");
    let at = out.len() + 1 - HEADER;
    serde_json::to_writer(&mut out, &metadata)?;
    for (key, value) in map {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            out.push(b',');
            push_field(&mut out, key, value)?;
        }
    }
    out.push(b'}');
    let at = u32::try_from(at).map_err(|_too_long| StoredError::Header)?;
    out[..HEADER].copy_from_slice(&at.to_le_bytes());
    Ok(out.into())
}

fn push_field(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), StoredError> {
    serde_json::to_writer(&mut *out, key)?;
    out.push(b':');
    serde_json::to_writer(out, value)?;
    Ok(())
}

/// An object's JSON with its resourceVersion, and where that stands.
#[derive(Debug, Clone)]
pub struct Spliced {
    json: Bytes,
    /// `"resourceVersion":"N",` in `json`.
    version: Range<usize>,
}

impl Spliced {
    /// Puts the revision into a stored value.
    pub fn new(stored: &[u8], revision: u64) -> Result<Self, StoredError> {
        let (header, json) = stored.split_at_checked(HEADER).ok_or(StoredError::Header)?;
        let header: [u8; HEADER] = header.try_into().map_err(|_short| StoredError::Header)?;
        let at = usize::try_from(u32::from_le_bytes(header)).map_err(|_wide| StoredError::Header)?;
        let (head, tail) = json.split_at_checked(at).ok_or(StoredError::Header)?;
        Ok(Self::join(head, revision, tail))
    }

    fn join(head: &[u8], revision: u64, tail: &[u8]) -> Self {
        let version = format!("\"resourceVersion\":\"{revision}\",");
        let mut json = Vec::with_capacity(head.len() + version.len() + tail.len());
        json.extend_from_slice(head);
        json.extend_from_slice(version.as_bytes());
        json.extend_from_slice(tail);
        Self { json: json.into(), version: head.len()..head.len() + version.len() }
    }

    /// The same object at another revision (a deleted object carries the revision of its deletion).
    pub fn at_revision(&self, revision: u64) -> Self {
        Self::join(&self.json[..self.version.start], revision, &self.json[self.version.end..])
    }

    /// The whole JSON.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// `metadata` as it stands in the JSON, without a look at the rest.
    ///
    /// # Errors
    /// If it is no JSON.
    pub fn metadata(&self) -> Result<&RawValue, StoredError> {
        // The resourceVersion is its first field.
        let (_, from) = self.json.split_at(self.version.start.saturating_sub(1));
        let mut values = serde_json::Deserializer::from_slice(from).into_iter();
        Ok(values.next().ok_or(StoredError::NoMetadata)??)
    }

    /// Parses it.
    pub fn value(&self) -> Result<Value, StoredError> {
        Ok(serde_json::from_slice(&self.json)?)
    }
}

/// Reads a stored value as a tree, resourceVersion included.
pub fn decode(stored: &[u8], revision: u64) -> Result<Value, StoredError> {
    let json = stored.get(HEADER..).ok_or(StoredError::Header)?;
    let mut value: Value = serde_json::from_slice(json)?;
    set_revision(&mut value, revision);
    Ok(value)
}

/// Sets `metadata.resourceVersion`.
pub fn set_revision(object: &mut Value, revision: u64) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
}

/// The object's metadata, made if absent; `None` if the object is no map.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let metadata = map.entry("metadata").or_insert(Value::Null);
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_revision_is_spliced_in() {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"metadata": "}{"},
            "metadata": {"name": "a", "resourceVersion": "7"},
        });
        let stored = encode(&object).unwrap();
        assert!(!String::from_utf8_lossy(&stored).contains("resourceVersion"));
        let spliced = Spliced::new(&stored, 42).unwrap();
        assert_eq!(spliced.metadata().unwrap().get(), r#"{"resourceVersion":"42","name":"a"}"#);
        let mut expected = object.clone();
        expected["metadata"]["resourceVersion"] = "42".into();
        assert_eq!(spliced.value().unwrap(), expected);
        assert_eq!(decode(&stored, 42).unwrap(), expected);
        expected["metadata"]["resourceVersion"] = "43000".into();
        assert_eq!(spliced.at_revision(43000).value().unwrap(), expected);
        assert!(spliced.json().starts_with(b"{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{"));
    }

    #[test]
    fn hostile_bytes_are_refused() {
        for bytes in [&b""[..], b"abc", b"\xff\xff\xff\xff{}"] {
            assert!(Spliced::new(bytes, 1).is_err());
        }
        assert!(encode(&json!({"metadata": {}})).is_err());
    }
}
