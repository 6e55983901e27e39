//! Deletes jobs that have been finished for as long as they say (`ttlSecondsAfterFinished`).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Informer, Key, WorkQueue, meta, run_workers};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, Client};

use crate::context::{Context, Task};
use crate::error::Result;
use crate::job::account::true_condition;
use crate::job::pods::spec;

const NAME: &str = "ttl-after-finished-controller";
const WORKERS: usize = 5;

struct Controller {
    client: Client,
    jobs: Arc<Informer<Job>>,
    queue: Arc<WorkQueue<Key>>,
}

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        jobs: context.informers.jobs.clone(),
        queue: WorkQueue::new(),
    });
    let on_job = controller.clone();
    controller.jobs.on_change(move |delta| {
        if expiry(delta.object()).is_some() {
            on_job.queue.add(Key::of(&**delta.object()));
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! { () = shutdown.cancelled() => return, () = controller.jobs.synced() => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        let Some(job) = self.jobs.get(key) else { return Ok(()) };
        if !self.is_over(key, &job) {
            return Ok(());
        }
        // The time may have been changed just now: nothing is deleted on the cache's word alone.
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let Some(fresh) = api.get_opt(&key.name).await?.filter(|fresh| self.is_over(key, fresh)) else {
            return Ok(());
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: fresh.metadata.uid, resource_version: None }),
            ..DeleteParams::foreground()
        };
        match api.delete(&key.name, &params).await {
            Err(error) if !meta::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether the job's time is over; if it will be, the job is looked at again then.
    fn is_over(&self, key: &Key, job: &Job) -> bool {
        let Some(expiry) = expiry(job) else { return false };
        match meta::until(&meta::now(), &expiry) {
            Some(left) => {
                self.queue.add_after(key.clone(), left);
                false
            }
            None => true,
        }
    }
}

/// When the job is to be deleted, if it has ended and says so.
fn expiry(job: &Job) -> Option<Time> {
    let wait = u64::try_from(spec(job).ttl_seconds_after_finished?).ok()?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let end = true_condition(job, "Complete").or_else(|| true_condition(job, "Failed"))?;
    Some(meta::plus(end.last_transition_time.as_ref()?, Duration::from_secs(wait)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expiries() {
        let job = |ttl: Option<i32>, condition: &str, deleting: bool| -> Job {
            serde_json::from_value(json!({
                "metadata": {"deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z")},
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": condition, "status": "True",
                                           "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap()
        };
        let shown = |job: &Job| expiry(job).map(|time| time.0.to_string());
        assert_eq!(shown(&job(Some(90), "Complete", false)).as_deref(), Some("2026-01-01T00:01:30Z"));
        assert_eq!(shown(&job(Some(0), "Failed", false)).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(shown(&job(Some(90), "Suspended", false)), None);
        assert_eq!(shown(&job(None, "Complete", false)), None);
        assert_eq!(shown(&job(Some(90), "Complete", true)), None);
    }
}
