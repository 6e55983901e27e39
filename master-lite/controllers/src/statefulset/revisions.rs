//! The history of a stateful set's template.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use keelson_client::{Selector, meta};
use kube::Api;
use kube::api::PostParams;
use serde_json::Value;

use super::Controller;
use super::identity::{revision, spec};
use super::plan::Revisions;
use crate::error::{Error, Result};
use crate::{hash, history, template};

/// The label with the hash that a revision is named by.
const HASH: &str = "controller.kubernetes.io/hash";
/// Longest base of a revision's name, so that name and hash fit.
const LONGEST_BASE: usize = 223;

/// A set's revisions.
pub(super) struct History {
    /// All of them, the oldest first.
    pub(super) all: Vec<Arc<ControllerRevision>>,
    /// The names of the two that count.
    pub(super) names: Revisions,
    /// The template that pods had before the update.
    pub(super) current: PodTemplateSpec,
    /// The template that they shall have.
    pub(super) update: PodTemplateSpec,
}

impl Controller {
    /// Finds the revision of the set's template and makes it the newest, or makes one (`getStatefulSetRevisions`).
    pub(super) async fn history(&self, set: &StatefulSet, selector: &Selector) -> Result<History> {
        let namespace = meta::namespace(&set.metadata);
        let api: Api<ControllerRevision> = Api::namespaced(self.client.clone(), namespace);
        let mut all = history::claimed(&self.client, &self.revisions, set, selector).await?;
        history::sort(&mut all);
        let wanted = history::patch_of(&spec(set).template);
        let number = history::highest(&all) + 1;
        let mut collisions = set.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
        let same = all.iter().rfind(|revision| history::data(revision) == Some(&wanted));
        let update = match (same, all.last()) {
            (Some(same), Some(last)) if same.metadata.uid == last.metadata.uid => last.clone(),
            (Some(same), _) => Arc::new(history::renumber(&api, same, number).await?),
            // One that says the same in other words, as an older server may have written it, will do.
            (None, Some(last)) if means(last, &spec(set).template) => last.clone(),
            _ => Arc::new(create(&api, set, wanted, number, &mut collisions).await?),
        };
        let present = set.status.as_ref().and_then(|s| s.current_revision.clone()).unwrap_or_default();
        let current = all.iter().find(|revision| meta::name(&revision.metadata) == present);
        let current = current.unwrap_or(&update).clone();
        let name = |revision: &ControllerRevision| meta::name(&revision.metadata).to_owned();
        Ok(History {
            names: Revisions { current: name(&current), update: name(&update), collisions },
            current: template_of(&current)?,
            update: template_of(&update)?,
            all,
        })
    }

    /// Deletes the oldest revisions beyond the limit that no pod has.
    pub(super) async fn clean_up(&self, set: &StatefulSet, pods: &[Arc<Pod>], history: &History) -> Result {
        // A negative limit keeps all.
        let Ok(limit) = usize::try_from(spec(set).revision_history_limit.unwrap_or(10)) else {
            return Ok(());
        };
        let live: HashSet<&str> = pods.iter().map(|pod| revision(pod)).collect();
        let named = BTreeSet::from([history.names.current.as_str(), history.names.update.as_str()]);
        let is_live = |name: &str| live.contains(name) || named.contains(name);
        let unused: Vec<&Arc<ControllerRevision>> =
            history.all.iter().filter(|revision| !is_live(meta::name(&revision.metadata))).collect();
        let api: Api<ControllerRevision> =
            Api::namespaced(self.client.clone(), meta::namespace(&set.metadata));
        for revision in unused.iter().take(unused.len().saturating_sub(limit)) {
            history::delete(&api, revision).await?;
        }
        Ok(())
    }
}

/// The template that a revision brings back.
fn template_of(revision: &ControllerRevision) -> Result<PodTemplateSpec> {
    let found = history::data(revision).and_then(|data| data.get("spec")?.get("template"));
    let read = found.map(|template| {
        let mut template = template.clone();
        if let Some(fields) = template.as_object_mut() {
            fields.remove("$patch");
        }
        serde_json::from_value(template)
    });
    let name = meta::name(&revision.metadata);
    match read {
        Some(Ok(template)) => Ok(template),
        Some(Err(error)) => Err(Error::Pending(format!("the revision {name} has no pod template: {error}"))),
        None => Err(Error::Pending(format!("the revision {name} has no pod template"))),
    }
}

fn means(revision: &ControllerRevision, wanted: &PodTemplateSpec) -> bool {
    template_of(revision).is_ok_and(|found| template::equal(&found, wanted))
}

async fn create(
    api: &Api<ControllerRevision>,
    set: &StatefulSet,
    data: Value,
    number: i64,
    collisions: &mut i32,
) -> Result<ControllerRevision> {
    let text = data.to_string();
    let mut labels = spec(set).template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(HASH.into(), hash::of_data(text.as_bytes(), *collisions));
    let mut revision = ControllerRevision {
        metadata: ObjectMeta {
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: set.metadata.annotations.clone(),
            owner_references: Some(vec![meta::controller_ref(set)]),
            ..Default::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    };
    loop {
        let mut base = meta::name(&set.metadata).to_owned();
        base.truncate(LONGEST_BASE);
        let name = format!("{base}-{}", hash::of_data(text.as_bytes(), *collisions));
        revision.metadata.name = Some(name.clone());
        match api.create(&PostParams::default(), &revision).await {
            Err(error) if meta::is_already_exists(&error) => {}
            outcome => return Ok(outcome?),
        }
        // Our own, that the cache does not show yet; or another template with the same hash.
        let present = api.get(&name).await?;
        if history::data(&present) == history::data(&revision) {
            return Ok(present);
        }
        *collisions = collisions.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn revisions_bring_templates_back() {
        let template: PodTemplateSpec =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": "i"}]}})).unwrap();
        let revision =
            |data: Value| ControllerRevision { data: Some(RawExtension(data)), ..Default::default() };
        assert_eq!(template_of(&revision(history::patch_of(&template))).unwrap(), template);
        assert!(template_of(&revision(json!({"spec": {}}))).is_err());
        let wordy = json!({"spec": {"template": {"$patch": "replace", "metadata": {"creationTimestamp": null},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {}}]}}}});
        assert!(means(&revision(wordy), &template));
    }
}
