//! What a job's pods amount to, and what follows: the job's end, or pods to make or delete. All pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{meta, pods};

use super::backoff::{self, Record};
use super::indexes::Indexes;
use super::pods::{
    fails_index, index_of, is_failed, is_held, is_indexed, is_limited_per_index, is_suspended,
    only_replaces_failed, spec, valid_index,
};
use super::policy;
use crate::ranking;

/// Most pods that one pass makes or deletes.
const BURST: usize = 500;

/// A job's pods, sorted out and counted.
#[derive(Debug)]
pub struct Account {
    /// All of them.
    pub pods: Vec<Arc<Pod>>,
    /// Those that have neither ended nor are about to go.
    pub active: Vec<Arc<Pod>>,
    /// Active ones that are ready.
    pub ready: i32,
    /// Those that are about to go and have not ended.
    pub terminating: i32,
    /// Successes, those included that the status does not have yet. Of an Indexed job: succeeded indexes.
    pub succeeded: i32,
    /// Failures that count, likewise.
    pub failed: i32,
    /// Succeeded indexes that are in the status.
    pub counted: Indexes,
    /// All succeeded indexes.
    pub succeeded_indexes: Indexes,
    /// Failed indexes, if failures are limited index by index.
    pub failed_indexes: Option<Indexes>,
    /// By index, failed pods that stay until there is another to take over their count.
    pub delayed: BTreeMap<i32, Arc<Pod>>,
    /// Failures since the last success.
    pub backoff: Record,
    /// Uids of pods whose finalizer has been removed, though the cache does not show it yet.
    released: HashSet<String>,
}

impl Account {
    /// Counts `pods`. `before` is the record of failures so far.
    pub fn new(job: &Job, pods: Vec<Arc<Pod>>, released: HashSet<String>, before: &Record) -> Self {
        let active: Vec<Arc<Pod>> = pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let count = |test: &dyn Fn(&Pod) -> bool, of: &[Arc<Pod>]| {
            i32::try_from(of.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
        };
        let is_going = |pod: &Pod| pods::is_terminating(pod) && !pods::is_terminal(pod);
        let mut account = Account {
            ready: count(&pods::is_ready, &active),
            terminating: count(&is_going, &pods),
            active,
            pods,
            succeeded: 0,
            failed: 0,
            counted: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            delayed: BTreeMap::new(),
            backoff: Record::default(),
            released,
        };
        account.count_ended(job, before);
        if is_indexed(job) {
            account.count_indexes(job);
        }
        account
    }

    /// Whether the pod waits to be counted, as far as we know.
    pub fn is_held(&self, pod: &Pod) -> bool {
        is_held(pod) && !self.released.contains(meta::uid(&pod.metadata))
    }

    /// Pods that are not counted yet and pass `test`; of an Indexed job only those with one of its indexes.
    fn uncounted(&self, job: &Job, test: impl Fn(&Pod) -> bool) -> Vec<Arc<Pod>> {
        let valid = |pod: &Pod| !is_indexed(job) || valid_index(job, pod).is_some();
        self.pods.iter().filter(|pod| self.is_held(pod) && valid(pod) && test(pod)).cloned().collect()
    }

    fn count_ended(&mut self, job: &Job, before: &Record) {
        let status = job.status.clone().unwrap_or_default();
        let listed = status.uncounted_terminated_pods.unwrap_or_default();
        let (listed_succeeded, listed_failed) =
            (listed.succeeded.unwrap_or_default(), listed.failed.unwrap_or_default());
        let is_new = |list: &[String], pod: &Pod| !list.iter().any(|uid| uid == meta::uid(&pod.metadata));
        let succeeded =
            self.uncounted(job, |pod| pods::phase(pod) == "Succeeded" && is_new(&listed_succeeded, pod));
        let failed = self.uncounted(job, |pod| is_failed(job, pod) && is_new(&listed_failed, pod));
        let failure_policy = spec(job).pod_failure_policy.as_ref();
        let counting = failed.iter().filter(|pod| policy::judge(failure_policy, pod).counts()).count();
        let sum = |counted: Option<i32>, new: usize, listed: usize| {
            counted.unwrap_or(0).saturating_add(i32::try_from(new + listed).unwrap_or(i32::MAX))
        };
        self.succeeded = sum(status.succeeded, succeeded.len(), listed_succeeded.len());
        self.failed = sum(status.failed, counting, listed_failed.len());
        self.backoff = before.with(&succeeded, &failed);
    }

    fn count_indexes(&mut self, job: &Job) {
        let completions = spec(job).completions.unwrap_or(0);
        let status = job.status.clone().unwrap_or_default();
        let held = |test: &dyn Fn(&Pod) -> bool| -> Indexes {
            let pods = self.pods.iter().filter(|pod| is_held(pod) && test(pod));
            pods.filter_map(|pod| valid_index(job, pod)).collect()
        };
        self.counted = Indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
        self.succeeded_indexes = self.counted.union(&held(&|pod| pods::phase(pod) == "Succeeded"));
        self.succeeded = self.succeeded_indexes.len();
        if !is_limited_per_index(job) {
            return;
        }
        let before = Indexes::parse(status.failed_indexes.as_deref().unwrap_or_default(), completions);
        let failed = before.union(&held(&|pod| fails_index(job, pod)));
        let active: BTreeSet<i32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        for pod in self.uncounted(job, |pod| is_failed(job, pod)) {
            let Some(index) = index_of(&pod) else { continue };
            if self.succeeded_indexes.contains(index) || failed.contains(index) || active.contains(&index) {
                continue;
            }
            let rank = |pod: &Pod| (super::pods::all_failures(pod), backoff::finished_at(pod));
            let newer = self.delayed.get(&index).is_none_or(|present| {
                let ((a, then), (b, now)) = (rank(present), rank(&pod));
                a <= b && then <= now
            });
            if newer {
                self.delayed.insert(index, pod);
            }
        }
        self.failed_indexes = Some(failed);
    }
}

/// A condition that holds since now.
pub fn condition(kind: &str, reason: &str, message: impl Into<String>, now: &Time) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// A condition of the job that is true.
pub fn true_condition<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == kind && c.status == "True")
}

