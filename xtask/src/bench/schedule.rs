//! `bench schedule`.

use std::fs;

use anyhow::{Context, Result};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use serde_json::{Value, json};

use super::api::{number, samples};
use super::compare::{Comparison, Whose};
use super::plane::{Plane, order};
use super::upstream::Programs;
use super::{with_master, write};
use crate::conformance::suite::VERSION;

/// Arguments of `bench schedule`.
#[derive(Args)]
pub struct ScheduleArgs {
    /// Numbers of nodes.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,5000")]
    nodes: Vec<usize>,
    /// Workloads of upstream's scheduler_perf, by upstream's names.
    #[arg(long, value_delimiter = ',', default_values = WORKLOADS, value_parser = WORKLOADS)]
    workloads: Vec<String>,
    /// Rounds, in each of which both schedulers get the same pods, one after the other.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each step may take (nodes, first pods, measured pods), seconds.
    #[arg(long, default_value_t = 600)]
    limit: u64,
}

/// The workloads that the measuring program knows.
const WORKLOADS: [&str; 11] = [
    "SchedulingBasic",
    "SchedulingNodeAffinity",
    "SchedulingPodAffinity",
    "SchedulingPodAntiAffinity",
    "SchedulingPreferredPodAffinity",
    "SchedulingPreferredPodAntiAffinity",
    "TopologySpreading",
    "PreferredTopologySpreading",
    "PreemptionBasic",
    "PreemptionAsync",
    "Unschedulable",
];

/// What is left out, and why.
const LEFT_OUT: &[&str] = &[
    "DefaultTopologySpreading: Keelson's default constraints count pods of the same controller, not those of the same Service.",
    "Volumes and resource claims: Keelson's scheduler refuses pods with them.",
    "PreemptionBasic with more than 1,000 nodes: upstream has it commented out, since it always seems to fail there.",
];

/// How it is measured: part of the figures.
const CONDITIONS: &[&str] = &[
    "Each run has a new control plane with an empty store, and the other one does not run. Keelson's scheduler is inside \
     keelson-master; the peer is kube-scheduler beside kube-apiserver and etcd.",
    "Both run in the same test host with the same certificates; durable writes on the same disk. kube-scheduler may send 5,000 \
     requests a second, as in scheduler_perf, and looks at as many nodes as it does by default.",
    "Nodes are objects that nobody runs; no kubelet and no heartbeat. One client program creates 30 pods at a time and watches.",
    "Pods a second: from the first request that creates one to the event that shows the last one bound.",
    "Who comes first alternates. Each figure is the median of the rounds; the ratio is Keelson's to the peer's, paired by round.",
];

fn peer_name() -> String {
    format!("kube-scheduler {VERSION}, kube-apiserver, etcd")
}

