//! The whole configuration of a node: one part for each subsystem.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use keelson_cni::vxlan::VxlanMode;
use keelson_cni::{DriverConfig, Mode};
use keelson_images::{ImageStoreConfig, Limits, RegistryConfig};
use keelson_kubelet::certs::JoinOptions;
use keelson_kubelet::node::{NodeConfig, Thresholds, parse_duration, parse_labels, parse_taints};
use keelson_kubelet::pods::{LogPolicy, PodManagerConfig};
use keelson_kubelet::server::ServerConfig;
use serde_json::json;

use crate::flags::{self, Flags, NetworkMode, SimulateFlags};
use crate::host;
use crate::network::{ClusterRanges, PodRangeConfig, RouteConfig};

/// All that a node is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// Cluster and credentials.
    pub join: JoinOptions,
    /// Addresses of the node; empty: the one towards the API server.
    pub node_ips: Vec<IpAddr>,
    /// The Node object.
    pub node: NodeConfig,
    /// Pods.
    pub pods: PodManagerConfig,
    /// The kubelet's API.
    pub api: ApiConfig,
    /// Images.
    pub images: ImageStoreConfig,
    /// Where images are imported through.
    pub images_socket: PathBuf,
    /// Sandboxes and containers.
    pub runtime: keelson_runtime::Config,
    /// CNI.
    pub network: DriverConfig,
    /// The way to other nodes' pods.
    pub routes: RouteConfig,
    /// The default network configuration.
    pub pod_ranges: PodRangeConfig,
    /// Services.
    pub proxy: keelson_proxy::ProxyConfig,
    /// Cluster DNS.
    pub dns: keelson_dns::DnsConfig,
    /// The process that answers it.
    pub dns_worker: keelson_dns::worker::Place,
}

/// The kubelet's listeners and certificates.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// HTTPS.
    pub listen: SocketAddr,
    /// Plain /healthz, if any.
    pub healthz: Option<SocketAddr>,
    /// Request the serving certificate from the cluster.
    pub rotate_certificate: bool,
    /// PEM file of client authorities; none: the cluster's.
    pub client_ca_file: Option<PathBuf>,
    /// The server.
    pub server: ServerConfig,
}

