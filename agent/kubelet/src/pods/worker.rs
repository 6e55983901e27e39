//! One task for each pod: takes events, decides, has the work done, reports.
//!
//! The worker itself never waits for work: everything that takes time runs as a task of its own, and its end is one
//! of the [`PodEvent`]s. What the worker knows is made new from the runtime after each event that concerns it, so that
//! an agent that was restarted goes on where the old one stopped.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use keelson_cri::phase::Timeline;
use keelson_cri::{ContainerState, CriError};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::actions::{Kill, KillReason, Restarts};
use super::admission;
use super::backoff::{Backoff, INITIAL, MAX};
use super::context::Context;
use super::decide::{Action, Decision, Op, Situation, Stage, everything_stopped, sync_decision};
use super::event::{Desired, Done, NoSandbox, PodEvent};
use super::observed::ObservedPod;
use super::podext::{ContainerKind, PodExt};
use super::resize::allocate::{self, Pending};
use super::resize::report::{self, InProgress, Progress};
use super::resize::{Allocation, Checkpoint, actuate};
use super::start::pod_grace;
use super::table::PodTable;
use super::{local_storage, ops, start_times, termination};
use crate::events::EventType;
use crate::objects::PodObjects;
use crate::probes::ProbeKind;
use crate::probes::worker::Probes;
use crate::status::containers::{Facts, Waiting};
use crate::status::generate::{Input, Verdict, generate};
use crate::status::phase::Phase;
use crate::status::writer::{self, WriteError};
use crate::volumes::token::PodTokens;

/// Failed work is tried again after this, doubling up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
/// The runtime is asked at least this often, should an event ever be lost.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// The status of a pod on its way to its first containers changes again at once: for so long it is not written in between.
const HOLD: Duration = Duration::from_millis(50);
/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How the manager reaches a worker.
pub struct WorkerHandle {
    /// What is wanted.
    pub desired: watch::Sender<Desired>,
    /// Notified when the runtime has news.
    pub runtime_changed: Arc<Notify>,
    /// The worker's task.
    pub task: tokio::task::Id,
}

/// The state of one pod on this node.
pub struct Worker {
    ctx: Arc<Context>,
    table: Arc<PodTable>,
    desired: watch::Receiver<Desired>,
    runtime_changed: Arc<Notify>,
    objects_changed: Arc<Notify>,

    /// The pod with the resources that are allocated to it: what everything here is decided from.
    pod: Arc<Pod>,
    /// The pod as the API last sent it.
    wanted: Arc<Pod>,
    /// What is promised and what is in effect, as the disk has it too.
    resources: Checkpoint,
    resize: Progress,
    /// Notified when a deferred resize need not wait any longer.
    room: Arc<Notify>,
    /// When a deferred resize is looked at again in any case.
    resize_again: Option<SystemTime>,
    /// The pod holds nothing of the node any more, which nobody was told yet.
    room_made: bool,
    removed: bool,
    stage: Stage,
    verdict: Option<Verdict>,
    observed: Arc<ObservedPod>,
    sandboxes: Vec<String>,
    looked_at: SystemTime,
    messages: HashMap<String, String>,

    objects: PodObjects,
    tokens: Arc<PodTokens>,
    volumes_ready: bool,
    volumes_dirty: bool,
    renew_at: Option<SystemTime>,
    probes: Probes,

    busy: HashSet<Op>,
    work: JoinSet<Done>,
    /// Which work a task does, with what ends it early.
    tasks: HashMap<tokio::task::Id, (Op, AbortHandle)>,
    /// Grace period of the kill that goes on.
    kill_grace: Option<Duration>,
    /// Grace period of a pod that the node ends before its time; overrides its own.
    end_grace: Option<Duration>,
    /// When it was last measured what the pod takes of the disk.
    measured_at: SystemTime,
    retry: HashMap<Op, (SystemTime, Duration)>,
    restarts: Backoff<String>,
    /// Containers that were killed to be started again.
    owed: HashSet<String>,
    waiting: HashMap<String, Waiting>,
    announced: HashMap<String, String>,

    /// When this worker took the pod up.
    begun: SystemTime,
    /// Where the time of the pod's start goes, until the API says that it runs; none for a pod that was found running.
    start: Option<Timeline>,

    status: PodStatus,
    /// The pod as the API has it, as far as is known: its status is the base of the next patch.
    api: Arc<Pod>,
    /// The patch of the status that was written last, if the API kept nothing of it, and when it may be written again.
    written: Option<(serde_json::Value, SystemTime)>,
    unmounted: bool,
    deleted: bool,
    done: bool,
}

