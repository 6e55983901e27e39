//! The Node object: registration, status, conditions, heartbeats.
//!
//! [`NodeManager::run`] registers the node, then keeps three things going: the status (10 s to look, 5 min to report
//! when nothing changed, at once when something did), the Lease in `kube-node-lease` (10 s) and a watch of the node's own object,
//! whose `spec` the pod network waits for ([`NodeManager::spec`]).

mod capacity;
mod conditions;
mod events;
mod flags;
mod lease;
mod machine;
mod object;
mod pressure;
mod status;

pub use capacity::{Capacity, is_extended};
pub use conditions::{CGROUP_CONTROLLERS_MISSING, Observation};
pub use events::{EventSeverity, NodeEvents};
pub use flags::{FlagError, parse_duration, parse_labels, parse_taints};
pub use machine::{MachineInfo, MachinePaths};
pub use pressure::{Pressures, Thresholds, pid_capacity};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_cri::{ImageService, RuntimeService};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Version that the node reports: `status.nodeInfo.kubeletVersion`.
pub const KUBELET_VERSION: &str = "v1.36.0+keelson";
/// `status.nodeInfo.containerRuntimeVersion`.
pub const CONTAINER_RUNTIME_VERSION: &str = concat!("keelson://", env!("CARGO_PKG_VERSION"));

/// Deadline of one API call of this module.
const CALL: Duration = Duration::from_secs(10);
/// How often the status is looked at: upstream's nodeStatusUpdateFrequency.
const LOOK: Duration = Duration::from_secs(10);
/// The same until the node was Ready once: a new node shouldn't wait 10 s for its first pod.
const LOOK_UNTIL_READY: Duration = Duration::from_millis(200);
/// How often an unchanged status is reported: upstream's nodeStatusReportFrequency.
const REPORT: Duration = Duration::from_secs(300);

/// What the node half of the kubelet must know.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// `metadata.name`: `--hostname-override`, or the host's name in lower case.
    pub name: String,
    /// The host's name: address of type Hostname and label `kubernetes.io/hostname`.
    pub hostname: String,
    /// Addresses of type InternalIP, the primary first.
    pub addresses: Vec<IpAddr>,
    /// `--node-labels`.
    pub labels: BTreeMap<String, String>,
    /// `--register-with-taints`, put on the node when it is made.
    pub taints: Vec<Taint>,
    /// `--max-pods`.
    pub max_pods: u32,
    /// Port of the kubelet's HTTPS server: `status.daemonEndpoints`.
    pub kubelet_port: u16,
    /// Folder whose filesystem is "nodefs": `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// `--eviction-hard`.
    pub eviction_hard: Thresholds,
    /// Where to read the machine's facts.
    pub machine: MachinePaths,
}

impl NodeConfig {
    /// Upstream's defaults for a node of that name.
    pub fn new(name: impl Into<String>, addresses: Vec<IpAddr>) -> Self {
        let name = name.into();
        Self {
            hostname: name.clone(),
            name,
            addresses,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            max_pods: 110,
            kubelet_port: 10250,
            root_dir: "/var/lib/kubelet".into(),
            eviction_hard: Thresholds::default(),
            machine: MachinePaths::default(),
        }
    }
}

/// Why a node fact could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of /proc, /sys or /etc could not be read or understood.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The size of a filesystem could not be asked.
    #[error("statvfs {path}")]
    Filesystem {
        /// Some path on it.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: nix::Error,
    },
}

/// Registers the node and keeps its object true.
pub struct NodeManager {
    config: NodeConfig,
    client: kube::Client,
    runtime: Arc<dyn RuntimeService>,
    images: Arc<dyn ImageService>,
    machine: MachineInfo,
    capacity: Capacity,
    events: NodeEvents,
    /// The newest object that the API showed.
    node: watch::Sender<Option<Arc<Node>>>,
    spec: watch::Sender<NodeSpec>,
    extended: watch::Sender<BTreeMap<String, Quantity>>,
    poke: Notify,
}

impl NodeManager {
    /// Reads the machine's facts. Nothing is sent before [`NodeManager::run`].
    pub fn new(
        config: NodeConfig,
        client: kube::Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
    ) -> Result<Arc<Self>, Error> {
        let machine = MachineInfo::read(&config.machine)?;
        let nodefs = pressure::Filesystem::of(&config.root_dir)?.capacity;
        Ok(Self::of_machine(config, machine, nodefs, client, runtime, images))
    }

    /// As [`NodeManager::new`], of a machine that the caller describes, with `nodefs` bytes of disk.
    pub fn of_machine(
        config: NodeConfig,
        machine: MachineInfo,
        nodefs: u64,
        client: kube::Client,
        runtime: Arc<dyn RuntimeService>,
        images: Arc<dyn ImageService>,
    ) -> Arc<Self> {
        let capacity = Capacity::new(&machine, nodefs, config.max_pods, &config.eviction_hard);
        let events = NodeEvents::new(client.clone(), &config.name);
        Arc::new(Self {
            config,
            client,
            runtime,
            images,
            machine,
            capacity,
            events,
            node: watch::Sender::new(None),
            spec: watch::Sender::new(NodeSpec::default()),
            extended: watch::Sender::default(),
            poke: Notify::new(),
        })
    }

    /// `spec` of the Node object as it is now: `podCIDRs` arrive here. Default until the node is registered.
    pub fn spec(&self) -> watch::Receiver<NodeSpec> {
        self.spec.subscribe()
    }

    /// Extended resources that pods may ask for, as others have written them into the node's status.
    pub fn extended_resources(&self) -> watch::Receiver<BTreeMap<String, Quantity>> {
        self.extended.subscribe()
    }