impl Config {
    /// Checks the flags and spreads them over the subsystems.
    pub fn new(flags: Flags) -> anyhow::Result<Self> {
        let cgroup2 = host::cgroup2_mount()?;
        let name = match &flags.hostname_override {
            Some(name) => host::node_name(name).context("--hostname-override")?,
            None => host::name()?,
        };
        anyhow::ensure!(
            flags.node_ip.len() <= 2
                && (flags.node_ip.len() < 2 || flags.node_ip[0].is_ipv4() != flags.node_ip[1].is_ipv4()),
            "--node-ip: give one address, or one of each family"
        );
        let healthz = SocketAddr::new(flags.healthz_bind_address, flags.healthz_port);
        let vxlan = match flags.vxlan_mode {
            flags::VxlanMode::Never => VxlanMode::Never,
            flags::VxlanMode::CrossSubnet => VxlanMode::CrossSubnet,
            flags::VxlanMode::Always => VxlanMode::Always,
        };
        let cluster_cidrs = [flags.cluster_cidr.as_slice(), &flags.service_cidr].concat();
        Ok(Self {
            join: JoinOptions {
                node_name: name.clone(),
                bootstrap_kubeconfig: flags.bootstrap_kubeconfig.clone(),
                kubeconfig: flags.kubeconfig.clone(),
                cert_dir: flags.cert_dir.clone().unwrap_or_else(|| flags.root_dir.join("pki")),
            },
            node_ips: flags.node_ip.clone(),
            node: node(&flags, &name)?,
            pods: PodManagerConfig {
                root_dir: flags.root_dir.clone(),
                cluster_dns: flags.cluster_dns.clone(),
                cluster_domain: flags.cluster_domain.clone(),
                resolv_conf: flags.resolv_conf.clone(),
                logs: LogPolicy::new(&flags.container_log_max_size, flags.container_log_max_files)?,
                pod_pids_limit: (flags.pod_max_pids > 0).then_some(flags.pod_max_pids),
                ..PodManagerConfig::new(name.clone(), Vec::new())
            },
            api: ApiConfig {
                listen: SocketAddr::new(flags.address, flags.port),
                healthz: (flags.healthz_port != 0).then_some(healthz),
                rotate_certificate: flags.rotate_server_certificates,
                client_ca_file: flags.client_ca_file.clone(),
                server: ServerConfig {
                    root_dir: flags.root_dir.clone(),
                    configz: configz(&flags),
                    ..ServerConfig::new(name.clone())
                },
            },
            images: ImageStoreConfig {
                root: flags.state_dir.join("images"),
                import: flags.state_dir.join("import"),
                registry: RegistryConfig {
                    insecure: flags.insecure_registry.clone(),
                    progress_timeout: parse_duration(&flags.image_pull_progress_timeout)
                        .context("--image-pull-progress-timeout")?,
                    ..RegistryConfig::default()
                },
                limits: Limits::default(),
            },
            dns_worker: keelson_dns::worker::Place {
                dir: flags.run_dir.join("dns"),
                // This very program, even when another is at its path by now.
                program: "/proc/self/exe".into(),
                env: vec![(crate::flags::LOG.to_owned(), flags.log)],
            },
            images_socket: keelson_images::local::socket(&flags.run_dir),
            runtime: keelson_runtime::Config {
                root: flags.state_dir.clone(),
                run: flags.run_dir,
                cgroup_root: flags.cgroup_root.unwrap_or_else(|| cgroup2.clone()),
                podinit_path: flags.podinit,
                allow_missing_controllers: flags.allow_missing_controllers,
                ..keelson_runtime::Config::default()
            },
            network: DriverConfig {
                conf_dir: flags.cni_conf_dir.clone(),
                bin_dirs: flags.cni_bin_dir,
                cache_dir: flags.state_dir.join("cni/cache"),
                ..DriverConfig::default()
            },
            routes: RouteConfig {
                node_name: name.clone(),
                cluster: ClusterRanges { pods: flags.cluster_cidr, services: flags.service_cidr.clone() },
                vxlan,
            },
            proxy: keelson_proxy::ProxyConfig {
                cgroup: flags.proxy_cgroup.unwrap_or(cgroup2),
                pin_dir: flags.bpf_dir,
                node_name: name,
                local: flags.cluster_dns.iter().filter_map(ipv4).collect(),
                ranges: flags.service_cidr,
            },
            dns: keelson_dns::DnsConfig {
                domain: flags.cluster_domain,
                cluster_cidrs: cluster_cidrs.clone(),
                upstreams: keelson_dns::Upstreams::ResolvConf(flags.resolv_conf),
                listen: flags.cluster_dns.iter().map(|address| SocketAddr::new(*address, 53)).collect(),
                ..keelson_dns::DnsConfig::default()
            },
            pod_ranges: PodRangeConfig {
                conf_dir: flags.cni_conf_dir,
                mode: match flags.network_mode {
                    NetworkMode::Bridge => Mode::Bridge,
                    NetworkMode::Routed => Mode::Routed,
                },
                cluster_cidrs,
                data_dir: flags.state_dir.join("cni/addresses"),
                vxlan,
            },
        })
    }
}

/// The proxy's programs translate IPv4; an IPv6 address is nothing that they could take.
fn ipv4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

fn node(flags: &Flags, name: &str) -> anyhow::Result<NodeConfig> {
    Ok(NodeConfig {
        labels: parse_labels(&flags.node_labels).context("--node-labels")?,
        taints: parse_taints(&flags.register_with_taints).context("--register-with-taints")?,
        max_pods: flags.max_pods,
        kubelet_port: flags.port,
        root_dir: flags.root_dir.clone(),
        eviction_hard: match &flags.eviction_hard {
            Some(text) => Thresholds::parse(text).context("--eviction-hard")?,
            None => Thresholds::default(),
        },
        ..NodeConfig::new(name, Vec::new())
    })
}

