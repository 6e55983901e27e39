//! The exchanges that upstream recorded of `kubectl edit`: what each patch makes of the object that the server had
//! shown before is what the server answered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keelson_api::codec::{self, MediaType};
use keelson_api::meta::GroupVersionKind;
use keelson_api::patch;
use keelson_api::schema::Schema;
use serde_json::Value;

fn exchanges() -> PathBuf {
    let root = std::env::var_os("KEELSON_TESTDATA").expect(
        "set KEELSON_TESTDATA to a folder that holds kubectl-testdata/edit, the pkg/cmd/edit/testdata of k8s.io/kubectl",
    );
    PathBuf::from(root).join("kubectl-testdata/edit")
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

/// Objects that a GET has shown, by their own paths. Items of a list don't say what they are.
fn shown(path: &str, answer: &Value) -> BTreeMap<String, Value> {
    let Some(items) = answer["items"].as_array() else {
        return BTreeMap::from([(path.to_owned(), answer.clone())]);
    };
    let named = items.iter().map(|item| {
        let mut item = item.clone();
        item["apiVersion"] = answer["apiVersion"].clone();
        item["kind"] = text(answer, "kind").trim_end_matches("List").into();
        (format!("{path}/{}", text(&item["metadata"], "name")), item)
    });
    named.collect()
}

/// Without what a server changes with every write.
fn stable(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["resourceVersion", "selfLink", "generation"] {
            metadata.remove(field);
        }
    }
    object
}

/// Runs one recorded case; returns the number of patches compared.
fn run(folder: &Path) -> Result<usize, String> {
    let read = |name: &str| std::fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"));
    let (case, _) = codec::parse(MediaType::Yaml, &read("test.yaml")?).map_err(|error| error.to_string())?;
    let json = |name: &str| -> Result<Value, String> {
        serde_json::from_slice(&read(name)?).map_err(|error| format!("{name}: {error}"))
    };
    let mut objects = BTreeMap::new();
    let mut compared = 0;
    for step in case["steps"].as_array().into_iter().flatten().filter(|step| step["type"] == "request") {
        if step["resultingStatusCode"] != 200 {
            continue;
        }
        let path = text(step, "expectedPath").trim_end_matches("/status");
        let answer = json(text(step, "resultingOutput"))?;
        if step["expectedMethod"] == "GET" {
            objects.extend(shown(path, &answer));
            continue;
        }
        let before = objects.get(path).ok_or_else(|| format!("{path} is patched before it was shown"))?;
        let input = json(text(step, "expectedInput"))?;
        let gvk = GroupVersionKind::from_type_meta(text(before, "apiVersion"), text(before, "kind"));
        let patched = match text(step, "expectedContentType") {
            "application/strategic-merge-patch+json" => patch::strategic(&gvk, before, &input),
            "application/merge-patch+json" => patch::merge_patch(before, &input),
            other => return Err(format!("unknown patch {other}")),
        };
        let patched = patched.map_err(|error| format!("{path}: {error}"))?;
        let (got, want) = (stable(patched), stable(answer.clone()));
        // A kind that the schema knows is compared as the server would store it.
        let (got, want) = match Schema::builtin().kind(&gvk) {
            Some(_) => (normalized(&gvk, got)?, normalized(&gvk, want)?),
            None => (got, want),
        };
        if got != want {
            return Err(format!("{path}: want {want}\ngot {got}"));
        }
        compared += 1;
        objects.insert(path.to_owned(), answer);
    }
    Ok(compared)
}

fn normalized(gvk: &GroupVersionKind, mut object: Value) -> Result<Value, String> {
    codec::normalize_object(gvk, &mut object, codec::FieldValidation::Ignore)
        .map_err(|error| error.to_string())?;
    Ok(object)
}

/// Cases whose files are no recording of one server: an answer that does not follow from its patch, or a path that
/// nothing was read from before.
const MADE_UP: [&str; 5] = [
    "testcase-apply-edit-last-applied-list",
    "testcase-edit-subresource-status",
    "testcase-list-record",
    "testcase-not-update-annotation",
    "testcase-unknown-version-known-group-kind",
];

#[test]
fn recorded_edits_come_out_as_recorded() {
    let (mut compared, mut failures) = (0, Vec::new());
    for entry in std::fs::read_dir(exchanges()).unwrap() {
        let folder = entry.unwrap().path();
        let made_up = folder.file_name().is_some_and(|name| MADE_UP.iter().any(|made| name == *made));
        if made_up || !folder.join("test.yaml").exists() {
            continue;
        }
        match run(&folder) {
            Ok(count) => compared += count,
            Err(why) => failures.push(format!("{}: {why}", folder.display())),
        }
    }
    assert!(failures.is_empty(), "{compared} fine, {} not:\n{}", failures.len(), failures.join("\n"));
    assert!(compared >= 15, "only {compared} patches compared");
}
