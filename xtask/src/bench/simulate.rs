//! `bench simulate`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use keelson_tests::kubectl::Kubectl;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::{Cluster, Options};
use serde_json::{Map, Value, json};

use super::stats::table;
use super::{daemon, pss, with_master, write};

/// Pods of one Deployment.
const REPLICAS: usize = 1_000;
/// Namespace of the pods.
const NAMESPACE: &str = "bench";

/// Arguments of `bench simulate`.
#[derive(Args)]
pub struct SimulateArgs {
    /// Nodes.
    #[arg(long, default_value_t = 1_000)]
    nodes: usize,
    /// Pods, in Deployments of at most 1,000.
    #[arg(long, default_value_t = 30_000)]
    pods: usize,
    /// How long each step may take, seconds.
    #[arg(long, default_value_t = 900)]
    limit: u64,
}

/// Rows of the table: what, how many, of what.
type Rows = Vec<(String, f64, &'static str)>;

/// Measures and prints.
pub fn run(args: &SimulateArgs, steps: &mut Steps) -> Result<()> {
    let master_args = vec!["--cluster-cidr=10.128.0.0/9".to_owned()];
    let options = Options { nodes: 0, master_args, ..Options::default() };
    let rows = with_master("bench", &options, steps, |cluster, steps| measure(cluster, args, steps))?;
    println!();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, value, unit)| vec![name.clone(), format!("{value:.1}"), (*unit).to_owned()])
        .collect();
    table(&["", "", ""], &cells);
    let figures: Map<String, Value> =
        rows.into_iter().map(|(name, value, unit)| (format!("{name}, {unit}"), json!(value))).collect();
    write("simulate", &json!({"nodes": args.nodes, "pods": args.pods, "rows": figures}))
}

fn measure(cluster: &mut Cluster, args: &SimulateArgs, steps: &mut Steps) -> Result<Rows> {
    let limit = Duration::from_secs(args.limit);
    let mut rows = Rows::new();
    let mut timed = |rows: &mut Rows, name: String, work: &mut dyn FnMut() -> Result<()>| {
        let began = Instant::now();
        steps.step(&name, work)?;
        rows.push((name, began.elapsed().as_secs_f64(), "s"));
        anyhow::Ok(())
    };
    timed(&mut rows, format!("{} nodes Ready", args.nodes), &mut || {
        cluster.start_simulation(args.nodes, &[])?;
        cluster.wait_ready(args.nodes, limit)
    })?;
    memory(cluster, "without pods", &mut rows)?;
    let kubectl = cluster.kubectl()?;
    timed(&mut rows, format!("{} pods Ready", args.pods), &mut || {
        kubectl.apply(&manifest(args.pods))?;
        wait_ready(&kubectl, args.pods, limit)
    })?;
    memory(cluster, "with the pods", &mut rows)?;
    timed(&mut rows, format!("{} pods deleted", args.pods), &mut || {
        kubectl.run(&["delete", "namespace", NAMESPACE, &format!("--timeout={}s", args.limit)]).map(drop)
    })?;
    Ok(rows)
}

fn memory(cluster: &Cluster, when: &str, rows: &mut Rows) -> Result<()> {
    for (name, host) in [("master", "master"), ("the nodes", "simulate")] {
        rows.push((format!("{name}, {when}: PSS"), pss(daemon(cluster, host)?)? / 1024.0, "MB"));
    }
    Ok(())
}

/// A namespace with Deployments of so many pods together.
fn manifest(pods: usize) -> String {
    let mut items = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
    for (number, first) in (0..pods).step_by(REPLICAS).enumerate() {
        let labels = json!({"app": format!("app-{number}")});
        items.push(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": format!("app-{number}"), "namespace": NAMESPACE},
            "spec": {
                "replicas": REPLICAS.min(pods - first), "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{
                        "name": "app", "image": "app", "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                    }]},
                },
            },
        }));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Waits until all are Ready, as their Deployments count them.
fn wait_ready(kubectl: &Kubectl, pods: usize, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let list = kubectl.json(&["get", "deployments", "--namespace", NAMESPACE])?;
        let items = list["items"].as_array().context("a list has items")?;
        let ready: u64 = items.iter().filter_map(|item| item["status"]["readyReplicas"].as_u64()).sum();
        if usize::try_from(ready)? == pods {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{ready} of {pods} pods are Ready after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}
