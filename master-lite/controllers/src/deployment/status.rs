//! What a deployment reports.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::meta;

use super::math;

/// The condition that says whether enough pods are available.
pub const AVAILABLE: &str = "Available";
/// The condition that says whether the rollout gets on.
pub const PROGRESSING: &str = "Progressing";
/// The condition that says that pods can't be made or deleted.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Reasons of [`PROGRESSING`].
pub mod reason {
    /// The new set is there with all its pods available.
    pub const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
    /// A set has been scaled, or pods have become ready or available.
    pub const UPDATED: &str = "ReplicaSetUpdated";
    /// A new set has been made.
    pub const CREATED: &str = "NewReplicaSetCreated";
    /// A set with the deployment's template was there.
    pub const FOUND: &str = "FoundNewReplicaSet";
    /// The new set can't be made.
    pub const CREATE_ERROR: &str = "ReplicaSetCreateError";
    /// No progress for too long.
    pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
    /// Paused.
    pub const PAUSED: &str = "DeploymentPaused";
    /// Paused no more.
    pub const RESUMED: &str = "DeploymentResumed";
}

/// A condition that changed just now.
pub fn condition(kind: &str, status: &str, reason: &str, message: impl Into<String>) -> DeploymentCondition {
    let now = meta::now();
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

/// One condition of a status.
pub fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Takes a condition away.
pub fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_ != kind);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Puts a condition in; one of equal status and reason is left as it is.
pub fn set(status: &mut DeploymentStatus, mut new: DeploymentCondition) {
    if let Some(present) = get(status, &new.type_) {
        if present.status == new.status && present.reason == new.reason {
            return;
        }
        if present.status == new.status {
            new.last_transition_time = present.last_transition_time.clone();
        }
    }
    remove(status, &new.type_);
    status.conditions.get_or_insert_default().push(new);
}

/// The deadline for progress, unless there is none.
pub fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds.filter(|s| *s != i32::MAX)?;
    Some(Duration::from_secs(u64::try_from(seconds).ok()?))
}

fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Counts and availability, from the sets' own reports (`calculateStatus`).
pub fn compute(deployment: &Deployment, all: &[ReplicaSet], new: Option<&ReplicaSet>) -> DeploymentStatus {
    let sum = |of: fn(&ReplicaSet) -> i32| all.iter().map(of).sum::<i32>();
    let actual = |set: &ReplicaSet| set.status.as_ref().map_or(0, |s| s.replicas);
    let available = sum(math::available);
    let unavailable = (math::total(all) - available).max(0);
    let present = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(|set| set.status.as_ref().map_or(0, |s| s.replicas))),
        updated_replicas: nonzero(new.map_or(0, actual)),
        ready_replicas: nonzero(sum(|set| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: nonzero(available),
        unavailable_replicas: nonzero(unavailable),
        terminating_replicas: terminating(all),
        collision_count: present.collision_count,
        conditions: present.conditions,
    };
    if available >= math::replicas(deployment) - math::max_unavailable(deployment) {
        set(
            &mut status,
            condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        );
    } else {
        let message = "Deployment does not have minimum availability.";
        set(&mut status, condition(AVAILABLE, "False", "MinimumReplicasUnavailable", message));
    }
    status
}

/// Terminating pods of all sets; nothing if a set that has reported does not say.
fn terminating(all: &[ReplicaSet]) -> Option<i32> {
    let mut total = 0;
    for set in all {
        let status = set.status.clone().unwrap_or_default();
        match (status.observed_generation.unwrap_or(0), status.terminating_replicas) {
            (_, Some(count)) => total += count,
            (0, None) => {}
            (_, None) => return None,
        }
    }
    Some(total)
}

/// Whether all wanted pods are of the new set and available, and no old one is left.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = math::replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether `new` shows progress since the deployment's present status.
fn is_progressing(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let old = deployment.status.clone().unwrap_or_default();
    let old_pods = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    new.updated_replicas.unwrap_or(0) > old.updated_replicas.unwrap_or(0)
        || old_pods(new) < old_pods(&old)
        || new.ready_replicas.unwrap_or(0) > old.ready_replicas.unwrap_or(0)
        || new.available_replicas.unwrap_or(0) > old.available_replicas.unwrap_or(0)
}

fn is_timed_out(status: &DeploymentStatus, deadline: Duration, now: &Time) -> bool {
    let Some(progress) = get(status, PROGRESSING) else { return false };
    match progress.reason.as_deref() {
        Some(reason::NEW_AVAILABLE) => false,
        Some(reason::TIMED_OUT) => true,
        _ => progress.last_update_time.as_ref().is_some_and(|from| meta::plus(from, deadline).0 < now.0),
    }
}

