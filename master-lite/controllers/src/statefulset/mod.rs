//! Stateful sets: pods with names and claims of their own, that come, go and are updated in order.
//!
//! [`plan`] says what is to be done, [`identity`] who a pod is, [`retention`] whose its claims are; `revisions` keeps the
//! history of the template, `pods` writes pods and claims.

pub mod identity;
pub mod plan;
mod pods;
pub mod retention;
mod revisions;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use keelson_client::{Delta, Informer, Key, Recorder, WorkQueue, meta, run_workers};
use kube::{Api, Client};

use crate::context::{Context, Task};
use crate::error::Result;
use crate::expectations::OwnWrites;
use crate::owners::{Owner, concerned, owner_of};
use crate::pod_control::{claim_all, slow_start, wait_for_availability};
use crate::report::write_status;
use identity::{is_member, min_ready_seconds};
use plan::{Pods, Step};
use revisions::History;

const NAME: &str = "statefulset-controller";
const WORKERS: usize = 5;

/// The controller's parts that a pass needs.
struct Controller {
    client: Client,
    recorder: Recorder,
    sets: Arc<Informer<StatefulSet>>,
    revisions: Arc<Informer<ControllerRevision>>,
    pods: Arc<Informer<Pod>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    /// Statuses written that the cache must show before the next pass.
    written: OwnWrites,
    queue: Arc<WorkQueue<Key>>,
}

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        recorder: context.recorder(NAME, NAME),
        sets: context.informers.stateful_sets.clone(),
        revisions: context.informers.revisions.clone(),
        pods: context.informers.pods.clone(),
        claims: context.informers.claims.clone(),
        written: OwnWrites::default(),
        queue: WorkQueue::new(),
    });
    let on_set = controller.clone();
    controller.sets.on_change(move |delta| on_set.queue.add(Key::of(&**delta.object())));
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| on_pod.pod_changed(delta));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.sets.synced().await;
            controller.revisions.synced().await;
            controller.pods.synced().await;
            controller.claims.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move {
                match controller.sync(&key).await {
                    // Nothing can be made in a namespace that goes away; the set goes too.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    outcome => outcome,
                }
            }
        })
        .await;
    })
}

/// A set and what a pass knows of it.
struct Pass<'a> {
    controller: &'a Controller,
    set: &'a StatefulSet,
    history: History,
    pods: Pods,
}

impl Controller {
    fn pod_changed(&self, delta: &Delta<Pod>) {
        if let Some(set) = owner_of(&self.sets, &delta.object().metadata)
            && let Some(wait) = wait_for_availability(delta, min_ready_seconds(&set))
        {
            self.queue.add_after(Key::of(&*set), wait);
        }
        for key in concerned(&self.sets, delta) {
            self.queue.add(key);
        }
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(set) = self.sets.get(key) else {
            self.written.forget(key);
            return Ok(());
        };
        if !self.written.is_seen(key, &*set) {
            // What the cache does not show yet will wake us.
            return Ok(());
        }
        let selector = set.selector()?;
        let history = self.history(&set, &selector).await?;
        let mut found = self.pods.controlled_by(meta::uid(&set.metadata));
        let orphans = self.pods.orphans_in(&key.namespace).into_iter();
        found.extend(orphans.filter(|pod| is_member(&set, pod)));
        let owners: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let pods_api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut pods = claim_all(&owners, &*set, &selector, &pods_api, found).await?;
        pods.retain(|pod| identity::ordinal(pod).is_some());
        let pass = Pass { controller: self, set: &set, pods: Pods::sort(&set, &pods), history };
        let worked = if set.metadata.deletion_timestamp.is_none() { pass.work().await } else { Ok(0) };
        let deleted = worked.as_ref().map_or(0, |deleted| *deleted);
        let now = meta::now();
        let status = plan::status(&set, &pods, &pass.history.names, deleted, &now);
        let reported = self.report(key, &set, &owners, &status).await;
        let cleaned = self.clean_up(&set, &pods, &pass.history).await;
        worked.map(drop).and(reported).and(cleaned)?;
        let wait = min_ready_seconds(&set);
        if wait > 0 && status.ready_replicas.unwrap_or(0) != status.available_replicas.unwrap_or(0) {
            let next = crate::replicaset::status::next_availability(&pods, wait, &now);
            let wait = Duration::from_secs(wait.unsigned_abs().into());
            self.queue.add_after(key.clone(), next.unwrap_or(wait));
        }
        Ok(())
    }

