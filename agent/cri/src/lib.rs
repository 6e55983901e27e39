//! The seam between the kubelet and everything that makes pods: traits and plain types shaped like the Kubernetes
//! Container Runtime Interface (CRI, `runtime.v1`), without its gRPC encoding.
//!
//! - [`RuntimeService`] and [`ImageService`] are what the kubelet sees; `keelson-runtime` and `keelson-images`
//!   implement them.
//! - [`PodNetwork`] and [`ImageRootfs`] are what the runtime sees of the network and of the image store; the agent
//!   binary wires them to `keelson-cni` and `keelson-images`.
//!
//! [`phase`] is how both sides say where the time of a pod's start goes.
//!
//! Names follow CRI's messages; durations are [`std::time::Duration`], times are [`std::time::SystemTime`].

mod causes;
mod image;
mod network;
pub mod phase;
mod runtime;

pub use causes::chain;
pub use image::*;
pub use network::*;
pub use runtime::*;

/// Why a call across this seam failed. The text is shown to users in events, so it says what to do next.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CriError {
    /// The sandbox, container or image is not there (gRPC NotFound).
    #[error("{0} not found")]
    NotFound(String),
    /// The request itself can't be honoured here: a field that this runtime refuses (gRPC InvalidArgument).
    #[error("{0}")]
    Invalid(String),
    /// The object is in a state in which the call makes no sense, such as exec in an exited container.
    #[error("{0}")]
    FailedPrecondition(String),
    /// Pulling the image failed: the registry refused or could not be reached, or its content was wrong.
    /// Kubelet's reason `ErrImagePull`.
    #[error("{0}")]
    ImagePull(String),
    /// The image is not present and its pull policy is `Never` (kubelet's reason `ErrImageNeverPull`), or the
    /// reference can't be parsed (`InvalidImageName`).
    #[error("{0}")]
    InvalidImageName(String),
    /// Anything else, with its context.
    #[error("{0}")]
    Internal(String),
}

/// Shorthand for results across this seam.
pub type Result<T, E = CriError> = std::result::Result<T, E>;
