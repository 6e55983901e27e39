//! Load on an API server, whichever one a kubeconfig names, and the times of its answers.

mod lists;
mod load;
mod requests;
mod watchers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use crate::wire::{Ask, Connection, Target};

/// Namespaces that the stored pods are spread over.
const NAMESPACES: usize = 10;
/// Values of the label `app`, each on as many of the stored pods.
const APPS: usize = 100;
/// Namespace of what is written and removed again.
const SCRATCH: &str = "bench-scratch";

/// Whom to load, and how.
#[derive(clap::Args)]
pub struct Args {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Wait until the server says that it is ready.
    Ready(ReadyArgs),
    /// Store pods, with a status.
    Load(load::Args),
    /// Single requests, each by a number of clients at once.
    Requests(requests::Args),
    /// Lists of the stored pods.
    Lists(lists::Args),
    /// Events to many watchers, of which one never reads.
    Watch(watchers::Args),
}

#[derive(clap::Args)]
struct ReadyArgs {
    /// How long it may take, seconds.
    #[arg(long, default_value_t = 60)]
    limit: u64,
}

/// Loads, and prints the times.
pub async fn run(args: &Args) -> Result<()> {
    let target = Target::of(&args.kubeconfig).await?;
    match &args.what {
        What::Ready(args) => ready(&target, Duration::from_secs(args.limit)).await,
        What::Load(args) => load::run(&target, args).await,
        What::Requests(args) => requests::run(&target, args).await,
        What::Lists(args) => lists::run(&target, args).await,
        What::Watch(args) => watchers::run(&target, args).await,
    }
}

async fn ready(target: &Target, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let asked = async { target.connect().await?.ask(Ask::get("/readyz")).await };
        match asked.await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => bail!("not ready after {limit:?}: {error:#}"),
            Err(_not_yet) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Name of one of the stored pods' namespaces.
fn namespace(number: usize) -> String {
    format!("bench-{}", number % NAMESPACES)
}

/// Path of one of the stored pods.
fn stored_pod(number: usize) -> String {
    format!("/api/v1/namespaces/{}/pods/stored-{number}", namespace(number))
}

/// Makes a namespace in which pods can be made: with a service account, which no controller may be there to make.
pub async fn ensure_namespace(connection: &mut Connection, name: &str) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    connection.ensure("/api/v1/namespaces", &namespace).await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    connection.ensure(&format!("/api/v1/namespaces/{name}/serviceaccounts"), &account).await
}

/// Microseconds since then.
fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
