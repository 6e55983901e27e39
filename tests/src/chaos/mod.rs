//! Chaos: a cluster under steady load is broken at random, mended, and must then be as if nothing had happened.
//!
//! - [`plan`]: what is broken when; a pure function of the seed.
//! - [`faults`]: breaks and mends.
//! - [`load`]: what goes on meanwhile. Its client (`keelson-bench chaos-load`) keeps a [`journal`].
//! - [`ledger`], [`invariants`], [`settled`]: judgements, all of them pure functions of what [`observe`] saw.
//! - [`report`]: what came of it.

pub mod faults;
pub mod invariants;
pub mod journal;
pub mod ledger;
pub mod load;
pub mod observe;
pub mod plan;
pub mod report;
pub mod settled;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::faults::{Done, Hands, windows};
use self::ledger::Ledger;
use self::load::{Asked, Load};
use self::observe::Before;
use self::plan::{Fault, Place, Plan};
use self::report::{Invariant, NOT_HAD, Report};
use crate::paths;
use crate::testbed::fixture::TestCluster;
use crate::testbed::{disk, registry};

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the cluster.
    pub name: String,
    /// What the faults are chosen by.
    pub seed: u64,
    /// How long things are broken, seconds.
    pub seconds: u64,
    /// Nodes.
    pub nodes: usize,
    /// Writes of ConfigMaps a second.
    pub rate: u32,
}

/// Room on the disks that can be full, MiB.
const MASTER_DISK: u32 = 1_024;
const NODE_DISK: u32 = 192;
/// How long the cluster may take to be at rest: pods of a lost node are known to be orphans after 40 s and looked for
/// every 20 s, and an image that could not be pulled is asked for again after 40 s at the latest.
const QUIET: Duration = Duration::from_secs(150);

/// Where the files of a run are.
fn dir(seed: u64) -> PathBuf {
    paths::target().join("chaos").join(seed.to_string())
}

/// Makes a cluster, breaks it, mends it, and judges. Fails if any invariant is broken; the cluster is ended in any case.
pub fn run(options: &Options) -> Result<Report> {
    let plan = Plan::new(options.seed, options.seconds, options.nodes);
    println!("plan of seed {} for {} s and {} nodes", plan.seed, plan.seconds, plan.nodes);
    for step in &plan.steps {
        let second = |milliseconds: u64| Duration::from_millis(milliseconds).as_secs_f64();
        println!("{:>7.1} s  {} for {:.1} s", second(step.at), step.fault, second(step.lasts));
    }
    for (fault, why) in NOT_HAD {
        println!("  not here: {fault}: {why}");
    }
    let dir = dir(options.seed);
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    load::fill_registry()?;
    let registry_arg = registry::agent_arg();
    // Logs are read whole, so they are not set aside.
    let agent_args = [registry_arg.as_str(), "--container-log-max-size=1Gi"];
    let mut registry = 0;
    let mut cluster =
        TestCluster::up_prepared(&options.name, options.nodes, &load::IMAGES, &agent_args, |cluster| {
            disk::make_small(&cluster.host("master")?, MASTER_DISK)?;
            for node in 1..=cluster.nodes() {
                disk::make_small(&cluster.node(node)?, NODE_DISK)?;
            }
            registry = registry::start(cluster)?;
            Ok(())
        })?;
    let report = break_and_judge(&mut cluster, registry, plan, options.rate, &dir);
    if !report.as_ref().is_ok_and(|report| !report.broken())
        && let Err(error) = observe::keep(&cluster, &dir)
    {
        eprintln!("not all could be kept: {error:#}");
    }
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            eprintln!("logs and journal are kept in {}", dir.display());
            return Err(error);
        }
    };
    cluster.down()?;
    println!("{}", report.table());
    let file = dir.with_extension("json");
    report.write(&file)?;
    println!("\nwritten to {}", file.display());
    if report.broken() {
        let names: Vec<&str> =
            report.invariants.iter().filter(|one| !one.broken.is_empty()).map(|one| one.name).collect();
        bail!("broken: {}; logs, journal and answers are kept in {}", names.join(", "), dir.display());
    }
    fs::remove_dir_all(&dir)?;
    Ok(report)
}

