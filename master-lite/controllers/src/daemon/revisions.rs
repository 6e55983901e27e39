//! The history of a daemon set's template.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use keelson_client::meta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::placement::HASH_LABEL;
use super::{Controller, Subject};
use crate::error::{Error, Result};
use crate::{hash, history};

/// A set's revisions.
pub(crate) struct History {
    /// That of the present template.
    pub(crate) current: Arc<ControllerRevision>,
    /// All others.
    pub(crate) old: Vec<Arc<ControllerRevision>>,
}

impl Controller {
    fn revisions_in(&self, namespace: &str) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Finds the revision of the set's template and makes it the newest, or makes one (`constructHistory`).
    pub(crate) async fn history(&self, subject: &Subject) -> Result<History> {
        let api = self.revisions_in(&subject.key.namespace);
        let found = history::claimed(&self.client, &self.revisions, &*subject.set, &subject.selector).await?;
        let wanted = patch(subject);
        let (mut current, mut old) = (Vec::new(), Vec::new());
        for revision in found {
            let revision = labelled(&api, revision).await?;
            if history::data(&revision) == Some(&wanted) {
                current.push(revision)
            } else {
                old.push(revision)
            }
        }
        let number = history::highest(&old) + 1;
        let current = match current.len() {
            0 => Arc::new(self.snapshot(subject, wanted, number).await?),
            1 => current.remove(0),
            _ => self.unify(subject, current).await?,
        };
        if current.revision < number {
            history::renumber(&api, &current, number).await?;
        }
        Ok(History { current, old })
    }

    async fn snapshot(&self, subject: &Subject, data: Value, number: i64) -> Result<ControllerRevision> {
        let set = &*subject.set;
        let api = self.revisions_in(&subject.key.namespace);
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let hash = hash::of_template(&template, collisions);
        let name = format!("{}-{hash}", subject.key.name);
        let mut labels = template.metadata.and_then(|m| m.labels).unwrap_or_default();
        labels.insert(HASH_LABEL.into(), hash);
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: set.metadata.annotations.clone(),
                owner_references: Some(vec![meta::controller_ref(set)]),
                ..Default::default()
            },
            data: Some(RawExtension(data)),
            revision: number,
        };
        let error = match api.create(&PostParams::default(), &revision).await {
            Err(error) if meta::is_already_exists(&error) => error,
            outcome => return Ok(outcome?),
        };
        // Our own, that the cache does not show yet; or another template with the same hash.
        let present = api.get(&name).await?;
        if history::data(&present) == history::data(&revision) {
            return Ok(present);
        }
        let sets = self.sets_in(&subject.key.namespace);
        let mut newest = sets.get(&subject.key.name).await?;
        let status = newest.status.get_or_insert_default();
        if status.collision_count != collisions {
            return Err(Error::Stale);
        }
        status.collision_count = Some(collisions.unwrap_or(0).saturating_add(1));
        sets.replace_status(&subject.key.name, &PostParams::default(), &newest).await?;
        Err(error.into())
    }

    /// Of several revisions of one template the newest stays, and has all pods.
    async fn unify(
        &self,
        subject: &Subject,
        mut same: Vec<Arc<ControllerRevision>>,
    ) -> Result<Arc<ControllerRevision>> {
        history::sort(&mut same);
        let Some(kept) = same.pop() else { return Err(Error::Stale) };
        let hash = meta::label(&kept.metadata, HASH_LABEL);
        let pods = self.control.api(&subject.key.namespace);
        for pod in self.claim(subject).await? {
            if meta::label(&pod.metadata, HASH_LABEL) != hash {
                let patch = Patch::Merge(json!({"metadata": {"labels": {HASH_LABEL: hash}}}));
                pods.patch(meta::name(&pod.metadata), &PatchParams::default(), &patch).await?;
            }
        }
        let api = self.revisions_in(&subject.key.namespace);
        for surplus in same {
            history::delete(&api, &surplus).await?;
        }
        Ok(kept)
    }

    /// Deletes the oldest revisions beyond the limit that no pod has.
    pub(crate) async fn clean_up(&self, subject: &Subject, old: &[Arc<ControllerRevision>]) -> Result {
        let limit = subject.set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        if surplus == 0 {
            return Ok(());
        }
        let pods = self.claim(subject).await?;
        let live: HashSet<&str> =
            pods.iter().filter_map(|pod| meta::label(&pod.metadata, HASH_LABEL)).collect();
        let mut old = old.to_vec();
        history::sort(&mut old);
        let unused = old.iter().filter(|revision| {
            meta::label(&revision.metadata, HASH_LABEL).is_none_or(|hash| !live.contains(hash))
        });
        let api = self.revisions_in(&subject.key.namespace);
        for revision in unused.take(surplus) {
            history::delete(&api, revision).await?;
        }
        Ok(())
    }
}

fn patch(subject: &Subject) -> Value {
    let template = subject.set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    history::patch_of(&template)
}

/// A revision that someone else has made may lack the label; its name serves.
async fn labelled(
    api: &Api<ControllerRevision>,
    revision: Arc<ControllerRevision>,
) -> Result<Arc<ControllerRevision>> {
    if meta::label(&revision.metadata, HASH_LABEL).is_some() {
        return Ok(revision);
    }
    let mut target = (*revision).clone();
    let name = meta::name(&revision.metadata).to_owned();
    target.metadata.labels.get_or_insert_default().insert(HASH_LABEL.into(), name.clone());
    Ok(Arc::new(api.replace(&name, &PostParams::default(), &target).await?))
}
