//! The load under which things are broken: the client with the journal, and on each node clients of the Services.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::invariants::{Answer, answers};
use super::journal::WRITTEN;
use crate::testbed::fixture::TestCluster;
use crate::testbed::registry;
use crate::{images, paths};

/// Services, and the Deployments behind them.
pub const SERVICES: [&str; 2] = ["web", "pulled"];
/// Images that nodes have from the beginning.
pub const IMAGES: [&str; 2] = ["testapp-v1", "testapp-v2"];
/// How long the client may take to end: it waits for answers and for its watch.
const ENDING: Duration = Duration::from_secs(60);
/// How long the first pods may take.
const BEGINNING: u64 = 90;

/// Name in the registry of what is pulled from there.
pub fn pulled_image() -> String {
    registry::reference(&images::reference(IMAGES[0]))
}

/// Puts the image into the registry's storage.
pub fn fill_registry() -> Result<()> {
    let archive = images::ensure(IMAGES[0])?;
    registry::fill([(images::reference(IMAGES[0]).as_str(), archive.as_path())])
}

/// The load while it runs.
pub struct Load {
    client: Child,
    journal: PathBuf,
    log: PathBuf,
    askers: Vec<Asker>,
}

/// What a client of a Service was answered.
pub struct Asked {
    /// Its node.
    pub node: usize,
    /// The Service.
    pub service: &'static str,
    /// The answers, in order.
    pub answers: Vec<Answer>,
}

/// A client of a Service, on a node but in no pod.
struct Asker {
    node: usize,
    service: &'static str,
    child: Child,
    answers: PathBuf,
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in std::iter::once(&mut self.client).chain(self.askers.iter_mut().map(|a| &mut a.child)) {
            // Over already, if all went well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command that asks a Service from a node.
fn ask(cluster: &TestCluster, node: usize, service: &str, options: &[&str]) -> Result<Command> {
    let ip = cluster.kubectl.run(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])?;
    ensure!(!ip.is_empty(), "the Service {service} has no clusterIP");
    let program = paths::target().join("x86_64-unknown-linux-gnu/podinit/keelson-testapp");
    let mut command = cluster.node(node)?.command("client", &program.display().to_string());
    command.args(["ask", &format!("{ip}:80")]).args(options).stdin(Stdio::null());
    Ok(command)
}

/// Asks a Service at rest, from a node, for three seconds.
pub fn ask_at_rest(cluster: &TestCluster, node: usize, service: &str) -> Result<Vec<Answer>> {
    let output =
        ask(cluster, node, service, &["--seconds", "3", "--every-ms", "10"])?.output().context("ask")?;
    Ok(answers(&String::from_utf8_lossy(&output.stdout)))
}

impl Load {
    /// Starts all of it, and waits until the Services answer everywhere.
    pub fn start(cluster: &TestCluster, dir: &Path, seed: u64, rate: u32) -> Result<Self> {
        for service in SERVICES {
            let spec = json!({"selector": {"app": service}, "ports": [{"port": 80, "targetPort": 8080}]});
            let body =
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": service}, "spec": spec});
            cluster.kubectl.apply(&body.to_string())?;
        }
        let journal = dir.join("journal.jsonl");
        let mut command = Command::new(paths::bin("keelson-bench"));
        command.arg("chaos-load").arg("--kubeconfig").arg(cluster.kubeconfig());
        command.arg("--journal").arg(&journal);
        command.args(["--seed", &seed.to_string(), "--nodes", &cluster.nodes().to_string()]);
        command.args([
            "--image",
            &images::reference(IMAGES[0]),
            "--other-image",
            &images::reference(IMAGES[1]),
        ]);
        command.args(["--pulled-image", &pulled_image(), "--rate", &rate.to_string()]);
        let log = dir.join("load.log");
        let output = File::create(&log)?;
        let client = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn();
        let client = client.context("start keelson-bench")?;
        let mut load = Self { client, journal, log, askers: Vec::new() };
        cluster.eventually(BEGINNING, || {
            for name in SERVICES.iter().map(|name| format!("deployment/{name}")) {
                cluster.kubectl.run(&["wait", "--for=condition=Available", &name, "--timeout=1s"])?;
            }
            Ok(())
        })?;
        for node in 1..=cluster.nodes() {
            for service in SERVICES {
                let answers = dir.join(format!("answers-node-{node}-{service}"));
                let mut command = ask(cluster, node, service, &["--seconds", "86400", "--every-ms", "100"])?;
                let child = command.stdout(File::create(&answers)?).spawn().context("start a client")?;
                load.askers.push(Asker { node, service, child, answers });
            }
        }
        Ok(load)
    }

    /// Has the client of the API write no more, and waits until it has all answers. It watches on.
    pub fn end_writing(&mut self) -> Result<()> {
        self.signal_client(|load| Ok(fs::read_to_string(&load.log)?.contains(WRITTEN)))
    }

    /// Ends it; gives its journal.
    pub fn end_client(&mut self) -> Result<PathBuf> {
        self.signal_client(|load| Ok(load.client.try_wait()?.is_some_and(|status| status.success())))?;
        Ok(self.journal.clone())
    }

    fn signal_client(&mut self, over: impl Fn(&mut Self) -> Result<bool>) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.client.id().try_into()?);
        if self.client.try_wait()?.is_none() {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + ENDING;
        while !over(self)? {
            if let Some(status) = self.client.try_wait()?.filter(|status| !status.success()) {
                bail!("the load's client ended with {status}: see load.log");
            }
            ensure!(Instant::now() < deadline, "the load's client does not end: see load.log");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends the clients of the Services; gives what they were answered.
    pub fn end_askers(&mut self) -> Result<Vec<Asked>> {
        let mut all = Vec::new();
        for asker in &mut self.askers {
            asker.child.kill()?;
            asker.child.wait()?;
            let answers = answers(&fs::read_to_string(&asker.answers)?);
            all.push(Asked { node: asker.node, service: asker.service, answers });
        }
        Ok(all)
    }
}

/// Names of a Service's pods that are ready, out of all pods.
pub fn ready_pods(pods: &[Value], service: &str) -> std::collections::BTreeSet<String> {
    let ready = |pod: &&Value| {
        pod["metadata"]["labels"]["app"] == service
            && pod["status"]["conditions"].as_array().is_some_and(|conditions| {
                conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
    };
    pods.iter().filter(ready).filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect()
}
