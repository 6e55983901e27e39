//! Cron jobs: jobs made at the times of a schedule. [`times`] says when.

pub mod times;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use keelson_client::{Delta, EventType, Informer, Key, Recorder, WorkQueue, events, meta, run_workers};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};

use crate::context::{Context, Task};
use crate::error::{Error, Result};
use crate::job::account::true_condition;
use crate::job::pods::is_finished;

const NAME: &str = "cronjob-controller";
const WORKERS: usize = 5;
/// The time for which a job was made, by the cron job's own clock.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// The controller's parts that a pass needs.
struct Controller {
    client: Client,
    recorder: Recorder,
    cron_jobs: Arc<Informer<CronJob>>,
    jobs: Arc<Informer<Job>>,
    queue: Arc<WorkQueue<Key>>,
}

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(NAME),
        recorder: context.recorder(NAME, NAME),
        cron_jobs: context.informers.cron_jobs.clone(),
        jobs: context.informers.jobs.clone(),
        queue: WorkQueue::new(),
    });
    let on_cron_job = controller.clone();
    controller.cron_jobs.on_change(move |delta| on_cron_job.cron_job_changed(delta));
    let on_job = controller.clone();
    controller.jobs.on_change(move |delta| on_job.job_changed(delta));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.cron_jobs.synced().await;
            controller.jobs.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, WORKERS, shutdown, move |key| {
            let controller = controller.clone();
            async move {
                match controller.sync(&key).await {
                    // Nothing can be made in a namespace that goes away; the cron job goes too.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    outcome => outcome,
                }
            }
        })
        .await;
    })
}

impl Controller {
    /// A new schedule counts from now on: what it would have started before is not made up for.
    fn cron_job_changed(&self, delta: &Delta<CronJob>) {
        let (new, key) = (delta.object(), Key::of(&**delta.object()));
        let clock = |job: &CronJob| (job.spec.schedule.clone(), job.spec.time_zone.clone());
        if delta.old().is_none_or(|old| clock(old) == clock(new)) {
            return self.queue.add(key);
        }
        match times::schedule(new) {
            Ok(schedule) => {
                if let Some(wait) = times::wait(new, meta::now().0, &schedule) {
                    self.queue.add_after(key, wait);
                }
            }
            // The pass says what is wrong with it.
            Err(_) => self.queue.add(key),
        }
    }

    fn job_changed(&self, delta: &Delta<Job>) {
        let owner_of = |job: &Job| {
            let owner = meta::controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob")?;
            let found = self.cron_jobs.get(&Key::new(meta::namespace(&job.metadata), &owner.name))?;
            (meta::uid(&found.metadata) == owner.uid).then(|| Key::of(&*found))
        };
        let (former, owner) = (delta.old().and_then(|old| owner_of(old)), owner_of(delta.object()));
        former.into_iter().chain(owner).for_each(|key| self.queue.add(key));
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(cached) = self.cron_jobs.get(key) else { return Ok(()) };
        let mut pass = Pass {
            controller: self,
            api: Api::namespaced(self.client.clone(), &key.namespace),
            jobs_api: Api::namespaced(self.client.clone(), &key.namespace),
            cron_job: (*cached).clone(),
        };
        let jobs = self.jobs.controlled_by(meta::uid(&cached.metadata));
        pass.clean_up(&jobs).await;
        let outcome = pass.run(&jobs).await;
        if pass.cron_job.status != cached.status {
            let (params, name) = (PostParams::default(), &key.name);
            match pass.api.replace_status(name, &params, &pass.cron_job).await {
                Err(error) if meta::is_not_found(&error) => return Ok(()),
                written => written?,
            };
        }
        if let Some(wait) = outcome? {
            self.queue.add_after(key.clone(), wait);
        }
        Ok(())
    }
}

struct Pass<'a> {
    controller: &'a Controller,
    api: Api<CronJob>,
    jobs_api: Api<Job>,
    /// The cron job; its status as it will be.
    cron_job: CronJob,
}

