//! Writes and applies as upstream's own library (`k8s.io/apimachinery/pkg/util/managedfields` v0.36) answered them:
//! one JSON object a line with the live object, what was written, and what came of it. The inputs were made at random
//! from upstream's OpenAPI documents. `KEELSON_RECORDED_APPLIES` names another recording.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use keelson_api::managed_fields::{ApplyError, FieldManager};
use keelson_api::meta::GroupVersionKind;
use keelson_api::smd::update::Versions;
use keelson_api::smd::{Filter, Set, TypeId, Types, equals, field_path};
use serde_json::{Value, json};

/// One version of one kind.
struct OneVersion {
    version: String,
    id: TypeId,
}

impl Versions for OneVersion {
    fn type_of(&self, version: &str) -> Option<(&Types, TypeId)> {
        (version == self.version).then(|| (Types::builtin(), self.id))
    }

    fn convert(&self, _object: &Value, version: &str) -> Result<Value, String> {
        Err(format!("no version {version}"))
    }
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

fn check(step: &Value) -> Result<(), String> {
    let gvk = GroupVersionKind::from_type_meta(text(step, "apiVersion"), text(step, "kind"));
    let versions =
        OneVersion { version: gvk.api_version(), id: Types::builtin_kind(&gvk).unwrap_or(Types::deduced()) };
    let reset = step["reset"].as_array().unwrap();
    let reset = Set::new(reset.iter().map(|name| field_path(&[name.as_str().unwrap()])));
    let manager = FieldManager {
        versions: &versions,
        gvk: &gvk,
        subresource: text(step, "subresource"),
        filters: &BTreeMap::from([(gvk.api_version(), Filter::Exclude(reset))]),
        empty: &json!({"apiVersion": gvk.api_version(), "kind": gvk.kind, "metadata": {}}),
        now: text(step, "now"),
    };
    let live = &step["live"];
    let mut output = if step["op"] == "update" {
        let mut new = step["input"].clone();
        match manager.update(Some(live), &mut new, text(step, "manager")) {
            Ok(()) => Ok(new),
            Err(error) => Err((error.to_string(), Vec::new())),
        }
    } else {
        let force = step["force"] == true;
        match manager.apply(Some(live), &step["input"], text(step, "manager"), force) {
            Ok(object) => Ok(object),
            Err(ApplyError::BadRequest(message) | ApplyError::Failed(message)) => Err((message, Vec::new())),
            Err(ApplyError::Conflict(conflict)) => Err((conflict.message, conflict.causes)),
        }
    };
    if step["op"] == "apply"
        && let Ok(output) = &mut output
    {
        output["metadata"]["uid"] = "u".into();
    }
    let causes = |causes: &[Value]| {
        let mut lines: Vec<String> = causes
            .iter()
            .map(|c| format!("{}|{}|{}", text(c, "reason"), text(c, "message"), text(c, "field")))
            .collect();
        // Upstream walks its owners at random.
        lines.sort();
        lines
    };
    match (output, step.get("error").and_then(Value::as_str)) {
        (Ok(output), None) => {
            if !equals(&output, &step["output"]) {
                return Err(difference(&step["output"], &output, String::new()));
            }
            let entries = output["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
            let fields: Vec<Value> = entries
                .iter()
                .map(|entry| Set::from_fields_v1(&entry["fieldsV1"]).unwrap().to_fields_v1_text().into())
                .collect();
            let expected = step.get("fields").and_then(Value::as_array).cloned().unwrap_or_default();
            if fields == expected { Ok(()) } else { Err(format!("want {expected:?}\ngot {fields:?}")) }
        }
        (Err((message, got)), Some(expected)) => {
            let mut wanted: Vec<String> = step
                .get("causes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|cause| cause.as_str().unwrap().to_owned())
                .collect();
            wanted.sort();
            let sorted = |text: &str| {
                // Complaints come in the order of Go's maps.
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            if sorted(&message) == sorted(expected) && causes(&got) == wanted {
                Ok(())
            } else {
                Err(format!("want {expected} {wanted:?}\ngot {message} {got:?}"))
            }
        }
        (Ok(_), Some(error)) => Err(format!("expected error {error}")),
        (Err((error, _)), None) => Err(format!("unexpected error {error}")),
    }
}

/// The first place where two trees differ.
fn difference(want: &Value, got: &Value, path: String) -> String {
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => {
            for key in want.keys().chain(got.keys()) {
                let (a, b) = (want.get(key).unwrap_or(&Value::Null), got.get(key).unwrap_or(&Value::Null));
                if !equals(a, b) || want.contains_key(key) != got.contains_key(key) {
                    return difference(a, b, format!("{path}.{key}"));
                }
            }
            path
        }
        (Value::Array(want), Value::Array(got)) if want.len() == got.len() => {
            let at = want.iter().zip(got).position(|(a, b)| !equals(a, b)).unwrap_or(0);
            difference(&want[at], &got[at], format!("{path}[{at}]"))
        }
        _ => format!("{path}: want {want}, got {got}"),
    }
}

#[test]
fn owners_are_upstreams() {
    let path = std::env::var_os("KEELSON_RECORDED_APPLIES")
        .map_or_else(|| PathBuf::from("tests/recorded_applies.jsonl"), PathBuf::from);
    let recording = std::fs::read_to_string(&path).unwrap();
    let mut failures = Vec::new();
    let mut checked = 0;
    for (number, line) in (1..).zip(recording.lines()) {
        let step: Value = serde_json::from_str(line).unwrap();
        checked += 1;
        if let Err(why) = check(&step) {
            failures.push(format!("line {number}: {} {}: {why}", step["op"], step["kind"]));
        }
    }
    assert!(checked > 100, "only {checked} steps in {}", path.display());
    let first = failures.iter().take(12).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {checked} differ:\n{first}", failures.len());
}
