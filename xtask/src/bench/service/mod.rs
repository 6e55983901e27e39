//! `bench service`.

mod figures;
mod hosts;
mod kube_proxy;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use serde_json::{Value, json};

use super::api::{number, samples};
use super::plane::order;
use super::{with_master, write};
use figures::{Compared, Figures, Way};
use hosts::{ENDPOINT, OTHER, Place, Proxy, keep_those_that_work};
use kube_proxy::Mode;
use traffic::Traffic;

/// Arguments of `bench service`.
#[derive(Args)]
pub struct ServiceArgs {
    /// Numbers of Services, growing.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000")]
    services: Vec<usize>,
    /// Rounds of each measurement, in each of which every way has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long connections are opened, bytes or datagrams sent in a turn, milliseconds.
    #[arg(long, default_value_t = 1_000)]
    millis: u64,
    /// Connections and datagrams from new sockets in a turn, at most: each leaves an entry in the connection tracking.
    #[arg(long, default_value_t = 20_000)]
    connections: usize,
    /// Clients that open connections side by side.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Changes of an EndpointSlice in a turn: an even number.
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Time between two of them, milliseconds: kube-proxy lets a second pass between two runs of its own.
    #[arg(long, default_value_t = 1_200)]
    gap: u64,
    /// How often each BPF program is run while the kernel counts.
    #[arg(long, default_value_t = 5_000)]
    runs: usize,
    /// Connections over which Services are written.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// Modes of kube-proxy.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "iptables,nftables")]
    peers: Vec<Mode>,
}

/// How it is measured: part of the figures.
const CONDITIONS: &[&str] = &[
    "Every host has a client and two endpoints, each in a network namespace of its own that a veth pair joins to the host's, with \
     routes to addresses and no bridge: the same addresses and the same programs on each host. Client and endpoint are on one host.",
    "One keelson-master serves all. Keelson's programs are attached to its host's cgroup; kube-proxy runs on a host of its own with \
     upstream's defaults, but for the limits of connection tracking, which are left as they are.",
    "Direct: to the endpoint's own address. On Keelson's host that is measured from outside of the cgroup of the programs (nothing \
     of Keelson's is in the way but its netfilter rules), and from inside; `to direct` is the ratio to the former. On kube-proxy's \
     hosts it is the ratio to direct connections beside kube-proxy's rules; `to no proxy` is to those on a host without any.",
    "A connection: socket, connect, one byte there, one byte back, close with a reset. Each goes to the next of all Services, not \
     to its neighbour in number; all have the same one endpoint. Time is from before socket(2) to the answer. The client has 16 \
     addresses, by turns, so that no port is used again while connection tracking remembers it.",
    "The client keeps to the first processor and the endpoints to the last. The proxies are frozen while traffic is measured: \
     what is measured is the kernel's work.",
    "UDP: requests of 64 bytes, each after the answer to the last, to one Service; with one connected socket, one that is not, and \
     a new connected one for each.",
    "Changes: a Service's only endpoint is replaced by another through the API, while connections go on, 0.2 ms after one another. \
     `answer to effect` is from the API's answer until the first connection that reached the new endpoint began (0 when that \
     was before); `to the last at the old one` until the last that reached the other; `write to effect` begins when the write \
     was sent. Only the proxy that is measured runs, the others are frozen. Between two changes there is more than the second \
     that kube-proxy lets pass between two of its runs.",
    "Services in effect: from the first write until a sample of them, and at last each, is reached; `Services written` is the part \
     until the API's last answer.",
    "BPF programs: nanoseconds of a run, as the kernel counts them in a pass of its own, since counting costs time.",
    "The order of ways and hosts alternates from round to round. Each figure is the median of the rounds; ratios are paired by \
     round, with their 95 % confidence interval.",
];

