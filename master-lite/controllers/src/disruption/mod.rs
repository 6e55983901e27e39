//! PodDisruptionBudgets: how many pods may be evicted now. The API server takes evictions off
//! `disruptionsAllowed` as it allows them; this controller says anew what is allowed as pods come and go.
//!
//! [`budget`] does the arithmetic, [`scale`] finds what controllers want. Beside that, pods that were announced as
//! about to be disrupted and are still there lose the announcement.

pub mod budget;
pub mod scale;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use keelson_client::{Delta, EventType, Informer, Key, Recorder, Selector, WorkQueue, meta, run_workers};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::context::{Context, Task};
use crate::error::{Error, Result};
use budget::Whole;
use scale::Scales;

const NAME: &str = "disruption-controller";
const WORKERS: usize = 1;

/// The controller's parts that a pass needs.
struct Controller {
    client: Client,
    recorder: Recorder,
    budgets: Arc<Informer<PodDisruptionBudget>>,
    pods: Arc<Informer<Pod>>,
    scales: Scales,
    queue: Arc<WorkQueue<Key>>,
    /// Pods whose announced disruption may be stale.
    announced: Arc<WorkQueue<Key>>,
}

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let (client, informers) = (context.client(NAME), &context.informers);
    let controller = Arc::new(Controller {
        recorder: context.recorder(NAME, "controllermanager"),
        budgets: informers.budgets.clone(),
        pods: informers.pods.clone(),
        scales: Scales {
            client: client.clone(),
            deployments: informers.deployments.clone(),
            replica_sets: informers.replica_sets.clone(),
            stateful_sets: informers.stateful_sets.clone(),
            replication_controllers: informers.replication_controllers.clone(),
        },
        client,
        queue: WorkQueue::new(),
        announced: WorkQueue::new(),
    });
    let on_budget = controller.clone();
    controller.budgets.on_change(move |delta| on_budget.queue.add(Key::of(&**delta.object())));
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| on_pod.pod_changed(delta));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.budgets.synced().await;
            controller.pods.synced().await;
            controller.scales.deployments.synced().await;
            controller.scales.replica_sets.synced().await;
            controller.scales.stateful_sets.synced().await;
            controller.scales.replication_controllers.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let (queue, announced) = (controller.queue.clone(), controller.announced.clone());
        let (worker, cleaner) = (controller.clone(), controller);
        let budgets = run_workers(NAME, queue, WORKERS, shutdown.clone(), move |key| {
            let controller = worker.clone();
            async move { controller.sync(&key).await }
        });
        let announced = run_workers(NAME, announced, WORKERS, shutdown, move |key| {
            let controller = cleaner.clone();
            async move { controller.retract(&key).await }
        });
        tokio::join!(budgets, announced);
    })
}

fn selector(budget: &PodDisruptionBudget) -> Result<Selector> {
    Ok(Selector::compile(budget.spec.as_ref().and_then(|s| s.selector.as_ref()))?)
}

impl Controller {
    fn pod_changed(&self, delta: &Delta<Pod>) {
        let pod = delta.object();
        let selecting = |pod: &Pod| {
            let budgets = self.budgets.list_in(meta::namespace(&pod.metadata));
            budgets
                .into_iter()
                .filter(|budget| selector(budget).is_ok_and(|s| s.matches(pod.metadata.labels.as_ref())))
                .collect::<Vec<_>>()
        };
        let budgets = selecting(pod);
        let labels_changed = delta.old().is_none_or(|old| old.metadata.labels != pod.metadata.labels);
        if let [first, _, ..] = &budgets[..]
            && labels_changed
        {
            let (namespace, name) = (meta::namespace(&pod.metadata), meta::name(&pod.metadata));
            let message = format!(
                "Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.  Chose {:?} arbitrarily.",
                meta::name(&first.metadata)
            );
            self.recorder.event(&**pod, EventType::Warning, "MultiplePodDisruptionBudgets", message);
        }
        let former = delta.old().filter(|_| labels_changed).map(|old| selecting(old)).unwrap_or_default();
        for budget in budgets.iter().chain(&former) {
            self.queue.add(Key::of(&**budget));
        }
        if !matches!(delta, Delta::Deleted(_))
            && let Some(left) = budget::stale_after(pod, &meta::now())
        {
            self.announced.add_after(Key::of(&**pod), left);
        }
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(cached) = self.budgets.get(key) else { return Ok(()) };
        let outcome = self.try_sync(key, &cached).await;
        match outcome {
            // Someone else has written: what they wrote wakes us.
            Err(Error::Api(error)) if meta::is_conflict(&error) => Err(error.into()),
            Err(error) => {
                let status = budget::failed(&cached, &error.to_string(), &meta::now());
                self.write(key, &cached, status).await
            }
            Ok(()) => Ok(()),
        }
    }

    async fn try_sync(&self, key: &Key, cached: &PodDisruptionBudget) -> Result {
        let event = |kind, reason: &str, message: String| self.recorder.event(cached, kind, reason, message);
        let selector = selector(cached).inspect_err(|error| {
            event(EventType::Warning, "NoPods", format!("Failed to get pods: {error}"));
        })?;
        let mut pods = self.pods.list_in(&key.namespace);
        pods.retain(|pod| selector.matches(pod.metadata.labels.as_ref()));
        if pods.is_empty() {
            event(EventType::Normal, "NoPods", "No matching pods found".into());
        }
        let expected = match budget::whole(cached) {
            Whole::Nothing => 0,
            Whole::Pods => i32::try_from(pods.len()).unwrap_or(i32::MAX),
            Whole::Scale => {
                let total = self.scales.total(&pods).await.inspect_err(|error| {
                    let message = format!("Failed to calculate the number of expected pods: {error}");
                    event(EventType::Warning, "CalculateExpectedPodCountFailed", message);
                })?;
                if total.has_unmanaged {
                    let of = cached.spec.as_ref().and_then(|s| s.selector.as_ref());
                    let of = serde_json::to_string(&of).unwrap_or_default();
                    let message = format!(
                        "Pods selected by this PodDisruptionBudget (selector: {of}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
                    );
                    event(EventType::Warning, "UnmanagedPods", message);
                }
                total.wanted
            }
        };
        let now = meta::now();
        let disrupted = budget::disrupted(cached, &pods, &now);
        for name in &disrupted.spared {
            if let Some(pod) = self.pods.get(&Key::new(&key.namespace, name)) {
                let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
                self.recorder.event(&*pod, EventType::Warning, "NotDeleted", message);
            }
        }
        let status = budget::status(cached, &pods, expected, &disrupted.pending, &now);
        self.write(key, cached, status).await?;
        if let Some(recheck) = disrupted.recheck {
            self.queue.add_after(key.clone(), recheck);
        }
        Ok(())
    }

    async fn write(
        &self,
        key: &Key,
        cached: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result {
        if cached.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.namespace);
        let target = PodDisruptionBudget { status: Some(status), ..cached.clone() };
        // Not onto a newer version: an eviction may just have been taken off there.
        match api.replace_status(&key.name, &PostParams::default(), &target).await {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes back the announcement of a disruption that has not come.
    async fn retract(&self, key: &Key) -> Result {
        let now = meta::now();
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        match budget::stale_after(&pod, &now) {
            None => return Ok(()),
            Some(left) if !left.is_zero() => {
                self.announced.add_after(key.clone(), left);
                return Ok(());
            }
            Some(_) => {}
        }
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "False",
                "reason": null,
                "message": null,
                "observedGeneration": pod.metadata.generation,
                "lastTransitionTime": now,
            }]},
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}
