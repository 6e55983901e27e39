//! Every developer command. `cargo xtask --help` lists them.

mod bench;
mod build;
mod chaos;
mod cluster;
mod conformance;
mod dist;
mod ebpf;
mod fault;
mod fuzz;
mod schema_facts;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer commands of Keelson.
#[derive(Parser)]
#[command(name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a cluster on this machine and answer a request through a Service of it.
    Up(cluster::UpArgs),
    /// End the cluster and remove every trace of it.
    Down(cluster::DownArgs),
    /// Run the real kubectl against the cluster, for example `cargo xtask kubectl -- get pods`.
    Kubectl(cluster::KubectlArgs),
    /// Run a command inside a test host, for example `cargo xtask host node-1 -- ip route`.
    Host(cluster::HostArgs),
    /// Run upstream's end-to-end suite against a cluster of this checkout.
    Conformance(conformance::ConformanceArgs),
    /// Measure, beside a peer in the same run; prints a table and writes target/bench/NAME.json.
    Bench(bench::BenchArgs),
    /// Break a cluster at random under load, mend it, and check what must then be true; prints a table and writes
    /// target/chaos/SEED.json.
    Chaos(chaos::ChaosArgs),
    /// What `conformance --vm` runs in its guest.
    #[command(hide = true)]
    ConformanceGuest(conformance::guest::GuestArgs),
    /// Make Debian packages and a tarball: static programs, units, manual pages, completions.
    Dist(dist::DistArgs),
    /// Break a copy of the checkout on purpose and run a command in it, which must fail.
    Fault(fault::FaultArgs),
    /// Run the fuzz targets of tests/fuzz, each for a while.
    Fuzz(fuzz::FuzzArgs),
    /// Format, lint, build, and run the tests.
    Test(test::TestArgs),
    /// Build the BPF programs and put the object under ebpf/prebuilt.
    BuildEbpf(ebpf::BuildEbpfArgs),
    /// Assemble the container images that tests and the sample use.
    Images,
    /// Run a command in a QEMU guest with the built programs, for example `cargo xtask vm --kernel 6.1 -- uname -r`;
    /// without a command, a shell.
    Vm(vm::VmArgs),
    /// Write the facts about API types that keelson-api embeds, from the published Go modules.
    SchemaFacts {
        /// Only compare with the committed file; fail when it differs.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    ebpf::wrapper_main_if_requested();
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The chain of causes and nothing after it: the end of a long log is what people see first.
        Err(error) => {
            eprintln!("Error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(args) => cluster::up(&args),
        Command::Down(args) => cluster::down(&args),
        Command::Kubectl(args) => cluster::kubectl(&args),
        Command::Host(args) => cluster::host(&args),
        Command::Conformance(args) => conformance::run(&args, &mut keelson_tests::progress::Steps::new()),
        Command::Bench(args) => bench::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::ConformanceGuest(args) => conformance::guest::inside(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Fault(args) => fault::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Test(args) => test::run(&args),
        Command::BuildEbpf(args) => ebpf::run(&args),
        Command::Images => build::images(),
        Command::Vm(args) => vm::run(&args),
        Command::SchemaFacts { check } => schema_facts::run(check),
    }
}