/// Starts the worker of a pod. `sandboxes` are those that the runtime already has. The task ends when nothing of the
/// pod is left, or at shutdown.
pub fn spawn(
    ctx: Arc<Context>,
    table: Arc<PodTable>,
    first: Desired,
    sandboxes: Vec<String>,
    shutdown: CancellationToken,
    tasks: &mut JoinSet<String>,
) -> WorkerHandle {
    let (tx, rx) = watch::channel(first.clone());
    let runtime_changed = Arc::new(Notify::new());
    let worker = Worker::new(ctx, table, first, rx, sandboxes, runtime_changed.clone());
    let task = tasks.spawn(worker.run(shutdown)).id();
    WorkerHandle { desired: tx, runtime_changed, task }
}

impl Worker {
    fn new(
        ctx: Arc<Context>,
        table: Arc<PodTable>,
        first: Desired,
        desired: watch::Receiver<Desired>,
        sandboxes: Vec<String>,
        runtime_changed: Arc<Notify>,
    ) -> Self {
        let status = first.pod.status.clone().unwrap_or_default();
        let kept = Checkpoint::load(&ctx.pod_dir(PodExt::uid(&*first.pod)));
        let resources = kept.unwrap_or_else(|| Checkpoint::of(&first.pod));
        Self {
            probes: Probes::new(ctx.runtime.clone(), ctx.events.clone(), ctx.clock, ctx.reach),
            tokens: Arc::new(PodTokens::new(ctx.client.clone(), ctx.clock)),
            table,
            desired,
            runtime_changed,
            objects_changed: Arc::new(Notify::new()),
            api: first.pod.clone(),
            pod: resources.allocated.apply(&first.pod),
            resize: Progress::of(&first.pod),
            wanted: first.pod,
            resources,
            room: Arc::new(Notify::new()),
            resize_again: None,
            room_made: false,
            removed: first.removed,
            stage: if first.removed { Stage::Terminating } else { Stage::Running },
            verdict: None,
            observed: Arc::default(),
            start: sandboxes.is_empty().then(Timeline::begin),
            sandboxes,
            begun: ctx.clock.now(),
            looked_at: ctx.clock.now(),
            messages: HashMap::new(),
            objects: PodObjects::default(),
            volumes_ready: false,
            volumes_dirty: false,
            renew_at: None,
            busy: HashSet::new(),
            work: JoinSet::new(),
            tasks: HashMap::new(),
            kill_grace: None,
            end_grace: None,
            measured_at: ctx.clock.now(),
            retry: HashMap::new(),
            restarts: Backoff::new(INITIAL, MAX),
            owed: HashSet::new(),
            waiting: HashMap::new(),
            announced: HashMap::new(),
            status,
            written: None,
            unmounted: false,
            deleted: false,
            done: false,
            ctx,
        }
    }

    async fn run(mut self, shutdown: CancellationToken) -> String {
        let uid = PodExt::uid(&*self.pod).to_owned();
        self.observe().await;
        self.admit().await;
        loop {
            let wake_at = self.step();
            if self.done {
                self.ctx.allocations.settled(&uid);
                self.table.remove(&uid);
                self.ctx.allocations.freed(&self.table);
                return uid;
            }
            let event = tokio::select! {
                () = shutdown.cancelled() => return uid,
                event = self.next_event(wake_at) => event,
            };
            let mut look = self.apply(event);
            // What came meanwhile is one round with it.
            while let Some(result) = self.work.try_join_next() {
                look |= self.apply(ended(result));
            }
            if look {
                self.observe().await;
            }
        }
    }