    async fn report(
        &self,
        key: &Key,
        set: &StatefulSet,
        api: &Api<StatefulSet>,
        status: &StatefulSetStatus,
    ) -> Result {
        if set.status.as_ref() == Some(status) {
            return Ok(());
        }
        let written = write_status(api, set, |target| {
            // Conditions are others' and may have changed since.
            let conditions = target.status.take().and_then(|present| present.conditions);
            target.status = Some(StatefulSetStatus { conditions, ..status.clone() });
        })
        .await?;
        if let Some(written) = written {
            self.written.note(key, &written);
        }
        Ok(())
    }
}

impl Pass<'_> {
    /// Makes, deletes and mends pods. How many were deleted for the update.
    async fn work(&self) -> Result<usize> {
        if !self.fill().await? || !self.shrink().await? {
            return Ok(0);
        }
        let doomed = plan::to_update(self.set, &self.pods.places, &self.history.names.update, &meta::now());
        for pod in &doomed {
            self.controller.delete(self.set, pod).await?;
        }
        Ok(doomed.len())
    }

    /// Fills the set's places; whether those behind may be looked at.
    async fn fill(&self) -> Result<bool> {
        let places = &self.pods.places;
        if plan::is_ordered(self.set) {
            for place in places {
                if !self.fill_one(place).await? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        let (_, error) = slow_start(places.len(), |n| async move {
            match places.get(n) {
                Some(place) => self.fill_one(place).await.map(drop),
                None => Ok(()),
            }
        })
        .await;
        error.map_or(Ok(true), Err)
    }

    async fn fill_one(&self, (ordinal, pod): &plan::Place) -> Result<bool> {
        let (controller, set) = (self.controller, self.set);
        let step = plan::step(set, pod.as_deref(), &meta::now());
        let Some(pod) = pod else {
            let history = &self.history;
            let (template, revision) = match plan::is_of_current(set, *ordinal) {
                true => (&history.current, &history.names.current),
                false => (&history.update, &history.names.update),
            };
            let pod = identity::new_pod(set, template, revision, *ordinal);
            if !controller.is_blocked(set, &pod, *ordinal) {
                controller.create(set, &pod, *ordinal).await?;
            }
            return Ok(false);
        };
        if step == Step::Delete {
            controller.delete(set, pod).await?;
            return Ok(false);
        }
        if keelson_client::pods::phase(pod) == "Pending" {
            controller.ensure_claims(set, pod, *ordinal).await?;
            controller.correct_claims(set, pod, *ordinal).await?;
        }
        if step == Step::Wait {
            return Ok(false);
        }
        controller.mend(set, pod, *ordinal).await?;
        Ok(true)
    }

    /// Deletes pods that are too many; whether the update may go on.
    async fn shrink(&self) -> Result<bool> {
        let (controller, set, condemned) = (self.controller, self.set, &self.pods.condemned);
        for pod in condemned {
            let ordinal = identity::ordinal(pod).unwrap_or_default();
            controller.correct_claims(set, pod, ordinal).await?;
        }
        let now = meta::now();
        let unavailable = self.pods.first_unavailable_condemned(set, &now);
        let ordered = plan::is_ordered(set);
        for pod in condemned {
            match plan::may_go(set, pod, unavailable, &now) {
                None => return Ok(false),
                Some(false) => {}
                Some(true) => {
                    controller.delete(set, pod).await?;
                    if ordered {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}
