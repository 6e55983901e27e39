//! What a set reports of its pods.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Selector, meta, pods};

use super::kinds::{Failure, ReplicaFailure, Scaled};

/// The status of a set, whichever kind has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// Active pods.
    pub replicas: i32,
    /// Those that have every label of the template.
    pub fully_labeled: i32,
    /// Those that are ready.
    pub ready: i32,
    /// Those that have been ready for long enough.
    pub available: i32,
    /// Pods that are being deleted (KEP-3973); only replica sets report it.
    pub terminating: Option<i32>,
    /// The condition `ReplicaFailure`.
    pub failure: Option<ReplicaFailure>,
}

/// Counts the pods of `set`.
pub fn compute<K: Scaled>(
    set: &K,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Failure>,
    now: &Time,
) -> Counts {
    let labels = set.template().metadata.and_then(|m| m.labels).unwrap_or_default();
    let labels = Selector::from_map(&labels);
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let present = set.counts();
    let failure = match (failure, present.failure) {
        (Some(_), Some(present)) => Some(present),
        (Some(failure), None) => Some(ReplicaFailure {
            reason: failure.reason.into(),
            message: failure.error.to_string(),
            since: Some(now.clone()),
        }),
        (None, _) => None,
    };
    Counts {
        replicas: count(&|_| true),
        fully_labeled: count(&|pod| labels.matches(pod.metadata.labels.as_ref())),
        ready: count(&pods::is_ready),
        available: count(&|pod| pods::is_available(pod, set.min_ready_seconds(), now)),
        terminating: (K::kind(&()) == "ReplicaSet").then(|| i32::try_from(terminating).unwrap_or(i32::MAX)),
        failure,
    }
}

/// Whether `new` must be written.
pub fn differs<K: Scaled>(set: &K, new: &Counts) -> bool {
    set.counts() != *new || set.observed_generation().unwrap_or(0) != set.meta().generation.unwrap_or(0)
}

/// When the next ready pod will count as available.
pub fn next_availability(active: &[Arc<Pod>], min_ready_seconds: i32, now: &Time) -> Option<Duration> {
    let wait = Duration::from_secs(u64::try_from(min_ready_seconds).ok()?);
    active
        .iter()
        .filter(|pod| pods::is_ready(pod) && !pods::is_available(pod, min_ready_seconds, now))
        .filter_map(|pod| pods::condition(pod, "Ready")?.last_transition_time.as_ref())
        .filter_map(|since| meta::until(now, &meta::plus(since, wait)))
        .min()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;
    use crate::error::Error;

    fn pod(ready_for: Option<u64>, now: &Time) -> Arc<Pod> {
        let since = ready_for.map(|s| Time(now.0 - std::time::Duration::from_secs(s)));
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"labels": {"app": "web"}},
                "status": {"conditions": [{
                    "type": "Ready",
                    "status": if ready_for.is_some() { "True" } else { "False" },
                    "lastTransitionTime": since,
                }]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn counting() {
        let set: ReplicaSet = serde_json::from_value(json!({"spec": {
            "replicas": 3, "minReadySeconds": 10, "selector": {},
            "template": {"metadata": {"labels": {"app": "web"}}},
        }}))
        .unwrap();
        let now = meta::now();
        let pods = [pod(None, &now), pod(Some(4), &now), pod(Some(20), &now)];
        let counts = compute(&set, &pods, 2, None, &now);
        assert_eq!((counts.replicas, counts.fully_labeled, counts.ready, counts.available), (3, 3, 2, 1));
        assert_eq!(counts.terminating, Some(2));
        let next = next_availability(&pods, 10, &now).unwrap();
        assert!((5..=6).contains(&next.as_secs()), "{next:?}");

        let failure = Failure { reason: "FailedCreate", error: Error::Stale };
        let mut failed = set.clone();
        failed.set_status(&compute(&set, &pods, 0, Some(&failure), &now), Some(1));
        assert_eq!(failed.counts().failure.as_ref().unwrap().reason, "FailedCreate");
        assert_eq!(compute(&failed, &pods, 0, None, &now).failure, None);
    }
}