    async fn next_event(&mut self, wake_at: Option<SystemTime>) -> PodEvent {
        let probed = self.probes.table().changed();
        let clock = self.ctx.clock;
        let deadline = async move {
            match wake_at {
                Some(at) => clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = self.desired.changed() => PodEvent::Desired(self.desired.borrow_and_update().clone()),
            () = self.runtime_changed.notified() => PodEvent::RuntimeChanged,
            () = self.room.notified() => PodEvent::RoomMade,
            Some(result) = self.work.join_next() => ended(result),
            () = probed.notified() => PodEvent::ProbeResult,
            () = self.objects_changed.notified() => PodEvent::ObjectsChanged,
            () = deadline => PodEvent::Deadline,
        }
    }

    /// Takes an event in. True when the runtime must be looked at.
    fn apply(&mut self, event: PodEvent) -> bool {
        match event {
            PodEvent::Desired(desired) => {
                self.take_desired(desired);
                false
            }
            PodEvent::RuntimeChanged => true,
            PodEvent::ProbeResult => false,
            PodEvent::RoomMade => {
                self.resize_again = None;
                false
            }
            PodEvent::Deadline => {
                self.ctx.clock.now().duration_since(self.looked_at).is_ok_and(|age| age >= LOOK_AGAIN)
            }
            PodEvent::ObjectsChanged => {
                self.volumes_dirty = true;
                // What waited for an object is tried at once.
                self.retry.retain(|op, _| !matches!(op, Op::Volumes | Op::Start(_)));
                false
            }
            PodEvent::Done(done) => {
                let op = done.op();
                self.busy.remove(&op);
                self.tasks.retain(|_, (task_op, _)| *task_op != op);
                self.take_done(done);
                true
            }
            PodEvent::Lost(id) => {
                if let Some((op, _)) = self.tasks.remove(&id) {
                    self.busy.remove(&op);
                    if op == Op::KillPod {
                        self.kill_grace = None;
                    }
                }
                true
            }
        }
    }

    fn take_desired(&mut self, desired: Desired) {
        let metadata_changed = self.pod.metadata.labels != desired.pod.metadata.labels
            || self.pod.metadata.annotations != desired.pod.metadata.annotations;
        self.volumes_dirty |= metadata_changed;
        self.removed |= desired.removed;
        if version(&desired.pod) >= version(&self.api) {
            // Somebody else may have written our part of the status: then it is put right.
            self.api = desired.pod.clone();
        }
        self.room_made |= desired.pod.is_terminal() && !self.wanted.is_terminal();
        self.pod = self.resources.allocated.apply(&desired.pod);
        self.wanted = desired.pod;
        self.resize_again = None;
        if self.removed || self.pod.is_deleting() || self.pod.is_terminal() {
            self.terminate();
        }
        if self.pod.is_deleting() && self.kill_grace.is_some_and(|current| pod_grace(&self.pod) < current) {
            // A shorter grace period: the kill starts over with it.
            self.cancel(|op| *op == Op::KillPod);
        }
    }

    fn cancel(&self, which: impl Fn(&Op) -> bool) {
        self.tasks.values().filter(|(op, _)| which(op)).for_each(|(_, task)| task.abort());
    }

    fn spawn(&mut self, op: Op, work: impl Future<Output = Done> + Send + 'static) {
        let start = self.start.clone();
        let task = self.work.spawn(async move {
            match start {
                Some(start) => start.scope(work).await,
                None => work.await,
            }
        });
        self.busy.insert(op.clone());
        self.tasks.insert(task.id(), (op, task));
    }

    fn terminate(&mut self) {
        if self.stage == Stage::Running {
            self.stage = Stage::Terminating;
            self.volumes_dirty = false;
            self.owed.clear();
            // A pull or a hook must not hold the end up.
            self.cancel(|op| matches!(op, Op::Start(_)));
        }
    }

    fn take_done(&mut self, done: Done) {
        let op = done.op();
        match done {
            Done::Volumes(outcome) => {
                self.renew_at = outcome.renew_at;
                for failure in &outcome.failures {
                    let text = format!(
                        "MountVolume.SetUp failed for volume {:?} : {}",
                        failure.volume, failure.error
                    );
                    self.ctx.events.pod(&self.pod, EventType::Warning, "FailedMount", text);
                }
                self.settle(op, outcome.failures.is_empty());
                if outcome.failures.is_empty() {
                    self.volumes_ready = true;
                } else {
                    self.volumes_dirty |= self.volumes_ready;
                }
            }
            Done::Sandbox(result) => {
                self.settle(op, result.is_ok());
                match result {
                    Ok(sandbox) => self.sandboxes.push(sandbox.id),
                    Err(NoSandbox { error, left }) => {
                        self.sandboxes.extend(left);
                        self.sandboxes.sort();
                        self.sandboxes.dedup();
                        let text = format!("Failed to create pod sandbox: {error}");
                        self.ctx.events.pod(&self.pod, EventType::Warning, "FailedCreatePodSandBox", text);
                    }
                }
            }
            Done::Started(name, Ok(_id)) => {
                self.settle(op, true);
                self.waiting.remove(&name);
                self.owed.remove(&name);
            }
            Done::Started(name, Err(error)) => {
                self.settle(op.clone(), false);
                if let (Some(at), Some(entry)) = (error.retry_at, self.retry.get_mut(&op)) {
                    entry.0 = at;
                }
                self.waiting.insert(name, Waiting { reason: error.reason, message: error.message });
            }
            Done::Killed(id, result) => self.log_failure(op, &id, result),
            Done::Resized(steps, result) => {
                steps.iter().for_each(|step| self.resources.actuated.note(step));
                self.keep_resources();
                self.settle(op, result.is_ok());
                if let Err(error) = result {
                    self.resize_failed(error);
                }
            }
            Done::PodKilled(result) => {
                self.kill_grace = None;
                if let Err(error) = &result {
                    let text = format!("error killing pod: {error}");
                    self.ctx.events.pod(&self.pod, EventType::Warning, "FailedKillPod", text);
                }
                self.settle(op, result.is_ok());
            }
            Done::Collected(_) => {}
            Done::Measured(usage) => self.take_usage(&usage),
            Done::Status(result) => match *result {
                Ok(pod) => {
                    // Until the watch brings the same, if it has not yet.
                    if version(&pod) > version(&self.api) {
                        self.api = Arc::new(pod);
                    }
                    self.settle(op, true);
                    self.look_at_answer();
                    self.note_start();
                }
                Err(WriteError::Gone) => {
                    // The watch will say so too; until then nothing more is written.
                    self.settle(op, true);
                    Arc::make_mut(&mut self.api).status = Some(self.status.clone());
                    self.deleted = self.pod.is_deleting();
                }
                Err(error) => {
                    tracing::warn!(%error, pod = self.pod.describe(), "pod status not written");
                    self.settle(op, false);
                }
            },
            Done::Unmounted(result) => {
                self.unmounted = result.is_ok();
                self.log_failure(op, "volumes", result);
            }
            Done::Deleted(result) => {
                self.deleted = result.is_ok();
                self.log_failure(op, "API object", result);
            }
            Done::Forgotten(result) => {
                self.done = result.is_ok();
                self.log_failure(op, "leftovers", result);
            }
        }
    }

    fn api_status(&self) -> &PodStatus {
        static NONE: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);
        self.api.status.as_ref().unwrap_or(&NONE)
    }

