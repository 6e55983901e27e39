//! Two machines form one cluster over VXLAN: two guests on one wire, each with the daemons on the machine itself. Between
//! them is a router that knows no pods, and lets none of their packets through that is not wrapped.
//!
//! `two_machines…` boots the guests; `left_*` and `right_*` run in there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_tests::kubectl::Kubectl;
use keelson_tests::testbed::sample::retry;
use keelson_tests::vm::Kernel;
use keelson_tests::vm::programs::GuestTests;
use keelson_tests::{cmd, images, paths};

const MANIFEST: &str = include_str!("vm_nodes.yaml");
/// Addresses of the machines; the router has `.254` of both networks.
const LEFT: &str = "10.1.1.1";
const RIGHT: &str = "10.1.2.1";
/// Where the left machine has its files for the other, and where it says that all is done.
const SHARE: &str = "/run/share";
const BOOTSTRAP: &str = "bootstrap-kubelet.conf";
const DONE: &str = "done";
/// What a pod sends to another.
const BYTES: usize = 8 << 20;

#[test]
fn two_machines_form_one_cluster_over_vxlan() -> Result<()> {
    let tests = GuestTests {
        prefix: "left_",
        kernel: Kernel::V6_12,
        memory_mib: 1536,
        images: &["testapp-v1"],
        limit: Duration::from_secs(480),
    };
    GuestTests::run_joined(&tests, &GuestTests { prefix: "right_", ..tests })
}

/// A shell script. The shell is busybox's, which takes its own `ip` for any without a path.
fn sh(script: &str) -> Result<String> {
    cmd::text(Command::new("sh").args(["-ec", script]))
}

fn eventually<T>(seconds: u64, work: impl FnMut() -> Result<T>) -> Result<T> {
    retry(Instant::now() + Duration::from_secs(seconds), work)
}

/// A daemon of the machine, in a cgroup of its own, with its log among the guest's results.
fn start(name: &str, program: &str, args: &[&str]) -> Result<Child> {
    let log = File::create(format!("/output/{name}.log"))?;
    let cgroup = format!("/sys/fs/cgroup/system/{name}");
    fs::create_dir_all(&cgroup)?;
    let program = paths::bin(program);
    let enter = format!("echo 0 >{cgroup}/cgroup.procs; exec {} \"$@\"", program.display());
    Command::new("sh")
        .args(["-ec", &enter, name])
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {name}"))
}

fn ensure_runs(daemon: &mut Child, name: &str) -> Result<()> {
    if let Some(status) = daemon.try_wait()? {
        let log = fs::read_to_string(format!("/output/{name}.log"))?;
        let lines: Vec<&str> = log.lines().collect();
        bail!("{name} ended with {status}:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
    }
    Ok(())
}

/// Makes this machine a node.
fn start_agent(name: &str, address: &str) -> Result<Child> {
    fs::create_dir_all("/opt/cni/bin")?;
    fs::copy(paths::bin("keelson-cni"), "/opt/cni/bin/keelson-cni")?;
    let import = Path::new("/var/lib/keelson/import");
    fs::create_dir_all(import)?;
    fs::copy(images::ensure("testapp-v1")?, import.join("testapp-v1.tar"))?;
    let podinit = paths::target().join("x86_64-unknown-linux-gnu/podinit/keelson-podinit");
    start(
        "agent",
        "keelson-agent",
        &[
            &format!("--bootstrap-kubeconfig=/etc/kubernetes/{BOOTSTRAP}"),
            &format!("--hostname-override={name}"),
            &format!("--node-ip={address}"),
            &format!("--podinit={}", podinit.display()),
        ],
    )
}

/// Ends the test in the other guest, whatever becomes of this one.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(SHARE).join(DONE), "");
        // The other one asks every second.
        std::thread::sleep(Duration::from_secs(3));
    }
}

