//! `bench dns`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use keelson_tests::testbed::host::{Host, ended};
use keelson_tests::testbed::network::PREFIX;
use keelson_tests::{cmd, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::api::{number, samples};
use super::compare::{Comparison, Whose};
use super::plane::{MB, order};
use super::stats::float;
use super::{IMAGE, coredns, processes, pss, start_agent, start_pods, with_master, write};

/// Arguments of `bench dns`.
#[derive(Args)]
pub struct DnsArgs {
    /// Services, of which every tenth is headless; each has an EndpointSlice of four endpoints.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    services: u16,
    /// Rounds, in each of which both servers are asked everything, one after the other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long as many questions are asked as are answered, seconds.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// How long questions are asked at a steady rate, seconds.
    #[arg(long, default_value_t = 3.0)]
    steady_seconds: f64,
    /// That rate, questions a second.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// Questions that wait for their answers at a time.
    #[arg(long, default_value_t = 64)]
    outstanding: u16,
    /// UDP sockets over which they are asked.
    #[arg(long, default_value_t = 16)]
    sockets: u16,
}

/// What is asked: the load maker's word for it, ours, and whether over TCP.
const WORKLOADS: &[(&str, &str, bool)] = &[
    ("cluster-ip", "A of a Service", false),
    ("headless", "A of a headless Service, 4 endpoints", false),
    ("walk", "search path: 3 × NXDOMAIN and an answer", false),
    ("srv", "SRV of a headless Service, 4 endpoints", false),
    ("nxdomain", "A of no Service, NXDOMAIN", false),
    ("nodata", "AAAA of an IPv4 Service, no data", false),
    ("ptr", "PTR of a Service", false),
    ("mix", "mix", false),
    ("mix", "mix over TCP", true),
    ("repeated", "100 names outside of the cluster", false),
    ("once", "new names outside of the cluster", false),
];

/// How it is measured: part of the figures.
const CONDITIONS: &[&str] = &[
    "Both servers run on the same node and follow the same API server. Keelson's is its worker process at 10.96.0.10; CoreDNS is one \
     process with the Corefile that kubeadm writes, its cache for cluster names too, at an address of the same loopback. CoreDNS as a \
     Deployment behind a Service would be further away from most pods.",
    "The load maker runs in a pod's network namespace and below the node's cgroup, so that queries go a pod's way: its veth, the \
     node's bridge, the node's loopback, and the programs that are attached to sockets.",
    "While one server is asked, the other is stopped (SIGSTOP); the agent and the master go on, and do nothing for it. Who comes first \
     alternates. Each server is asked for half a second before it is measured, so that caches are filled.",
    "Every answer is checked: response code, number and types of answers, addresses. A wrong one ends the run. A question without an \
     answer for one second is lost.",
    "Answers a second are counted with a fixed number of questions on their way over several sockets. The load maker is one thread \
     (over TCP one a connection, 100 questions over each) and shares the processors with the server, so processor time of the \
     server's process, user and system, is the steadier figure.",
    "Latency is from sending a question to having its answer, at a steady rate.",
    "Names outside of the cluster are asked of a name server on another host of the test network; both servers keep its answers for \
     30 seconds.",
    "Each figure is the median of the rounds; the ratio is Keelson's to CoreDNS', paired by round.",
];

/// Measures and prints.
pub fn run(args: &DnsArgs, steps: &mut Steps) -> Result<()> {
    let peer = coredns::build(steps);
    let options = Options { nodes: 1, ..Options::default() };
    let (comparison, missing) =
        with_master("bench", &options, steps, |cluster, steps| measure(cluster, args, peer, steps))?;
    println!();
    CONDITIONS.iter().for_each(|line| println!("{line}"));
    if let Some(reason) = &missing {
        println!("The peer, {}, can't be had: {reason}", coredns::name());
    }
    println!();
    comparison.print("CoreDNS");
    let figures = json!({
        "conditions": CONDITIONS, "peer": coredns::name(), "peer can't be had": missing, "rounds": args.rounds,
        "Services": args.services, "questions on their way": args.outstanding, "sockets": args.sockets,
        "steady rate, 1/s": args.rate, "rows": comparison.json(),
    });
    write("dns", &figures)
}

fn measure(
    cluster: &mut Cluster,
    args: &DnsArgs,
    peer: Result<std::path::PathBuf>,
    steps: &mut Steps,
) -> Result<(Comparison, Option<String>)> {
    let (node, master) = (cluster.node(1)?, cluster.host("master")?);
    let program = paths::bin("keelson-bench");
    let upstream = format!("{PREFIX}.2");
    fs::write(node.dir.join("etc/resolv.conf"), format!("nameserver {upstream}\n"))?;
    let words = ["dns", "upstream", "--listen", &format!("{upstream}:53")].map(str::to_owned);
    master.spawn_daemon("name-server", &program, &words, None)?;
    cluster.preload_images(&[IMAGE])?;
    start_agent(cluster, steps)?;
    steps.step(&format!("{} Services", args.services), || store(cluster, &program, args))?;
    steps.step("a pod", || start_pods(cluster, "asks", 1, 1))?;

    let client = Client::of_pod(&node)?;
    let mut sides = vec![Side { whose: Whose::Ours, address: "10.96.0.10", pid: worker(&node)? }];
    let started = peer.and_then(|program| {
        let pid = coredns::start(&program, &node, &master)?;
        let side = Side { whose: Whose::Peers, address: coredns::ADDRESS, pid };
        let ready = steps.step("CoreDNS ready", || client.ready(&side, args));
        if ready.is_err() && !ended(pid) {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        ready.with_context(|| last_words(&node, coredns::UNIT)).map(|()| side)
    });
    let missing = match started {
        Ok(side) => {
            sides.push(side);
            None
        }
        Err(error) => Some(format!("{error:#}")),
    };
    let ours = sides.first().context("no side")?;
    steps.step("Keelson's DNS ready", || client.ready(ours, args))?;

    sides.iter().try_for_each(|side| side.set_stopped(true))?;
    let mut bench = Bench { sides, client, comparison: Comparison::default() };
    for round in 0..args.rounds {
        bench.round(usize::from(round), args, steps)?;
    }
    // A process that is stopped would not end by itself; SIGKILL, which ends all, needs no waking.
    Ok((bench.comparison, missing))
}

fn store(cluster: &Cluster, program: &Path, args: &DnsArgs) -> Result<()> {
    let mut command = std::process::Command::new(program);
    command.args(["dns", "store", "--kubeconfig"]).arg(cluster.kubeconfig());
    cmd::run(command.args(["--services", &args.services.to_string()])).map(drop)
}

/// The process that answers for Keelson, a child of the agent's.
fn worker(node: &Host) -> Result<i32> {
    let found = processes(&node.cgroup.join("system/agent"), "keelson-dns")?;
    match found.as_slice() {
        [pid] => Ok(*pid),
        _ => bail!("not one DNS worker, but {found:?}"),
    }
}

fn last_words(node: &Host, unit: &str) -> String {
    let log = fs::read_to_string(node.dir.join(format!("log/{unit}.log"))).unwrap_or_default();
    let tail: Vec<&str> = log.lines().rev().take(15).collect();
    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
}

struct Bench {
    sides: Vec<Side>,
    client: Client,
    comparison: Comparison,
}

impl Bench {
    fn round(&mut self, round: usize, args: &DnsArgs, steps: &mut Steps) -> Result<()> {
        let mut lost = vec![0.0; self.sides.len()];
        for &(workload, name, tcp) in WORKLOADS {
            for place in order(round, self.sides.len()) {
                let Some(side) = self.sides.get(place) else { continue };
                let told = steps.step(&format!("round {}, {name}: {}", round + 1, side.name()), || {
                    side.set_stopped(false)?;
                    let figures = self.client.figures(side, args, workload, tcp)?;
                    side.set_stopped(true)?;
                    Ok(figures)
                })?;
                for (what, unit, value) in told.figures {
                    self.comparison.add(side.whose, &format!("{name}{what}"), unit, value);
                }
                if let Some(sum) = lost.get_mut(place) {
                    *sum += told.lost;
                }
            }
        }
        for (side, lost) in self.sides.iter().zip(lost) {
            self.comparison.add(side.whose, "questions lost in a round", "", lost);
            self.comparison.add(side.whose, "memory of the server: PSS", "MB", pss(side.pid)? / MB);
        }
        Ok(())
    }
}

/// One of the servers.
struct Side {
    whose: Whose,
    address: &'static str,
    /// As the machine sees it.
    pid: i32,
}

impl Side {
    fn name(&self) -> &'static str {
        match self.whose {
            Whose::Ours => "Keelson",
            Whose::Peers => "CoreDNS",
        }
    }

    /// Stops the process, or lets it go on, and waits until it is so.
    fn set_stopped(&self, stopped: bool) -> Result<()> {
        let signal = if stopped { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to {}", self.name()))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.stat()?.stopped != stopped {
            if Instant::now() > deadline || ended(self.pid) {
                bail!("{} does not heed {signal}", self.name());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn stat(&self) -> Result<Stat> {
        let path = format!("/proc/{}/stat", self.pid);
        let text = fs::read_to_string(&path).with_context(|| format!("{} is gone", self.name()))?;
        Stat::parse(&text).with_context(|| format!("read {path}"))
    }

    /// User and system time of all its threads, those that have ended too, in seconds.
    fn processor_seconds(&self) -> Result<f64> {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(float(self.stat()?.ticks) / float(usize::try_from(ticks)?))
    }
}

/// What proc_pid_stat(5) says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    stopped: bool,
    /// utime and stime.
    ticks: usize,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<usize>().ok();
        Some(Self { stopped: *fields.first()? == "T", ticks: ticks(11)? + ticks(12)? })
    }
}

/// The load maker, in a pod's network.
struct Client {
    node: Host,
    /// The network namespace, as the node has it.
    network: String,
}

struct Told {
    figures: Vec<(&'static str, &'static str, f64)>,
    lost: f64,
}

impl Client {
    /// In the network of the one pod that runs on a node.
    fn of_pod(node: &Host) -> Result<Self> {
        let dir = "run/keelson/netns";
        let names: Vec<_> = fs::read_dir(format!("/proc/{}/root/{dir}", node.pid))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        match names.as_slice() {
            [name] => Ok(Self { node: node.clone(), network: format!("/{dir}/{name}") }),
            _ => bail!("not one pod's network, but {names:?}"),
        }
    }

    fn run(&self, side: &Side, args: &DnsArgs, what: &str, words: &[&str]) -> Result<Value> {
        let mut command = self.node.command("client", "nsenter");
        command.arg(format!("--net={}", self.network)).arg(paths::bin("keelson-bench"));
        command.args(["dns", what, "--server", &format!("{}:53", side.address)]);
        command.args(["--services", &args.services.to_string()]).args(words);
        let text = cmd::text(&mut command).with_context(|| format!("ask {}", side.name()))?;
        if text.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }

    fn ready(&self, side: &Side, args: &DnsArgs) -> Result<()> {
        self.run(side, args, "ready", &[]).map(drop)
    }

    /// What one workload takes on one side.
    fn figures(&self, side: &Side, args: &DnsArgs, workload: &str, tcp: bool) -> Result<Told> {
        let (outstanding, sockets) = (args.outstanding.to_string(), args.sockets.to_string());
        let seconds = args.seconds.to_string();
        let mut words = vec!["--workload", workload, "--outstanding", &outstanding, "--sockets", &sockets];
        if tcp {
            words.push("--tcp");
        }
        let load =
            |seconds: &str| self.run(side, args, "load", &[&words[..], &["--seconds", seconds]].concat());
        load("0.5")?;
        let before = side.processor_seconds()?;
        let told = load(&seconds)?;
        let took = side.processor_seconds()? - before;
        let mut lost = number(&told, "lost")?;
        let mut figures = vec![
            ("", "1/s", number(&told, "right")? / number(&told, "seconds")?),
            (": server's processor time", "µs", took * 1e6 / number(&told, "all")?),
        ];
        if !tcp {
            let (rate, seconds) = (args.rate.to_string(), args.steady_seconds.to_string());
            let words =
                ["--workload", workload, "--sockets", &sockets, "--rate", &rate, "--seconds", &seconds];
            let told = self.run(side, args, "load", &words)?;
            let times = samples(&told, "us")?;
            figures.push((": latency", "µs, p50", times.percentile(50)));
            figures.push((": latency", "µs, p99", times.percentile(99)));
            lost += number(&told, "lost")?;
        }
        Ok(Told { figures, lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_time_are_read() {
        let stat = "12 (a) b (c)) T 1 12 12 0 -1 4194560 1 0 0 0 250 50 7 7 20 0 3 0 1 1 1";
        assert_eq!(Stat::parse(stat), Some(Stat { stopped: true, ticks: 300 }));
        assert_eq!(Stat::parse(&stat.replace(") T", ") S")).map(|stat| stat.stopped), Some(false));
        assert_eq!(Stat::parse("12 (a"), None);
    }
}
