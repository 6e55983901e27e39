//! Events about the node itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;

use super::CALL;

/// Events waiting to be sent; more are dropped, as client-go's broadcaster does.
const QUEUE: usize = 64;
/// Tries for one event: client-go's maxTriesPerEvent.
const TRIES: u32 = 12;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventSeverity {
    /// Only information.
    Normal,
    /// Something that may be a problem.
    Warning,
}

/// Sends events about one node, in order, from a task of its own.
#[derive(Debug, Clone)]
pub struct NodeEvents {
    queue: mpsc::Sender<Event>,
    node: String,
}

impl NodeEvents {
    /// Starts the sending task; it ends when the last clone is dropped.
    pub fn new(client: Client, node: &str) -> Self {
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, events));
        Self { queue, node: node.to_owned() }
    }

    /// Queues an event. Never blocks.
    pub fn send(&self, severity: EventSeverity, reason: &str, message: impl Into<String>) {
        let event = event(&self.node, severity, reason, message.into(), Timestamp::now());
        if self.queue.try_send(event).is_err() {
            tracing::warn!(reason, "event dropped: too many are waiting");
        }
    }
}

fn event(node: &str, severity: EventSeverity, reason: &str, message: String, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{node}.{:x}", now.as_nanosecond())),
            namespace: Some("default".to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // Upstream's kubelet has always put the node's name here, and clients look for it.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        },
        reason: Some(reason.to_owned()),
        message: Some(message),
        type_: Some(match severity {
            EventSeverity::Normal => "Normal".to_owned(),
            EventSeverity::Warning => "Warning".to_owned(),
        }),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    }
}

async fn send_all(client: Client, mut events: mpsc::Receiver<Event>) {
    let api: Api<Event> = Api::namespaced(client, "default");
    while let Some(event) = events.recv().await {
        let mut pause = Duration::from_millis(500);
        for attempt in 1..=TRIES {
            match tokio::time::timeout(CALL, api.create(&PostParams::default(), &event)).await {
                Ok(Ok(_)) => break,
                // An answer of the server won't change by asking again.
                Ok(Err(kube::Error::Api(error))) if (400..500).contains(&error.code) && error.code != 429 => {
                    tracing::warn!(reason = event.reason, %error, "event refused");
                    break;
                }
                Ok(Err(error)) if attempt == TRIES => tracing::warn!(%error, "event given up"),
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_names_the_node() {
        let event =
            event("n1", EventSeverity::Normal, "Starting", "Starting kubelet.".to_owned(), Timestamp::now());
        assert_eq!(event.involved_object.uid.as_deref(), Some("n1"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.type_.as_deref(), Some("Normal"));
    }
}
