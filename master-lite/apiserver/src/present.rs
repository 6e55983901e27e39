//! Objects in the form a client asked for: as they are, as Table rows, or metadata only.

use bytes::Bytes;
use keelson_api::codec::{self, MediaType};
use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::Resource;
use serde_json::{Value, json};

use crate::answer;
use crate::cache::CachedObject;
use crate::negotiate::{Form, Shape};
use crate::status::{Result, StatusError};

/// `includeObject` of a Table request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// No object in the rows.
    None,
    /// Metadata only.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// From the query parameter; empty is the default.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "Metadata") => Some(Self::Metadata),
            Some("None") => Some(Self::None),
            Some("Object") => Some(Self::Object),
            Some(_) => None,
        }
    }
}

/// How to show objects of a row in a version.
pub struct Presenter<'a> {
    /// The view.
    pub row: &'a Resource,
    /// Requested version.
    pub version: &'a str,
    /// Encoding, and what is shown.
    pub form: Form,
    /// For tables.
    pub include: IncludeObject,
}

impl Presenter<'_> {
    /// True if stored bytes can be copied.
    fn is_verbatim(&self) -> bool {
        self.row.converter.is_none() && self.row.custom.is_none() && self.version == self.row.storage_version
    }

    /// A number for this way of showing, so that encoded events can be shared.
    pub fn shape_key(&self, first: bool) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        let shape = match self.form.shape {
            Shape::Object => 0,
            Shape::Table => 1 + self.include as u64 * 2 + u64::from(first),
            Shape::PartialMetadata => 100,
        };
        let epoch = self.row.custom.as_ref().map_or(0, |custom| custom.epoch);
        (&self.row.group, self.version, self.form.media, shape, epoch).hash(&mut hasher);
        hasher.finish()
    }

    /// The object in the requested version.
    pub fn convert(&self, mut stored: Value) -> Value {
        if let Some(custom) = &self.row.custom {
            custom.read(&self.row.group, &mut stored);
            return stored;
        }
        if let Some(converter) = self.row.converter {
            stored = (converter.from_storage)(stored);
        }
        if self.version != self.row.storage_version
            && let Some(map) = stored.as_object_mut()
        {
            map.insert("apiVersion".to_owned(), self.row.gvk(self.version).api_version().into());
        }
        stored
    }

    /// One object, in its form, encoded. `first` says that a table needs its column definitions.
    ///
    /// # Errors
    /// 500 if the stored object has no such form.
    pub fn object(&self, object: &CachedObject, first: bool) -> Result<Bytes> {
        match (self.form.shape, self.form.media) {
            (Shape::Object, MediaType::Json) if self.is_verbatim() => Ok(object.json().clone()),
            (_, media) => answer::encode(media, &self.value(object.parse(), first)),
        }
    }

    /// One object, in its form, from its stored tree.
    pub fn value(&self, stored: Value, first: bool) -> Value {
        let object = self.convert(stored);
        match self.form.shape {
            Shape::Object => object,
            Shape::PartialMetadata => partial_metadata(&object),
            Shape::Table => {
                let version = object["metadata"]["resourceVersion"].clone();
                let row = self.table_row(object);
                self.table(vec![row], json!({"resourceVersion": version}), first)
            }
        }
    }

    /// A list in its form, encoded. `items` are in key order; `metadata` is the list's.
    ///
    /// # Errors
    /// 500 if a stored object has no such form.
    pub fn list<'o>(&self, items: impl Iterator<Item = &'o CachedObject>, metadata: &Value) -> Result<Bytes> {
        let gvk = match self.form.shape {
            Shape::Object => GroupVersionKind { kind: self.row.list_kind(), ..self.row.gvk(self.version) },
            Shape::PartialMetadata => GroupVersionKind::new("meta.k8s.io", "v1", "PartialObjectMetadataList"),
            Shape::Table => {
                let rows = items.map(|o| self.table_row(self.convert(o.parse()))).collect();
                return answer::encode(self.form.media, &self.table(rows, metadata.clone(), true));
            }
        };
        let head = json!({"kind": gvk.kind, "apiVersion": gvk.api_version(), "metadata": metadata});
        match self.form.media {
            MediaType::Json => {
                let mut out = Vec::with_capacity(4096);
                // Copied, never re-encoded: each item's bytes go out as they were stored.
                let head = head.to_string();
                out.extend_from_slice(head.trim_end_matches('}').as_bytes());
                // trim_end_matches also took the metadata's own brace.
                out.extend_from_slice(b"},\"items\":[");
                for (i, item) in items.enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(&self.object(item, false)?);
                }
                out.extend_from_slice(b"]}");
                Ok(out.into())
            }
            MediaType::Yaml => {
                let mut list = head;
                list["items"] = items.map(|item| self.value(item.parse(), false)).collect();
                answer::encode(MediaType::Yaml, &list)
            }
            MediaType::Protobuf => {
                let items = items.map(|item| self.value(item.parse(), false));
                codec::encode_protobuf_list(&gvk, metadata, items)
                    .map(Bytes::from)
                    .map_err(StatusError::internal)
            }
        }
    }

    fn table(&self, rows: Vec<Value>, metadata: Value, definitions: bool) -> Value {
        let columns = if definitions { self.row.printer.definitions() } else { Vec::new() };
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": columns, "rows": rows,
        })
    }

    fn table_row(&self, object: Value) -> Value {
        let now = chrono::Utc::now().timestamp();
        let mut row = self.row.printer.row(&object, now);
        match self.include {
            IncludeObject::None => {}
            IncludeObject::Metadata => row["object"] = partial_metadata(&object),
            IncludeObject::Object => row["object"] = object,
        }
        row
    }
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"].clone(),
    })
}
