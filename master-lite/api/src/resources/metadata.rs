//! Checks of `metadata` that hold for every kind (`k8s.io/apimachinery/pkg/api/validation`).

use serde_json::Value;

use crate::field::FieldError;

/// Most bytes of all annotations together.
pub(crate) const ANNOTATIONS_LIMIT: usize = 256 * 1024;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn is_label(text: &str) -> bool {
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|b| edge(b) || *b == b'-')
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Most kinds' names: up to 253 bytes of dot-separated labels.
pub fn dns_subdomain(name: &str) -> Result<(), String> {
    if name.len() > 253 {
        return Err("must be no more than 253 characters".to_owned());
    }
    if name.split('.').all(is_label) { Ok(()) } else { Err(SUBDOMAIN.to_owned()) }
}

/// Namespaces' names: one label of up to 63 bytes.
pub fn dns_label(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    match (is_label(name), name.split('.').all(is_label)) {
        (true, _) => Ok(()),
        (false, true) => Err("must not contain dots".to_owned()),
        (false, false) => Err(LABEL_1123.to_owned()),
    }
}

/// Services' names: a label that starts with a letter.
pub fn dns_1035_label(name: &str) -> Result<(), String> {
    if name.len() > 63 {
        return Err("must be no more than 63 characters".to_owned());
    }
    let letter = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if letter && is_label(name) { Ok(()) } else { Err(LABEL_1035.to_owned()) }
}

/// RBAC's names: anything that is one path segment.
pub fn path_segment(name: &str) -> Result<(), String> {
    if matches!(name, "." | "..") {
        return Err(format!("may not be '{name}'"));
    }
    match name.chars().find(|c| matches!(c, '/' | '%')) {
        Some(c) => Err(format!("may not contain '{c}'")),
        None => Ok(()),
    }
}

/// A label's value.
pub fn label_value(value: &str) -> Result<(), String> {
    if value.len() > 63 {
        return Err("must be no more than 63 bytes".to_owned());
    }
    if value.is_empty() || is_name_part(value) { Ok(()) } else { Err(LABEL_VALUE.to_owned()) }
}

/// A key of labels, annotations, finalizers: `[prefix/]name`.
pub fn qualified_name(key: &str) -> Result<(), String> {
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            return Err("a valid label key must consist of alphanumeric characters, '-', '_' or '.', with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".to_owned());
        }
        Some(("", _)) => return Err("prefix part must be non-empty".to_owned()),
        Some((prefix, name)) => {
            dns_subdomain(prefix).map_err(|why| format!("prefix part {why}"))?;
            name
        }
    };
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 bytes".to_owned());
    }
    if is_name_part(name) { Ok(()) } else { Err(QUALIFIED.to_owned()) }
}

/// Checks the metadata of a new object, or what a change may set.
pub fn validate(
    object: &Value,
    namespaced: bool,
    validate_name: impl Fn(&str) -> Result<(), String>,
) -> Vec<FieldError> {
    let metadata = &object["metadata"];
    let mut errors = Vec::new();
    match metadata["name"].as_str().unwrap_or_default() {
        "" => errors.push(FieldError::required("metadata.name", "name or generateName is required")),
        name => {
            if let Err(why) = validate_name(name) {
                errors.push(FieldError::invalid("metadata.name", &metadata["name"], why));
            }
        }
    }
    match (namespaced, metadata["namespace"].as_str().unwrap_or_default()) {
        (true, "") => errors.push(FieldError::required("metadata.namespace", "")),
        (true, namespace) => {
            if let Err(why) = dns_label(namespace) {
                errors.push(FieldError::invalid("metadata.namespace", &metadata["namespace"], why));
            }
        }
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden("metadata.namespace", "not allowed on this type")),
    }
    errors.extend(validate_labels(&metadata["labels"], "metadata.labels"));
    errors.extend(validate_annotations(&metadata["annotations"]));
    for (i, finalizer) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        if let Err(why) = qualified_name(text) {
            errors.push(FieldError::invalid(format!("metadata.finalizers[{i}]"), finalizer, why));
        }
    }
    errors.extend(validate_owners(&metadata["ownerReferences"]));
    errors
}

/// Checks a map of labels at `path`.
pub fn validate_labels(labels: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Err(why) = qualified_name(key) {
            errors.push(FieldError::invalid(path, &Value::from(key.as_str()), why));
        }
        if let Err(why) = label_value(value.as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(path, value, why));
        }
    }
    errors
}

fn validate_annotations(annotations: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        // Annotation keys are compared in lower case, as upstream does.
        if let Err(why) = qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", &Value::from(key.as_str()), why));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_LIMIT));
    }
    errors
}

fn validate_owners(owners: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controller = None;
    for (i, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let path = |field: &str| format!("metadata.ownerReferences[{i}].{field}");
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                errors.push(FieldError::invalid(
                    path(field),
                    &Value::from(""),
                    format!("{} must not be empty", if field == "apiVersion" { "version" } else { field }),
                ));
            }
        }
        if owner["controller"].as_bool() == Some(true) && controller.replace(i).is_some() {
            errors.push(FieldError::invalid(
                "metadata.ownerReferences",
                owners,
                "Only one reference can have Controller set to true",
            ));
        }
    }
    errors
}

/// Fields of metadata that never change once set.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    let mut errors = Vec::new();
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        if new[field] != old[field] {
            errors.push(FieldError::invalid(format!("metadata.{field}"), &new[field], "field is immutable"));
        }
    }
    if !old["deletionTimestamp"].is_null() {
        let before: Vec<&Value> = old["finalizers"].as_array().into_iter().flatten().collect();
        let added: Vec<&str> = new["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|f| !before.contains(f))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"),
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names() {
        for good in ["a", "a-b.c", "1"] {
            assert!(dns_subdomain(good).is_ok(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", "a_b"] {
            assert!(dns_subdomain(bad).is_err(), "{bad}");
        }
        assert!(dns_1035_label("1a").is_err());
        assert!(path_segment("system:node").is_ok());
        assert!(path_segment("a/b").is_err());
        assert!(qualified_name("a.b/C_d").is_ok());
        assert!(qualified_name("/x").is_err());
    }

    #[test]
    fn whole_metadata() {
        let object = json!({"metadata": {"name": "A", "namespace": "x", "labels": {"k": "-"}}});
        let errors: Vec<String> =
            validate(&object, true, dns_subdomain).into_iter().map(|e| e.field).collect();
        assert_eq!(errors, ["metadata.name", "metadata.labels"]);
        let old = json!({"metadata": {"name": "a", "uid": "1"}});
        let new = json!({"metadata": {"name": "a", "uid": "2"}});
        assert_eq!(validate_update(&new, &old).len(), 1);
    }
}
