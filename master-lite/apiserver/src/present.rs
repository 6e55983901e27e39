//! Objects in the form a client asked for: as they are, as Table rows, or metadata only.

use bytes::Bytes;
use keelson_api::resources::Resource;
use serde_json::{Value, json};

use crate::cache::CachedObject;
use crate::negotiate::Shape;

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
    /// Form.
    pub shape: Shape,
    /// For tables.
    pub include: IncludeObject,
}

impl Presenter<'_> {
    /// True if stored bytes can be copied.
    fn is_verbatim(&self) -> bool {
        self.row.converter.is_none() && self.version == self.row.storage_version
    }

    /// A number for this way of showing, so that encoded events can be shared.
    pub fn shape_key(&self, first: bool) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        let shape = match self.shape {
            Shape::Object => 0,
            Shape::Table => 1 + self.include as u64 * 2 + u64::from(first),
            Shape::PartialMetadata => 100,
        };
        (&self.row.group, self.version, shape).hash(&mut hasher);
        hasher.finish()
    }

    /// The object in the requested version.
    pub fn convert(&self, mut stored: Value) -> Value {
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

    /// One object, in its form, as JSON. `first` says that a table needs its column definitions.
    pub fn object(&self, object: &CachedObject, first: bool) -> Bytes {
        match self.shape {
            Shape::Object if self.is_verbatim() => object.json().clone(),
            _ => self.value(object.parse(), first).to_string().into(),
        }
    }

    /// One object, in its form, from its stored tree.
    pub fn value(&self, stored: Value, first: bool) -> Value {
        let object = self.convert(stored);
        match self.shape {
            Shape::Object => object,
            Shape::PartialMetadata => partial_metadata(&object),
            Shape::Table => {
                let version = object["metadata"]["resourceVersion"].clone();
                let row = self.table_row(object);
                self.table(vec![row], json!({"resourceVersion": version}), first)
            }
        }
    }

    /// A list in its form. `items` are in key order; `metadata` is the list's.
    pub fn list<'o>(&self, items: impl Iterator<Item = &'o CachedObject>, metadata: &Value) -> Bytes {
        match self.shape {
            Shape::Object => {
                let gvk = self.row.gvk(self.version);
                let mut out = Vec::with_capacity(4096);
                // Copied, never re-encoded: each item's bytes go out as they were stored.
                let head = json!({"kind": format!("{}List", gvk.kind), "apiVersion": gvk.api_version(), "metadata": metadata});
                let head = head.to_string();
                out.extend_from_slice(head.trim_end_matches('}').as_bytes());
                // trim_end_matches also took the metadata's own brace.
                out.extend_from_slice(b"},\"items\":[");
                for (i, item) in items.enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(&self.object(item, false));
                }
                out.extend_from_slice(b"]}");
                out.into()
            }
            Shape::PartialMetadata => {
                let items: Vec<Value> = items.map(|o| partial_metadata(&self.convert(o.parse()))).collect();
                json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata, "items": items,
                })
                .to_string()
                .into()
            }
            Shape::Table => {
                let rows = items.map(|o| self.table_row(self.convert(o.parse()))).collect();
                self.table(rows, metadata.clone(), true).to_string().into()
            }
        }
    }

    fn table(&self, rows: Vec<Value>, metadata: Value, definitions: bool) -> Value {
        let mut columns = vec![json!({
            "name": "Name", "type": "string", "format": "name", "priority": 0,
            "description": "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
        })];
        for column in &self.row.columns {
            columns.push(json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            }));
        }
        if self.row.columns.is_empty() {
            columns.push(json!({
                "name": "Age", "type": "string", "format": "", "priority": 0,
                "description": "CreationTimestamp is a timestamp representing the server time when this object was created.",
            }));
        }
        let columns = if definitions { Value::Array(columns) } else { json!([]) };
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": columns, "rows": rows,
        })
    }

    fn table_row(&self, object: Value) -> Value {
        let now = chrono::Utc::now().timestamp();
        let mut cells = vec![object["metadata"]["name"].clone()];
        cells.extend(self.row.columns.iter().map(|column| (column.cell)(&object, now)));
        if self.row.columns.is_empty() {
            cells.push(age(&object["metadata"]["creationTimestamp"], now).into());
        }
        match self.include {
            IncludeObject::None => json!({"cells": cells}),
            IncludeObject::Metadata => json!({"cells": cells, "object": partial_metadata(&object)}),
            IncludeObject::Object => json!({"cells": cells, "object": object}),
        }
    }
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"].clone(),
    })
}

/// Time since an RFC 3339 timestamp, as kubectl prints ages; `<unknown>` without one.
pub fn age(timestamp: &Value, now: i64) -> String {
    timestamp
        .as_str()
        .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok())
        .map_or_else(|| "<unknown>".to_owned(), |time| human_duration(now - time.timestamp()))
}

/// `k8s.io/apimachinery/pkg/util/duration.HumanDuration`: two units at most, fewer as it grows.
pub fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => two(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3600, "60m"),
            (4 * 3600 + 60, "4h1m"),
            (30 * 3600, "30h"),
            (3 * 86400, "3d"),
            (400 * 86400, "400d"),
            (800 * 86400, "2y70d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