#[test]
#[ignore = "runs in a guest"]
fn right_is_a_node() -> Result<()> {
    sh(&format!(
        "/bin/ip address add {RIGHT}/24 dev eth0; /bin/ip link set eth0 up; /bin/ip route add default via 10.1.2.254; \
         mkdir -p /etc/kubernetes"
    ))?;
    let share = format!("http://{LEFT}:8000");
    eventually(120, || {
        sh(&format!("timeout 5 wget -q -O /etc/kubernetes/{BOOTSTRAP} {share}/{BOOTSTRAP} 2>&1"))
    })?;
    let mut agent = start_agent("right", RIGHT)?;
    let start = Instant::now();
    while sh(&format!("timeout 5 wget -q -O /dev/null {share}/{DONE} 2>&1")).is_err() {
        ensure_runs(&mut agent, "agent")?;
        ensure!(start.elapsed() < Duration::from_secs(460), "the other machine does not come to an end");
        std::thread::sleep(Duration::from_secs(1));
    }
    let _ = sh("(/bin/ip route; /bin/ip neigh; /bin/ip -s link) >/output/network.txt");
    Ok(())
}

/// The router that the wire ends in, on the left machine: it counts what goes over the wire, and drops what has a pod's
/// address.
const ROUTER: &str = r#"
/bin/ip netns add router
/bin/ip link set eth0 netns router
/bin/ip link add lan0 type veth peer name lan1 netns router
/bin/ip address add 10.1.1.1/24 dev lan0
/bin/ip link set lan0 up
/bin/ip route add default via 10.1.1.254
/bin/ip netns exec router sh -ec '
    /bin/ip link set lo up
    /bin/ip address add 10.1.1.254/24 dev lan1
    /bin/ip address add 10.1.2.254/24 dev eth0
    /bin/ip link set lan1 up
    /bin/ip link set eth0 up
    echo 1 >/proc/sys/net/ipv4/ip_forward
    echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter
    nft -f - <<END
        table inet wire {
            counter bare { }
            counter wrapped { }
            counter fragments { }
            chain seen {
                type filter hook prerouting priority -500;
                ip frag-off & 0x3fff != 0 counter name fragments
                ip saddr 10.244.0.0/16 counter name bare drop
                ip daddr 10.244.0.0/16 counter name bare drop
                udp dport 8472 counter name wrapped
            }
        }
END
'
"#;

/// Packets that the router has counted.
fn counted(what: &str) -> Result<u64> {
    counter(what, "packets")
}

/// `packets` or `bytes` of a counter.
fn counter(what: &str, unit: &str) -> Result<u64> {
    let text = sh(&format!("/bin/ip netns exec router nft list counter inet wire {what}"))?;
    let number = text.split_whitespace().skip_while(|word| *word != unit).nth(1);
    number.and_then(|number| number.parse().ok()).with_context(|| format!("no counter: {text}"))
}

#[test]
#[ignore = "runs in a guest"]
fn left_is_a_node_with_the_master() -> Result<()> {
    let _ending = Ending;
    sh(ROUTER)?;
    fs::create_dir_all("/etc/kubernetes")?;
    fs::create_dir_all(SHARE)?;
    sh(&format!("httpd -p {LEFT}:8000 -h {SHARE}"))?;
    let mut master = start(
        "master",
        "keelson-master",
        &[&format!("--advertise-address={LEFT}"), &format!("--bind-address={LEFT}")],
    )?;
    let admin = Path::new("/etc/kubernetes/admin.conf");
    let kubectl = eventually(90, || {
        ensure_runs(&mut master, "master")?;
        ensure!(admin.exists(), "no kubeconfig yet");
        let kubectl = Kubectl::new(admin)?;
        kubectl.run(&["get", "--raw", "/readyz"]).map(|_ok| kubectl)
    })?;
    // Whole or not at all: the other machine asks for it all the time.
    let partial = Path::new(SHARE).join("partial");
    fs::copy(Path::new("/etc/kubernetes").join(BOOTSTRAP), &partial)?;
    fs::rename(&partial, Path::new(SHARE).join(BOOTSTRAP))?;
    let mut agent = start_agent("left", LEFT)?;
    eventually(120, || {
        ensure_runs(&mut agent, "agent")?;
        kubectl.run(&["wait", "--for=condition=Ready", "node/left", "node/right", "--timeout=2s"])
    })?;
    kubectl.apply(MANIFEST)?;
    kubectl.run(&["wait", "--for=condition=Ready", "pod/on-left", "pod/on-right", "--timeout=90s"])?;
    let result = pods_reach_each_other(&kubectl).and_then(|()| clients_of_services(&kubectl));
    let _ = sh(
        "(/bin/ip route; /bin/ip neigh; /bin/ip -s link; /bin/ip netns exec router nft list ruleset) >/output/network.txt",
    );
    result?;
    ensure_runs(&mut agent, "agent")
}

