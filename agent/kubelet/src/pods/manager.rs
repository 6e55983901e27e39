//! The door to the pods of this node: [`PodManager`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_cri::{ImageService, RuntimeService};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::observed::ObservedPod;

/// What the pod half of the kubelet must know of its node.
#[derive(Debug, Clone)]
pub struct PodManagerConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// Addresses of the node, the primary first: `status.hostIPs`.
    pub node_ips: Vec<IpAddr>,
    /// Root of the kubelet's state, `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// Root of pod logs, `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// Folder of the symlinks that log collectors follow, `/var/log/containers`.
    pub container_logs_dir: PathBuf,
    /// Addresses of the cluster's DNS service.
    pub cluster_dns: Vec<IpAddr>,
    /// Cluster domain, `cluster.local`.
    pub cluster_domain: String,
    /// The node's own resolver configuration, `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The node's own hosts file, `/etc/hosts`.
    pub etc_hosts: PathBuf,
    /// Top of the pods' cgroup tree, relative to the runtime's cgroup root: `kubepods`.
    pub cgroup_parent: String,
    /// Allocatable resources of the node: `cpu`, `memory`, `pods`, `ephemeral-storage`, `hugepages-…`.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Memory of the machine in bytes: the base of `oom_score_adj`.
    pub memory_capacity: u64,
}

impl PodManagerConfig {
    /// Upstream's paths and Keelson's default names for a node.
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips,
            root_dir: "/var/lib/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
            container_logs_dir: "/var/log/containers".into(),
            cluster_dns: vec![IpAddr::from([10, 96, 0, 10])],
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            etc_hosts: "/etc/hosts".into(),
            cgroup_parent: "kubepods".into(),
            allocatable: BTreeMap::new(),
            memory_capacity: 0,
        }
    }
}

/// One pod of this node, as readers see it.
struct PodEntry {
    pod: Arc<Pod>,
    observed: Arc<ObservedPod>,
}

/// All pods of this node: runs their workers, answers what the kubelet server asks.
pub struct PodManager {
    #[expect(dead_code, reason = "read by the workers")]
    config: PodManagerConfig,
    #[expect(dead_code, reason = "read by the workers")]
    client: kube::Client,
    #[expect(dead_code, reason = "read by the workers")]
    runtime: Arc<dyn RuntimeService>,
    #[expect(dead_code, reason = "read by the workers")]
    images: Arc<dyn ImageService>,
    /// By pod uid.
    table: RwLock<HashMap<String, PodEntry>>,
}

impl PodManager {
    /// Makes a manager that does nothing until [`PodManager::run`].
    pub fn new(
        config: PodManagerConfig,
        client: kube::Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
    ) -> Arc<Self> {
        Arc::new(Self { config, client, runtime, images, table: RwLock::default() })
    }

    /// Runs until `shutdown`. Pods are left as they are: the next run adopts them.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        shutdown.cancelled().await;
    }

    /// The pod of that name. When an old pod of the same name is still ending, the newer one.
    pub fn get_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let table = self.table.read();
        let same_name = table.values().map(|e| &e.pod).filter(|p| {
            p.metadata.namespace.as_deref() == Some(namespace) && p.metadata.name.as_deref() == Some(name)
        });
        same_name.max_by_key(|p| p.metadata.creation_timestamp.clone()).cloned()
    }

    /// All pods of this node.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.table.read().values().map(|e| e.pod.clone()).collect()
    }

    /// Id of a pod's container: the newest, or the one before it when `previous`.
    pub fn container_id(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<String> {
        self.with_container(pod_uid, container_name, previous, |c| c.id.clone())
    }

    /// Id of the pod's sandbox, when it is ready.
    pub fn sandbox_id(&self, pod_uid: &str) -> Option<String> {
        let table = self.table.read();
        table.get(pod_uid)?.observed.ready_sandbox().map(|s| s.id.clone())
    }

    /// Log file of a pod's container: of the newest, or of the one before it when `previous`.
    pub fn log_path(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<PathBuf> {
        self.with_container(pod_uid, container_name, previous, |c| c.log_path.clone())
    }

    fn with_container<T>(
        &self,
        pod_uid: &str,
        name: &str,
        previous: bool,
        f: impl FnOnce(&keelson_cri::ContainerStatus) -> T,
    ) -> Option<T> {
        let table = self.table.read();
        let observed = &table.get(pod_uid)?.observed;
        if previous { observed.previous(name) } else { observed.container(name) }.map(f)
    }
}
