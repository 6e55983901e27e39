//! Command line. Flags that kubelet has are named and mean as in kubelet.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;
use ipnet::IpNet;

// Of whoever includes this file: the agent, or what makes manual pages of it.
use super::VERSION;

// By its path, for the same reason.
#[path = "flags/simulate.rs"]
mod simulate;

pub use simulate::SimulateFlags;

/// Environment variable that stands for `--log`.
pub const LOG: &str = "KEELSON_LOG";

/// Makes this machine a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "keelson-agent", version = VERSION)]
pub struct Flags {
    /// Something else than to be the node's agent
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Kubeconfig with the bootstrap token; used while there is no valid client certificate
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Kubeconfig of the node; written after bootstrapping
    #[arg(long, default_value = "/etc/kubernetes/kubelet.conf")]
    pub kubeconfig: PathBuf,
    /// Folder of the node's certificates [default: <root-dir>/pki]
    #[arg(long)]
    pub cert_dir: Option<PathBuf>,
    /// Request the serving certificate from the cluster and renew it; false: a self-signed one
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true,
        action = clap::ArgAction::Set)]
    pub rotate_server_certificates: bool,
    /// Authorities of client certificates on the kubelet's port [default: the cluster's, from the kubeconfig]
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Address of the node, or two of both families [default: the one towards the API server]
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Name of the node [default: the host's name]
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Labels of the node, key=value,...
    #[arg(long, default_value = "")]
    pub node_labels: String,
    /// Taints that the node is made with, key=value:effect,...
    #[arg(long, default_value = "")]
    pub register_with_taints: String,
    /// Most pods on this node
    #[arg(long, default_value_t = 110)]
    pub max_pods: u32,
    /// Most processes of a pod; -1: no limit but the node's own
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    pub pod_max_pids: i64,
    /// Thresholds at which the node reports pressure, such as memory.available<100Mi,nodefs.available<10%
    #[arg(long)]
    pub eviction_hard: Option<String>,
    /// Size at which a container's log file is set aside for a new one; negative: never
    #[arg(long, default_value = "10Mi", allow_hyphen_values = true)]
    pub container_log_max_size: String,
    /// Most files of a container's log
    #[arg(long, default_value_t = 5)]
    pub container_log_max_files: i32,
    /// Addresses of the cluster's DNS service, answered on this node
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.10")]
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Resolver configuration of the node
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Folder of the kubelet's state
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// cgroup v2 folder under which pods get theirs [default: the cgroup2 mount]
    #[arg(long)]
    pub cgroup_root: Option<PathBuf>,
    /// Run without some cgroup v2 controllers: limits are not enforced then, and the node says so
    #[arg(long)]
    pub allow_missing_controllers: bool,
    /// Address that the kubelet's API listens on
    #[arg(long, default_value = "0.0.0.0")]
    pub address: IpAddr,
    /// Port of the kubelet's API
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
    /// Address of /healthz
    #[arg(long, default_value = "127.0.0.1")]
    pub healthz_bind_address: IpAddr,
    /// Port of /healthz; 0 for none
    #[arg(long, default_value_t = 10248)]
    pub healthz_port: u16,

    /// Folder of the agent's own state: images, containers
    #[arg(long, default_value = "/var/lib/keelson")]
    pub state_dir: PathBuf,
    /// Folder of what doesn't outlive a boot
    #[arg(long, global = true, default_value = "/run/keelson")]
    pub run_dir: PathBuf,
    /// The keelson-podinit executable
    #[arg(long, default_value = "/usr/libexec/keelson/keelson-podinit")]
    pub podinit: PathBuf,
    /// Registries that are spoken to over plain HTTP
    #[arg(long, value_delimiter = ',')]
    pub insecure_registry: Vec<String>,
    /// How long a pull may get nothing from its registry, which is asked again twice meanwhile, before it fails
    #[arg(long, default_value = "1m0s")]
    pub image_pull_progress_timeout: String,
    /// Ranges of all nodes' pods
    #[arg(long, value_delimiter = ',', default_value = "10.244.0.0/16")]
    pub cluster_cidr: Vec<IpNet>,
    /// Ranges of Services
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/16")]
    pub service_cidr: Vec<IpNet>,
    /// How pods are wired by the default network configuration
    #[arg(long, value_enum, default_value_t = NetworkMode::Bridge)]
    pub network_mode: NetworkMode,
    /// When packets to pods of other nodes are wrapped in VXLAN (UDP port 8472); the same on every node
    #[arg(long, value_enum, default_value_t = VxlanMode::CrossSubnet)]
    pub vxlan_mode: VxlanMode,
    /// Folder of CNI configurations
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Folders of CNI plugins
    #[arg(long, value_delimiter = ',', default_value = "/opt/cni/bin")]
    pub cni_bin_dir: Vec<PathBuf>,
    /// cgroup v2 folder whose processes reach Services [default: the cgroup2 mount]
    #[arg(long)]
    pub proxy_cgroup: Option<PathBuf>,
    /// Folder on a bpf filesystem where programs and maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf/keelson")]
    pub bpf_dir: PathBuf,
    /// What to log, in the syntax of tracing's EnvFilter
    #[arg(long, env = LOG, default_value = "info")]
    pub log: String,
}

