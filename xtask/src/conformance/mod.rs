//! `cargo xtask conformance`: upstream's end-to-end suite against a cluster of this checkout.

pub mod guest;
mod names;
mod ratchet;
mod report;
mod results;
mod run;
pub mod suite;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use keelson_tests::images::suite as images;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use keelson_tests::testbed::registry;
use keelson_tests::{cmd, paths};
use serde::{Deserialize, Serialize};

use crate::build;
use report::{Found, report};
use results::{Journal, Outcome, TestResult};
use run::{INTERRUPTED, Runner};
use suite::Suite;

/// Arguments of `conformance`.
#[derive(Args)]
pub struct ConformanceArgs {
    /// Run tests whose name matches this regular expression [default: `\[Conformance\]`].
    #[arg(long)]
    focus: Option<String>,
    /// Leave out tests whose name matches this regular expression.
    #[arg(long)]
    skip: Option<String>,
    /// Only tests of this group, for example `network`.
    #[arg(long)]
    sig: Option<String>,
    /// Print the names of the selected tests and end.
    #[arg(long)]
    list: bool,
    /// Build the suite and the images, and end.
    #[arg(long)]
    build_only: bool,
    /// Number of nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=20))]
    nodes: u16,
    /// Tests side by side; `[Serial]` ones always run one by one.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Run the tests of tests/conformance/passing.txt, and fail if one of them does not pass.
    #[arg(long, conflicts_with_all = ["focus", "admit"])]
    ratchet: bool,
    /// With --ratchet: only so many tests, chosen by hash so that every group has some.
    #[arg(long, requires = "ratchet")]
    sample: Option<usize>,
    /// Seed of the sample [default: the commit].
    #[arg(long, requires = "sample")]
    seed: Option<String>,
    /// Run each selected test that is not in passing.txt three times, and add those that passed each time.
    #[arg(long)]
    admit: bool,
    /// Run the tests of tests/conformance/vm.txt, in a QEMU guest; their results join those of the last run, if it
    /// was of the same commit.
    #[arg(long, conflicts_with_all = ["ratchet", "admit", "keep", "workers"])]
    vm: bool,
    /// Forget what an interrupted run of the same tests found.
    #[arg(long)]
    fresh: bool,
    /// Leave the cluster up at the end, as `conformance`.
    #[arg(long)]
    keep: bool,
    /// Write the summary to tests/conformance/latest.json, too.
    #[arg(long)]
    record: bool,
}

/// Name of the cluster.
const NAME: &str = "conformance";

/// How often a candidate must pass before it is admitted.
const ADMIT_RUNS: usize = 3;

/// What a run is about: an interrupted run goes on only if this is the same.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Plan {
    commit: String,
    tests: Vec<String>,
}

impl ConformanceArgs {
    /// What CI asks for: so many tests of the ratchet.
    pub fn sample_of_ratchet(count: usize) -> Self {
        Self {
            focus: None,
            skip: None,
            sig: None,
            list: false,
            build_only: false,
            nodes: 2,
            workers: 8,
            ratchet: true,
            sample: Some(count),
            seed: None,
            admit: false,
            vm: false,
            fresh: true,
            keep: false,
            record: false,
        }
    }
}

