//! Flags, with upstream's names where upstream has them.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::{IpNet, Ipv4Net};

/// The Keelson control plane: API server, scheduler and controllers.
#[derive(Debug, clap::Parser)]
#[command(name = "keelson-master", version)]
pub struct Flags {
    /// Address at which nodes and pods reach the API server [default: --bind-address, or where that is unspecified or a
    /// loopback, the one of the default route]
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
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
    /// How long a node may be silent before it counts as unreachable
    #[arg(long, default_value = "50s", value_parser = positive_duration)]
    pub node_monitor_grace_period: Duration,
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
    ///
    /// # Errors
    /// None was given and this machine has no default route to tell it by.
    pub fn advertise_address(&self) -> anyhow::Result<IpAddr> {
        if let Some(address) = self.advertise_address {
            return Ok(address);
        }
        if !self.bind_address.is_unspecified() && !self.bind_address.is_loopback() {
            return Ok(self.bind_address);
        }
        default_route_address().context("this machine has no default route: give --advertise-address")
    }

    /// URL of the API at this address.
    pub fn url(&self, advertised: IpAddr) -> String {
        match advertised {
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

/// A duration as Go writes it.
fn positive_duration(text: &str) -> Result<Duration, String> {
    let nanos = keelson_cron::duration::parse(text)?;
    match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => Ok(Duration::from_nanos(nanos)),
        _ => Err("must be greater than 0".to_owned()),
    }
}

/// The address that this machine sends from by its default route. No packet is sent: the kernel only looks the route to an
/// address of TEST-NET-1 (RFC 5737) up.
fn default_route_address() -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[test]
    fn command_is_sound() {
        Flags::command().debug_assert();
    }

    fn check(args: &[&str], expected: &str) {
        let flags = Flags::try_parse_from([&["keelson-master"], args].concat()).unwrap();
        assert_eq!(flags.url(flags.advertise_address().unwrap()), expected);
    }

    #[test]
    fn what_is_given_is_advertised() {
        check(&["--bind-address=10.0.0.1"], "https://10.0.0.1:6443");
        check(&["--bind-address=127.0.0.1", "--advertise-address=10.0.0.2"], "https://10.0.0.2:6443");
        check(&["--advertise-address=fd00::1", "--secure-port=1234"], "https://[fd00::1]:1234");
    }

    #[test]
    fn silence_is_a_duration_of_gos() {
        let flags = |args: &[&str]| Flags::try_parse_from([&["keelson-master"], args].concat());
        assert_eq!(flags(&[]).unwrap().node_monitor_grace_period, Duration::from_secs(50));
        let longer = flags(&["--node-monitor-grace-period=1h30m"]).unwrap();
        assert_eq!(longer.node_monitor_grace_period, Duration::from_secs(5_400));
        for wrong in ["0", "-1s", "50"] {
            assert!(flags(&[&format!("--node-monitor-grace-period={wrong}")]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_loopback_is_never_advertised_by_itself() {
        for bind in ["127.0.0.1", "0.0.0.0"] {
            let flags = Flags::try_parse_from(["keelson-master", "--bind-address", bind]).unwrap();
            // A machine without a default route has none to tell.
            assert!(flags.advertise_address().map_or(true, |address| !address.is_loopback()));
        }
    }
}
