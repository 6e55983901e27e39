//! What is to be done about the pods of a stateful set, and what it reports. All pure.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::pods;

use super::identity::{min_ready_seconds, ordinal, ordinals, replicas, revision, spec, start};
use crate::percent::{Round, scaled};

/// A place of the set: its ordinal, and the pod there, if there is one.
pub type Place = (i32, Option<Arc<Pod>>);

/// The pods of a set by place.
#[derive(Debug)]
pub struct Pods {
    /// The places that the set shall fill, by ordinal.
    pub places: Vec<Place>,
    /// Pods outside of these, the highest first.
    pub condemned: Vec<Arc<Pod>>,
}

impl Pods {
    /// Sorts the pods of a set. Those whose name has no ordinal are none of its business.
    pub fn sort(set: &StatefulSet, pods: &[Arc<Pod>]) -> Self {
        let of = |wanted: i32| pods.iter().find(|pod| ordinal(pod) == Some(wanted)).cloned();
        let places = ordinals(set).map(|ordinal| (ordinal, of(ordinal))).collect();
        let outside = |pod: &&Arc<Pod>| ordinal(pod).is_some_and(|o| !ordinals(set).contains(&o));
        let mut condemned: Vec<Arc<Pod>> = pods.iter().filter(outside).cloned().collect();
        condemned.sort_by_key(|pod| Reverse(ordinal(pod)));
        Pods { places, condemned }
    }

    /// Whether some pod that shall stay is missing or not available.
    fn has_unavailable_place(&self, set: &StatefulSet, now: &Time) -> bool {
        self.places.iter().any(|(_, pod)| pod.as_ref().is_none_or(|pod| is_unavailable(set, pod, now)))
    }

    /// The condemned pod that may go although it is not available: the lowest such, if all that stay are.
    pub fn first_unavailable_condemned(&self, set: &StatefulSet, now: &Time) -> Option<&Arc<Pod>> {
        if self.has_unavailable_place(set, now) {
            return None;
        }
        self.condemned.iter().rev().find(|pod| is_unavailable(set, pod, now))
    }
}

/// Whether pods come and go one by one, each waiting for those before it.
pub fn is_ordered(set: &StatefulSet) -> bool {
    spec(set).pod_management_policy.as_deref() != Some("Parallel")
}

fn is_available(set: &StatefulSet, pod: &Pod, now: &Time) -> bool {
    pods::is_available(pod, min_ready_seconds(set), now)
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn is_unavailable(set: &StatefulSet, pod: &Pod, now: &Time) -> bool {
    !is_available(set, pod, now) || pods::is_terminating(pod)
}

/// What a place needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Its pod has ended and goes.
    Delete,
    /// A pod comes.
    Create,
    /// Its pod is there, but the next place has to wait for it.
    Wait,
    /// Its pod is looked after.
    Keep,
}

/// What the place of `pod` needs (`processReplica`).
pub fn step(set: &StatefulSet, pod: Option<&Pod>, now: &Time) -> Step {
    let Some(pod) = pod else { return Step::Create };
    if pods::is_terminal(pod) {
        return if pods::is_terminating(pod) { Step::Wait } else { Step::Delete };
    }
    let up = !pods::is_terminating(pod) && is_running_and_ready(pod) && is_available(set, pod, now);
    if is_ordered(set) && !up { Step::Wait } else { Step::Keep }
}

/// Whether a condemned pod may go now (`processCondemned`); none: not, and those before it have to wait too.
pub fn may_go(set: &StatefulSet, pod: &Arc<Pod>, unavailable: Option<&Arc<Pod>>, now: &Time) -> Option<bool> {
    let ordered = is_ordered(set);
    if pods::is_terminating(pod) {
        return (!ordered).then_some(false);
    }
    let is_the_one = unavailable.is_some_and(|other| Arc::ptr_eq(other, pod));
    let up = is_running_and_ready(pod) && is_available(set, pod, now);
    (!ordered || up || is_the_one).then_some(true)
}

fn rolling(set: &StatefulSet) -> (Option<i32>, Option<&IntOrString>) {
    let strategy = spec(set).update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    (strategy.map(|r| r.partition.unwrap_or(0)), strategy.and_then(|r| r.max_unavailable.as_ref()))
}

fn is_rolling(set: &StatefulSet) -> bool {
    spec(set).update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("RollingUpdate")
}

/// Whether a new pod with this ordinal is made from the current revision and not from the update's.
pub fn is_of_current(set: &StatefulSet, ordinal: i32) -> bool {
    let current = set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0);
    match rolling(set).0 {
        None => is_rolling(set) && ordinal < start(set).saturating_add(current),
        Some(partition) => ordinal < start(set).saturating_add(partition),
    }
}

