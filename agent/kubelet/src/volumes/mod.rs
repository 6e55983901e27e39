//! Volumes of a pod: folders on the node that containers mount.
//!
//! - [`payload`] computes, purely, which files a configMap, secret, projected or downwardAPI volume holds.
//! - [`atomic_writer`] puts them on disk so that a reader never sees half of an update.
//! - [`setup`] prepares every volume of a pod and takes it down again.
//! - [`subpath`] opens `subPath`s without being led out of the volume.
//! - [`mounter`] is the only part that mounts.

pub mod atomic_writer;
pub mod host_path;
pub mod mounter;
pub mod ownership;
pub mod payload;
pub mod setup;
pub mod subpath;
pub mod token;

/// Why a volume could not be prepared; the text goes into a `FailedMount` event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The volume can't be set up now; it is tried again.
    #[error("{0}")]
    Retry(String),
    /// This node does not support what the volume asks for.
    #[error("{0}")]
    Unsupported(String),
    /// An operation on the node failed.
    #[error("{what}: {reason}")]
    Io {
        /// What was done, with its path.
        what: String,
        /// The error, as text, since errors are kept and compared.
        reason: String,
    },
}

impl VolumeError {
    /// For `map_err` on IO.
    pub fn io<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |e| Self::Io { what, reason: e.to_string() }
    }
}
