//! Single requests: each kind by so many clients at once, each of which has a connection and sends one request after
//! another.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::{SCRATCH, ensure_namespace, micros, stored_pod};
use crate::objects;
use crate::wire::{Ask, Connection, PROTOBUF, Target};

/// What to ask.
#[derive(clap::Args)]
pub struct Args {
    /// Numbers of clients.
    #[arg(long, value_delimiter = ',', default_value = "1,16,128")]
    clients: Vec<usize>,
    /// Requests of each kind.
    #[arg(long, default_value_t = 3_000)]
    count: usize,
    /// How many pods are stored, of which some are read.
    #[arg(long)]
    pods: usize,
    /// How long one kind may take, seconds.
    #[arg(long, default_value_t = 120)]
    limit: u64,
}

/// The requests of one kind.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    clients: usize,
    seconds: f64,
    /// Each request's time.
    us: Vec<u64>,
}

/// Asks, and prints the times.
pub async fn run(target: &Target, args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    for &clients in &args.clients {
        let mut connections = target.connections(clients.max(1)).await?;
        if let Some(connection) = connections.first_mut() {
            ensure_namespace(connection, SCRATCH).await?;
        }
        for (name, ask) in kinds(args.pods) {
            let run = kind(&mut connections, args, &*ask);
            let (seconds, us) = run.await.with_context(|| format!("{name}, {clients} clients"))?;
            rows.push(Row { name, clients, seconds, us });
        }
    }
    // What was written in protobuf was removed under the same name as what was written in JSON.
    println!("{}", json!({"rows": rows}));
    Ok(())
}

/// The request with a number, of one kind.
type Numbered = Box<dyn Fn(usize) -> Ask>;

/// What is asked, in this order: whatever is created is removed by a later one.
fn kinds(pods: usize) -> Vec<(&'static str, Numbered)> {
    let config_maps = format!("/api/v1/namespaces/{SCRATCH}/configmaps");
    let all = config_maps.clone();
    let one = move |n: usize| format!("{config_maps}/bench-{n}");
    let (all_protobuf, one_put, one_deleted, one_protobuf) =
        (all.clone(), one.clone(), one.clone(), one.clone());
    let scratch_pods = format!("/api/v1/namespaces/{SCRATCH}/pods");
    let pods_deleted = scratch_pods.clone();
    // A step that shares no factor with any usual number of pods goes over all of them.
    let some_pod = move |n: usize| stored_pod(n.wrapping_mul(7_919) % pods.max(1));
    let named = |n: usize| format!("bench-{n}");
    let mut kinds: Vec<(&'static str, Numbered)> = vec![
        (
            "create a ConfigMap",
            Box::new(move |n| Ask::post(all.clone(), objects::config_map(&named(n), n).to_string())),
        ),
        (
            "update a ConfigMap",
            Box::new(move |n| Ask::put(one_put(n), objects::config_map(&named(n), n + 1).to_string())),
        ),
        ("delete a ConfigMap", Box::new(move |n| Ask::delete(one_deleted(n)))),
        (
            "create a ConfigMap, protobuf",
            Box::new(move |n| {
                let body = objects::config_map_protobuf(&named(n), n);
                Ask::post(all_protobuf.clone(), body).sends(PROTOBUF).accepts(PROTOBUF)
            }),
        ),
        ("delete a ConfigMap, protobuf", Box::new(move |n| Ask::delete(one_protobuf(n)).accepts(PROTOBUF))),
        (
            "create a pod",
            Box::new(move |n| {
                let pod = objects::pod(&named(n), &json!({"app": "scratch"}));
                Ask::post(scratch_pods.clone(), pod.to_string())
            }),
        ),
        (
            "delete a pod",
            Box::new(move |n| Ask::delete(format!("{pods_deleted}/{}?gracePeriodSeconds=0", named(n)))),
        ),
    ];
    if pods > 0 {
        kinds.push(("get a pod", Box::new(move |n| Ask::get(some_pod(n)))));
        kinds.push(("get a pod, protobuf", Box::new(move |n| Ask::get(some_pod(n)).accepts(PROTOBUF))));
    }
    kinds
}

/// All requests of one kind; gives how long they took together, and each.
async fn kind(
    connections: &mut [Connection],
    args: &Args,
    ask: &dyn Fn(usize) -> Ask,
) -> Result<(f64, Vec<u64>)> {
    let next = Cell::new(0);
    let began = Instant::now();
    let work = connections.iter_mut().map(|connection| client(connection, &next, args.count, ask));
    let times = tokio::time::timeout(Duration::from_secs(args.limit), futures::future::try_join_all(work))
        .await
        .with_context(|| format!("{} of {} requests after {} s", next.get(), args.count, args.limit))??;
    Ok((began.elapsed().as_secs_f64(), times.concat()))
}

async fn client(
    connection: &mut Connection,
    next: &Cell<usize>,
    count: usize,
    ask: &dyn Fn(usize) -> Ask,
) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    loop {
        let number = next.get();
        if number >= count {
            return Ok(times);
        }
        next.set(number + 1);
        let ask = ask(number);
        let began = Instant::now();
        connection.drain(ask).await?;
        times.push(micros(began));
    }
}