/// Measures and prints.
pub fn run(args: &ServiceArgs, steps: &mut Steps) -> Result<()> {
    check(args)?;
    let program = kube_proxy::build(steps);
    let options = Options {
        nodes: args.peers.len() + 2,
        // An agent that is frozen for minutes sends no heartbeat.
        master_args: vec!["--node-monitor-grace-period=24h".to_owned()],
        ..Options::default()
    };
    let bench = with_master("bench", &options, steps, |cluster, steps| {
        let mut bench = Bench::set_up(cluster, args, program, steps)?;
        bench.measure(args, steps)?;
        Ok(bench)
    })?;
    let bare = Proxy::None.name();
    let ours = Proxy::Keelson.name();
    let compared = Compared { ways: &bench.ways, bare: &bare, ours: &ours };
    let peers: Vec<String> = args.peers.iter().filter_map(|mode| mode.describe().ok()).collect();
    println!();
    CONDITIONS.iter().for_each(|line| println!("{line}"));
    peers.iter().for_each(|peer| println!("Peer: {peer}"));
    bench.missing.iter().for_each(|(name, reason)| println!("Not measured, {name}: {reason}"));
    println!();
    bench.figures.print(&compared);
    let missing: Vec<Value> =
        bench.missing.iter().map(|(name, reason)| json!({"name": name, "reason": reason})).collect();
    let figures = json!({
        "conditions": CONDITIONS, "peers": peers, "not measured": missing, "rounds": args.rounds,
        "figures": bench.figures.json(&compared),
    });
    write("service", &figures)
}

fn check(args: &ServiceArgs) -> Result<()> {
    if !args.services.is_sorted_by(|a, b| a < b) || args.services.first().is_none_or(|&first| first == 0) {
        bail!("--services wants growing numbers, such as 1,1000");
    }
    if (1..args.peers.len()).any(|place| args.peers[..place].contains(&args.peers[place])) {
        bail!("--peers wants each mode once");
    }
    if !args.changes.is_multiple_of(2) {
        bail!("--changes wants an even number, so that each endpoint's turn ends");
    }
    Ok(())
}

struct Bench {
    places: Vec<Place>,
    ways: Vec<Way>,
    figures: Figures,
    /// What could not be measured, and why.
    missing: Vec<(String, String)>,
}

impl Bench {
    /// The hosts: ours is the first node, then the peers, then one without a proxy.
    fn set_up(
        cluster: &mut Cluster,
        args: &ServiceArgs,
        program: Result<PathBuf>,
        steps: &mut Steps,
    ) -> Result<Self> {
        steps.step("start the agent", || {
            cluster.start_agent(1)?;
            cluster.wait_ready(1, Duration::from_secs(60))
        })?;
        let mut proxies = vec![Proxy::Keelson];
        proxies.extend(args.peers.iter().map(|mode| Proxy::Peer(*mode)));
        proxies.push(Proxy::None);
        let mut places: Vec<Place> = steps.step("clients and endpoints", || {
            let numbered = (1..).zip(&proxies);
            numbered.map(|(number, proxy)| Place::make(cluster, number, *proxy)).collect()
        })?;
        let ours = places.first_mut().context("our host is the first")?;
        ours.has_agent(cluster)?;
        fill(ours, 0, 1, args)?;
        ours.wait(1)?;
        let mut number = 0;
        let missing = keep_those_that_work(&mut places, steps, |place| {
            number += 1;
            match (place.proxy, &program) {
                (Proxy::Peer(_), Err(error)) => bail!("kube-proxy can't be had: {error:#}"),
                (Proxy::Peer(mode), Ok(program)) => {
                    place.start_peer(cluster, number, mode, program)?;
                    place.wait(1)
                }
                (Proxy::Keelson | Proxy::None, _) => Ok(()),
            }
        });
        let ways = (0..).zip(&places).flat_map(|(index, place)| place.ways(index)).collect();
        let bench = Self { places, ways, figures: Figures::default(), missing };
        bench.places.iter().try_for_each(Place::freeze)?;
        Ok(bench)
    }

