//! The measuring half of `cargo xtask bench`: runs inside a test host, makes the load, takes the times, and prints them as
//! JSON for xtask to put into a table. And the load of `cargo xtask chaos`, with a journal of what came of it.

mod api;
mod batch;
mod chaos_load;
mod crictl;
mod dns;
mod objects;
mod pod_start;
mod runc;
mod schedule;
mod service;
mod store_pods;
mod wire;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Load and stopwatch of the benchmarks.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start pods, and time each from the binding to running containers.
    PodStart(pod_start::Args),
    /// Start pods with crictl, and time each.
    Crictl(crictl::Args),
    /// Start bare containers with runc, and time each.
    Runc(runc::Args),
    /// Store pods that no scheduler takes.
    StorePods(store_pods::Args),
    /// Make, change and delete objects steadily, and keep a journal of what the API acknowledged and showed.
    ChaosLoad(chaos_load::Args),
    /// Load an API server, over connections of HTTP/2, and time its answers.
    Api(api::Args),
    /// Have pods scheduled on nodes without a machine, and time it.
    Schedule(schedule::Args),
    /// Ask a server of cluster DNS, and time its answers.
    Dns(dns::Args),
    /// Load Services, and time connections, answers and changes.
    Service(service::Args),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // What failed, which xtask prints among its figures, and no backtrace.
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Fails only when there is a provider already, and then that one is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match Cli::parse().command {
        Command::PodStart(args) => block_on(pod_start::run(&args)),
        Command::Crictl(args) => crictl::run(&args),
        Command::Runc(args) => runc::run(&args),
        Command::StorePods(args) => block_on(store_pods::run(&args)),
        Command::ChaosLoad(args) => block_on(chaos_load::run(&args)),
        Command::Api(args) => block_on(api::run(&args)),
        Command::Schedule(args) => block_on(schedule::run(&args)),
        Command::Dns(args) => dns::run(&args),
        Command::Service(args) => service::run(&args),
    }
}

/// One thread: what is measured has the machine's others.
fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// What a kubeconfig says.
async fn config(kubeconfig: &Path) -> Result<kube::Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

/// A client for a kubeconfig.
async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    Ok(kube::Client::try_from(config(kubeconfig).await?)?)
}
