//! `bench api`.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use serde_json::{Value, json};

use super::compare::Comparison;
use super::plane::{Plane, order};
use super::stats::{Samples, float};
use super::upstream::{self, Programs};
use super::{with_master, write};

/// Arguments of `bench api`.
#[derive(Args)]
pub struct ApiArgs {
    /// Numbers of stored pods at which lists are timed; requests and events are at the first.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    pods: Vec<usize>,
    /// Rounds of each measurement, in each of which both servers are loaded, one after the other.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Numbers of clients that send single requests.
    #[arg(long, value_delimiter = ',', default_value = "1,16,128")]
    clients: Vec<usize>,
    /// Single requests of each kind in a round, by each number of clients.
    #[arg(long, default_value_t = 3_000)]
    requests: usize,
    /// Watchers, besides the one that never reads.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Writes that the watchers see in a round, once one after another and once as fast as they go.
    #[arg(long, default_value_t = 200)]
    writes: usize,
    /// Lists of each kind in a round.
    #[arg(long, default_value_t = 3)]
    lists: usize,
    /// Connections over which the stored pods are written.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// How long the servers are left alone before their memory is read, seconds.
    #[arg(long, default_value_t = 30)]
    settle: u64,
}

/// How it is measured: part of the figures.
const CONDITIONS: &[&str] = &[
    "Keelson is keelson-master whole: API server, store, scheduler and controllers; the peer is kube-apiserver and etcd alone.",
    "Both run in the same test host with the same certificates, as kubeadm starts them; durable writes on the same disk.",
    "One client program for both: HTTP/2 over TLS, a client certificate, one connection for each client or watcher, no compression.",
    "A stored pod has a status, and as JSON the size of a whole list by the number of pods. Besides the watchers there is one \
     that never reads; a watch that the server ends, as kube-apiserver ends slow ones, is begun anew after the last event.",
    "The client has one thread and shares the processors with the servers; while one server is loaded, the other is frozen.",
    "Who comes first alternates. Each figure is the median of the rounds; the ratio is Keelson's to the peer's, paired by round.",
];

/// Measures and prints.
pub fn run(args: &ApiArgs, steps: &mut Steps) -> Result<()> {
    let peer = Programs::build(false, steps);
    let options = Options::default();
    let (comparison, missing) =
        with_master("bench", &options, steps, |cluster, steps| measure(cluster, args, peer, steps))?;
    println!();
    CONDITIONS.iter().for_each(|line| println!("{line}"));
    if let Some(reason) = &missing {
        println!("The peer, {}, can't be had: {reason}", upstream::name());
    }
    println!();
    comparison.print("upstream");
    let figures = json!({
        "conditions": CONDITIONS, "peer": upstream::name(), "peer can't be had": missing, "rounds": args.rounds,
        "rows": comparison.json(),
    });
    write("api", &figures)
}

fn measure(
    cluster: &Cluster,
    args: &ApiArgs,
    peer: Result<Programs>,
    steps: &mut Steps,
) -> Result<(Comparison, Option<String>)> {
    let mut bench = Bench { planes: vec![Plane::keelson(cluster)?], comparison: Comparison::default() };
    let host = cluster.host("master")?;
    let started = peer.and_then(|programs| steps.step("start the peer", || programs.start(&host)));
    let missing = match started {
        Ok(plane) => {
            bench.planes.push(plane);
            None
        }
        Err(error) => Some(format!("{error:#}")),
    };
    bench.planes.iter().try_for_each(Plane::freeze)?;
    bench.memory("no pods", args, steps)?;
    let mut have = 0;
    for (level, &pods) in args.pods.iter().enumerate() {
        bench.load(have, pods, args, steps)?;
        have = pods;
        bench.memory(&format!("{pods} pods"), args, steps)?;
        for round in 0..args.rounds {
            if level == 0 {
                bench.requests(round, pods, args, steps)?;
                bench.watchers(round, args, steps)?;
            }
            bench.lists(round, pods, args, steps)?;
        }
    }
    Ok((bench.comparison, missing))
}

struct Bench {
    planes: Vec<Plane>,
    comparison: Comparison,
}

impl Bench {
    /// Has each control plane loaded, while the other is frozen.
    fn in_turn(
        &mut self,
        round: usize,
        name: &str,
        steps: &mut Steps,
        work: impl Fn(&Plane, &mut Comparison) -> Result<()>,
    ) -> Result<()> {
        for place in order(round, self.planes.len()) {
            let Some(plane) = self.planes.get(place) else { continue };
            steps.step(&format!("{name}: {}", plane.name()), || {
                plane.thaw()?;
                work(plane, &mut self.comparison)?;
                plane.freeze()
            })?;
        }
        Ok(())
    }

    fn memory(&mut self, when: &str, args: &ApiArgs, steps: &mut Steps) -> Result<()> {
        self.in_turn(0, &format!("memory, {when}"), steps, |plane, comparison| {
            std::thread::sleep(Duration::from_secs(args.settle));
            let each = plane.pss()?;
            let sum = each.iter().map(|(_, mb)| mb).sum();
            comparison.add(plane.whose, &format!("memory, {when}: PSS of the servers"), "MB", sum);
            for (unit, mb) in each.into_iter().filter(|_| plane.processes.len() > 1) {
                comparison.add(plane.whose, &format!("  of which {unit}, {when}"), "MB", mb);
            }
            Ok(())
        })
    }

