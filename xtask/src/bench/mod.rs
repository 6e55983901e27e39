//! `cargo xtask bench NAME`: figures of optimised builds on a cluster of this machine, each beside a peer measured in the
//! same run, as a table on the screen and as `target/bench/NAME.json`.

mod api;
mod compare;
mod containerd;
mod coredns;
mod dns;
mod footprint;
mod plane;
mod pod_start;
mod schedule;
mod service;
mod simulate;
mod stats;
mod upstream;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use keelson_tests::{checkout, cmd, images, paths};
use serde_json::{Value, json};

use crate::build;

/// Arguments of `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Measure programs that are not optimised: to see that a benchmark runs. Its figures are worth nothing.
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// From the binding of a pod to its running containers, by phase, beside containerd's pods and bare `runc run`.
    PodStart(pod_start::PodStartArgs),
    /// Memory of the daemons and of each pod, beside containerd's shims.
    Footprint(footprint::FootprintArgs),
    /// Nodes and pods without processes: how long the control plane takes over them, and how much memory.
    Simulate(simulate::SimulateArgs),
    /// Requests, lists, events and memory, beside upstream's kube-apiserver and etcd.
    Api(api::ApiArgs),
    /// Pods a second on simulated nodes, with workloads of scheduler_perf, beside upstream's kube-scheduler.
    Schedule(schedule::ScheduleArgs),
    /// Questions to the node's DNS, beside CoreDNS.
    Dns(dns::DnsArgs),
    /// Connections, bytes and changes through Services, beside direct ones and upstream's kube-proxy.
    Service(service::ServiceArgs),
}

/// Image that the pods of the benchmarks run, and that peers run too.
const IMAGE: &str = "testapp-v1";

/// Runs one.
pub fn run(args: &BenchArgs) -> Result<()> {
    let mut steps = Steps::new();
    steps.step("tools", build::tools)?;
    if args.debug {
        steps.step("build programs", build::programs)?;
    } else {
        paths::use_release_programs();
        steps.step("build programs, optimised", build::release_programs)?;
    }
    steps.step("assemble the image", || images::ensure(IMAGE))?;
    match &args.bench {
        Bench::PodStart(args) => pod_start::run(args, &mut steps),
        Bench::Footprint(args) => footprint::run(args, &mut steps),
        Bench::Simulate(args) => simulate::run(args, &mut steps),
        Bench::Api(args) => api::run(args, &mut steps),
        Bench::Schedule(args) => schedule::run(args, &mut steps),
        Bench::Dns(args) => dns::run(args, &mut steps),
        Bench::Service(args) => service::run(args, &mut steps),
    }
}

/// Runs work on a cluster of one node that takes 250 pods, and ends the cluster whatever comes of it.
fn with_cluster<T>(
    name: &str,
    steps: &mut Steps,
    work: impl FnOnce(&mut Cluster, &mut Steps) -> Result<T>,
) -> Result<T> {
    let options = Options { nodes: 1, agent_args: vec!["--max-pods=250".to_owned()], ..Options::default() };
    with_master(name, &options, steps, |cluster, steps| {
        cluster.preload_images(&[IMAGE])?;
        start_agent(cluster, steps)?;
        work(cluster, steps)
    })
}

/// Starts the first node's agent, and waits for it.
fn start_agent(cluster: &mut Cluster, steps: &mut Steps) -> Result<()> {
    steps.step("start the agent", || cluster.start_agent(1))?;
    steps.step("node Ready", || cluster.wait_nodes_ready(Duration::from_secs(60)))
}

/// Runs work on a cluster of which only the master is started, and ends the cluster whatever comes of it.
fn with_master<T>(
    name: &str,
    options: &Options,
    steps: &mut Steps,
    work: impl FnOnce(&mut Cluster, &mut Steps) -> Result<T>,
) -> Result<T> {
    if let Some(old) = Cluster::find(name)? {
        old.destroy()?;
    }
    let mut cluster = steps.step("make test hosts", || Cluster::create(name, options))?;
    let result = (|| {
        steps.step("start the master", || cluster.start_master())?;
        work(&mut cluster, steps)
    })();
    let ended = steps.step("end the cluster", || cluster.destroy());
    let value = result?;
    ended?;
    Ok(value)
}

/// Has the measuring program start pods; gives what it prints.
fn start_pods(cluster: &Cluster, name: &str, pods: usize, at_once: usize) -> Result<Vec<Value>> {
    let mut command = Command::new(paths::bin("keelson-bench"));
    command.arg("pod-start").arg("--kubeconfig").arg(cluster.kubeconfig());
    command.args(["--image", &images::reference(IMAGE), "--name", name]);
    command.args(["--pods", &pods.to_string(), "--at-once", &at_once.to_string()]);
    Ok(serde_json::from_str(&cmd::text(&mut command)?)?)
}

/// Removes the pods of a run of [`start_pods`] and waits until they are gone.
fn remove_pods(cluster: &Cluster, name: &str) -> Result<()> {
    let label = format!("bench.keelson.test/run={name}");
    cluster.kubectl()?.run(&["delete", "pods", "-l", &label, "--timeout=120s"]).map(drop)
}

/// Writes `target/bench/NAME.json`: the figures, with what they were measured on.
fn write(name: &str, figures: &Value) -> Result<()> {
    let dir = paths::target().join("bench");
    fs::create_dir_all(&dir)?;
    let path = dir.join(format!("{name}.json"));
    let (commit, changed) = checkout::commit()?;
    let cpus = std::thread::available_parallelism()?;
    let document = json!({
        "commit": commit,
        "uncommitted changes": changed,
        "programs": paths::profile(),
        "machine": {
            "kernel": cmd::text(Command::new("uname").arg("-r"))?,
            "cpu": cpu_model()?,
            "cpus": cpus,
            "memory kB": meminfo("MemTotal")?,
        },
        "figures": figures,
    });
    fs::write(&path, serde_json::to_vec_pretty(&document)?)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn cpu_model() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("model name"));
    Ok(line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, model)| model).to_owned())
}

/// A row of /proc/meminfo, kB.
fn meminfo(row: &str) -> Result<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo")?, row)
}

/// The row `ROW:   123 kB` of a file of /proc.
fn kilobytes(text: &str, row: &str) -> Result<u64> {
    text.lines()
        .filter_map(|line| line.strip_prefix(row)?.strip_prefix(':')?.trim().strip_suffix("kB"))
        .find_map(|number| number.trim().parse().ok())
        .with_context(|| format!("no row {row}"))
}

/// Pid of the daemon of a host.
fn daemon(cluster: &Cluster, host: &str) -> Result<i32> {
    cluster.daemon_pid(host).with_context(|| format!("no daemon runs on {host}"))
}

/// PSS of a process, kB.
fn pss(pid: i32) -> Result<f64> {
    rollup(pid, "Pss")
}

/// A row of a process's memory, kB.
#[expect(clippy::cast_precision_loss, reason = "kilobytes of one process")]
fn rollup(pid: i32, row: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(kilobytes(&text, row)? as f64)
}

/// A process's command name; none once it has ended.
fn comm(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|comm| comm.trim_end().to_owned())
}

/// Processes in a cgroup and below it whose command name begins so.
fn processes(cgroup: &Path, name: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for line in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
        let pid: i32 = line.parse()?;
        // It may end meanwhile.
        if comm(pid).is_some_and(|comm| comm.starts_with(name)) {
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