impl Pass<'_> {
    fn status(&mut self) -> &mut CronJobStatus {
        self.cron_job.status.get_or_insert_default()
    }

    fn is_active(&self, uid: &str) -> bool {
        self.active().iter().any(|job| job.uid.as_deref() == Some(uid))
    }

    fn active(&self) -> Vec<ObjectReference> {
        self.cron_job.status.as_ref().and_then(|s| s.active.clone()).unwrap_or_default()
    }

    fn set_inactive(&mut self, uid: &str) {
        let mut active = self.active();
        active.retain(|job| job.uid.as_deref() != Some(uid));
        self.status().active = (!active.is_empty()).then_some(active);
    }

    fn event(&self, kind: EventType, reason: &str, message: impl Into<String>) {
        self.controller.recorder.event(&self.cron_job, kind, reason, message);
    }

    /// Deletes finished jobs beyond the limits, the oldest first.
    async fn clean_up(&mut self, jobs: &[Arc<Job>]) {
        let spec = self.cron_job.spec.clone();
        for (condition, limit) in
            [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
        {
            let Some(limit) = limit else { continue };
            for job in surplus(jobs, condition, limit) {
                // What can't be deleted now is tried again in the next pass.
                let _ = self.delete(&job).await;
            }
        }
    }

    async fn delete(&mut self, job: &Job) -> Result {
        let name = meta::name(&job.metadata);
        match self.jobs_api.delete(name, &DeleteParams::background()).await {
            Err(error) if !meta::is_not_found(&error) => {
                let message = format!("Deleted job: {}", meta::message(&error));
                self.event(EventType::Warning, "FailedDelete", message);
                return Err(error.into());
            }
            _ => {}
        }
        self.set_inactive(meta::uid(&job.metadata));
        self.event(EventType::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
        Ok(())
    }

    /// Brings the list of active jobs up to date and starts a job if it is time. Returns how long to wait for the
    /// next.
    async fn run(&mut self, jobs: &[Arc<Job>]) -> Result<Option<Duration>> {
        for job in jobs {
            self.follow(job).await?;
        }
        self.miss(jobs).await?;
        if self.cron_job.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let spec = self.cron_job.spec.clone();
        if let Some(zone) = &spec.time_zone
            && let Err(error) = keelson_cron::check_zone(zone)
        {
            let message = format!("invalid timeZone: {zone:?}: {error}");
            self.event(EventType::Warning, "UnknownTimeZone", message);
            return Ok(None);
        }
        if spec.suspend == Some(true) {
            return Ok(None);
        }
        if spec.schedule.contains("TZ") {
            let message = format!(
                "CRON_TZ or TZ used in schedule {:?} is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details",
                spec.schedule
            );
            self.event(EventType::Warning, "UnsupportedSchedule", message);
        }
        let schedule = match times::schedule(&self.cron_job) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                self.event(EventType::Warning, "UnparseableSchedule", message);
                return Ok(None);
            }
        };
        let now = meta::now().0;
        match times::due(&self.cron_job, now, &schedule) {
            Err(error) => {
                let message = format!("invalid schedule: {} : {error}", spec.schedule);
                self.event(EventType::Warning, "InvalidSchedule", message);
                return Ok(None);
            }
            Ok(None) => {}
            Ok(Some((time, missed))) => {
                if missed == times::Missed::Many {
                    let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
                    self.event(EventType::Warning, "TooManyMissedTimes", message);
                }
                self.start(time, now).await?;
            }
        }
        Ok(times::wait(&self.cron_job, now, &schedule))
    }

    /// Notes what has become of a job.
    async fn follow(&mut self, job: &Job) -> Result {
        let (uid, name) = (meta::uid(&job.metadata), meta::name(&job.metadata));
        let known = self.is_active(uid);
        if !is_finished(job) {
            if known {
                return Ok(());
            }
            let fresh = self.api.get(meta::name(&self.cron_job.metadata)).await?;
            let listed = fresh.status.as_ref().and_then(|s| s.active.as_ref());
            if listed.is_some_and(|active| active.iter().any(|job| job.uid.as_deref() == Some(uid))) {
                // The cache was behind.
                self.cron_job = fresh;
                return Ok(());
            }
            let message = format!("Saw a job that the controller did not create or forgot: {name}");
            self.event(EventType::Warning, "UnexpectedJob", message);
            return Ok(());
        }
        let complete = true_condition(job, "Complete").is_some();
        if known {
            self.set_inactive(uid);
            let condition = if complete { "Complete" } else { "Failed" };
            let message = format!("Saw completed job: {name}, condition: {condition}");
            self.event(EventType::Normal, "SawCompletedJob", message);
        }
        let completed = job.status.as_ref().and_then(|s| s.completion_time.clone()).filter(|_| complete);
        if completed > self.status().last_successful_time {
            self.status().last_successful_time = completed;
        }
        Ok(())
    }

    /// Drops active jobs that are gone, whatever became of them.
    async fn miss(&mut self, jobs: &[Arc<Job>]) -> Result {
        let there: HashSet<&str> = jobs.iter().map(|job| meta::uid(&job.metadata)).collect();
        for job in self.active() {
            let (uid, name) = (job.uid.unwrap_or_default(), job.name.unwrap_or_default());
            // The cache may be behind: the server is asked.
            if !there.contains(uid.as_str()) && self.jobs_api.get_opt(&name).await?.is_none() {
                let message = format!("Active job went missing: {name}");
                self.event(EventType::Normal, "MissingJob", message);
                self.set_inactive(&uid);
            }
        }
        Ok(())
    }

    /// Starts the job of a time, unless it is too late, or was started, or another is still at work.
    async fn start(&mut self, time: Timestamp, now: Timestamp) -> Result {
        let spec = self.cron_job.spec.clone();
        let late = now.duration_since(time);
        if spec.starting_deadline_seconds.is_some_and(|most| late.as_millis() > i128::from(most) * 1000) {
            let shown = time.strftime("%a, %d %b %Y %H:%M:%S +0000");
            let message = format!("Missed scheduled time to start a job: {shown}");
            self.event(EventType::Warning, "MissSchedule", message);
            return Ok(());
        }
        let name = times::job_name(meta::name(&self.cron_job.metadata), time);
        let active = self.active();
        let started = active.iter().any(|job| job.name.as_deref() == Some(&name))
            || self.status().last_schedule_time.as_ref().is_some_and(|last| last.0 == time);
        if started {
            return Ok(());
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.event(EventType::Normal, "JobAlreadyActive", message);
                return Ok(());
            }
            Some("Replace") => {
                for job in active {
                    let job = self.jobs_api.get(job.name.as_deref().unwrap_or_default()).await;
                    let job = job.inspect_err(|error| {
                        let message = format!("Get job: {}", meta::message(error));
                        self.event(EventType::Warning, "FailedGet", message);
                    })?;
                    self.delete(&job).await?;
                }
            }
            _ => {}
        }
        let job = match self.jobs_api.create(&PostParams::default(), &self.job(&name, time)?).await {
            Ok(job) => {
                self.event(EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                job
            }
            // Ours, if we stopped before the status was written.
            Err(error) if meta::is_already_exists(&error) => {
                let job = self.jobs_api.get(&name).await?;
                let ours = meta::is_controlled_by(&job.metadata, meta::uid(&self.cron_job.metadata));
                if !ours || self.is_active(meta::uid(&job.metadata)) {
                    return Ok(());
                }
                job
            }
            Err(error) => {
                if !meta::is_namespace_terminating(&error) {
                    let message = format!("Error creating job: {}", meta::message(&error));
                    self.event(EventType::Warning, "FailedCreate", message);
                }
                return Err(error.into());
            }
        };
        self.status().active.get_or_insert_default().push(events::reference(&job));
        self.status().last_schedule_time = Some(Time(time));
        Ok(())
    }

    fn job(&self, name: &str, time: Timestamp) -> Result<Job> {
        let spec = self.cron_job.spec.clone();
        let template = spec.job_template.metadata.unwrap_or_default();
        let zone = spec.time_zone.unwrap_or_default();
        let shown =
            keelson_cron::format_in(time, &zone).map_err(|error| Error::Pending(error.to_string()))?;
        let mut annotations: BTreeMap<String, String> = template.annotations.unwrap_or_default();
        annotations.insert(SCHEDULED.into(), shown);
        Ok(Job {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: self.cron_job.metadata.namespace.clone(),
                labels: template.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![meta::controller_ref(&self.cron_job)]),
                ..Default::default()
            },
            spec: spec.job_template.spec,
            status: None,
        })
    }
}

