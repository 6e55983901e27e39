//! Bringing the ends of pods into the job's status so that each counts exactly once.
//!
//! An ended pod is held by a finalizer. First its uid goes into `uncountedTerminatedPods` (or its index into
//! `completedIndexes`), then the finalizer is removed, then the uid becomes part of a count: whenever the controller
//! stops between two of these, the next pass finds what is left to do.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{meta, pods};

use super::account::{Account, condition, failed, true_condition};
use super::indexes::Indexes;
use super::pods::{is_failed, is_held, is_indexed, spec, valid_index};
use super::policy;

/// Most pods that are counted in one pass, so that the status stays below some 20 kB.
const MOST_UNCOUNTED: usize = 500;

/// What is to be written and done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Pods to let go once the status is written.
    pub release: Vec<Arc<Pod>>,
    /// Uids of the pods that are held.
    pub held: HashSet<String>,
    /// Whether the status has changed.
    pub changed: bool,
    /// Whether pods were left for the next pass.
    pub is_full: bool,
    /// The condition that ends the job once nothing is left to count.
    pub end: Option<JobCondition>,
}

/// Writes what has ended into `job`'s status, with `end` if the job has come to that.
pub fn tally(job: &mut Job, account: &Account, end: Option<JobCondition>, now: &Time) -> Tally {
    let held = account.pods.iter().filter(|pod| account.is_held(pod));
    let held = held.map(|pod| meta::uid(&pod.metadata).to_owned()).collect();
    let mut tally = Tally { held, end, ..Tally::default() };
    tally.changed = settle(job.status.get_or_insert_default(), &tally.held);
    let succeeded = count_pods(&mut tally, job, account);
    if is_indexed(job) {
        tally.changed |= write_indexes(job, account, &succeeded);
    }
    conclude(&mut tally, job, now);
    tally
}

/// Notes pods that have ended. Returns succeeded indexes that the status does not have yet.
fn count_pods(tally: &mut Tally, job: &mut Job, account: &Account) -> Indexes {
    let indexed = is_indexed(job);
    let mut pods = account.pods.clone();
    // Indexes are reported in order.
    pods.sort_by_key(|pod| super::pods::index_of(pod).unwrap_or(-1));
    let listed = job.status.as_ref().and_then(|s| s.uncounted_terminated_pods.clone()).unwrap_or_default();
    let (mut succeeded, mut failed) =
        (listed.succeeded.unwrap_or_default(), listed.failed.unwrap_or_default());
    let known: HashSet<String> = succeeded.iter().chain(&failed).cloned().collect();
    let failed_before: HashSet<String> = failed.iter().cloned().collect();
    let mut indexes = Vec::new();
    for pod in pods.iter().filter(|pod| account.is_held(pod)) {
        let failed_now = is_failed(job, pod);
        if !may_go(tally, job, account, pod, failed_now) {
            continue;
        }
        tally.release.push(pod.clone());
        let uid = meta::uid(&pod.metadata).to_owned();
        // When the job is given up every pod that has not succeeded counts as failed.
        let given_up = tally.end.as_ref().is_some_and(|end| end.type_ != "SuccessCriteriaMet");
        if pods::phase(pod) == "Succeeded" && !failed_before.contains(&uid) {
            if indexed {
                let index = valid_index(job, pod).filter(|index| !account.counted.contains(*index));
                tally.changed |= index.is_some();
                indexes.extend(index);
            } else if !known.contains(&uid) {
                succeeded.push(uid);
                tally.changed = true;
            }
        } else if (failed_now || given_up)
            && !failed_before.contains(&uid)
            && (!indexed || valid_index(job, pod).is_some())
            && policy::judge(spec(job).pod_failure_policy.as_ref(), pod).counts()
        {
            failed.push(uid);
            tally.changed = true;
        }
        if indexes.len() + succeeded.len() + failed.len() >= MOST_UNCOUNTED {
            // The status' update brings the job back into the queue.
            tally.is_full = true;
            break;
        }
    }
    let uncounted = job.status.get_or_insert_default().uncounted_terminated_pods.get_or_insert_default();
    let list = |uids: Vec<String>| (!uids.is_empty()).then_some(uids);
    (uncounted.succeeded, uncounted.failed) = (list(succeeded), list(failed));
    indexes.into_iter().collect()
}

/// Whether an ended pod need not be held any longer (`canRemoveFinalizer`).
fn may_go(tally: &Tally, job: &Job, account: &Account, pod: &Pod, failed: bool) -> bool {
    if job.metadata.deletion_timestamp.is_some() || tally.end.is_some() || pods::phase(pod) == "Succeeded" {
        return true;
    }
    let waits = super::pods::index_of(pod)
        .and_then(|index| account.delayed.get(&index))
        .is_some_and(|delayed| delayed.metadata.uid == pod.metadata.uid);
    failed && !waits
}

