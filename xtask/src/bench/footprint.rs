//! `bench footprint`.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::Cluster;
use keelson_tests::testbed::host::Host;
use keelson_tests::{cmd, paths};
use serde_json::{Map, Value, json};

use super::containerd::Containerd;
use super::stats::{Samples, table};
use super::{comm, daemon, meminfo, processes, pss, rollup, start_pods, with_cluster, write};

/// How long a daemon is left alone before its memory is read, so that what a burst needed is given back.
const SETTLE: Duration = Duration::from_secs(5);

/// Arguments of `bench footprint`.
#[derive(Args)]
pub struct FootprintArgs {
    /// Numbers of running pods at which the agent is read.
    #[arg(long, value_delimiter = ',', default_value = "50,200")]
    running: Vec<usize>,
    /// Numbers of stored pods at which the master is read.
    #[arg(long, value_delimiter = ',', default_value = "1000,30000")]
    stored: Vec<usize>,
    /// Pods under containerd.
    #[arg(long, default_value_t = 50)]
    peers: usize,
}

/// Rows of the table: what, how many kB.
type Rows = Vec<(String, f64)>;

/// Measures and prints.
pub fn run(args: &FootprintArgs, steps: &mut Steps) -> Result<()> {
    let rows = with_cluster("bench", steps, |cluster, steps| {
        let mut rows = Rows::new();
        containerd(cluster, args.peers, steps, &mut rows)?;
        steps.step("settle", || settle(SETTLE))?;
        rows.push(("master, empty: PSS".to_owned(), pss(daemon(cluster, "master")?)?));
        rows.push(("agent with its spawner and DNS worker, no pod: PSS".to_owned(), agent(cluster)?));
        running(cluster, &args.running, steps, &mut rows)?;
        stored(cluster, &args.stored, steps, &mut rows)?;
        Ok(rows)
    })?;
    println!();
    let cells: Vec<Vec<String>> =
        rows.iter().map(|(name, kb)| vec![name.clone(), format!("{kb:.0}")]).collect();
    table(&["kB", ""], &cells);
    let figures: Map<String, Value> = rows.into_iter().map(|(name, kb)| (name, json!(kb))).collect();
    write("footprint", &json!({"unit": "kB", "rows": figures}))
}

fn running(cluster: &Cluster, levels: &[usize], steps: &mut Steps, rows: &mut Rows) -> Result<()> {
    let available = meminfo("MemAvailable")?;
    let mut have = 0;
    for &pods in levels {
        let name = format!("to-{pods}");
        steps.step(&format!("{pods} running pods"), || start_pods(cluster, &name, pods - have, 10))?;
        have = pods;
        steps.step("settle", || settle(SETTLE))?;
        rows.push((format!("agent with its spawner and DNS worker, {pods} pods: PSS"), agent(cluster)?));
    }
    let used = available.saturating_sub(meminfo("MemAvailable")?);
    rows.push(("a pod: MemAvailable's change, the user's process included".to_owned(), per(used, have)));
    each("podinit", &processes(&cluster.node(1)?.cgroup, "keelson-podinit")?, rows)
}

fn stored(cluster: &Cluster, levels: &[usize], steps: &mut Steps, rows: &mut Rows) -> Result<()> {
    let mut have = 0;
    for &pods in levels {
        steps.step(&format!("{pods} stored pods"), || {
            let mut command = Command::new(paths::bin("keelson-bench"));
            command.arg("store-pods").arg("--kubeconfig").arg(cluster.kubeconfig());
            command.args(["--name", &format!("stored-{pods}"), "--pods", &(pods - have).to_string()]);
            cmd::run(&mut command)
        })?;
        have = pods;
        steps.step("settle", || settle(SETTLE))?;
        rows.push((format!("master, {pods} pods stored: PSS"), pss(daemon(cluster, "master")?)?));
    }
    Ok(())
}

/// The same image in pods under containerd and runc, inside the node's host.
fn containerd(cluster: &Cluster, count: usize, steps: &mut Steps, rows: &mut Rows) -> Result<()> {
    let node = cluster.node(1)?;
    let peer = Containerd::start(cluster, steps)?;
    let available = meminfo("MemAvailable")?;
    steps.step("pods under containerd", || peer.pods("peer", count, 1))?;
    settle(SETTLE)?;
    let used = available.saturating_sub(meminfo("MemAvailable")?);
    rows.push((
        "containerd, a pod: MemAvailable's change, the user's process included".to_owned(),
        per(used, count),
    ));
    each("containerd's shim", &processes(&node.cgroup, "containerd-shim")?, rows)?;
    each("containerd's pause", &processes(&node.cgroup, "pause")?, rows)?;
    let daemon = processes(&node.cgroup, "containerd")?;
    let daemon = daemon.iter().filter(|&&pid| comm(pid).is_some_and(|comm| comm == "containerd"));
    rows.push((format!("containerd, {count} pods: PSS"), daemon.map(|&pid| pss(pid)).sum::<Result<f64>>()?));
    peer.remove_pods()?;
    peer.stop()
}

/// Medians over processes of one kind.
fn each(what: &str, pids: &[i32], rows: &mut Rows) -> Result<()> {
    for (row, name) in [("Private_Dirty", "Private_Dirty"), ("Pss", "PSS")] {
        let values: Vec<f64> = pids.iter().map(|&pid| rollup(pid, row)).collect::<Result<_>>()?;
        rows.push((format!("{what}, one of {}: {name}", pids.len()), Samples::new(values).percentile(50)));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "kilobytes of one machine")]
fn per(kb: u64, count: usize) -> f64 {
    kb as f64 / count.max(1) as f64
}

fn settle(time: Duration) -> Result<()> {
    std::thread::sleep(time);
    Ok(())
}

/// PSS of the agent and of the processes that it has as children: its spawner and its DNS worker.
fn agent(cluster: &Cluster) -> Result<f64> {
    let pid = daemon(cluster, "node-1")?;
    let node: Host = cluster.node(1)?;
    let children = processes(&node.cgroup.join("system/agent"), "")?;
    children.into_iter().filter(|&child| child != pid).try_fold(pss(pid)?, |sum, child| Ok(sum + pss(child)?))
}
