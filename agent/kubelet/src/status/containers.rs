//! `status.containerStatuses` and its siblings. Source: upstream `convertToAPIContainerStatuses` in
//! `pkg/kubelet/kubelet_pods.go`.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, Pod,
};
use keelson_cri::{ContainerState as CriState, ContainerStatus as CriStatus};

use crate::clock::api_time;
use crate::pods::ObservedPod;
use crate::pods::actions::should_be_restarted;
use crate::pods::podext::{ContainerKind, PodExt, is_sidecar};
use crate::pods::resize::Actuated;

/// Why a container that should run does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Upstream's reason: `ImagePullBackOff`, `CrashLoopBackOff`, `CreateContainerConfigError`, …
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// What the statuses are made from, beside the pod itself.
pub struct Facts<'a> {
    /// The runtime's view.
    pub observed: &'a ObservedPod,
    /// Why containers could not be started, by container name.
    pub waiting: &'a HashMap<String, Waiting>,
    /// Termination messages by container id.
    pub messages: &'a HashMap<String, String>,
    /// Whether a running container counts as started (startup probe), by container id.
    pub started: &'a dyn Fn(&Container, &str) -> bool,
    /// Whether a running, started container is ready (readiness probe), by container id.
    pub ready: &'a dyn Fn(&Container, &str) -> bool,
}

const GONE: &str =
    "The container could not be located when the pod was deleted.  The container used to be Running";

fn waiting_state(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn unknown_terminated(message: &str) -> ContainerState {
    let terminated = ContainerStateTerminated {
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.to_owned()),
        exit_code: 137,
        ..ContainerStateTerminated::default()
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// `keelson://<id>`.
pub fn container_id(id: &str) -> String {
    format!("keelson://{id}")
}

fn state_of(c: &CriStatus, message: Option<&String>, default_reason: &str) -> ContainerState {
    match c.state {
        CriState::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: c.started_at.map(api_time) }),
            ..ContainerState::default()
        },
        // It is about to be started: a failed start leaves an exited record.
        CriState::Created => waiting_state(default_reason, None),
        CriState::Exited => {
            let exit_code = c.exit_code.unwrap_or(137);
            let ended_reason = if exit_code == 0 { "Completed" } else { "Error" };
            let message = message.cloned().or_else(|| c.message.clone()).filter(|m| !m.is_empty());
            let terminated = ContainerStateTerminated {
                container_id: Some(container_id(&c.id)),
                exit_code,
                finished_at: c.finished_at.map(api_time),
                started_at: c.started_at.map(api_time),
                message,
                reason: Some(c.reason.clone().unwrap_or_else(|| ended_reason.to_owned())),
                signal: None,
            };
            ContainerState { terminated: Some(terminated), ..ContainerState::default() }
        }
        CriState::Unknown => {
            ContainerState { waiting: Some(ContainerStateWaiting::default()), ..ContainerState::default() }
        }
    }
}

fn convert(c: &CriStatus, container: &Container, default_reason: &str, facts: &Facts<'_>) -> ContainerStatus {
    let user = c.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: i64::from(*uid),
            gid: i64::from(*gid),
            // The API keeps no empty list: one here would differ from what it has for ever.
            supplemental_groups: (!groups.is_empty()).then(|| groups.iter().map(|g| i64::from(*g)).collect()),
        }),
    });
    // An image's id tells a reader nothing that the spec's name does not.
    let image = if c.image_ref.is_empty() || c.image_ref.starts_with("sha256:") {
        container.image.clone().unwrap_or_default()
    } else {
        c.image_ref.clone()
    };
    ContainerStatus {
        name: c.name.clone(),
        image,
        image_id: c.image.clone(),
        container_id: Some(container_id(&c.id)),
        restart_count: i32::try_from(c.attempt).unwrap_or(i32::MAX),
        state: Some(state_of(c, facts.messages.get(&c.id), default_reason)),
        last_state: Some(ContainerState::default()),
        user: user.filter(|_| c.state == CriState::Running),
        ..ContainerStatus::default()
    }
}

/// Statuses of one list of containers, in the order in which upstream writes them: by name, init containers in the
/// order of the spec. `old` are the last statuses known, from the API or from the last round.
pub fn statuses(
    pod: &Pod,
    kind: ContainerKind,
    containers: &[Container],
    old: &[ContainerStatus],
    facts: &Facts<'_>,
    actuated: &Actuated,
) -> Vec<ContainerStatus> {
    let has_init = kind != ContainerKind::Ephemeral && !pod.init_containers().is_empty();
    let default_reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut out: Vec<ContainerStatus> =
        containers.iter().map(|c| one(pod, kind, c, old, default_reason, facts)).collect();
    for (status, container) in out.iter_mut().zip(containers) {
        if facts.observed.container(&container.name).is_some() {
            set_resources(status, container, actuated);
        }
    }
    if kind != ContainerKind::Init {
        out.sort_by(|a, b| a.name.cmp(&b.name));
    }
    out
}