/// `cargo xtask conformance`.
pub fn run(args: &ConformanceArgs, steps: &mut Steps) -> Result<()> {
    steps.step("tools", build::tools)?;
    if args.vm {
        steps.step("tools for guests", build::vm_tools)?;
    }
    let suite = steps.step("upstream's module", Suite::prepare)?;
    suite.build(|name, work| steps.step(name, work))?;
    let all = suite.tests()?;
    let tests = choose(args, &all)?;
    if args.list {
        tests.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    ensure!(!tests.is_empty(), "no test is selected");
    steps.step("build programs", build::programs)?;
    let images = steps.step("images", || if args.vm { guest::assemble(&suite) } else { assemble(&suite) })?;
    for (reference, reason) in &images.not_made {
        println!("no image {reference}: {reason}");
    }
    if args.build_only {
        return Ok(());
    }
    let lock = paths::target().join("conformance");
    fs::create_dir_all(&lock)?;
    let lock = fs::File::create(lock.join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another run of 'cargo xtask conformance' is going on in this checkout");
    }
    if args.vm {
        return in_guest(args, &suite, &tests, images, steps);
    }
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("handle interruptions")?;
    let commit = commit()?;
    let rounds = if args.admit { ADMIT_RUNS } else { 1 };
    let mut candidates = tests;
    for round in 1..=rounds {
        if rounds > 1 {
            println!("\nround {round} of {rounds}: {} candidates", candidates.len());
        }
        let mut results = round_of(args, &suite, &candidates, round, steps)?;
        if args.ratchet {
            try_again(args, &suite, &mut results, steps)?;
        }
        let not_made = images.not_made.clone();
        let found = Found { commit: commit.clone(), results, images_not_made: not_made };
        report(args, &found)?;
        let results = found.results;
        if args.admit {
            candidates
                .retain(|name| results.iter().any(|one| one.name == *name && one.outcome == Outcome::Passed));
        } else if args.ratchet {
            let bad: Vec<_> = results.iter().filter(|one| one.outcome != Outcome::Passed).collect();
            ensure!(bad.is_empty(), "{} of {} tests of the ratchet did not pass", bad.len(), results.len());
        }
        if candidates.is_empty() {
            break;
        }
    }
    if args.admit {
        println!("{} tests are new in passing.txt", ratchet::admit(&candidates)?);
    }
    Ok(())
}

/// Runs the tests in a guest; what it finds joins the last run's results. There, a test that is skipped was for nothing.
fn in_guest(
    args: &ConformanceArgs,
    suite: &Suite,
    tests: &[String],
    images: images::Assembled,
    steps: &mut Steps,
) -> Result<()> {
    let dir = run_dir("vm");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let commit = commit()?;
    let nodes = usize::from(args.nodes);
    let name = format!("{} tests in a guest", tests.len());
    let results = steps.step(&name, || guest::run(suite, &images, tests, nodes, &dir))?;
    let passed = results.iter().filter(|one| one.outcome == Outcome::Passed).count();
    let found = Found { commit, results, images_not_made: images.not_made };
    report(args, &found.joined(Found::last()?))?;
    ensure!(
        passed == tests.len(),
        "{} of {} tests did not pass in the guest",
        tests.len() - passed,
        tests.len()
    );
    Ok(())
}

/// Tests of the ratchet that failed are run once more, in a new cluster: upstream's suite has time limits that a busy
/// machine can miss. One that passes then is named, and is not a failure; a real fault fails twice.
fn try_again(
    args: &ConformanceArgs,
    suite: &Suite,
    results: &mut [TestResult],
    steps: &mut Steps,
) -> Result<()> {
    let failed: Vec<String> =
        results.iter().filter(|one| one.outcome == Outcome::Failed).map(|one| one.name.clone()).collect();
    // So many are no accident.
    if failed.is_empty() || failed.len() > results.len().div_ceil(4) {
        return Ok(());
    }
    println!("\n{} of {} failed and are run once more", failed.len(), results.len());
    for again in round_of(args, suite, &failed, 2, steps)? {
        if let Some(one) = results.iter_mut().find(|one| one.name == again.name)
            && again.outcome == Outcome::Passed
        {
            println!("passed at the second try: {} (first: {})", one.name, results::first_line(&one.message));
            *one = again;
        }
    }
    Ok(())
}

fn commit() -> Result<String> {
    cmd::text(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(paths::root()))
}

/// The tests that the switches ask for. A name of the ratchet that the suite does not know is an error.
fn choose(args: &ConformanceArgs, all: &[String]) -> Result<Vec<String>> {
    let selection =
        names::Selection { focus: args.focus.clone(), skip: args.skip.clone(), sig: args.sig.clone() };
    if args.vm {
        let listed = ratchet::in_vm()?;
        if let Some(unknown) = listed.iter().find(|name| !all.contains(name)) {
            bail!("vm.txt names a test that the suite does not have: {unknown}");
        }
        return selection.choose(&listed);
    }
    if !args.ratchet {
        let mut tests = selection.choose(all)?;
        if args.admit {
            let passing = ratchet::passing()?;
            tests.retain(|name| !passing.contains(name));
        }
        return Ok(tests);
    }
    let passing = ratchet::passing()?;
    if let Some(unknown) = passing.iter().find(|name| !all.contains(name)) {
        bail!("passing.txt names a test that the suite does not have: {unknown}");
    }
    let tests = names::Selection { focus: Some(String::new()), ..selection }.choose(&passing)?;
    let Some(count) = args.sample else { return Ok(tests) };
    let seed = match &args.seed {
        Some(seed) => seed.clone(),
        None => commit()?,
    };
    println!("a sample of {count}, seed {seed}");
    Ok(names::sample(&tests, count, &seed))
}

/// Where images take programs of upstream's from.
struct Programs<'a>(&'a Suite);

impl images::Programs for Programs<'_> {
    fn source(&self) -> Result<PathBuf> {
        self.0.source_of("k8s.io/kubernetes")
    }

    fn go(&self, package: &str) -> Result<PathBuf> {
        let name = package.rsplit('/').next().unwrap_or(package);
        self.0.program(name, package, false)
    }

    fn coredns(&self) -> Result<Option<PathBuf>> {
        images::coredns::build(images::coredns::Plugins::Hosts, || self.0.go_anywhere()).map(Some)
    }
}

/// The OCI archive of one of the images that the suite asks for.
pub fn image(suite: &Suite, name: &str) -> Result<PathBuf> {
    let assembled = images::assemble(&[name.to_owned()], &Programs(suite))?;
    let made = assembled.made.into_iter().next();
    made.map(|made| made.archive).with_context(|| format!("{name} is not made: {:?}", assembled.not_made))
}

fn assemble(suite: &Suite) -> Result<images::Assembled> {
    let assembled = images::assemble(&suite.images()?, &Programs(suite))?;
    registry::fill(assembled.made.iter().map(|made| (made.name.as_str(), made.archive.as_path())))?;
    Ok(assembled)
}

