//! `bench footprint`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::Cluster;
use keelson_tests::testbed::host::Host;
use keelson_tests::testbed::sample::retry;
use keelson_tests::{cmd, images, paths};
use serde_json::{Map, Value, json};

use super::stats::{Samples, table};
use super::{IMAGE, daemon, meminfo, pss, rollup, start_pods, with_cluster, write};
use crate::build;

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
    /// Containers under containerd.
    #[arg(long, default_value_t = 20)]
    peers: usize,
}

/// Rows of the table: what, how many kB.
type Rows = Vec<(String, f64)>;

/// Measures and prints.
pub fn run(args: &FootprintArgs, steps: &mut Steps) -> Result<()> {
    steps.step("containerd", || build::ensure_tools(&[("containerd", "containerd"), ("runc", "runc")]))?;
    let rows = with_cluster("bench", steps, |cluster, steps| {
        let mut rows = Rows::new();
        steps.step("containers under containerd", || containerd(cluster, args.peers, &mut rows))?;
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

/// The same image under containerd, by its own client, inside the node's host.
fn containerd(cluster: &Cluster, count: usize, rows: &mut Rows) -> Result<()> {
    let node = cluster.node(1)?;
    let daemon = node.spawn_daemon("containerd", Path::new("/usr/bin/containerd"), &[], None)?;
    let ctr = |words: &[&str]| cmd::run(node.command("client", "ctr").args(words));
    retry(Instant::now() + Duration::from_secs(20), || ctr(&["version"]))?;
    let archive = node.dir.join("var/lib/bench-image.tar");
    fs::copy(images::ensure(IMAGE)?, archive)?;
    ctr(&["images", "import", "/var/lib/bench-image.tar"])?;
    let available = meminfo("MemAvailable")?;
    let ids: Vec<String> = (0..count).map(|n| format!("peer-{n}")).collect();
    for id in &ids {
        // Its default of 1024 shares needs the controller cpu, which a test machine may lack.
        ctr(&["run", "--detach", "--cpu-shares", "0", &images::reference(IMAGE), id])?;
    }
    settle(Duration::from_secs(1))?;
    let used = available.saturating_sub(meminfo("MemAvailable")?);
    rows.push((
        "containerd, a container: MemAvailable's change, the user's process included".to_owned(),
        per(used, count),
    ));
    each("containerd's shim", &processes(&node.cgroup, "containerd-shim")?, rows)?;
    for id in &ids {
        ctr(&["tasks", "kill", "--signal", "SIGKILL", id])?;
        retry(Instant::now() + Duration::from_secs(10), || ctr(&["containers", "delete", id]))?;
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGTERM)?;
    Ok(())
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

/// Processes in a cgroup and below it whose command name begins so.
fn processes(cgroup: &Path, name: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for line in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
        let pid: i32 = line.parse()?;
        // It may end meanwhile.
        if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.starts_with(name)) {
            found.push(pid);
        }
    }
    for entry in fs::read_dir(cgroup).with_context(|| format!("read {}", cgroup.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(processes(&entry.path(), name)?);
        }
    }
    Ok(found)
}