/// What a person on the node asks for.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Images of this node
    #[command(subcommand, visible_alias = "images")]
    Image(ImageCommand),
    /// End all pods of this machine and remove what an agent made on it: processes, cgroups, mounts, the default pod
    /// network, BPF programs, the nftables table, images, credentials, logs
    ///
    /// It refuses while an agent runs, and heeds the flags that the agent ran with, which are given before it. The Node
    /// object is left to whoever administers the cluster, and forwarding of IP packets stays on.
    Reset {
        /// Leave images, credentials and logs where they are
        #[arg(long)]
        keep_files: bool,
    },
    /// Simulate nodes: pods bound to them run as far as the API can see, without a process
    Simulate(Box<SimulateFlags>),
}

/// `keelson-agent image`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum ImageCommand {
    /// Have the running agent import archives: OCI image layouts or what `docker save` writes, compressed ones too
    Import {
        /// The archives
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// `--vxlan-mode`, in Calico's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum VxlanMode {
    /// All nodes are on one network
    Never,
    /// Where the way to a node leads over a router
    CrossSubnet,
    /// Always
    Always,
}

/// `--network-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum NetworkMode {
    /// veth pairs on a bridge
    Bridge,
    /// A routed veth for each pod
    Routed,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_is_sound() {
        Flags::command().debug_assert();
    }

    fn check(args: &[&str], read: impl Fn(Flags) -> bool) {
        let flags = Flags::try_parse_from([&["keelson-agent"], args].concat()).unwrap();
        assert!(read(flags), "{args:?}");
    }

    #[test]
    fn commands() {
        let import = Command::Image(ImageCommand::Import { files: vec!["a.tar".into(), "b.tar".into()] });
        for word in ["image", "images"] {
            check(&[word, "import", "--run-dir=/r", "a.tar", "b.tar"], |flags| {
                flags.command.as_ref() == Some(&import) && flags.run_dir == std::path::Path::new("/r")
            });
        }
        check(&["--root-dir=/r", "reset", "--keep-files", "--run-dir=/n"], |flags| {
            flags.command == Some(Command::Reset { keep_files: true })
                && flags.root_dir == std::path::Path::new("/r")
                && flags.run_dir == std::path::Path::new("/n")
        });
        check(&["reset"], |flags| flags.command == Some(Command::Reset { keep_files: false }));
        check(&["--max-pods=5"], |flags| flags.command.is_none());
        assert!(Flags::try_parse_from(["keelson-agent", "image", "import"]).is_err());
    }

    #[test]
    fn kubelets_spellings() {
        check(&[], |flags| flags.rotate_server_certificates && flags.max_pods == 110);
        check(&["--rotate-server-certificates=false"], |flags| !flags.rotate_server_certificates);
        check(&["--rotate-server-certificates"], |flags| flags.rotate_server_certificates);
        check(&["--node-ip=10.0.0.1,fd00::1"], |flags| flags.node_ip.len() == 2);
        check(&["--cluster-dns", "10.0.0.10"], |flags| flags.cluster_dns == [IpAddr::from([10, 0, 0, 10])]);
    }
}
