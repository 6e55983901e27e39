//! A cluster for one test: made with `TestCluster::up`, ended with `down`. Dropped before that, the test has failed, and
//! the state of the cluster is shown.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cluster::{Cluster, Options};
use super::sample::retry;
use crate::kubectl::Kubectl;

/// A cluster that ends with the test.
pub struct TestCluster {
    cluster: Option<Cluster>,
    /// kubectl as administrator.
    pub kubectl: Kubectl,
}

impl TestCluster {
    /// Makes a cluster with these images preloaded and waits until its nodes are Ready.
    pub fn up(name: &str, nodes: usize, images: &[&str]) -> Result<Self> {
        Self::up_with(name, nodes, images, &[])
    }

    /// As [`TestCluster::up`], with arguments for each agent.
    pub fn up_with(name: &str, nodes: usize, images: &[&str], agent_args: &[&str]) -> Result<Self> {
        Self::up_prepared(name, nodes, images, agent_args, |_| Ok(()))
    }

    /// As [`TestCluster::up_with`], with work on the hosts before any daemon runs.
    pub fn up_prepared(
        name: &str,
        nodes: usize,
        images: &[&str],
        agent_args: &[&str],
        prepare: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<Self> {
        // What an interrupted run left.
        if let Some(old) = Cluster::find(name)? {
            old.destroy()?;
        }
        let agent_args = agent_args.iter().map(|&arg| arg.to_owned()).collect();
        let cluster = Cluster::create(name, &Options { nodes, agent_args, ..Options::default() })?;
        let kubectl = Kubectl::new(&cluster.kubeconfig())?;
        let mut test = Self { cluster: Some(cluster), kubectl };
        test.preload_images(images)?;
        prepare(&test)?;
        test.start_master()?;
        for n in 1..=nodes {
            test.start_agent(n)?;
        }
        test.wait_nodes_ready(Duration::from_secs(60))?;
        Ok(test)
    }

    /// Waits for a rollout.
    pub fn rolled_out(&self, what: &str) -> Result<()> {
        self.kubectl.run(&["rollout", "status", what, "--timeout=120s"]).map(drop)
    }

    /// Runs a shell command in a pod.
    pub fn sh(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl.run(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Sends SIGTERM to a container's first process. The shell that does it ends with the container, at times before it can
    /// say that it succeeded; what the container then logs tells.
    pub fn terminate(&self, pod: &str) {
        let _ = self.sh(pod, "kill -TERM 1");
    }

    /// Tries for at most `seconds` until the work succeeds.
    pub fn eventually<T>(&self, seconds: u64, work: impl FnMut() -> Result<T>) -> Result<T> {
        retry(Instant::now() + Duration::from_secs(seconds), work)
    }

    /// Ends the cluster, as [`Cluster::destroy`].
    pub fn down(mut self) -> Result<()> {
        self.cluster.take().context("the cluster is there until it is dropped")?.destroy()
    }
}

impl Deref for TestCluster {
    type Target = Cluster;

    #[expect(clippy::expect_used, reason = "taken only by down and drop, which consume the fixture")]
    fn deref(&self) -> &Cluster {
        self.cluster.as_ref().expect("the cluster lives as long as the fixture")
    }
}

impl DerefMut for TestCluster {
    #[expect(clippy::expect_used, reason = "taken only by down and drop, which consume the fixture")]
    fn deref_mut(&mut self) -> &mut Cluster {
        self.cluster.as_mut().expect("the cluster lives as long as the fixture")
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        let Some(cluster) = self.cluster.take() else { return };
        {
            for what in [
                &["get", "pods", "-A", "-o", "wide"][..],
                &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            ] {
                eprintln!(
                    "--- kubectl {what:?}\n{}",
                    self.kubectl.run(what).unwrap_or_else(|e| e.to_string())
                );
            }
            for host in
                std::iter::once("master".to_owned()).chain((1..=cluster.nodes()).map(|n| format!("node-{n}")))
            {
                let log = std::fs::read_to_string(cluster.log(&host)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("--- last lines of {host}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
        if std::env::var_os("KEELSON_KEEP").is_some() {
            eprintln!("KEELSON_KEEP: {} is left", cluster.dir().display());
            return;
        }
        if let Err(error) = cluster.destroy() {
            eprintln!("end the test cluster: {error:#}");
        }
    }
}