    fn measure(&mut self, args: &ServiceArgs, steps: &mut Steps) -> Result<()> {
        let mut have = 1;
        for (level, &services) in args.services.iter().enumerate() {
            if services > have {
                self.grow(level, have, services, args, steps)?;
                have = services;
            }
            for round in 0..args.rounds {
                steps.step(&format!("{services} Services, round {}: traffic", round + 1), || {
                    self.traffic(round, services, args)
                })?;
                steps.step(&format!("{services} Services, round {}: changes", round + 1), || {
                    self.changes(round, services, args)
                })?;
            }
        }
        Ok(())
    }

    /// Indices of the hosts with proxies, in a round's order.
    fn proxies(&self, round: usize) -> Vec<usize> {
        let with: Vec<usize> = (0..)
            .zip(&self.places)
            .filter(|(_, place)| place.proxy != Proxy::None)
            .map(|(index, _)| index)
            .collect();
        order(round, with.len()).into_iter().filter_map(|place| with.get(place).copied()).collect()
    }

    /// Has each proxy see the Services come, while the others are frozen: they are deleted again in between.
    fn grow(
        &mut self,
        level: usize,
        have: usize,
        services: usize,
        args: &ServiceArgs,
        steps: &mut Steps,
    ) -> Result<()> {
        for (turn, index) in self.proxies(level).into_iter().enumerate() {
            let Some(place) = self.places.get(index) else { continue };
            let name = place.proxy.name();
            steps.step(&format!("{have} to {services} Services: {name}"), || {
                place.thaw()?;
                if turn == 0 {
                    place.wait(have)?;
                } else {
                    // What the one before made, and all of it: then it has missed nothing.
                    place.wait(services)?;
                    let (first, last) = (have.to_string(), services.to_string());
                    place.ask_with_api(&["remove", "--first", &first, "--services", &last])?;
                }
                // As between changes: what came before is no reason for a proxy to wait.
                std::thread::sleep(Duration::from_millis(args.gap));
                let told = fill(place, have, services, args)?;
                for (key, what) in [("written_s", "Services written"), ("in_effect_s", "Services in effect")]
                {
                    self.figures.add(services, what, "s", &name, number(&told, key)?);
                }
                place.freeze()
            })?;
        }
        steps.step(&format!("{services} Services in effect on all hosts"), || {
            let order = self.proxies(0);
            let places = || order.iter().filter_map(|index| self.places.get(*index));
            // One that was frozen still has the Services that were deleted and made again meanwhile. One more, made after all
            // that, tells when it has seen it all.
            let Some(first) = places().next() else { return Ok(()) };
            first.thaw()?;
            fill(first, services, services + 1, args)?;
            for place in places() {
                place.thaw()?;
                place.wait(services + 1)?;
                if !std::ptr::eq(place, first) {
                    place.freeze()?;
                }
            }
            let (number, last) = (services.to_string(), (services + 1).to_string());
            first.ask_with_api(&["remove", "--first", &number, "--services", &last])?;
            first.freeze()
        })
    }

    /// What goes through the kernel alone.
    fn traffic(&mut self, round: usize, services: usize, args: &ServiceArgs) -> Result<()> {
        for measured in [Traffic::Latency, Traffic::Rate, Traffic::Stream] {
            self.each_way(round, services, measured, args)?;
        }
        for sockets in ["connected", "unconnected", "fresh"] {
            self.each_way(round, services, Traffic::Udp(sockets), args)?;
        }
        self.programs(services, args)
    }

    fn each_way(
        &mut self,
        round: usize,
        services: usize,
        traffic: Traffic,
        args: &ServiceArgs,
    ) -> Result<()> {
        for index in order(round, self.ways.len()) {
            let Some(way) = self.ways.get(index) else { continue };
            let Some(place) = self.places.get(way.place) else { continue };
            let endpoint = format!("{ENDPOINT}:8080");
            let count = services.to_string();
            let mut words = traffic.words(args);
            words.extend(match way.services {
                true => ["--services".to_owned(), count],
                false => ["--endpoint".to_owned(), endpoint],
            });
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let told = place.ask(way.outside, &words)?;
            for (name, unit, value) in traffic.figures(&told, args)? {
                self.figures.add(services, &name, unit, &way.name, value);
            }
        }
        Ok(())
    }

