//! Revisions, and the annotations by which deployment and replica sets tell each other things.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::meta;

use super::math;

/// The revision of a replica set, and the newest of its deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a set that was rolled back to.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The wanted number of pods that a set was sized for.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// That number and the surge.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Asks for a rollback (a field of extensions/v1beta1 that lives on).
pub const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Longest history kept, in characters.
const HISTORY_LENGTH: usize = 2000;

fn is_ours(key: &str) -> bool {
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, ROLLBACK_TO].contains(&key)
}

/// The revision of an object; 0 when it has none.
pub fn of(meta: &ObjectMeta) -> i64 {
    meta::annotation(meta, REVISION).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The highest revision of these sets.
pub fn highest<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    sets.into_iter().map(|set| of(&set.metadata)).max().unwrap_or(0)
}

/// The second highest revision: where a rollback without a number goes.
pub fn last<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    let mut revisions: Vec<i64> = sets.into_iter().map(|set| of(&set.metadata)).collect();
    revisions.sort_unstable();
    revisions.iter().rev().nth(1).copied().unwrap_or(0)
}

fn annotate(meta: &mut ObjectMeta, key: &str, value: impl Into<String>) -> bool {
    let (annotations, value) = (meta.annotations.get_or_insert_default(), value.into());
    let changed = annotations.get(key) != Some(&value);
    if changed {
        annotations.insert(key.into(), value);
    }
    changed
}

/// Writes the deployment's revision; whether that changed it.
pub fn set_on(deployment: &mut Deployment, revision: impl Into<String>) -> bool {
    annotate(&mut deployment.metadata, REVISION, revision)
}

/// Gives the new set the deployment's annotations and its revision (`SetNewReplicaSetAnnotations`); whether that
/// changed it.
pub fn annotate_new_set(deployment: &Deployment, set: &mut ReplicaSet, revision: i64, exists: bool) -> bool {
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten().filter(|(key, _)| !is_ours(key)) {
        changed |= annotate(&mut set.metadata, key, value);
    }
    let old = meta::annotation(&set.metadata, REVISION).map(str::to_owned);
    let old_number = match old.as_deref() {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            // Someone has written nonsense there: leave it alone.
            Err(_) => return false,
        },
    };
    if old_number < revision {
        changed |= annotate(&mut set.metadata, REVISION, revision.to_string());
        if let Some(old) = old {
            remember(&mut set.metadata, &old);
        }
    }
    if !exists {
        changed |= annotate_size(deployment, set);
    }
    changed
}

fn remember(meta: &mut ObjectMeta, old: &str) {
    let history = meta::annotation(meta, REVISION_HISTORY).unwrap_or_default().to_owned();
    let mut past: Vec<&str> = history.split(',').filter(|p| !p.is_empty()).collect();
    past.push(old);
    while past.len() > 1 && past.iter().map(|p| p.len() + 1).sum::<usize>() > HISTORY_LENGTH + 1 {
        past.remove(0);
    }
    annotate(meta, REVISION_HISTORY, past.join(","));
}

/// Notes on the set what it is sized for; whether that changed it.
pub fn annotate_size(deployment: &Deployment, set: &mut ReplicaSet) -> bool {
    let wanted = math::replicas(deployment);
    let most = wanted.saturating_add(math::max_surge(deployment));
    let desired = annotate(&mut set.metadata, DESIRED_REPLICAS, wanted.to_string());
    annotate(&mut set.metadata, MAX_REPLICAS, most.to_string()) || desired
}

/// Gives the deployment the annotations of the set that it is rolled back to.
pub fn restore(deployment: &mut Deployment, set: &ReplicaSet) {
    let mut annotations: BTreeMap<String, String> =
        deployment.metadata.annotations.take().unwrap_or_default();
    annotations.retain(|key, _| is_ours(key));
    let of_set = set.metadata.annotations.iter().flatten().filter(|(key, _)| !is_ours(key));
    annotations.extend(of_set.map(|(k, v)| (k.clone(), v.clone())));
    deployment.metadata.annotations = Some(annotations);
}

/// The revision that a rollback is asked for; 0 means the last one.
pub fn rollback_to(deployment: &Deployment) -> Option<i64> {
    meta::annotation(&deployment.metadata, ROLLBACK_TO)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(revision: &str) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"annotations": {REVISION: revision}}, "spec": {"selector": {}},
        }))
        .unwrap()
    }

    #[test]
    fn a_set_that_is_rolled_back_to_remembers_its_revisions() {
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": {"annotations": {"note": "x", LAST_APPLIED: "{}"}},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
        }))
        .unwrap();
        let mut again = set("1");
        assert!(annotate_new_set(&deployment, &mut again, 3, true));
        assert!(annotate_new_set(&deployment, &mut again, 5, true));
        let annotations = again.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[REVISION], "5");
        assert_eq!(annotations[REVISION_HISTORY], "1,3");
        assert_eq!(annotations["note"], "x");
        assert!(!annotations.contains_key(LAST_APPLIED));
        assert!(!annotate_new_set(&deployment, &mut again, 4, true));
    }

    #[test]
    fn highest_and_last() {
        let sets = [set("1"), set("7"), set("3")];
        assert_eq!((highest(&sets), last(&sets)), (7, 3));
        assert_eq!(last(&sets[..1]), 0);
    }
}
