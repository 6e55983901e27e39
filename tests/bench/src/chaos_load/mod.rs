//! The load of `cargo xtask chaos`: objects that are made, changed and deleted steadily while the cluster is broken under
//! it, and a journal of what the API acknowledged and showed (`keelson_tests::chaos::journal`). SIGTERM ends the writing:
//! once every answer and event is there it says so. Another one ends the watching.

mod actors;
mod client;
mod watches;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_tests::chaos::journal::WRITTEN;
use tokio::signal::unix::{SignalKind, signal};

use client::{Journal, Kind, Writer};

/// What to load a cluster with.
#[derive(clap::Args)]
pub struct Args {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Where the journal is written.
    #[arg(long)]
    journal: PathBuf,
    /// What the choices are made by.
    #[arg(long)]
    seed: u64,
    /// Nodes, which are named `node-1` and so on.
    #[arg(long)]
    nodes: usize,
    /// Image of the test application, which is on the nodes already.
    #[arg(long)]
    image: String,
    /// Another version of it.
    #[arg(long)]
    other_image: String,
    /// Its name in a registry, from which it is pulled.
    #[arg(long)]
    pulled_image: String,
    /// Writes of ConfigMaps a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
}

/// Writers of ConfigMaps.
const WRITERS: usize = 16;
/// Time for a watch to show what was written last.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether to go on.
static STOPPING: AtomicBool = AtomicBool::new(false);

fn stopping() -> bool {
    STOPPING.load(Ordering::Relaxed)
}

/// Loads the cluster until it is told to stop.
pub async fn run(args: &Args) -> Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let client = crate::client(&args.kubeconfig).await?;
    let journal = Journal::create(&args.journal)?;
    // From before the first write on.
    for kind in [Kind::ConfigMap, Kind::Pod] {
        let first = kind.api(&client).list_metadata(&kube::api::ListParams::default()).await?;
        let revision = first.metadata.resource_version.context("a list has a resourceVersion")?;
        tokio::spawn(watches::follow(args.kubeconfig.clone(), kind, revision, journal.clone()));
    }
    let writer = |kind| Writer::new(kind, &client, journal.clone());
    let pause = Duration::from_secs(1) * u32::try_from(WRITERS)? / args.rate.max(1);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        tasks.spawn(actors::config_maps(writer(Kind::ConfigMap), number, pause));
    }
    let names = actors::Images::of(args);
    tasks.spawn(actors::deployments(writer(Kind::Deployment), names.clone(), args.seed));
    tasks.spawn(actors::stateful_set(writer(Kind::StatefulSet), names.clone()));
    tasks.spawn(actors::jobs(writer(Kind::Job), names.clone()));
    tasks.spawn(actors::pods(writer(Kind::Pod), names.clone(), args.seed));
    tasks.spawn(actors::counters(writer(Kind::Pod), names, args.nodes));
    tokio::select! {
        _ = stop.recv() => {}
        ended = tasks.join_next() => { ended.context("there are tasks")??; }
    }
    STOPPING.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let mut last = writer(Kind::ConfigMap);
    last.create("last", serde_json::json!({})).await;
    tokio::time::timeout(PATIENCE, journal.shown_last()).await.context("the watch is behind")?;
    println!("{WRITTEN}");
    stop.recv().await;
    journal.flush()
}