fn one(
    pod: &Pod,
    kind: ContainerKind,
    container: &Container,
    old: &[ContainerStatus],
    default_reason: &str,
    facts: &Facts<'_>,
) -> ContainerStatus {
    let old = old.iter().find(|s| s.name == container.name);
    let newest = facts.observed.container(&container.name);
    let mut status = match newest {
        Some(c) => {
            let mut status = convert(c, container, default_reason, facts);
            if let Some(previous) = facts.observed.previous(&container.name) {
                status.last_state =
                    Some(state_of(previous, facts.messages.get(&previous.id), default_reason));
            } else if let Some(old) = old {
                // The record of the container before may be gone; what was reported of it stays true.
                status.last_state = last_from_old(old, &status);
            }
            status
        }
        None => missing(pod, container, old, default_reason),
    };
    // A container that should run but could not be started is waiting, and says why.
    let init_done = kind == ContainerKind::Init
        && newest.is_some_and(|c| c.state == CriState::Exited && c.exit_code == Some(0))
        && !is_sidecar(container);
    let wanted = kind != ContainerKind::Ephemeral || newest.is_none();
    if !init_done
        && wanted
        && should_be_restarted(pod, container, facts.observed)
        && let Some(waiting) = facts.waiting.get(&container.name)
    {
        if status.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            status.last_state = status.state.take();
        }
        status.state =
            Some(waiting_state(&waiting.reason, Some(waiting.message.clone()).filter(|m| !m.is_empty())));
    }
    set_readiness(&mut status, kind, container, newest, facts);
    status
}

/// Keeps the reported last state, unless the old status is of an earlier container whose end was reported.
fn last_from_old(old: &ContainerStatus, new: &ContainerStatus) -> Option<ContainerState> {
    let same = old.container_id == new.container_id;
    let ended = old.state.as_ref().filter(|s| s.terminated.is_some());
    match ended {
        Some(state) if !same => Some(state.clone()),
        _ => old.last_state.clone().or_else(|| Some(ContainerState::default())),
    }
}

fn missing(
    pod: &Pod,
    container: &Container,
    old: Option<&ContainerStatus>,
    default_reason: &str,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting_state(default_reason, None)),
        last_state: Some(ContainerState::default()),
        ..ContainerStatus::default()
    };
    let Some(old) = old else { return status };
    let old_state = old.state.clone().unwrap_or_default();
    if old_state.terminated.is_some() {
        return old.clone();
    }
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone();
    let has_last = status.last_state.as_ref().is_some_and(|s| s.terminated.is_some());
    if old_state.running.is_some() && !has_last {
        // It ran, and its record is gone: say that it ended rather than that it never was.
        status.last_state = Some(unknown_terminated(GONE));
    }
    if old.container_id.is_some() && !pod.is_deleting() {
        // The next one is another attempt. Said once: from now on there is no id.
        status.restart_count += 1;
    }
    status
}

/// What is allocated, and what is in effect of it: of a container that does not run, all.
fn set_resources(status: &mut ContainerStatus, container: &Container, actuated: &Actuated) {
    let own = container.resources.clone().unwrap_or_default();
    let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
    status.allocated_resources.clone_from(&own.requests);
    let in_effect = actuated.containers.get(&container.name).filter(|_| running);
    status.resources = Some(in_effect.cloned().unwrap_or(own));
}

