//! Events about objects, as `client-go/tools/record` writes them: a repeated event raises the count of the
//! first one, many similar ones are gathered into one, and an object that causes a flood is silenced.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::meta;

/// Events that wait to be written; more are dropped, for events must never hold up work.
const BACKLOG: usize = 1000;
/// Similar events within [`SIMILAR_WINDOW`] after which they are gathered into one.
const SIMILAR_LIMIT: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Events that one object may cause in a burst, and how long each further one takes to be earned.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Correlation state kept at most; beyond it the least recent half is forgotten.
const CACHE: usize = 4096;

/// Whether an event is of note or of concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    /// All is well.
    Normal,
    /// Something failed or may fail.
    Warning,
}

impl EventType {
    /// The API's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

struct Occurrence {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
}

/// Writes events for one component. Cloning is cheap; [`event`](Self::event) never waits.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// Starts the recorder of `component` (such as `deployment-controller`). It ends with its last clone.
    /// Must be called within a tokio runtime.
    pub fn new(client: Client, component: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(write_events(client, component, receiver));
        Recorder { sender }
    }

    /// Records that something happened to `object`.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) {
        self.event_on(reference(object), kind, reason, message);
    }

    /// Records that something happened to what `about` names.
    pub fn event_on(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence { about, kind, reason: reason.into(), message: message.into() };
        if let Err(error) = self.sender.try_send(occurrence) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

/// A reference to `object` for an event.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

type Similar = (String, &'static str, String);

#[derive(Debug, PartialEq)]
enum Verdict {
    /// Silenced.
    Drop,
    /// Write it as new.
    Create { message: String, key: String },
    /// Raise the count of an event that is there.
    Repeat { namespace: String, name: String, count: i32, message: String, key: String },
}

struct Written {
    namespace: String,
    name: String,
    count: i32,
    used: Instant,
}

#[derive(Default)]
struct Correlator {
    written: HashMap<String, Written>,
    similar: HashMap<Similar, (Instant, BTreeSet<String>)>,
    buckets: HashMap<String, (Instant, f64)>,
}

impl Correlator {
    fn judge(&mut self, event: &Occurrence, now: Instant) -> Verdict {
        self.shrink();
        let object = format!(
            "{}/{}/{}/{}",
            event.about.kind.as_deref().unwrap_or_default(),
            event.about.namespace.as_deref().unwrap_or_default(),
            event.about.name.as_deref().unwrap_or_default(),
            event.about.uid.as_deref().unwrap_or_default(),
        );
        let bucket = self.buckets.entry(object.clone()).or_insert((now, BURST));
        bucket.1 = (bucket.1 + (now - bucket.0).as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        bucket.0 = now;
        if bucket.1 < 1.0 {
            return Verdict::Drop;
        }
        bucket.1 -= 1.0;

        let similar: Similar = (object.clone(), event.kind.as_str(), event.reason.clone());
        let group = self.similar.entry(similar).or_insert_with(|| (now, BTreeSet::new()));
        if now - group.0 > SIMILAR_WINDOW {
            group.1.clear();
        }
        group.0 = now;
        group.1.insert(event.message.clone());
        let gathered = group.1.len() >= SIMILAR_LIMIT;
        let message = if gathered {
            format!("(combined from similar events): {}", event.message)
        } else {
            event.message.clone()
        };
        let distinct = if gathered { "" } else { &event.message };
        let key = format!("{object}\n{}\n{}\n{distinct}", event.kind.as_str(), event.reason);
        match self.written.get_mut(&key) {
            Some(seen) => {
                seen.count += 1;
                seen.used = now;
                let (namespace, name) = (seen.namespace.clone(), seen.name.clone());
                Verdict::Repeat { namespace, name, count: seen.count, message, key }
            }
            None => Verdict::Create { message, key },
        }
    }

    fn shrink(&mut self) {
        if self.buckets.len() > CACHE || self.written.len() > CACHE || self.similar.len() > CACHE {
            let mut used: Vec<Instant> = self.written.values().map(|w| w.used).collect();
            used.sort();
            let middle = used.get(used.len() / 2).copied();
            self.written.retain(|_, w| Some(w.used) > middle);
            self.similar.clear();
            self.buckets.clear();
        }
    }
}

async fn write_events(client: Client, component: &'static str, mut receiver: mpsc::Receiver<Occurrence>) {
    let mut correlator = Correlator::default();
    while let Some(occurrence) = receiver.recv().await {
        let now = Instant::now();
        let verdict = correlator.judge(&occurrence, now);
        if let Err(error) = write(&client, component, &mut correlator, occurrence, verdict, now).await {
            // The namespace may be going away, or the object be gone: events are best effort.
            tracing::debug!(%error, component, "could not write an event");
        }
    }
}

async fn write(
    client: &Client,
    component: &'static str,
    correlator: &mut Correlator,
    occurrence: Occurrence,
    verdict: Verdict,
    now: Instant,
) -> Result<(), kube::Error> {
    let (key, message) = match verdict {
        Verdict::Drop => return Ok(()),
        Verdict::Repeat { namespace, name, count, message, key } => {
            let patch = serde_json::json!({
                "count": count, "message": message, "lastTimestamp": meta::now(),
            });
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => return Ok(()),
                // It has expired meanwhile: write it anew.
                Err(error) if meta::is_not_found(&error) => (key, message),
                Err(error) => return Err(error),
            }
        }
        Verdict::Create { message, key } => (key, message),
    };
    let event = event(component, &occurrence, message);
    let (namespace, name) =
        (meta::namespace(&event.metadata).to_owned(), meta::name(&event.metadata).to_owned());
    Api::<Event>::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await?;
    correlator.written.insert(key, Written { namespace, name, count: 1, used: now });
    Ok(())
}

fn event(component: &'static str, occurrence: &Occurrence, message: String) -> Event {
    let about = &occurrence.about;
    let now = meta::now();
    let name = about.name.as_deref().unwrap_or_default();
    let namespace = about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.0.as_nanosecond())),
            namespace: Some(namespace),
            ..Default::default()
        },
        involved_object: about.clone(),
        type_: Some(occurrence.kind.as_str().into()),
        reason: Some(occurrence.reason.clone()),
        // The API refuses messages longer than this.
        message: Some(truncated(message, 1024)),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        source: Some(EventSource { component: Some(component.into()), host: None }),
        reporting_component: Some(component.into()),
        reporting_instance: Some(String::new()),
        ..Default::default()
    }
}