fn break_and_judge(
    cluster: &mut TestCluster,
    registry: i32,
    plan: Plan,
    rate: u32,
    dir: &Path,
) -> Result<Report> {
    let before = Before::look(cluster)?;
    let mut load = Load::start(cluster, dir, plan.seed, rate)?;
    println!("load is on");
    let (done, fallen) = {
        let mut hands = Hands::new(cluster, registry);
        (hands.carry_out(&plan, &|line| println!("{line}"))?, std::mem::take(&mut hands.fallen))
    };
    let ended = Instant::now();
    load.end_writing()?;
    let living: Vec<usize> = (1..=plan.nodes).filter(|node| plan.lost() != Some(*node)).collect();
    let rest = observe::quiet(cluster, &living, QUIET);
    let quiet_after = ended.elapsed().as_secs();
    println!("at rest after {quiet_after} s");

    // In this order: who answered must have been seen.
    let asked = load.end_askers()?;
    let ledger = Ledger::new(journal::read(&load.end_client()?)?);
    let mut invariants = vec![
        Invariant { name: "daemons end only when they are killed", broken: fallen },
        Invariant { name: "at rest, and nodes hold what the API says", broken: rest.open },
    ];
    let mut judged = |name, broken| invariants.push(Invariant { name, broken });
    let excused = plan.lost().map(|node| ledger.pods_on(&format!("node-{node}"))).unwrap_or_default();
    judged("no acknowledged write is lost", ledger.lost_writes(&observe::written(cluster)?, &excused));
    judged("resourceVersions never go back", ledger.revisions_going_back());
    judged("watches have no gap", ledger.watch_gaps());
    judged("no two pods have one address", invariants::shared_addresses(ledger.seen()));
    let (answers, dead) = judge_answers(&asked, &ledger, &done, &living);
    judged("no dead pod answers for a Service", dead);
    judged("Services reach every ready pod, and no other", asked_at_rest(cluster, &living)?);
    judged("logs are whole", logs(cluster, &done, &living)?);
    judged("nothing is left of what is deleted", before.left_behind(cluster, &living)?);
    let acknowledged: BTreeMap<String, usize> =
        ledger.acknowledged_by_kind().into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
    let (unanswered, rested_last) = (ledger.unanswered(), rest.last);
    Ok(Report { plan, done, acknowledged, unanswered, answers, quiet_after, rested_last, invariants })
}

/// How many answers clients of Services got and did not get; and answers of the dead.
fn judge_answers(
    asked: &[Asked],
    ledger: &Ledger,
    done: &[Done],
    living: &[usize],
) -> ((usize, usize), Vec<String>) {
    let deaths = invariants::deaths(ledger.seen());
    let (mut counts, mut broken) = ((0, 0), Vec::new());
    for Asked { node, service, answers } in asked.iter().filter(|asked| living.contains(&asked.node)) {
        let blind = windows(done, |fault| fault.blinds(*node));
        let told = invariants::answers_of_the_dead(service, answers, &deaths, &blind);
        broken.extend(told.into_iter().map(|detail| format!("node-{node}: {detail}")));
        let answered = answers.iter().filter(|answer| answer.from.is_ok()).count();
        counts = (counts.0 + answered, counts.1 + answers.len() - answered);
    }
    (counts, broken)
}

fn asked_at_rest(cluster: &TestCluster, living: &[usize]) -> Result<Vec<String>> {
    let pods = observe::pods(cluster)?;
    let mut broken = Vec::new();
    for node in living {
        for service in load::SERVICES {
            let answers = load::ask_at_rest(cluster, *node, service)?;
            let ready = load::ready_pods(&pods, service);
            let client = format!("{service} from node-{node}");
            broken.extend(invariants::answers_at_rest(&client, &answers, &ready));
        }
    }
    Ok(broken)
}

fn logs(cluster: &TestCluster, done: &[Done], living: &[usize]) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for node in living {
        let name = format!("count-{node}");
        let lines = observe::counted(cluster, *node).with_context(|| name.clone())?;
        let full = windows(done, |fault| fault == Fault::FullDisk(Place::Node(*node)));
        broken.extend(invariants::log_damage(&name, &lines, &full));
    }
    Ok(broken)
}
