//! Reading an object's tree and the pieces that many cells share. Nothing here trusts the tree's shape.

use serde_json::Value;

/// The value at a dotted path; null if there is none.
pub(super) fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(object, |value, key| &value[key])
}

/// The text at a path, or an empty one.
pub(super) fn str_at<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).as_str().unwrap_or_default()
}

/// The number at a path, or zero.
pub(super) fn int_at(object: &Value, path: &str) -> i64 {
    at(object, path).as_i64().unwrap_or_default()
}

/// The items of the list at a path.
pub(super) fn list_at<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).as_array().map_or(&[], Vec::as_slice)
}

/// Number of items or keys at a path.
pub(super) fn count_at(object: &Value, path: &str) -> usize {
    match at(object, path) {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    }
}

/// A text cell: empty where the tree has none.
pub(super) fn get(object: &Value, path: &str) -> Value {
    str_at(object, path).into()
}

/// A number cell: zero where the tree has none.
pub(super) fn get_int(object: &Value, path: &str) -> Value {
    int_at(object, path).into()
}

/// A text cell with words for absence.
pub(super) fn get_or(object: &Value, path: &str, absent: &str) -> Value {
    let text = str_at(object, path);
    if text.is_empty() { absent } else { text }.into()
}

/// A number or text, as it prints; `None` for anything else.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A quantity cell's text; an absent one is Go's zero quantity.
pub(super) fn quantity(value: &Value) -> String {
    scalar(value).unwrap_or_else(|| "0".to_owned())
}

/// Texts of a list, joined by commas.
pub(super) fn join(items: &[Value]) -> String {
    items.iter().map(|item| item.as_str().unwrap_or_default()).collect::<Vec<_>>().join(",")
}

/// True if an annotation says `true`.
pub(super) fn annotated(object: &Value, key: &str) -> bool {
    object["metadata"]["annotations"][key] == "true"
}

/// Status of the first condition of a type.
pub(super) fn condition<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a str> {
    conditions.iter().find(|c| c["type"] == kind).map(|c| c["status"].as_str().unwrap_or_default())
}

/// A map of labels as a selector prints: `a=b,c=d`, sorted; `<none>` if empty.
pub(super) fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A `metav1.LabelSelector` as it prints; `None` if it is malformed. An empty one gives an empty text.
pub(super) fn selector(selector: &Value) -> Option<String> {
    let mut terms: Vec<(&str, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push((key, format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for expression in list_at(selector, "matchExpressions") {
        let key = str_at(expression, "key");
        let mut values: Vec<&str> = list_at(expression, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let term = match (str_at(expression, "operator"), values.is_empty()) {
            ("In", false) => format!("{key} in ({})", values.join(",")),
            ("NotIn", false) => format!("{key} notin ({})", values.join(",")),
            ("Exists", true) => key.to_owned(),
            ("DoesNotExist", true) => format!("!{key}"),
            _ => return None,
        };
        terms.push((key, term));
    }
    terms.sort_by_key(|(key, _)| *key);
    Some(terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(","))
}

/// A `metav1.LabelSelector` as most kinds print it: `<none>` if empty, `<error>` if malformed.
pub(super) fn selector_or_none(value: &Value) -> String {
    match selector(value) {
        None => "<error>".to_owned(),
        Some(text) if text.is_empty() => "<none>".to_owned(),
        Some(text) => text,
    }
}

/// One field of all containers of a pod's spec, joined by commas.
pub(super) fn containers(pod_spec: &Value, field: &str) -> String {
    let values: Vec<&str> = list_at(pod_spec, "containers").iter().map(|c| str_at(c, field)).collect();
    values.join(",")
}

/// The first `max` items, and how many more there are.
pub(super) fn some(items: &[String], max: usize) -> String {
    let shown = items[..items.len().min(max)].join(",");
    if items.len() > max { format!("{shown} + {} more...", items.len() - max) } else { shown }
}
