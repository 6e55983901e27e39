//! The Services and EndpointSlices, made.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cast::{NAMESPACES, Service, namespace};
use crate::api::ensure_namespace;
use crate::wire::{Connection, Target};

/// Requests at a time.
const AT_ONCE: usize = 16;

/// What to make.
#[derive(clap::Args)]
pub struct Args {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// How many Services.
    #[arg(long, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    services: u16,
    /// How long it may take, seconds.
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

/// Makes them.
pub async fn run(args: &Args) -> Result<()> {
    let target = Target::of(&args.kubeconfig).await?;
    let mut connections = target.connections(AT_ONCE).await?;
    for number in 0..NAMESPACES {
        if let Some(connection) = connections.first_mut() {
            ensure_namespace(connection, &namespace(number)).await?;
        }
    }
    let next = Cell::new(0);
    let work = connections.iter_mut().map(|connection| store(connection, &next, usize::from(args.services)));
    tokio::time::timeout(Duration::from_secs(args.limit), futures::future::try_join_all(work))
        .await
        .with_context(|| format!("{} Services are made after {} s", next.get(), args.limit))??;
    Ok(())
}

async fn store(connection: &mut Connection, next: &Cell<usize>, end: usize) -> Result<()> {
    loop {
        let number = next.get();
        if number >= end {
            return Ok(());
        }
        next.set(number + 1);
        for (path, object) in Service(number).objects() {
            connection.ensure(&path, &object).await?;
        }
    }
}
