//! Tests that need whole cgroup v2, run in one QEMU guest that holds a cluster of its own.
//!
//! [`run`] boots the guest with the programs, the suite and the few images that these tests use; [`inside`] is what runs
//! there. Nothing is pulled: the nodes import the images under upstream's names, so the suite is told of no registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use keelson_tests::images::suite as images;
use keelson_tests::paths;
use keelson_tests::testbed::cluster::{Cluster, Options};
use keelson_tests::vm::{Kernel, programs};

use super::results::{Journal, Outcome, TestResult};
use super::run::Runner;
use super::suite::{Suite, VERSION};

/// Images that the tests of vm.txt start, by repository.
const IMAGES: [&str; 1] = ["/busybox:"];
/// What an emulated machine may take for all of it.
const BUDGET: Duration = Duration::from_secs(60 * 60);
/// What it may take to make the cluster, of that.
const CLUSTER: Duration = Duration::from_secs(300);
/// What a batch of one or two tests may take, of that: one that hangs costs the others' results nothing.
const BATCH: Duration = Duration::from_secs(15 * 60);
/// Programs of the suite that run in the guest.
const PROGRAMS: [&str; 2] = ["e2e.test", "kubectl"];
/// Where the guest finds the images and the names of the tests.
const STAGED: &str = "/job/conformance";

/// Arguments of `conformance-guest`.
#[derive(Args)]
pub struct GuestArgs {
    /// Number of nodes.
    #[arg(long)]
    nodes: usize,
}

/// Makes the few images that the guest needs.
pub fn assemble(suite: &Suite) -> Result<images::Assembled> {
    let mut list = suite.images()?;
    list.retain(|name| IMAGES.iter().any(|part| name.contains(part)));
    images::assemble(&list, &super::Programs(suite))
}

/// Boots the guest and gives the results of the tests; a test without one failed.
pub fn run(
    suite: &Suite,
    assembled: &images::Assembled,
    tests: &[String],
    nodes: usize,
    dir: &Path,
) -> Result<Vec<TestResult>> {
    let parent = paths::target().join("vm");
    fs::create_dir_all(&parent)?;
    let staged = tempfile::Builder::new().prefix("stage-").tempdir_in(&parent)?;
    programs::stage(staged.path(), &[])?;
    programs::put(&std::env::current_exe()?, &staged.path().join("xtask"))?;
    let bin = PathBuf::from("target").join(suite.path("").strip_prefix(paths::target())?);
    for program in PROGRAMS {
        programs::put(&suite.path(program), &staged.path().join(&bin).join(program))?;
    }
    let at = staged.path().join("conformance");
    for made in &assembled.made {
        let file = made.archive.file_name().context("an archive has no name")?;
        programs::put(&made.archive, &at.join("images").join(file))?;
    }
    fs::write(at.join("tests.txt"), tests.join("\n"))?;
    let nodes = format!("--nodes={nodes}");
    let outcome = programs::vm(Kernel::V6_12, staged.path())
        .memory_mib(4096)
        .run(&["./xtask", "conformance-guest", &nodes], BUDGET)?;
    let status = outcome.status;
    let kept = dir.join("guest");
    outcome.keep(&kept)?;
    let journal = kept.join("output/results.jsonl");
    let mut results = if journal.exists() { Journal::open(&journal)?.1 } else { Vec::new() };
    let missing: Vec<&String> =
        tests.iter().filter(|name| !results.iter().any(|one| one.name == **name)).collect();
    let message = format!("the guest ended with {status} and no result for it: see {}", kept.display());
    let failed = missing.into_iter().map(|name| TestResult {
        name: name.clone(),
        outcome: Outcome::Failed,
        seconds: 0.0,
        message: message.clone(),
    });
    results.extend(failed.collect::<Vec<_>>());
    Ok(results)
}

/// `xtask conformance-guest`, in the guest: a cluster, and the tests one by one.
pub fn inside(args: &GuestArgs) -> Result<()> {
    let tests: Vec<String> =
        fs::read_to_string(format!("{STAGED}/tests.txt"))?.lines().map(str::to_owned).collect();
    let output = PathBuf::from("/output");
    let mut cluster = Cluster::create(super::NAME, &Options { nodes: args.nodes, ..Options::default() })?;
    for n in 1..=cluster.nodes() {
        let into = cluster.node(n)?.dir.join("var/lib/keelson/import");
        fs::create_dir_all(&into)?;
        for entry in fs::read_dir(format!("{STAGED}/images"))? {
            let entry = entry?;
            fs::copy(entry.path(), into.join(entry.file_name()))?;
        }
    }
    cluster.start_master()?;
    (1..=cluster.nodes()).try_for_each(|n| cluster.start_agent(n))?;
    let ready = cluster.wait_nodes_ready(CLUSTER);
    let result = ready.and_then(|()| in_cluster(&cluster, &tests, &output));
    for host in ["master".to_owned()].into_iter().chain((1..=cluster.nodes()).map(|n| format!("node-{n}"))) {
        let _ = fs::copy(cluster.log(&host), output.join(format!("{host}.log")));
    }
    // The cluster ends with the guest.
    result
}

fn in_cluster(cluster: &Cluster, tests: &[String], output: &Path) -> Result<()> {
    let host = cluster.node(1)?;
    fs::copy(
        cluster.host("master")?.dir.join("etc/kubernetes/admin.conf"),
        host.dir.join("root/admin.conf"),
    )?;
    let bin = paths::cache().join("conformance").join(VERSION).join("bin");
    let failures = output.join("failures");
    fs::create_dir_all(&failures)?;
    let runner = Runner {
        host: &host,
        program: bin.join("e2e.test"),
        kubectl: bin.join("kubectl"),
        kubeconfig: "/root/admin.conf".to_owned(),
        repo_list: None,
        output: failures,
        limit: BATCH,
    };
    let (journal, _) = Journal::open(&output.join("results.jsonl"))?;
    runner.run(tests, 1, journal).map(drop)
}
