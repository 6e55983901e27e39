//! Notices nodes that have gone silent, and keeps conditions, taints and the readiness of their pods in step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use keelson_client::{Delta, EventType, Informer, Key, Recorder, WorkQueue, meta, pods, run_workers, taints};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::health::{self, Eviction};
use crate::config::ControllersConfig;
use crate::context::{Context, Task};
use crate::error::Result;

const NAME: &str = "node-controller";
const WORKERS: usize = 4;
/// How long a node may take to say anything at all.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        recorder: context.recorder(NAME, NAME),
        config: context.config.clone(),
        nodes: context.informers.nodes.clone(),
        leases: context.informers.node_leases.clone(),
        pods: context.informers.pods.clone(),
        queue: WorkQueue::new(),
        health: Mutex::default(),
        next_eviction: Mutex::new(Instant::now()),
    });
    let on_node = controller.clone();
    controller.nodes.on_change(move |delta| {
        let node = delta.object();
        match delta {
            Delta::Added(_) => on_node.about(node, "RegisteredNode", "Registered Node {} in Controller"),
            Delta::Deleted(_) => {
                on_node.health.lock().remove(meta::name(&node.metadata));
                on_node.about(node, "RemovingNode", "Removing Node {} from Controller");
            }
            Delta::Updated { .. } => {}
        }
        on_node.queue.add(Key::of(&**node));
    });
    let on_lease = controller.clone();
    controller
        .leases
        .on_change(move |delta| on_lease.queue.add(Key::cluster(meta::name(&delta.object().metadata))));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.nodes.synced().await;
            controller.leases.synced().await;
            controller.pods.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let clock = controller.clone();
        let period = controller.config.node_monitor_period;
        let ticks = async move {
            // Silence brings no event.
            let mut ticks = tokio::time::interval(period);
            loop {
                ticks.tick().await;
                for node in clock.nodes.list() {
                    clock.queue.add(Key::of(&*node));
                }
            }
        };
        let queue = controller.queue.clone();
        let work = run_workers("node-lifecycle-controller", queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        });
        tokio::select! { () = work => {}, () = ticks => {} }
    })
}

/// When a node was last heard of, by our clock, and how.
struct Heard {
    at: Instant,
    heartbeat: Option<String>,
    ready: String,
}

struct Controller {
    client: Client,
    recorder: Recorder,
    config: Arc<ControllersConfig>,
    nodes: Arc<Informer<Node>>,
    leases: Arc<Informer<Lease>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
    health: Mutex<HashMap<String, Heard>>,
    next_eviction: Mutex<Instant>,
}

impl Controller {
    fn about(&self, node: &Node, reason: &str, message: &str) {
        let name = meta::name(&node.metadata);
        let about = ObjectReference {
            kind: Some("Node".into()),
            api_version: Some("v1".into()),
            name: Some(name.into()),
            uid: node.metadata.uid.clone(),
            ..Default::default()
        };
        let message = format!("Node {name} event: {}", message.replace("{}", name));
        self.recorder.event_on(about, EventType::Normal, reason, message);
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(node) = self.nodes.get(key) else { return Ok(()) };
        let (silent_for, was_ready) = self.listen(&node);
        let known = health::condition(&node, "Ready").is_some();
        let grace = if known { self.config.node_monitor_grace_period } else { STARTUP_GRACE };
        let now = meta::now();
        if silent_for > grace
            && let Some(conditions) = health::silent_conditions(&node, &now)
        {
            let patch = json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "status": {"conditions": conditions},
            });
            let api: Api<Node> = Api::all(self.client.clone());
            api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
            // The change comes back as an event, and with it taints and pods.
            return Ok(());
        }
        let state = health::ready(&node);
        if known && state != "True" && (was_ready || state == "Unknown") {
            if was_ready {
                let message = format!("Node {} status is now: NodeNotReady", key.name);
                self.recorder.event(&*node, EventType::Normal, "NodeNotReady", message);
            }
            self.mark_pods(&key.name).await?;
        }
        self.taint(key, &node).await
    }

    /// How long the node has been silent, and whether it was ready when last looked at.
    fn listen(&self, node: &Node) -> (Duration, bool) {
        let name = meta::name(&node.metadata);
        let lease = self.leases.get(&Key::new("kube-node-lease", name));
        let renewed = lease.and_then(|l| l.spec.as_ref().and_then(|s| s.renew_time.clone()));
        let posted = health::condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        let heartbeat = Some(format!("{renewed:?} {posted:?}"));
        let state = health::ready(node).to_owned();
        let mut health = self.health.lock();
        match health.get_mut(name) {
            None => {
                // A healthy start: what was before us is not held against the node.
                health.insert(name.into(), Heard { at: Instant::now(), heartbeat, ready: state });
                (Duration::ZERO, false)
            }
            Some(heard) => {
                // Our own word that it is silent changes no heartbeat.
                if heard.heartbeat != heartbeat {
                    heard.at = Instant::now();
                    heard.heartbeat = heartbeat;
                }
                let was_ready = std::mem::replace(&mut heard.ready, state) == "True";
                (heard.at.elapsed(), was_ready)
            }
        }
    }

    /// Pods on a node that is not ready serve no one (`MarkPodsNotReady`).
    async fn mark_pods(&self, node: &str) -> Result {
        let on_node = self
            .pods
            .list()
            .into_iter()
            .filter(|pod| pods::node_name(pod) == Some(node) && pods::is_ready(pod));
        for pod in on_node {
            let patch = json!({
                "metadata": {"uid": pod.metadata.uid},
                "status": {"conditions": [{
                    "type": "Ready",
                    "status": "False",
                    "lastTransitionTime": meta::now(),
                }]},
            });
            let api: Api<Pod> = Api::namespaced(self.client.clone(), meta::namespace(&pod.metadata));
            let name = meta::name(&pod.metadata);
            match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    self.recorder.event(&*pod, EventType::Warning, "NodeNotReady", "Node is not ready");
                }
                Err(error) if meta::is_not_found(&error) || meta::is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn taint(&self, key: &Key, node: &Node) -> Result {
        let eviction = self.eviction(key, node);
        let Some(wanted) = health::wanted_taints(node, eviction, &meta::now()) else { return Ok(()) };
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": wanted},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        match api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether the node's pods may be sent away now. Nodes that are down are taken one by one.
    fn eviction(&self, key: &Key, node: &Node) -> Eviction {
        if health::ready(node) == "True" {
            return Eviction::Allowed;
        }
        let all = self.nodes.list();
        let in_trouble = all.iter().filter(|n| health::ready(n) != "True").count();
        if in_trouble >= all.len() {
            return Eviction::Withdrawn;
        }
        let Some(pause) = health::eviction_pause(all.len(), in_trouble) else { return Eviction::Held };
        let key_of_state =
            if health::ready(node) == "False" { health::NOT_READY } else { health::UNREACHABLE };
        if taints::of(node).iter().any(|t| t.effect == taints::NO_EXECUTE && t.key == key_of_state) {
            return Eviction::Held;
        }
        let mut next = self.next_eviction.lock();
        let now = Instant::now();
        if *next > now {
            self.queue.add_after(key.clone(), *next - now);
            return Eviction::Held;
        }
        *next = now + pause;
        Eviction::Allowed
    }
}
