//! `cargo xtask test`: the same stages here and in CI, each with its time.

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use keelson_tests::cmd;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::snapshot::Snapshot;

use crate::build;
use crate::conformance::{self, ConformanceArgs};
use crate::dist;

/// How many tests of upstream's suite are run each time, chosen by the commit's hash.
const CONFORMANCE_SAMPLE: usize = 30;

/// Which tests to run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What needs no root.
    Unit,
    /// Whole clusters, as root.
    E2e,
}

/// Arguments of `test`.
#[derive(Args)]
pub struct TestArgs {
    /// Only this part; without it everything, format and lints included.
    part: Option<Part>,
}

/// Runs the stages in order and stops at the first that fails.
pub fn run(args: &TestArgs) -> Result<()> {
    let mut steps = Steps::new();
    let result = stages(args.part, &mut steps);
    println!("\nstage times");
    for (name, took) in steps.done() {
        println!("  {name:<40} {:>8.1} s", took.as_secs_f64());
    }
    println!("  {:<40} {:>8.1} s", "total", steps.total().as_secs_f64());
    result
}

fn stages(part: Option<Part>, steps: &mut Steps) -> Result<()> {
    if part != Some(Part::Unit) {
        if !is_root() {
            bail!("the integration and e2e tests need root; 'cargo xtask test unit' runs what does not");
        }
        steps.step("tools", build::tools)?;
    }
    if part.is_none() {
        steps.step("format", || build::cargo_visible(&["fmt", "--all", "--check"]))?;
        steps.step("licences, bans, sources", deny)?;
        steps.step("clippy", || {
            build::cargo_visible(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ])
        })?;
    }
    if part != Some(Part::E2e) {
        steps.step("unit tests", || build::cargo_visible(&["test", "--workspace", "--lib", "--bins"]))?;
    }
    if part != Some(Part::Unit) {
        steps.step("build programs", build::programs)?;
    }
    if part.is_none() {
        let (tests, left_out) = integration_tests()?;
        let mut args = vec!["test", "--workspace", "--no-fail-fast"];
        for name in &tests {
            args.extend(["--test", name]);
        }
        args.extend(["--", "--test-threads=1"]);
        steps.step("integration tests", || build::cargo_visible(&args))?;
        tell_left_out(&left_out);
    }
    if part != Some(Part::Unit) {
        steps.step("images", || {
            keelson_tests::images::ALL
                .iter()
                .try_for_each(|name| keelson_tests::images::ensure(name).map(drop))
        })?;
        let (tests, left_out) = whole_system_tests()?;
        let (guests, clusters): (Vec<String>, Vec<String>) =
            tests.into_iter().partition(|name| name.starts_with("vm_"));
        steps.step("e2e tests", || run_whole_system(&clusters))?;
        tell_left_out(&left_out);
        steps.step("cargo xtask up, kubectl, down", by_command)?;
        if part.is_none() {
            conformance::run(&ConformanceArgs::sample_of_ratchet(CONFORMANCE_SAMPLE), steps)?;
            crate::ebpf::build(steps, true)?;
        }
        // Last: the static programs take the others' places, which would only be linked anew for more tests.
        steps.step("packages for guests", dist::for_tests)?;
        steps.step("QEMU tests", || build::vm_tools().and_then(|()| run_whole_system(&guests)))?;
    }
    Ok(())
}

/// Names of the whole-system tests; and those left out for want of test inputs.
fn whole_system_tests() -> Result<(Vec<String>, Vec<String>)> {
    let with_data = std::env::var_os(TESTDATA).is_some();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(keelson_tests::paths::root().join("tests/tests"))? {
        let path = entry?.path();
        if let Some(name) = path.file_stem().filter(|_| path.extension().is_some_and(|kind| kind == "rs")) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names.into_iter().partition(|name| with_data || !name.starts_with("data_")))
}

/// Runs these of them, one test at a time.
fn run_whole_system(names: &[String]) -> Result<()> {
    let mut args = vec!["test", "-p", "keelson-tests", "--no-fail-fast"];
    for name in names {
        args.extend(["--test", name]);
    }
    args.extend(["--", "--test-threads=1"]);
    build::cargo_visible(&args)
}

/// Names the folder of upstream's test inputs that the `data_*` tests read.
const TESTDATA: &str = "KEELSON_TESTDATA";

fn tell_left_out(tests: &[String]) {
    if !tests.is_empty() {
        println!("left out, since {TESTDATA} names no folder: {}", tests.join(", "));
    }
}

/// Integration tests of all crates but the whole-system ones; and those left out for want of test inputs.
fn integration_tests() -> Result<(Vec<String>, Vec<String>)> {
    let with_data = std::env::var_os(TESTDATA).is_some();
    let listed = cmd::text(
        std::process::Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .current_dir(keelson_tests::paths::root()),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&listed)?;
    let (mut run, mut left_out) = (Vec::new(), Vec::new());
    for package in metadata["packages"].as_array().into_iter().flatten() {
        if package["name"] == "keelson-tests" {
            continue;
        }
        for target in package["targets"].as_array().into_iter().flatten() {
            let is_test =
                target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
            let name = target["name"].as_str().unwrap_or_default().to_owned();
            if is_test && (with_data || !name.starts_with("data_")) {
                run.push(name);
            } else if is_test {
                left_out.push(name);
            }
        }
    }
    run.sort();
    run.dedup();
    Ok((run, left_out))
}

/// Licences, banned and doubled crates, and where crates come from. Advisories need a database that is not on every
/// machine, so they are looked at by hand: `cargo deny check advisories`.
fn deny() -> Result<()> {
    let mut check = std::process::Command::new(build::cargo_program("cargo-deny", "0.20.2")?);
    check
        .args(["--log-level", "error", "check", "bans", "licenses", "sources"])
        .current_dir(keelson_tests::paths::root());
    cmd::run(&mut check).map(drop)
}

/// The commands of the README, as a user types them: up ends with both answers and the kubeconfig's path, and down leaves
/// nothing.
fn by_command() -> Result<()> {
    let before = Snapshot::take()?;
    let xtask = |args: &[&str]| cmd::text(std::process::Command::new(std::env::current_exe()?).args(args));
    let shown = xtask(&["up", "--name", "by-command", "--nodes", "3"])?;
    for expected in ["through the ClusterIP: v1 hello-", "through the DNS name:  v1 hello-", "kubeconfig: /"]
    {
        ensure!(shown.contains(expected), "up does not show {expected:?}:\n{shown}");
    }
    let pods = xtask(&["kubectl", "--name", "by-command", "--", "get", "pods", "-o", "name"])?;
    ensure!(pods.lines().count() == 3, "three replicas: {pods}");
    xtask(&["down", "--name", "by-command"])?;
    let left = Snapshot::take()?.added_since(&before);
    ensure!(left.is_empty(), "down left something behind: {left:?}");
    Ok(())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}
