//! The kubelet's HTTPS API on port 10250: logs, exec, attach, port-forward, stats, metrics, and `CONNECT` to pods.
//!
//! Each connection may show a client certificate of the cluster's CA; each request is authenticated by it or by a
//! bearer token, and authorized by a SubjectAccessReview on `nodes/<subresource>` ([`auth`]). Nobody is anonymous.
//!
//! [`serve`] runs it, [`serve_healthz`] the unauthenticated `/healthz` on the loopback.

mod answer;
pub mod auth;
mod connect;
#[cfg(fuzzing)]
pub mod fuzzing;
mod logs;
mod metrics;
mod routes;
mod spdy;
mod stats;
mod stream;
mod tls;

pub use auth::{AccessReview, ApiReviews};
pub use tls::{serve, serve_healthz};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::RuntimeService;

use crate::pods::PodManager;

/// The pods of this node, as the server asks for them.
pub trait PodSource: Send + Sync {
    /// All pods.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// The pod of that name.
    fn get_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
    /// Id of a pod's container: the newest, or the one before it.
    fn container_id(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<String>;
    /// Id of the pod's sandbox, when it is ready.
    fn sandbox_id(&self, pod_uid: &str) -> Option<String>;
    /// Log file of a container: of the newest, or of the one before it.
    fn log_path(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<PathBuf>;
}

impl PodSource for PodManager {
    fn pods(&self) -> Vec<Arc<Pod>> {
        Self::pods(self)
    }

    fn get_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        Self::get_pod(self, namespace, name)
    }

    fn container_id(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<String> {
        Self::container_id(self, pod_uid, container_name, previous)
    }

    fn sandbox_id(&self, pod_uid: &str) -> Option<String> {
        Self::sandbox_id(self, pod_uid)
    }

    fn log_path(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<PathBuf> {
        Self::log_path(self, pod_uid, container_name, previous)
    }
}

/// What the server must know.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name of the Node: the object that requests are authorized on.
    pub node_name: String,
    /// Folder whose filesystem is "nodefs" in the stats.
    pub root_dir: PathBuf,
    /// A stream that carries nothing for so long is closed: kubelet's streamingConnectionIdleTimeout.
    pub streaming_idle: Duration,
    /// Connections at a time; more wait.
    pub max_connections: usize,
    /// What `/configz` shows as `kubeletconfig`.
    pub configz: serde_json::Value,
}

impl ServerConfig {
    /// Upstream's defaults.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            root_dir: "/var/lib/kubelet".into(),
            streaming_idle: Duration::from_secs(4 * 3600),
            max_connections: 1024,
            configz: serde_json::json!({}),
        }
    }
}

/// All that requests are answered from.
pub struct Backend {
    /// Settings.
    pub config: ServerConfig,
    /// Pods.
    pub pods: Arc<dyn PodSource>,
    /// Containers.
    pub runtime: Arc<dyn RuntimeService>,
    /// Who may do what.
    pub reviews: Arc<dyn AccessReview>,
}
