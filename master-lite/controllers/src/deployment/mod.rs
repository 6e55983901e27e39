//! Deployments: replica sets brought and taken so that a template rolls out as its strategy says.
//!
//! [`math`] holds the arithmetic (surge, fenceposts, proportions), [`revision`] the revisions and annotations,
//! [`status`] conditions and counts. [`sync`] does one pass.

pub mod math;
pub mod revision;
pub mod status;
pub mod sync;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{Delta, Informer, Key, Recorder, WorkQueue, run_workers};

use crate::context::{Context, Task};
use crate::owners::{concerned, owner_of};

const NAME: &str = "deployment-controller";
const WORKERS: usize = 5;

/// The controller's parts that a pass needs.
pub struct Controller {
    pub(crate) client: kube::Client,
    pub(crate) recorder: Recorder,
    pub(crate) deployments: Arc<Informer<Deployment>>,
    pub(crate) sets: Arc<Informer<ReplicaSet>>,
    pub(crate) pods: Arc<Informer<Pod>>,
    pub(crate) queue: Arc<WorkQueue<Key>>,
}

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        recorder: context.recorder(NAME, NAME),
        deployments: context.informers.deployments.clone(),
        sets: context.informers.replica_sets.clone(),
        pods: context.informers.pods.clone(),
        queue: WorkQueue::new(),
    });
    let on_deployment = controller.clone();
    controller.deployments.on_change(move |delta| on_deployment.queue.add(Key::of(&**delta.object())));
    let on_set = controller.clone();
    controller.sets.on_change(move |delta| on_set.set_changed(delta));
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| on_pod.pod_changed(delta));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.deployments.synced().await;
            controller.sets.synced().await;
            controller.pods.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move {
                match controller.sync(&key).await {
                    // Nothing can be made in a namespace that goes away; the deployment goes too.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    outcome => outcome,
                }
            }
        })
        .await;
    })
}

impl Controller {
    fn set_changed(&self, delta: &Delta<ReplicaSet>) {
        for key in concerned(&self.deployments, delta) {
            self.queue.add(key);
        }
    }

    /// A Recreate deployment waits for the last old pod to go.
    fn pod_changed(&self, delta: &Delta<Pod>) {
        let Delta::Deleted(pod) = delta else { return };
        let Some(set) = owner_of(&self.sets, &pod.metadata) else { return };
        let Some(deployment) = owner_of(&self.deployments, &set.metadata) else { return };
        if !math::is_rolling(&deployment) {
            self.queue.add(Key::of(&*deployment));
        }
    }
}
