//! `cargo xtask fuzz`: the targets of tests/fuzz, each for a while, without a finding.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use keelson_tests::paths;
use keelson_tests::progress::Steps;
use serde_json::json;

use crate::build;

/// Arguments of `fuzz`.
#[derive(Args)]
pub struct FuzzArgs {
    /// Targets; without any, all of them.
    targets: Vec<String>,
    /// How long each runs, seconds.
    #[arg(long, default_value_t = 900)]
    seconds: u32,
    /// Only build the targets and run each on its seeds.
    #[arg(long)]
    seeds_only: bool,
    /// Print the names of the targets and end.
    #[arg(long)]
    list: bool,
}

/// The version of cargo-fuzz.
const VERSION: &str = "0.13.2";

fn dir() -> PathBuf {
    paths::root().join("tests/fuzz")
}

fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir().join("targets"))? {
        if let Some(name) = entry?.file_name().to_string_lossy().strip_suffix(".rs") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Runs them one after another; a finding ends the run with the input's path.
pub fn run(args: &FuzzArgs) -> Result<()> {
    let all = names()?;
    if args.list {
        all.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    for name in &args.targets {
        ensure!(all.contains(name), "no target {name}: there are {}", all.join(", "));
    }
    let chosen = if args.targets.is_empty() { &all } else { &args.targets };
    let mut steps = Steps::new();
    let program = steps.step("cargo-fuzz", || build::cargo_program("cargo-fuzz", VERSION))?;
    let work = paths::target().join("fuzz");
    let mut summary = Vec::new();
    for name in chosen {
        let (corpus, artifacts) = (work.join("corpus").join(name), work.join("findings").join(name));
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&artifacts)?;
        steps.step(&format!("build {name}"), || fuzz(&program, &["build", name], &[]))?;
        // The first folder takes what is found to be new; the seeds stay as they are.
        let seeds = dir().join("seeds").join(name);
        let folders = [corpus.display().to_string(), seeds.display().to_string()];
        let mut options =
            vec![format!("-artifact_prefix={}/", artifacts.display()), "-timeout=10".to_owned()];
        options.push("-rss_limit_mb=4096".to_owned());
        options.push(if args.seeds_only {
            "-runs=0".to_owned()
        } else {
            format!("-max_total_time={}", args.seconds)
        });
        let began = Instant::now();
        let words: Vec<&str> = ["run", name].into_iter().chain(folders.iter().map(String::as_str)).collect();
        let ran = steps.step(name, || fuzz(&program, &words, &options));
        let found = ran.is_err();
        summary.push(json!({"target": name, "seconds": began.elapsed().as_secs(), "finding": found}));
        fs::write(work.join("summary.json"), serde_json::to_vec_pretty(&summary)?)?;
        if found {
            bail!("{name} has a finding: see {} and the output above", artifacts.display());
        }
    }
    Ok(())
}

fn fuzz(program: &PathBuf, words: &[&str], options: &[String]) -> Result<()> {
    let (verb, rest) = words.split_first().context("a verb")?;
    let mut command = Command::new(program);
    command.args(["fuzz", verb, "--fuzz-dir"]).arg(dir()).args(rest);
    if !options.is_empty() {
        command.arg("--").args(options);
    }
    // Instrumentation is asked for by flags that stable compilers keep for later.
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", paths::target().join("fuzz/build"));
    let status = command.current_dir(dir()).status().context("start cargo-fuzz")?;
    ensure!(status.success(), "cargo fuzz {} ended with {status}", words.join(" "));
    Ok(())
}
