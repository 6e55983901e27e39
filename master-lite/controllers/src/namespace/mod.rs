//! Empties namespaces that are being deleted, pods first, and then lets them go.

pub mod conditions;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use keelson_client::{Informer, Key, WorkQueue, meta, pods, run_workers};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};

use crate::context::{Context, Task};
use crate::discovery::{Served, discover};
use crate::error::{Error, Result};
use conditions::Remaining;

const NAME: &str = "namespace-controller";
const WORKERS: usize = 5;
/// The finalizer in `spec.finalizers` that is ours.
const FINALIZER: &str = "kubernetes";
/// How long finalizers of others are given before the next look.
const FINALIZER_ESTIMATE: Duration = Duration::from_secs(15);

type Metadata = PartialObjectMeta<DynamicObject>;

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        namespaces: context.informers.namespaces.clone(),
        pods: context.informers.pods.clone(),
        queue: WorkQueue::new(),
    });
    let on_namespace = controller.clone();
    controller.namespaces.on_change(move |delta| {
        if delta.object().metadata.deletion_timestamp.is_some() {
            on_namespace.queue.add(Key::of(&**delta.object()));
        }
    });
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| {
        // The last pod's end is what most deletions wait for.
        if matches!(delta, keelson_client::Delta::Deleted(_)) {
            let key = Key::cluster(meta::namespace(&delta.object().metadata));
            let going = |n: Arc<Namespace>| n.metadata.deletion_timestamp.is_some();
            if on_pod.namespaces.get(&key).is_some_and(going) && on_pod.pods.list_in(&key.name).is_empty() {
                on_pod.queue.add(key);
            }
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! { () = shutdown.cancelled() => return, () = controller.namespaces.synced() => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

struct Controller {
    client: Client,
    namespaces: Arc<Informer<Namespace>>,
    pods: Arc<Informer<Pod>>,
    queue: Arc<WorkQueue<Key>>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let Some(namespace) = api.get_opt(&key.name).await? else { return Ok(()) };
        let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || finalizers.is_empty() {
            return Ok(());
        }
        let mut remaining = Remaining::default();
        self.delete_content(&key.name, &mut remaining).await;
        self.report(&api, namespace, &remaining).await?;
        if let Some(after) = remaining.look_again {
            self.queue.add_after(key.clone(), after);
            return Ok(());
        }
        if let Some(error) = remaining.failures.first() {
            return Err(Error::Pending(error.clone()));
        }
        self.finalize(&api, &key.name).await
    }

    async fn delete_content(&self, namespace: &str, remaining: &mut Remaining) {
        let served = match discover(&self.client).await {
            Ok((served, failures)) => {
                if !failures.is_empty() {
                    remaining.discovery = Some(format!(
                        "Discovery failed for some groups, {} failing: {}",
                        failures.len(),
                        failures.join(", ")
                    ));
                    remaining.failures.extend(failures);
                }
                served
            }
            Err(error) => {
                remaining.discovery = Some(meta::message(&error));
                remaining.failures.push(meta::message(&error));
                return;
            }
        };
        let deletable = served.into_iter().filter(|s| s.namespaced && s.supports(&["delete", "list"]));
        // Pods first (KEP-5080): what protects them, such as policies, goes when they have gone.
        let (first, rest): (Vec<Served>, Vec<Served>) =
            deletable.partition(|s| s.resource.group.is_empty() && s.resource.plural == "pods");
        for batch in [first, rest] {
            let failures = remaining.failures.len();
            for resource in &batch {
                if let Err(error) = self.delete_all(namespace, resource, remaining).await {
                    remaining.failures.push(meta::message(&error));
                }
            }
            // Pods that could not be deleted may be there still.
            if remaining.is_any() || remaining.failures.len() > failures {
                return;
            }
        }
    }

    async fn delete_all(
        &self,
        namespace: &str,
        served: &Served,
        remaining: &mut Remaining,
    ) -> std::result::Result<(), kube::Error> {
        let api: Api<Metadata> = Api::namespaced_with(self.client.clone(), namespace, &served.resource);
        let present = api.list(&ListParams::default()).await?;
        if present.items.is_empty() {
            return Ok(());
        }
        let params = DeleteParams::background();
        let collection = if served.supports(&["deletecollection"]) {
            // The answer's shape is of no interest, only that it is one.
            match api.delete_collection(&params, &ListParams::default()).await {
                Ok(_) | Err(kube::Error::SerdeError(_)) => true,
                Err(error) if meta::is_unsupported(&error) => false,
                Err(error) => return Err(error),
            }
        } else {
            false
        };
        if !collection {
            for object in present.items {
                match api.delete(meta::name(&object.metadata), &params).await {
                    Err(error) if !meta::is_not_found(&error) && !meta::is_unsupported(&error) => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        let left = api.list(&ListParams::default()).await?.items;
        if !left.is_empty() {
            let is_pod = served.resource.group.is_empty() && served.resource.plural == "pods";
            let grace = if is_pod { self.grace(namespace) } else { None };
            let finalizers = left.iter().flat_map(|o| o.metadata.finalizers.iter().flatten().cloned());
            remaining.add(&served.resource.plural, &served.resource.group, left.len(), finalizers);
            remaining.wait(grace.unwrap_or(FINALIZER_ESTIMATE));
        }
        Ok(())
    }

    /// How long the pods that are left may take to end.
    fn grace(&self, namespace: &str) -> Option<Duration> {
        let graces = self.pods.list_in(namespace);
        let longest = graces.iter().filter(|p| !pods::is_terminal(p)).map(|p| {
            p.metadata
                .deletion_grace_period_seconds
                .or_else(|| p.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
                .unwrap_or(0)
        });
        let seconds = u64::try_from(longest.max()?).unwrap_or(0);
        // The pods' end wakes us; this is for when that is missed.
        Some(Duration::from_secs(seconds / 2 + 1))
    }

    async fn report(&self, api: &Api<Namespace>, mut namespace: Namespace, remaining: &Remaining) -> Result {
        let status = namespace.status.get_or_insert_default();
        let mut changed = conditions::update(status, remaining, &meta::now());
        if status.phase.as_deref() != Some("Terminating") {
            status.phase = Some("Terminating".into());
            changed = true;
        }
        if !changed {
            return Ok(());
        }
        let name = meta::name(&namespace.metadata).to_owned();
        match api.replace_status(&name, &PostParams::default(), &namespace).await {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes our finalizer away; if it was the last, the namespace is gone.
    async fn finalize(&self, api: &Api<Namespace>, name: &str) -> Result {
        let Some(mut namespace) = api.get_opt(name).await? else { return Ok(()) };
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|f| f != FINALIZER);
        }
        let outcome: std::result::Result<Namespace, _> =
            api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await;
        match outcome {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}
