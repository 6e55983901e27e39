//! From client-side to server-side apply: the annotation that `kubectl apply` keeps (`internal/lastapplied*.go`).

use std::borrow::Cow;

use serde_json::Value;

use crate::resources::metadata::ANNOTATIONS_LIMIT;
use crate::smd::update::Versions;
use crate::smd::{Set, Typed};

/// The annotation.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The manager whose applies take over from the annotation, and keep it.
pub(super) const KUBECTL: &str = "kubectl";

fn annotation(object: &Value) -> Option<&str> {
    let text = object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
    (!text.is_empty()).then_some(text)
}

/// Fields that client-side apply set and nobody has changed since: an apply by kubectl may take them without
/// conflict. `None` if the annotation is not there or not usable.
pub(super) fn allowed_conflicts(versions: &dyn Versions, version: &str, live: &Value) -> Option<Set> {
    let mut last: Value = serde_json::from_str(annotation(live)?).ok()?;
    crate::smd::whole_numbers(&mut last);
    if last["apiVersion"] != version || last["kind"].as_str().is_none_or(str::is_empty) {
        return None;
    }
    let (types, id) = versions.type_of(version)?;
    let live = Typed::new(types, id, Cow::Borrowed(live), false).ok()?;
    let last = Typed::new(types, id, Cow::Owned(last), false).ok()?;
    let changes = last.compare(&live).ok()?;
    let set = last.field_set().difference(&changes.modified);
    Some(set.difference(&changes.added).difference(&changes.removed))
}

/// Brings an annotation that is there up to date with what was applied.
pub(super) fn refresh(object: &mut Value, applied: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let text = configuration_text(applied);
    let Some(annotations) = object["metadata"]["annotations"].as_object_mut() else { return };
    annotations.insert(LAST_APPLIED.to_owned(), text.into());
    let size: usize = annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS_LIMIT {
        annotations.remove(LAST_APPLIED);
    }
}

/// A configuration as the annotation holds it: without the annotation itself, with a line feed at the end.
fn configuration_text(applied: &Value) -> String {
    let mut applied = applied.clone();
    if let Some(metadata) = applied.get_mut("metadata").and_then(Value::as_object_mut) {
        match metadata.get_mut("annotations") {
            Some(Value::Object(annotations)) => {
                annotations.remove(LAST_APPLIED);
            }
            _ => {
                metadata.remove("annotations");
            }
        }
    }
    let mut text = String::new();
    // Go escapes these in all JSON that it writes; outside of strings they don't occur.
    for c in applied.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_annotation_follows() {
        let applied = json!({"kind": "K", "metadata": {"annotations": {LAST_APPLIED: "x", "a": "<"}}});
        let mut object = json!({"metadata": {"annotations": {LAST_APPLIED: "old"}}});
        refresh(&mut object, &applied);
        assert_eq!(
            object["metadata"]["annotations"][LAST_APPLIED],
            "{\"kind\":\"K\",\"metadata\":{\"annotations\":{\"a\":\"\\u003c\"}}}\n"
        );
        let mut bare = json!({"metadata": {}});
        refresh(&mut bare, &applied);
        assert_eq!(bare, json!({"metadata": {}}));
        let huge = json!({"data": "x".repeat(ANNOTATIONS_LIMIT)});
        refresh(&mut object, &huge);
        assert_eq!(object["metadata"]["annotations"], json!({}));
    }
}
