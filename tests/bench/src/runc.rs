//! Bare containers: `runc run --detach` of one bundle, which returns when the process runs.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// What to start.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with `config.json` and `rootfs`.
    #[arg(long)]
    bundle: PathBuf,
    /// How many containers, one after another; each is removed again before the next.
    #[arg(long, default_value_t = 50)]
    count: usize,
}

/// Starts them and prints how long each took, microseconds.
pub fn run(args: &Args) -> Result<()> {
    let mut times = Vec::new();
    for n in 0..args.count {
        let id = format!("bench-{n}");
        let began = Instant::now();
        runc(Command::new("runc").args(["run", "--detach", "--bundle"]).arg(&args.bundle).arg(&id))?;
        times.push(u64::try_from(began.elapsed().as_micros())?);
        runc(Command::new("runc").args(["delete", "--force", &id]))?;
    }
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}

fn runc(command: &mut Command) -> Result<()> {
    // The container keeps its standard streams: they must not be pipes that somebody waits for.
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().context("start runc")?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
