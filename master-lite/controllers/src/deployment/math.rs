//! How many pods each replica set may have.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use keelson_client::meta;

use super::revision::{DESIRED_REPLICAS, MAX_REPLICAS};
use crate::percent::{Round, scaled};

/// The pods that the deployment wants.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The pods that the set is told to have.
pub fn set_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// The pods of the set that are available.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// The available pods of the set that will stay: a set that has just been told to shrink reports the pods that it
/// is about to delete for a while. To count them would let a second set shrink on the strength of pods that go.
/// (Upstream counts them, and now and then falls below its own limit.)
pub fn lasting(set: &ReplicaSet) -> i32 {
    available(set).min(set_replicas(set))
}

/// What the sets are told to have together.
pub fn total<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i32 {
    sets.into_iter().map(set_replicas).sum()
}

/// Whether the strategy is RollingUpdate (the default) and not Recreate.
pub fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

/// Surge and unavailability in pods: the one rounds up, the other down; both can't be nothing, or the rollout
/// could not move.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let wanted = replicas(deployment);
    // The API server defaults both to 25%.
    let quarter = IntOrString::String("25%".into());
    let surge = rolling.map_or(Some(&quarter), |r| r.max_surge.as_ref());
    let unavailable = rolling.map_or(Some(&quarter), |r| r.max_unavailable.as_ref());
    match (scaled(surge, wanted, Round::Up), scaled(unavailable, wanted, Round::Down)) {
        (0, 0) => (0, 1),
        posts => posts,
    }
}

/// Pods beyond the wanted number that a rollout may have.
pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { fenceposts(deployment).0 } else { 0 }
}

/// Pods that may be missing during a rollout.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if !is_rolling(deployment) || replicas(deployment) == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(replicas(deployment))
}

/// The size that the new set may have now (`NewRSNewReplicas`). `all` includes the new set.
pub fn new_set_size(deployment: &Deployment, all: i32, new: i32) -> i32 {
    let wanted = replicas(deployment);
    if !is_rolling(deployment) {
        return wanted;
    }
    let most = wanted.saturating_add(max_surge(deployment));
    if all >= most { new } else { new + (most - all).min(wanted - new) }
}

fn annotation_number(set: &ReplicaSet, key: &str) -> Option<i32> {
    meta::annotation(&set.metadata, key)?.parse().ok().filter(|n| *n >= 0)
}

/// The wanted number that the set was last sized for.
pub fn desired_annotation(set: &ReplicaSet) -> Option<i32> {
    annotation_number(set, DESIRED_REPLICAS)
}

/// Whether the new set has all pods that the deployment wants, available, and was sized for that number.
pub fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = replicas(deployment);
    set_replicas(set) == wanted && desired_annotation(set) == Some(wanted) && available(set) == wanted
}

/// Sizes for the active sets of a deployment that is scaled while it rolls out: each keeps its share. What
/// rounding leaves goes to the largest. Returned in the order in which to apply them.
pub fn proportional_sizes(deployment: &Deployment, active: &[ReplicaSet]) -> Vec<(ReplicaSet, i32)> {
    let wanted = replicas(deployment);
    let allowed = if wanted > 0 { wanted.saturating_add(max_surge(deployment)) } else { 0 };
    let to_add = allowed - total(active);
    let mut sorted = active.to_vec();
    let created = |set: &ReplicaSet| set.metadata.creation_timestamp.clone();
    // Scaling up favours newer sets of one size, scaling down takes from older ones.
    sorted.sort_by(|a, b| {
        let by_age = if to_add > 0 { created(b).cmp(&created(a)) } else { created(a).cmp(&created(b)) };
        set_replicas(b).cmp(&set_replicas(a)).then(by_age)
    });
    let mut added = 0;
    let mut sizes = Vec::with_capacity(sorted.len());
    for set in sorted {
        let share = if to_add == 0 { 0 } else { proportion(deployment, &set, to_add, added) };
        added += share;
        let size = set_replicas(&set) + share;
        sizes.push((set, size));
    }
    if to_add != 0
        && let Some((_, largest)) = sizes.first_mut()
    {
        *largest = (*largest + to_add - added).max(0);
    }
    sizes
}

fn proportion(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if set_replicas(set) == 0 || to_add == added {
        return 0;
    }
    let share = fraction(deployment, set);
    let left = to_add - added;
    if to_add > 0 { share.min(left) } else { share.max(left) }
}

fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let size = set_replicas(set);
    if replicas(deployment) == 0 {
        return -size;
    }
    let now = f64::from(replicas(deployment).saturating_add(max_surge(deployment)));
    let before = annotation_number(set, MAX_REPLICAS)
        .filter(|n| *n > 0)
        .or_else(|| deployment.status.as_ref().and_then(|s| s.replicas).filter(|n| *n > 0));
    match before {
        Some(before) => (f64::from(size) * now / f64::from(before)).round() as i32 - size,
        None => 0,
    }
}