    fn load(&mut self, have: usize, pods: usize, args: &ApiArgs, steps: &mut Steps) -> Result<()> {
        let (first, last, at_once) = (have.to_string(), pods.to_string(), args.at_once.to_string());
        let name = format!("{have} to {pods} pods stored");
        self.in_turn(0, &name, steps, |plane, comparison| {
            plane.watched(&name, comparison, |comparison| {
                let words = ["load", "--first", &first, "--pods", &last, "--at-once", &at_once];
                let told = plane.client("api", &words)?;
                let rate = number(&told, "pods")? / number(&told, "seconds")?;
                comparison.add(plane.whose, &name, "pods/s", rate);
                Ok(())
            })
        })
    }

    fn requests(&mut self, round: usize, pods: usize, args: &ApiArgs, steps: &mut Steps) -> Result<()> {
        let clients: Vec<String> = args.clients.iter().map(usize::to_string).collect();
        let (clients, count, pods) = (clients.join(","), args.requests.to_string(), pods.to_string());
        self.in_turn(round, "requests", steps, |plane, comparison| {
            plane.watched("requests", comparison, |comparison| {
                let words = ["requests", "--clients", &clients, "--count", &count, "--pods", &pods];
                for row in rows(&plane.client("api", &words)?)? {
                    let name = format!("{}, {} at once", text(row, "name")?, row["clients"]);
                    let times = samples(row, "us")?;
                    let rate = float(times.count()) / number(row, "seconds")?;
                    comparison.add(plane.whose, &name, "1/s", rate);
                    percentiles(comparison, plane, &name, &times);
                }
                Ok(())
            })
        })
    }

    fn watchers(&mut self, round: usize, args: &ApiArgs, steps: &mut Steps) -> Result<()> {
        let (watchers, writes) = (args.watchers.to_string(), args.writes.to_string());
        let name = format!("{watchers} watchers");
        self.in_turn(round, &name, steps, |plane, comparison| {
            plane.watched(&name, comparison, |comparison| {
                let told = plane.client("api", &["watch", "--watchers", &watchers, "--writes", &writes])?;
                for (key, what) in [
                    ("write_us", "write to its answer"),
                    ("last_us", "write to the last watcher"),
                    ("last_after_ack_us", "answer to the last watcher"),
                    ("each_us", "write to any watcher"),
                ] {
                    percentiles(comparison, plane, &format!("{name}: {what}"), &samples(&told, key)?);
                }
                let events = float(args.watchers) * float(args.writes);
                let rate = events / number(&told, "burst_s")?;
                comparison.add(
                    plane.whose,
                    &format!("{name}: events of writes without a pause"),
                    "1/s",
                    rate,
                );
                comparison.add(plane.whose, &format!("{name}: all begun"), "s", number(&told, "begin_s")?);
                let ended = number(&told, "ended")?;
                comparison.add(plane.whose, &format!("{name}: watches that the server ended"), "", ended);
                Ok(())
            })
        })
    }

    fn lists(&mut self, round: usize, pods: usize, args: &ApiArgs, steps: &mut Steps) -> Result<()> {
        let (count, repeat) = (pods.to_string(), args.lists.to_string());
        let name = format!("lists of {pods} pods");
        self.in_turn(round, &name, steps, |plane, comparison| {
            plane.watched(&name, comparison, |comparison| {
                let told = plane.client("api", &["lists", "--pods", &count, "--repeat", &repeat])?;
                for row in rows(&told)? {
                    let name = format!("list of {pods} pods, {}", text(row, "name")?);
                    let ms = samples(row, "us")?.percentile(50) / 1e3;
                    let megabytes = number(row, "bytes")? / 1e6;
                    comparison.add(plane.whose, &name, "ms", ms);
                    comparison.add(plane.whose, &name, "MB", megabytes);
                    comparison.add(plane.whose, &name, "MB/s", megabytes / (ms / 1e3));
                }
                Ok(())
            })
        })
    }
}

/// Adds median and 99th percentile of microseconds, as milliseconds.
fn percentiles(comparison: &mut Comparison, plane: &Plane, name: &str, us: &Samples) {
    for (percent, unit) in [(50, "ms, p50"), (99, "ms, p99")] {
        comparison.add(plane.whose, name, unit, us.percentile(percent) / 1e3);
    }
}

fn rows(told: &Value) -> Result<&Vec<Value>> {
    told["rows"].as_array().context("the measuring program printed no rows")
}

fn text<'a>(row: &'a Value, key: &str) -> Result<&'a str> {
    row[key].as_str().with_context(|| format!("no text {key}"))
}

/// A figure that the measuring program printed.
pub fn number(row: &Value, key: &str) -> Result<f64> {
    row[key].as_f64().with_context(|| format!("no number {key}"))
}

/// Figures that it printed as a list.
pub fn samples(row: &Value, key: &str) -> Result<Samples> {
    let list = row[key].as_array().with_context(|| format!("no list {key}"))?;
    Ok(Samples::new(list.iter().filter_map(Value::as_f64).collect()))
}
