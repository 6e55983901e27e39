//! Looking at a cluster: what the judgements are made of.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::invariants::{Expected, LogLine, beyond_the_api};
use super::journal::NUMBER;
use super::ledger::Found;
use super::load::{IMAGES, pulled_image};
use super::settled::unsettled;
use crate::images;
use crate::testbed::fixture::TestCluster;
use crate::testbed::node_state::NodeState;

/// What is looked at to see whether the cluster is at rest.
const KINDS: &str = "nodes,deployments.apps,statefulsets.apps,jobs.batch,pods";
/// What the load writes, with numbers.
const WRITTEN: &str = "configmaps,pods,deployments.apps,statefulsets.apps,jobs.batch";
/// Time for pods to go once they are to.
const PATIENCE: u64 = 90;

fn items(list: &Value) -> Result<Vec<Value>> {
    Ok(list["items"].as_array().context("a list has items")?.clone())
}

/// How a cluster came to rest.
#[derive(Debug, Default)]
pub struct Rest {
    /// What is still not as it should be.
    pub open: Vec<String>,
    /// What came to rest last.
    pub last: Vec<String>,
}

/// Waits, but not for ever, until the cluster is at rest and its nodes hold what the API says.
pub fn quiet(cluster: &TestCluster, living: &[usize], limit: Duration) -> Rest {
    let deadline = Instant::now() + limit;
    let mut rest = Rest::default();
    loop {
        rest.open = not_quiet(cluster, living).unwrap_or_else(|error| vec![format!("{error:#}")]);
        if rest.open.is_empty() || Instant::now() > deadline {
            return rest;
        }
        rest.last = rest.open.clone();
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn not_quiet(cluster: &TestCluster, living: &[usize]) -> Result<Vec<String>> {
    let all = items(&cluster.kubectl.json(&["get", KINDS, "-A"])?)?;
    let mut open = unsettled(&all, living.len());
    // Nodes only once the API is at rest.
    if open.is_empty() {
        for node in living {
            let host = cluster.node(*node)?;
            let pods = all.iter().filter(|item| item["kind"] == "Pod");
            let expected = Expected::of(&host.name, pods);
            open.extend(beyond_the_api(&host.name, NodeState::take(&host)?.lines(), &expected));
        }
    }
    Ok(open)
}

/// All pods.
pub fn pods(cluster: &TestCluster) -> Result<Vec<Value>> {
    items(&cluster.kubectl.json(&["get", "pods", "-A"])?)
}

/// What the load has written, as it is.
pub fn written(cluster: &TestCluster) -> Result<BTreeMap<String, Found>> {
    let mut found = BTreeMap::new();
    for item in items(&cluster.kubectl.json(&["get", WRITTEN])?)? {
        let Some(n) = item["metadata"]["annotations"][NUMBER].as_str() else { continue };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = format!("{}/{}", text(&item["kind"]), text(&item["metadata"]["name"]));
        let revision = text(&item["metadata"]["resourceVersion"]).parse().context("a resourceVersion")?;
        found.insert(object, Found { n: n.parse()?, revision });
    }
    Ok(found)
}

/// Ends the pod that counts on a node; gives its whole log.
pub fn counted(cluster: &TestCluster, node: usize) -> Result<Vec<LogLine>> {
    let pod = format!("count-{node}");
    cluster.terminate(&pod);
    let text = cluster.eventually(20, || {
        let log = cluster.kubectl.run(&["logs", &pod, "--timestamps"])?;
        let ended = log.lines().last().is_some_and(|line| line.contains(" end "));
        ensure!(ended, "{pod} still counts");
        Ok(log)
    })?;
    text.lines()
        .map(|line| {
            let (at, said) = line.split_once(' ').with_context(|| format!("a line without time: {line}"))?;
            Ok((milliseconds(at)?, said.to_owned()))
        })
        .collect()
}

/// Milliseconds since 1970 of a time of RFC 3339.
fn milliseconds(text: &str) -> Result<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).with_context(|| format!("no time: {text}"))?;
    Ok(u64::try_from(time.unix_timestamp_nanos() / 1_000_000)?)
}

