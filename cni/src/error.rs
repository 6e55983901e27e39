//! The error of every operation here, with the numeric code that the CNI specification gives it.

use std::io;

/// What went wrong in a CNI operation. [`Error::code`] maps each kind to the code of the specification's
/// "Error" section; plugin-specific kinds use 100 and above.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for a protocol version that is not spoken here (code 1).
    #[error("incompatible CNI versions: config is {config:?}, plugin supports {supported:?}")]
    IncompatibleVersion {
        /// The version in the configuration.
        config: String,
        /// The versions spoken here.
        supported: Vec<String>,
    },
    /// A field of the network configuration is not supported (code 2).
    #[error("unsupported field {key:?} with value {value}")]
    UnsupportedField {
        /// Path of the key inside the configuration.
        key: String,
        /// Its value as JSON, cut short when it is long.
        value: String,
    },
    /// The container's network namespace does not exist (code 3).
    #[error("network namespace {netns:?} of the container does not exist")]
    UnknownContainer {
        /// The path given as CNI_NETNS.
        netns: String,
    },
    /// An environment variable is missing or malformed (code 4).
    #[error("invalid environment variable {variable}: {reason}")]
    InvalidEnvironment {
        /// Name or names of the variables.
        variable: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing failed (code 5).
    #[error("{what}: {source}")]
    Io {
        /// The operation and its path.
        what: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// JSON could not be decoded (code 6).
    #[error("cannot decode {what}: {source}")]
    Decode {
        /// Which document.
        what: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The network configuration is well-formed but not acceptable (code 7).
    #[error("invalid network configuration: {0}")]
    InvalidConfig(String),
    /// A condition that should clear up (code 11).
    #[error("{0}, try again later")]
    TryAgain(String),
    /// The plugin cannot serve ADD (code 50).
    #[error("plugin is not available: {0}")]
    Unavailable(String),
    /// The kernel refused a route netlink request (code 100).
    #[error("{what}: {reason}")]
    Netlink {
        /// The operation and the link or address it was for.
        what: String,
        /// The kernel's answer.
        reason: String,
        /// The positive errno, 0 when the failure was not the kernel's.
        errno: i32,
    },
    /// The kernel refused an nftables request (code 101).
    #[error("nftables: {what}: {source}")]
    Netfilter {
        /// The operation.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No address is free (code 102).
    #[error("no IP addresses available in range {range} of network {network:?}")]
    Exhausted {
        /// The network's name.
        network: String,
        /// The range in CIDR notation.
        range: String,
    },
    /// The interface exists in the container already (code 103).
    #[error("interface {ifname:?} already exists in network namespace {netns:?}")]
    InterfaceExists {
        /// CNI_IFNAME.
        ifname: String,
        /// CNI_NETNS.
        netns: String,
    },
    /// CHECK found the attachment damaged (code 104).
    #[error("check failed: {0}")]
    CheckFailed(String),
    /// Several independent failures of a teardown that went on regardless; the code is the first one's.
    #[error("{}", join(.0))]
    Several(Vec<Error>),
}

/// Shorthand for results of this crate's plugin side.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error with its context.
    pub fn io(what: impl Into<String>, source: io::Error) -> Error {
        Error::Io { what: what.into(), source }
    }

    /// The numeric code of the specification's "Error" section.
    pub fn code(&self) -> u32 {
        match self {
            Error::IncompatibleVersion { .. } => 1,
            Error::UnsupportedField { .. } => 2,
            Error::UnknownContainer { .. } => 3,
            Error::InvalidEnvironment { .. } => 4,
            Error::Io { .. } => 5,
            Error::Decode { .. } => 6,
            Error::InvalidConfig(_) => 7,
            Error::TryAgain(_) => 11,
            Error::Unavailable(_) => 50,
            Error::Netlink { .. } => 100,
            Error::Netfilter { .. } => 101,
            Error::Exhausted { .. } => 102,
            Error::InterfaceExists { .. } => 103,
            Error::CheckFailed(_) => 104,
            Error::Several(errors) => errors.first().map_or(999, Error::code),
        }
    }

    /// The short message that goes with the code; the error's own text goes into `details`.
    pub fn title(&self) -> &'static str {
        match self {
            Error::IncompatibleVersion { .. } => "incompatible CNI versions",
            Error::UnsupportedField { .. } => "unsupported field in network configuration",
            Error::UnknownContainer { .. } => "container unknown or does not exist",
            Error::InvalidEnvironment { .. } => "invalid necessary environment variables",
            Error::Io { .. } => "I/O failure",
            Error::Decode { .. } => "failed to decode content",
            Error::InvalidConfig(_) => "invalid network config",
            Error::TryAgain(_) => "try again later",
            Error::Unavailable(_) => "plugin is not available",
            Error::Netlink { .. } => "network configuration failed",
            Error::Netfilter { .. } => "nftables configuration failed",
            Error::Exhausted { .. } => "no IP addresses available",
            Error::InterfaceExists { .. } => "interface already exists",
            Error::CheckFailed(_) => "attachment is not as expected",
            Error::Several(_) => "several operations failed",
        }
    }

    /// Folds the failures of a best-effort sequence into one result.
    pub(crate) fn collect(mut errors: Vec<Error>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
