//! The loop: informers fill cache and queue, one task decides, bindings run beside it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use keelson_client::{
    Delta, EventType, Informer, Key, LeaderConfig, Recorder, meta, pods, run_as_leader, taints, trim,
};
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::framework::{ClusterEvent, FitError};
use crate::node_info::{PodInfo, Snapshot};
use crate::preemption::{Candidate, Preemption, preempt};
use crate::queue::{SchedulingQueue, Waiting};
use crate::schedule;

/// Longest that one call of the API may take.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Pods with this `schedulerName` are ours.
    pub scheduler_name: String,
    /// Be elected first; `None` when there is but one master.
    pub leader_election: Option<LeaderConfig>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig { scheduler_name: "default-scheduler".into(), leader_election: None }
    }
}

/// Runs the scheduler until `shutdown`. `client` should act as `system:kube-scheduler`. With leader election
/// it takes part in the next election when it has lost one.
pub async fn run(client: kube::Client, config: SchedulerConfig, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match config.leader_election.clone() {
            None => schedule_pods(client.clone(), &config, shutdown.clone()).await,
            Some(lease) => {
                let term = |term| schedule_pods(client.clone(), &config, term);
                if let Err(error) = run_as_leader(client.clone(), lease, shutdown.clone(), term).await {
                    tracing::warn!(%error, "the scheduler stopped leading");
                }
            }
        }
    }
}

pub(crate) struct Scheduler {
    pub(crate) client: kube::Client,
    pub(crate) name: String,
    pub(crate) recorder: Recorder,
    pub(crate) cache: Mutex<Cache>,
    pub(crate) queue: SchedulingQueue,
    pub(crate) pods: Arc<Informer<Pod>>,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    /// Uids of pods whose victims are being told to go.
    pub(crate) preempting: Mutex<HashSet<String>>,
}

/// What to say of the node that a pod is nominated to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Nominated {
    /// Nothing.
    AsBefore,
    /// It is this one.
    To(String),
    /// There is none.
    Nowhere,
}

async fn schedule_pods(client: kube::Client, config: &SchedulerConfig, shutdown: CancellationToken) {
    let scheduler = Arc::new(Scheduler {
        recorder: Recorder::new(client.clone(), "default-scheduler"),
        client: client.clone(),
        name: config.scheduler_name.clone(),
        cache: Mutex::default(),
        queue: SchedulingQueue::default(),
        pods: Informer::with_trim(trim::pod),
        budgets: Informer::new(),
        preempting: Mutex::default(),
    });
    let (nodes, namespaces) = (Informer::<Node>::new(), Informer::<Namespace>::new());
    let on_pod = scheduler.clone();
    scheduler.pods.on_change(move |delta| on_pod.pod_changed(delta));
    let on_node = scheduler.clone();
    nodes.on_change(move |delta| on_node.node_changed(delta));
    let on_namespace = scheduler.clone();
    namespaces.on_change(move |delta| on_namespace.namespace_changed(delta));

    let mut watches = JoinSet::new();
    let list = watcher::Config::default().any_semantic();
    watches.spawn(nodes.clone().run(Api::all(client.clone()), list.clone(), shutdown.clone()));
    watches.spawn(namespaces.clone().run(Api::all(client.clone()), list.clone(), shutdown.clone()));
    let budgets = scheduler.budgets.clone();
    watches.spawn(budgets.run(Api::all(client.clone()), list.clone(), shutdown.clone()));
    watches.spawn(scheduler.pods.clone().run(Api::all(client), list, shutdown.clone()));
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = async {
            nodes.synced().await;
            namespaces.synced().await;
            scheduler.budgets.synced().await;
            scheduler.pods.synced().await;
            tracing::info!("scheduler started");
            scheduler.clone().work().await;
        } => {}
    }
    scheduler.queue.close();
    watches.shutdown().await;
}

impl Scheduler {
    pub(crate) fn is_ours(&self, pod: &Pod) -> bool {
        let name = pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or_default();
        // An absent name means the default scheduler.
        (name == self.name || (name.is_empty() && self.name == "default-scheduler"))
            && pods::node_name(pod).is_none()
            && pods::is_active(pod)
    }

    fn pod_changed(&self, delta: &Delta<Pod>) {
        let pod = delta.object();
        let uid = meta::uid(&pod.metadata);
        if matches!(delta, Delta::Deleted(_)) {
            self.queue.remove(uid);
            let held = {
                let mut cache = self.cache.lock();
                let nominated = cache.withdraw(uid).is_some();
                cache.remove_pod(uid) || nominated
            };
            if held {
                self.queue.event(&ClusterEvent::PodGone(pod.clone()));
            }
            return;
        }
        self.follow_nomination(delta);
        if pods::node_name(pod).is_some() {
            self.cache.lock().set_pod(pod);
            self.queue.remove(uid);
            if let Some(event) = placed_pod_event(delta.old().map(|old| &**old), pod) {
                self.queue.event(&event);
            }
        } else if !self.is_ours(pod) {
            self.queue.remove(uid);
        } else if !gates(pod).is_empty() {
            // The API server reports it as SchedulingGated; it enters the queue when the last gate goes.
        } else if self.cache.lock().is_placed(uid) {
            // Decided, the binding is under way: what comes are echoes of our own writes.
        } else {
            match delta.old() {
                // Our own status writes must not wake the pod: that would be a busy loop.
                Some(old) if !may_help_itself(old, pod) => self.queue.refresh(pod.clone()),
                _ => self.queue.add(pod.clone()),
            }
        }
    }

