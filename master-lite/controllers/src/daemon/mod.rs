//! Daemon sets: a pod on each node that will have it.
//!
//! [`placement`] says which nodes these are, [`plan`] which pods come and go, [`revisions`] keeps the history of the
//! template, [`status`] counts. The scheduler binds the pods: each requires its node by name.

pub mod placement;
pub mod plan;
pub mod revisions;
pub mod status;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::{
    Delta, EventType, Informer, Key, Recorder, Selector, WorkQueue, meta, pods, run_workers, taints,
};
use kube::Api;

use crate::backoff::Backoff;
use crate::context::{Context, Task};
use crate::error::{Error, Result};
use crate::expectations::Expectations;
use crate::owners::{Owner, concerned, owner_of};
use crate::pod_control::{PodControl, claim_all, slow_start, wait_for_availability};
use crate::report::write_status;
use placement::{HASH_LABEL, Placement};
use plan::{ByNode, Plan, Verdicts};

const NAME: &str = "daemonset-controller";
const ACCOUNT: &str = "daemon-set-controller";
const WORKERS: usize = 2;
/// Most pods that one step makes, and most that it deletes.
const BURST: usize = 250;
/// Delays between attempts to replace the failed pods of one node.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15 * 60));

/// The controller's parts that a pass needs.
pub struct Controller {
    client: kube::Client,
    recorder: Recorder,
    control: PodControl,
    sets: Arc<Informer<DaemonSet>>,
    revisions: Arc<Informer<ControllerRevision>>,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    expectations: Expectations,
    retries: Backoff<String>,
    queue: Arc<WorkQueue<Key>>,
}

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let (client, recorder) = (context.client(ACCOUNT), context.recorder(ACCOUNT, NAME));
    let controller = Arc::new(Controller {
        control: PodControl::new(client.clone(), recorder.clone()),
        client,
        recorder,
        sets: context.informers.daemon_sets.clone(),
        revisions: context.informers.revisions.clone(),
        pods: context.informers.pods.clone(),
        nodes: context.informers.nodes.clone(),
        expectations: Expectations::default(),
        retries: Backoff::new(RETRY.0, RETRY.1),
        queue: WorkQueue::new(),
    });
    let on_set = controller.clone();
    controller.sets.on_change(move |delta| {
        let key = Key::of(&**delta.object());
        if matches!(delta, Delta::Deleted(_)) {
            // One that is made anew under the name starts afresh.
            on_set.expectations.forget(&key);
        }
        on_set.queue.add(key);
    });
    let on_revision = controller.clone();
    controller.revisions.on_change(move |delta| {
        // A new revision of a set is its own work.
        let is_own = matches!(delta, Delta::Added(new) if meta::controller_of(&new.metadata).is_some());
        if !is_own {
            concerned(&on_revision.sets, delta).into_iter().for_each(|key| on_revision.queue.add(key));
        }
    });
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| on_pod.pod_changed(delta));
    let on_node = controller.clone();
    controller.nodes.on_change(move |delta| on_node.node_changed(delta));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.sets.synced().await;
            controller.revisions.synced().await;
            controller.pods.synced().await;
            controller.nodes.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

/// A daemon set and what a pass knows of it.
pub(crate) struct Subject {
    pub(crate) key: Key,
    pub(crate) set: Arc<DaemonSet>,
    pub(crate) selector: Selector,
}

impl Controller {
    fn pod_changed(&self, delta: &Delta<Pod>) {
        if let Some(set) = owner_of(&self.sets, &delta.object().metadata) {
            let owner = Key::of(&*set);
            // Before anyone is woken: a worker must find it noted.
            self.expectations.observe(&owner, delta);
            let wait = set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
            if let Some(wait) = wait_for_availability(delta, wait) {
                self.queue.add_after(owner, wait);
            }
        }
        for key in concerned(&self.sets, delta) {
            self.queue.add(key);
        }
    }