/// Each node as it is without pods, once it has had some.
pub struct Before(Vec<NodeState>);

impl Before {
    /// Has pods of each image come and go on every node, so that what is made for the first one and kept is there; then
    /// looks.
    pub fn look(cluster: &TestCluster) -> Result<Self> {
        let own = IMAGES.map(images::reference);
        let names = [own[0].as_str(), own[1].as_str(), &pulled_image()].map(str::to_owned);
        for node in 1..=cluster.nodes() {
            for (number, image) in names.iter().enumerate() {
                let pod = json!({
                    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("first-{node}-{number}")},
                    "spec": {
                        "nodeName": format!("node-{node}"), "terminationGracePeriodSeconds": 1,
                        "volumes": [{"name": "config", "configMap": {"name": "kube-root-ca.crt"}}],
                        "containers": [{
                            "name": "main", "image": image,
                            "volumeMounts": [{"name": "config", "mountPath": "/config"}],
                        }],
                    },
                });
                cluster.kubectl.apply(&pod.to_string())?;
            }
        }
        cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
        empty(cluster)?;
        // What the agents do in their own time.
        std::thread::sleep(Duration::from_secs(2));
        let nodes = 1..=cluster.nodes();
        Ok(Self(nodes.map(|n| NodeState::take(&cluster.node(n)?)).collect::<Result<_>>()?))
    }

    /// Deletes everything that was asked for, and gives what is then left on the nodes that live.
    pub fn left_behind(&self, cluster: &TestCluster, living: &[usize]) -> Result<Vec<String>> {
        empty(cluster)?;
        let look = || -> Result<Vec<String>> {
            let mut left = Vec::new();
            for node in living {
                let host = cluster.node(*node)?;
                let added = NodeState::take(&host)?.added_since(&self.0[node - 1]);
                // The allocator's place in its range.
                let added = added.into_iter().filter(|line| !line.contains("last_reserved_ip"));
                left.extend(added.map(|line| format!("{}: {line}", host.name)));
            }
            Ok(left)
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = look()?;
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// Deletes all workloads and Services but the API's own, and waits until no pod is there.
fn empty(cluster: &TestCluster) -> Result<()> {
    let kinds = "deployments.apps,statefulsets.apps,jobs.batch,pods";
    cluster.kubectl.run(&["delete", kinds, "--all", "--wait=false"])?;
    let mut services = vec!["delete", "services", "--ignore-not-found"];
    services.extend(super::load::SERVICES);
    cluster.kubectl.run(&services)?;
    cluster.eventually(PATIENCE, || {
        // Those that a controller made meanwhile, too.
        let left = cluster.kubectl.run(&["get", "pods", "-o", "name"])?;
        ensure!(left.trim().is_empty(), "still there: {left}");
        Ok(())
    })
}

/// Keeps what tells the cause: logs of the daemons, what the API shows.
pub fn keep(cluster: &TestCluster, dir: &Path) -> Result<()> {
    let names =
        std::iter::once("master".to_owned()).chain((1..=cluster.nodes()).map(|n| format!("node-{n}")));
    for name in names {
        std::fs::copy(cluster.log(&name), dir.join(format!("{name}.log")))
            .with_context(|| format!("keep the log of {name}"))?;
    }
    for (file, what) in [
        ("objects.yaml", &["get", KINDS, "-A", "-o", "yaml"][..]),
        ("slices.yaml", &["get", "endpointslices.discovery.k8s.io", "-A", "-o", "yaml"]),
        ("events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"]),
    ] {
        let said = cluster.kubectl.run(what).unwrap_or_else(|error| format!("{error:#}"));
        std::fs::write(dir.join(file), said)?;
    }
    Ok(())
}
