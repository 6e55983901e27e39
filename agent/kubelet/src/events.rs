//! Events about pods, as kubectl describe shows them: repeated ones are counted, floods are held back.
//!
//! Source: client-go `tools/record/events_cache.go`: one record for equal events with a growing count, and a budget
//! of 25 events an object that refills by one in five minutes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::api_time;
use crate::pods::podext::{ContainerKind, PodExt};

const QUEUE: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(10);
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Records that are remembered for counting.
const REMEMBERED: usize = 4096;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Something went as it should.
    Normal,
    /// Something did not.
    Warning,
}

/// One event to record.
#[derive(Debug, Clone, PartialEq)]
struct Record {
    object: ObjectReference,
    type_: EventType,
    reason: String,
    message: String,
    at: SystemTime,
}

/// Takes events from anywhere and never blocks: when the queue is full, an event is dropped with a log line.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Record>,
}

/// The other end: sends them.
pub struct EventSink {
    queue: mpsc::Receiver<Record>,
    client: kube::Client,
    node_name: Arc<str>,
}

/// A recorder and its sink; the sink runs until its token ends or all recorders are gone.
pub fn channel(client: kube::Client, node_name: &str) -> (EventRecorder, EventSink) {
    let (tx, rx) = mpsc::channel(QUEUE);
    (EventRecorder { queue: tx }, EventSink { queue: rx, client, node_name: node_name.into() })
}

impl EventRecorder {
    /// An event about a whole pod.
    pub fn pod(&self, pod: &Pod, type_: EventType, reason: &str, message: impl Into<String>) {
        self.send(reference(pod, None), type_, reason, message.into());
    }

    /// An event about one container of it.
    pub fn container(
        &self,
        pod: &Pod,
        kind: ContainerKind,
        name: &str,
        type_: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.send(reference(pod, Some(kind.field_path(name))), type_, reason, message.into());
    }

    fn send(&self, object: ObjectReference, type_: EventType, reason: &str, mut message: String) {
        // The API's limit for a note is 1024 bytes; core events take more, but a pod must not fill the store.
        if message.len() > 4096 {
            let end = (0..=4096).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
        }
        let record = Record { object, type_, reason: reason.to_owned(), message, at: SystemTime::now() };
        if let Err(error) = self.queue.try_send(record) {
            tracing::warn!(%error, reason, "event dropped");
        }
    }
}

fn reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(PodExt::namespace(pod).to_owned()),
        name: Some(PodExt::name(pod).to_owned()),
        uid: Some(PodExt::uid(pod).to_owned()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    field_path: String,
    type_: EventType,
    reason: String,
    message: String,
}

#[derive(Debug, Clone)]
struct Seen {
    event_name: String,
    count: i32,
    last: SystemTime,
}

/// What to do with a record. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Create { name: String },
    Count { name: String, count: i32 },
    Drop,
}

/// Counting and flood control.
#[derive(Default)]
struct Correlator {
    seen: HashMap<Key, Seen>,
    budgets: HashMap<String, (f64, SystemTime)>,
}

impl Correlator {
    fn step(&mut self, record: &Record) -> Step {
        let uid = record.object.uid.clone().unwrap_or_default();
        if !self.spend(&uid, record.at) {
            return Step::Drop;
        }
        let key = Key {
            uid,
            field_path: record.object.field_path.clone().unwrap_or_default(),
            type_: record.type_,
            reason: record.reason.clone(),
            message: record.message.clone(),
        };
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.count = seen.count.saturating_add(1);
            seen.last = record.at;
            return Step::Count { name: seen.event_name.clone(), count: seen.count };
        }
        self.trim();
        let nanos = record.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let name = format!("{}.{:x}", record.object.name.as_deref().unwrap_or("pod"), nanos);
        self.seen.insert(key, Seen { event_name: name.clone(), count: 1, last: record.at });
        Step::Create { name }
    }

    fn spend(&mut self, uid: &str, now: SystemTime) -> bool {
        let (tokens, last) = self.budgets.entry(uid.to_owned()).or_insert((BURST, now));
        let elapsed = now.duration_since(*last).unwrap_or_default().as_secs_f64();
        *tokens = (*tokens + elapsed * REFILL_PER_SECOND).min(BURST);
        *last = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    fn trim(&mut self) {
        if self.seen.len() < REMEMBERED {
            return;
        }
        let mut ages: Vec<SystemTime> = self.seen.values().map(|s| s.last).collect();
        ages.sort_unstable();
        let cut = ages[ages.len() / 2];
        self.seen.retain(|_, s| s.last > cut);
        self.budgets.retain(|_, (_, last)| *last > cut);
    }
}

