//! Who owns the claims of a stateful pod (`persistentVolumeClaimRetentionPolicy`): a claim that shall go with the set
//! is the set's, one that shall go when its pod is scaled away becomes the pod's. All pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::meta;
use kube::Resource;

use super::identity::{ordinal, ordinals, spec};

/// Whether claims shall be deleted with the set, and with a pod that is scaled away.
fn deleted(set: &StatefulSet) -> (bool, bool) {
    let policy = spec(set).persistent_volume_claim_retention_policy.as_ref();
    let deletes = |policy: Option<&str>| policy == Some("Delete");
    (
        deletes(policy.and_then(|p| p.when_deleted.as_deref())),
        deletes(policy.and_then(|p| p.when_scaled.as_deref())),
    )
}

fn references(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

fn names<K: Resource<DynamicType = ()>>(reference: &OwnerReference, object: &K) -> bool {
    reference.api_version == K::api_version(&())
        && reference.kind == K::kind(&())
        && reference.name == meta::name(object.meta())
}

fn owns<K: Resource<DynamicType = ()>>(claim: &PersistentVolumeClaim, owner: &K) -> bool {
    references(claim).iter().any(|reference| reference.uid == meta::uid(owner.meta()))
}

/// Whether the claim is owned by an earlier object of the same kind and name.
pub fn is_stale<K: Resource<DynamicType = ()>>(claim: &PersistentVolumeClaim, owner: &K) -> bool {
    let named = references(claim).iter().find(|reference| names(reference, owner));
    named.is_some_and(|reference| reference.uid != meta::uid(owner.meta()))
}

/// Whether a claim of the pod blocks it: one that is to go with an earlier pod of the name.
pub fn blocks(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    deleted(set).1 && is_stale(claim, pod)
}

/// Whether someone else manages the claim although it should go with set or pod.
pub fn is_disputed(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    deleted(set) != (false, false)
        && references(claim).iter().any(|reference| {
            if names(reference, set) {
                reference.uid != meta::uid(&set.metadata)
            } else if names(reference, pod) {
                reference.uid != meta::uid(&pod.metadata)
            } else {
                reference.controller == Some(true)
            }
        })
}

/// The owners that the claim should have, if it has others. A claim of an earlier set or pod of the name is left
/// alone.
pub fn corrected(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> Option<Vec<OwnerReference>> {
    if is_stale(claim, set) || is_stale(claim, pod) {
        return None;
    }
    let others = || references(claim).iter().filter(|r| !names(r, set) && !names(r, pod)).cloned();
    if is_disputed(set, pod, claim) {
        return (owns(claim, set) || owns(claim, pod)).then(|| others().collect());
    }
    let (with_set, when_scaled) = deleted(set);
    let scaled_away = ordinal(pod).is_none_or(|ordinal| !ordinals(set).contains(&ordinal));
    let by_pod = when_scaled && scaled_away;
    let by_set = with_set && !by_pod;
    let ours = |reference: &&OwnerReference| {
        reference.uid == meta::uid(&set.metadata) || reference.uid == meta::uid(&pod.metadata)
    };
    let weak = references(claim).iter().filter(ours).any(|reference| reference.controller != Some(true));
    if !weak && owns(claim, set) == by_set && owns(claim, pod) == by_pod {
        return None;
    }
    let set = by_set.then(|| meta::controller_ref(set));
    let pod = by_pod.then(|| meta::controller_ref(pod));
    Some(others().chain(set).chain(pod).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(when_deleted: &str, when_scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "uid": "set"},
            "spec": {"replicas": 1, "selector": {}, "template": {},
                     "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted, "whenScaled": when_scaled}},
        }))
        .unwrap()
    }

    fn pod(ordinal: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": format!("web-{ordinal}"), "uid": "pod"}})).unwrap()
    }

    fn claim(owners: &[(&str, &str, &str)]) -> PersistentVolumeClaim {
        let owners: Vec<_> = owners
            .iter()
            .map(|(kind, name, uid)| {
                let version = if *kind == "StatefulSet" { "apps/v1" } else { "v1" };
                json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"ownerReferences": owners}})).unwrap()
    }

    const SET: (&str, &str, &str) = ("StatefulSet", "web", "set");
    const POD: (&str, &str, &str) = ("Pod", "web-0", "pod");

    #[track_caller]
    fn check(set: &StatefulSet, ordinal: i32, owners: &[(&str, &str, &str)], expected: Option<&[&str]>) {
        let corrected = corrected(set, &pod(ordinal), &claim(owners));
        let uids: Option<Vec<&str>> = corrected.as_ref().map(|refs| refs.iter().map(|r| &*r.uid).collect());
        assert_eq!(uids.as_deref(), expected);
    }

    #[test]
    fn owners_follow_the_policy() {
        let (keep, delete) = ("Retain", "Delete");
        check(&set(keep, keep), 0, &[], None);
        check(&set(keep, keep), 0, &[SET], Some(&[]));
        check(&set(delete, keep), 0, &[], Some(&["set"]));
        check(&set(delete, keep), 0, &[SET], None);
        check(&set(delete, keep), 1, &[], Some(&["set"]));
        check(&set(keep, delete), 0, &[], None);
        check(&set(keep, delete), 1, &[], Some(&["pod"]));
        check(&set(keep, delete), 0, &[POD], Some(&[]));
        check(&set(delete, delete), 0, &[], Some(&["set"]));
        check(&set(delete, delete), 1, &[SET], Some(&["pod"]));
        check(&set(delete, delete), 0, &[SET], None);
    }

    #[test]
    fn what_others_own_is_left_to_them() {
        let all = set("Delete", "Delete");
        check(&all, 0, &[("StatefulSet", "web", "earlier")], None);
        check(&all, 0, &[("Other", "x", "x")], None);
        check(&all, 0, &[("Other", "x", "x"), SET], Some(&["x"]));
        assert!(is_disputed(&all, &pod(0), &claim(&[("Other", "x", "x")])));
        assert!(!is_disputed(&set("Retain", "Retain"), &pod(0), &claim(&[("Other", "x", "x")])));
        let mut weak = claim(&[SET]);
        weak.metadata.owner_references.as_mut().unwrap()[0].controller = None;
        assert_eq!(corrected(&all, &pod(0), &weak).unwrap()[0].controller, Some(true));
    }

    #[test]
    fn a_claim_that_is_about_to_go_blocks_its_successor() {
        let earlier = claim(&[("Pod", "web-0", "earlier")]);
        assert!(blocks(&set("Retain", "Delete"), &pod(0), &earlier));
        assert!(!blocks(&set("Delete", "Retain"), &pod(0), &earlier));
        assert!(!blocks(&set("Retain", "Delete"), &pod(0), &claim(&[])));
    }
}
