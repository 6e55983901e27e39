//! `bench pod-start`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::Cluster;
use keelson_tests::{cmd, images, paths};
use serde_json::{Value, json};

use super::containerd::Containerd;
use super::stats::{Samples, table};
use super::{IMAGE, remove_pods, start_pods, with_cluster, write};

/// Arguments of `bench pod-start`.
#[derive(Args)]
pub struct PodStartArgs {
    /// Pods started one after another, and as many of each peer.
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// In how many rounds, each of pods and then of the peers.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Bursts of pods that are created before the first of them is waited for.
    #[arg(long, default_value_t = 3)]
    bursts: usize,
    /// Pods of a burst.
    #[arg(long, default_value_t = 50)]
    at_once: usize,
}

/// What was measured, milliseconds.
#[derive(Default)]
struct Measured {
    created_to_bound: Vec<f64>,
    bound_to_running: Vec<f64>,
    phases: BTreeMap<String, Vec<f64>>,
    containerd: Vec<f64>,
    crictl: Vec<f64>,
    runc: Vec<f64>,
    /// From a burst's first request until the last of its pods runs.
    bursts: Vec<f64>,
    containerd_bursts: Vec<f64>,
}

/// Measures and prints.
pub fn run(args: &PodStartArgs, steps: &mut Steps) -> Result<()> {
    let measured = with_cluster("bench", steps, |cluster, steps| {
        let peer = Containerd::start(cluster, steps)?;
        let mut measured = Measured::default();
        one_by_one(args, cluster, &peer, steps, &mut measured)?;
        bursts(args, cluster, &peer, steps, &mut measured)?;
        Ok(measured)
    })?;

    let last = |what: &str| format!("{} at once, {what}: until the last runs", args.at_once);
    let mut rows = vec![
        ("created → bound (API server, scheduler)".to_owned(), measured.created_to_bound),
        ("bound → running, as a watcher sees it".to_owned(), measured.bound_to_running),
    ];
    rows.extend(measured.phases.into_iter().map(|(name, values)| (format!("  {name}"), values)));
    rows.extend([
        ("containerd + runc: crictl run".to_owned(), measured.containerd),
        ("  of which crictl itself (crictl version)".to_owned(), measured.crictl),
        ("runc run, the same root file system".to_owned(), measured.runc),
        (last("created"), measured.bursts),
        (last("containerd + runc"), measured.containerd_bursts),
    ]);
    let rows: Vec<(String, Samples)> =
        rows.into_iter().map(|(name, values)| (name, Samples::new(values))).collect();
    println!();
    table(
        &["milliseconds", "count", "p25", "p50", "p75", "p99", "max"],
        &rows
            .iter()
            .map(|(name, samples)| {
                let mut row = vec![name.clone(), samples.count().to_string()];
                row.extend([25, 50, 75, 99, 100].map(|p| format!("{:.2}", samples.percentile(p))));
                row
            })
            .collect::<Vec<_>>(),
    );
    let figures: serde_json::Map<String, Value> =
        rows.iter().map(|(name, samples)| (name.trim().to_owned(), samples.json())).collect();
    write("pod-start", &json!({"unit": "ms", "pods at once": args.at_once, "rows": figures}))
}

/// Pods one after another, those of the round still running, on either side. Those of earlier rounds are gone: beyond 100
/// pods of containerd's the whole machine gets slow, and everybody with it.
fn one_by_one(
    args: &PodStartArgs,
    cluster: &Cluster,
    peer: &Containerd,
    steps: &mut Steps,
    measured: &mut Measured,
) -> Result<()> {
    let bundle = bundle(cluster)?;
    for round in 0..args.rounds {
        let share = (args.pods * (round + 1) / args.rounds) - (args.pods * round / args.rounds);
        let name = format!("round-{round}");
        for pod in steps.step(&format!("{share} pods"), || start_pods(cluster, &name, share, 1))? {
            measured.created_to_bound.push(milliseconds(&pod, "created_to_bound_us")?);
            measured.bound_to_running.push(milliseconds(&pod, "bound_to_running_us")?);
        }
        let times = steps.step(&format!("{share} pods of containerd"), || peer.pods(&name, share, 1))?;
        measured.containerd.extend(times);
        let runs = steps.step(&format!("{share} runs of runc"), || runc(cluster, &bundle, share))?;
        measured.runc.extend(runs.into_iter().map(|us| us / 1e3));
        steps.step("remove the pods", || {
            remove_pods(cluster, &name)?;
            peer.remove_pods()
        })?;
    }
    measured.crictl = peer.crictl_alone(20)?;
    measured.phases = phases(&fs::read_to_string(cluster.log("node-1"))?);
    Ok(())
}

