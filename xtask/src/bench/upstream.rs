//! Upstream's control plane as a peer: kube-apiserver, kube-scheduler and etcd, built from their modules as the suite of
//! `cargo xtask conformance` is. etcd is the version that this release of Kubernetes is made with: Debian's is too old for it
//! to serve consistent lists out of its cache.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use keelson_tests::progress::Steps;
use keelson_tests::testbed::host::Host;
use keelson_tests::testbed::network::PREFIX;
use serde_json::json;

use super::compare::Whose;
use super::plane::{Plane, Process};
use crate::conformance::suite::{Suite, VERSION};

/// What the peer is, for the output.
pub fn name() -> String {
    format!("kube-apiserver {VERSION} + etcd")
}

/// Port of the API; Keelson's is 6443, at the same address.
const PORT: u16 = 7443;
const ETCD: &str = "http://127.0.0.1:2379";
/// Its kubeconfigs, as the host has them.
const KUBECONFIG: &str = "/etc/kubernetes/upstream.conf";
const SCHEDULER_CONFIG: &str = "/etc/kubernetes/upstream-scheduler.json";

/// The programs.
pub struct Programs {
    etcd: PathBuf,
    apiserver: PathBuf,
    scheduler: Option<PathBuf>,
}

impl Programs {
    /// Builds what is not built yet.
    pub fn build(scheduler: bool, steps: &mut Steps) -> Result<Self> {
        let suite = steps.step("upstream's module", Suite::prepare)?;
        let mut build = |name: &str, package: &str| {
            steps.step(&format!("go build {name}"), || suite.program(name, package, false))
        };
        Ok(Self {
            etcd: build("etcd", "go.etcd.io/etcd/server/v3")?,
            apiserver: build("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver")?,
            scheduler: scheduler
                .then(|| build("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"))
                .transpose()?,
        })
    }

    /// Starts them with an empty store in the host of a master that has been started once: certificates, keys and
    /// administrator are that one's, so both control planes ask their clients for the same.
    pub fn start(&self, host: &Host) -> Result<Plane> {
        let admin = fs::read_to_string(host.dir.join("etc/kubernetes/admin.conf"))?;
        let ours = format!("https://{PREFIX}.2:6443");
        let theirs = admin.replace(&ours, &format!("https://{PREFIX}.2:{PORT}"));
        anyhow::ensure!(theirs != admin, "the administrator's kubeconfig does not name {ours}");
        fs::write(inside(host, KUBECONFIG), theirs)?;
        let data = host.dir.join("var/lib/etcd");
        if data.exists() {
            fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        }
        let mut plane = Plane {
            whose: Whose::Peers,
            host: host.clone(),
            kubeconfig: KUBECONFIG.to_owned(),
            processes: Vec::new(),
        };
        let mut spawn = |unit: &'static str, program: &PathBuf, args: Vec<String>| {
            let pid = host.spawn_daemon(unit, program, &args, None)?;
            plane.processes.push(Process { unit, pid });
            anyhow::Ok(())
        };
        spawn("etcd", &self.etcd, etcd_args())?;
        spawn("kube-apiserver", &self.apiserver, apiserver_args())?;
        if let Some(scheduler) = &self.scheduler {
            fs::write(inside(host, SCHEDULER_CONFIG), scheduler_config())?;
            let args = [
                "--config",
                SCHEDULER_CONFIG,
                "--bind-address=127.0.0.1",
                "--cert-dir=/var/lib/kube-scheduler",
            ];
            spawn("kube-scheduler", scheduler, args.map(str::to_owned).to_vec())?;
        }
        plane.wait_ready()?;
        Ok(plane)
    }
}

/// A file of the host, as the machine has it.
fn inside(host: &Host, path: &str) -> PathBuf {
    host.dir.join(path.trim_start_matches('/'))
}

/// As kubeadm starts it, but without TLS, and with room for 100,000 pods and their history.
fn etcd_args() -> Vec<String> {
    [
        "--data-dir=/var/lib/etcd".to_owned(),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--watch-progress-notify-interval=5s".to_owned(),
        "--quota-backend-bytes=8589934592".to_owned(),
        "--log-level=warn".to_owned(),
    ]
    .to_vec()
}

/// As kubeadm starts it. Nodes get no taint when they are made: no controller is there to take it away again.
fn apiserver_args() -> Vec<String> {
    let pki = "/etc/kubernetes/pki";
    [
        format!("--advertise-address={PREFIX}.2"),
        format!("--bind-address={PREFIX}.2"),
        format!("--secure-port={PORT}"),
        format!("--etcd-servers={ETCD}"),
        format!("--tls-cert-file={pki}/apiserver.crt"),
        format!("--tls-private-key-file={pki}/apiserver.key"),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--service-account-key-file={pki}/sa.pub"),
        format!("--service-account-signing-key-file={pki}/sa.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--disable-admission-plugins=TaintNodesByCondition".to_owned(),
    ]
    .to_vec()
}

/// Without the limit of 50 requests a second, as scheduler_perf has it (`test/integration/scheduler_perf/util.go`).
fn scheduler_config() -> String {
    json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": false},
        "clientConnection": {"kubeconfig": KUBECONFIG, "qps": 5000, "burst": 5000},
    })
    .to_string()
}