    /// A server that does not know a field drops it: without a pause it would be written for ever.
    fn look_at_answer(&mut self) {
        let missing = writer::diff(self.api_status(), &self.status);
        let Some((patch, again)) = self.written.as_mut().filter(|(patch, _)| missing.as_ref() == Some(patch))
        else {
            // It was kept: there is nothing to remember.
            self.written = None;
            return;
        };
        let pod = self.pod.describe();
        tracing::warn!(pod, %patch, "the API does not keep what the pod's status says");
        *again = self.ctx.clock.now() + RETRY_MAX;
    }

    /// Says once, when the API knows that the pod runs, where the time went.
    fn note_start(&mut self) {
        let phase = self.api_status().phase.as_deref().and_then(Phase::parse);
        if phase == Some(Phase::Pending) {
            return;
        }
        let Some(start) = self.start.take() else { return };
        let took = start.elapsed();
        if phase == Some(Phase::Running) {
            let phases = start_times::line(&start.phases());
            tracing::info!(pod = self.pod.describe(), took_us = took.as_micros(), phases, "pod started");
        }
    }

    /// Remembers when failed work may be tried again, forgets what succeeded.
    fn settle(&mut self, op: Op, ok: bool) {
        if ok {
            self.retry.remove(&op);
            return;
        }
        let wait = self.retry.get(&op).map_or(RETRY, |(_, wait)| (*wait * 2).min(RETRY_MAX));
        self.retry.insert(op, (self.ctx.clock.now() + wait, wait));
    }

    fn log_failure(&mut self, op: Op, what: &str, result: Result<(), String>) {
        if let Err(error) = &result {
            tracing::warn!(%error, pod = self.pod.describe(), what, ?op, "work on a pod failed, trying again");
        }
        self.settle(op, result.is_ok());
    }

    /// Asks the runtime about this pod's sandboxes and containers.
    async fn observe(&mut self) {
        self.looked_at = self.ctx.clock.now();
        let mut sandboxes = Vec::new();
        let mut containers = Vec::new();
        let mut gone = Vec::new();
        for id in &self.sandboxes {
            match self.ctx.runtime.pod_sandbox_status(id).await {
                Ok(status) => sandboxes.push(status),
                Err(CriError::NotFound(_)) => {
                    gone.push(id.clone());
                    continue;
                }
                Err(error) => {
                    // What was seen last stays true until the runtime answers.
                    tracing::warn!(%error, sandbox = id, "sandbox status not read");
                    return;
                }
            }
            match self.ctx.runtime.list_containers(Some(id)).await {
                Ok(list) => containers.extend(list),
                Err(error) => {
                    tracing::warn!(%error, sandbox = id, "containers not listed");
                    return;
                }
            }
        }
        self.sandboxes.retain(|id| !gone.contains(id));
        let observed = ObservedPod::new(sandboxes, containers);
        let pod_dir = self.ctx.pod_dir(PodExt::uid(&*self.pod));
        for c in observed.containers.iter().filter(|c| c.state == ContainerState::Exited) {
            if !self.messages.contains_key(&c.id) {
                self.messages.insert(c.id.clone(), termination::message(&pod_dir, c));
            }
        }
        self.messages.retain(|id, _| observed.by_id(id).is_some());
        self.observed = Arc::new(observed);
    }