/// Many at once, on an empty node.
fn bursts(
    args: &PodStartArgs,
    cluster: &Cluster,
    peer: &Containerd,
    steps: &mut Steps,
    measured: &mut Measured,
) -> Result<()> {
    for burst in 0..args.bursts {
        let name = format!("burst-{burst}");
        let pods = steps.step(&format!("{} pods at once", args.at_once), || {
            start_pods(cluster, &name, args.at_once, args.at_once)
        })?;
        let mut last = 0.0_f64;
        for pod in pods {
            let took =
                milliseconds(&pod, "created_to_bound_us")? + milliseconds(&pod, "bound_to_running_us")?;
            last = last.max(took);
        }
        measured.bursts.push(last);
        remove_pods(cluster, &name)?;
        let times = steps.step(&format!("{} pods of containerd at once", args.at_once), || {
            peer.pods(&name, args.at_once, args.at_once)
        })?;
        measured.containerd_bursts.push(times.into_iter().fold(0.0, f64::max));
        peer.remove_pods()?;
    }
    Ok(())
}

fn milliseconds(pod: &Value, field: &str) -> Result<f64> {
    pod[field].as_f64().map(|us| us / 1e3).context("no time")
}

/// A bundle for runc in the node's own folder: the image's root file system and runc's own default configuration.
fn bundle(cluster: &Cluster) -> Result<String> {
    let node = cluster.node(1)?;
    let inside = "/var/lib/bench-bundle";
    let outside = node.dir.join("var/lib/bench-bundle");
    fs::create_dir_all(outside.join("rootfs"))?;
    images::unpack::unpack(&images::ensure(IMAGE)?, &outside.join("rootfs"))?;
    cmd::run(node.command("client", "runc").args(["spec", "--bundle", inside]))?;
    let path = outside.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["args"] = json!(["/testapp", "serve"]);
    config["process"]["terminal"] = json!(false);
    // The machine's hard limit may be lower than runc's default, and raising it takes CAP_SYS_RESOURCE.
    config["process"]["rlimits"] = json!([]);
    fs::write(path, serde_json::to_vec(&config)?)?;
    Ok(inside.to_owned())
}

fn runc(cluster: &Cluster, bundle: &str, count: usize) -> Result<Vec<f64>> {
    let program = paths::bin("keelson-bench");
    let mut command = cluster.node(1)?.command("client", &program.to_string_lossy());
    command.args(["runc", "--bundle", bundle, "--count", &count.to_string()]);
    Ok(serde_json::from_str(&cmd::text(&mut command)?)?)
}

/// Milliseconds by phase, out of the agent's log: its lines `pod started … phases="name@offset+took …"`. The gaps between
/// the phases are what is left of `seen → reported`.
fn phases(log: &str) -> BTreeMap<String, Vec<f64>> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("pod started")) {
        if let Some(total) = field(line, "took_us=").and_then(|us| us.parse::<f64>().ok()) {
            all.entry("agent: seen → reported".to_owned()).or_default().push(total / 1e3);
        }
        let Some((_, rest)) = line.split_once("phases=\"") else { continue };
        let words = rest.split('"').next().unwrap_or_default();
        let mut pod: BTreeMap<&str, f64> = BTreeMap::new();
        for word in words.split(' ') {
            let parsed = word
                .split_once('@')
                .and_then(|(name, times)| Some((name, times.split_once('+')?.1.parse::<f64>().ok()?)));
            // A phase that came twice (the status, say) counts as both together.
            if let Some((name, us)) = parsed {
                *pod.entry(name).or_default() += us / 1e3;
            }
        }
        for (name, ms) in pod {
            all.entry(name.to_owned()).or_default().push(ms);
        }
    }
    all
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(name)?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_from_the_agents_log() {
        let log = "x INFO a: pod started pod=\"default/a\" took_us=9500 phases=\"status@10+1000 sandbox@20+2500 status@9000+500\"\nother";
        let read = phases(log);
        assert_eq!(read["agent: seen → reported"], [9.5]);
        assert_eq!(read["sandbox"], [2.5]);
        assert_eq!(read["status"], [1.5]);
    }
}
