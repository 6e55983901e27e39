//! `additionalPrinterColumns` (`apiextensions-apiserver/pkg/registry/customresource/tableconvertor`).

use std::sync::Arc;

use serde_json::Value;

use super::JsonPath;
use crate::resources::columns::{Column, Printer, age};

const KINDS: [&str; 5] = ["integer", "number", "string", "boolean", "date"];
const FORMATS: [&str; 8] = ["int32", "int64", "float", "double", "byte", "date", "date-time", "password"];

/// The type of a column if it may be one.
pub(super) fn column_kind(kind: &str) -> Option<&'static str> {
    KINDS.into_iter().find(|known| *known == kind)
}

/// The format of a column if it may be one.
pub(super) fn column_format(format: &str) -> Option<&'static str> {
    FORMATS.into_iter().find(|known| *known == format)
}

/// The printer of a version: the name, and the columns that it states or the age.
pub(super) fn printer(stated: &Value) -> Printer {
    let mut columns = vec![Column {
        name: "Name".to_owned(),
        kind: "string",
        format: "name",
        description: "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names".to_owned(),
        priority: 0,
        cell: Arc::new(|object: &Value, _| object["metadata"]["name"].clone()),
    }];
    match stated.as_array().filter(|list| !list.is_empty()) {
        None => columns.push(Column {
            name: "Age".to_owned(),
            kind: "date",
            format: "",
            description: "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata".to_owned(),
            priority: 0,
            cell: Arc::new(|object: &Value, now| age(&object["metadata"]["creationTimestamp"], now).into()),
        }),
        Some(list) => columns.extend(list.iter().filter_map(column)),
    }
    Printer { columns, conditions: |_| Vec::new() }
}

fn column(stated: &Value) -> Option<Column> {
    let text = |key: &str| stated[key].as_str().unwrap_or_default();
    let kind = column_kind(text("type"))?;
    let path = JsonPath::parse(text("jsonPath")).ok()?;
    let description = match text("description") {
        "" => format!("Custom resource definition column (in JSONPath format): {}", text("jsonPath")),
        own => own.to_owned(),
    };
    Some(Column {
        name: text("name").to_owned(),
        kind,
        format: column_format(text("format")).unwrap_or_default(),
        description,
        priority: stated["priority"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
        cell: Arc::new(move |object: &Value, now| {
            path.find(object).first().map_or(Value::Null, |value| cell(kind, value, now))
        }),
    })
}

fn cell(kind: &str, value: &Value, now: i64) -> Value {
    match (kind, value) {
        (_, Value::Null) => Value::Null,
        ("string", Value::String(_)) => value.clone(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(number)) => {
            #[expect(clippy::cast_possible_truncation, reason = "as Go converts a float to an int64")]
            let whole = number.as_i64().or_else(|| number.as_f64().map(|float| float as i64));
            whole.into()
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) if chrono::DateTime::parse_from_rfc3339(text).is_err() => {
            "<invalid>".into()
        }
        ("date", Value::String(_)) => age(value, now).into(),
        _ => Value::Null,
    }
}
