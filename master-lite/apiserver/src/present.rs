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
            (Shape::PartialMetadata, MediaType::Json) if self.is_verbatim() => {
                let mut out = Vec::new();
                write_partial_metadata(&mut out, object)?;
                Ok(out.into())
            }
            (Shape::PartialMetadata, media) if self.is_verbatim() => {
                answer::encode(media, &partial_metadata(&metadata_only(object)?))
            }
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
            Shape::Table if self.form.media == MediaType::Json => {
                let table = self.table(Vec::new(), metadata.clone(), true);
                return written(&table, "rows", items, |out, item| self.write_table_row(out, item));
            }
            Shape::Table => {
                let rows = items.map(|o| self.table_row(self.convert(o.parse()))).collect();
                return answer::encode(self.form.media, &self.table(rows, metadata.clone(), true));
            }
        };
        let head = json!({"kind": gvk.kind, "apiVersion": gvk.api_version(), "metadata": metadata});
        match self.form.media {
            // Copied, never re-encoded: each item's bytes go out as they were stored.
            MediaType::Json => written(&head, "items", items, |out, item| {
                match self.form.shape {
                    Shape::PartialMetadata if self.is_verbatim() => write_partial_metadata(out, item)?,
                    _ => out.extend_from_slice(&self.object(item, false)?),
                }
                Ok(())
            }),
            MediaType::Yaml => {
                let mut list = head;
                list["items"] = items.map(|item| self.value(item.parse(), false)).collect();
                answer::encode(MediaType::Yaml, &list)
            }
            MediaType::Protobuf => {
                let only_metadata = self.form.shape == Shape::PartialMetadata && self.is_verbatim();
                let items = items.map(|item| match only_metadata {
                    true => metadata_only(item).map_or(Value::Null, |object| partial_metadata(&object)),
                    false => self.value(item.parse(), false),
                });
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

    /// A row whose object, if it is no more than the metadata as they are stored, is copied.
    fn write_table_row(&self, out: &mut Vec<u8>, item: &CachedObject) -> Result<()> {
        let object = self.convert(item.parse());
        if self.include != IncludeObject::Metadata || !self.is_verbatim() {
            return serde_json::to_writer(out, &self.table_row(object)).map_err(StatusError::internal);
        }
        let row = self.row.printer.row(&object, chrono::Utc::now().timestamp());
        serde_json::to_writer(&mut *out, &row).map_err(StatusError::internal)?;
        // Before the row's own end.
        out.pop();
        out.extend_from_slice(b",\"object\":");
        write_partial_metadata(out, item)?;
        out.push(b'}');
        Ok(())
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

/// A list of which everything but `field` is in `head`, written out with each item as `write` does it.
fn written<'o>(
    head: &Value,
    field: &str,
    items: impl Iterator<Item = &'o CachedObject>,
    write: impl Fn(&mut Vec<u8>, &CachedObject) -> Result<()>,
) -> Result<Bytes> {
    let mut out = Vec::with_capacity(4096);
    out.push(b'{');
    for (name, value) in head.as_object().into_iter().flatten().filter(|(name, _)| *name != field) {
        serde_json::to_writer(&mut out, name).map_err(StatusError::internal)?;
        out.push(b':');
        serde_json::to_writer(&mut out, value).map_err(StatusError::internal)?;
        out.push(b',');
    }
    serde_json::to_writer(&mut out, field).map_err(StatusError::internal)?;
    out.extend_from_slice(b":[");
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(&mut out, item)?;
    }
    out.extend_from_slice(b"]}");
    Ok(out.into())
}

/// `PartialObjectMetadata` of an object that is shown as it is stored.
fn write_partial_metadata(out: &mut Vec<u8>, object: &CachedObject) -> Result<()> {
    out.extend_from_slice(br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#);
    out.extend_from_slice(object.metadata().map_err(StatusError::internal)?.get().as_bytes());
    out.push(b'}');
    Ok(())
}

/// An object without all but its metadata.
fn metadata_only(object: &CachedObject) -> Result<Value> {
    let metadata = object.metadata().map_err(StatusError::internal)?.get();
    Ok(json!({"metadata": serde_json::from_str::<Value>(metadata).map_err(StatusError::internal)?}))
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"].clone(),
    })
}

#[cfg(test)]
mod tests {
    use keelson_api::meta::GroupResource;
    use keelson_api::resources::ResourceTable;

    use super::*;

    fn pod(name: &str) -> CachedObject {
        let table = ResourceTable::builtin();
        let row = table.get(&GroupResource::new("", "pods")).unwrap();
        let json = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "labels": {"a": "}\"]{"}, "creationTimestamp": "2020-01-01T00:00:00Z"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running"},
        });
        let stored = crate::stored::encode(&json).unwrap();
        CachedObject::read(row, &format!("ns/{name}"), &stored, 7).unwrap()
    }

    /// What is copied out of the stored bytes is what would be made of the parsed object.
    #[test]
    fn copies_say_what_the_parsed_objects_say() {
        let table = ResourceTable::builtin();
        let row = table.get(&GroupResource::new("", "pods")).unwrap();
        let pods = [pod("a"), pod("b")];
        let metadata = json!({"resourceVersion": "9"});
        for include in [IncludeObject::None, IncludeObject::Metadata, IncludeObject::Object] {
            let form = Form { shape: Shape::Table, media: MediaType::Json };
            let presenter = Presenter { row, version: "v1", form, include };
            let rows = pods.iter().map(|pod| presenter.table_row(pod.parse())).collect();
            let expected = presenter.table(rows, metadata.clone(), true);
            let list = presenter.list(pods.iter(), &metadata).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&list).unwrap(), expected);
        }
        for media in [MediaType::Json, MediaType::Yaml, MediaType::Protobuf] {
            let form = Form { shape: Shape::PartialMetadata, media };
            let presenter = Presenter { row, version: "v1", form, include: IncludeObject::None };
            let items: Vec<Value> = pods.iter().map(|pod| partial_metadata(&pod.parse())).collect();
            let one = presenter.object(&pods[0], true).unwrap();
            let list = presenter.list(pods.iter(), &metadata).unwrap();
            let expected = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "items": items,
            });
            if media == MediaType::Json {
                assert_eq!(serde_json::from_slice::<Value>(&one).unwrap(), items[0]);
                assert_eq!(serde_json::from_slice::<Value>(&list).unwrap(), expected);
            } else {
                assert_eq!(one, answer::encode(media, &items[0]).unwrap());
                assert_eq!(list, answer::encode(media, &expected).unwrap());
            }
        }
    }
}
