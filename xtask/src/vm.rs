//! `cargo xtask vm`: a command, or a shell, in a QEMU guest with what was built here.

use anyhow::Result;
use clap::Args;
use keelson_tests::progress::Steps;
use keelson_tests::vm::{Kernel, programs};
use keelson_tests::{images, paths};
use std::time::Duration;

use crate::build;

/// Arguments of `vm`.
#[derive(Args)]
pub struct VmArgs {
    /// The guest's kernel: 6.1, 6.12 or newest.
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// CPUs of the guest.
    #[arg(long, default_value_t = 2)]
    cpus: u8,
    /// Memory of the guest, MiB.
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Seconds that the command may take.
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// The command, which finds the built programs on its PATH; without one a shell on this terminal.
    #[arg(last = true)]
    words: Vec<String>,
}

/// `cargo xtask vm`: the command's exit status becomes ours.
pub fn run(args: &VmArgs) -> Result<()> {
    // Temporary folders are gone by then.
    let status = in_guest(args)?;
    if status != 0 {
        std::process::exit(status);
    }
    Ok(())
}

/// Gives the command's exit status.
fn in_guest(args: &VmArgs) -> Result<i32> {
    let mut steps = Steps::new();
    steps.step("tools", || build::tools().and_then(|()| build::vm_tools()))?;
    steps.step("build programs", build::programs)?;
    let runs = paths::target().join("vm");
    std::fs::create_dir_all(&runs)?;
    let staged = tempfile::Builder::new().prefix("stage-").tempdir_in(&runs)?;
    steps.step("lay out programs and images", || programs::stage(staged.path(), images::ALL))?;
    let vm = programs::vm(args.kernel, staged.path()).cpus(args.cpus).memory_mib(args.memory);
    let outcome = if args.words.is_empty() {
        vm.run_on_terminal(&["sh", "-l"])?
    } else {
        steps.step("guest", || vm.run(&args.words, Duration::from_secs(args.limit)))?
    };
    let status = outcome.status;
    if std::fs::read_dir(outcome.output_dir())?.next().is_some() {
        let kept = runs.join("output");
        outcome.keep(&kept)?;
        println!("what it wrote to /output is in {}", kept.join("output").display());
    }
    Ok(status)
}
