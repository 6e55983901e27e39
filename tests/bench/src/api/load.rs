//! Pods that are stored, and look as if they ran.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::{APPS, NAMESPACES, ensure_namespace, namespace, stored_pod};
use crate::objects;
use crate::wire::{Ask, Connection, Target};

/// What to store.
#[derive(clap::Args)]
pub struct Args {
    /// Number of the first pod: so many are there already.
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// How many there are afterwards.
    #[arg(long)]
    pods: usize,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// How long it may take, seconds.
    #[arg(long, default_value_t = 1800)]
    limit: u64,
}

/// Stores them; prints how long it took.
pub async fn run(target: &Target, args: &Args) -> Result<()> {
    let mut connections = target.connections(args.at_once.max(1)).await?;
    for number in 0..NAMESPACES {
        if let Some(connection) = connections.first_mut() {
            ensure_namespace(connection, &namespace(number)).await?;
        }
    }
    let next = Cell::new(args.first);
    let began = Instant::now();
    let work = connections.iter_mut().map(|connection| store(connection, &next, args.pods));
    tokio::time::timeout(Duration::from_secs(args.limit), futures::future::try_join_all(work))
        .await
        .with_context(|| format!("{} pods are stored after {} s", next.get(), args.limit))??;
    let count = args.pods.saturating_sub(args.first);
    println!("{}", json!({"pods": count, "seconds": began.elapsed().as_secs_f64()}));
    Ok(())
}

async fn store(connection: &mut Connection, next: &Cell<usize>, end: usize) -> Result<()> {
    loop {
        let number = next.get();
        if number >= end {
            return Ok(());
        }
        next.set(number + 1);
        let labels = json!({"app": format!("app-{}", number % APPS), "tier": "backend"});
        let pod = objects::pod(&format!("stored-{number}"), &labels);
        let path = format!("/api/v1/namespaces/{}/pods", namespace(number));
        connection.drain(Ask::post(path, pod.to_string())).await?;
        let path = format!("{}/status", stored_pod(number));
        connection.drain(Ask::merge_patch(path, objects::running(number).to_string())).await?;
    }
}
