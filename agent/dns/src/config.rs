//! Settings, and the host's resolv.conf.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where names outside the cluster are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upstreams {
    /// These servers.
    Servers(Vec<SocketAddr>),
    /// The `nameserver` lines of a file in the form of resolv.conf(5), read at start.
    ResolvConf(PathBuf),
}

/// Settings of the node's DNS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Addresses to listen on, UDP and TCP alike. They should be specific ones: an answer from a socket
    /// bound to the unspecified address may leave with another source than it was asked at.
    pub listen: Vec<SocketAddr>,
    /// UDP sockets for each address (SO_REUSEPORT), served in parallel.
    pub sockets_per_address: usize,
    /// Cluster domain without a final dot.
    pub domain: String,
    /// Pod and service ranges: reverse names of unknown addresses in them do not exist, and are not asked
    /// of anyone else.
    pub cluster_cidrs: Vec<IpNet>,
    /// Servers for every other name.
    pub upstreams: Upstreams,
    /// How long one upstream may take for one answer.
    pub upstream_timeout: Duration,
    /// The most queries that may wait for upstreams at a time; more are answered SERVFAIL at once.
    pub max_forwards: usize,
    /// The most TCP connections at a time; more wait to be accepted.
    pub max_connections: usize,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53)],
            sockets_per_address: 2,
            domain: "cluster.local".into(),
            cluster_cidrs: Vec::new(),
            upstreams: Upstreams::ResolvConf("/etc/resolv.conf".into()),
            upstream_timeout: Duration::from_secs(2),
            max_forwards: 512,
            max_connections: 256,
        }
    }
}

impl DnsConfig {
    /// The servers to forward to, without those that would lead back here. A file that can't be read gives
    /// none, which is logged: cluster names are answered all the same.
    pub fn upstream_servers(&self) -> Vec<SocketAddr> {
        let servers = match &self.upstreams {
            Upstreams::Servers(servers) => servers.clone(),
            Upstreams::ResolvConf(path) => read_resolv_conf(path),
        };
        servers.into_iter().filter(|server| !self.leads_back(*server)).take(MAX_UPSTREAMS).collect()
    }

    fn leads_back(&self, server: SocketAddr) -> bool {
        server.port() == 0
            || server.ip().is_unspecified()
            || self.listen.iter().any(|own| {
                let everywhere = own.ip().is_unspecified() && server.ip().is_loopback();
                own.port() == server.port() && (own.ip() == server.ip() || everywhere)
            })
    }
}

/// glibc reads three name servers; a few more do no harm.
const MAX_UPSTREAMS: usize = 8;

fn read_resolv_conf(path: &Path) -> Vec<SocketAddr> {
    match fs::read_to_string(path) {
        Ok(text) => parse_resolv_conf(&text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no upstream name servers");
            Vec::new()
        }
    }
}

/// The servers of the `nameserver` lines, in order. Lines that make no sense are passed over, as resolvers do.
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split(['#', ';']).next()?.split_whitespace();
        let ip = (words.next()? == "nameserver").then(|| words.next())??;
        Some(SocketAddr::new(ip.parse().ok()?, 53))
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "# made by hand\nsearch example.org\nnameserver 192.0.2.1 # first\n nameserver\tfd00::1\n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 192.0.2.2\noptions ndots:5\n";
        let expected: Vec<SocketAddr> =
            vec!["192.0.2.1:53".parse().unwrap(), "[fd00::1]:53".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }

    #[test]
    fn own_addresses_are_no_upstreams() {
        let check = |listen: &str, upstreams: &[&str], expected: &[&str]| {
            let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
            let config = DnsConfig {
                listen: parse(&[listen]),
                upstreams: Upstreams::Servers(parse(upstreams)),
                ..DnsConfig::default()
            };
            assert_eq!(config.upstream_servers(), parse(expected));
        };
        check("10.96.0.10:53", &["10.96.0.10:53", "192.0.2.1:53", "0.0.0.0:53"], &["192.0.2.1:53"]);
        check("0.0.0.0:53", &["127.0.0.53:53", "127.0.0.1:5353"], &["127.0.0.1:5353"]);
        check("10.96.0.10:53", &["127.0.0.53:53"], &["127.0.0.53:53"]);
    }
}
