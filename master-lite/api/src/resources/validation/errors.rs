//! Collecting complaints with their paths, and reading trees whose shape the schema has checked.

use serde_json::Value;

use crate::field::FieldError;

/// A field's path: `spec.containers[0].env[key]`.
#[derive(Debug, Clone)]
pub(super) struct Path(String);

impl Path {
    pub(super) fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    pub(super) fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    pub(super) fn index(&self, at: usize) -> Self {
        Self(format!("{}[{at}]", self.0))
    }

    pub(super) fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl From<&Path> for String {
    fn from(path: &Path) -> Self {
        path.0.clone()
    }
}

/// The complaints so far.
#[derive(Debug, Default)]
pub(super) struct Errors(pub(super) Vec<FieldError>);

impl Errors {
    pub(super) fn required(&mut self, at: &Path, detail: &str) {
        self.0.push(FieldError::required(at, detail));
    }

    pub(super) fn invalid(&mut self, at: &Path, value: &Value, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(at, value, detail));
    }

    /// An invalid value that is not worth showing.
    pub(super) fn refused(&mut self, at: &Path, detail: impl Into<String>) {
        self.0.push(FieldError { value: None, ..FieldError::invalid(at, &Value::Null, detail) });
    }

    pub(super) fn forbidden(&mut self, at: &Path, detail: impl Into<String>) {
        self.0.push(FieldError::forbidden(at, detail));
    }

    pub(super) fn duplicate(&mut self, at: &Path, value: &Value) {
        self.0.push(FieldError::duplicate(at, value));
    }

    pub(super) fn not_found(&mut self, at: &Path, value: &Value, detail: &str) {
        self.0.push(FieldError::not_found(at, value, detail));
    }

    pub(super) fn unsupported(&mut self, at: &Path, value: &Value, supported: &[&str]) {
        self.0.push(FieldError::not_supported(at, value, supported));
    }

    pub(super) fn too_long(&mut self, at: &Path, max: usize) {
        self.0.push(FieldError::too_long(at, max));
    }

    pub(super) fn too_many(&mut self, at: &Path, actual: usize, max: usize) {
        self.0.push(FieldError::too_many(at, actual, max));
    }

    /// One complaint about the value for each broken rule.
    pub(super) fn rules(&mut self, at: &Path, value: &Value, broken: impl IntoIterator<Item = String>) {
        for detail in broken {
            self.invalid(at, value, detail);
        }
    }

    /// A complaint if a rule is broken.
    pub(super) fn rule(&mut self, at: &Path, value: &Value, outcome: Result<(), String>) {
        self.rules(at, value, outcome.err());
    }

    /// A text that must be there and be one of a set.
    pub(super) fn one_of(&mut self, at: &Path, value: &Value, supported: &[&str]) {
        match value.as_str().unwrap_or_default() {
            "" => self.required(at, ""),
            text if supported.contains(&text) => {}
            _ => self.unsupported(at, value, supported),
        }
    }

    /// A text that may be absent, but else must be one of a set.
    pub(super) fn optional_one_of(&mut self, at: &Path, value: &Value, supported: &[&str]) {
        if let Some(text) = value.as_str()
            && !supported.contains(&text)
        {
            self.unsupported(at, value, supported);
        }
    }

    /// A text that must not be empty.
    pub(super) fn need(&mut self, parent: &Value, field: &str, at: &Path) {
        if text(parent, field).is_empty() {
            self.required(&at.child(field), "");
        }
    }

    /// Numbers that may be absent, but not below zero.
    pub(super) fn not_negative(&mut self, parent: &Value, fields: &[&str], at: &Path) {
        for field in fields {
            if parent[*field].as_i64().is_some_and(|number| number < 0) {
                self.invalid(&at.child(field), &parent[*field], "must be greater than or equal to 0");
            }
        }
    }

    /// A field that must not change.
    pub(super) fn immutable(&mut self, at: &Path, new: &Value, old: &Value) {
        if !same(new, old) {
            self.invalid(at, new, "field is immutable");
        }
    }
}

/// Upstream's `Semantic.DeepEqual`: a field that is absent is as good as one that is null or an empty list, which a
/// Go client would not send back.
pub(in crate::resources) fn same(a: &Value, b: &Value) -> bool {
    let nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            left.iter().all(|(key, value)| same(value, right.get(key).unwrap_or(&Value::Null)))
                && right.iter().all(|(key, value)| left.contains_key(key) || nothing(value))
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same(l, r))
        }
        _ => (nothing(a) && nothing(b)) || a == b,
    }
}

/// The text of a field, or an empty one.
pub(super) fn text<'a>(parent: &'a Value, field: &str) -> &'a str {
    parent[field].as_str().unwrap_or_default()
}

/// The number of a field, or zero.
pub(super) fn number(parent: &Value, field: &str) -> i64 {
    parent[field].as_i64().unwrap_or_default()
}

/// True if the field is true.
pub(super) fn flag(parent: &Value, field: &str) -> bool {
    parent[field] == true
}

/// True if the field is there.
pub(super) fn set(parent: &Value, field: &str) -> bool {
    !parent[field].is_null()
}

/// Items of a list, or none.
pub(super) fn list<'a>(parent: &'a Value, field: &str) -> &'a [Value] {
    parent[field].as_array().map_or(&[], Vec::as_slice)
}

/// Items of a list with their paths.
pub(super) fn items<'a>(
    parent: &'a Value,
    field: &str,
    at: &Path,
) -> impl Iterator<Item = (Path, &'a Value)> + use<'a> {
    let at = at.child(field);
    list(parent, field).iter().enumerate().map(move |(i, item)| (at.index(i), item))
}

/// Entries of a map, or none.
pub(super) fn entries<'a>(parent: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    parent[field].as_object().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::same;
    use serde_json::{Value, json};

    #[test]
    fn sameness() {
        let check = |a: Value, b: Value, expected: bool| {
            assert_eq!(same(&a, &b), expected, "{a} {b}");
            assert_eq!(same(&b, &a), expected, "{b} {a}");
        };
        check(json!({"a": [], "b": null, "c": 1}), json!({"c": 1}), true);
        check(json!({"a": {"b": []}}), json!({"a": {}}), true);
        check(json!({"emptyDir": {}}), json!({}), false);
        check(json!([{"a": null}]), json!([{}]), true);
        check(json!([1]), json!([1, 2]), false);
    }
}
