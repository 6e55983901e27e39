//! Pods of a container runtime behind the CRI: `crictl run`, which makes a pod's sandbox and its one container and
//! returns when the container runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::batch::Batch;

/// What to start.
#[derive(clap::Args)]
pub struct Args {
    /// The program.
    #[arg(long)]
    crictl: PathBuf,
    /// Socket of the runtime.
    #[arg(long)]
    endpoint: String,
    #[command(flatten)]
    batch: Batch,
}

/// Starts them, leaves them running, and prints how long each took, microseconds.
pub fn run(args: &Args) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("bench-{}", args.batch.name));
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let container = dir.join("container.json");
    fs::write(
        &container,
        serde_json::to_vec(&json!({"metadata": {"name": "main"}, "image": {"image": args.batch.image}}))?,
    )?;
    let mut times = Vec::new();
    for group in args.batch.groups() {
        let configs: Vec<PathBuf> = group.iter().map(|name| pod(&dir, name)).collect::<Result<_>>()?;
        let took: Result<Vec<u64>> = std::thread::scope(|scope| {
            let started: Vec<_> =
                configs.iter().map(|config| scope.spawn(|| start(args, &container, config))).collect();
            started.into_iter().map(|one| one.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect()
        });
        times.extend(took?);
    }
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}

fn pod(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.json"));
    let config = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "attempt": 0},
        // Pods have a network and processes of their own, as Kubernetes asks for them.
        "linux": {"security_context": {"namespace_options": {"network": 0, "pid": 1, "ipc": 0}}},
    });
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(path)
}

fn start(args: &Args, container: &Path, config: &Path) -> Result<u64> {
    let mut command = Command::new(&args.crictl);
    command.args([
        "--runtime-endpoint",
        &args.endpoint,
        "--image-endpoint",
        &args.endpoint,
        "--timeout",
        "60s",
    ]);
    command.args(["run", "--no-pull"]).arg(container).arg(config);
    let began = Instant::now();
    let output = command.stdin(Stdio::null()).output().context("start crictl")?;
    let took = began.elapsed();
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(took.as_micros().try_into()?)
}
