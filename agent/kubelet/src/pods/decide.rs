//! The pod worker's decision: from all that is known of one pod to what is to be done now. Pure.
//!
//! [`compute_pod_actions`](super::actions::compute_pod_actions) says what the pod needs; here that meets what is
//! going on already, what must wait for a back-off and in which stage of its life the pod is.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::ContainerState;

use super::actions::{Kill, PodActions, ProbeVerdicts, Restarts, compute_pod_actions, starts};
use super::backoff::Backoff;
use super::observed::ObservedPod;
use super::podext::{ContainerKind, PodExt, is_sidecar};
use super::resize::actuate::{Plan, plan};
use crate::status::containers::Waiting;

/// A piece of work that is never done twice at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Op {
    /// Volumes are set up or updated.
    Volumes,
    /// A sandbox is made.
    Sandbox,
    /// A container is pulled, made and started.
    Start(String),
    /// A container is stopped.
    Kill(String),
    /// Resources of the pod and its running containers are changed.
    Resize,
    /// Everything is stopped.
    KillPod,
    /// Old records are removed.
    Collect(String),
    /// What it takes of the disk is measured.
    Measure,
    /// The status is written.
    Status,
    /// Volumes are unmounted after the end.
    Unmount,
    /// The API object is deleted.
    Delete,
    /// What the node still holds of the pod is removed.
    Forget,
}

/// Where a pod stands in its life on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is to run. Leads to [`Stage::Terminating`] only.
    Running,
    /// Its containers are being stopped and none starts again. Leads to [`Stage::Terminated`] only.
    Terminating,
    /// Nothing of it runs. Its records and logs stay until its API object is gone.
    Terminated,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Set up or update volumes.
    SetUpVolumes,
    /// Stop these old sandboxes, then make a new one.
    CreateSandbox {
        /// Attempt of the new one.
        attempt: u32,
        /// Ids of those before it.
        stale: Vec<String>,
    },
    /// Start a container.
    Start {
        /// Which list it stands in.
        kind: ContainerKind,
        /// Its name.
        name: String,
    },
    /// Stop a container.
    Kill(Kill),
    /// Change resources of the pod and its running containers.
    Resize(Plan),
    /// Stop everything.
    KillPod,
    /// Remove the record of a dead container.
    RemoveContainer(String),
    /// Remove a sandbox that only holds records nobody asks for.
    RemoveSandbox(String),
}

/// What is known.
pub struct Situation<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The runtime's view.
    pub observed: &'a ObservedPod,
    /// Probe results.
    pub probes: &'a dyn ProbeVerdicts,
    /// What restarts a container beside its end.
    pub restarts_asked: Restarts<'a>,
    /// Memory of the machine in bytes.
    pub memory_capacity: u64,
    /// Stage of its life.
    pub stage: Stage,
    /// Work that goes on.
    pub busy: &'a HashSet<Op>,
    /// All volumes are set up.
    pub volumes_ready: bool,
    /// Restart back-off by container name.
    pub restarts: &'a Backoff<String>,
    /// Work that failed and must wait.
    pub retry_at: &'a HashMap<Op, SystemTime>,
    /// Now.
    pub now: SystemTime,
}

/// The verdict.
#[derive(Debug, Default, PartialEq)]
pub struct Decision {
    /// To be done, in this order.
    pub actions: Vec<Action>,
    /// Containers that wait for their restart back-off.
    pub crash_loops: HashMap<String, Waiting>,
    /// When to decide again, if nothing happens before.
    pub wake_at: Option<SystemTime>,
    /// Nothing of the pod will run again: its stage is to become [`Stage::Terminating`].
    pub finished: bool,
}

