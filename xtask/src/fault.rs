//! `cargo xtask fault`: a build that is broken on purpose, to see that the tests notice.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use keelson_tests::{cmd, paths};

/// Arguments of `fault`.
#[derive(Args)]
pub struct FaultArgs {
    /// The fault: a patch under tests/faults, without `.patch`; none lists them.
    name: Option<String>,
    /// What the broken checkout's `cargo xtask` is asked to do, for example `-- conformance --ratchet --sample 20`.
    #[arg(last = true)]
    words: Vec<String>,
}

fn dir() -> PathBuf {
    paths::root().join("tests/faults")
}

fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir())? {
        if let Some(name) = entry?.file_name().to_string_lossy().strip_suffix(".patch") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Clones the checkout's commit, breaks the clone, and runs `cargo xtask` there. Ends well only if that fails.
pub fn run(args: &FaultArgs) -> Result<()> {
    let Some(name) = &args.name else {
        names()?.iter().for_each(|name| println!("{name}"));
        return Ok(());
    };
    let patch = dir().join(format!("{name}.patch"));
    ensure!(patch.exists(), "no fault {name}: there are {}", names()?.join(", "));
    let base = paths::target().join("faults");
    let (source, target) = (base.join("source"), base.join("target"));
    let _ = fs::remove_dir_all(&source);
    fs::create_dir_all(&target)?;
    cmd::run(Command::new("git").args(["clone", "--quiet", "--shared"]).arg(paths::root()).arg(&source))?;
    cmd::run(Command::new("git").current_dir(&source).args(["apply", "--index"]).arg(&patch))
        .with_context(|| format!("the fault {name} does not fit the code any more"))?;
    // What is fetched and assembled does not depend on the fault.
    let cache = target.join("testdata");
    if !cache.exists() {
        fs::create_dir_all(paths::cache())?;
        std::os::unix::fs::symlink(paths::cache(), &cache)?;
    }
    // A fault that does not build would be noticed by anything.
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(&source).env("CARGO_TARGET_DIR", &target).args([
        "build",
        "--quiet",
        "--bins",
        "--workspace",
    ]);
    ensure!(build.status().context("start cargo")?.success(), "the fault {name} does not build");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&source)
        .env("CARGO_TARGET_DIR", &target)
        .arg("xtask")
        .args(&args.words)
        .status()
        .context("start cargo")?;
    if status.success() {
        bail!("nothing noticed the fault {name}");
    }
    println!("\nthe fault {name} was noticed: 'cargo xtask {}' ended with {status}", args.words.join(" "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_fits_the_code() {
        assert!(!names().unwrap().is_empty());
        for name in names().unwrap() {
            let patch = dir().join(format!("{name}.patch"));
            let mut check = Command::new("git");
            check.current_dir(paths::root()).args(["apply", "--check"]).arg(&patch);
            assert!(cmd::run(&mut check).is_ok(), "tests/faults/{name}.patch does not apply");
        }
    }
}
