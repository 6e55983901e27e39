//! The error document that a plugin prints (specification section 5, "Error").

use serde::{Deserialize, Serialize};

use super::version::Version;
use crate::error::Error;

/// A structured error as it goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorReport {
    /// Protocol version in use.
    #[serde(default)]
    pub cni_version: String,
    /// Code of the specification, or 100 and above for the plugin's own.
    pub code: u32,
    /// Short message.
    pub msg: String,
    /// Longer message.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl ErrorReport {
    /// The document for `error`, in the version the caller asked for.
    pub fn new(error: &Error, version: Version) -> ErrorReport {
        ErrorReport {
            cni_version: version.to_string(),
            code: error.code(),
            msg: error.title().to_owned(),
            details: error.to_string(),
        }
    }
}