impl Decision {
    fn wake(&mut self, at: SystemTime) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// Decides.
pub fn sync_decision(s: &Situation<'_>) -> Decision {
    let mut d = Decision::default();
    match s.stage {
        Stage::Terminated => {}
        Stage::Terminating => {
            if !s.busy.contains(&Op::KillPod)
                && ready(s, &Op::KillPod, &mut d)
                && !everything_stopped(s.observed)
            {
                d.actions.push(Action::KillPod);
            }
        }
        Stage::Running => running(s, &mut d),
    }
    collect(s, &mut d);
    d
}

/// Whether nothing of the pod can run any more.
pub fn everything_stopped(observed: &ObservedPod) -> bool {
    observed.running().next().is_none()
        && observed.sandboxes.iter().all(|b| b.state == keelson_cri::PodSandboxState::NotReady)
}

fn ready(s: &Situation<'_>, op: &Op, d: &mut Decision) -> bool {
    match s.retry_at.get(op) {
        Some(at) if *at > s.now => {
            d.wake(*at);
            false
        }
        _ => true,
    }
}

fn running(s: &Situation<'_>, d: &mut Decision) {
    if s.busy.contains(&Op::KillPod) {
        return;
    }
    let wanted = compute_pod_actions(s.pod, s.observed, s.probes, s.restarts_asked);
    if wanted.kill_pod && wanted.create_sandbox.is_none() {
        d.finished = true;
        return;
    }
    // Volumes and sandbox don't need each other: they are made side by side.
    let needs_start = starts(s.pod, &wanted).next().is_some();
    if !s.volumes_ready && needs_start && !s.busy.contains(&Op::Volumes) && ready(s, &Op::Volumes, d) {
        d.actions.push(Action::SetUpVolumes);
    }
    if let Some(attempt) = wanted.create_sandbox {
        let starting = s.busy.iter().any(|op| matches!(op, Op::Start(_)));
        if !s.busy.contains(&Op::Sandbox) && !starting && ready(s, &Op::Sandbox, d) {
            let stale = s.observed.sandboxes.iter().map(|b| b.id.clone()).collect();
            d.actions.push(Action::CreateSandbox { attempt, stale });
        }
        return;
    }
    for kill in &wanted.to_kill {
        if !s.busy.contains(&Op::Kill(kill.id.clone())) {
            d.actions.push(Action::Kill(kill.clone()));
        }
    }
    // What is started finds its pod resized.
    if resize(s, &wanted, d) {
        return;
    }
    if s.volumes_ready && !s.busy.contains(&Op::Sandbox) {
        start_containers(s, &wanted, d);
    }
}

/// Has resources changed once the containers that must be restarted for it are stopped. True while that goes on.
fn resize(s: &Situation<'_>, wanted: &PodActions, d: &mut Decision) -> bool {
    if s.busy.contains(&Op::Resize) {
        return true;
    }
    let stopping = !wanted.to_kill.is_empty() || s.busy.iter().any(|op| matches!(op, Op::Kill(_)));
    if stopping || s.busy.contains(&Op::Sandbox) {
        return false;
    }
    let plan = plan(s.pod, s.restarts_asked.actuated, s.observed, s.memory_capacity);
    if plan.steps.is_empty() || !ready(s, &Op::Resize, d) {
        return false;
    }
    d.actions.push(Action::Resize(plan));
    true
}

fn start_containers(s: &Situation<'_>, wanted: &PodActions, d: &mut Decision) {
    let mut init_blocked = false;
    for (kind, name) in starts(s.pod, wanted) {
        if kind == ContainerKind::Init && init_blocked {
            continue;
        }
        let op = Op::Start(name.to_owned());
        let killing = wanted.to_kill.iter().any(|k| k.name == name)
            || s.busy
                .iter()
                .any(|op| matches!(op, Op::Kill(id) if s.observed.by_id(id).is_some_and(|c| c.name == name)));
        let mut can_start = !s.busy.contains(&op) && !killing;
        if can_start
            && kind != ContainerKind::Ephemeral
            && let Some((waiting, until)) = crash_loop(s, name)
        {
            d.crash_loops.insert(name.to_owned(), waiting);
            d.wake(until);
            can_start = false;
        }
        if can_start && ready(s, &op, d) {
            d.actions.push(Action::Start { kind, name: name.to_owned() });
        }
        if kind == ContainerKind::Init {
            // Init containers start one after the other; restarts of sidecars after initialization don't hold
            // each other up.
            let plain =
                s.pod.init_containers().iter().find(|c| c.name == name).is_some_and(|c| !is_sidecar(c));
            init_blocked |= plain || s.observed.container(name).is_none();
        }
    }
}

fn crash_loop(s: &Situation<'_>, name: &str) -> Option<(Waiting, SystemTime)> {
    let last = s.observed.container(name).filter(|c| c.state == ContainerState::Exited)?;
    let ended = last.finished_at.unwrap_or(last.created_at);
    let until = s.restarts.until(name, ended, s.now)?;
    let wait = go_duration(s.restarts.wait(name));
    let message = format!("back-off {wait} restarting failed container={name} pod={}", s.pod.describe());
    Some((Waiting { reason: "CrashLoopBackOff".into(), message }, until))
}

/// Go's `Duration.String()` of whole seconds: `10s`, `2m40s`, `5m0s`.
fn go_duration(d: std::time::Duration) -> String {
    let s = d.as_secs();
    if s < 60 { format!("{s}s") } else { format!("{}m{}s", s / 60, s % 60) }
}

/// Records beyond the newest and the one before it go; so do sandboxes that hold no other.
fn collect(s: &Situation<'_>, d: &mut Decision) {
    if s.stage != Stage::Running {
        return;
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut kept_sandboxes: HashSet<&str> = HashSet::new();
    let mut stale = Vec::new();
    for c in &s.observed.containers {
        let n = seen.entry(c.name.as_str()).or_default();
        *n += 1;
        if *n > 2 && matches!(c.state, ContainerState::Exited | ContainerState::Created) {
            stale.push(c);
        } else {
            kept_sandboxes.insert(c.sandbox_id.as_str());
        }
    }
    for c in stale {
        if kept_sandboxes.contains(c.sandbox_id.as_str()) && !s.busy.contains(&Op::Collect(c.id.clone())) {
            d.actions.push(Action::RemoveContainer(c.id.clone()));
        }
    }
    for sandbox in s.observed.sandboxes.iter().skip(1) {
        let dead = sandbox.state == keelson_cri::PodSandboxState::NotReady;
        let idle = !s.busy.contains(&Op::Collect(sandbox.id.clone())) && !s.busy.contains(&Op::Sandbox);
        if dead && idle && !kept_sandboxes.contains(sandbox.id.as_str()) {
            d.actions.push(Action::RemoveSandbox(sandbox.id.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::backoff::{INITIAL, MAX};
    use crate::pods::resize::Actuated;
    use crate::pods::testing::{cri_container, cri_sandbox, pod_json, t0};
    use serde_json::json;
    use std::time::Duration;

    struct None_;
    impl ProbeVerdicts for None_ {
        fn liveness(&self, _: &str) -> Option<bool> {
            None
        }
        fn startup(&self, _: &str) -> Option<bool> {
            None
        }
    }

    struct Case {
        pod: Pod,
        /// The pod whose resources are in effect; none: the same.
        actuated: Option<Pod>,
        observed: ObservedPod,
        stage: Stage,
        busy: HashSet<Op>,
        volumes_ready: bool,
        restarts: Backoff<String>,
        retry_at: HashMap<Op, SystemTime>,
    }

    fn case(spec: serde_json::Value, observed: ObservedPod) -> Case {
        Case {
            pod: pod_json(spec),
            actuated: None,
            observed,
            stage: Stage::Running,
            busy: HashSet::new(),
            volumes_ready: true,
            restarts: Backoff::new(INITIAL, MAX),
            retry_at: HashMap::new(),
        }
    }

    fn decide(c: &Case) -> Decision {
        let (actuated, owed) = (Actuated::of(c.actuated.as_ref().unwrap_or(&c.pod)), HashSet::new());
        sync_decision(&Situation {
            pod: &c.pod,
            observed: &c.observed,
            probes: &None_,
            restarts_asked: Restarts { actuated: &actuated, owed: &owed },
            memory_capacity: 0,
            stage: c.stage,
            busy: &c.busy,
            volumes_ready: c.volumes_ready,
            restarts: &c.restarts,
            retry_at: &c.retry_at,
            now: t0(),
        })
    }

    fn start(name: &str) -> Action {
        Action::Start { kind: ContainerKind::Regular, name: name.into() }
    }

    fn two() -> serde_json::Value {
        json!({"containers": [{"name": "a"}, {"name": "b"}]})
    }

    #[test]
    fn volumes_and_sandbox_side_by_side_then_containers_in_parallel() {
        let mut c = case(two(), ObservedPod::default());
        c.volumes_ready = false;
        let sandbox = Action::CreateSandbox { attempt: 0, stale: vec![] };
        assert_eq!(decide(&c).actions, [Action::SetUpVolumes, sandbox]);
        c.busy = [Op::Volumes, Op::Sandbox].into();
        assert_eq!(decide(&c).actions, []);
        c.busy = [Op::Volumes].into();
        c.observed = ObservedPod::new(vec![cri_sandbox(0, true)], vec![]);
        assert_eq!(decide(&c).actions, []);
        c.busy.clear();
        c.volumes_ready = true;
        assert_eq!(decide(&c).actions, [start("a"), start("b")]);
        c.busy = [Op::Start("a".into())].into();
        assert_eq!(decide(&c).actions, [start("b")]);
    }

    #[test]
    fn crash_loop_waits() {
        let dead = cri_container("a", 1, ContainerState::Exited, Some(1));
        let live = cri_container("b", 0, ContainerState::Running, None);
        let mut c = case(two(), ObservedPod::new(vec![cri_sandbox(0, true)], vec![dead, live]));
        assert_eq!(decide(&c).actions, [start("a")]);
        c.restarts.next("a".into(), t0(), t0());
        let d = decide(&c);
        assert_eq!(d.actions, []);
        assert_eq!(d.wake_at, Some(t0() + Duration::from_secs(10)));
        let waiting = &d.crash_loops["a"];
        assert_eq!(waiting.reason, "CrashLoopBackOff");
        assert_eq!(waiting.message, "back-off 10s restarting failed container=a pod=p_ns(u)");
    }

    #[test]
    fn what_starts_finds_its_pod_resized() {
        let spec = |memory: &str| {
            let resources = json!({"requests": {"memory": memory}, "limits": {"memory": memory}});
            json!({"containers": [{"name": "a", "resources": resources}, {"name": "b", "resources": resources}]})
        };
        let live = cri_container("a", 0, ContainerState::Running, None);
        let mut c = case(spec("2Gi"), ObservedPod::new(vec![cri_sandbox(0, true)], vec![live]));
        c.actuated = Some(pod_json(spec("1Gi")));
        assert!(matches!(decide(&c).actions.as_slice(), [Action::Resize(plan)] if plan.steps.len() == 2));
        c.busy = [Op::Resize].into();
        assert_eq!(decide(&c).actions, []);
        // A resize that failed holds nothing up.
        c.busy.clear();
        c.retry_at.insert(Op::Resize, t0() + Duration::from_secs(3));
        assert_eq!(decide(&c).actions, [start("b")]);
    }

    #[test]
    fn failed_work_waits() {
        let mut c = case(two(), ObservedPod::default());
        let later = t0() + Duration::from_secs(3);
        c.retry_at.insert(Op::Sandbox, later);
        let d = decide(&c);
        assert_eq!((d.actions, d.wake_at), (vec![], Some(later)));
    }

    #[test]
    fn a_finished_pod() {
        let done = cri_container("a", 0, ContainerState::Exited, Some(0));
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
        let mut c = case(spec, ObservedPod::new(vec![cri_sandbox(0, true)], vec![done]));
        assert!(decide(&c).finished);
        c.stage = Stage::Terminating;
        assert_eq!(decide(&c).actions, [Action::KillPod]);
        c.busy = [Op::KillPod].into();
        assert_eq!(decide(&c).actions, []);
    }

    #[test]
    fn old_records_go() {
        let records = (0..4).map(|n| cri_container("a", n, ContainerState::Exited, Some(1))).collect();
        let c = case(two(), ObservedPod::new(vec![cri_sandbox(0, true)], records));
        let removed: Vec<_> =
            decide(&c).actions.into_iter().filter(|a| matches!(a, Action::RemoveContainer(_))).collect();
        assert_eq!(removed, [Action::RemoveContainer("a-1".into()), Action::RemoveContainer("a-0".into())]);
    }

    #[test]
    fn durations() {
        assert_eq!(go_duration(Duration::from_secs(10)), "10s");
        assert_eq!(go_duration(Duration::from_secs(160)), "2m40s");
        assert_eq!(go_duration(Duration::from_secs(300)), "5m0s");
    }
}