fn pods_reach_each_other(kubectl: &Kubectl) -> Result<()> {
    let exec = |pod: &str, script: &str| kubectl.run(&["exec", pod, "--", "sh", "-c", script]);
    let ip = |pod: &str| kubectl.run(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"]);
    let node = sh("/bin/ip route")?;
    ensure!(node.contains(&format!("via {RIGHT} dev vxlan.keelson")), "{node}");
    for (from, to) in [("on-left", "on-right"), ("on-right", "on-left")] {
        let address = ip(to)?;
        // The first may come before the other node's route.
        eventually(30, || exec(from, &format!("ping -c 1 -W 1 {address}")))?;
        ensure!(exec(from, "cat /sys/class/net/eth0/mtu")? == "1450");
        // A connection that carries far more than a packet, and neither node has to cut one.
        let before = (counter("wrapped", "bytes")?, counted("fragments")?);
        let file = format!("mkdir -p /tmp; head -c {BYTES} /dev/urandom >/tmp/sent; md5sum </tmp/sent");
        let sum = exec(to, &format!("{file}; httpd -p 9000 -h /tmp"))?;
        let got = exec(from, &format!("timeout 60 wget -q -O - http://{address}:9000/sent | md5sum"))?;
        ensure!(got == sum, "{got} was received, {sum} sent");
        let after = (counter("wrapped", "bytes")?, counted("fragments")?);
        // Bytes: on this side of the machine's card packets are still together.
        ensure!(after.0 - before.0 > BYTES as u64, "{before:?} {after:?}");
        ensure!(after.1 == before.1, "outer packets were cut: {before:?} {after:?}");
        // The largest packet that goes whole, and one that the pod itself cuts.
        exec(from, &format!("ping -c 3 -W 2 -s 1422 {address}"))?;
        ensure!(counted("fragments")? == before.1);
        exec(from, &format!("ping -c 3 -W 2 -s 4000 {address}"))?;
        // The Service across nodes, by its name; the pod that answers says who it is.
        let url = format!("http://{to}.default.svc.cluster.local/");
        let said = eventually(20, || exec(from, &format!("timeout 10 wget -q -O - {url}")))?;
        ensure!(said == format!("v1 {to}"), "{url}: {said}");
        let said = eventually(20, || exec(from, &format!("/testapp udp-client {to}:53")))?;
        ensure!(said == format!("v1 {to}"), "{to} over UDP: {said}");
    }
    ensure!(counted("bare")? == 0, "a pod's address was seen on the wire");
    Ok(())
}

/// A client that is no pod: the node itself, which sends through the tunnel. (One outside of the cluster is not to be had
/// here: sockets of the router are this machine's.)
fn clients_of_services(kubectl: &Kubectl) -> Result<()> {
    let ip = kubectl.run(&["get", "service", "on-right", "-o", "jsonpath={.spec.clusterIP}"])?;
    for url in [format!("http://{ip}/"), format!("http://{RIGHT}:30080/")] {
        let said = eventually(20, || sh(&format!("timeout 10 wget -q -O - {url}")))?;
        ensure!(said == "v1 on-right", "{url}: {said}");
    }
    ensure!(counted("bare")? == 0, "a pod's address was seen on the wire");
    Ok(())
}