fn truncated(mut text: String, most: usize) -> String {
    if text.len() > most {
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str) -> Occurrence {
        Occurrence {
            about: ObjectReference { name: Some("web".into()), ..Default::default() },
            kind: EventType::Normal,
            reason: "R".into(),
            message: message.into(),
        }
    }

    fn wrote(correlator: &mut Correlator, verdict: Verdict, now: Instant) {
        let Verdict::Create { key, .. } = verdict else { panic!("{verdict:?}") };
        let written = Written { namespace: "ns".into(), name: "e".into(), count: 1, used: now };
        correlator.written.insert(key, written);
    }

    #[tokio::test]
    async fn a_repeated_event_is_counted() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        let verdict = correlator.judge(&occurrence("m"), now);
        wrote(&mut correlator, verdict, now);
        match correlator.judge(&occurrence("m"), now) {
            Verdict::Repeat { count, .. } => assert_eq!(count, 2),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn similar_events_are_gathered_and_floods_silenced() {
        let (mut correlator, now) = (Correlator::default(), Instant::now());
        for n in 0..9 {
            let verdict = correlator.judge(&occurrence(&n.to_string()), now);
            wrote(&mut correlator, verdict, now);
        }
        let verdict = correlator.judge(&occurrence("9"), now);
        assert!(matches!(&verdict, Verdict::Create { message, .. } if message.starts_with("(combined")));
        for n in 10..25 {
            assert_ne!(correlator.judge(&occurrence(&n.to_string()), now), Verdict::Drop);
        }
        assert_eq!(correlator.judge(&occurrence("25"), now), Verdict::Drop);
        assert_ne!(correlator.judge(&occurrence("26"), now + REFILL), Verdict::Drop);
    }
}
