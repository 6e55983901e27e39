//! keelson-agent: kubelet, container runtime, CNI driver, service proxy and node DNS in one program.
//!
//! Flags ([`flags`]) become a [`config::Config`], [`build::build`] makes the subsystems out of it in the order in which
//! they stand on each other, and [`build::Agent::run`] keeps them until a signal comes. Pods are left as they are then,
//! and so is the process that answers DNS: the next agent adopts them. [`reset`] takes all of it back.

mod build;
mod command;
mod config;
mod flags;
mod host;
mod lock;
mod memory;
mod network;
mod reset;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use flags::{Command, ImageCommand};
use keelson_kubelet::node::KUBELET_VERSION as VERSION;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Before anything else, and before there is a second thread.
    keelson_runtime::spawner_main_if_requested();
    memory::give_back_what_is_free();
    let done = if keelson_dns::worker::requested() { dns_worker() } else { run(flags::Flags::parse()) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelson-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for: to be the agent, unless it is a command.
fn run(flags: flags::Flags) -> anyhow::Result<()> {
    match flags.command {
        Some(Command::Image(ImageCommand::Import { files })) => command::import(&flags.run_dir, &files),
        Some(Command::Reset { keep_files }) => reset(flags, keep_files),
        Some(Command::Simulate(simulated)) => simulate(&flags.log, *simulated),
        None => start(flags),
    }
}

/// What this process is when the agent has started it as its DNS worker.
fn dns_worker() -> anyhow::Result<()> {
    log(&std::env::var(flags::LOG).unwrap_or_default())?;
    abort_on_panic();
    Ok(keelson_dns::worker::run()?)
}

fn log(filter: &str) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter).context("--log")?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would be said on standard error, where nobody may read any more: that panics.
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn simulate(filter: &str, flags: flags::SimulateFlags) -> anyhow::Result<()> {
    log(filter)?;
    abort_on_panic();
    // Fails only when there is a provider already, and then that one is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = config::simulated(flags)?;
    tokio::runtime::Runtime::new().context("start the async runtime")?.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone())?);
        Ok(keelson_simulate::run(config, shutdown).await?)
    })
}

/// What the agent and its reset both begin with: the log, this machine for themselves, and what TLS needs.
fn prepare(flags: &flags::Flags) -> anyhow::Result<std::fs::File> {
    log(&flags.log)?;
    abort_on_panic();
    let lock = lock::take(&flags.run_dir)?;
    // Fails only when there is a provider already, and then that one is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // SAFETY: the async runtime, started later, has the first other thread.
    if unsafe { keelson_images::stand_in_if_missing(&flags.run_dir) }? {
        tracing::warn!(
            "this machine has no CA certificates: images can be pulled over plain HTTP only; install ca-certificates"
        );
    }
    Ok(lock)
}

/// Threads for work that blocks end soon after it: each has a stack that was used.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_keep_alive(std::time::Duration::from_secs(2));
    builder.build().context("start the async runtime")
}

/// `keelson-agent reset`.
fn reset(flags: flags::Flags, keep_files: bool) -> anyhow::Result<()> {
    let _lock = prepare(&flags)?;
    let config = config::Config::new(flags)?;
    let runtime = runtime()?;
    runtime.block_on(reset::run(&config, keep_files))
}

fn start(flags: flags::Flags) -> anyhow::Result<()> {
    let _lock = prepare(&flags)?;
    let config = config::Config::new(flags)?;
    runtime()?.block_on(async {
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone())?);
        tokio::select! {
            agent = build::build(config, shutdown.clone()) => agent?.run(shutdown).await,
            () = shutdown.cancelled() => Ok(()),
        }
    })
}

/// A task that panicked would leave the agent half alive; a dead agent is started again and finds its pods.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn cancel_on_signal(shutdown: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending; pods are left running");
        shutdown.cancel();
    })
}
