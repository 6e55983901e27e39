//! The agent killed at random instants, and what must be true after that.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use keelson_tests::checkout;
use keelson_tests::kubectl::Kubectl;
use keelson_tests::paths;
use keelson_tests::random::Random;
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::node_state::NodeState;
use keelson_tests::testbed::snapshot::Snapshot;
use serde_json::{Value, json};

use super::load::{BOOK, Kind, Load, manifest};

/// Longest life of an agent that is killed, in milliseconds.
const LIFE: u64 = 3_500;
/// Longest time without one.
const ABSENCE: u64 = 1_000;
/// Time for everything to be as it should once no agent is killed any more, however slow the machine.
const PATIENCE: u64 = 120;

pub struct Form {
    pub long: bool,
    pub seed: u64,
    kills: usize,
    pods: usize,
}

impl Form {
    /// What the environment asks for.
    pub fn chosen() -> Result<Self> {
        let (long, kills, pods) = match std::env::var("KEELSON_CRASH").as_deref() {
            Ok("long") => (true, 200, 300),
            Ok(other) => bail!("KEELSON_CRASH={other:?}: the only other form is \"long\""),
            Err(_) => (false, 10, 30),
        };
        let seed = match std::env::var("KEELSON_CRASH_SEED") {
            Ok(text) => text.parse().context("KEELSON_CRASH_SEED")?,
            Err(_) => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()),
        };
        Ok(Self { long, seed, kills, pods })
    }
}

/// A service that selects the pods, so that maps change with them.
const SERVICE: &str = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "crash"},
    "spec": {"selector": {"app": "crash"}, "ports": [{"port": 80, "targetPort": 8080}]}}"#;

/// What there was before.
pub struct Before {
    node: NodeState,
    objects: BTreeMap<String, usize>,
}

/// How many BPF objects there are on the machine, by kind.
fn bpf_objects() -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for line in Snapshot::take()?.lines().filter(|line| line.starts_with("bpf ")) {
        let kind = line.rsplit_once(' ').map_or(line, |(kind, _id)| kind);
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

/// Waits until there is no pod.
fn emptied(cluster: &TestCluster) -> Result<()> {
    cluster.kubectl.run(&["delete", "pods", "--all", "--wait=false"])?;
    cluster.eventually(PATIENCE, || {
        let left = cluster.kubectl.run(&["get", "pods", "-o", "name"])?;
        ensure!(left.trim().is_empty(), "still there: {left}");
        Ok(())
    })
}

impl Before {
    /// Has every kind of pod come and go once, so that what is made for the first one and kept is there; then looks at the
    /// node.
    pub fn look(cluster: &TestCluster) -> Result<Self> {
        cluster.kubectl.apply(SERVICE)?;
        for (number, kind) in [Kind::Server, Kind::Pair, Kind::Leaver].into_iter().enumerate() {
            let text = manifest(&format!("first-{number}"), number, kind).to_string();
            cluster.kubectl.run_with_input(&["create", "-f", "-"], &text)?;
        }
        let ready = ["wait", "--for=condition=Ready", "pod/first-0", "pod/first-1", "--timeout=60s"];
        cluster.kubectl.run(&ready)?;
        emptied(cluster)?;
        let book = cluster.node(1)?.dir.join(BOOK.trim_start_matches('/'));
        fs::remove_dir_all(&book).context("no container has written")?;
        fs::create_dir_all(&book)?;
        // What the agent does in its own time, such as forgetting an endpoint.
        std::thread::sleep(Duration::from_secs(2));
        Ok(Self { node: NodeState::take(&cluster.node(1)?)?, objects: bpf_objects()? })
    }

    /// Checks that the node comes to what was asked for, then that nothing is left once all pods are deleted.
    pub fn settle(&self, cluster: &TestCluster, load: Load, form: &Form) -> Result<Value> {
        let node = cluster.node(1)?;
        let dir = node.dir.join(BOOK.trim_start_matches('/'));
        let read = || -> Result<BTreeMap<String, usize>> {
            let mut book = BTreeMap::new();
            for line in fs::read_to_string(dir.join("starts"))?.lines() {
                *book.entry(line.to_owned()).or_default() += 1;
            }
            Ok(book)
        };
        cluster.eventually(PATIENCE, || {
            load.check(&cluster.kubectl.json(&["get", "pods"])?, &read()?)?;
            let (running, wanted) = (NodeState::take(&node)?.count("process testapp"), load.running());
            ensure!(running == wanted, "{running} containers run, not {wanted}");
            Ok(())
        })?;
        let book = read()?;
        load.check_starts(&book)?;
        let twice = fs::read_to_string(dir.join("twice")).unwrap_or_default();
        ensure!(twice.is_empty(), "ran twice at a time: {twice}");
        emptied(cluster)?;
        cluster.eventually(PATIENCE, || {
            let left = NodeState::take(&node)?.added_since(&self.node);
            ensure!(left.is_empty(), "left behind: {left:#?}");
            let objects = bpf_objects()?;
            ensure!(
                objects.iter().all(|(kind, count)| self.objects.get(kind) >= Some(count)),
                "BPF objects left behind: {objects:?}, there were {:?}",
                self.objects
            );
            Ok(())
        })?;
        Ok(json!({
            "seed": form.seed, "kills": form.kills, "pods_started": load.started, "pods_updated": load.updated,
            "pods_deleted": load.deleted, "containers_started": book.values().sum::<usize>(),
            "run_twice": 0, "orphaned": 0, "left_behind": 0,
        }))
    }
}

/// Kills the agent while pods come, change and go.
pub fn kill_at_random(cluster: &mut TestCluster, form: &Form) -> Result<Load> {
    let mut load = Load::new(Kubectl::new(&cluster.kubeconfig())?, form.seed);
    let mut random = Random(!form.seed);
    let kills = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let done = &kills;
        let acting = scope.spawn(move || {
            while load.started < form.pods {
                // Spread over the kills.
                if load.started * form.kills > (done.load(Ordering::SeqCst) + 1) * form.pods {
                    std::thread::sleep(Duration::from_millis(20));
                } else {
                    load.act()?;
                }
            }
            anyhow::Ok(load)
        });
        while kills.load(Ordering::SeqCst) < form.kills {
            std::thread::sleep(Duration::from_millis(random.below(LIFE)));
            cluster.kill_daemon("node-1")?;
            if random.below(4) == 0 {
                std::thread::sleep(Duration::from_millis(random.below(ABSENCE)));
            }
            cluster.start_agent(1)?;
            kills.fetch_add(1, Ordering::SeqCst);
        }
        acting.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))?
    })
}

/// Writes the summary of a long run beside the commit that it was made on.
pub fn record(mut summary: Value, took: Duration) -> Result<()> {
    let (commit, changed) = checkout::commit()?;
    summary["commit"] = commit.into();
    summary["changed_since_commit"] = changed.into();
    summary["seconds"] = took.as_secs().into();
    let path = paths::root().join("tests/crash/agent.json");
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(&path, format!("{summary:#}\n")).with_context(|| path.display().to_string())
}
