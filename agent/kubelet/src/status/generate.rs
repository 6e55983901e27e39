//! The whole `pod.status`. Source: upstream `generateAPIPodStatus` in `pkg/kubelet/kubelet_pods.go` and
//! `updateStatusInternal` in `pkg/kubelet/status/status_manager.go`.

use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus, HostIP, Pod, PodCondition, PodIP,
    PodStatus, ResourceRequirements,
};

use super::conditions;
use super::containers::{Facts, statuses};
use super::phase::{Phase, phase};
use crate::clock::api_time;
use crate::pods::podext::{ContainerKind, PodExt, container_of_ephemeral, is_sidecar};
use crate::pods::qos::{self, Side, qos_class};
use crate::pods::resize::Actuated;
use crate::pods::resize::report::Progress;

/// A verdict that overrides what the containers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `status.reason`: `DeadlineExceeded`, `Evicted`, `OutOfcpu`, …
    pub reason: String,
    /// `status.message`.
    pub message: String,
}

/// What the status is made from.
pub struct Input<'a> {
    /// The pod as the API last sent it.
    pub pod: &'a Pod,
    /// Resources that are in effect.
    pub actuated: &'a Actuated,
    /// How far a resize is.
    pub resize: &'a Progress,
    /// The last status made here, or the API's.
    pub old: &'a PodStatus,
    /// Containers.
    pub facts: Facts<'a>,
    /// The pod fails with this reason, whatever its containers say.
    pub failed: Option<&'a Verdict>,
    /// No container of it will be started again.
    pub terminating: bool,
    /// Every container has ended and the sandbox is stopped.
    pub terminated: bool,
    /// Node addresses.
    pub host_ips: &'a [IpAddr],
    /// Now.
    pub now: SystemTime,
}