/// Whether the server refuses what belongs to a namespace that is being deleted.
fn ending(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

impl EventSink {
    /// Sends events until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut correlator = Correlator::default();
        loop {
            let record = tokio::select! {
                () = shutdown.cancelled() => return,
                record = self.queue.recv() => match record { Some(r) => r, None => return },
            };
            let step = correlator.step(&record);
            let sent = tokio::time::timeout(TIMEOUT, self.send(&record, step)).await;
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let (reason, message) = (&record.reason, &record.message);
                    // Nothing is recorded in a namespace that goes.
                    if ending(&error) {
                        tracing::debug!(%error, reason, message, "event not recorded");
                    } else {
                        tracing::warn!(%error, reason, message, "event not recorded");
                    }
                }
                Err(_elapsed) => {
                    tracing::warn!(
                        reason = record.reason,
                        message = record.message,
                        "event not recorded in time"
                    );
                }
            }
        }
    }

    async fn send(&self, record: &Record, step: Step) -> Result<(), kube::Error> {
        let namespace = record.object.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match step {
            Step::Drop => Ok(()),
            Step::Create { name } => {
                api.create(&PostParams::default(), &self.event(record, name, namespace, 1)).await.map(drop)
            }
            Step::Count { name, count } => {
                let patch = json!({"count": count, "lastTimestamp": api_time(record.at)});
                match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    // The first record lived for an hour only; start it again.
                    Err(kube::Error::Api(s)) if s.code == 404 => {
                        let event = self.event(record, name, namespace, count);
                        api.create(&PostParams::default(), &event).await.map(drop)
                    }
                    other => other.map(drop),
                }
            }
        }
    }

    fn event(&self, record: &Record, name: String, namespace: &str, count: i32) -> Event {
        let time = api_time(record.at);
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: record.object.clone(),
            reason: Some(record.reason.clone()),
            message: Some(record.message.clone()),
            type_: Some(format!("{:?}", record.type_)),
            count: Some(count),
            first_timestamp: Some(time.clone()),
            last_timestamp: Some(time),
            source: Some(EventSource {
                component: Some("kubelet".into()),
                host: Some(self.node_name.to_string()),
            }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(self.node_name.to_string()),
            ..Event::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{pod_json, t0};

    fn record(message: &str, at: SystemTime) -> Record {
        let pod = pod_json(json!({"containers": []}));
        Record {
            object: reference(&pod, None),
            type_: EventType::Normal,
            reason: "R".into(),
            message: message.into(),
            at,
        }
    }

    #[test]
    fn equal_events_are_counted() {
        let mut c = Correlator::default();
        let Step::Create { name } = c.step(&record("m", t0())) else { panic!("first one creates") };
        assert_eq!(c.step(&record("m", t0())), Step::Count { name, count: 2 });
        assert!(matches!(c.step(&record("other", t0())), Step::Create { .. }));
    }

    #[test]
    fn floods_are_held_back() {
        let mut c = Correlator::default();
        for i in 0..25 {
            assert_ne!(c.step(&record(&i.to_string(), t0())), Step::Drop);
        }
        assert_eq!(c.step(&record("x", t0())), Step::Drop);
        assert_ne!(c.step(&record("x", t0() + Duration::from_secs(301))), Step::Drop);
    }
}
