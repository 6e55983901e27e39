//! Writing the pods of a stateful set and their claims.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use keelson_client::{EventType, Key, meta};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use super::{Controller, identity, retention};
use crate::error::{Error, Result};

impl Controller {
    fn pods_in(&self, set: &StatefulSet) -> Api<Pod> {
        Api::namespaced(self.client.clone(), meta::namespace(&set.metadata))
    }

    fn claims_in(&self, set: &StatefulSet) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), meta::namespace(&set.metadata))
    }

    /// Says how something went that was done to a pod.
    fn tell(&self, verb: &str, set: &StatefulSet, pod: &Pod, outcome: &Result) {
        let (name, of) = (meta::name(&pod.metadata), meta::name(&set.metadata));
        let (kind, reason, how) = match outcome {
            Ok(()) => (EventType::Normal, "Successful", "successful".to_owned()),
            Err(error) => (EventType::Warning, "Failed", format!("failed error: {error}")),
        };
        let message = format!("{verb} Pod {name} in StatefulSet {of} {how}");
        self.recorder.event(set, kind, format!("{reason}{verb}"), message);
    }

    /// Makes a pod, its claims first.
    pub(super) async fn create(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result {
        let created = async {
            self.ensure_claims(set, pod, ordinal).await?;
            self.pods_in(set).create(&PostParams::default(), pod).await?;
            self.correct_claims(set, pod, ordinal).await
        };
        let outcome = created.await;
        match &outcome {
            // The cache was behind, or another's pod has the name.
            Err(Error::Api(error)) if meta::is_already_exists(error) => {}
            Err(error) if error.is_namespace_terminating() => {}
            outcome => self.tell("Create", set, pod, outcome),
        }
        outcome
    }

    /// Deletes a pod: this one, and not one that has its name by now.
    pub(super) async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        let outcome = match self.pods_in(set).delete(meta::name(&pod.metadata), &params).await {
            Err(error) if !meta::is_not_found(&error) && !meta::is_conflict(&error) => Err(error.into()),
            _ => Ok(()),
        };
        self.tell("Delete", set, pod, &outcome);
        outcome
    }

    /// Gives a pod back what it has lost of its identity.
    pub(super) async fn mend(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result {
        self.correct_claims(set, pod, ordinal).await?;
        if identity::identity_matches(set, pod) && identity::storage_matches(set, pod) {
            return Ok(());
        }
        // The cache holds a part only, which must not be written back.
        let mut target = self.pods_in(set).get(meta::name(&pod.metadata)).await?;
        if target.metadata.uid != pod.metadata.uid {
            return Err(Error::Pending(format!("pod {} is another one by now", meta::name(&pod.metadata))));
        }
        identity::set_identity(&mut target);
        if !identity::storage_matches(set, &target) {
            identity::set_storage(set, &mut target);
            self.ensure_claims(set, &target, ordinal).await?;
        }
        let written =
            self.pods_in(set).replace(meta::name(&pod.metadata), &PostParams::default(), &target).await;
        let outcome = written.map(drop).map_err(Error::from);
        self.tell("Update", set, pod, &outcome);
        outcome
    }

    fn cached(&self, claim: &PersistentVolumeClaim) -> Option<std::sync::Arc<PersistentVolumeClaim>> {
        self.claims.get(&Key::of(claim))
    }

    /// Whether a claim of the pod is about to go with an earlier pod of the name.
    pub(super) fn is_blocked(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> bool {
        let claims = identity::claims(set, ordinal);
        claims.iter().filter_map(|claim| self.cached(claim)).any(|claim| retention::blocks(set, pod, &claim))
    }

    /// Makes the pod's claims as far as they are missing.
    pub(super) async fn ensure_claims(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result {
        let mut result = Ok(());
        for claim in identity::claims(set, ordinal) {
            let name = meta::name(&claim.metadata).to_owned();
            if let Some(present) = self.cached(&claim) {
                if present.metadata.deletion_timestamp.is_some() {
                    result = result.and(Err(Error::Pending(format!("pvc {name} is being deleted"))));
                }
                continue;
            }
            let outcome = match self.claims_in(set).create(&PostParams::default(), &claim).await {
                Err(error) if meta::is_already_exists(&error) => continue,
                outcome => outcome.map(drop),
            };
            let (of, pod) = (meta::name(&set.metadata), meta::name(&pod.metadata));
            match &outcome {
                Ok(()) => {
                    let message = format!("Create Claim {name} Pod {pod} in StatefulSet {of} success");
                    self.recorder.event(set, EventType::Normal, "SuccessfulCreate", message);
                }
                Err(error) => {
                    let error = meta::message(error);
                    let message = format!(
                        "Create Claim {name} for Pod {pod} in StatefulSet {of} failed error: {error}"
                    );
                    self.recorder.event(set, EventType::Warning, "FailedCreate", message);
                }
            }
            result = result.and(outcome.map_err(Error::from));
        }
        result
    }

    /// Gives the pod's claims the owners that the retention policy wants.
    pub(super) async fn correct_claims(&self, set: &StatefulSet, pod: &Pod, ordinal: i32) -> Result {
        for claim in identity::claims(set, ordinal) {
            let Some(present) = self.cached(&claim) else { continue };
            let Some(owners) = retention::corrected(set, pod, &present) else { continue };
            let name = meta::name(&claim.metadata);
            if retention::is_disputed(set, pod, &present) {
                let message = format!(
                    "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
                );
                self.recorder.event(set, EventType::Warning, "ConflictingController", message);
            }
            let mut target = (*present).clone();
            target.metadata.owner_references = (!owners.is_empty()).then_some(owners);
            self.claims_in(set).replace(name, &PostParams::default(), &target).await?;
        }
        Ok(())
    }
}
