//! Replica sets and replication controllers: so many pods, no more, no fewer.
//!
//! One engine serves both kinds ([`Scaled`]); [`crate::ranking`] says which pods go first, [`status`] what is reported.

pub mod kinds;
pub mod status;

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{Delta, Informer, Key, Selector, WorkQueue, meta, pods, run_workers};
use kube::Api;

use crate::context::{Context, Task};
use crate::error::{Error, Result};
use crate::expectations::Expectations;
use crate::owners::{concerned, owner_of};
use crate::pod_control::{PodControl, claim_all, slow_start, wait_for_availability};
use crate::ranking;
use crate::report::write_status;
pub use kinds::{Failure, Scaled};

/// Most pods that one pass makes or deletes.
const BURST: usize = 500;
const WORKERS: usize = 5;

/// Starts the controller of ReplicaSets.
pub fn start_replica_sets(context: &Context) -> Task {
    start(context, "replicaset-controller", "replicaset-controller", context.informers.replica_sets.clone())
}

/// Starts the controller of ReplicationControllers.
pub fn start_replication_controllers(context: &Context) -> Task {
    let sets = context.informers.replication_controllers.clone();
    start(context, "replicationcontroller-controller", "replication-controller", sets)
}

struct Controller<K> {
    client: kube::Client,
    control: PodControl,
    sets: Arc<Informer<K>>,
    pods: Arc<Informer<Pod>>,
    expectations: Expectations,
    queue: Arc<WorkQueue<Key>>,
}

fn start<K: Scaled>(
    context: &Context,
    name: &'static str,
    account: &'static str,
    sets: Arc<Informer<K>>,
) -> Task {
    let client = context.client(account);
    let controller = Arc::new(Controller {
        control: PodControl::new(client.clone(), context.recorder(account, account)),
        client,
        sets,
        pods: context.informers.pods.clone(),
        expectations: Expectations::default(),
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
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| on_pod.pod_changed(delta));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { controller.sets.synced().await; controller.pods.synced().await } => {}
        }
        let queue = controller.queue.clone();
        run_workers(name, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

impl<K: Scaled> Controller<K> {
    fn pod_changed(&self, delta: &Delta<Pod>) {
        if let Some(set) = owner_of(&self.sets, &delta.object().metadata) {
            let owner = Key::of(&*set);
            // Before anyone is woken: a worker must find it noted.
            self.expectations.observe(&owner, delta);
            if let Some(wait) = wait_for_availability(delta, set.min_ready_seconds()) {
                self.queue.add_after(owner, wait);
            }
        }
        for key in concerned(&self.sets, delta) {
            self.queue.add(key);
        }
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(());
        };
        let may_manage = self.expectations.satisfied(key);
        let selector = set.selector()?;
        let mut found = self.pods.controlled_by(meta::uid(set.meta()));
        found.extend(self.pods.orphans_in(&key.namespace));
        let terminating = found
            .iter()
            .filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod))
            .filter(|pod| meta::is_controlled_by(&pod.metadata, meta::uid(set.meta())))
            .filter(|pod| selector.matches(pod.metadata.labels.as_ref()))
            .count();
        found.retain(|pod| pods::is_active(pod));
        let active = self.claim(&set, &selector, found).await?;
        let failure = if may_manage && set.meta().deletion_timestamp.is_none() {
            self.manage(key, &set, &active).await
        } else {
            None
        };
        let now = meta::now();
        let new = status::compute(&*set, &active, terminating, failure.as_ref(), &now);
        self.report(&set, &new).await?;
        if let Some(failure) = failure {
            return Err(failure.error);
        }
        if new.ready != new.available
            && let Some(next) = status::next_availability(&active, set.min_ready_seconds(), &now)
        {
            self.queue.add_after(key.clone(), next);
        }
        Ok(())
    }

    async fn claim(&self, set: &K, selector: &Selector, found: Vec<Arc<Pod>>) -> Result<Vec<Arc<Pod>>> {
        let namespace = meta::namespace(set.meta());
        let owners: Api<K> = Api::namespaced(self.client.clone(), namespace);
        claim_all(&owners, set, selector, &self.control.api(namespace), found).await
    }

    /// Makes or deletes pods until there are as many as there should be.
    async fn manage(&self, key: &Key, set: &K, active: &[Arc<Pod>]) -> Option<Failure> {
        let wanted = usize::try_from(set.replicas()).unwrap_or(0);
        if active.len() < wanted {
            let count = (wanted - active.len()).min(BURST);
            self.expectations.expect(key, count, HashSet::new());
            let (done, error) = slow_start(count, |_| async {
                match self.control.create(set, &set.template()).await {
                    // Nothing that we could do about that, and the set goes away too.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    outcome => outcome.map(|_| ()),
                }
            })
            .await;
            // What was not made will not be seen.
            for _ in done..count {
                self.expectations.creation_observed(key);
            }
            return error.map(|error| Failure { reason: "FailedCreate", error });
        }
        let count = (active.len() - wanted).min(BURST);
        if count == 0 {
            return None;
        }
        let related = self.related_pods(set);
        let doomed = ranking::to_delete(active, &related, count, &meta::now());
        let keys: HashSet<Key> = doomed.iter().map(|pod| Key::of(&**pod)).collect();
        self.expectations.expect(key, 0, keys);
        let deletions = join_all(doomed.iter().map(|pod| async {
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
        let error = deletions.into_iter().find_map(Result::err)?;
        Some(Failure { reason: "FailedDelete", error })
    }

    /// The active pods of all sets with the same owner (the old and new sets of a deployment): where they are
    /// crowded, pods go first.
    fn related_pods(&self, set: &K) -> Vec<Arc<Pod>> {
        let siblings = match meta::controller_of(set.meta()) {
            Some(owner) => self.sets.controlled_by(&owner.uid),
            None => Vec::new(),
        };
        let own = meta::uid(set.meta());
        let uids = siblings.iter().map(|s| meta::uid(s.meta())).filter(|uid| *uid != own).chain([own]);
        uids.flat_map(|uid| self.pods.controlled_by(uid)).filter(|pod| pods::is_active(pod)).collect()
    }

    /// Writes the status if it has changed.
    async fn report(&self, set: &K, new: &status::Counts) -> Result {
        if !status::differs(set, new) {
            return Ok(());
        }
        let generation = set.meta().generation;
        let api: Api<K> = Api::namespaced(self.client.clone(), meta::namespace(set.meta()));
        write_status(&api, set, |target| target.set_status(new, generation)).await?;
        Ok(())
    }
}
