//! The nodes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeSpec, Service};
use keelson_cri::{ImageService, RuntimeService};
use keelson_kubelet::certs::Transport;
use keelson_kubelet::node::{MachineInfo, NodeConfig, NodeManager, Thresholds};
use keelson_kubelet::pods::{LogPolicy, PodManager, PodManagerConfig, PodManagerParts, follow_services};
use keelson_kubelet::probes::Reach;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::reflector::{self, Store};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::config::Config;
use crate::images::EveryImage;
use crate::mounter::NoMounts;
use crate::runtime::SimulatedRuntime;

/// Label of every simulated node.
pub const LABEL: &str = "simulate.keelson.io/node";

/// What all nodes have in common.
struct Kind {
    config: Config,
    files: PathBuf,
}

impl Kind {
    fn name(&self, number: u32) -> String {
        format!("{}{number}", self.config.prefix)
    }

    fn node(&self, number: u32) -> NodeConfig {
        let mut labels = self.config.labels.clone();
        labels.insert(LABEL.to_owned(), "true".to_owned());
        if self.config.zones > 0 {
            let zone = format!("zone-{}", number % self.config.zones);
            labels.insert("topology.kubernetes.io/zone".to_owned(), zone);
        }
        NodeConfig {
            labels,
            taints: self.config.taints.clone(),
            max_pods: self.config.pods,
            // Nothing listens: there are no logs and no processes to ask for.
            kubelet_port: 0,
            root_dir: self.files.clone(),
            // The machine that simulates may be as full as it is.
            eviction_hard: Thresholds::none(),
            ..NodeConfig::new(self.name(number), vec![self.config.address])
        }
    }

    fn machine(&self, name: &str) -> MachineInfo {
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_DNS, name.as_bytes());
        MachineInfo {
            cpus: self.config.cpus,
            memory: self.config.memory,
            hugepages: Vec::new(),
            machine_id: id.simple().to_string(),
            system_uuid: id.to_string(),
            boot_id: uuid::Uuid::new_v4().to_string(),
            kernel_version: "simulated".to_owned(),
            os_image: "simulated".to_owned(),
        }
    }

    fn pods(&self, name: &str, node: &NodeManager) -> PodManagerConfig {
        let files = self.files.join(name);
        PodManagerConfig {
            root_dir: files.join("kubelet"),
            pod_logs_dir: files.join("pods"),
            container_logs_dir: files.join("containers"),
            allocatable: node.allocatable(),
            extended_resources: node.extended_resources(),
            memory_capacity: self.config.memory,
            // There are none.
            logs: LogPolicy::unbounded(),
            ..PodManagerConfig::new(name, vec![self.config.address])
        }
    }
}

/// Simulates nodes until `shutdown`. Their Node objects stay, as those of machines that are switched off.
///
/// # Errors
/// A kubeconfig that can't be used. What the API answers later is tried again for ever.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let api = kubeconfig(&config.kubeconfig).await?;
    // Removed when it goes out of scope.
    let temporary = match &config.files {
        Some(_) => None,
        None => Some(tempfile::tempdir().map_err(Error::Folder)?),
    };
    let files = config.files.clone();
    let files = files.or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
    let kind = Kind { config, files };

    let mut tasks = JoinSet::new();
    let transport = Transport::new(&api)?;
    let (services, writer) = reflector::store();
    tasks.spawn(follow_services(transport.client(&api)?, writer, shutdown.clone()));
    for number in 0..kind.config.nodes {
        let client = transport.client(&as_node(&api, &kind.name(number)))?;
        start(&kind, number, client, services.clone(), &shutdown, &mut tasks);
    }
    tracing::info!(nodes = kind.config.nodes, files = %kind.files.display(), "nodes are simulated");
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// How a node speaks to the API: as the user that its own certificate would name.
fn as_node(api: &kube::Config, name: &str) -> kube::Config {
    let mut config = api.clone();
    config.auth_info.impersonate = Some(format!("system:node:{name}"));
    config.auth_info.impersonate_groups = Some(vec!["system:nodes".to_owned()]);
    config
}

fn start(
    kind: &Kind,
    number: u32,
    client: kube::Client,
    services: Store<Service>,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    let name = kind.name(number);
    let simulated = SimulatedRuntime::new(kind.config.plan);
    let runtime: Arc<dyn RuntimeService> = simulated.clone();
    let images: Arc<dyn ImageService> = Arc::new(EveryImage);
    let node = NodeManager::of_machine(
        kind.node(number),
        kind.machine(&name),
        kind.config.storage,
        client.clone(),
        runtime.clone(),
        images.clone(),
    );
    let parts = PodManagerParts {
        mounter: Arc::new(NoMounts),
        reach: Reach::Nobody,
        services: Some(services),
        ..PodManagerParts::default()
    };
    let pods = PodManager::with_parts(kind.pods(&name, &node), client.clone(), runtime, images, parts);
    let shutdown = shutdown.clone();
    tasks.spawn(async move {
        if let Some(known) = existing(&client, &name, &shutdown).await {
            simulated.set_ranges(ranges(&known));
        }
        tokio::join!(node.clone().run(shutdown.clone()), async {
            // No pod can be made before, and those of a node that is back need not see it fail.
            follow_ranges(&node, &simulated, shutdown.clone(), true).await;
            tokio::join!(
                pods.run(shutdown.clone()),
                follow_ranges(&node, &simulated, shutdown.clone(), false),
            );
        },);
    });
}

/// `spec` of a node that has been here before, so that it is Ready at once, as a machine that kept its configuration. What
/// the API can't say now it says to the registration, which tries for ever.
async fn existing(client: &kube::Client, name: &str, shutdown: &CancellationToken) -> Option<NodeSpec> {
    let nodes: Api<Node> = Api::all(client.clone());
    tokio::select! {
        node = nodes.get_opt(name) => node.ok().flatten()?.spec,
        () = shutdown.cancelled() => None,
    }
}

/// Pods get addresses of the node's ranges; the first ones only, or all that come until `shutdown`.
async fn follow_ranges(
    node: &NodeManager,
    runtime: &SimulatedRuntime,
    shutdown: CancellationToken,
    first_only: bool,
) {
    let mut spec = node.spec();
    loop {
        let found = ranges(&spec.borrow_and_update());
        if !found.is_empty() {
            runtime.set_ranges(found);
            node.status_changed();
            if first_only {
                return;
            }
        }
        tokio::select! {
            changed = spec.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

fn ranges(spec: &NodeSpec) -> Vec<IpNet> {
    let read =
        |text: &String| text.parse().inspect_err(|error| tracing::error!(%error, text, "pod range")).ok();
    spec.pod_cidrs.iter().flatten().filter_map(read).collect()
}

async fn kubeconfig(path: &Path) -> Result<kube::Config, Error> {
    let wrong = |source| Error::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)
}