/// What ends the job, if something does before it has done all its work: what an earlier pass has found, or a
/// limit, or a policy. `FailureTarget` and `SuccessCriteriaMet` come before `Failed` and `Complete`, for pods have to
/// go first.
pub fn end(job: &Job, account: &Account, now: &Time) -> Option<JobCondition> {
    if let Some(met) = true_condition(job, "SuccessCriteriaMet") {
        return Some(met.clone());
    }
    if let Some(target) = true_condition(job, "FailureTarget") {
        return Some(failed(target, now));
    }
    let failure = |reason: &str, message: &str| Some(condition("FailureTarget", reason, message, now));
    let failure_policy = spec(job).pod_failure_policy.as_ref().filter(|_| !account.pods.is_empty());
    if failure_policy.is_some() {
        let failed = account.pods.iter().filter(|pod| is_failed(job, pod));
        for pod in failed {
            if let policy::Failure::Job(message) = policy::judge(failure_policy, pod) {
                return failure("PodFailurePolicy", &message);
            }
        }
    }
    let limit = spec(job).backoff_limit.unwrap_or(6);
    if account.failed > limit || restarts_exceed(job, account, limit) {
        return failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if time_left(job, now).is_some_and(|left| left.is_zero()) {
        return failure("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let completions = spec(job).completions.unwrap_or(0);
    if let Some(failed) = &account.failed_indexes {
        if spec(job).max_failed_indexes.is_some_and(|most| failed.len() > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return failure("MaxFailedIndexesExceeded", message);
        }
        if !failed.is_empty() && failed.len() + account.succeeded_indexes.len() >= completions {
            return failure("FailedIndexes", "Job has failed indexes");
        }
    }
    let success_policy = spec(job).success_policy.as_ref().filter(|_| is_indexed(job));
    let rule = policy::success(success_policy, completions, &account.succeeded_indexes)?;
    let message = format!("Matched rules at index {rule}");
    Some(condition("SuccessCriteriaMet", "SuccessPolicy", message, now))
}

/// The `Failed` that follows a `FailureTarget`.
pub fn failed(target: &JobCondition, now: &Time) -> JobCondition {
    let (reason, message) = (target.reason.as_deref(), target.message.clone());
    condition("Failed", reason.unwrap_or_default(), message.unwrap_or_default(), now)
}

/// Containers that are restarted in their pods count against the limit too.
fn restarts_exceed(job: &Job, account: &Account, limit: i32) -> bool {
    let policy = spec(job).template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = account.pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
    let statuses = running.filter_map(|pod| pod.status.as_ref());
    let restarts: i32 = statuses
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
        .map(|container| container.restart_count)
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// The time until the job's deadline; zero when it has passed, none when there is none now.
pub fn time_left(job: &Job, now: &Time) -> Option<Duration> {
    if is_suspended(job) {
        return None;
    }
    let allowed = u64::try_from(spec(job).active_deadline_seconds?).ok()?;
    let start = job.status.as_ref()?.start_time.as_ref()?;
    Some(meta::until(now, &meta::plus(start, Duration::from_secs(allowed))).unwrap_or_default())
}

/// Whether all the work is done, with `active` pods left.
pub fn is_complete(job: &Job, account: &Account, active: i32) -> bool {
    active == 0
        && match spec(job).completions {
            // Any success will do, but those that run already may end.
            None => account.succeeded > 0,
            Some(wanted) => account.succeeded >= wanted,
        }
}

/// What is to be done about a job's pods.
#[derive(Debug)]
pub enum Work {
    /// All is as it should be.
    Nothing,
    /// These pods go.
    Delete(Vec<Arc<Pod>>),
    /// Pods are missing, but it is too early to make them.
    Wait(Duration),
    /// So many pods come; those of an Indexed job with these indexes.
    Create(Vec<Option<i32>>),
}

/// Decides about the pods of a job that goes on (`manageJob`).
pub fn work(job: &Job, account: &Account, now: &Time) -> Work {
    let active = i32::try_from(account.active.len()).unwrap_or(i32::MAX);
    if is_suspended(job) {
        let doomed = surplus(job, account, account.active.len());
        return if doomed.is_empty() { Work::Nothing } else { Work::Delete(doomed) };
    }
    let parallelism = spec(job).parallelism.unwrap_or(1);
    let wanted = match spec(job).completions {
        None if account.succeeded > 0 => active,
        None => parallelism,
        Some(completions) => (completions - account.succeeded).min(parallelism).max(0),
    };
    let mut doomed = surplus(job, account, usize::try_from(active - wanted).unwrap_or(0));
    doomed.truncate(BURST);
    if !doomed.is_empty() {
        return Work::Delete(doomed);
    }
    let terminating = if only_replaces_failed(job) { account.terminating } else { 0 };
    let Some(missing) = usize::try_from(wanted - terminating - active).ok().filter(|n| *n > 0) else {
        return Work::Nothing;
    };
    if !is_limited_per_index(job) {
        let wait = account.backoff.remaining(now);
        if !wait.is_zero() {
            return Work::Wait(wait);
        }
    }
    let count = missing.min(BURST);
    if !is_indexed(job) {
        return Work::Create(vec![None; count]);
    }
    let indexes = pending(job, account, count);
    let mut waits = Vec::new();
    let mut ready = Vec::new();
    for index in indexes {
        let wait = account.delayed.get(&index).map_or(Duration::ZERO, |pod| {
            let failures = super::pods::all_failures(pod).saturating_add(1);
            backoff::remaining(failures, &backoff::finished_at(pod), now)
        });
        if wait.is_zero() { ready.push(Some(index)) } else { waits.push(wait) }
    }
    match (ready.is_empty(), waits.into_iter().min()) {
        (true, Some(wait)) => Work::Wait(wait),
        (true, None) => Work::Nothing,
        (false, _) => Work::Create(ready),
    }
}

/// The first `count` indexes that have neither succeeded nor failed nor a pod at work.
fn pending(job: &Job, account: &Account, count: usize) -> Vec<i32> {
    let of =
        |pods: &mut dyn Iterator<Item = &Arc<Pod>>| pods.filter_map(|pod| index_of(pod)).collect::<Indexes>();
    let mut taken = account.succeeded_indexes.union(&of(&mut account.active.iter()));
    if only_replaces_failed(job) {
        let mut going =
            account.pods.iter().filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod));
        taken = taken.union(&of(&mut going));
    }
    if let Some(failed) = &account.failed_indexes {
        taken = taken.union(failed);
    }
    taken.missing(count, spec(job).completions.unwrap_or(0))
}

/// At least `least` active pods that may go; of an Indexed job first those without a sound index and all but one of
/// each index.
fn surplus(job: &Job, account: &Account, least: usize) -> Vec<Arc<Pod>> {
    let mut doomed = Vec::new();
    let mut left = account.active.clone();
    left.sort_by(|a, b| ranking::least_advanced_first(a, b));
    if is_indexed(job) {
        let mut seen = BTreeSet::new();
        let mut kept = Vec::new();
        // The most advanced pod of an index stays.
        for pod in left.into_iter().rev() {
            match valid_index(job, &pod) {
                Some(index) if seen.insert(index) => kept.push(pod),
                _ => doomed.push(pod),
            }
        }
        kept.reverse();
        left = kept;
    }
    let more = least.saturating_sub(doomed.len());
    doomed.extend(left.into_iter().take(more));
    doomed
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
