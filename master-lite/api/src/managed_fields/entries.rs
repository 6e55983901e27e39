//! `metadata.managedFields` read and written (`internal/managedfields.go`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::smd::Set;
use crate::smd::update::{Managers, VersionedSet};

/// By an apply.
pub(super) const APPLY: &str = "Apply";
/// By any other write.
pub(super) const UPDATE: &str = "Update";

/// Owners, by identifier ([`ManagerId::encode`]), and when each last wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managed {
    /// What each owns.
    pub fields: Managers,
    /// RFC 3339, whole seconds, UTC. Some owners have no time.
    pub times: BTreeMap<String, String>,
}

/// What tells one owner from another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagerId {
    /// The manager's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub manager: String,
    /// `Apply` or `Update`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// Empty for appliers, who are the same in every version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Empty for the resource itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

impl ManagerId {
    /// The owner of what a request writes. A nameless manager is `unknown`.
    pub fn new(manager: &str, operation: &str, api_version: &str, subresource: &str) -> Self {
        Self {
            manager: if manager.is_empty() { "unknown" } else { manager }.to_owned(),
            operation: operation.to_owned(),
            api_version: if operation == APPLY { "" } else { api_version }.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    /// As one string, by which owners are sorted, too.
    pub fn encode(&self) -> String {
        // Four strings always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the string; `None` if it is none of ours.
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// Entries that can't be read. Displays as upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntriesError {
    /// Neither of the two operations.
    #[error("operation must be `Apply` or `Update`")]
    Operation,
    /// No `apiVersion`.
    #[error("apiVersion must not be empty")]
    NoVersion,
    /// No `fieldsType`.
    #[error("missing fieldsType in managed fields entry {0}")]
    NoFieldsType(usize),
    /// Something other than `FieldsV1`.
    #[error("invalid fieldsType {0:?} in managed fields entry {1}")]
    FieldsType(String, usize),
    /// The fields can't be read.
    #[error("error decoding versioned set: error decoding set: {0}")]
    Fields(#[from] crate::smd::FieldsError),
}

impl Managed {
    /// Reads the list; an absent one has no owners.
    pub fn decode(entries: Option<&Value>) -> Result<Self, EntriesError> {
        let mut out = Self::default();
        let entries = entries.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for (index, entry) in entries.iter().enumerate() {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let operation = text("operation");
            if operation != APPLY && operation != UPDATE {
                return Err(EntriesError::Operation);
            }
            let version = text("apiVersion");
            if version.is_empty() {
                return Err(EntriesError::NoVersion);
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(EntriesError::NoFieldsType(index)),
                other => return Err(EntriesError::FieldsType(other.to_owned(), index)),
            }
            let applied = operation == APPLY;
            let id = ManagerId {
                manager: text("manager").to_owned(),
                operation: operation.to_owned(),
                api_version: if applied { "" } else { version }.to_owned(),
                subresource: text("subresource").to_owned(),
            };
            let id = id.encode();
            let set = Set::from_fields_v1(&entry["fieldsV1"])?;
            match entry["time"].as_str() {
                Some(time) => out.times.insert(id.clone(), time.to_owned()),
                None => out.times.remove(&id),
            };
            out.fields.insert(id, VersionedSet { set, version: version.to_owned(), applied });
        }
        Ok(out)
    }

    /// The list, sorted as upstream sorts it; `None` if nobody owns anything.
    pub fn encode(&self) -> Option<Value> {
        let mut entries: Vec<(ManagerId, &VersionedSet, &str)> = self
            .fields
            .iter()
            .map(|(name, owned)| {
                let mut id = ManagerId::decode(name).unwrap_or_default();
                id.api_version.clone_from(&owned.version);
                if owned.applied {
                    id.operation = APPLY.to_owned();
                }
                (id, owned, self.times.get(name).map_or("", String::as_str))
            })
            .collect();
        // Times of one form sort as text, and none comes before all.
        entries.sort_by(|(a, _, a_time), (b, _, b_time)| {
            (&a.operation, a_time, &a.manager, &a.api_version, &a.subresource).cmp(&(
                &b.operation,
                b_time,
                &b.manager,
                &b.api_version,
                &b.subresource,
            ))
        });
        let list = entries.into_iter().map(|(id, owned, time)| {
            let mut entry = Map::new();
            for (field, text) in [
                ("manager", id.manager.as_str()),
                ("operation", &id.operation),
                ("apiVersion", &id.api_version),
                ("subresource", &id.subresource),
                ("time", time),
            ] {
                if !text.is_empty() {
                    entry.insert(field.to_owned(), text.into());
                }
            }
            entry.insert("fieldsType".to_owned(), "FieldsV1".into());
            entry.insert("fieldsV1".to_owned(), owned.set.to_fields_v1());
            Value::Object(entry)
        });
        (!self.fields.is_empty()).then(|| list.collect())
    }
}

/// The entries of an object.
pub(super) fn entries_of(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Sets or removes the entries of an object.
pub(super) fn set_entries(object: &mut Value, entries: Option<Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match entries {
        Some(entries) => metadata.insert("managedFields".to_owned(), entries),
        None => metadata.remove("managedFields"),
    };
}

/// Takes changes of nothing but times back: an object that stays what it was has been written by nobody. Both objects
/// are in the same form; `resourceVersion` doesn't count.
pub fn keep_times(new: &mut Value, old: &Value) {
    let times = |object: &Value| -> Vec<Value> {
        let entries = entries_of(object).and_then(Value::as_array);
        entries.into_iter().flatten().map(|entry| entry["time"].clone()).collect()
    };
    let (new_times, old_times) = (times(new), times(old));
    if new_times.len() != old_times.len() || new_times == old_times {
        return;
    }
    let set_times = |object: &mut Value, times: &[Value]| {
        let entries = object["metadata"]["managedFields"].as_array_mut();
        for (entry, time) in entries.into_iter().flatten().zip(times) {
            match time {
                Value::Null => entry.as_object_mut().and_then(|entry| entry.remove("time")),
                time => entry.as_object_mut().and_then(|entry| entry.insert("time".to_owned(), time.clone())),
            };
        }
    };
    set_times(new, &old_times);
    let same = entries_of(new) == entries_of(old) && same_but_version(new, old);
    if !same {
        set_times(new, &new_times);
    }
}

fn same_but_version(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return new == old };
    let within = |one: &Value, other: &Value| {
        let fields = one.as_object().into_iter().flatten();
        fields.into_iter().all(|(key, value)| key == "resourceVersion" || other.get(key) == Some(value))
    };
    new.len() == old.len()
        && new.iter().all(|(key, value)| match (key.as_str(), old.get(key)) {
            (_, None) => false,
            ("metadata", Some(old)) => within(value, old) && within(old, value),
            (_, Some(old)) => value == old,
        })
}

/// True if a client asks to forget all owners: an empty list, or a list of one empty entry.
pub(super) fn is_reset(entries: Option<&Value>) -> bool {
    match entries.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(manager: &str, operation: &str, version: &str, time: &str) -> Value {
        json!({
            "manager": manager, "operation": operation, "apiVersion": version, "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}},
        })
    }

    #[test]
    fn entries_round_trip_in_order() {
        let early = "2020-01-01T00:00:00Z";
        let late = "2021-01-01T00:00:00Z";
        let mut timeless = entry("a", "Update", "v1", early);
        timeless.as_object_mut().unwrap().remove("time");
        let mut status = entry("a", "Update", "v1", early);
        status["subresource"] = "status".into();
        let sorted = json!([
            entry("z", "Apply", "v1", early),
            entry("b", "Apply", "v1", late),
            timeless,
            status,
            entry("a", "Update", "v2", early),
            entry("b", "Update", "v1", early),
            entry("a", "Update", "v1", late),
        ]);
        let mut shuffled = sorted.as_array().unwrap().clone();
        shuffled.reverse();
        // One owner twice: the last entry counts.
        let mut sorted = sorted;
        sorted.as_array_mut().unwrap().retain(|entry| entry["time"] != late || entry["manager"] != "a");
        assert_eq!(Managed::decode(Some(&shuffled.into())).unwrap().encode(), Some(sorted));
        assert_eq!(Managed::decode(None).unwrap().encode(), None);
    }

    #[test]
    fn bad_entries_are_refused() {
        let check = |field: &str, value: Value, error: &str| {
            let mut bad = entry("a", "Apply", "v1", "t");
            bad[field] = value;
            assert_eq!(Managed::decode(Some(&json!([bad]))).unwrap_err().to_string(), error);
        };
        check("operation", json!("Patch"), "operation must be `Apply` or `Update`");
        check("apiVersion", json!(null), "apiVersion must not be empty");
        check("fieldsType", json!(null), "missing fieldsType in managed fields entry 0");
        check("fieldsType", json!("V2"), "invalid fieldsType \"V2\" in managed fields entry 0");
        check(
            "fieldsV1",
            json!({"a": {}}),
            "error decoding versioned set: error decoding set: parsing key as path element: key must be 2 characters long:",
        );
    }

    #[test]
    fn times_alone_are_no_change() {
        let object = |time: &str, data: &str, version: &str| {
            json!({
                "metadata": {"resourceVersion": version, "managedFields": [entry("a", "Apply", "v1", time)]},
                "data": data,
            })
        };
        let old = object("1", "x", "1");
        let mut same = object("2", "x", "2");
        keep_times(&mut same, &old);
        assert_eq!(same, object("1", "x", "2"));
        let mut changed = object("2", "y", "1");
        keep_times(&mut changed, &old);
        assert_eq!(changed, object("2", "y", "1"));
        let mut taken = object("2", "x", "1");
        taken["metadata"]["managedFields"][0]["manager"] = "b".into();
        keep_times(&mut taken, &old);
        assert_eq!(taken["metadata"]["managedFields"][0]["time"], "2");
    }

    #[test]
    fn identifiers_are_upstreams() {
        let id = ManagerId::new("", UPDATE, "v1", "status").encode();
        assert_eq!(
            id,
            r#"{"manager":"unknown","operation":"Update","apiVersion":"v1","subresource":"status"}"#
        );
        assert_eq!(ManagerId::new("a", APPLY, "v1", "").encode(), r#"{"manager":"a","operation":"Apply"}"#);
    }
}
