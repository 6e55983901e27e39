//! Pods that are still held although their job is gone or has ended: no one will count them, so they are let go.

use k8s_openapi::api::batch::v1::Job;
use keelson_client::{Key, meta};

use super::{Controller, gone_is_fine, tally};
use crate::error::Result;
use crate::owners::owner_of;

impl Controller {
    /// Looks at the pods of a job that is gone or has ended.
    pub(super) fn look_for_strays(&self, job: &Job) {
        for pod in self.pods.controlled_by(meta::uid(&job.metadata)) {
            if super::is_held(&pod) {
                self.strays.add(Key::of(&*pod));
            }
        }
    }

    pub(super) async fn release_stray(&self, key: &Key) -> Result {
        let Some(pod) = self.pods.get(key) else { return Ok(()) };
        let job = owner_of(&self.jobs, &pod.metadata);
        if tally::is_stray(job.as_deref(), &pod) {
            gone_is_fine(self.release(&pod).await)?;
        }
        Ok(())
    }
}