/// The KubeletConfiguration that these flags amount to, for /configz.
fn configz(flags: &Flags) -> serde_json::Value {
    json!({
        "enableServer": true,
        "address": flags.address,
        "port": flags.port,
        "healthzBindAddress": flags.healthz_bind_address,
        "healthzPort": flags.healthz_port,
        "serverTLSBootstrap": flags.rotate_server_certificates,
        "rotateCertificates": true,
        "authentication": {
            "x509": { "clientCAFile": flags.client_ca_file },
            "webhook": { "enabled": true, "cacheTTL": "2m0s" },
            "anonymous": { "enabled": false },
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": { "cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s" },
        },
        "clusterDomain": flags.cluster_domain,
        "clusterDNS": flags.cluster_dns,
        "streamingConnectionIdleTimeout": "4h0m0s",
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": flags.cgroup_root,
        "cgroupsPerQOS": true,
        "maxPods": flags.max_pods,
        "podPidsLimit": flags.pod_max_pids,
        "containerLogMaxSize": flags.container_log_max_size,
        "containerLogMaxFiles": flags.container_log_max_files,
        "resolvConf": flags.resolv_conf,
        "failSwapOn": false,
    })
}

/// The nodes to simulate.
pub fn simulated(flags: SimulateFlags) -> anyhow::Result<keelson_simulate::Config> {
    let duration = |text: Option<String>| text.map(|text| parse_duration(&text)).transpose();
    Ok(keelson_simulate::Config {
        nodes: flags.nodes,
        prefix: flags.prefix,
        kubeconfig: flags.simulate_kubeconfig,
        cpus: flags.cpus,
        memory: bytes(&flags.memory).context("--memory")?,
        storage: bytes(&flags.storage).context("--storage")?,
        pods: flags.pods,
        labels: parse_labels(&flags.labels).context("--labels")?,
        zones: flags.zones,
        taints: parse_taints(&flags.taints).context("--taints")?,
        address: flags.address,
        plan: keelson_simulate::Plan {
            start_after: duration(flags.start_after).context("--start-after")?.unwrap_or_default(),
            end_after: duration(flags.end_after).context("--end-after")?,
            exit_code: 0,
        },
        files: flags.files,
    })
}

fn bytes(text: &str) -> anyhow::Result<u64> {
    let quantity: keelson_quantity::Quantity = text.parse()?;
    let bytes = u64::try_from(quantity.value()).ok().filter(|bytes| *bytes > 0);
    bytes.with_context(|| format!("{text:?} is no number of bytes"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn check(args: &[&str], accepted: bool) {
        let flags = Flags::try_parse_from([&["keelson-agent"], args].concat()).unwrap();
        assert_eq!(Config::new(flags).is_ok(), accepted, "{args:?}");
    }

    #[test]
    fn flags_are_checked() {
        check(&["--hostname-override=n1"], true);
        check(&["--node-ip=10.0.0.1,fd00::1"], true);
        check(&["--node-ip=10.0.0.1,10.0.0.2"], false);
        check(&["--node-labels=a"], false);
        check(&["--register-with-taints=a=b:Sometimes"], false);
        check(&["--eviction-hard=nodefs.available<5%"], true);
        check(&["--eviction-hard=nodefs"], false);
        check(&["--hostname-override=a_b"], false);
        check(&["--container-log-max-size=1Gi", "--container-log-max-files=2"], true);
        check(&["--container-log-max-size=-1"], true);
        check(&["--container-log-max-size=big"], false);
        check(&["--container-log-max-files=1"], false);
    }

    #[test]
    fn parts_agree() {
        let flags =
            ["keelson-agent", "--hostname-override=N1", "--root-dir=/r", "--port=1234", "--healthz-port=0"];
        let config = Config::new(Flags::try_parse_from(flags).unwrap()).unwrap();
        assert_eq!(config.node.name, "n1");
        assert_eq!(config.pods.node_name, "n1");
        assert_eq!(config.join.cert_dir, PathBuf::from("/r/pki"));
        assert_eq!(config.node.kubelet_port, 1234);
        assert_eq!(config.api.healthz, None);
    }
}