/// Makes the status. Pure: the same input gives the same status.
pub fn generate(input: &Input<'_>) -> PodStatus {
    let pod = input.pod;
    let facts = &input.facts;
    let api = pod.status.clone().unwrap_or_default();
    let list = |field: &Option<Vec<ContainerStatus>>| field.clone().unwrap_or_default();
    let ephemeral: Vec<Container> = pod.ephemeral_containers().iter().map(container_of_ephemeral).collect();
    let make = |kind, containers: &[Container], old: &Option<Vec<ContainerStatus>>| {
        statuses(pod, kind, containers, &list(old), facts, input.actuated)
    };
    let mut regular =
        make(ContainerKind::Regular, &PodExt::spec(pod).containers, &input.old.container_statuses);
    let mut init = make(ContainerKind::Init, pod.init_containers(), &input.old.init_container_statuses);
    let mut debug = make(ContainerKind::Ephemeral, &ephemeral, &input.old.ephemeral_container_statuses);
    if input.terminated {
        if initialized(pod, &regular, &init) {
            regular.iter_mut().for_each(settle);
        }
        begun(&mut init).iter_mut().chain(&mut debug).for_each(settle);
    }
    let all: Vec<ContainerStatus> = regular.iter().chain(&init).cloned().collect();

    let api_phase = api.phase.as_deref().and_then(Phase::parse);
    let old_phase = input.old.phase.as_deref().and_then(Phase::parse);
    let mut now_phase = phase(pod, &all, input.terminating);
    if !now_phase.is_terminal()
        && let Some(kept) = [old_phase, api_phase].into_iter().flatten().find(|p| p.is_terminal())
    {
        now_phase = kept;
    }
    if input.terminated && !now_phase.is_terminal() && input.terminating {
        // Nothing of it will run again, so it must not end its life as Pending or Running: Jobs count on this.
        now_phase = if pod.is_deleting() || input.failed.is_some() { Phase::Failed } else { now_phase };
    }
    let (mut reason, mut message) = (None, None);
    if Some(now_phase) == old_phase {
        reason = input.old.reason.clone().or_else(|| api.reason.clone());
        message = input.old.message.clone().or_else(|| api.message.clone());
    }
    if let Some(verdict) = input.failed {
        now_phase = Phase::Failed;
        reason = Some(verdict.reason.clone());
        message = Some(verdict.message.clone());
    }
    // The API server shows a terminal phase: it is final.
    if let Some(kept) = api_phase.filter(|p| p.is_terminal()) {
        now_phase = kept;
    }

    let sandbox = facts.observed.ready_sandbox();
    let mut pod_ips: Vec<IpAddr> = match sandbox {
        _ if pod.host_network() => input.host_ips.to_vec(),
        Some(s) => s.ips.clone(),
        // A pod that ended keeps showing the addresses it had.
        None => input.old.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
    };
    pod_ips.truncate(2);
    let has_network = sandbox.is_some_and(|s| pod.host_network() || !s.ips.is_empty());
    let generation = pod.metadata.generation;
    let others: Vec<PodCondition> = api.conditions.unwrap_or_default();
    let mut own = vec![
        conditions::plain("PodReadyToStartContainers", has_network),
        conditions::initialized(pod, &all, now_phase),
        conditions::ready(pod, &all, now_phase, &others),
        conditions::containers_ready(pod, &all, now_phase),
        conditions::plain("PodScheduled", true),
    ];
    for condition in &mut own {
        condition.observed_generation = generation;
    }
    // A resize's conditions are about the generation that asked for it.
    own.extend(input.resize.conditions());
    for condition in &mut own {
        stamp(condition, input.old.conditions.as_deref().unwrap_or(&others), input.now);
    }
    let kept = others.into_iter().filter(|c| !conditions::OWNED.contains(&c.type_.as_str()));
    PodStatus {
        phase: Some(now_phase.as_str().to_owned()),
        reason: reason.filter(|r| !r.is_empty()),
        message: message.filter(|m| !m.is_empty()),
        conditions: Some(kept.chain(own).collect()),
        container_statuses: Some(regular),
        init_container_statuses: Some(init).filter(|l| !l.is_empty()),
        ephemeral_container_statuses: Some(debug).filter(|l| !l.is_empty()),
        host_ip: input.host_ips.first().map(ToString::to_string),
        host_ips: Some(input.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: pod_ips.first().map(ToString::to_string),
        pod_ips: Some(pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect::<Vec<_>>())
            .filter(|l| !l.is_empty()),
        qos_class: Some(api.qos_class.unwrap_or_else(|| qos_class(pod).as_str().to_owned())),
        start_time: input.old.start_time.clone().or(api.start_time).or_else(|| Some(api_time(input.now))),
        observed_generation: generation,
        allocated_resources: qos::pod_amounts(pod, Side::Requests),
        resources: Some(ResourceRequirements {
            requests: qos::pod_amounts(pod, Side::Requests),
            limits: qos::pod_amounts(pod, Side::Limits),
            claims: None,
        }),
        // Fields of other owners are not ours to write.
        ..PodStatus::default()
    }
}

/// Whether the pod came as far as its containers: those of a pod that did not were never lost. Source: upstream
/// `hasPodInitialized` in `pkg/kubelet/status/status_manager.go`.
fn initialized(pod: &Pod, regular: &[ContainerStatus], init: &[ContainerStatus]) -> bool {
    let has_run = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        state.is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || status.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
    };
    let Some((last, status)) = pod.init_containers().last().zip(init.last()) else { return true };
    let state = status.state.as_ref();
    let last_is_done = if is_sidecar(last) {
        status.started == Some(true) && state.is_some_and(|s| s.running.is_some())
    } else {
        state.and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
    };
    last_is_done || regular.iter().any(has_run)
}

/// Init containers up to the last that was ever tried; the first counts as tried. Source: upstream
/// `initializedContainers`, there.
fn begun(init: &mut [ContainerStatus]) -> &mut [ContainerStatus] {
    let tried = |status: &ContainerStatus| {
        status.state.as_ref().is_none_or(|s| s.waiting.is_none())
            || status.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
    };
    let count = init.iter().rposition(tried).unwrap_or(0) + 1;
    let count = count.min(init.len());
    &mut init[..count]
}

/// A container that is not terminated although its pod is was lost: say so rather than leave it running or waiting.
fn settle(status: &mut ContainerStatus) {
    let state = status.state.get_or_insert_default();
    if state.terminated.is_some() {
        return;
    }
    let waiting_after_end =
        status.last_state.as_ref().and_then(|s| s.terminated.clone()).filter(|_| state.waiting.is_some());
    let message = "The container could not be located when the pod was terminated";
    let terminated = waiting_after_end.unwrap_or_else(|| ContainerStateTerminated {
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        exit_code: 137,
        ..ContainerStateTerminated::default()
    });
    *state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
    status.ready = false;
    if status.started.is_some() {
        status.started = Some(false);
    }
}

