//! Errors that name a field, in upstream's words (`k8s.io/apimachinery/pkg/util/validation/field`).
//!
//! A list of these becomes the message and the `details.causes` of a 422 `Invalid` Status.

use std::fmt;

/// What is wrong with a field. The `reason` strings are those of `metav1.StatusCause`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// A field that must be set is not.
    Required,
    /// The value has the right type but may not be used.
    Invalid,
    /// The value is not one of a closed set.
    NotSupported,
    /// The value is valid somewhere, but not here and now.
    Forbidden,
    /// Two entries of a list or map that must differ do not.
    Duplicate,
    /// A reference to something that is not there.
    NotFound,
    /// The value is longer than allowed.
    TooLong,
    /// The list has more items than allowed.
    TooMany,
    /// The value has the wrong JSON type.
    TypeInvalid,
    /// The server failed while it checked the field.
    Internal,
}

impl ErrorType {
    /// The `reason` of a `metav1.StatusCause`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One complaint about one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Kind of complaint.
    pub kind: ErrorType,
    /// Path as upstream writes it: `spec.containers[0].image`, `metadata.labels`.
    pub field: String,
    /// The offending value as it is printed (strings quoted, the rest as JSON); `None` where upstream shows none.
    pub value: Option<String>,
    /// The sentence after the value; may be empty.
    pub detail: String,
}

impl FieldError {
    /// `field: Required value[: detail]`.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Required, field: field.into(), value: None, detail: detail.into() }
    }

    /// `field: Invalid value: <value>: detail`.
    pub fn invalid(field: impl Into<String>, value: &serde_json::Value, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::Invalid,
            field: field.into(),
            value: Some(print_value(value)),
            detail: detail.into(),
        }
    }

    /// `field: Unsupported value: <value>: supported values: "a", "b"`, in the order given.
    pub fn not_supported(field: impl Into<String>, value: &serde_json::Value, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        Self {
            kind: ErrorType::NotSupported,
            field: field.into(),
            value: Some(print_value(value)),
            detail: format!("supported values: {}", quoted.join(", ")),
        }
    }

    /// `field: Forbidden: detail`.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: ErrorType::Forbidden, field: field.into(), value: None, detail: detail.into() }
    }

    /// `field: Duplicate value: <value>`.
    pub fn duplicate(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self {
            kind: ErrorType::Duplicate,
            field: field.into(),
            value: Some(print_value(value)),
            detail: String::new(),
        }
    }

    /// `field: Not found: <value>[: detail]`.
    pub fn not_found(field: impl Into<String>, value: &serde_json::Value, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::NotFound,
            field: field.into(),
            value: Some(print_value(value)),
            detail: detail.into(),
        }
    }

    /// `field: Too many: <actual>: must have at most <max> items`.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self {
            kind: ErrorType::TooMany,
            field: field.into(),
            value: Some(actual.to_string()),
            detail: format!("must have at most {max} {items}"),
        }
    }

    /// `field: Too long: may not be more than <max> bytes`.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self {
            kind: ErrorType::TooLong,
            field: field.into(),
            value: None,
            detail: format!("may not be more than {max} bytes"),
        }
    }

    /// The message without the field's path, as `details.causes[].message` carries it.
    pub fn body(&self) -> String {
        let mut out = self.kind.words().to_owned();
        if let Some(value) = &self.value {
            out.push_str(": ");
            out.push_str(value);
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

fn print_value(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(s) => format!("{s:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn words_are_upstreams() {
        let cases = [
            (FieldError::required("metadata.name", ""), "metadata.name: Required value"),
            (
                FieldError::invalid("spec.replicas", &json!(-1), "must be greater than or equal to 0"),
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            ),
            (
                FieldError::not_supported("spec.type", &json!("X"), &["ClusterIP", "NodePort"]),
                "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"NodePort\"",
            ),
            (FieldError::duplicate("a[1]", &json!("x")), "a[1]: Duplicate value: \"x\""),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
