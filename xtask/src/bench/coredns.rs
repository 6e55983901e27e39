//! The peer of the node's DNS: CoreDNS, built from its module, on the same node and with the same API server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use keelson_tests::images::suite::coredns::{self, Plugins, VERSION};
use keelson_tests::progress::Steps;
use keelson_tests::testbed::host::Host;
use keelson_tests::testbed::network;

use crate::conformance::suite::Suite;

/// What the peer is, for the output.
pub fn name() -> String {
    format!("CoreDNS {VERSION}")
}

/// Where it is asked: the address that NodeLocal DNSCache has by custom, on the node's own loopback as Keelson's is.
pub const ADDRESS: &str = "169.254.20.10";
/// Name of its cgroup and log.
pub const UNIT: &str = "coredns";
/// An administrator's kubeconfig, as the node has it.
const KUBECONFIG: &str = "/etc/kubernetes/coredns.conf";
const COREFILE: &str = "/etc/coredns/Corefile";

/// Builds it, if it is not built yet.
pub fn build(steps: &mut Steps) -> Result<PathBuf> {
    let suite = Suite::prepare()?;
    steps.step("go build coredns", || coredns::build(Plugins::Kubernetes, || suite.go_anywhere()))
}

/// Starts it on a node; its pid, as the machine sees it.
pub fn start(program: &Path, node: &Host, master: &Host) -> Result<i32> {
    let inside = |path: &str| node.dir.join(path.trim_start_matches('/'));
    fs::copy(master.dir.join("etc/kubernetes/admin.conf"), inside(KUBECONFIG))?;
    fs::create_dir_all(inside("/etc/coredns"))?;
    fs::write(inside(COREFILE), corefile())?;
    network::ip_batch(node, &format!("addr add {ADDRESS}/32 dev lo\n"))?;
    node.spawn_daemon(UNIT, program, &["-conf".to_owned(), COREFILE.to_owned()], None)
}

/// What kubeadm writes, but for addresses of the node's own. `cache` is whole, as it was until kubeadm took cluster names out
/// of it to save memory: CoreDNS is faster with it.
fn corefile() -> String {
    format!(
        "\
.:53 {{
    bind {ADDRESS}
    errors
    health 127.0.0.1:8080 {{
        lameduck 5s
    }}
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {KUBECONFIG}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    prometheus 127.0.0.1:9153
    forward . /etc/resolv.conf {{
        max_concurrent 1000
    }}
    cache 30
    loop
    reload
    loadbalance
}}
"
    )
}