    /// Whether this node takes the pod. One that runs already was taken before.
    async fn admit(&mut self) {
        if self.removed || self.pod.is_deleting() || self.pod.is_terminal() {
            self.terminate();
            return;
        }
        if !self.observed.sandboxes.is_empty() {
            self.volumes_dirty = true;
            self.keep_resources();
            return;
        }
        let refused = admission::unsupported_features(&self.pod, self.ctx.config.selinux)
            .or_else(|| self.ctx.allocations.admit(&self.table, &self.pod));
        if let Some(verdict) = refused {
            self.ctx.events.pod(&self.pod, EventType::Warning, &verdict.reason, verdict.message.clone());
            self.verdict = Some(verdict);
            self.terminate();
            return;
        }
        self.keep_resources();
        let missing = self.ctx.runtime.missing_controllers();
        if let Some(text) = super::start::unenforced(&self.pod, &missing) {
            self.ctx.events.pod(&self.pod, EventType::Warning, "LimitsNotEnforced", text);
        }
    }

    /// One round: decide, start work, report. Gives the time of the next round if nothing happens before.
    fn step(&mut self) -> Option<SystemTime> {
        let now = self.ctx.clock.now();
        let mut wake = Wake::default();
        wake.at(self.looked_at + LOOK_AGAIN);
        if !self.removed {
            self.ctx.objects.register(&self.pod, &mut self.objects, &self.objects_changed);
        }
        self.allocate(now, &mut wake);
        self.check_deadline(now, &mut wake);
        self.measure(now, &mut wake);
        if self.stage == Stage::Terminating
            && !self.busy_with_containers()
            && everything_stopped(&self.observed)
        {
            self.stage = Stage::Terminated;
        }
        let pod_ip = self.pod_ip();
        let ending = self.stage != Stage::Running;
        self.probes.reconcile(&self.pod, &self.observed, pod_ip, ending);

        let retry_at = self.retry.iter().map(|(op, (at, _))| (op.clone(), *at)).collect();
        let mut decision = sync_decision(&Situation {
            pod: &self.pod,
            observed: &self.observed,
            probes: &**self.probes.table(),
            restarts_asked: Restarts { actuated: &self.resources.actuated, owed: &self.owed },
            memory_capacity: self.ctx.config.memory_capacity,
            stage: self.stage,
            busy: &self.busy,
            volumes_ready: self.volumes_ready,
            restarts: &self.restarts,
            retry_at: &retry_at,
            now,
        });
        if decision.finished {
            // The next round decides for the new stage.
            self.terminate();
            wake.at(now);
        }
        wake.maybe(decision.wake_at);
        self.announce_back_off(&decision);
        for action in std::mem::take(&mut decision.actions) {
            self.act(action, now);
        }
        self.refresh_volumes(now, &mut wake);
        self.follow_resize();
        self.table.set(self.pod.clone(), self.observed.clone());
        if std::mem::take(&mut self.room_made) {
            self.ctx.allocations.freed(&self.table);
        }
        self.report(&decision.crash_loops, now, &mut wake);
        self.wind_up(now, &mut wake);
        wake.0
    }

    /// Moves what is allocated to what is wanted, if the node has room for it.
    fn allocate(&mut self, now: SystemTime, wake: &mut Wake) {
        let uid = PodExt::uid(&*self.wanted);
        if self.stage != Stage::Running || self.resources.allocated.matches(&self.wanted) {
            if self.resize.pending.take().is_some() {
                self.ctx.allocations.settled(uid);
            }
            return;
        }
        if let Some(at) = self.resize_again.filter(|at| *at > now) {
            wake.at(at);
            return;
        }
        let allocations = &self.ctx.allocations;
        match allocations.resize(&self.table, &self.pod, &self.wanted, &self.room, now) {
            Ok(()) => self.allocated(),
            Err((why, message)) => {
                let generation = self.wanted.metadata.generation;
                let known =
                    self.resize.pending.as_ref().is_some_and(|(w, _, g)| (*w, *g) == (why, generation));
                if !known {
                    let reason = if why == Pending::Deferred { "ResizeDeferred" } else { "ResizeInfeasible" };
                    let prefix = format!("Pod resize {}", why.reason());
                    let text = report::message(&prefix, &self.wanted, generation, Some(&message));
                    self.ctx.events.pod(&self.pod, EventType::Warning, reason, text);
                }
                self.resize.pending = Some((why, message, generation));
                let again = now + allocate::RETRY;
                self.resize_again = Some(again);
                wake.at(again);
            }
        }
    }

    /// The node has room for what is wanted: from here on the pod has it.
    fn allocated(&mut self) {
        self.resources.allocated = Allocation::of(&self.wanted);
        self.pod = self.wanted.clone();
        self.keep_resources();
        let generation = self.pod.metadata.generation;
        self.resize = Progress { pending: None, in_progress: Some(InProgress { generation, error: None }) };
        self.resize_again = None;
        // Another try at once, whatever went wrong with the last one.
        self.retry.remove(&Op::Resize);
        let text = report::message("Pod resize started", &self.pod, generation, None);
        self.ctx.events.pod(&self.pod, EventType::Normal, "ResizeStarted", text);
        self.ctx.allocations.freed(&self.table);
    }

