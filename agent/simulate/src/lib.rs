//! keelson-simulate: nodes without a machine, for measuring and testing a control plane (`keelson-agent simulate`).
//!
//! Each node is the kubelet of `keelson-kubelet`, whole: it registers, renews its lease, follows its pods, runs their workers,
//! sets up their volumes and writes their status. Only what is below the runtime seam (`keelson-cri`) is replaced:
//! [`runtime`] keeps a container as no more than the times at which it was started and ended, [`images`] has every
//! image, [`mounter`] mounts nothing. Probes and hooks over the network succeed without a packet
//! ([`Reach::Nobody`](keelson_kubelet::probes::Reach)); exec probes and hooks succeed too.
//!
//! What a simulated node has not: the kubelet's API (no logs, exec, attach, port-forward), a service proxy, DNS, routes, and
//! memory of its pods: when the process ends and starts again, they are started anew, as after a reboot.
//!
//! [`fleet`] makes the nodes. They share HTTP/2 connections, and each acts as its own user (`Impersonate-User:
//! system:node:NAME`), so that what a node may do is decided as for a real one.

pub mod config;
pub mod fleet;
pub mod images;
pub mod mounter;
pub mod plan;
pub mod runtime;

pub use config::Config;
pub use fleet::run;
pub use plan::Plan;

/// Why nodes can't be simulated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig can't be read or used.
    #[error("kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// No client can be made of the kubeconfig, or of a node's name.
    #[error("make a client of the kubeconfig")]
    Client(#[from] keelson_kubelet::certs::Error),
    /// The folder of the nodes' files can't be made.
    #[error("make a folder for the nodes' files")]
    Folder(#[source] std::io::Error),
}
