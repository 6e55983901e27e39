//! What all pod workers share.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use keelson_cri::{ImageService, RuntimeService};
use kube::runtime::reflector::Store;

use super::manager::PodManagerConfig;
use super::podext::PodExt;
use super::pull::Puller;
use super::resize::allocate::Allocations;
use crate::clock::Clock;
use crate::env::fieldref::Addresses;
use crate::events::EventRecorder;
use crate::objects::ObjectCache;
use crate::probes::Reach;
use crate::volumes::mounter::Mounter;

/// Shared by the workers of all pods.
pub struct Context {
    /// The node.
    pub config: PodManagerConfig,
    /// The API.
    pub client: kube::Client,
    /// Sandboxes and containers.
    pub runtime: Arc<dyn RuntimeService>,
    /// Images.
    pub images: Arc<dyn ImageService>,
    /// Events.
    pub events: EventRecorder,
    /// ConfigMaps and Secrets.
    pub objects: Arc<ObjectCache>,
    /// All Services, once they have been listed.
    pub services: Store<Service>,
    /// Image pulls with their back-off.
    pub puller: Puller,
    /// The node's resources.
    pub allocations: Allocations,
    /// Mounts.
    pub mounter: Arc<dyn Mounter>,
    /// Time.
    pub clock: Clock,
    /// Whether pods can be asked over the network.
    pub reach: Reach,
}

impl Context {
    /// `/var/lib/kubelet/pods/<uid>`.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.root_dir.join("pods").join(uid)
    }

    /// `/var/log/pods/<namespace>_<name>_<uid>`.
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.config.pod_logs_dir.join(format!("{namespace}_{name}_{uid}"))
    }

    /// Addresses that the downward API shows.
    pub fn addresses(&self, pod: &Pod, sandbox_ips: &[IpAddr]) -> Addresses {
        let host_ips = self.config.node_ips.clone();
        let pod_ips = if pod.host_network() { host_ips.clone() } else { sandbox_ips.to_vec() };
        Addresses { pod_ips, host_ips }
    }
}