    /// Room that was kept for the pod may be free now.
    fn follow_nomination(&self, delta: &Delta<Pod>) {
        let pod = delta.object();
        let mut cache = self.cache.lock();
        let uid = meta::uid(&pod.metadata);
        let freed = if self.is_ours(pod) && !cache.is_placed(uid) {
            cache.follow_nomination(delta.old().map(|old| &**old), pod)
        } else {
            // Its place is taken, unless it is about to go.
            cache.withdraw(uid).is_some() && pods::node_name(pod).is_none()
        };
        drop(cache);
        if freed {
            self.queue.event(&ClusterEvent::PodGone(pod.clone()));
        }
    }

    fn node_changed(&self, delta: &Delta<Node>) {
        match delta {
            Delta::Deleted(node) => self.cache.lock().remove_node(meta::name(&node.metadata)),
            Delta::Added(new) => {
                self.cache.lock().set_node(new.clone());
                self.queue.event(&ClusterEvent::Node { old: None, new: new.clone() });
            }
            Delta::Updated { old, new } => {
                self.cache.lock().set_node(new.clone());
                // Most updates are heartbeats.
                if node_matters(old, new) {
                    self.queue.event(&ClusterEvent::Node { old: Some(old.clone()), new: new.clone() });
                }
            }
        }
    }

    fn namespace_changed(&self, delta: &Delta<Namespace>) {
        let mut cache = self.cache.lock();
        match delta {
            Delta::Deleted(namespace) => cache.remove_namespace(meta::name(&namespace.metadata)),
            other => cache.set_namespace(other.object()),
        }
    }

    async fn work(self: Arc<Self>) {
        while let Some((mut waiting, moves)) = self.queue.next().await {
            // The queue may hold a version that is a little old, or a pod that is gone.
            let Some(pod) = self.pods.get(&Key::of(&*waiting.pod)) else { continue };
            let uid = meta::uid(&pod.metadata);
            // One that is preempting comes back to the queue when its victims have been told.
            let decided = self.cache.lock().is_placed(uid) || self.preempting.lock().contains(uid);
            if pod.metadata.uid != waiting.pod.metadata.uid || !self.is_ours(&pod) || decided {
                continue;
            }
            waiting.pod = pod;
            self.clone().attempt(waiting, moves);
        }
    }

    fn attempt(self: Arc<Self>, mut waiting: Waiting, moves: u64) {
        let info = Arc::new(PodInfo::new(waiting.pod.clone()));
        let mut cache = self.cache.lock();
        let snapshot = cache.snapshot();
        let decision = schedule(&info, &snapshot).map(|node| node.name().to_owned());
        match decision {
            Ok(node) => {
                // Or the node would be copied.
                drop(snapshot);
                cache.assume(info.clone(), &node);
                let withdrawn = cache.withdraw(info.uid());
                drop(cache);
                if withdrawn.is_some_and(|kept| kept != node) {
                    self.queue.event(&ClusterEvent::PodGone(waiting.pod.clone()));
                }
                tokio::spawn(async move { self.bind(waiting, node).await });
            }
            Err(error) => {
                drop(cache);
                waiting.rejected_by = error.plugins.clone();
                self.make_room(waiting, moves, &info, error, &snapshot);
            }
        }
    }

    /// The pod fits nowhere: others are evicted for it if that helps, and it waits.
    fn make_room(
        self: Arc<Self>,
        waiting: Waiting,
        moves: u64,
        info: &Arc<PodInfo>,
        mut error: FitError,
        snapshot: &Snapshot,
    ) {
        let pod = waiting.pod.clone();
        let (mut evict, mut nominated): (Option<Candidate>, _) = (None, Nominated::Nowhere);
        // Without nodes there is nobody to evict.
        if error.nodes > 0 {
            match preempt(info, snapshot, &error, &self.budgets.list(), &meta::now()) {
                Preemption::Evict(candidate) => {
                    nominated = Nominated::To(candidate.node.clone());
                    evict = Some(candidate);
                }
                Preemption::NoCandidate(why) => error.preemption = Some(format!("preemption: {why}")),
                Preemption::NotEligible(why) => {
                    error.preemption = Some(format!("preemption: {why}"));
                    nominated = Nominated::AsBefore;
                }
            }
        }
        match &nominated {
            Nominated::To(node) => self.cache.lock().nominate(info.clone(), node),
            Nominated::Nowhere if self.cache.lock().withdraw(info.uid()).is_some() => {
                self.queue.event(&ClusterEvent::PodGone(pod.clone()));
            }
            Nominated::Nowhere | Nominated::AsBefore => {}
        }
        let message = error.to_string();
        self.recorder.event(&*pod, EventType::Warning, "FailedScheduling", message.clone());
        match evict {
            Some(candidate) => {
                self.preempting.lock().insert(info.uid().to_owned());
                let scheduler = self.clone();
                tokio::spawn(async move { scheduler.evict(waiting, moves, candidate).await });
            }
            None => self.queue.failed(waiting, moves),
        }
        tokio::spawn(async move { self.report(&pod, "Unschedulable", &message, &nominated).await });
    }

