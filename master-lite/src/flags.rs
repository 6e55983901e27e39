//! Flags, with upstream's names where upstream has them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

/// The Keelson control plane: API server, scheduler and controllers.
#[derive(Debug, clap::Parser)]
#[command(version)]
pub struct Flags {
    /// Address at which nodes and pods reach the API server [default: --bind-address]
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Port of the API
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Network of cluster IPs
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cluster_ip_range: Ipv4Net,
    /// Network of pods, of which each node gets a part
    #[arg(long, default_value = "10.244.0.0/16")]
    pub cluster_cidr: IpNet,
    /// DNS domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Where objects are kept
    #[arg(long, default_value = "/var/lib/keelson-master")]
    pub data_dir: PathBuf,
    /// Where keys and certificates are kept
    #[arg(long, default_value = "/etc/kubernetes/pki")]
    pub cert_dir: PathBuf,
    /// More names or addresses for the serving certificate
    #[arg(long = "tls-san")]
    pub tls_sans: Vec<String>,
    /// Issuer of service account tokens [default: https://kubernetes.default.svc.CLUSTER_DOMAIN]
    #[arg(long)]
    pub service_account_issuer: Option<String>,
    /// Where the administrator's kubeconfig is written
    #[arg(long, default_value = "/etc/kubernetes/admin.conf")]
    pub write_kubeconfig: PathBuf,
    /// Where a kubeconfig for joining nodes is written, with a bootstrap token
    #[arg(long, default_value = "/etc/kubernetes/bootstrap-kubelet.conf")]
    pub write_bootstrap_kubeconfig: Option<PathBuf>,
    /// Bootstrap token for joining nodes, which lasts until its Secret is deleted [default: a random one that expires
    /// after 24 hours; starts within its first half use it again]
    #[arg(long, env = "KEELSON_BOOTSTRAP_TOKEN", hide_env_values = true)]
    pub bootstrap_token: Option<String>,
}

impl Flags {
    /// Where others reach the API server.
    pub fn advertise_address(&self) -> IpAddr {
        self.advertise_address.unwrap_or(self.bind_address)
    }

    /// URL of the same.
    pub fn url(&self) -> String {
        match self.advertise_address() {
            IpAddr::V4(ip) => format!("https://{ip}:{}", self.secure_port),
            IpAddr::V6(ip) => format!("https://[{ip}]:{}", self.secure_port),
        }
    }

    /// `iss` of service account tokens.
    pub fn issuer(&self) -> String {
        self.service_account_issuer
            .clone()
            .unwrap_or_else(|| format!("https://kubernetes.default.svc.{}", self.cluster_domain))
    }

    /// The nth address of the service network.
    pub fn service_address(&self, nth: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cluster_ip_range.network()).saturating_add(nth))
    }
}
