//! How long a job waits before it replaces pods that have failed.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::{meta, pods};

/// The wait after the first failure; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// The failures since the last success.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record {
    failures: i32,
    last: Option<Time>,
}

impl Record {
    /// What the record becomes with pods that have ended since.
    pub fn with(&self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>]) -> Record {
        let mut times: Vec<Time> = failed.iter().map(|pod| finished_at(pod)).collect();
        times.sort();
        let success = succeeded.iter().map(|pod| finished_at(pod)).max();
        let mut record = if success.is_some() { Record::default() } else { self.clone() };
        let since = times.iter().filter(|time| success.as_ref().is_none_or(|success| *time > success));
        for time in since {
            record.failures = record.failures.saturating_add(1);
            record.last = Some(time.clone());
        }
        record
    }

    /// How long to wait still.
    pub fn remaining(&self, now: &Time) -> Duration {
        self.last.as_ref().map_or(Duration::ZERO, |last| remaining(self.failures, last, now))
    }
}

/// How long to wait still after `failures` of which the last was at `last`.
pub fn remaining(failures: i32, last: &Time, now: &Time) -> Duration {
    let Ok(doublings) = u32::try_from(failures - 1) else { return Duration::ZERO };
    let wait = FIRST.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(LONGEST);
    meta::until(now, &meta::plus(last, wait)).unwrap_or_default()
}

/// When a pod ended: when the last of its containers did; else when it ceased to be ready, or was deleted, or at
/// the least was made.
pub fn finished_at(pod: &Pod) -> Time {
    let epoch = || Time(Timestamp::UNIX_EPOCH);
    containers_finished(pod)
        .or_else(|| {
            pods::condition(pod, "Ready").filter(|c| c.status == "False")?.last_transition_time.clone()
        })
        .or_else(|| {
            let marked = pod.metadata.deletion_timestamp.as_ref()?;
            let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
            marked.0.checked_sub(SignedDuration::from_secs(grace)).ok().map(Time)
        })
        .or_else(|| pod.metadata.creation_timestamp.clone())
        .unwrap_or_else(epoch)
}

fn containers_finished(pod: &Pod) -> Option<Time> {
    let status = pod.status.as_ref()?;
    let is_sidecar = |status: &&ContainerStatus| {
        let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        containers.into_iter().any(|c| c.name == status.name && c.restart_policy.as_deref() == Some("Always"))
    };
    let sidecars = status.init_container_statuses.iter().flatten().filter(is_sidecar);
    let all = status.container_statuses.iter().flatten().chain(sidecars);
    let times: Option<Vec<Time>> =
        all.map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.clone()).collect();
    times?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Time {
        Time(Timestamp::from_second(1_800_000_000 + seconds).unwrap())
    }

    fn ended(seconds: i64) -> Arc<Pod> {
        let status = json!({"status": {"containerStatuses": [
            {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": 1, "finishedAt": at(seconds)}}}]}});
        Arc::new(serde_json::from_value(status).unwrap())
    }

    #[test]
    fn failures_since_the_last_success_count() {
        let none = Record::default();
        assert_eq!(none.remaining(&at(0)), Duration::ZERO);
        let two = none.with(&[], &[ended(2), ended(0)]);
        assert_eq!(two, Record { failures: 2, last: Some(at(2)) });
        assert_eq!(two.remaining(&at(10)), Duration::from_secs(12));
        assert_eq!(two.remaining(&at(60)), Duration::ZERO);
        assert_eq!(two.with(&[], &[]), two);
        assert_eq!(two.with(&[ended(5)], &[]), none);
        assert_eq!(two.with(&[ended(5)], &[ended(4), ended(6)]), Record { failures: 1, last: Some(at(6)) });
        assert_eq!(remaining(30, &at(0), &at(0)), LONGEST);
    }

    #[test]
    fn when_a_pod_ended() {
        let check = |pod: serde_json::Value, expected: i64| {
            assert_eq!(finished_at(&serde_json::from_value(pod).unwrap()), at(expected));
        };
        let not_ready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": at(3)}]);
        check(json!({"status": {"conditions": not_ready}}), 3);
        check(json!({"metadata": {"deletionTimestamp": at(30), "deletionGracePeriodSeconds": 10}}), 20);
        check(json!({"metadata": {"creationTimestamp": at(1)}}), 1);
        let terminated = |seconds: i64| {
            json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                   "state": {"terminated": {"exitCode": 0, "finishedAt": at(seconds)}}})
        };
        check(json!({"status": {"containerStatuses": [terminated(5), terminated(7)]}}), 7);
    }
}