fn set_readiness(
    status: &mut ContainerStatus,
    kind: ContainerKind,
    container: &Container,
    newest: Option<&CriStatus>,
    facts: &Facts<'_>,
) {
    let running = status.state.as_ref().is_some_and(|s| s.running.is_some());
    let id = newest.map(|c| c.id.as_str()).unwrap_or_default();
    if kind == ContainerKind::Init && !is_sidecar(container) {
        let terminated = status.state.as_ref().and_then(|s| s.terminated.as_ref());
        status.ready = terminated.is_some_and(|t| t.exit_code == 0);
        status.started = Some(false);
        return;
    }
    let started = running && (facts.started)(container, id);
    status.started = Some(started);
    status.ready = started && (kind == ContainerKind::Ephemeral || (facts.ready)(container, id));
    if kind == ContainerKind::Ephemeral {
        // Ephemeral containers have no probes and no readiness.
        status.ready = false;
        status.started = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{cri_container, pod_json};
    use serde_json::json;

    fn run(
        pod: &Pod,
        observed: &ObservedPod,
        waiting: &[(&str, &str)],
        old: &[ContainerStatus],
    ) -> Vec<ContainerStatus> {
        let waiting = waiting
            .iter()
            .map(|(n, r)| ((*n).to_owned(), Waiting { reason: (*r).to_owned(), message: "m".into() }))
            .collect();
        let facts = Facts {
            observed,
            waiting: &waiting,
            messages: &HashMap::new(),
            started: &|_, _| true,
            ready: &|_, _| true,
        };
        statuses(pod, ContainerKind::Regular, &PodExt::spec(pod).containers, old, &facts, &Actuated::of(pod))
    }

    #[test]
    fn nothing_yet() {
        let pod = pod_json(json!({"containers": [{"name": "b"}, {"name": "a"}]}));
        let got = run(&pod, &ObservedPod::default(), &[], &[]);
        assert_eq!(got.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let waiting = got[0].state.clone().unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    }

    #[test]
    fn a_container_about_to_start_has_not_ended() {
        let pod = pod_json(json!({"containers": [{"name": "a", "image": "i"}], "restartPolicy": "Never"}));
        let observed = ObservedPod::new(vec![], vec![cri_container("a", 0, CriState::Created, None)]);
        let state = run(&pod, &observed, &[], &[])[0].state.clone().unwrap();
        assert!(state.terminated.is_none());
        assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("ContainerCreating"));
    }

    #[test]
    fn with_init_containers_all_wait_for_the_pods_initialization() {
        let pod =
            pod_json(json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i", "image": "i"}]}));
        let observed = ObservedPod::new(vec![], vec![cri_container("i", 0, CriState::Created, None)]);
        let (messages, waiting) = (HashMap::new(), HashMap::new());
        let facts = Facts {
            observed: &observed,
            waiting: &waiting,
            messages: &messages,
            started: &|_, _| true,
            ready: &|_, _| true,
        };
        let got =
            statuses(&pod, ContainerKind::Init, pod.init_containers(), &[], &facts, &Actuated::of(&pod));
        let reason = got[0].state.clone().unwrap().waiting.unwrap().reason;
        assert_eq!(reason.as_deref(), Some("PodInitializing"));
    }

    #[test]
    fn crash_loop_moves_the_end_to_last_state() {
        let pod = pod_json(json!({"containers": [{"name": "a", "image": "i"}]}));
        let observed = ObservedPod::new(vec![], vec![cri_container("a", 3, CriState::Exited, Some(1))]);
        let got = run(&pod, &observed, &[("a", "CrashLoopBackOff")], &[]);
        assert_eq!(
            got[0].state.clone().unwrap().waiting.unwrap().reason.as_deref(),
            Some("CrashLoopBackOff")
        );
        let last = got[0].last_state.clone().unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
        assert_eq!(got[0].restart_count, 3);
        assert!(!got[0].ready);
    }

    #[test]
    fn previous_record_is_last_state() {
        let pod = pod_json(json!({"containers": [{"name": "a"}]}));
        let observed = ObservedPod::new(
            vec![],
            vec![
                cri_container("a", 0, CriState::Exited, Some(0)),
                cri_container("a", 1, CriState::Running, None),
            ],
        );
        let got = run(&pod, &observed, &[], &[]);
        assert!(got[0].state.clone().unwrap().running.is_some());
        assert!(got[0].ready);
        assert_eq!(got[0].started, Some(true));
        assert_eq!(
            got[0].last_state.clone().unwrap().terminated.unwrap().reason.as_deref(),
            Some("Completed")
        );
        assert_eq!(got[0].container_id.as_deref(), Some("keelson://a-1"));
    }

    #[test]
    fn a_user_without_further_groups_has_no_list_of_them() {
        let pod = pod_json(json!({"containers": [{"name": "a"}]}));
        let groups = |groups: Vec<u32>| {
            let mut container = cri_container("a", 0, CriState::Running, None);
            container.user = Some((1000, 1000, groups));
            let got = run(&pod, &ObservedPod::new(vec![], vec![container]), &[], &[]);
            got[0].user.clone().unwrap().linux.unwrap().supplemental_groups
        };
        assert_eq!(groups(vec![]), None);
        assert_eq!(groups(vec![7]), Some(vec![7]));
    }

    #[test]
    fn a_lost_record_counts_as_a_restart() {
        let pod = pod_json(json!({"containers": [{"name": "a"}]}));
        let observed = ObservedPod::new(vec![], vec![cri_container("a", 0, CriState::Running, None)]);
        let old = run(&pod, &observed, &[], &[]);
        let got = run(&pod, &ObservedPod::default(), &[], &old);
        assert_eq!(got[0].restart_count, 1);
        let last = got[0].last_state.clone().unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    }
}
