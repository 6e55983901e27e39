//! The door to the pods of this node: [`PodManager`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_cri::{ImageService, RuntimeService};
use kube::runtime::reflector::{self, Store, store::Writer};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::log_rotation::{self, LogPolicy};
use super::pull::Puller;
use super::qos_tree;
use super::resize::allocate::Allocations;
use super::source;
use super::table::PodTable;
use crate::clock::Clock;
use crate::events::{self, EventSink};
use crate::objects::ObjectCache;
use crate::probes::Reach;
use crate::volumes::mounter::{HostMounter, Mounter};

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
    /// Extended resources of the node: others may give it some at any time.
    pub extended_resources: watch::Receiver<BTreeMap<String, Quantity>>,
    /// Memory of the machine in bytes: the base of `oom_score_adj`.
    pub memory_capacity: u64,
    /// Most process ids of the machine: what all pods together may have.
    pub pid_capacity: Option<u64>,
    /// Most processes of each pod (`podPidsLimit`).
    pub pod_pids_limit: Option<i64>,
    /// Whether the kernel has SELinux enabled.
    pub selinux: bool,
    /// What a container's log may take of the disk.
    pub logs: LogPolicy,
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
            extended_resources: watch::Sender::default().subscribe(),
            memory_capacity: 0,
            pid_capacity: None,
            pod_pids_limit: None,
            selinux: false,
            logs: LogPolicy::default(),
        }
    }
}

/// What else the pods of a node stand on; the default is the machine itself.
pub struct PodManagerParts {
    /// Mounts.
    pub mounter: Arc<dyn Mounter>,
    /// Time.
    pub clock: Clock,
    /// Whether pods can be asked over the network.
    pub reach: Reach,
    /// Services that somebody else follows ([`follow_services`](super::follow_services)), for several nodes at once;
    /// none: this node follows its own.
    pub services: Option<Store<Service>>,
}

impl Default for PodManagerParts {
    fn default() -> Self {
        Self { mounter: Arc::new(HostMounter), clock: Clock::System, reach: Reach::Network, services: None }
    }
}

/// All pods of this node: runs their workers, answers what the kubelet server asks.
pub struct PodManager {
    ctx: Arc<Context>,
    table: Arc<PodTable>,
    /// Taken by the first [`PodManager::run`].
    starter: Mutex<Option<(EventSink, Option<Writer<Service>>)>>,
}

impl PodManager {
    /// Makes a manager that does nothing until [`PodManager::run`].
    pub fn new(
        config: PodManagerConfig,
        client: kube::Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
    ) -> Arc<Self> {
        Self::with_parts(config, client, runtime, images, PodManagerParts::default())
    }

    /// As [`PodManager::new`], with parts of the caller.
    pub fn with_parts(
        config: PodManagerConfig,
        client: kube::Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
        parts: PodManagerParts,
    ) -> Arc<Self> {
        let PodManagerParts { mounter, clock, reach, services } = parts;
        let (events, sink) = events::channel(client.clone(), &config.node_name);
        let (services, writer) = match services {
            Some(services) => (services, None),
            None => {
                let (services, writer) = reflector::store();
                (services, Some(writer))
            }
        };
        let ctx = Context {
            objects: ObjectCache::new(client.clone()),
            puller: Puller::new(clock),
            allocations: Allocations::new(config.allocatable.clone(), config.extended_resources.clone()),
            config,
            client,
            runtime,
            images,
            events,
            services,
            mounter,
            clock,
            reach,
        };
        let starter = Mutex::new(Some((sink, writer)));
        Arc::new(Self { ctx: Arc::new(ctx), table: Arc::default(), starter })
    }

    /// Runs until `shutdown`. Pods are left as they are: the next run adopts them. A second call returns at once.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let Some((sink, writer)) = self.starter.lock().take() else { return };
        let services = async {
            if let Some(writer) = writer {
                source::follow_services(self.ctx.client.clone(), writer, shutdown.clone()).await;
            }
        };
        tokio::join!(
            sink.run(shutdown.clone()),
            services,
            qos_tree::keep(self.ctx.clone(), self.table.clone(), shutdown.clone()),
            log_rotation::keep(
                self.ctx.runtime.clone(),
                self.ctx.config.logs,
                self.ctx.clock,
                shutdown.clone()
            ),
            source::follow_pods(self.ctx.clone(), self.table.clone(), shutdown.clone()),
        );
    }

    /// The pod of that name. When an old pod of the same name is still ending, the newer one.
    pub fn get_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.table.by_name(namespace, name)
    }

    /// All pods of this node.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.table.pods()
    }

    /// Id of a pod's container: the newest, or the one before it when `previous`.
    pub fn container_id(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<String> {
        self.table.container(pod_uid, container_name, previous, |c| c.id.clone())
    }

    /// Id of the pod's sandbox, when it is ready.
    pub fn sandbox_id(&self, pod_uid: &str) -> Option<String> {
        self.table.sandbox_id(pod_uid)
    }

    /// Log file of a pod's container: of the newest, or of the one before it when `previous`.
    pub fn log_path(&self, pod_uid: &str, container_name: &str, previous: bool) -> Option<PathBuf> {
        self.table.log_path(pod_uid, container_name, previous)
    }
}
