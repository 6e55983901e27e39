//! Who a stateful pod is: its ordinal, its name, its volumes. All pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use keelson_client::meta;

use crate::pod_control::pod_from_template;

/// The label that names the pod to Services of one pod.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label with the ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// The label with the name of the revision that the pod was made from.
pub const REVISION: &str = "controller-revision-hash";

/// The set's spec, if it has one; the API sees to that.
pub fn spec(set: &StatefulSet) -> &StatefulSetSpec {
    static NONE: std::sync::LazyLock<StatefulSetSpec> = std::sync::LazyLock::new(StatefulSetSpec::default);
    set.spec.as_ref().unwrap_or(&NONE)
}

/// How many pods the set shall have.
pub fn replicas(set: &StatefulSet) -> i32 {
    spec(set).replicas.unwrap_or(1)
}

/// How long a ready pod must stay so to count as available.
pub fn min_ready_seconds(set: &StatefulSet) -> i32 {
    spec(set).min_ready_seconds.unwrap_or(0)
}

/// The ordinal of the set's first pod.
pub fn start(set: &StatefulSet) -> i32 {
    spec(set).ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
}

/// The ordinals of the pods that the set shall have.
pub fn ordinals(set: &StatefulSet) -> std::ops::Range<i32> {
    start(set)..start(set).saturating_add(replicas(set))
}

/// The set's name and the ordinal that a pod's name is made of.
fn parts(pod: &Pod) -> Option<(&str, i32)> {
    let (parent, ordinal) = meta::name(&pod.metadata).rsplit_once('-')?;
    let is_number = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    Some((parent, ordinal.parse().ok().filter(|_| is_number)?))
}

/// The pod's ordinal, if its name has one.
pub fn ordinal(pod: &Pod) -> Option<i32> {
    parts(pod).map(|(_, ordinal)| ordinal)
}

/// Whether the pod's name is one that the set gives.
pub fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    parts(pod).is_some_and(|(parent, _)| parent == meta::name(&set.metadata))
}

/// The name of the revision that the pod was made from.
pub fn revision(pod: &Pod) -> &str {
    meta::label(&pod.metadata, REVISION).unwrap_or_default()
}

/// The name of the pod with an ordinal.
pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", meta::name(&set.metadata))
}

/// Whether pod has the names that it should have.
pub fn identity_matches(set: &StatefulSet, pod: &Pod) -> bool {
    let name = meta::name(&pod.metadata);
    let own = ordinal(pod).is_some_and(|ordinal| pod_name(set, ordinal) == name);
    own && meta::label(&pod.metadata, POD_NAME) == Some(name)
}

/// Gives the pod the names that it should have.
pub fn set_identity(pod: &mut Pod) {
    let Some(ordinal) = ordinal(pod) else { return };
    let name = meta::name(&pod.metadata).to_owned();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name);
    labels.insert(POD_INDEX.into(), ordinal.to_string());
}

/// The name of the claim that the pod with an ordinal has from a template.
pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", meta::name(&template.metadata), meta::name(&set.metadata))
}

/// The set's templates of claims.
pub fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    spec(set).volume_claim_templates.as_deref().unwrap_or_default()
}

/// The claims of the pod with an ordinal.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected: BTreeMap<String, String> = spec(set).selector.match_labels.clone().unwrap_or_default();
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        claim.metadata.labels.get_or_insert_default().extend(selected.clone());
        claim
    };
    claim_templates(set).iter().map(claim).collect()
}

/// Whether the pod has a volume for each of its claims.
pub fn storage_matches(set: &StatefulSet, pod: &Pod) -> bool {
    let Some(ordinal) = ordinal(pod) else { return false };
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    claim_templates(set).iter().all(|template| {
        let volume = volumes.iter().find(|volume| volume.name == meta::name(&template.metadata));
        let claim = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
        claim.is_some_and(|claim| claim.claim_name == claim_name(set, template, ordinal))
    })
}

/// Gives the pod a volume for each of its claims; a volume of the same name gives way.
pub fn set_storage(set: &StatefulSet, pod: &mut Pod) {
    let Some(ordinal) = ordinal(pod) else { return };
    let templates = claim_templates(set);
    if templates.is_empty() {
        return;
    }
    let of_template = |template: &PersistentVolumeClaim| Volume {
        name: meta::name(&template.metadata).to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(set, template, ordinal),
            read_only: None,
        }),
        ..Default::default()
    };
    let mut volumes: Vec<Volume> = templates.iter().map(of_template).collect();
    let present = pod.spec.get_or_insert_default().volumes.take().unwrap_or_default();
    let is_claimed = |volume: &Volume| templates.iter().any(|t| meta::name(&t.metadata) == volume.name);
    volumes.extend(present.into_iter().filter(|volume| !is_claimed(volume)));
    pod.spec.get_or_insert_default().volumes = Some(volumes);
}

/// The pod with an ordinal, as `template`, which is that of the revision of this name, describes it.
pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pod_from_template(set, template, "");
    let name = pod_name(set, ordinal);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    set_identity(&mut pod);
    set_storage(set, &mut pod);
    let spec_of_pod = pod.spec.get_or_insert_default();
    spec_of_pod.hostname = Some(name);
    spec_of_pod.subdomain = spec(set).service_name.clone().filter(|service| !service.is_empty());
    pod.metadata.labels.get_or_insert_default().insert(REVISION.into(), revision.into());
    pod
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {
                "replicas": 2, "serviceName": "svc", "ordinals": {"start": 3},
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}},
                             "spec": {"containers": [], "volumes": [{"name": "data"}, {"name": "own"}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"a": "b"}}, "spec": {}}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_new_pod_is_who_it_should_be() {
        let set = set();
        let pod = new_pod(&set, &spec(&set).template, "web-1", 4);
        assert_eq!((meta::name(&pod.metadata), ordinal(&pod), revision(&pod)), ("web-4", Some(4), "web-1"));
        assert!(is_member(&set, &pod) && identity_matches(&set, &pod) && storage_matches(&set, &pod));
        assert_eq!(meta::label(&pod.metadata, POD_INDEX), Some("4"));
        let spec = pod.spec.unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-4"), Some("svc")));
        let names: Vec<_> = spec.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, ["data", "own"]);
        assert_eq!(ordinals(&set), 3..5);
    }

    #[test]
    fn claims_are_named_and_labelled() {
        let claims = claims(&set(), 4);
        let metadata = &claims[0].metadata;
        assert_eq!((meta::name(metadata), meta::namespace(metadata)), ("data-web-4", "ns"));
        assert_eq!((meta::label(metadata, "a"), meta::label(metadata, "app")), (Some("b"), Some("web")));
    }

    #[test]
    fn members() {
        let check = |name: &str, expected: Option<i32>| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            assert_eq!(ordinal(&pod).filter(|_| is_member(&set(), &pod)), expected, "{name}");
        };
        check("web-0", Some(0));
        check("web-17", Some(17));
        check("web-x", None);
        check("web-", None);
        check("web-+1", None);
        check("web-1-1", None);
        check("other-1", None);
        check("web-99999999999", None);
    }

    #[test]
    fn lost_identity_is_given_back() {
        let set = set();
        let mut pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "web-3"}, "spec": {"containers": []}}))
                .unwrap();
        assert!(!identity_matches(&set, &pod) && !storage_matches(&set, &pod));
        set_identity(&mut pod);
        set_storage(&set, &mut pod);
        assert!(identity_matches(&set, &pod) && storage_matches(&set, &pod));
    }
}
