//! `cargo xtask test`: the same stages here and in CI, each with its time.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use keelson_tests::progress::Steps;

use crate::build;

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
    if part.is_none() {
        steps.step("format", || build::cargo_visible(&["fmt", "--all", "--check"]))?;
    }
    if part != Some(Part::Unit) {
        if !nix_is_root() {
            bail!("the e2e tests need root; 'cargo xtask test unit' runs what does not");
        }
        steps.step("tools", build::tools)?;
    }
    if part.is_none() {
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
        steps.step("integration and e2e tests", || {
            build::cargo_visible(&["test", "--workspace", "--test", "*", "--", "--test-threads=1"])
        })?;
    }
    Ok(())
}

fn nix_is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}
