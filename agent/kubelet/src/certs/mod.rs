//! Certificates of the node, got and kept alive through the CertificateSigningRequest API, as kubelet does it.
//!
//! - [`join`] gives an API client with the node's own identity: from `kubelet.conf` when there is one, else by TLS
//!   bootstrapping with the token of the bootstrap kubeconfig.
//! - [`NodeIdentity::rotate`] renews the client certificate; the client goes on with the new one without a break.
//! - [`ServingCertificate`] is what the kubelet's HTTPS server shows; [`serving::maintain`] requests and renews it.
//!
//! Files are upstream's: `kubelet-client-current.pem` and `kubelet-server-current.pem` in the certificate folder.

mod client;
mod csr;
mod identity;
mod kubeconfig;
mod rotation;
pub mod serving;
mod store;
mod transport;

pub use client::{JoinOptions, NodeIdentity, join};
pub use csr::Template;
pub use identity::Identity;
pub(crate) use identity::{common_name, organizations};
pub use rotation::rotation_deadline;
pub use serving::ServingCertificate;
pub use store::CertificateStore;
pub use transport::Transport;

use std::path::PathBuf;

/// Why a certificate could not be got, kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the certificate folder or a kubeconfig could not be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A kubeconfig could not be parsed or has no usable context.
    #[error("load kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// A PEM file holds no usable certificate and key.
    #[error("no usable certificate and key in {origin}: {reason}")]
    Pem {
        /// Where the PEM text came from.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Making a key or a signing request failed.
    #[error("make certificate signing request")]
    Generate(#[from] rcgen::Error),
    /// The API refused a call.
    #[error("{action}")]
    Api {
        /// Which call.
        action: String,
        /// The client's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// The signing request got the condition Denied or Failed.
    #[error("certificate signing request {name} was {condition}: {reason} {message}")]
    Refused {
        /// Its name.
        name: String,
        /// `denied` or `failed`.
        condition: &'static str,
        /// Reason of the condition.
        reason: String,
        /// Message of the condition.
        message: String,
    },
    /// Nobody approved and signed the request in time.
    #[error("certificate signing request {0} was not issued in time")]
    NotIssued(String),
    /// There is neither a valid client certificate nor a bootstrap kubeconfig.
    #[error(
        "no valid client certificate for {node} and no bootstrap kubeconfig: give --bootstrap-kubeconfig or --kubeconfig"
    )]
    NoCredentials {
        /// The node's name.
        node: String,
    },
}

impl Error {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self::Api { action, source: Box::new(source) }
    }
}

/// Shorthand for results of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;