/// Carries the transition time over when the status did not change.
fn stamp(condition: &mut PodCondition, old: &[PodCondition], now: SystemTime) {
    let same = old.iter().find(|o| o.type_ == condition.type_ && o.status == condition.status);
    condition.last_transition_time =
        same.and_then(|o| o.last_transition_time.clone()).or_else(|| Some(api_time(now)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::ObservedPod;
    use crate::pods::testing::{cri_container, cri_sandbox, pod_json};
    use keelson_cri::ContainerState as CriState;
    use serde_json::json;
    use std::collections::HashMap;

    fn run(
        pod: &Pod,
        observed: &ObservedPod,
        terminating: bool,
        terminated: bool,
        failed: Option<&Verdict>,
    ) -> PodStatus {
        let old = pod.status.clone().unwrap_or_default();
        generate(&Input {
            pod,
            actuated: &Actuated::of(pod),
            resize: &Progress::of(pod),
            old: &old,
            facts: Facts {
                observed,
                waiting: &HashMap::new(),
                messages: &HashMap::new(),
                started: &|_, _| true,
                ready: &|_, _| true,
            },
            failed,
            terminating,
            terminated,
            host_ips: &["10.89.0.11".parse().unwrap()],
            now: SystemTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn running_pod() {
        let pod = pod_json(json!({"containers": [{"name": "a"}]}));
        let observed = ObservedPod::new(
            vec![cri_sandbox(0, true)],
            vec![cri_container("a", 0, CriState::Running, None)],
        );
        let s = run(&pod, &observed, false, false, None);
        assert_eq!(s.phase.as_deref(), Some("Running"));
        assert_eq!(s.pod_ip.as_deref(), Some("10.244.0.5"));
        assert_eq!(s.host_ip.as_deref(), Some("10.89.0.11"));
        assert_eq!(s.qos_class.as_deref(), Some("BestEffort"));
        assert!(s.conditions.unwrap().iter().all(|c| c.status == "True"));
    }

    #[test]
    fn deadline() {
        let pod = pod_json(json!({"containers": [{"name": "a"}]}));
        let verdict = Verdict { reason: "DeadlineExceeded".into(), message: "m".into() };
        let observed = ObservedPod::new(
            vec![cri_sandbox(0, true)],
            vec![cri_container("a", 0, CriState::Running, None)],
        );
        let s = run(&pod, &observed, true, false, Some(&verdict));
        assert_eq!((s.phase.as_deref(), s.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
    }

    #[test]
    fn terminated_pod_has_no_loose_end() {
        let pod = pod_json(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
        let observed = ObservedPod::new(
            vec![cri_sandbox(0, false)],
            vec![cri_container("a", 0, CriState::Exited, Some(0))],
        );
        let mut deleting = pod;
        deleting.metadata.deletion_timestamp = Some(api_time(SystemTime::UNIX_EPOCH));
        let s = run(&deleting, &observed, true, true, None);
        assert!(s.container_statuses.unwrap().iter().all(|c| c.state.as_ref().unwrap().terminated.is_some()));
        assert_eq!(s.phase.as_deref(), Some("Failed"));
    }

    #[test]
    fn containers_that_were_never_reached_are_not_lost() {
        let spec = json!({
            "restartPolicy": "Never",
            "initContainers": [{"name": "i1"}, {"name": "i2"}],
            "containers": [{"name": "a"}],
        });
        let check = |seen: Vec<keelson_cri::ContainerStatus>, want: [Option<&str>; 3]| {
            let observed = ObservedPod::new(vec![cri_sandbox(0, true)], seen);
            let status = run(&pod_json(spec.clone()), &observed, true, true, None);
            let init = status.init_container_statuses.unwrap_or_default();
            let all: Vec<_> = init.into_iter().chain(status.container_statuses.unwrap_or_default()).collect();
            let got: Vec<_> = all
                .iter()
                .map(|status| status.state.as_ref()?.terminated.as_ref()?.reason.as_deref())
                .collect();
            assert_eq!(got, want);
        };
        let ended = |name, code| cri_container(name, 0, CriState::Exited, Some(code));
        check(vec![ended("i1", 1)], [Some("Error"), None, None]);
        check(vec![ended("i1", 0), ended("i2", 1)], [Some("Completed"), Some("Error"), None]);
        check(vec![], [Some("ContainerStatusUnknown"), None, None]);
        let all_done = [Some("Completed"), Some("Completed"), Some("ContainerStatusUnknown")];
        check(vec![ended("i1", 0), ended("i2", 0)], all_done);
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let mut pod = pod_json(json!({"containers": [{"name": "a"}]}));
        pod.status = Some(PodStatus {
            conditions: Some(vec![conditions::plain("x/gate", true), conditions::plain("Ready", true)]),
            ..PodStatus::default()
        });
        let s = run(&pod, &ObservedPod::default(), false, false, None);
        let types: Vec<_> = s.conditions.unwrap().into_iter().map(|c| (c.type_, c.status)).collect();
        assert_eq!(types[0], ("x/gate".into(), "True".into()));
        assert!(types.contains(&("Ready".into(), "False".into())));
    }
}