    /// Says when a resize is in effect, or that one is under way.
    fn follow_resize(&mut self) {
        if self.stage != Stage::Running {
            self.resize = Progress::default();
            return;
        }
        if actuate::in_progress(&self.pod, &self.resources.actuated, &self.observed) {
            let generation = self.pod.metadata.generation;
            self.resize.in_progress.get_or_insert(InProgress { generation, error: None });
        } else if !self.busy.contains(&Op::Resize)
            && self.owed.is_empty()
            && let Some(done) = self.resize.in_progress.take()
        {
            let text = report::message("Pod resize completed", &self.pod, done.generation, None);
            self.ctx.events.pod(&self.pod, EventType::Normal, "ResizeCompleted", text);
        }
    }

    fn resize_failed(&mut self, error: String) {
        let generation = self.pod.metadata.generation;
        let progress = self.resize.in_progress.get_or_insert(InProgress { generation, error: None });
        if progress.error.as_ref() != Some(&error) {
            let text = report::message("Pod resize error", &self.pod, progress.generation, Some(&error));
            self.ctx.events.pod(&self.pod, EventType::Warning, "ResizeError", text);
        }
        progress.error = Some(error);
    }

    /// Writes what is promised and in effect to the disk.
    fn keep_resources(&self) {
        if let Err(error) = self.resources.save(&self.ctx.pod_dir(PodExt::uid(&*self.pod))) {
            tracing::error!(%error, pod = self.pod.describe(), "allocated resources are not kept on disk");
        }
    }

    /// Whether all there is to report is that the pod's first containers are about to start.
    fn on_its_way(&self) -> bool {
        let pending = self.status.phase.as_deref().and_then(Phase::parse) == Some(Phase::Pending);
        let starts = self.busy.iter().any(|op| matches!(op, Op::Volumes | Op::Sandbox | Op::Start(_)));
        self.stage == Stage::Running && self.start.is_some() && pending && starts && self.waiting.is_empty()
    }

    fn busy_with_containers(&self) -> bool {
        self.busy.iter().any(|op| matches!(op, Op::Sandbox | Op::Start(_) | Op::KillPod | Op::Kill(_)))
    }

    fn pod_ip(&self) -> Option<IpAddr> {
        if self.pod.host_network() {
            return self.ctx.config.node_ips.first().copied();
        }
        self.observed.ready_sandbox().and_then(|s| s.ips.first().copied())
    }