    /// What our programs take.
    fn programs(&mut self, services: usize, args: &ServiceArgs) -> Result<()> {
        let ours = self.places.iter().find(|place| place.proxy == Proxy::Keelson);
        let ours = ours.context("our host is there")?;
        let (other, services_text, count) =
            (format!("{ENDPOINT}:8080"), services.to_string(), args.runs.to_string());
        let pins = "/sys/fs/bpf/keelson";
        let words =
            ["programs", "--pins", pins, "--other", &other, "--services", &services_text, "--count", &count];
        let told = ours.ask(false, &words)?;
        for (name, of) in told.as_object().context("the measuring program names no programs")? {
            let name = format!("a run of {name}");
            self.figures.add(services, &name, "ns", &ours.proxy.name(), number(of, "ns")?);
        }
        Ok(())
    }

    fn changes(&mut self, round: usize, services: usize, args: &ServiceArgs) -> Result<()> {
        for index in self.proxies(round) {
            let Some(place) = self.places.get(index) else { continue };
            place.thaw()?;
            place.wait(services)?;
            // The first pair finds connections to the API server that have slept.
            change(place, 2, 200)?;
            let told = change(place, args.changes, args.gap)?;
            let name = place.proxy.name();
            for (key, what) in [
                ("write", "change: the API's answer"),
                ("answered to new", "change: answer to effect"),
                ("answered to last old", "change: answer to the last at the old one"),
                ("sent to new", "change: write to effect"),
            ] {
                let times = samples(&told, key)?;
                for (percent, unit) in [(50, "ms, p50"), (99, "ms, p99")] {
                    self.figures.add(services, what, unit, &name, times.percentile(percent) / 1e6);
                }
            }
            let failed = number(&told, "failed")?;
            self.figures.add(services, "change: connections that failed meanwhile", "", &name, failed);
            place.freeze()?;
        }
        Ok(())
    }
}

/// Creates Services and waits until they are in effect; gives how long that took.
fn fill(place: &Place, have: usize, services: usize, args: &ServiceArgs) -> Result<Value> {
    let (first, last) = (have.to_string(), services.to_string());
    let (endpoint, at_once) = (ENDPOINT.to_string(), args.at_once.to_string());
    let words =
        ["fill", "--first", &first, "--services", &last, "--endpoint", &endpoint, "--at-once", &at_once];
    place.ask_with_api(&words)
}

/// Replaces a Service's endpoint back and forth; gives how long each took.
fn change(place: &Place, changes: usize, gap: u64) -> Result<Value> {
    let (changes, gap) = (changes.to_string(), gap.to_string());
    let (endpoint, other) = (ENDPOINT.to_string(), OTHER.to_string());
    let words = ["change", "--changes", &changes, "--gap", &gap, "--endpoint", &endpoint, "--other", &other];
    place.ask_with_api(&words)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ServiceArgs,
    }

    pub fn parsed(words: &[&str]) -> ServiceArgs {
        let words = [&["bench"], words].concat();
        <Cli as clap::Parser>::try_parse_from(words).unwrap().args
    }

    #[test]
    fn arguments_that_lead_nowhere_are_refused() {
        assert!(check(&parsed(&[])).is_ok());
        for words in [
            ["--services", "10,1"],
            ["--services", "0,1"],
            ["--changes", "3"],
            ["--peers", "iptables,iptables"],
        ] {
            assert!(check(&parsed(&words)).is_err(), "{words:?}");
        }
        assert_eq!(parsed(&["--peers", "nftables"]).peers, [Mode::Nftables]);
    }
}