fn write_indexes(job: &mut Job, account: &Account, newly: &Indexes) -> bool {
    let succeeded = account.succeeded_indexes.union(newly);
    let status = job.status.get_or_insert_default();
    let text = |text: String| (!text.is_empty()).then_some(text);
    let completed = text(succeeded.to_string());
    let failed = account.failed_indexes.as_ref().map(Indexes::to_string);
    let changed = status.completed_indexes != completed || status.failed_indexes != failed;
    status.completed_indexes = completed;
    status.failed_indexes = failed;
    status.succeeded = nonzero(succeeded.len());
    changed
}

/// Announces the job's end and prepares what follows once no pod is left.
fn conclude(tally: &mut Tally, job: &mut Job, now: &Time) {
    let Some(end) = tally.end.take() else { return };
    tally.end = Some(match end.type_.as_str() {
        "FailureTarget" => {
            let last = failed(&end, now);
            job.status.get_or_insert_default().conditions.get_or_insert_default().push(end);
            tally.changed = true;
            last
        }
        "SuccessCriteriaMet" => {
            let (reason, message) = (end.reason.clone(), end.message.clone());
            let last = condition("Complete", &reason.unwrap_or_default(), message.unwrap_or_default(), now);
            if true_condition(job, "SuccessCriteriaMet").is_none() {
                job.status.get_or_insert_default().conditions.get_or_insert_default().push(end);
                tally.changed = true;
            }
            last
        }
        _ => end,
    });
}

/// A count as Go prints it: 0 is left out.
pub fn nonzero(count: i32) -> Option<i32> {
    (count != 0).then_some(count)
}

/// Turns uids of pods that are no longer held into counts; whether there were any.
pub fn settle(status: &mut JobStatus, held: &HashSet<String>) -> bool {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let settled = |list: &mut Option<Vec<String>>| {
        let before = list.as_ref().map_or(0, Vec::len);
        if let Some(uids) = list {
            uids.retain(|uid| held.contains(uid));
        }
        let after = list.as_ref().map_or(0, Vec::len);
        if after == 0 {
            *list = None;
        }
        i32::try_from(before - after).unwrap_or(i32::MAX)
    };
    let (succeeded, failed) = (settled(&mut uncounted.succeeded), settled(&mut uncounted.failed));
    status.succeeded = nonzero(status.succeeded.unwrap_or(0).saturating_add(succeeded));
    status.failed = nonzero(status.failed.unwrap_or(0).saturating_add(failed));
    succeeded + failed > 0
}

/// Ends the job, if it has come to that and every pod is counted and gone; the condition that says so.
pub fn finish(job: &mut Job, tally: &Tally, terminating: i32, now: &Time) -> Option<JobCondition> {
    let end = tally.end.clone().filter(|_| !tally.is_full && terminating == 0)?;
    let status = job.status.get_or_insert_default();
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    if uncounted.succeeded.is_some() || uncounted.failed.is_some() {
        return None;
    }
    ensure(status, end.clone(), now);
    if end.type_ == "Complete" {
        status.completion_time = Some(now.clone());
    }
    Some(end)
}

/// Puts a condition in place; whether that changed anything. To say for the first time that something is not so
/// means nothing.
pub fn ensure(status: &mut JobStatus, mut new: JobCondition, now: &Time) -> bool {
    new.last_probe_time = Some(now.clone());
    new.last_transition_time = Some(now.clone());
    let conditions = status.conditions.get_or_insert_default();
    let changed = match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        Some(present) => {
            let same = present.status == new.status
                && present.reason == new.reason
                && present.message.as_deref().unwrap_or_default()
                    == new.message.as_deref().unwrap_or_default();
            if !same {
                *present = new;
            }
            !same
        }
        None if new.status == "False" => false,
        None => {
            conditions.push(new);
            true
        }
    };
    if conditions.is_empty() {
        status.conditions = None;
    }
    changed
}

/// Pods of a job that is gone or has ended, which no one will count any more.
pub fn is_stray(job: Option<&Job>, pod: &Pod) -> bool {
    if !is_held(pod) {
        return false;
    }
    match (meta::controller_of(&pod.metadata), job) {
        (Some(owner), _) if owner.kind != "Job" || owner.api_version != "batch/v1" => false,
        (Some(_), Some(job)) => super::pods::is_finished(job) && !super::pods::is_managed_by_other(job),
        (Some(_), None) | (None, _) => true,
    }
}

#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
