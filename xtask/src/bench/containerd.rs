//! The peer of pods: containerd and runc, driven by crictl, with pods on a bridge network.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keelson_tests::debian::{self, Apt};
use keelson_tests::go_module::{self, Module};
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::Cluster;
use keelson_tests::testbed::host::Host;
use keelson_tests::testbed::sample::retry;
use keelson_tests::{cmd, images, paths};
use serde_json::{Value, json};

use super::IMAGE;
use crate::build;
use crate::conformance::suite::Suite;

/// crictl of the Kubernetes release that the API follows.
const CRICTL: Module = Module {
    name: "crictl",
    go_mod: "module keelson.test/crictl\n\ngo 1.26.0\n\nrequire sigs.k8s.io/cri-tools v1.36.0\n",
    main: "package crictl\n\nimport _ \"sigs.k8s.io/cri-tools/cmd/crictl\"\n",
    package: "sigs.k8s.io/cri-tools/cmd/crictl",
};

/// Upstream's `pause`, which containerd runs in each pod.
const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// Where the host sees what this brings.
const BASE: &str = "/var/lib/bench-peer";

/// A running containerd on the first node.
pub struct Containerd {
    node: Host,
    pid: i32,
}

impl Containerd {
    /// Fetches and builds what it takes, and starts the daemon with its images imported.
    pub fn start(cluster: &Cluster, steps: &mut Steps) -> Result<Self> {
        steps.step("containerd, runc", || {
            build::ensure_tools(&[("containerd", "containerd"), ("runc", "runc")])
        })?;
        let suite = Suite::prepare()?;
        let crictl = steps.step("crictl", || go_module::build(&CRICTL, || suite.go_anywhere()))?;
        let pause = steps.step("pause", || crate::conformance::image(&suite, PAUSE))?;
        let node = cluster.node(1)?;
        let outside = node.dir.join(BASE.trim_start_matches('/'));
        fs::create_dir_all(outside.join("net.d"))?;
        steps.step("bridge plugin", || plugins(&outside.join("plugins")))?;
        fs::copy(crictl, outside.join("crictl"))?;
        fs::copy(pause, outside.join("pause.tar"))?;
        fs::copy(images::ensure(IMAGE)?, outside.join("image.tar"))?;
        fs::write(outside.join("net.d/10-bridge.conflist"), serde_json::to_vec_pretty(&network())?)?;
        fs::write(outside.join("config.toml"), config())?;
        let args = ["--config".to_owned(), format!("{BASE}/config.toml")];
        let pid = node.spawn_daemon("containerd", Path::new("/usr/bin/containerd"), &args, None)?;
        let peer = Self { node, pid };
        steps.step("containerd ready", || peer.ready())?;
        Ok(peer)
    }

    /// Waits for the daemon and gives it the images.
    fn ready(&self) -> Result<()> {
        let ready = Instant::now() + Duration::from_secs(20);
        retry(ready, || cmd::run(self.crictl().arg("info")))?;
        for archive in ["pause.tar", "image.tar"] {
            let path = format!("{BASE}/{archive}");
            let mut import = self.node.command("client", "ctr");
            import.args(["--address", &format!("{BASE}/containerd.sock"), "--namespace", "k8s.io"]);
            cmd::run(import.args(["images", "import", &path]))?;
        }
        Ok(())
    }

    fn crictl(&self) -> Command {
        let mut command = self.node.command("client", &format!("{BASE}/crictl"));
        command.args(["--runtime-endpoint", &endpoint(), "--image-endpoint", &endpoint()]);
        command
    }

    /// Starts pods and leaves them running; how long each took, milliseconds, crictl's own start included.
    pub fn pods(&self, name: &str, pods: usize, at_once: usize) -> Result<Vec<f64>> {
        let mut command = self.node.command("client", &paths::bin("keelson-bench").to_string_lossy());
        command.args(["crictl", "--crictl", &format!("{BASE}/crictl"), "--endpoint", &endpoint()]);
        command.args(["--image", &images::reference(IMAGE), "--name", name]);
        command.args(["--pods", &pods.to_string(), "--at-once", &at_once.to_string()]);
        let micros: Vec<f64> = serde_json::from_str(&cmd::text(&mut command)?)?;
        Ok(micros.into_iter().map(|us| us / 1e3).collect())
    }

    /// How long a crictl takes that asks the daemon nothing but its version: what of a pod's time is crictl's own.
    pub fn crictl_alone(&self, count: usize) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..count {
            let began = Instant::now();
            cmd::run(self.crictl().arg("version"))?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    /// Ends the daemon, which has no pods any more.
    pub fn stop(self) -> Result<()> {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGTERM)?;
        Ok(())
    }

    /// Removes all its pods.
    pub fn remove_pods(&self) -> Result<()> {
        cmd::run(self.crictl().args(["--timeout", "120s", "rmp", "--all", "--force"])).map(drop)
    }
}

fn endpoint() -> String {
    format!("unix://{BASE}/containerd.sock")
}

/// The reference CNI plugins that a bridge takes, out of Debian's package.
fn plugins(into: &Path) -> Result<()> {
    let deb = Apt::suite(&debian::codename()?)?.package("containernetworking-plugins")?;
    let unpacked = tempfile::tempdir_in(paths::target())?;
    debian::unpack(&deb, unpacked.path())?;
    fs::create_dir_all(into)?;
    for name in ["bridge", "host-local", "loopback"] {
        let from = unpacked.path().join("usr/lib/cni").join(name);
        fs::copy(&from, into.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

/// A bridge with addresses of its own; nothing is masqueraded, which would take iptables.
fn network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "peer",
        "plugins": [{
            "type": "bridge", "bridge": "peer0", "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.99.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

/// containerd's configuration: its defaults, with folders of its own; without cgroup limits where the test machine has no
/// controllers for them, so that it does less work than on a node.
fn config() -> String {
    format!(
        r#"version = 2
root = "{BASE}/root"
state = "{BASE}/state"
[grpc]
address = "{BASE}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
disable_cgroup = true
disable_apparmor = true
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{BASE}/plugins"
conf_dir = "{BASE}/net.d"
"#
    )
}