/// Jobs that ended with `condition`, beyond `limit`, the oldest first; those that never began come last.
fn surplus(jobs: &[Arc<Job>], condition: &str, limit: i32) -> Vec<Arc<Job>> {
    let mut ended: Vec<Arc<Job>> =
        jobs.iter().filter(|job| true_condition(job, condition).is_some()).cloned().collect();
    let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    ended.sort_by_key(|job| {
        let began = job.status.as_ref().and_then(|s| s.start_time.clone());
        (began.is_none(), began, meta::name(&job.metadata).to_owned())
    });
    ended.truncate(surplus);
    ended
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_oldest_go() {
        let job = |name: &str, condition: &str, began: Option<&str>| -> Arc<Job> {
            let job = json!({
                "metadata": {"name": name},
                "status": {"startTime": began, "conditions": [{"type": condition, "status": "True"}]},
            });
            Arc::new(serde_json::from_value(job).unwrap())
        };
        let (early, late) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-02T00:00:00Z"));
        let jobs = [
            job("d", "Complete", None),
            job("c", "Complete", late),
            job("b", "Complete", early),
            job("a", "Failed", early),
        ];
        let names = |limit| -> Vec<String> {
            surplus(&jobs, "Complete", limit).iter().map(|j| j.metadata.name.clone().unwrap()).collect()
        };
        assert_eq!(names(0), ["b", "c", "d"]);
        assert_eq!(names(2), ["b"]);
        assert!(names(3).is_empty());
    }
}
