//! The master killed by SIGKILL in the middle of many concurrent writes, again and again.
//!
//! Writers keep a log of their own. After every restart each acknowledged write must be there and nothing else may be,
//! resourceVersions never go back, and a watch that resumes where it stopped sees every change once and in order.
//!
//! `KEELSON_CRASH=long cargo test --release -p keelson-master --test crash -- --nocapture` is the long form: 20 kills in
//! 10,000 writes, and the time of a restart over 30,000 objects, with a summary in `tests/crash/master.json`.
//! `KEELSON_MASTER` names another program to kill than the one that was built; then there is no summary.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod crash {
    pub mod ledger;
    pub mod master;
    pub mod summary;
    pub mod watcher;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crash::ledger::{Log, Outcome, Write};
use crash::master::Master;
use crash::watcher::Watcher;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams};

/// Writes at a time.
const WRITERS: usize = 32;
/// Objects that each writer goes around.
const NAMES: u64 = 8;
/// Restarts over what is stored in the long form, of which the median counts.
const RESTARTS: usize = 9;
/// The last kills, over which a watch goes back that begins after all of them.
const LATE: usize = 2;
/// Time in which a killed master is ready again, however slow the machine; a hang, not a speed, is what this finds.
const PATIENCE: Duration = Duration::from_secs(60);

struct Form {
    kills: usize,
    writes_a_kill: usize,
    stored: usize,
}

impl Form {
    fn chosen() -> Self {
        match std::env::var("KEELSON_CRASH").as_deref() {
            Ok("long") => Self { kills: 20, writes_a_kill: 500, stored: 30_000 },
            Ok(other) => panic!("KEELSON_CRASH={other:?}: the only other form is \"long\""),
            Err(_) => Self { kills: 3, writes_a_kill: 500, stored: 0 },
        }
    }
}

fn config_map(name: &str, n: u64) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map.data = Some([("n".to_owned(), n.to_string())].into());
    map
}

fn revision(map: &ConfigMap) -> u64 {
    map.metadata.resource_version.as_ref().unwrap().parse().unwrap()
}

/// What the writers of all rounds share.
#[derive(Default)]
struct Progress {
    acknowledged: AtomicUsize,
    /// Newest resourceVersion that any writer has been told of.
    newest: AtomicU64,
}

