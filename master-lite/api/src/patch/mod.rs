//! Patches: JSON patch (RFC 6902), JSON merge patch (RFC 7386) and Kubernetes' strategic merge patch.

mod json;
mod strategic;

pub use json::{json_patch, merge_patch};
pub use strategic::{strategic, strategic_with};

use serde_json::Value;

/// A patch that can't be applied. [`PatchError::status`] is the HTTP status upstream answers with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well-formed but does not fit the object.
    #[error("{0}")]
    DoesNotApply(String),
    /// One of its tests says that it is not to be applied.
    #[error("{0}")]
    TestFailed(String),
    /// The patch has more operations than allowed.
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// Upstream has no class for this and answers 500 with the bare message.
    #[error("{0}")]
    Unclassified(String),
}

/// Most operations that one JSON patch may hold; upstream's limit.
pub const MAX_OPERATIONS: usize = 10_000;

impl PatchError {
    /// HTTP status code.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::TooManyOperations(_) => 413,
            Self::DoesNotApply(_) | Self::TestFailed(_) => 422,
            Self::Unclassified(_) => 500,
        }
    }
}

/// Prints a value as Go's `%v` does, which is what upstream's messages hold.
pub(crate) fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let mut entries: Vec<_> = fields.iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect();
            entries.sort();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}
