//! Pods a second that a scheduler binds, on nodes without a machine.

mod workloads;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::api::ensure_namespace;
use crate::wire::{Ask, Connection, Target, Watch};
use workloads::{Kind, NAMESPACES, PRIORITY, PRIORITY_CLASS, Pods, Workload};

/// How much upstream's scheduler_perf creates at once.
const AT_ONCE: usize = 30;
/// Time between two pods of a churn.
const CHURN: Duration = Duration::from_millis(200);
/// On a node that has not been found ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// What to schedule. The server must be new: it may hold no nodes or pods.
#[derive(clap::Args)]
pub struct Args {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Which of upstream's.
    #[arg(long)]
    workload: Workload,
    /// Nodes.
    #[arg(long)]
    nodes: usize,
    /// How long each step may take, seconds.
    #[arg(long, default_value_t = 600)]
    limit: u64,
}

/// Schedules, and prints the times.
pub async fn run(args: &Args) -> Result<()> {
    let target = Target::of(&args.kubeconfig).await?;
    let mut connections = target.connections(AT_ONCE).await?;
    let limit = Duration::from_secs(args.limit);
    let mut control = target.connect().await?;
    let ended = Arc::new(AtomicUsize::new(0));
    let nodes = async {
        prepare(&mut control).await?;
        create(&mut connections, args.nodes, &|n| node(args.workload, n)).await?;
        wait_schedulable(&mut control, args.nodes).await
    };
    within(limit, "nodes", nodes).await?;
    let mut bound = follow(&target, &mut control, &ended).await?;
    let first = args.workload.first(args.nodes);
    within(limit, "first pods", schedule(&mut connections, &mut bound, first, "first")).await?;
    let measured = args.workload.measured(args.nodes);
    let work = within(limit, "measured pods", schedule(&mut connections, &mut bound, measured, "measured"));
    let mut told = match args.workload.churn() {
        None => work.await?,
        Some(kind) => tokio::select! {
            told = work => told?,
            ended = churn(&mut control, kind) => bail!("the churn ended: {ended:?}"),
        },
    };
    told["ended"] = json!(ended.load(Ordering::Relaxed));
    println!("{told}");
    Ok(())
}

async fn within<T>(limit: Duration, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.with_context(|| format!("{name}: not done after {limit:?}"))?
}

async fn prepare(connection: &mut Connection) -> Result<()> {
    for name in NAMESPACES {
        ensure_namespace(connection, name).await?;
    }
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": PRIORITY_CLASS}, "value": PRIORITY,
    });
    connection.ensure("/apis/scheduling.k8s.io/v1/priorityclasses", &class).await
}

fn node(workload: Workload, number: usize) -> Ask {
    Ask::post("/api/v1/nodes", workload.node(number).to_string())
}

fn pod(kind: Kind, namespace: &str, name: &str) -> Ask {
    Ask::post(format!("/api/v1/namespaces/{namespace}/pods"), kind.pod(name).to_string())
}

/// Creates so many of something; gives when each was asked for.
async fn create(
    connections: &mut [Connection],
    count: usize,
    ask: &dyn Fn(usize) -> Ask,
) -> Result<Vec<(usize, Instant)>> {
    let next = Cell::new(0);
    let work = connections.iter_mut().map(|connection| {
        let next = &next;
        async move {
            let mut sent = Vec::new();
            loop {
                let number = next.get();
                if number >= count {
                    return anyhow::Ok(sent);
                }
                next.set(number + 1);
                let ask = ask(number);
                sent.push((number, Instant::now()));
                connection.drain(ask).await?;
            }
        }
    });
    Ok(futures::future::try_join_all(work).await?.concat())
}

