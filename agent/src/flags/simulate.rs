//! Flags of `keelson-agent simulate`.

use std::net::IpAddr;
use std::path::PathBuf;

/// `keelson-agent simulate`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct SimulateFlags {
    /// How many nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub nodes: u32,
    /// Beginning of their names: <prefix>0, <prefix>1, ...
    #[arg(long, default_value = "simulated-")]
    pub prefix: String,
    /// Kubeconfig of a user who may impersonate the nodes, such as an administrator's
    #[arg(long, default_value = "/etc/kubernetes/admin.conf")]
    pub simulate_kubeconfig: PathBuf,
    /// CPUs of each node
    #[arg(long, default_value_t = 32)]
    pub cpus: u64,
    /// Memory of each node
    #[arg(long, default_value = "256Gi")]
    pub memory: String,
    /// Disk of each node
    #[arg(long, default_value = "1Ti")]
    pub storage: String,
    /// Most pods on each node
    #[arg(long, default_value_t = 110)]
    pub pods: u32,
    /// Labels of each node, key=value,...
    #[arg(long, default_value = "")]
    pub labels: String,
    /// Zones that the nodes are spread over, by the label topology.kubernetes.io/zone: zone-0, zone-1, ...
    #[arg(long, default_value_t = 0)]
    pub zones: u32,
    /// Taints that each node is made with, key=value:effect,...
    #[arg(long, default_value = "")]
    pub taints: String,
    /// Address that all nodes report as theirs
    #[arg(long, default_value = "127.0.0.1")]
    pub address: IpAddr,
    /// How long a pod's sandbox takes to be made; annotation simulate.keelson.io/start-after of a pod has priority
    #[arg(long)]
    pub start_after: Option<String>,
    /// How long containers run until they exit by themselves [default: until they are stopped]; annotation
    /// simulate.keelson.io/end-after of a pod has priority
    #[arg(long)]
    pub end_after: Option<String>,
    /// Folder for the nodes' files, volumes of pods mainly [default: a temporary one, removed at the end]
    #[arg(long)]
    pub files: Option<PathBuf>,
}
