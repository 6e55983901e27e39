//! Measures what the objects of a namespace use of its quotas (`pkg/controller/resourcequota`).
//!
//! Admission adds to `status.used` what a change will cost; this controller sets it right: for a new quota, when
//! objects go or stop to cost something, a while after each charge (the change may have failed after it), and from
//! time to time. Objects are listed when a quota is measured; only quotas and the resources that one of them
//! limits are watched.

mod monitor;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, Service};
use keelson_api::meta::GroupResource;
use keelson_api::quota::{self, Amounts, Evaluator};
use keelson_client::{Delta, Informer, Key, WorkQueue, meta, run_workers};
use kube::Client;
use kube::core::ApiResource;
use serde_json::Value;

use crate::context::{Context, Task};
use crate::error::{Error, Result};
use monitor::Monitor;

const NAME: &str = "resourcequota-controller";
const WORKERS: usize = 5;
/// Objects mostly go in groups: those that go within this time are one reason to measure.
const GATHER: Duration = Duration::from_millis(200);
/// How long after a charge its object is certainly there, or never will be.
const SETTLE: Duration = Duration::from_secs(5);
/// Upstream's `--resource-quota-sync-period`.
const RESYNC: Duration = Duration::from_secs(300);

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let informers = &context.informers;
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        quotas: informers.resource_quotas.clone(),
        queue: WorkQueue::new(),
        monitor: Monitor::new(context.client(NAME)),
    });
    let on_quota = controller.clone();
    controller.quotas.on_change(move |delta| on_quota.quota_changed(delta));
    let on_pod = controller.clone();
    informers.pods.on_change(move |delta| {
        if pod_matters(delta) {
            on_pod.replenish(&GroupResource::new("", "pods"), meta::namespace(&delta.object().metadata));
        }
    });
    let on_service = controller.clone();
    informers.services.on_change(move |delta| {
        if service_matters(delta) {
            let namespace = meta::namespace(&delta.object().metadata);
            on_service.replenish(&GroupResource::new("", "services"), namespace);
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! { () = shutdown.cancelled() => return, () = controller.quotas.synced() => {} }
        let queue = controller.queue.clone();
        let syncing = controller.clone();
        let work = run_workers(NAME, queue, WORKERS, shutdown.clone(), move |key| {
            let controller = syncing.clone();
            async move { controller.sync(&key).await }
        });
        let changes = controller.clone();
        let watch = controller.monitor.run(shutdown.clone(), move |resource, namespace| {
            changes.replenish(resource, namespace);
        });
        let resync = async {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(RESYNC) => {}
                }
                for quota in controller.quotas.list() {
                    controller.queue.add(Key::of(&*quota));
                }
            }
        };
        tokio::join!(work, watch, resync);
    })
}

struct Controller {
    client: Client,
    quotas: Arc<Informer<ResourceQuota>>,
    queue: Arc<WorkQueue<Key>>,
    monitor: Monitor,
}

fn limits(quota: &ResourceQuota) -> impl Iterator<Item = &str> {
    quota.spec.iter().flat_map(|spec| spec.hard.iter().flatten()).map(|(name, _)| name.as_str())
}

impl Controller {
    fn quota_changed(&self, delta: &Delta<ResourceQuota>) {
        let quota = delta.object();
        let key = Key::of(&**quota);
        match delta {
            Delta::Added(_) => self.queue.add(key),
            Delta::Updated { old, new } if old.spec != new.spec => self.queue.add(key),
            Delta::Updated { old, new } if old.status != new.status => self.queue.add_after(key, SETTLE),
            Delta::Updated { .. } => {}
            Delta::Deleted(_) => self.queue.forget(&key),
        }
        let quotas = self.quotas.list();
        let tracked = Evaluator::tracking(quotas.iter().flat_map(|quota| limits(quota)));
        self.monitor.watch_only(tracked.iter().map(Evaluator::resource));
    }

