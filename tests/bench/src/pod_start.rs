//! Pods, from the binding to running containers, as a watcher of the API sees it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde::Serialize;
use serde_json::json;

use crate::batch::Batch;

/// A pod that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);
/// Label of the pods that are measured.
const LABEL: &str = "bench.keelson.test/run";

/// What to start.
#[derive(clap::Args)]
pub struct Args {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    #[command(flatten)]
    batch: Batch,
}

/// One pod's times, microseconds.
#[derive(Serialize)]
struct Times {
    pod: String,
    /// From the request that creates it to the event that shows the binding.
    created_to_bound_us: u64,
    /// From the event that shows the binding to the one that shows all containers running.
    bound_to_running_us: u64,
}

#[derive(Default)]
struct Seen {
    bound: Option<Instant>,
    running: Option<Instant>,
}

/// Starts the pods and prints their times.
pub async fn run(args: &Args) -> Result<()> {
    let api: Api<Pod> = Api::default_namespaced(crate::client(&args.kubeconfig).await?);
    let selector = format!("{LABEL}={}", args.batch.name);
    let mut events = std::pin::pin!(watcher(api.clone(), watcher::Config::default().labels(&selector)));
    while !matches!(events.next().await.context("the watch ended")??, Event::InitDone) {}

    let mut times = Vec::new();
    for group in args.batch.groups() {
        let began = Instant::now();
        let creating = futures::future::try_join_all(group.iter().map(|name| async {
            api.create(&PostParams::default(), &pod(name, args)?).await.map_err(anyhow::Error::from)
        }));
        let (created, seen) = tokio::join!(creating, watch_until_running(&mut events, &group));
        created?;
        let seen = seen?;
        for name in group {
            let Some(Seen { bound: Some(bound), running: Some(running) }) = seen.get(&name) else {
                bail!("{name} was not seen running");
            };
            times.push(Times {
                created_to_bound_us: micros(*bound - began)?,
                bound_to_running_us: micros(*running - *bound)?,
                pod: name,
            });
        }
    }
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}

fn micros(duration: Duration) -> Result<u64> {
    Ok(duration.as_micros().try_into()?)
}

fn pod(name: &str, args: &Args) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: args.batch.name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": args.batch.image, "imagePullPolicy": "Never"}],
        },
    }))?)
}

async fn watch_until_running(
    events: &mut (impl Stream<Item = watcher::Result<Event<Pod>>> + Unpin),
    group: &[String],
) -> Result<HashMap<String, Seen>> {
    let mut seen: HashMap<String, Seen> = group.iter().map(|name| (name.clone(), Seen::default())).collect();
    let deadline = tokio::time::Instant::now() + LIMIT;
    while seen.values().any(|pod| pod.running.is_none()) {
        let Ok(event) = tokio::time::timeout_at(deadline, events.next()).await else {
            let missing: Vec<_> =
                seen.iter().filter(|(_, pod)| pod.running.is_none()).map(|(n, _)| n).collect();
            bail!("not running after {LIMIT:?}: {missing:?}");
        };
        let now = Instant::now();
        let (Event::Apply(pod) | Event::InitApply(pod)) = event.context("the watch ended")?? else {
            continue;
        };
        let Some(entry) = pod.metadata.name.as_ref().and_then(|name| seen.get_mut(name)) else { continue };
        if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) {
            entry.bound.get_or_insert(now);
        }
        if runs(&pod) {
            entry.running.get_or_insert(now);
        }
    }
    Ok(seen)
}

fn runs(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref());
    statuses.is_some_and(|all| {
        !all.is_empty() && all.iter().all(|c| c.state.as_ref().is_some_and(|state| state.running.is_some()))
    })
}