    /// Wakes the sets to which the node means something else than before.
    fn node_changed(&self, delta: &Delta<Node>) {
        let node = delta.object();
        let same =
            |old: &Node| old.metadata.labels == node.metadata.labels && taints::of(old) == taints::of(node);
        // Most updates are heartbeats.
        if delta.old().is_some_and(|old| same(old)) {
            return;
        }
        for set in self.sets.list() {
            let placement = Placement::new(&set);
            let now = placement.verdict(node);
            let matters = match delta {
                Delta::Updated { old, .. } => placement.verdict(old) != now,
                _ => now.run,
            };
            if matters {
                self.queue.add(Key::of(&*set));
            }
        }
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(());
        };
        if set.spec.as_ref().is_some_and(|s| s.selector == LabelSelector::default()) {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&*set, EventType::Warning, "SelectingAll", message);
            return Ok(());
        }
        // What a set that goes away still has nobody knows: its collector is at work.
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let subject = Subject { key: key.clone(), selector: set.selector()?, set };
        let history = self.history(&subject).await?;
        let hash = meta::label(&history.current.metadata, HASH_LABEL).unwrap_or_default().to_owned();
        let placement = Placement::new(&subject.set);
        let nodes: Verdicts = self
            .nodes
            .list()
            .iter()
            .map(|node| (meta::name(&node.metadata).to_owned(), placement.verdict(node)))
            .collect();
        if !self.expectations.satisfied(key) {
            // The generation has not been dealt with.
            return self.report(&subject, &nodes, &hash, false).await;
        }
        let updated = self.update(&subject, &nodes, &hash, &history.old).await;
        let reported = self.report(&subject, &nodes, &hash, true).await;
        updated.and(reported)
    }

    async fn update(
        &self,
        subject: &Subject,
        nodes: &Verdicts,
        hash: &str,
        old: &[Arc<ControllerRevision>],
    ) -> Result {
        let set = &*subject.set;
        let by_node = by_node(self.claim(subject).await?, false);
        let plan =
            plan::manage(set, nodes, &by_node, hash, &meta::now(), |node| self.may_retry(subject, node));
        for pod in &plan.ended {
            let node = placement::target_node(pod).unwrap_or_default();
            let (kind, reason, what, verb) = match pods::phase(pod) {
                "Failed" => (EventType::Warning, "FailedDaemonPod", "failed", "kill"),
                _ => (EventType::Normal, "SucceededDaemonPod", "succeeded", "delete"),
            };
            let message =
                format!("Found {what} daemon pod {} on node {node}, will try to {verb} it", Key::of(&**pod));
            self.recorder.event(set, kind, reason, message);
        }
        self.carry_out(subject, plan, hash).await?;
        let strategy = set.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.type_.as_deref());
        if self.expectations.satisfied(&subject.key) && strategy == Some("RollingUpdate") {
            let plan = plan::roll(set, nodes, &by_node, hash, &meta::now());
            self.carry_out(subject, plan, hash).await?;
        }
        self.clean_up(subject, old).await
    }

    /// Whether failed pods of a node may be replaced now; if not, the set is looked at again when they may.
    fn may_retry(&self, subject: &Subject, node: &str) -> bool {
        let observed = subject.set.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        let key = format!("{}/{observed}/{node}", meta::uid(&subject.set.metadata));
        match self.retries.step(key) {
            Ok(()) => true,
            Err(left) => {
                self.queue.add_after(subject.key.clone(), left);
                false
            }
        }
    }

    pub(crate) async fn claim(&self, subject: &Subject) -> Result<Vec<Arc<Pod>>> {
        let mut found = self.pods.controlled_by(meta::uid(&subject.set.metadata));
        found.extend(self.pods.orphans_in(&subject.key.namespace));
        let owners: Api<DaemonSet> = self.sets_in(&subject.key.namespace);
        let pods = self.control.api(&subject.key.namespace);
        claim_all(&owners, &subject.set, &subject.selector, &pods, found).await
    }

    pub(crate) fn sets_in(&self, namespace: &str) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn carry_out(&self, subject: &Subject, plan: Plan, hash: &str) -> Result {
        let (key, set) = (&subject.key, &*subject.set);
        let create = &plan.create[..plan.create.len().min(BURST)];
        let delete = &plan.delete[..plan.delete.len().min(BURST)];
        if create.is_empty() && delete.is_empty() {
            return Ok(());
        }
        let keys: HashSet<Key> = delete.iter().map(|pod| Key::of(&**pod)).collect();
        self.expectations.expect(key, create.len(), keys);
        let template = placement::pod_template(set, hash);
        let (done, error) = slow_start(create.len(), |n| {
            let mut template = template.clone();
            async move {
                if let Some(node) = create.get(n) {
                    placement::pin(&mut template, node);
                }
                match self.control.create(set, &template).await {
                    // Nothing that we could do about that, and the set goes away too.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    outcome => outcome.map(drop),
                }
            }
        })
        .await;
        // What was not made will not be seen.
        for _ in done..create.len() {
            self.expectations.creation_observed(key);
        }
        let deletions = join_all(delete.iter().map(|pod| async {
            let outcome = self.control.delete(set, pod).await;
            if outcome.is_err() {
                self.expectations.deletion_observed(key, &Key::of(&**pod));
            }
            match outcome {
                Err(Error::Api(error)) if meta::is_not_found(&error) => Ok(()),
                outcome => outcome,
            }
        }))
        .await;
        error.into_iter().map(Err).chain(deletions).collect()
    }

    async fn report(&self, subject: &Subject, nodes: &Verdicts, hash: &str, observed: bool) -> Result {
        let set = &*subject.set;
        let by_node = by_node(self.claim(subject).await?, false);
        let status = status::compute(set, nodes, &by_node, hash, observed, &meta::now());
        if set.status.as_ref() != Some(&status) {
            let api = self.sets_in(&subject.key.namespace);
            write_status(&api, set, |target| {
                // What is not counted may have changed since.
                let present = target.status.take().unwrap_or_default();
                target.status = Some(k8s_openapi::api::apps::v1::DaemonSetStatus {
                    conditions: present.conditions,
                    collision_count: present.collision_count,
                    ..status.clone()
                });
            })
            .await?;
        }
        // A last resort against clocks that differ.
        let wait = set.spec.as_ref().and_then(|s| u64::try_from(s.min_ready_seconds?).ok()).unwrap_or(0);
        if wait > 0 && status.number_ready != status.number_available.unwrap_or(0) {
            self.queue.add_after(subject.key.clone(), Duration::from_secs(wait));
        }
        Ok(())
    }
}

/// The pods by node; those that have ended and are being deleted concern only the history (`with_going`).
pub(crate) fn by_node(pods: Vec<Arc<Pod>>, with_going: bool) -> ByNode {
    let mut by_node = ByNode::new();
    for pod in pods {
        let going = pods::is_terminal(&pod) && pods::is_terminating(&pod);
        if let Some(node) = placement::target_node(&pod).filter(|_| with_going || !going) {
            let node = node.to_owned();
            by_node.entry(node).or_default().push(pod);
        }
    }
    by_node
}