/// Waits until no node has the taint any more that some servers give new ones.
async fn wait_schedulable(connection: &mut Connection, nodes: usize) -> Result<()> {
    loop {
        let body = connection.ask(Ask::get("/api/v1/nodes?resourceVersion=0")).await?;
        let list: Value = serde_json::from_slice(&body)?;
        let items = list["items"].as_array().context("a list has items")?;
        let tainted = |node: &&Value| {
            node["spec"]["taints"]
                .as_array()
                .is_some_and(|all| all.iter().any(|taint| taint["key"] == NOT_READY))
        };
        if items.len() == nodes && !items.iter().any(|node| tainted(&node)) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Name of a pod that has a node now, and when that was seen; or why no more is seen.
type Bound = Result<(String, Instant)>;

/// Watches all pods.
async fn follow(
    target: &Target,
    control: &mut Connection,
    ended: &Arc<AtomicUsize>,
) -> Result<UnboundedReceiver<Bound>> {
    let body = control.ask(Ask::get("/api/v1/pods")).await?;
    let list: Value = serde_json::from_slice(&body)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
    let watch = Watch::begin(target.connect().await?, "/api/v1/pods", version, ended).await?;
    let (send, bound) = unbounded_channel();
    tokio::spawn(async move {
        let ended = watch.follow(|line, at| {
            let told = match serde_json::from_slice::<Event>(line) {
                Ok(Event { object }) if object.spec.node_name.is_empty() => return,
                Ok(Event { object }) => Ok((object.metadata.name, at)),
                Err(error) => {
                    Err(anyhow::Error::from(error).context(String::from_utf8_lossy(line).into_owned()))
                }
            };
            // Nobody listens once all is measured.
            let _ = send.send(told);
        });
        let ended = ended.await;
        let _ = send.send(Err(ended));
    });
    Ok(bound)
}

#[derive(Deserialize)]
struct Event {
    object: Pod,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
}

/// Creates pods, and waits until each has a node; gives how long that took.
async fn schedule(
    connections: &mut [Connection],
    bound: &mut UnboundedReceiver<Bound>,
    pods: Pods,
    name: &str,
) -> Result<Value> {
    let began = Instant::now();
    let ask = |n: usize| pod(pods.kind, pods.namespace, &format!("{name}-{n}"));
    let creating = async {
        let sent = create(connections, pods.count, &ask).await?;
        Ok((sent, began.elapsed()))
    };
    let ((sent, created), seen) = tokio::try_join!(creating, wait_bound(bound, name, pods.count))?;
    let last = seen.values().max().copied().unwrap_or(began);
    let us = |&(number, sent): &(usize, Instant)| {
        let at = seen.get(&number).copied().unwrap_or(last);
        u64::try_from(at.saturating_duration_since(sent).as_micros()).unwrap_or(u64::MAX)
    };
    Ok(json!({
        "pods": pods.count, "created_s": created.as_secs_f64(),
        "seconds": last.saturating_duration_since(began).as_secs_f64(), "bound_us": sent.iter().map(us).collect::<Vec<_>>(),
    }))
}

/// When the first event of each pod of that name came that shows a node.
async fn wait_bound(
    bound: &mut UnboundedReceiver<Bound>,
    name: &str,
    count: usize,
) -> Result<HashMap<usize, Instant>> {
    let mut seen = HashMap::new();
    while seen.len() < count {
        let (pod, at) = bound.recv().await.context("nobody watches")??;
        if let Some(number) = number_of(&pod, name) {
            seen.entry(number).or_insert(at);
        }
    }
    Ok(seen)
}

/// The number in `NAME-NUMBER`.
fn number_of(pod: &str, name: &str) -> Option<usize> {
    pod.strip_prefix(name)?.strip_prefix('-')?.parse().ok()
}

/// Creates a pod again and again, until it is dropped.
async fn churn(connection: &mut Connection, kind: Kind) -> Result<()> {
    let mut ticks = tokio::time::interval(CHURN);
    for number in 0.. {
        ticks.tick().await;
        connection.drain(pod(kind, NAMESPACES[2], &format!("churn-{number}"))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_read_from_an_event() {
        let read = |spec: &str| {
            let text = format!(
                r#"{{"type":"MODIFIED","object":{{"kind":"Pod","metadata":{{"name":"first-7"}}{spec}}}}}"#
            );
            let pod = serde_json::from_str::<Event>(&text).unwrap().object;
            (number_of(&pod.metadata.name, "first"), pod.spec.node_name)
        };
        assert_eq!(read(r#","spec":{"nodeName":"n","x":1}"#), (Some(7), "n".to_owned()));
        assert_eq!(read(""), (Some(7), String::new()));
        assert_eq!(number_of("first-7", "measured"), None);
    }

    #[tokio::test]
    async fn each_pod_counts_once() {
        let (send, mut receive) = unbounded_channel();
        let now = Instant::now();
        for (pod, after) in [("a-0", 1), ("b-1", 2), ("a-0", 3), ("a-1", 4)] {
            send.send(Ok((pod.to_owned(), now + Duration::from_secs(after)))).unwrap();
        }
        let seen = wait_bound(&mut receive, "a", 2).await.unwrap();
        assert_eq!(seen[&0], now + Duration::from_secs(1));
        assert_eq!(seen[&1], now + Duration::from_secs(4));
    }
}
