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
//! [`fleet`] makes the nodes, [`connections`] lets many of them share an HTTP/2 connection, each as its own user.

pub mod config;
pub mod connections;
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
    /// No client can be made of the kubeconfig.
    #[error("make a client of the kubeconfig: {0}")]
    Client(#[source] kube::Error),
    /// No name of a user can be made of a node's name.
    #[error("a node can't be named {0:?}")]
    Name(String),
    /// The folder of the nodes' files can't be made.
    #[error("make a folder for the nodes' files")]
    Folder(#[source] std::io::Error),
}