    fn check_deadline(&mut self, now: SystemTime, wake: &mut Wake) {
        if self.stage != Stage::Running {
            return;
        }
        let seconds = PodExt::spec(&*self.pod).active_deadline_seconds.and_then(|s| u64::try_from(s).ok());
        let start = self.status.start_time.as_ref().map(|t| SystemTime::from(t.0));
        let (Some(seconds), Some(start)) = (seconds, start) else { return };
        let deadline = start + Duration::from_secs(seconds);
        if deadline > now {
            wake.at(deadline);
            return;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.ctx.events.pod(&self.pod, EventType::Normal, "DeadlineExceeded", message);
        self.verdict = Some(Verdict { reason: "DeadlineExceeded".into(), message: message.into() });
        self.terminate();
    }

    /// Has the pod measured again and again, if something limits what it may take of the disk.
    fn measure(&mut self, now: SystemTime, wake: &mut Wake) {
        let idle = self.stage != Stage::Running || self.observed.sandboxes.is_empty();
        if idle || self.busy.contains(&Op::Measure) || local_storage::Limits::of(&self.pod).is_none() {
            return;
        }
        let due = self.measured_at + local_storage::INTERVAL;
        if due > now {
            wake.at(due);
            return;
        }
        let work = ops::measure(self.ctx.clone(), self.pod.clone(), self.observed.clone());
        self.spawn(Op::Measure, work);
    }

    fn take_usage(&mut self, usage: &local_storage::Usage) {
        self.measured_at = self.ctx.clock.now();
        if self.stage != Stage::Running {
            return;
        }
        let limits = local_storage::Limits::of(&self.pod);
        let Some(verdict) = limits.and_then(|limits| local_storage::judge(&limits, usage)) else { return };
        self.ctx.events.pod(&self.pod, EventType::Warning, &verdict.reason, verdict.message.clone());
        self.verdict = Some(verdict);
        self.end_grace = Some(local_storage::GRACE);
        self.terminate();
    }

    fn announce_back_off(&mut self, decision: &Decision) {
        for name in decision.crash_loops.keys() {
            let Some(last) = self.observed.container(name) else { continue };
            if self.announced.insert(name.clone(), last.id.clone()).as_ref() == Some(&last.id) {
                continue;
            }
            let kind = self.pod.find_container(name).map_or(ContainerKind::Regular, |(k, _)| k);
            let text = format!("Back-off restarting failed container {name} in pod {}", self.pod.describe());
            self.ctx.events.container(&self.pod, kind, name, EventType::Warning, "BackOff", text);
        }
    }

    fn act(&mut self, action: Action, now: SystemTime) {
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        match action {
            Action::SetUpVolumes => {
                self.volumes_dirty = false;
                let work = ops::volumes(ctx, pod, self.objects.clone(), self.tokens.clone());
                self.spawn(Op::Volumes, work);
            }
            Action::CreateSandbox { attempt, stale } => {
                if attempt > 0
                    && self.observed.latest_sandbox().is_some()
                    && !self.retry.contains_key(&Op::Sandbox)
                {
                    let text = "Pod sandbox changed, it will be killed and re-created.";
                    self.ctx.events.pod(&self.pod, EventType::Normal, "SandboxChanged", text);
                }
                self.resources.actuated.pod = super::resources::pod_resources(&self.pod);
                self.keep_resources();
                self.spawn(Op::Sandbox, ops::sandbox(ctx, pod, attempt, stale, self.observed.clone()));
            }
            Action::Start { kind, name } => self.start(kind, name, now),
            Action::Kill(kill) => self.kill_container(kill),
            Action::Resize(plan) => {
                let Some(sandbox) = self.observed.ready_sandbox().map(|s| s.id.clone()) else { return };
                self.spawn(Op::Resize, ops::resize(ctx, sandbox, plan, self.observed.clone()));
            }
            Action::KillPod => {
                self.waiting.clear();
                let own = pod_grace(&self.pod);
                let grace = self.end_grace.map(|grace| grace.min(own));
                self.kill_grace = Some(grace.unwrap_or(own));
                self.spawn(Op::KillPod, ops::kill_pod(ctx, pod, self.observed.clone(), grace));
            }
            Action::RemoveContainer(id) => {
                self.spawn(Op::Collect(id.clone()), ops::remove_container(ctx, id));
            }
            Action::RemoveSandbox(id) => {
                self.spawn(Op::Collect(id.clone()), ops::remove_sandbox(ctx, id));
            }
        }
    }

    fn start(&mut self, kind: ContainerKind, name: String, now: SystemTime) {
        let Some((_, container)) = self.pod.find_container(&name) else { return };
        let Some(sandbox) = self.observed.ready_sandbox().cloned() else { return };
        let last = self.observed.container(&name);
        if let Some(last) = last.filter(|c| c.state == ContainerState::Exited) {
            let ended = last.finished_at.unwrap_or(last.created_at);
            let known_failure = self.retry.contains_key(&Op::Start(name.clone()));
            if !known_failure {
                self.restarts.next(name.clone(), ended, now);
            }
        }
        let attempt = last.map_or_else(|| self.reported_attempt(&name), |c| c.attempt + 1);
        if kind != ContainerKind::Ephemeral {
            let own = container.resources.clone().unwrap_or_default();
            if self.resources.actuated.containers.get(&name) != Some(&own) {
                self.resources.actuated.containers.insert(name.clone(), own);
                self.keep_resources();
            }
        }
        let job = ops::StartJob {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            kind,
            container,
            attempt,
            sandbox,
            objects: self.objects.clone(),
            tokens: self.tokens.clone(),
            observed: self.observed.clone(),
        };
        self.spawn(Op::Start(name), ops::start(job));
    }

    /// A container without a record may have had one: then its restart count goes on.
    fn reported_attempt(&self, name: &str) -> u32 {
        let lists = [&self.status.container_statuses, &self.status.init_container_statuses];
        let old = lists.into_iter().flatten().flatten().find(|s| s.name == name);
        old.map_or(0, |s| {
            let count = u32::try_from(s.restart_count).unwrap_or(0);
            // One whose record was missed has been counted, and has no id any more.
            if s.container_id.is_some() { count + 1 } else { count }
        })
    }

    fn kill_container(&mut self, kill: Kill) {
        if matches!(kill.reason, KillReason::Changed | KillReason::Resize) {
            self.owed.insert(kill.name.clone());
        }
        let op = Op::Kill(kill.id.clone());
        self.spawn(op, ops::kill(self.ctx.clone(), self.pod.clone(), kill, self.pod_ip()));
    }

    /// Keeps volumes current: objects changed, labels changed, a token is due.
    fn refresh_volumes(&mut self, now: SystemTime, wake: &mut Wake) {
        if self.stage != Stage::Running || self.busy.contains(&Op::Volumes) {
            return;
        }
        if let Some(at) = self.renew_at {
            if at <= now {
                self.volumes_dirty = true;
            } else {
                wake.at(at);
            }
        }
        let running = self.volumes_ready || !self.observed.sandboxes.is_empty();
        if !self.volumes_dirty || !running {
            return;
        }
        match self.retry.get(&Op::Volumes) {
            Some((at, _)) if *at > now => wake.at(*at),
            _ => self.act(Action::SetUpVolumes, now),
        }
    }

    /// Makes the status and has it written when it differs from what the API has.
    fn report(&mut self, crash_loops: &HashMap<String, Waiting>, now: SystemTime, wake: &mut Wake) {
        let mut waiting = self.waiting.clone();
        waiting.extend(crash_loops.iter().map(|(k, v)| (k.clone(), v.clone())));
        let probes = self.probes.table().clone();
        let started = |c: &Container, id: &str| {
            c.startup_probe.is_none() || probes.get(id, ProbeKind::Startup) == Some(true)
        };
        let ready = |c: &Container, id: &str| {
            c.readiness_probe.is_none() || probes.get(id, ProbeKind::Readiness) == Some(true)
        };
        let former = self.status.phase.clone();
        self.status = generate(&Input {
            pod: &self.pod,
            actuated: &self.resources.actuated,
            resize: &self.resize,
            old: &self.status,
            facts: Facts {
                observed: &self.observed,
                waiting: &waiting,
                messages: &self.messages,
                started: &started,
                ready: &ready,
            },
            failed: self.verdict.as_ref(),
            terminating: self.stage != Stage::Running,
            terminated: self.stage == Stage::Terminated,
            host_ips: &self.ctx.config.node_ips,
            now,
        });
        if !self.owed.is_empty() && self.stage == Stage::Running {
            // A container between its end and the start that is owed to it says nothing about the pod.
            self.status.phase = former.or(Some("Running".into()));
        }
        let phase = self.status.phase.as_deref().and_then(Phase::parse);
        if self.stage == Stage::Running && phase.is_some_and(Phase::is_terminal) {
            self.terminate();
            wake.at(now);
        }
        if self.removed || self.deleted || self.busy.contains(&Op::Status) {
            return;
        }
        let Some(patch) = writer::diff(self.api_status(), &self.status) else { return };
        let held = self.begun + HOLD;
        match self.retry.get(&Op::Status) {
            Some((at, _)) if *at > now => wake.at(*at),
            _ if held > now && self.on_its_way() => wake.at(held),
            _ if self.written.as_ref().is_some_and(|(last, again)| *last == patch && *again > now) => {
                wake.maybe(self.written.as_ref().map(|(_, again)| *again));
            }
            _ => {
                self.written = Some((patch.clone(), now));
                self.spawn(Op::Status, ops::write_status(self.ctx.clone(), self.pod.clone(), patch));
            }
        }
    }

    /// After the end: unmount, have the object deleted, forget.
    fn wind_up(&mut self, now: SystemTime, wake: &mut Wake) {
        if self.stage != Stage::Terminated {
            return;
        }
        let uid = PodExt::uid(&*self.pod).to_owned();
        let flushed =
            writer::diff(self.api_status(), &self.status).is_none() && !self.busy.contains(&Op::Status);
        let next = if !self.unmounted {
            Op::Unmount
        } else if self.removed {
            Op::Forget
        } else if self.pod.is_deleting() && flushed && !self.deleted {
            Op::Delete
        } else {
            return;
        };
        if self.busy.contains(&next) || self.busy.contains(&Op::Volumes) {
            return;
        }
        if let Some((at, _)) = self.retry.get(&next).filter(|(at, _)| *at > now) {
            wake.at(*at);
            return;
        }
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        match next {
            Op::Unmount => self.spawn(next, ops::unmount(ctx, uid)),
            Op::Delete => self.spawn(next, ops::delete(ctx, pod)),
            _ => self.spawn(next, ops::forget(ctx, pod, self.observed.clone())),
        }
    }
}

fn ended(result: Result<Done, tokio::task::JoinError>) -> PodEvent {
    match result {
        Ok(done) => PodEvent::Done(done),
        Err(error) => {
            if error.is_panic() {
                tracing::error!(%error, "work on a pod panicked");
            }
            PodEvent::Lost(error.id())
        }
    }
}

/// The earliest of several times.
#[derive(Default)]
struct Wake(Option<SystemTime>);

impl Wake {
    fn at(&mut self, at: SystemTime) {
        self.0 = Some(self.0.map_or(at, |w| w.min(at)));
    }
    fn maybe(&mut self, at: Option<SystemTime>) {
        if let Some(at) = at {
            self.at(at);
        }
    }
}

/// resourceVersions of one object are comparable as numbers (KEP-5504).
fn version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}
