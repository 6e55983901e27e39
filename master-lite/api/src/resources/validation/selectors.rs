//! Labels and label selectors.

use serde_json::Value;

use super::errors::{Errors, Path, entries, items, list, text};
use crate::resources::metadata::{label_value, qualified_name};

/// A map of labels.
pub(super) fn labels(errors: &mut Errors, parent: &Value, field: &str, at: &Path) {
    let at = at.child(field);
    for (key, value) in entries(parent, field) {
        errors.rule(&at, &key.as_str().into(), qualified_name(key));
        errors.rule(&at, value, label_value(value.as_str().unwrap_or_default()));
    }
}

/// A `metav1.LabelSelector`, if it is there.
pub(super) fn label_selector(errors: &mut Errors, selector: &Value, at: &Path) {
    labels(errors, selector, "matchLabels", at);
    for (at, expression) in items(selector, "matchExpressions", at) {
        let empty = list(expression, "values").is_empty();
        match text(expression, "operator") {
            "In" | "NotIn" if empty => {
                errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
            }
            "Exists" | "DoesNotExist" if !empty => errors.forbidden(
                &at.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid(
                &at.child("operator"),
                &expression["operator"],
                "not a valid selector operator",
            ),
        }
        errors.rule(&at.child("key"), &expression["key"], qualified_name(text(expression, "key")));
        for (at, value) in items(expression, "values", &at) {
            errors.rule(&at, value, label_value(value.as_str().unwrap_or_default()));
        }
    }
}

/// True if the selector has no condition at all.
pub(super) fn is_empty(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none() && list(selector, "matchExpressions").is_empty()
}

/// True if a well-formed selector selects the labels. A malformed one is complained of elsewhere.
pub(super) fn matches(selector: &Value, labels: &Value) -> bool {
    entries(selector, "matchLabels").all(|(key, value)| labels[key] == *value)
        && list(selector, "matchExpressions").iter().all(|expression| {
            let label = &labels[text(expression, "key")];
            let listed = list(expression, "values").contains(label);
            match text(expression, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => !label.is_null(),
                "DoesNotExist" => label.is_null(),
                _ => true,
            }
        })
}