/// The status during a rollout: [`compute`] and what is to be said about progress (`syncRolloutStatus`).
pub fn rollout(
    deployment: &Deployment,
    all: &[ReplicaSet],
    new: Option<&ReplicaSet>,
    now: &Time,
) -> DeploymentStatus {
    let mut status = compute(deployment, all, new);
    let deadline = deadline(deployment);
    let present = deployment.status.as_ref().and_then(|s| get(s, PROGRESSING)).cloned();
    let already_complete = status.replicas == status.updated_replicas
        && present.as_ref().and_then(|c| c.reason.as_deref()) == Some(reason::NEW_AVAILABLE);
    if deadline.is_none() {
        remove(&mut status, PROGRESSING);
    }
    if let Some(deadline) = deadline.filter(|_| !already_complete) {
        let who = match new {
            Some(set) => format!("ReplicaSet {:?}", meta::name(&set.metadata)),
            None => format!("Deployment {:?}", meta::name(&deployment.metadata)),
        };
        if is_complete(deployment, &status) {
            let message = format!("{who} has successfully progressed.");
            set(&mut status, condition(PROGRESSING, "True", reason::NEW_AVAILABLE, message));
        } else if is_progressing(deployment, &status) {
            let mut progress =
                condition(PROGRESSING, "True", reason::UPDATED, format!("{who} is progressing."));
            if let Some(present) = present {
                if present.status == "True" {
                    progress.last_transition_time = present.last_transition_time;
                }
                // Removed first, so that the time of the last progress is written even if nothing else changes.
                remove(&mut status, PROGRESSING);
            }
            set(&mut status, progress);
        } else if is_timed_out(&status, deadline, now) {
            let message = format!("{who} has timed out progressing.");
            set(&mut status, condition(PROGRESSING, "False", reason::TIMED_OUT, message));
        }
    }
    match failure(all, new) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

/// The failure of the new set, or of another.
fn failure(all: &[ReplicaSet], new: Option<&ReplicaSet>) -> Option<DeploymentCondition> {
    let found = new.into_iter().chain(all).find_map(|set| {
        set.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == REPLICA_FAILURE)
    })?;
    Some(DeploymentCondition {
        type_: found.type_.clone(),
        status: found.status.clone(),
        reason: found.reason.clone(),
        message: found.message.clone(),
        last_update_time: found.last_transition_time.clone(),
        last_transition_time: found.last_transition_time.clone(),
    })
}

/// When to look again whether the deadline has passed.
pub fn next_check(deployment: &Deployment, new: &DeploymentStatus, now: &Time) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let progress = deployment.status.as_ref().and_then(|s| get(s, PROGRESSING))?;
    if is_complete(deployment, new) || progress.reason.as_deref() == Some(reason::TIMED_OUT) {
        return None;
    }
    let left = meta::until(now, &meta::plus(progress.last_update_time.as_ref()?, deadline));
    Some(left.unwrap_or_default() + Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(status: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2},
            "spec": {"replicas": 3, "selector": {}, "template": {}, "progressDeadlineSeconds": 60,
                     "strategy": {"type": "Recreate"}},
            "status": status,
        }))
        .unwrap()
    }

    fn set_with(replicas: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1"},
            "spec": {"replicas": 3, "selector": {}},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available,
                       "terminatingReplicas": 0, "observedGeneration": 1},
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(status: Value, set: ReplicaSet, reason: &str, message: &str) {
        let deployment = deployment(status);
        let status = rollout(&deployment, std::slice::from_ref(&set), Some(&set), &meta::now());
        let progress = get(&status, PROGRESSING).unwrap();
        assert_eq!(progress.reason.as_deref(), Some(reason));
        assert_eq!(progress.message.as_deref(), Some(message));
    }

    #[test]
    fn progress() {
        check(
            json!({}),
            set_with(3, 3),
            "NewReplicaSetAvailable",
            "ReplicaSet \"web-1\" has successfully progressed.",
        );
        check(json!({}), set_with(3, 1), "ReplicaSetUpdated", "ReplicaSet \"web-1\" is progressing.");
        let stuck = json!({"replicas": 3, "updatedReplicas": 3, "readyReplicas": 1, "availableReplicas": 1,
            "conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
                            "lastUpdateTime": "2020-01-01T00:00:00Z"}]});
        check(
            stuck,
            set_with(3, 1),
            "ProgressDeadlineExceeded",
            "ReplicaSet \"web-1\" has timed out progressing.",
        );
    }

    #[test]
    fn availability_follows_the_counts() {
        let deployment = deployment(json!({}));
        let set = set_with(3, 2);
        let status = compute(&deployment, std::slice::from_ref(&set), Some(&set));
        assert_eq!(status.unavailable_replicas, Some(1));
        assert_eq!(status.observed_generation, Some(2));
        assert_eq!(get(&status, AVAILABLE).unwrap().reason.as_deref(), Some("MinimumReplicasUnavailable"));
    }
}