    /// The machine's own resources that pods may ask for.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.capacity.allocatable()
    }

    /// The machine's facts.
    pub fn machine(&self) -> &MachineInfo {
        &self.machine
    }

    /// Where events about this node are sent.
    pub fn events(&self) -> &NodeEvents {
        &self.events
    }

    /// Looks at the status now rather than at the next tick: something that it shows has changed.
    pub fn status_changed(&self) {
        self.poke.notify_one();
    }

    /// Registers the node and keeps it until `shutdown`. The Node stays as it is then; its lease runs out.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        self.events.send(EventSeverity::Normal, "Starting", "Starting kubelet.");
        let work = async {
            self.register().await;
            tokio::join!(self.keep_status(), self.keep_lease(), self.watch_node());
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    /// Makes the Node, or brings an existing one up to date. Tries until it succeeds.
    async fn register(&self) {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut pause = Duration::from_millis(100);
        loop {
            match tokio::time::timeout(CALL, self.try_register(&api)).await {
                Ok(Ok(node)) => {
                    tracing::info!(node = %self.config.name, "node registered");
                    self.saw(node);
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not register node")
                }
                Err(_elapsed) => tracing::warn!("could not register node: no answer in time"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(7));
        }
    }

    async fn try_register(&self, api: &Api<Node>) -> kube::Result<Node> {
        let mut node = object::initial(&self.config);
        let observation = self.observe().await;
        node.status = Some(status::compute(&self.facts(), &observation, None));
        match api.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(error)) if error.code == 409 => {
                let existing = api.get(&self.config.name).await?;
                match object::label_patch(&existing, &node) {
                    Some(patch) => {
                        api.patch(&self.config.name, &PatchParams::default(), &Patch::Strategic(patch)).await
                    }
                    None => Ok(existing),
                }
            }
            other => other,
        }
    }

    async fn observe(&self) -> Observation {
        let runtime = self.runtime.status().await;
        let images = match self.images.list_images().await {
            Ok(images) => images,
            Err(error) => {
                tracing::warn!(%error, "could not list images for the node status");
                Vec::new()
            }
        };
        let imagefs = self.images.fs_info().await.ok().map(|(path, _)| path);
        let pressures = pressure::measure(&self.config, &self.capacity, imagefs.as_deref());
        Observation { runtime, pressures, images, now: k8s_openapi::jiff::Timestamp::now() }
    }

    fn facts(&self) -> status::Facts<'_> {
        status::Facts { config: &self.config, machine: &self.machine, capacity: &self.capacity }
    }

    async fn keep_status(&self) {
        let api: Api<Node> = Api::all(self.client.clone());
        let mut reported: Option<Instant> = None;
        let mut was_ready = false;
        loop {
            let known = self.node.borrow().clone();
            if let Some(known) = known {
                let observation = self.observe().await;
                let before = known.status.as_ref();
                let wanted = status::compute(&self.facts(), &observation, before);
                let due = reported.is_none_or(|at| at.elapsed() >= REPORT);
                if due || status::changed(before, &wanted) {
                    let patch = Patch::Strategic(status::patch(before, &wanted));
                    let params = PatchParams::default();
                    let call = api.patch_status(&self.config.name, &params, &patch);
                    match tokio::time::timeout(CALL, call).await {
                        Ok(Ok(node)) => {
                            self.tell_changes(before, &wanted, reported.is_none());
                            self.saw(node);
                            reported = Some(Instant::now());
                        }
                        Ok(Err(error)) => {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "could not report node status"
                            );
                        }
                        Err(_elapsed) => tracing::warn!("could not report node status: no answer in time"),
                    }
                }
                was_ready |= conditions::is_ready(&wanted) && reported.is_some();
            }
            let pause = if was_ready { LOOK } else { LOOK_UNTIL_READY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.poke.notified() => {}
            }
        }
    }

    /// Events for conditions that turned, as upstream's recordNodeStatusEvent; all of them after a start.
    fn tell_changes(
        &self,
        before: Option<&k8s_openapi::api::core::v1::NodeStatus>,
        now: &k8s_openapi::api::core::v1::NodeStatus,
        first: bool,
    ) {
        if first && let Some(event) = object::reboot(before, &self.machine.boot_id, &self.config.name) {
            self.events.send(EventSeverity::Warning, "Rebooted", event);
        }
        for reason in conditions::turned(before, now, first) {
            let note = format!("Node {} status is now: {reason}", self.config.name);
            self.events.send(EventSeverity::Normal, reason, note);
        }
    }

    async fn watch_node(&self) {
        let api: Api<Node> = Api::all(self.client.clone());
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.config.name));
        let mut events = Box::pin(watcher(api, config).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => self.saw(node),
                Ok(watcher::Event::Delete(_)) => {
                    // As upstream: a node that somebody removed stays removed until its kubelet starts again.
                    tracing::warn!(node = %self.config.name, "the Node object was deleted");
                    self.node.send_replace(None);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "watch of the node failed, retrying"),
            }
        }
    }

    /// Takes over a newer object. Patch answers and watch events race: an older version never replaces a newer.
    fn saw(&self, node: Node) {
        let spec = node.spec.clone().unwrap_or_default();
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let extended = status::extended(allocatable);
        let node = Arc::new(node);
        self.node.send_if_modified(|known| {
            if known.as_ref().is_some_and(|known| !object::is_newer(&node, known)) {
                return false;
            }
            *known = Some(node);
            send_if_new(&self.spec, spec);
            send_if_new(&self.extended, extended);
            true
        });
    }

    async fn keep_lease(&self) {
        lease::keep(&self.client, &self.config.name, self.node.subscribe()).await;
    }
}

fn send_if_new<T: PartialEq>(to: &watch::Sender<T>, value: T) {
    to.send_if_modified(|known| {
        let changed = *known != value;
        if changed {
            *known = value;
        }
        changed
    });
}