/// How far the old sets may be scaled down at most, given what is unavailable (`reconcileOldReplicaSets`).
pub fn max_scaled_down(deployment: &Deployment, all: i32, new: &ReplicaSet) -> i32 {
    let min_available = replicas(deployment) - max_unavailable(deployment);
    let new_unavailable = set_replicas(new) - available(new);
    all - min_available - new_unavailable
}

/// New sizes of old sets (oldest first): first unhealthy pods go, up to `most`; then healthy ones, as long as
/// enough stay available. `available_total` counts the new set's pods too.
pub fn scale_down_old(
    deployment: &Deployment,
    old: &[ReplicaSet],
    available_total: i32,
    most: i32,
) -> Vec<(ReplicaSet, i32)> {
    let mut sorted = old.to_vec();
    sorted.sort_by(|a, b| {
        let by_age = a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp);
        by_age.then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
    let mut sizes: Vec<i32> = sorted.iter().map(set_replicas).collect();
    let mut cleaned = 0;
    for (set, size) in sorted.iter().zip(&mut sizes) {
        let unhealthy = (*size - available(set)).clamp(0, most - cleaned);
        *size -= unhealthy;
        cleaned += unhealthy;
    }
    let min_available = replicas(deployment) - max_unavailable(deployment);
    let mut spare = (available_total - min_available).max(0);
    for size in &mut sizes {
        let down = (*size).min(spare);
        *size -= down;
        spare -= down;
    }
    sorted.into_iter().zip(sizes).filter(|(set, size)| set_replicas(set) != *size).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(wanted: i32, surge: &str, unavailable: &str) -> Deployment {
        let value = |text: &str| text.parse::<i32>().map_or_else(|_| json!(text), |n| json!(n));
        serde_json::from_value(json!({"spec": {
            "replicas": wanted, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {
                "maxSurge": value(surge), "maxUnavailable": value(unavailable)}},
        }}))
        .unwrap()
    }

    fn set(name: &str, size: i32, available: i32, max: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name, "annotations": {MAX_REPLICAS: max.to_string()}},
            "spec": {"replicas": size, "selector": {}},
            "status": {"replicas": size, "availableReplicas": available},
        }))
        .unwrap()
    }

    fn check_fenceposts(wanted: i32, surge: &str, unavailable: &str, expected: (i32, i32)) {
        let deployment = deployment(wanted, surge, unavailable);
        assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), expected);
    }

    #[test]
    fn rounding() {
        check_fenceposts(10, "25%", "25%", (3, 2));
        check_fenceposts(1, "25%", "25%", (1, 0));
        check_fenceposts(2, "0", "1%", (0, 1));
        check_fenceposts(3, "0", "100%", (0, 3));
        check_fenceposts(3, "1", "9", (1, 3));
        check_fenceposts(0, "25%", "25%", (0, 0));
    }

    #[test]
    fn the_new_set_grows_within_the_surge() {
        let deployment = deployment(10, "3", "2");
        assert_eq!(new_set_size(&deployment, 10, 0), 3);
        assert_eq!(new_set_size(&deployment, 13, 3), 3);
        assert_eq!(new_set_size(&deployment, 11, 9), 10);
    }

    fn check_proportional(wanted: i32, sizes: &[i32], before: i32, expected: &[i32]) {
        let sets: Vec<_> = sizes.iter().map(|s| set(&s.to_string(), *s, *s, before)).collect();
        let result: Vec<i32> =
            proportional_sizes(&deployment(wanted, "3", "2"), &sets).into_iter().map(|(_, n)| n).collect();
        assert_eq!(result, expected);
    }

    #[test]
    fn scaling_keeps_shares() {
        // Upstream's example: 10 replicas with surge 3 become 15.
        check_proportional(15, &[8, 5], 13, &[11, 7]);
        check_proportional(5, &[8, 5], 13, &[5, 3]);
        check_proportional(0, &[8, 5], 13, &[0, 0]);
    }

    fn check_down(wanted: i32, old: &[(i32, i32)], new: (i32, i32), expected: &[i32]) {
        let deployment = deployment(wanted, "1", "0");
        let old: Vec<_> =
            old.iter().enumerate().map(|(i, (n, a))| set(&format!("old{i}"), *n, *a, 0)).collect();
        let new = set("new", new.0, new.1, 0);
        let all = total(&old) + set_replicas(&new);
        let available_total = old.iter().map(lasting).sum::<i32>() + lasting(&new);
        let most = max_scaled_down(&deployment, all, &new);
        let sizes: Vec<i32> = if most <= 0 {
            Vec::new()
        } else {
            scale_down_old(&deployment, &old, available_total, most).into_iter().map(|(_, n)| n).collect()
        };
        assert_eq!(sizes, expected);
    }

    #[test]
    fn old_sets_shrink_only_as_new_pods_become_available() {
        check_down(3, &[(3, 3)], (1, 0), &[]);
        check_down(3, &[(3, 3)], (1, 1), &[2]);
        // The old set has been told to have three but still reports four: one more may go, not two.
        check_down(4, &[(3, 4)], (2, 2), &[2]);
        // Unhealthy old pods go first and cost no availability.
        check_down(3, &[(3, 1)], (1, 1), &[2]);
    }
}