/// Pods to delete so that they come back at the update's revision: the highest ordinals first, down to the partition.
/// Without `maxUnavailable` one at a time, each waiting for those above it; with it as many as may be missing.
pub fn to_update(set: &StatefulSet, places: &[Place], update: &str, now: &Time) -> Vec<Arc<Pod>> {
    if spec(set).update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return Vec::new();
    }
    let (partition, most) = rolling(set);
    let lowest = usize::try_from(partition.unwrap_or(0)).unwrap_or(0);
    let targets = || places.iter().skip(lowest).rev().map(|(_, pod)| pod.as_ref());
    let is_old = |pod: &&Arc<Pod>| revision(pod) != update && !pods::is_terminating(pod);
    let Some(most) = most else {
        for pod in targets() {
            match pod {
                Some(pod) if is_old(&pod) => return vec![pod.clone()],
                Some(pod) if !is_unavailable(set, pod, now) => {}
                _ => return Vec::new(),
            }
        }
        return Vec::new();
    };
    let most = usize::try_from(scaled(Some(most), replicas(set), Round::Down).max(1)).unwrap_or(1);
    let missing =
        places.iter().filter(|(_, pod)| pod.as_ref().is_none_or(|pod| is_unavailable(set, pod, now))).count();
    targets().flatten().filter(is_old).take(most.saturating_sub(missing)).cloned().collect()
}

/// The names of the two revisions of a set, and how often names have collided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revisions {
    /// That which pods had before the update.
    pub current: String,
    /// That which they shall have.
    pub update: String,
    /// Collisions of names so far.
    pub collisions: i32,
}

/// What the set reports. `deleted` pods of the current revision are no longer counted there.
pub fn status(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    revisions: &Revisions,
    deleted: usize,
    now: &Time,
) -> StatefulSetStatus {
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let at = |name: &str| count(&|pod| !pods::is_terminating(pod) && revision(pod) == name);
    let nonzero = |count: i32| (count != 0).then_some(count);
    let deleted = i32::try_from(deleted).unwrap_or(i32::MAX);
    let present = set.status.clone().unwrap_or_default();
    let ready = count(&is_running_and_ready);
    let updated = at(&revisions.update);
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: count(&|_| true),
        ready_replicas: nonzero(ready),
        // Go prints this one always.
        available_replicas: Some(count(&|pod| is_running_and_ready(pod) && is_available(set, pod, now))),
        current_replicas: nonzero(at(&revisions.current) - deleted),
        updated_replicas: nonzero(updated),
        current_revision: Some(revisions.current.clone()),
        update_revision: Some(revisions.update.clone()),
        collision_count: Some(revisions.collisions),
        conditions: present.conditions,
    };
    let wanted = replicas(set);
    if is_rolling(set) && updated == wanted && ready == wanted && status.replicas == wanted {
        status.current_replicas = status.updated_replicas;
        status.current_revision = status.update_revision.clone();
    }
    status
}

#[cfg(test)]
mod tests {
    use keelson_client::meta;
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> StatefulSet {
        let mut set = json!({"metadata": {"name": "w", "generation": 2}, "spec": {
            "replicas": 3, "selector": {}, "template": {}, "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}});
        for (key, value) in spec.as_object().unwrap() {
            set["spec"][key] = value.clone();
        }
        serde_json::from_value(set).unwrap()
    }

    fn parallel(extra: Value) -> StatefulSet {
        let mut spec = json!({"podManagementPolicy": "Parallel"});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        set(spec)
    }

    /// `0 new ready`: ordinal, revision, and `ready`, `going`, or a phase.
    fn pod(text: &str) -> Arc<Pod> {
        let words: Vec<&str> = text.split(' ').collect();
        let has = |word: &str| words.contains(&word);
        let phase = ["Failed", "Succeeded", "Pending"].into_iter().find(|p| has(p)).unwrap_or("Running");
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": format!("w-{}", words[0]), "labels": {"controller-revision-hash": words[1]},
                             "deletionTimestamp": has("going").then_some("2026-01-01T00:00:00Z")},
                "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": if has("ready") { "True" } else { "False" },
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap(),
        )
    }

    fn pods(texts: &[&str]) -> Vec<Arc<Pod>> {
        texts.iter().map(|text| pod(text)).collect()
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| meta::name(&pod.metadata)).collect()
    }

    #[test]
    fn sorting() {
        let set = set(json!({"replicas": 2, "ordinals": {"start": 1}}));
        let sorted = Pods::sort(&set, &pods(&["0 a", "2 a", "3 a", "4 a"]));
        let places: Vec<_> = sorted.places.iter().map(|(ordinal, pod)| (*ordinal, pod.is_some())).collect();
        assert_eq!(places, [(1, false), (2, true)]);
        assert_eq!(names(&sorted.condemned), ["w-4", "w-3", "w-0"]);
    }