    /// Some objects of a resource are gone, or cost something else.
    fn replenish(&self, resource: &GroupResource, namespace: &str) {
        let Some(evaluator) = Evaluator::of(resource) else { return };
        for quota in self.quotas.list_in(namespace) {
            if limits(&quota).any(|name| evaluator.measures(name)) {
                self.queue.add_after(Key::of(&*quota), GATHER);
            }
        }
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(quota) = self.quotas.get(key) else { return Ok(()) };
        let mut quota = serde_json::to_value(&*quota).map_err(kube::Error::SerdeError)?;
        let mut measured = Amounts::new();
        let mut failed = None;
        for evaluator in quota::evaluators(&quota) {
            // What can't be listed now keeps its last value, and the others theirs.
            match self.list(&evaluator, &key.namespace).await {
                Ok(objects) => {
                    let now = k8s_openapi::jiff::Timestamp::now().as_second();
                    measured.extend(quota::total(&quota, &evaluator, objects.iter(), now));
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(status) = quota::status(&quota, &measured) {
            quota["status"] = status;
            quota["apiVersion"] = "v1".into();
            quota["kind"] = "ResourceQuota".into();
            let path = format!("/api/v1/namespaces/{}/resourcequotas/{}/status", key.namespace, key.name);
            match self.send(Method::PUT, &path, "application/json", quota.to_string()).await {
                Err(error) if meta::is_not_found(&error) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The objects that an evaluator measures; their metadata alone where that is enough.
    async fn list(&self, evaluator: &Evaluator, namespace: &str) -> Result<Vec<Value>> {
        let resource = evaluator.resource();
        let Some(served) = self.monitor.find(&resource).await? else {
            return Err(Error::Pending(format!("{resource} is not served")));
        };
        let accept = if evaluator.counts_only() {
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        } else {
            "application/json"
        };
        let mut list = self.send(Method::GET, &collection(&served, namespace), accept, String::new()).await?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => Ok(Vec::new()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: String,
    ) -> std::result::Result<Value, kube::Error> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::ACCEPT, accept)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

fn collection(resource: &ApiResource, namespace: &str) -> String {
    let root = if resource.group.is_empty() { "/api" } else { "/apis" };
    format!("{root}/{}/namespaces/{namespace}/{}", resource.api_version, resource.plural)
}

/// Whether a change of a pod can give something back: it went, ended, was resized, or came into another scope.
fn pod_matters(delta: &Delta<Pod>) -> bool {
    let Delta::Updated { old, new } = delta else { return matches!(delta, Delta::Deleted(_)) };
    let deadline = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.active_deadline_seconds.is_some());
    let resources = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let all = [status.container_statuses, status.init_container_statuses];
        all.into_iter().flatten().flatten().map(|s| (s.name, s.resources)).collect::<Vec<_>>()
    };
    (!keelson_client::pods::is_terminal(old) && keelson_client::pods::is_terminal(new))
        || deadline(old) != deadline(new)
        || resources(old) != resources(new)
}

/// The same for a Service: its type says how many ports it takes.
fn service_matters(delta: &Delta<Service>) -> bool {
    let Delta::Updated { old, new } = delta else { return matches!(delta, Delta::Deleted(_)) };
    let shape = |service: &Service| {
        let spec = service.spec.clone().unwrap_or_default();
        (spec.type_, spec.ports.map_or(0, |ports| ports.len()))
    };
    shape(old) != shape(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(phase: &str, deadline: Option<i64>) -> Arc<Pod> {
        let pod = serde_json::json!({
            "metadata": {"name": "p"}, "spec": {"containers": [], "activeDeadlineSeconds": deadline},
            "status": {"phase": phase},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn only_what_gives_back_matters() {
        let check = |old: Arc<Pod>, new: Arc<Pod>, want: bool| {
            assert_eq!(pod_matters(&Delta::Updated { old, new }), want);
        };
        check(pod("Pending", None), pod("Running", None), false);
        check(pod("Running", None), pod("Succeeded", None), true);
        check(pod("Running", None), pod("Running", Some(5)), true);
        assert!(pod_matters(&Delta::Deleted(pod("Running", None))));
        assert!(!pod_matters(&Delta::Added(pod("Running", None))));
    }

    #[test]
    fn collections() {
        let resource = |group: &str, version: &str, plural: &str| ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: if group.is_empty() { version.into() } else { format!("{group}/{version}") },
            kind: String::new(),
            plural: plural.into(),
        };
        assert_eq!(collection(&resource("", "v1", "secrets"), "a"), "/api/v1/namespaces/a/secrets");
        assert_eq!(collection(&resource("apps", "v1", "x"), "a"), "/apis/apps/v1/namespaces/a/x");
    }
}
