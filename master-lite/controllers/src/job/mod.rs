//! Jobs: pods that run to their end, so and so many times.
//!
//! [`account`] counts and decides, [`tally`] brings the ends of pods into the status without counting one twice,
//! [`policy`], [`backoff`] and [`indexes`] hold the rules of their names, [`pods`] what a job's pods carry. A pass is
//! here; pods whose job is gone are let go in [`strays`].

pub mod account;
pub mod backoff;
pub mod indexes;
pub mod pods;
pub mod policy;
pub mod strays;
pub mod tally;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{Delta, EventType, Informer, Key, Recorder, WorkQueue, meta, run_workers};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;

use self::pods::{is_finished, is_held, is_managed_by_other, is_suspended, spec};
use crate::context::{Context, Task};
use crate::error::{Error, Result};
use crate::expectations::{Expectations, OwnWrites};
use crate::owners::{Owner, concerned, owner_of};
use crate::pod_control::{Adoption, PodControl, slow_start};
use account::{Account, Work, condition};
use backoff::Record;
use tally::Tally;

const NAME: &str = "job-controller";
const WORKERS: usize = 5;
/// Pods change in crowds: the changes of so long are dealt with at once. (Upstream waits a second.)
const BATCH: Duration = Duration::from_millis(100);

/// The controller's parts that a pass needs.
struct Controller {
    client: kube::Client,
    recorder: Recorder,
    control: PodControl,
    jobs: Arc<Informer<Job>>,
    pods: Arc<Informer<Pod>>,
    expectations: Expectations,
    /// Statuses written that the cache must show before the next pass.
    written: OwnWrites,
    /// By job, uids of the pods that were let go, until the cache shows it.
    released: Mutex<HashMap<Key, HashSet<String>>>,
    failures: Mutex<HashMap<Key, Record>>,
    queue: Arc<WorkQueue<Key>>,
    strays: Arc<WorkQueue<Key>>,
}

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let (client, recorder) = (context.client(NAME), context.recorder(NAME, NAME));
    let controller = Arc::new(Controller {
        control: PodControl::new(client.clone(), recorder.clone()),
        client,
        recorder,
        jobs: context.informers.jobs.clone(),
        pods: context.informers.pods.clone(),
        expectations: Expectations::default(),
        written: OwnWrites::default(),
        released: Mutex::default(),
        failures: Mutex::default(),
        queue: WorkQueue::new(),
        strays: WorkQueue::new(),
    });
    let on_job = controller.clone();
    controller.jobs.on_change(move |delta| on_job.job_changed(delta));
    let on_pod = controller.clone();
    controller.pods.on_change(move |delta| on_pod.pod_changed(delta));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.jobs.synced().await;
            controller.pods.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let (queue, strays) = (controller.queue.clone(), controller.strays.clone());
        let (worker, releaser) = (controller.clone(), controller);
        let jobs = run_workers(NAME, queue, WORKERS, shutdown.clone(), move |key| {
            let controller = worker.clone();
            async move { controller.sync(&key).await }
        });
        let strays = run_workers(NAME, strays, WORKERS, shutdown, move |key| {
            let controller = releaser.clone();
            async move { controller.release_stray(&key).await }
        });
        tokio::join!(jobs, strays);
    })
}

impl Controller {
    fn job_changed(&self, delta: &Delta<Job>) {
        let job = delta.object();
        let key = Key::of(&**job);
        let finished = is_finished(job);
        if matches!(delta, Delta::Deleted(_)) || finished {
            self.forget(&key);
            self.look_for_strays(job);
        }
        match delta {
            Delta::Updated { .. } if finished => {}
            Delta::Updated { old, new } if old.metadata.generation == new.metadata.generation => {
                self.queue.add_after(key, BATCH);
            }
            _ => self.queue.add(key),
        }
    }