    #[test]
    fn steps() {
        let check = |set: &StatefulSet, text: Option<&str>, expected: Step| {
            let pod = text.map(pod);
            assert_eq!(step(set, pod.as_deref(), &meta::now()), expected, "{text:?}");
        };
        let (one_by_one, at_once) = (set(json!({})), parallel(json!({})));
        for set in [&one_by_one, &at_once] {
            check(set, None, Step::Create);
            check(set, Some("0 a Failed"), Step::Delete);
            check(set, Some("0 a Succeeded going"), Step::Wait);
            check(set, Some("0 a ready"), Step::Keep);
        }
        for text in ["0 a", "0 a Pending", "0 a ready going"] {
            check(&one_by_one, Some(text), Step::Wait);
            check(&at_once, Some(text), Step::Keep);
        }
        check(&set(json!({"minReadySeconds": i32::MAX})), Some("0 a ready"), Step::Wait);
    }

    #[track_caller]
    fn check_may_go(set: &StatefulSet, texts: &[&str], expected: &[Option<bool>]) {
        let sorted = Pods::sort(set, &pods(texts));
        let now = meta::now();
        let unavailable = sorted.first_unavailable_condemned(set, &now);
        let verdicts: Vec<_> =
            sorted.condemned.iter().map(|pod| may_go(set, pod, unavailable, &now)).collect();
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn condemned_pods_go_in_order() {
        let one = || json!({"replicas": 1});
        check_may_go(&set(one()), &["0 a ready", "1 a ready", "2 a ready"], &[Some(true), Some(true)]);
        check_may_go(&set(one()), &["0 a ready", "1 a ready", "2 a ready going"], &[None, Some(true)]);
        // The lowest that is not well may go, the others wait for it.
        check_may_go(&set(one()), &["0 a ready", "1 a", "2 a"], &[None, Some(true)]);
        check_may_go(&set(one()), &["0 a", "1 a"], &[None]);
        check_may_go(&parallel(one()), &["0 a", "1 a", "2 a going"], &[Some(false), Some(true)]);
    }

    #[track_caller]
    fn check_update(set: &StatefulSet, texts: &[&str], expected: &[&str]) {
        let sorted = Pods::sort(set, &pods(texts));
        assert_eq!(names(&to_update(set, &sorted.places, "new", &meta::now())), expected);
    }

    #[test]
    fn updates_begin_at_the_top() {
        let plain = set(json!({}));
        check_update(&plain, &["0 old ready", "1 old ready", "2 old ready"], &["w-2"]);
        check_update(&plain, &["0 old ready", "1 old ready", "2 new ready"], &["w-1"]);
        check_update(&plain, &["0 old ready", "1 old ready", "2 new"], &[]);
        check_update(&plain, &["0 old ready", "1 old ready", "2 old ready going"], &[]);
        check_update(&plain, &["0 new ready", "1 new ready", "2 new ready"], &[]);
        check_update(&plain, &["0 old ready", "1 old ready"], &[]);
        let partition = |n: i32| {
            set(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}}))
        };
        check_update(&partition(2), &["0 old ready", "1 old ready", "2 new ready"], &[]);
        check_update(&partition(9), &["0 old ready", "1 old ready", "2 old ready"], &[]);
        check_update(
            &set(json!({"updateStrategy": {"type": "OnDelete"}})),
            &["0 old ready", "1 old ready", "2 old ready"],
            &[],
        );
        let most = |n: Value| {
            parallel(
                json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": n}}}),
            )
        };
        check_update(&most(json!(2)), &["0 old ready", "1 old ready", "2 old ready"], &["w-2", "w-1"]);
        check_update(&most(json!(2)), &["0 old ready", "1 old ready", "2 new"], &["w-1"]);
        check_update(&most(json!("10%")), &["0 old ready", "1 old ready", "2 old ready"], &["w-2"]);
        check_update(&most(json!(1)), &["0 old", "1 old ready", "2 old ready"], &[]);
    }

    #[test]
    fn new_pods_below_the_partition_are_of_the_current_revision() {
        let partition = set(
            json!({"ordinals": {"start": 5}, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
        );
        assert!(is_of_current(&partition, 6) && !is_of_current(&partition, 7));
        assert!(!is_of_current(&set(json!({"updateStrategy": {"type": "OnDelete"}})), 0));
    }

    #[test]
    fn reports() {
        let revisions = Revisions { current: "old".into(), update: "new".into(), collisions: 1 };
        let of = |texts: &[&str], deleted| {
            status(&set(json!({})), &pods(texts), &revisions, deleted, &meta::now())
        };
        let half = of(&["0 old ready", "1 old", "2 new ready"], 1);
        assert_eq!((half.replicas, half.ready_replicas, half.available_replicas), (3, Some(2), Some(2)));
        assert_eq!((half.current_replicas, half.updated_replicas), (Some(1), Some(1)));
        assert_eq!((half.current_revision.as_deref(), half.observed_generation), (Some("old"), Some(2)));
        let done = of(&["0 new ready", "1 new ready", "2 new ready"], 0);
        assert_eq!((done.current_revision.as_deref(), done.current_replicas), (Some("new"), Some(3)));
    }
}