    async fn bind(&self, mut waiting: Waiting, node: String) {
        let key = Key::of(&*waiting.pod);
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                // The API server refuses the binding if another pod has the name by now.
                uid: waiting.pod.metadata.uid.clone(),
                ..Default::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.clone()),
                ..Default::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PostParams::default();
        let call = api.create_subresource::<Binding, Status>("binding", &key.name, &params, &binding);
        let error = match tokio::time::timeout(API_TIMEOUT, call).await {
            Ok(Ok(_)) => {
                let message = format!("Successfully assigned {key} to {node}");
                return self.recorder.event(&*waiting.pod, EventType::Normal, "Scheduled", message);
            }
            Ok(Err(error)) => meta::message(&error),
            Err(_) => "timed out".into(),
        };
        // The pod may be gone, or the binding may have worked although the answer was lost: then the informer has
        // put it in its place, or will.
        let present = self.pods.get(&key).filter(|pod| pod.metadata.uid == waiting.pod.metadata.uid);
        let Some(present) = present.filter(|pod| pods::node_name(pod).is_none()) else { return };
        self.cache.lock().remove_pod(meta::uid(&present.metadata));
        let message = format!("binding rejected: running Bind plugin \"DefaultBinder\": {error}");
        self.recorder.event(&*present, EventType::Warning, "FailedScheduling", message.clone());
        waiting.pod = present.clone();
        // No plugin rejected it, so it is tried again after its back-off.
        waiting.rejected_by.clear();
        self.queue.failed(waiting, 0);
        self.queue.event(&ClusterEvent::PodGone(present.clone()));
        self.report(&present, "SchedulerError", &message, &Nominated::Nowhere).await;
    }

    /// Writes the pod's `PodScheduled` condition and nomination, if that changes them.
    async fn report(&self, pod: &Pod, reason: &str, message: &str, nominated: &Nominated) {
        let known = pods::condition(pod, "PodScheduled");
        let nominated = match nominated {
            Nominated::AsBefore => pods::nominated_node(pod),
            Nominated::To(node) => Some(node.as_str()),
            Nominated::Nowhere => None,
        };
        if known.is_some_and(|known| is_same(known, reason, message))
            && nominated == pods::nominated_node(pod)
        {
            return;
        }
        let transition = known
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or_else(meta::now);
        let mut patch = json!({
            "status": {"conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": reason,
                "message": message,
                "observedGeneration": pod.metadata.generation,
                "lastProbeTime": null,
                "lastTransitionTime": transition,
            }]},
        });
        if nominated != pods::nominated_node(pod) {
            patch["status"]["nominatedNodeName"] = json!(nominated);
        }
        if let Err(error) = self.patch_status(pod, patch).await {
            tracing::warn!(pod = %Key::of(pod), error, "cannot report the pod's state");
        }
    }
}

fn is_same(condition: &PodCondition, reason: &str, message: &str) -> bool {
    condition.status == "False"
        && condition.reason.as_deref() == Some(reason)
        && condition.message.as_deref() == Some(message)
}

fn gates(pod: &Pod) -> &[k8s_openapi::api::core::v1::PodSchedulingGate] {
    pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_deref()).unwrap_or_default()
}

/// Whether a change of a waiting pod may make it fit: anything but its status.
pub(crate) fn may_help_itself(old: &Pod, new: &Pod) -> bool {
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.annotations != new.metadata.annotations
}

/// What the change of a placed pod means for those that wait.
fn placed_pod_event(old: Option<&Pod>, new: &Arc<Pod>) -> Option<ClusterEvent> {
    let Some(old) = old.filter(|old| pods::node_name(old).is_some()) else {
        return Some(ClusterEvent::PodPlaced(new.clone()));
    };
    let ended = pods::is_terminal(new) && !pods::is_terminal(old);
    if ended || pods::requests(old) != pods::requests(new) {
        return Some(ClusterEvent::PodGone(new.clone()));
    }
    // A terminating pod holds its resources until it is gone, but spread constraints no longer count it.
    if pods::is_terminating(new) && !pods::is_terminating(old) {
        return Some(ClusterEvent::PodLeaving(new.clone()));
    }
    (old.metadata.labels != new.metadata.labels).then(|| ClusterEvent::PodPlaced(new.clone()))
}

/// Whether a node's change concerns scheduling.
fn node_matters(old: &Node, new: &Node) -> bool {
    let cordoned = |n: &Node| n.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
    old.metadata.labels != new.metadata.labels
        || cordoned(old) != cordoned(new)
        || taints::of(old) != taints::of(new)
        || allocatable(old) != allocatable(new)
}