/// Writes until the master is gone: every object in turn, made, changed and deleted. The last write of the log is the
/// one whose answer never came.
async fn write(api: Api<ConfigMap>, writer: usize, mut log: Log, progress: Arc<Progress>) -> Log {
    loop {
        let n = log.next();
        let name = format!("w{writer}-{}", n % NAMES);
        let before = progress.newest.load(Ordering::SeqCst);
        let exists = log.state(&name).is_some();
        // A third of what exists goes.
        let kind = if exists && n.is_multiple_of(3) { Write::Delete } else { Write::Put(n) };
        let answer = match kind {
            Write::Delete => api.delete(&name, &DeleteParams::default()).await.map(|_| None),
            Write::Put(n) if exists => {
                api.replace(&name, &PostParams::default(), &config_map(&name, n)).await.map(Some)
            }
            Write::Put(n) => api.create(&PostParams::default(), &config_map(&name, n)).await.map(Some),
        };
        match answer {
            Ok(map) => {
                let revision = map.as_ref().map(revision);
                if let Some(revision) = revision {
                    assert!(revision > before, "{name}: {revision} came after {before} was acknowledged");
                    progress.newest.fetch_max(revision, Ordering::SeqCst);
                }
                log.push(&name, kind, Outcome::Acknowledged(revision));
                progress.acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            Err(kube::Error::Api(status)) => panic!("{name}: {kind:?} was refused: {status:?}"),
            Err(_gone) => {
                log.push(&name, kind, Outcome::Unknown);
                return log;
            }
        }
    }
}

/// One round: writers at work, the master killed, everything looked at after its restart.
async fn round(master: &mut Master, logs: Vec<Log>, progress: &Arc<Progress>, writes: usize) -> Vec<Log> {
    let goal = progress.acknowledged.load(Ordering::SeqCst) + writes;
    let client = master.client().await;
    let tasks: Vec<_> = logs
        .into_iter()
        .enumerate()
        .map(|(writer, log)| {
            tokio::spawn(write(Api::default_namespaced(client.clone()), writer, log, progress.clone()))
        })
        .collect();
    let deadline = Instant::now() + 10 * PATIENCE;
    while progress.acknowledged.load(Ordering::SeqCst) < goal {
        assert!(Instant::now() < deadline, "the writers are stuck");
        assert!(tasks.iter().all(|task| !task.is_finished()), "a writer ended before the master did");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    master.kill();
    let mut logs = Vec::new();
    for task in tasks {
        logs.push(task.await.unwrap());
    }
    let took = master.start(PATIENCE).await;
    println!("ready again in {:.3} s", took.as_secs_f64());

    let api: Api<ConfigMap> = Api::default_namespaced(master.client().await);
    let list = api.list(&ListParams::default()).await.unwrap();
    let shown: u64 = list.metadata.resource_version.as_ref().unwrap().parse().unwrap();
    let newest = progress.newest.load(Ordering::SeqCst);
    assert!(shown >= newest, "the list is of {shown}, but {newest} was acknowledged");
    for (writer, log) in logs.iter_mut().enumerate() {
        let prefix = format!("w{writer}-");
        let found = list.items.iter().filter_map(|map| {
            let name = map.metadata.name.clone()?;
            let n: u64 = map.data.as_ref()?.get("n")?.parse().ok()?;
            name.starts_with(&prefix).then(|| (name, (n, revision(map))))
        });
        log.settle(&found.collect());
    }
    logs
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_outlives_a_kill() {
    let form = Form::chosen();
    let mut master = Master::new();
    let first = master.start(PATIENCE).await;
    println!("first start in {:.3} s", first.as_secs_f64());
    let api: Api<ConfigMap> = Api::default_namespaced(master.client().await);
    let list = api.list(&ListParams::default()).await.unwrap();
    let watcher = Watcher::start(master.access().clone(), list.metadata.resource_version.unwrap());

    let progress = Arc::new(Progress::default());
    let mut logs: Vec<Log> = (0..WRITERS).map(|_| Log::default()).collect();
    let started = Instant::now();
    let mut late = 0;
    for kill in 0..form.kills {
        if kill + LATE == form.kills {
            late = progress.newest.load(Ordering::SeqCst);
        }
        logs = round(&mut master, logs, &progress, form.writes_a_kill).await;
    }
    let api: Api<ConfigMap> = Api::default_namespaced(master.client().await);
    api.create(&PostParams::default(), &config_map("end", 0)).await.unwrap();
    let seen = watcher.until("end", PATIENCE).await;
    for (writer, log) in logs.iter().enumerate() {
        log.compare(&seen.of(&format!("w{writer}-")));
    }
    // Also from what was there before the master was killed for the last times.
    let again = Watcher::start(master.access().clone(), late.to_string()).until("end", PATIENCE).await;
    assert_eq!(again.after(late), seen.after(late), "watched from {late} on");
    assert!(again.after(late).len() > form.writes_a_kill);
    let unknown = logs.iter().map(Log::applied_unknown).sum::<usize>();
    let acknowledged = progress.acknowledged.load(Ordering::SeqCst);
    assert_eq!(seen.changes(), acknowledged + unknown + 1, "changes seen, and writes that were done");
    let took = started.elapsed();
    println!(
        "{} kills, {acknowledged} writes acknowledged, {unknown} more done without an answer, {} changes seen over {} watches, {:.1} s",
        form.kills,
        seen.changes(),
        seen.watches(),
        took.as_secs_f64(),
    );

    if form.stored > 0 {
        let restarts = restart_over(&mut master, form.stored).await;
        crash::summary::record(serde_json::json!({
            "kills": form.kills,
            "writes_acknowledged": acknowledged,
            "writes_without_answer_done": unknown,
            "changes_seen": seen.changes(),
            "watches": seen.watches(),
            "seconds": took.as_secs(),
            "lost": 0,
            "restart": restarts,
        }));
    }
}

/// Stores so many objects, kills the master, and gives how long it takes to be ready again: to say so, and then to list
/// them all.
async fn restart_over(master: &mut Master, stored: usize) -> serde_json::Value {
    let api: Api<ConfigMap> = Api::default_namespaced(master.client().await);
    futures::stream::iter(0..stored)
        .map(|i| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &config_map(&format!("stored-{i}"), 0)).await.unwrap();
            }
        })
        .buffer_unordered(WRITERS)
        .collect::<Vec<()>>()
        .await;
    let mut ready = Vec::new();
    for _ in 0..RESTARTS {
        master.kill();
        let took = master.start(PATIENCE).await;
        // It said that it is ready: the first list is whole.
        let api: Api<ConfigMap> = Api::default_namespaced(master.client().await);
        let began = Instant::now();
        let list = api.list_metadata(&ListParams::default()).await.unwrap();
        let listed = began.elapsed();
        let found =
            list.items.iter().filter(|map| map.metadata.name.as_ref().unwrap().starts_with("stored-"));
        assert_eq!(found.count(), stored);
        println!(
            "ready over {stored} objects in {:.3} s, these listed in {:.3} s more",
            took.as_secs_f64(),
            listed.as_secs_f64()
        );
        ready.push(took);
    }
    crash::summary::restarts(stored, ready)
}
