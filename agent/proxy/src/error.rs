//! What can go wrong between Services and the kernel.

use std::path::PathBuf;

/// Why the proxy could not start or apply a change.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The object did not load; with the verifier's log when it refused a program.
    #[error("load the BPF object: {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program or map that this version needs is not in the object.
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    /// A program was refused or could not be attached.
    #[error("{action} the BPF program {name}: {source}")]
    Program { action: &'static str, name: &'static str, source: Box<aya::programs::ProgramError> },
    /// A map could not be read or written.
    #[error("{action} the BPF map {name}: {source}")]
    Map { action: &'static str, name: &'static str, source: Box<aya::maps::MapError> },
    /// A link could not be pinned.
    #[error("pin {path}: {source}")]
    Pin { path: PathBuf, source: Box<aya::pin::PinError> },
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}
