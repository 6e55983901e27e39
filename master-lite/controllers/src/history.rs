//! ControllerRevisions: what a template was, so that one can go back to it (`pkg/controller/history`).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use keelson_client::{Informer, Selector, meta};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::error::Result;
use crate::owners::Owner;
use crate::pod_control::claim_all;

/// The strategic merge patch that brings `template` back. Its text is what upstream's clients compare.
pub fn patch_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The patch that a revision holds.
pub fn data(revision: &ControllerRevision) -> Option<&Value> {
    revision.data.as_ref().map(|data| &data.0)
}

/// The highest number of `revisions`; 0 when there is none.
pub fn highest(revisions: &[Arc<ControllerRevision>]) -> i64 {
    revisions.iter().map(|revision| revision.revision).max().unwrap_or(0)
}

/// Oldest first.
pub fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let by_age = || a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp);
        let by_name = || a.metadata.name.cmp(&b.metadata.name);
        a.revision.cmp(&b.revision).then_with(by_age).then_with(by_name)
    });
}

/// The revisions of `owner`; those that match its selector and are no one's are adopted.
///
/// # Errors
/// What the API says.
pub async fn claimed<O: Owner>(
    client: &Client,
    revisions: &Informer<ControllerRevision>,
    owner: &O,
    selector: &Selector,
) -> Result<Vec<Arc<ControllerRevision>>> {
    let namespace = meta::namespace(owner.meta());
    let mut found = revisions.controlled_by(meta::uid(owner.meta()));
    found.extend(revisions.orphans_in(namespace));
    let owners: Api<O> = Api::namespaced(client.clone(), namespace);
    claim_all(&owners, owner, selector, &Api::namespaced(client.clone(), namespace), found).await
}

/// Gives a revision a new number.
///
/// # Errors
/// What the API says.
pub async fn renumber(
    api: &Api<ControllerRevision>,
    revision: &ControllerRevision,
    number: i64,
) -> Result<ControllerRevision> {
    let mut target = revision.clone();
    target.revision = number;
    Ok(api.replace(meta::name(&target.metadata), &PostParams::default(), &target).await?)
}

/// Deletes a revision.
///
/// # Errors
/// What the API says; one that is gone is no error.
pub async fn delete(api: &Api<ControllerRevision>, revision: &ControllerRevision) -> Result {
    match api.delete(meta::name(&revision.metadata), &DeleteParams::default()).await {
        Err(error) if !meta::is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_written_as_upstream_writes_it() {
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {}}], "restartPolicy": "Always"},
            "metadata": {"labels": {"b": "2", "a": "1"}},
        }))
        .unwrap();
        assert_eq!(
            patch_of(&template).to_string(),
            r#"{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"a":"1","b":"2"}},"spec":{"containers":[{"image":"i","name":"c","resources":{}}],"restartPolicy":"Always"}}}}"#
        );
    }

    #[test]
    fn order() {
        let revision = |name: &str, number: i64, created: &str| -> Arc<ControllerRevision> {
            let value = json!({"metadata": {"name": name, "creationTimestamp": created}, "revision": number});
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let mut all = [
            revision("d", 2, early),
            revision("c", 1, late),
            revision("b", 1, early),
            revision("a", 1, early),
        ];
        sort(&mut all);
        let names: Vec<_> = all.iter().map(|r| meta::name(&r.metadata)).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert_eq!((highest(&all), highest(&[])), (2, 0));
    }
}
