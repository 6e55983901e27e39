//! Has the victims of a preemption go: each is told why in its status and then deleted with its own grace.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{EventType, Key, meta, pods};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::framework::ClusterEvent;
use crate::preemption::{Candidate, DISRUPTION_TARGET, PREEMPTION_BY_SCHEDULER};
use crate::queue::Waiting;
use crate::scheduler::{API_TIMEOUT, Scheduler, may_help_itself};

impl Scheduler {
    /// Makes room for the pod, which is nominated to the candidate's node already, and puts it back into the queue. It
    /// is not in the queue meanwhile, so that it isn't tried, and evicts others, before its victims are seen to go.
    pub(crate) async fn evict(&self, mut waiting: Waiting, moves: u64, candidate: Candidate) {
        let preemptor = waiting.pod.clone();
        self.withdraw_lower(&candidate.node, pods::priority(&preemptor)).await;
        // A victim that is about to go anyway need not be told.
        let victims = candidate.victims.iter().filter(|victim| !pods::is_terminating(&victim.pod));
        let calls = victims.map(|victim| self.evict_one(&preemptor, &victim.pod, &candidate.node));
        let failed = join_all(calls).await.into_iter().any(|outcome| outcome.is_err());
        if failed {
            // Nobody may go now: no event would wake the pod.
            waiting.rejected_by.clear();
        }
        self.preempting.lock().remove(meta::uid(&preemptor.metadata));
        let present = self.pods.get(&Key::of(&*preemptor));
        let Some(present) =
            present.filter(|pod| pod.metadata.uid == preemptor.metadata.uid && self.is_ours(pod))
        else {
            // It may have gone before it was nominated.
            if self.cache.lock().withdraw(meta::uid(&preemptor.metadata)).is_some() {
                self.queue.event(&ClusterEvent::PodGone(preemptor));
            }
            return;
        };
        if may_help_itself(&preemptor, &present) {
            self.queue.add(present);
        } else {
            waiting.pod = present;
            self.queue.failed(waiting, moves);
        }
    }

    /// Pods of lower priority that are nominated to the node look for another.
    async fn withdraw_lower(&self, node: &str, priority: i32) {
        let lower = self.cache.lock().withdraw_lower(node, priority);
        for pod in &lower {
            self.queue.event(&ClusterEvent::PodGone(pod.clone()));
        }
        let cleared = json!({"status": {"nominatedNodeName": null}});
        let calls = lower.iter().map(|pod| self.patch_status(pod, cleared.clone()));
        for (pod, outcome) in lower.iter().zip(join_all(calls).await) {
            if let Err(error) = outcome {
                tracing::warn!(pod = %Key::of(&**pod), error, "cannot withdraw the pod's nomination");
            }
        }
    }

    async fn evict_one(&self, preemptor: &Pod, victim: &Arc<Pod>, node: &str) -> Result<(), ()> {
        match self.try_evict(preemptor, victim).await {
            Ok(true) => {
                let message = format!("Preempted by pod {} on node {node}", meta::uid(&preemptor.metadata));
                self.recorder.event(&**victim, EventType::Normal, "Preempted", message);
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                tracing::warn!(pod = %Key::of(&**victim), error, "cannot preempt the pod");
                Err(())
            }
        }
    }

    /// Whether it was still there.
    async fn try_evict(&self, preemptor: &Pod, victim: &Pod) -> Result<bool, String> {
        let announced = pods::condition(victim, DISRUPTION_TARGET)
            .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(PREEMPTION_BY_SCHEDULER));
        if !announced {
            let scheduler = preemptor.spec.as_ref().and_then(|s| s.scheduler_name.as_deref());
            let message = format!(
                "{}: preempting to accommodate a higher priority pod",
                scheduler.filter(|name| !name.is_empty()).unwrap_or(&self.name)
            );
            let condition = json!({
                "type": DISRUPTION_TARGET,
                "status": "True",
                "reason": PREEMPTION_BY_SCHEDULER,
                "message": message,
                "observedGeneration": victim.metadata.generation,
                "lastProbeTime": null,
                "lastTransitionTime": meta::now(),
            });
            if !self.patch_status(victim, json!({"status": {"conditions": [condition]}})).await? {
                return Ok(false);
            }
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), meta::namespace(&victim.metadata));
        let this_one = Preconditions { uid: victim.metadata.uid.clone(), ..Default::default() };
        let params = DeleteParams { preconditions: Some(this_one), ..Default::default() };
        let call = api.delete(meta::name(&victim.metadata), &params);
        match tokio::time::timeout(API_TIMEOUT, call).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) if meta::is_not_found(&error) || meta::is_conflict(&error) => Ok(false),
            Ok(Err(error)) => Err(meta::message(&error)),
            Err(_) => Err("timed out".into()),
        }
    }

    /// Patches the status of this very pod; whether it was still there.
    pub(crate) async fn patch_status(&self, pod: &Pod, mut patch: serde_json::Value) -> Result<bool, String> {
        patch["metadata"]["uid"] = json!(pod.metadata.uid);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), meta::namespace(&pod.metadata));
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        let call = api.patch_status(meta::name(&pod.metadata), &params, &patch);
        match tokio::time::timeout(API_TIMEOUT, call).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) if meta::is_not_found(&error) || meta::is_conflict(&error) => Ok(false),
            Ok(Err(error)) => Err(meta::message(&error)),
            Err(_) => Err("timed out".into()),
        }
    }
}