    fn pod_changed(&self, delta: &Delta<Pod>) {
        let pod = delta.object();
        let uid = meta::uid(&pod.metadata);
        let gone = matches!(delta, Delta::Deleted(_));
        if let Some(former) = delta.old().and_then(|old| owner_of(&self.jobs, &old.metadata))
            && !is_held(pod)
        {
            self.release_observed(&Key::of(&*former), uid);
        }
        let owner = owner_of(&self.jobs, &pod.metadata);
        if let Some(job) = owner.as_ref().filter(|job| !is_finished(job)) {
            let key = Key::of(&**job);
            // Before anyone is woken: a worker must find it noted.
            self.expectations.observe(&key, delta);
            if gone || !is_held(pod) {
                self.release_observed(&key, uid);
            }
        }
        if !gone && tally::is_stray(owner.as_deref(), pod) {
            self.strays.add(Key::of(&**pod));
        }
        for key in concerned(&self.jobs, delta) {
            self.queue.add_after(key, BATCH);
        }
    }

    fn release_observed(&self, key: &Key, uid: &str) {
        let mut released = self.released.lock();
        if let Some(uids) = released.get_mut(key) {
            uids.remove(uid);
            if uids.is_empty() {
                released.remove(key);
            }
        }
    }

    fn forget(&self, key: &Key) {
        self.expectations.forget(key);
        self.written.forget(key);
        self.released.lock().remove(key);
        self.failures.lock().remove(key);
    }

    async fn sync(&self, key: &Key) -> Result {
        let Some(job) = self.jobs.get(key) else {
            self.forget(key);
            return Ok(());
        };
        if is_managed_by_other(&job) || is_finished(&job) || !self.written.is_seen(key, &*job) {
            // Whatever the cache does not show yet will wake us.
            return Ok(());
        }
        if !matches!(spec(&job).completion_mode.as_deref(), None | Some("NonIndexed" | "Indexed")) {
            let message = "Skipped Job sync because completion mode is unknown";
            self.recorder.event(&*job, EventType::Warning, "UnknownCompletionMode", message);
            return Ok(());
        }
        // Asked before the pods are listed: one that comes between only delays the pass.
        let settled = self.expectations.satisfied(key);
        let released = self.released.lock().get(key).cloned().unwrap_or_default();
        let before = self.failures.lock().get(key).cloned().unwrap_or_default();
        let account = Account::new(&job, self.claim(key, &job).await?, released, &before);
        let mut pass = Pass {
            controller: self,
            key,
            api: Api::namespaced(self.client.clone(), &key.namespace),
            active: i32::try_from(account.active.len()).unwrap_or(i32::MAX),
            ready: account.ready,
            terminating: account.terminating,
            job: (*job).clone(),
            account,
        };
        pass.run(settled).await
    }

    async fn claim(&self, key: &Key, job: &Job) -> Result<Vec<Arc<Pod>>> {
        let mut found = self.pods.controlled_by(meta::uid(&job.metadata));
        found.extend(self.pods.orphans_in(&key.namespace));
        let owners: Api<Job> = Api::namespaced(self.client.clone(), &key.namespace);
        let adoption = Adoption { owners: &owners, owner: job, finalizer: Some(pods::FINALIZER) };
        adoption.claim(&job.selector()?, &self.control.api(&key.namespace), found).await
    }
}

/// One pass over a job.
struct Pass<'a> {
    controller: &'a Controller,
    key: &'a Key,
    api: Api<Job>,
    /// The job; its newest version after each write.
    job: Job,
    account: Account,
    /// What the status will say.
    active: i32,
    ready: i32,
    terminating: i32,
}