/// Measures and prints.
pub fn run(args: &ScheduleArgs, steps: &mut Steps) -> Result<()> {
    let peer = Programs::build(true, steps);
    let (peer, missing) = match peer {
        Ok(peer) => (Some(peer), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    // Pod ranges for thousands of nodes, and nodes that need no heartbeat.
    let master_args = ["--cluster-cidr=10.128.0.0/9", "--node-monitor-grace-period=24h"];
    let options = Options { master_args: master_args.map(str::to_owned).to_vec(), ..Options::default() };
    let mut bench = Bench { peer, comparison: Comparison::default(), failures: Vec::new() };
    with_master("bench", &options, steps, |cluster, steps| bench.measure(cluster, args, steps))?;
    println!();
    CONDITIONS.iter().for_each(|line| println!("{line}"));
    LEFT_OUT.iter().for_each(|line| println!("Left out: {line}"));
    if let Some(reason) = &missing {
        println!("The peer, {}, can't be had: {reason}", peer_name());
    }
    bench.failures.iter().for_each(|failure| println!("Failed: {failure}"));
    println!();
    bench.comparison.print("upstream");
    let figures = json!({
        "conditions": CONDITIONS, "left out": LEFT_OUT, "peer": peer_name(), "peer can't be had": missing,
        "rounds": args.rounds, "failed": bench.failures, "rows": bench.comparison.json(),
    });
    write("schedule", &figures)
}

struct Bench {
    peer: Option<Programs>,
    comparison: Comparison,
    /// Runs that came to no end: they are told beside the figures of the others.
    failures: Vec<String>,
}

impl Bench {
    fn measure(&mut self, cluster: &mut Cluster, args: &ScheduleArgs, steps: &mut Steps) -> Result<()> {
        // It has made its keys.
        cluster.kill_daemon("master")?;
        for &nodes in &args.nodes {
            for workload in args.workloads.iter().filter(|workload| !is_left_out(workload, nodes)) {
                for round in 0..args.rounds {
                    self.round(cluster, workload, nodes, round, args.limit, steps)?;
                }
            }
        }
        Ok(())
    }

    /// One run of each, in turn. A round in which one fails gives no figures, so that figures are pairs.
    fn round(
        &mut self,
        cluster: &mut Cluster,
        workload: &str,
        nodes: usize,
        round: usize,
        limit: u64,
        steps: &mut Steps,
    ) -> Result<()> {
        let mut all = vec![Whose::Ours];
        all.extend(self.peer.as_ref().map(|_| Whose::Peers));
        let name = format!("{workload}, {nodes} nodes");
        let mut told = Vec::new();
        for place in order(round, all.len()) {
            let Some(&whose) = all.get(place) else { continue };
            let plane = self.start(cluster, whose)?;
            let (nodes, limit) = (nodes.to_string(), limit.to_string());
            let words = ["--workload", workload, "--nodes", &nodes, "--limit", &limit];
            let step = format!("{name}: {}", plane.name());
            match steps.step(&step, || plane.client("schedule", &words)) {
                Ok(value) => told.push((whose, value)),
                Err(error) => self.failures.push(format!("{step}: {error:#}")),
            }
            end(cluster, plane)?;
        }
        if told.len() == all.len() {
            told.iter().try_for_each(|(whose, value)| self.take(*whose, &name, value))?;
        }
        Ok(())
    }

    fn take(&mut self, whose: Whose, name: &str, told: &Value) -> Result<()> {
        self.comparison.add(whose, name, "pods/s", number(told, "pods")? / number(told, "seconds")?);
        self.comparison.add(
            whose,
            &format!("{name}: watches that the server ended"),
            "",
            number(told, "ended")?,
        );
        let times = samples(told, "bound_us")?;
        for (percent, unit) in [(50, "ms, p50"), (99, "ms, p99")] {
            let ms = times.percentile(percent) / 1e3;
            self.comparison.add(whose, &format!("{name}: created to bound"), unit, ms);
        }
        Ok(())
    }

    /// A new control plane with an empty store.
    fn start(&self, cluster: &mut Cluster, whose: Whose) -> Result<Plane> {
        match (whose, &self.peer) {
            (Whose::Peers, Some(programs)) => programs.start(&cluster.host("master")?),
            _ => {
                let data = cluster.host("master")?.dir.join("var/lib/keelson-master");
                fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
                cluster.start_master()?;
                Plane::keelson(cluster)
            }
        }
    }
}

fn end(cluster: &mut Cluster, plane: Plane) -> Result<()> {
    match plane.whose {
        Whose::Ours => cluster.kill_daemon("master"),
        Whose::Peers => plane.end(),
    }
}

fn is_left_out(workload: &str, nodes: usize) -> bool {
    workload == "PreemptionBasic" && nodes > 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_upstream_leaves_out_is_left_out() {
        assert!(is_left_out("PreemptionBasic", 5_000));
        assert!(!is_left_out("PreemptionBasic", 1_000));
        assert!(!is_left_out("SchedulingBasic", 5_000));
    }
}