/// One run of the tests in a cluster of its own.
fn round_of(
    args: &ConformanceArgs,
    suite: &Suite,
    tests: &[String],
    round: usize,
    steps: &mut Steps,
) -> Result<Vec<TestResult>> {
    let dir = run_dir(round);
    let plan = Plan { commit: commit()?, tests: tests.to_vec() };
    let (journal, mut results) = open_journal(args, &dir, &plan)?;
    if !results.is_empty() {
        println!("{} results of an interrupted run are kept", results.len());
    }
    results.extend(not_run_here(tests)?);
    let left: Vec<String> =
        tests.iter().filter(|name| !results.iter().any(|known| known.name == **name)).cloned().collect();
    if !left.is_empty() {
        if let Some(old) = Cluster::find(NAME)? {
            steps.step("end the cluster of an earlier run", || old.destroy())?;
        }
        let options = Options {
            nodes: usize::from(args.nodes),
            agent_args: vec![registry::agent_arg()],
            ..Options::default()
        };
        let mut cluster = steps.step("make test hosts", || Cluster::create(NAME, &options))?;
        let result = in_cluster(args, &mut cluster, suite, &left, journal, &dir, steps);
        if args.keep {
            println!(
                "the cluster is left up: cargo xtask kubectl --name {NAME} -- …, cargo xtask down --name {NAME}"
            );
        } else {
            steps.step("end the cluster", || cluster.destroy())?;
        }
        results.extend(result?);
    }
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!(
            "interrupted with {} of {} results; the same command goes on from there",
            results.len(),
            tests.len()
        );
    }
    // The next run of the same tests is a new one.
    fs::remove_file(dir.join("plan.json"))?;
    results.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(results)
}

/// Results of the tests that no run on this machine can give.
fn not_run_here(tests: &[String]) -> Result<Vec<TestResult>> {
    let vm =
        ratchet::in_vm()?.into_iter().map(|name| (name, "needs whole cgroup v2: run in QEMU".to_owned()));
    let never = ratchet::excluded()?.into_iter().map(|(name, reason)| (name, format!("excluded: {reason}")));
    Ok(vm
        .chain(never)
        .filter(|(name, _)| tests.contains(name))
        .map(|(name, message)| TestResult { name, outcome: Outcome::Skipped, seconds: 0.0, message })
        .collect())
}

fn run_dir(round: impl std::fmt::Display) -> PathBuf {
    paths::target().join("conformance").join(format!("run-{round}"))
}

/// The journal of an interrupted run of the same plan with its results, or a new one.
fn open_journal(
    args: &ConformanceArgs,
    dir: &std::path::Path,
    plan: &Plan,
) -> Result<(Journal, Vec<TestResult>)> {
    let path = dir.join("plan.json");
    let old: Option<Plan> = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if args.fresh || old.as_ref() != Some(plan) {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir.join("output"))?;
        fs::write(&path, serde_json::to_vec_pretty(plan)?)?;
    }
    Journal::open(&dir.join("results.jsonl"))
}

fn in_cluster(
    args: &ConformanceArgs,
    cluster: &mut Cluster,
    suite: &Suite,
    tests: &[String],
    journal: Journal,
    dir: &std::path::Path,
    steps: &mut Steps,
) -> Result<Vec<TestResult>> {
    steps.step("start the registry", || registry::start(cluster))?;
    steps.step("start the master", || cluster.start_master())?;
    steps.step("start the agents", || (1..=cluster.nodes()).try_for_each(|n| cluster.start_agent(n)))?;
    steps.step("nodes Ready", || cluster.wait_nodes_ready(Duration::from_secs(60)))?;
    let host = cluster.node(1)?;
    fs::copy(
        cluster.host("master")?.dir.join("etc/kubernetes/admin.conf"),
        host.dir.join("root/admin.conf"),
    )?;
    fs::write(host.dir.join("root/registries.yaml"), registry::repo_list())?;
    let runner = Runner {
        host: &host,
        program: suite.path("e2e.test"),
        kubectl: suite.path("kubectl"),
        kubeconfig: "/root/admin.conf".to_owned(),
        repo_list: Some("/root/registries.yaml".to_owned()),
        output: dir.join("output"),
        limit: Duration::from_secs(1500),
    };
    let (serial, mut parallel): (Vec<String>, Vec<String>) =
        tests.iter().cloned().partition(|name| names::is_serial(name));
    // The long ones first, so that no worker is left with one at the end.
    parallel.sort_by_key(|name| !name.contains("[Slow]"));
    let (mut results, journal) = steps
        .step(&format!("{} tests, {} side by side", parallel.len(), args.workers), || {
            runner.run(&parallel, usize::from(args.workers), journal)
        })?;
    if !INTERRUPTED.load(Ordering::Relaxed) && !serial.is_empty() {
        let (more, _) =
            steps.step(&format!("{} serial tests", serial.len()), || runner.run(&serial, 1, journal))?;
        results.extend(more);
    }
    Ok(results)
}
