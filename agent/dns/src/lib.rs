//! keelson-dns: the cluster's DNS, answered on every node (Kubernetes DNS-Based Service Discovery 1.1.0).
//!
//! - [`zone`]: what there is to answer, built from Services and EndpointSlices. Pure;
//! - [`respond`]: what to do with a query. Pure;
//! - [`forward`]: names outside the cluster, asked of the host's name servers;
//! - [`server`]: sockets; [`watch`]: the API's changes of the zone;
//! - [`worker`]: the unprivileged process in which all this runs but the watch, so that it outlives the agent.
//!
//! Every byte that comes in is hostile: a query never makes this crate panic, never makes it answer more
//! than the asker's limit, and never occupies more than a bounded share of memory or sockets.

pub mod config;
pub mod forward;
pub mod respond;
pub mod server;
pub mod watch;
pub mod worker;
pub mod zone;

use std::sync::Arc;

use parking_lot::RwLock;

pub use config::{DnsConfig, Upstreams};
pub use server::Sockets;
pub use zone::Zone;

/// A zone that a watcher changes while servers read it.
pub type SharedZone = Arc<RwLock<Zone>>;

/// Why DNS could not be served.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The configured domain is no domain name.
    #[error("invalid cluster domain {domain:?}")]
    InvalidDomain {
        /// The domain given.
        domain: String,
    },
    /// A socket could not be made.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A socket that was handed over could not be used.
    #[error("cannot use socket: {0}")]
    Socket(std::io::Error),
    /// The worker can't be started, or can't go on.
    #[error("DNS worker: {0}")]
    Worker(std::io::Error),
}