impl Pass<'_> {
    async fn run(&mut self, settled: bool) -> Result {
        let now = meta::now();
        let before = self.job.status.clone().unwrap_or_default();
        let status = self.job.status.get_or_insert_default();
        status.uncounted_terminated_pods.get_or_insert_default();
        if status.start_time.is_none() && !is_suspended(&self.job) {
            self.job.status.get_or_insert_default().start_time = Some(now.clone());
        }
        let mut end = account::end(&self.job, &self.account, &now);
        let mut changed = false;
        let mut outcome = Ok(());
        if end.is_some() {
            let wanted = self.active;
            let deleted = self.delete_active().await;
            if deleted.0 != wanted || !settled {
                // There may be pods that hold back, or that the cache does not show yet.
                end = None;
            }
            outcome = deleted.1;
        } else {
            if let Some(left) = account::time_left(&self.job, &now) {
                self.controller.queue.add_after(self.key.clone(), left);
            }
            let managed = settled && self.job.metadata.deletion_timestamp.is_none();
            if managed {
                outcome = self.manage().await;
            }
            if account::is_complete(&self.job, &self.account, self.active) {
                let message = "Reached expected number of succeeded pods";
                end = Some(condition("SuccessCriteriaMet", "CompletionsReached", message, &now));
            } else if managed {
                changed = self.note_suspension();
            }
        }
        let status = self.job.status.get_or_insert_default();
        changed |= before.active.unwrap_or(0) != self.active
            || before.ready != Some(self.ready)
            || before.terminating != Some(self.terminating);
        status.active = tally::nonzero(self.active);
        status.ready = Some(self.ready);
        status.terminating = Some(self.terminating);
        self.track(end, changed).await?;
        outcome
    }

    /// Says that the job is suspended, or goes on.
    fn note_suspension(&mut self) -> bool {
        let now = meta::now();
        let suspended = is_suspended(&self.job);
        let (word, reason, message) = match suspended {
            true => ("True", "JobSuspended", "Job suspended"),
            false => ("False", "JobResumed", "Job resumed"),
        };
        let mut new = condition("Suspended", reason, message, &now);
        new.status = word.into();
        let status = self.job.status.get_or_insert_default();
        let changed = tally::ensure(status, new, &now);
        if changed {
            // The deadline counts from when the job goes on.
            status.start_time = (!suspended).then(|| now.clone());
            let event = if suspended { "Suspended" } else { "Resumed" };
            self.controller.recorder.event(&self.job, EventType::Normal, event, message);
        }
        changed
    }

    /// Deletes the pods of a job that ends. They are held until they are counted. How many are deleted, and the
    /// first failure.
    async fn delete_active(&mut self) -> (i32, Result) {
        let (control, job) = (&self.controller.control, &self.job);
        let deletions = join_all(
            self.account
                .active
                .iter()
                .map(|pod| async move { (pod, gone_is_fine(control.delete(job, pod).await)) }),
        )
        .await;
        let mut outcome = Ok(());
        let mut deleted = 0;
        for (pod, one) in deletions {
            deleted += i32::from(one.is_ok());
            self.ready -= i32::from(keelson_client::pods::is_ready(pod));
            outcome = outcome.and(one);
        }
        self.active -= deleted;
        self.terminating += deleted;
        (deleted, outcome)
    }

    async fn manage(&mut self) -> Result {
        match account::work(&self.job, &self.account, &meta::now()) {
            Work::Nothing => Ok(()),
            Work::Wait(wait) => {
                self.controller.queue.add_after(self.key.clone(), wait.max(BATCH));
                Ok(())
            }
            Work::Delete(doomed) => self.delete(&doomed).await,
            Work::Create(indexes) => self.create(&indexes).await,
        }
    }

    /// Deletes pods that are too many; they count as nothing.
    async fn delete(&mut self, doomed: &[Arc<Pod>]) -> Result {
        let (controller, job, key) = (self.controller, &self.job, self.key);
        let keys: HashSet<Key> = doomed.iter().map(|pod| Key::of(&**pod)).collect();
        controller.expectations.expect(key, 0, keys);
        let deletions = join_all(doomed.iter().map(|pod| async move {
            let outcome = async {
                if is_held(pod) {
                    controller.release(pod).await?;
                }
                controller.control.delete(job, pod).await
            };
            let outcome = outcome.await;
            if outcome.is_err() {
                controller.expectations.deletion_observed(key, &Key::of(&**pod));
            }
            (pod, gone_is_fine(outcome))
        }))
        .await;
        let mut outcome = Ok(());
        for (pod, one) in deletions {
            if one.is_ok() {
                self.active -= 1;
                self.terminating += 1;
                self.ready -= i32::from(keelson_client::pods::is_ready(pod));
            }
            outcome = outcome.and(one);
        }
        outcome
    }

    async fn create(&mut self, indexes: &[Option<i32>]) -> Result {
        let (controller, job, key, account) = (self.controller, &self.job, self.key, &self.account);
        controller.expectations.expect(key, indexes.len(), HashSet::new());
        let template = pods::template(job);
        let (done, error) = slow_start(indexes.len(), |n| {
            let template = template.clone();
            async move {
                let outcome = match indexes.get(n).copied().flatten() {
                    None => controller.control.create(job, &template).await,
                    Some(index) => {
                        let replaced = account.delayed.get(&index);
                        let template = pods::with_index(job, template, index, replaced.map(|pod| &**pod));
                        let name = pods::generate_name(job, index);
                        controller.control.create_named(job, &template, &name).await
                    }
                };
                match outcome {
                    // Nothing that we could do about that, and the job goes away too.
                    Err(error) if error.is_namespace_terminating() => Ok(()),
                    outcome => outcome.map(drop),
                }
            }
        })
        .await;
        // What was not made will not be seen.
        for _ in done..indexes.len() {
            controller.expectations.creation_observed(key);
        }
        self.active += i32::try_from(done).unwrap_or(i32::MAX);
        error.map_or(Ok(()), Err)
    }

    /// Brings what has ended into the status (`trackJobStatusAndRemoveFinalizers`).
    async fn track(
        &mut self,
        end: Option<k8s_openapi::api::batch::v1::JobCondition>,
        changed: bool,
    ) -> Result {
        let now = meta::now();
        let mut tally = tally::tally(&mut self.job, &self.account, end, &now);
        tally.changed |= changed;
        if tally.changed {
            self.write().await?;
            self.controller.failures.lock().insert(self.key.clone(), self.account.backoff.clone());
            tally.changed = false;
        }
        let released = self.release(&mut tally).await;
        tally.changed |= tally::settle(self.job.status.get_or_insert_default(), &tally.held);
        if released.is_err() {
            if tally.changed {
                self.write().await?;
            }
            return released;
        }
        let end = tally::finish(&mut self.job, &tally, self.terminating, &now);
        if tally.changed || end.is_some() {
            self.write().await?;
        }
        if let Some(end) = end {
            let too_many = spec(&self.job).completions < self.job.status.as_ref().and_then(|s| s.succeeded);
            let recorder = &self.controller.recorder;
            if end.type_ != "Complete" {
                let (reason, message) = (end.reason.unwrap_or_default(), end.message.unwrap_or_default());
                recorder.event(&self.job, EventType::Warning, reason, message);
                return Ok(());
            }
            if too_many && spec(&self.job).completions.is_some() {
                let message = "Too many succeeded pods running after completion count reached";
                recorder.event(&self.job, EventType::Warning, "TooManySucceededPods", message);
            }
            recorder.event(&self.job, EventType::Normal, "Completed", "Job completed");
        }
        Ok(())
    }

    async fn write(&mut self) -> Result {
        let written = self.api.replace_status(&self.key.name, &PostParams::default(), &self.job).await?;
        self.controller.written.note(self.key, &written);
        self.job = written;
        Ok(())
    }

    /// Lets the counted pods go.
    async fn release(&self, tally: &mut Tally) -> Result {
        if tally.release.is_empty() {
            return Ok(());
        }
        let uid = |pod: &Pod| meta::uid(&pod.metadata).to_owned();
        {
            let mut released = self.controller.released.lock();
            released.entry(self.key.clone()).or_default().extend(tally.release.iter().map(|pod| uid(pod)));
        }
        let releases = join_all(tally.release.iter().map(|pod| async move {
            let outcome = self.controller.release(pod).await;
            if outcome.is_err() {
                self.controller.release_observed(self.key, meta::uid(&pod.metadata));
            }
            (pod, gone_is_fine(outcome))
        }))
        .await;
        let mut result = Ok(());
        for (pod, outcome) in releases {
            if outcome.is_ok() {
                tally.held.remove(&uid(pod));
            }
            result = result.and(outcome);
        }
        result
    }
}

impl Controller {
    /// Takes the finalizer off a pod.
    async fn release(&self, pod: &Pod) -> Result {
        let patch = Patch::Strategic(pods::release_patch());
        let api = self.control.api(meta::namespace(&pod.metadata));
        api.patch(meta::name(&pod.metadata), &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

fn gone_is_fine(outcome: Result) -> Result {
    match outcome {
        Err(Error::Api(error)) if meta::is_not_found(&error) => Ok(()),
        outcome => outcome,
    }
}
