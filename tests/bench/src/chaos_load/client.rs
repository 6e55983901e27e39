//! Writes, and the journal of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_tests::chaos::journal::{Change, LAST, Line, NUMBER, Outcome, Write, now};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// Kinds of objects that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    ConfigMap,
    Pod,
    Deployment,
    StatefulSet,
    Job,
}

impl Kind {
    fn resource(self) -> ApiResource {
        let (group, kind, plural) = match self {
            Self::ConfigMap => ("", "ConfigMap", "configmaps"),
            Self::Pod => ("", "Pod", "pods"),
            Self::Deployment => ("apps", "Deployment", "deployments"),
            Self::StatefulSet => ("apps", "StatefulSet", "statefulsets"),
            Self::Job => ("batch", "Job", "jobs"),
        };
        let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        ApiResource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            api_version: version,
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        }
    }

    /// Objects of the default namespace.
    pub fn api(self, client: &kube::Client) -> Api<DynamicObject> {
        Api::default_namespaced_with(client.clone(), &self.resource())
    }

    /// Name of an object in the journal.
    pub fn object(self, name: &str) -> String {
        format!("{self:?}/{name}")
    }
}

/// What all tasks write down.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

struct Shared {
    file: Mutex<BufWriter<File>>,
    /// Newest resourceVersion that any writer has been told of.
    newest: AtomicU64,
    /// The next number.
    next: AtomicU64,
    shown_last: tokio::sync::Notify,
}

impl Journal {
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Self(Arc::new(Shared {
            file: Mutex::new(BufWriter::new(file)),
            newest: AtomicU64::new(0),
            next: AtomicU64::new(1),
            shown_last: tokio::sync::Notify::new(),
        })))
    }

    /// Adds a line. A journal that can't be written is worth nothing: the load ends at once.
    pub fn add(&self, line: &Line) {
        let mut file = self.0.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = serde_json::to_writer(&mut *file, line).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|()| file.write_all(b"\n")) {
            eprintln!("write the journal: {error}");
            std::process::exit(1);
        }
        if matches!(line, Line::Seen(seen) if seen.object == LAST) {
            self.0.shown_last.notify_one();
        }
    }

    /// Waits until a watch has shown what is written last.
    pub async fn shown_last(&self) {
        self.0.shown_last.notified().await;
    }

    pub fn flush(&self) -> Result<()> {
        Ok(self.0.file.lock().unwrap_or_else(PoisonError::into_inner).flush()?)
    }
}

/// Number of an object's last write.
pub fn number(object: &DynamicObject) -> Option<u64> {
    object.metadata.annotations.as_ref()?.get(NUMBER)?.parse().ok()
}

/// Revision of an object.
pub fn revision(object: &DynamicObject) -> Option<u64> {
    object.metadata.resource_version.as_ref()?.parse().ok()
}

/// A writer of objects of one kind, which nobody else writes.
pub struct Writer {
    kind: Kind,
    api: Api<DynamicObject>,
    journal: Journal,
    /// What exists, as far as was acknowledged.
    exists: BTreeSet<String>,
}

/// Between looks at an object whose server is away.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Writer {
    pub fn new(kind: Kind, client: &kube::Client, journal: Journal) -> Self {
        Self { kind, api: kind.api(client), journal, exists: BTreeSet::new() }
    }

    /// Whether an object exists.
    pub fn has(&self, name: &str) -> bool {
        self.exists.contains(name)
    }

    /// Names of what exists.
    pub fn names(&self) -> Vec<String> {
        self.exists.iter().cloned().collect()
    }

    /// Makes an object; `body` is all but its kind and name.
    pub async fn create(&mut self, name: &str, mut body: Value) {
        let n = self.next();
        let resource = self.kind.resource();
        body["apiVersion"] = json!(resource.api_version);
        body["kind"] = json!(resource.kind);
        body["metadata"]["name"] = json!(name);
        body["metadata"]["annotations"] = json!({NUMBER: n.to_string()});
        let object: DynamicObject = match serde_json::from_value(body) {
            Ok(object) => object,
            Err(error) => unreachable!("{name} is no object: {error}"),
        };
        let floor = self.floor();
        let answer = self.api.create(&PostParams::default(), &object).await;
        self.note(name, Change::Put(n), floor, answer.map(|object| revision(&object))).await;
    }

    /// Changes an object by a merge patch.
    pub async fn change(&mut self, name: &str, mut patch: Value) {
        let n = self.next();
        patch["metadata"]["annotations"][NUMBER] = json!(n.to_string());
        let floor = self.floor();
        let answer = self.api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        self.note(name, Change::Put(n), floor, answer.map(|object| revision(&object))).await;
    }

    /// Deletes an object, and what it owns in the background.
    pub async fn delete(&mut self, name: &str) {
        let floor = self.floor();
        let answer = self.api.delete(name, &DeleteParams::background()).await;
        self.note(name, Change::Delete, floor, answer.map(|_| None)).await;
    }

    fn next(&self) -> u64 {
        self.journal.0.next.fetch_add(1, Ordering::SeqCst)
    }

    fn floor(&self) -> u64 {
        self.journal.0.newest.load(Ordering::SeqCst)
    }

    /// Writes down what came of a write.
    async fn note(&mut self, name: &str, change: Change, floor: u64, answer: kube::Result<Option<u64>>) {
        let outcome = match answer {
            Ok(revision) => {
                self.journal.0.newest.fetch_max(revision.unwrap_or_default(), Ordering::SeqCst);
                Outcome::Acknowledged(revision)
            }
            // 429: the server is busy, as it may be.
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                Outcome::Refused(status.code, status.message)
            }
            Err(_no_answer) => self.look(name, change).await,
        };
        match (change, &outcome) {
            (Change::Put(_), outcome) if outcome.done() => drop(self.exists.insert(name.to_owned())),
            (Change::Delete, outcome) if outcome.done() => drop(self.exists.remove(name)),
            (_, Outcome::Refused(404, _)) => drop(self.exists.remove(name)),
            _ => {}
        }
        let object = self.kind.object(name);
        self.journal.add(&Line::Write(Write { at: now(), object, change, outcome, floor }));
    }

    /// Finds out whether a write without an answer was done.
    async fn look(&self, name: &str, change: Change) -> Outcome {
        let object = loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            if let Ok(object) = self.api.get_opt(name).await {
                break object;
            }
        };
        let done = match (change, object) {
            (Change::Put(n), Some(object)) => number(&object) == Some(n),
            (Change::Put(_), None) => false,
            (Change::Delete, Some(object)) => object.metadata.deletion_timestamp.is_some(),
            (Change::Delete, None) => true,
        };
        if done { Outcome::Done } else { Outcome::Lost }
    }
}
