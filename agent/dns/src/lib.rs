//! keelson-dns: the cluster's DNS, answered on every node (Kubernetes DNS-Based Service Discovery 1.1.0).
//!
//! - [`zone`]: what there is to answer, built from Services and EndpointSlices. Pure;
//! - [`respond`]: what to do with a query. Pure;
//! - [`forward`]: names outside the cluster, asked of the host's name servers;
//! - [`server`]: sockets; [`watch`]: the API's changes into the zone.
//!
//! Every byte that comes in is hostile: a query never makes this crate panic, never makes it answer more
//! than the asker's limit, and never occupies more than a bounded share of memory or sockets.

pub mod config;
pub mod forward;
pub mod respond;
pub mod server;
pub mod watch;
pub mod zone;

use std::sync::Arc;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

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
}

/// An empty zone for `config`'s domain. Queries for it are answered SERVFAIL until a watcher has filled it.
///
/// # Errors
/// [`DnsError::InvalidDomain`].
pub fn new_zone(config: &DnsConfig) -> Result<SharedZone, DnsError> {
    Ok(Arc::new(RwLock::new(Zone::new(config)?)))
}

/// Serves cluster DNS on `config.listen` until `shutdown`, watching Services and EndpointSlices through
/// `client`.
///
/// # Errors
/// [`DnsError`] when it cannot start; once started, it serves until it is told to stop.
pub async fn run(
    client: kube::Client,
    config: DnsConfig,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    let sockets = Sockets::bind(&config.listen, config.sockets_per_address)?;
    run_on(client, config, sockets, shutdown).await
}

/// Like [`run`], on sockets that exist already: those that a holder kept across a restart.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    client: kube::Client,
    config: DnsConfig,
    sockets: Sockets,
    shutdown: CancellationToken,
) -> Result<(), DnsError> {
    let zone = new_zone(&config)?;
    let watching = watch::run(client, Arc::clone(&zone), shutdown.clone());
    let serving = server::serve(zone, config, sockets, shutdown.clone());
    let ((), served) = tokio::join!(watching, async {
        let served = serving.await;
        // Without sockets there is nothing to watch for.
        shutdown.cancel();
        served
    });
    served
}
