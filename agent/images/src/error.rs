//! What can go wrong with an image.

use std::path::PathBuf;

use keelson_cri::CriError;

/// Why an image could not be pulled, imported, unpacked or found.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference can't be parsed.
    #[error("couldn't parse image name \"{reference}\": {reason}")]
    Reference { reference: String, reason: String },
    /// The registry refused or could not be reached.
    #[error("failed to pull image \"{reference}\": {reason}")]
    Pull { reference: String, reason: String },
    /// The registry wants other credentials, or none of this name can be seen with those given.
    #[error("failed to pull image \"{reference}\": {reason}")]
    Refused { reference: String, reason: String },
    /// Content does not have the digest or size that was asked for.
    #[error("{what}: expected {expected}, got {found}")]
    Mismatch { what: String, expected: String, found: String },
    /// A manifest, index or config is not what the OCI image specification says.
    #[error("{what} is malformed: {reason}")]
    Malformed { what: String, reason: String },
    /// A layer holds what may not be unpacked.
    #[error("layer entry \"{entry}\" refused: {reason}")]
    HostileEntry { entry: String, reason: String },
    /// The layer is larger than allowed.
    #[error("layer exceeds the limit of {limit} {unit}")]
    TooLarge { limit: u64, unit: &'static str },
    /// There is no such image on this node.
    #[error("image \"{0}\" is not present")]
    NotFound(String),
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// Reading a layer failed midway.
    #[error("read a layer: {0}")]
    Read(std::io::Error),
}

impl ImageError {
    /// Whether the content itself is at fault, and not the way to it.
    pub(crate) fn is_of_content(&self) -> bool {
        matches!(
            self,
            Self::Mismatch { .. }
                | Self::Malformed { .. }
                | Self::HostileEntry { .. }
                | Self::TooLarge { .. }
        )
    }

    /// Whether the disk has no room for it. What was unpacked so far then only makes that worse.
    pub(crate) fn is_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
    }

    /// An [`ImageError::Io`] maker for `map_err`.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl From<ImageError> for CriError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Reference { .. } => Self::InvalidImageName(error.to_string()),
            ImageError::NotFound(_) => Self::NotFound(error.to_string()),
            ImageError::Io { .. } => Self::Internal(error.to_string()),
            _ => Self::ImagePull(error.to_string()),
        }
    }
}
