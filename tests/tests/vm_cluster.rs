//! A cluster of one node in a guest with the whole of cgroup v2, on every kernel that is supported: it is made, the kernel
//! takes every BPF program, and Services of every kind answer.
//!
//! `on_*` boot the guests; the `guest_*` tests run in there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_tests::cmd;
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;
use keelson_tests::vm::Kernel;
use keelson_tests::vm::programs::GuestTests;

const MANIFEST: &str = include_str!("vm_cluster.yaml");
/// The node's address.
const NODE: &str = "10.89.0.11";

fn on(kernel: Kernel) -> Result<()> {
    GuestTests {
        prefix: "guest_",
        kernel,
        memory_mib: 2048,
        images: &["testapp-v1"],
        limit: Duration::from_secs(480),
    }
    .run()
}

#[test]
fn on_6_1() -> Result<()> {
    on(Kernel::V6_1)
}

#[test]
fn on_6_12() -> Result<()> {
    on(Kernel::V6_12)
}

#[test]
fn on_newest() -> Result<()> {
    on(Kernel::Newest)
}

#[test]
#[ignore = "runs in a guest"]
fn guest_services_answer() -> Result<()> {
    let cluster = TestCluster::up("guest", 1, &["testapp-v1"])?;
    cluster.kubectl.apply(sample::MANIFEST)?;
    cluster.kubectl.apply(MANIFEST)?;
    programs_are_attached(&cluster)?;
    sample::wait_available(&cluster, Duration::from_secs(120))?;
    cluster.rolled_out("deployment/echo")?;
    cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod/client", "--timeout=60s"])?;
    let (by_ip, by_name) = sample::ask(&cluster, Duration::from_secs(60))?;
    ensure!(by_ip.starts_with("v1 hello-") && by_name.starts_with("v1 hello-"), "{by_ip} {by_name}");
    every_socket(&cluster)?;
    endpoints_share_and_stick(&cluster)?;
    names(&cluster)?;
    node_ports(&cluster)?;
    cluster.down()
}

/// What the kernel took is pinned: a link for each program.
fn programs_are_attached(cluster: &TestCluster) -> Result<()> {
    let mut find = cluster.node(1)?.command("client", "find");
    let found = cmd::text(find.args(["/sys/fs/bpf/keelson", "-name", "link_*"]))?;
    let found: BTreeSet<&str> =
        found.lines().filter_map(|path| path.rsplit_once("/link_")).map(|at| at.1).collect();
    let of =
        |family: &str| ["connect", "sendmsg", "recvmsg", "getpeername"].map(|hook| format!("{hook}{family}"));
    let all: Vec<String> = [of("4"), of("6")].concat();
    ensure!(found == all.iter().map(String::as_str).collect(), "{found:?}");
    Ok(())
}

/// TCP and UDP, connected and not, by the Service's name, address and node port, on sockets of both families.
fn every_socket(cluster: &TestCluster) -> Result<()> {
    let address =
        |service: &str| cluster.kubectl.run(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"]);
    let (hello, echo) = (address("hello")?, address("udp-echo")?);
    for (tcp, udp) in [
        ("hello:80".to_owned(), "udp-echo:53".to_owned()),
        (format!("{hello}:80"), format!("{echo}:53")),
        (format!("{NODE}:30080"), format!("{NODE}:30053")),
    ] {
        let said =
            cluster.eventually(20, || cluster.sh("client", &format!("/testapp sockets {tcp} {udp}")))?;
        ensure!(said == "ok", "{tcp} {udp}: {said}");
    }
    // No endpoints, and no such port: refused at once.
    for target in ["empty:80", "hello:81"] {
        let said = cluster.sh("client", &format!("/testapp client {target} --seconds 1 2>&1 | head -1"))?;
        ensure!(said.contains("refused"), "{target}: {said}");
    }
    Ok(())
}

/// The pods that answer this many connections.
fn answering(cluster: &TestCluster, service: &str, connections: u32) -> Result<BTreeSet<String>> {
    let script =
        format!("for n in $(seq {connections}); do timeout 5 wget -q -O - http://{service}/ || exit 1; done");
    Ok(cluster.sh("client", &script)?.lines().map(str::to_owned).collect())
}

fn endpoints_share_and_stick(cluster: &TestCluster) -> Result<()> {
    let pods = cluster.eventually(20, || answering(cluster, "hello", 30))?;
    ensure!(pods.len() == 3, "thirty connections reach {pods:?}");
    let pods = answering(cluster, "sticky", 12)?;
    ensure!(pods.len() == 1, "one client of a sticky Service reaches {pods:?}");
    Ok(())
}

fn names(cluster: &TestCluster) -> Result<()> {
    let ips = "jsonpath={.items[*].status.podIP}";
    let ips = cluster.kubectl.run(&["get", "pods", "-l", "app=hello", "-o", ips])?;
    cluster.eventually(20, || {
        let found = cluster.sh("client", "nslookup -type=a headless.default.svc.cluster.local")?;
        ensure!(ips.split(' ').all(|ip| found.contains(ip)), "{found} has not all of {ips}");
        Ok(())
    })?;
    let pods = answering(cluster, "headless:8080", 1)?;
    ensure!(pods.iter().all(|pod| pod.starts_with("v1 hello-")), "{pods:?}");
    let said = cluster.sh("client", "/testapp resolve no-such-service --seconds 1 | tail -1")?;
    ensure!(said.contains(" ok=0 "), "{said}");
    Ok(())
}

/// From a process of the node, by its loopback too, and from one outside of the cluster.
fn node_ports(cluster: &TestCluster) -> Result<()> {
    for (host, address) in [("node-1", NODE), ("node-1", "127.0.0.1"), ("master", NODE)] {
        let url = format!("http://{address}:30080/");
        let get = || {
            let mut wget = cluster.host(host)?.command("client", "busybox");
            cmd::text(wget.args(["timeout", "5", "wget", "-q", "-O", "-", &url]))
        };
        let said = cluster.eventually(20, get).with_context(|| format!("{url} from {host}"))?;
        ensure!(said.starts_with("v1 hello-"), "{url} from {host}: {said}");
    }
    Ok(())
}
