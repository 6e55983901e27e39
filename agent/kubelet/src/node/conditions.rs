//! Conditions of the node, in upstream's words.

use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use keelson_cri::{Image, RuntimeStatus};

use super::Pressures;

/// Type of the condition that says which cgroup controllers a node runs without.
pub const CGROUP_CONTROLLERS_MISSING: &str = "CgroupControllersMissing";

/// What was seen of the node just now.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Runtime and network.
    pub runtime: RuntimeStatus,
    /// Thresholds crossed.
    pub pressures: Pressures,
    /// Images on the node.
    pub images: Vec<Image>,
    /// When.
    pub now: Timestamp,
}

/// The node's conditions; transition times are carried over from `before` where the status didn't turn.
pub(super) fn compute(observation: &Observation, before: Option<&NodeStatus>) -> Vec<NodeCondition> {
    let pressures = observation.pressures;
    let mut wanted = vec![
        choose(
            "MemoryPressure",
            pressures.memory,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        choose(
            "DiskPressure",
            pressures.disk,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        choose(
            "PIDPressure",
            pressures.pid,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
    ];
    let missing = &observation.runtime.missing_controllers;
    let known = find(before, CGROUP_CONTROLLERS_MISSING).is_some();
    if !missing.is_empty() {
        let message =
            format!("limits are not enforced: cgroup v2 has no {} controller here", missing.join(", "));
        wanted.push(condition(CGROUP_CONTROLLERS_MISSING, true, "ControllersMissing", message));
    } else if known {
        let message = "all cgroup v2 controllers are there".to_owned();
        wanted.push(condition(CGROUP_CONTROLLERS_MISSING, false, "ControllersPresent", message));
    }
    wanted.push(ready(&observation.runtime));
    let now = Time(observation.now);
    for condition in &mut wanted {
        let same = find(before, &condition.type_).filter(|old| old.status == condition.status);
        condition.last_heartbeat_time = Some(now.clone());
        condition.last_transition_time =
            same.and_then(|old| old.last_transition_time.clone()).or(Some(now.clone()));
    }
    wanted
}

fn ready(runtime: &RuntimeStatus) -> NodeCondition {
    let mut problems = Vec::new();
    if let Err(message) = &runtime.runtime {
        problems.push(format!(
            "container runtime not ready: RuntimeReady=false reason:RuntimeNotReady message:{message}"
        ));
    }
    if let Err(message) = &runtime.network {
        problems.push(format!(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{message}"
        ));
    }
    match problems.as_slice() {
        [] => condition("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        [one] => condition("Ready", false, "KubeletNotReady", one.clone()),
        many => condition("Ready", false, "KubeletNotReady", format!("[{}]", many.join(", "))),
    }
}

fn choose(kind: &str, holds: bool, yes: (&str, &str), no: (&str, &str)) -> NodeCondition {
    let (reason, message) = if holds { yes } else { no };
    condition(kind, holds, reason, message.to_owned())
}

fn condition(kind: &str, holds: bool, reason: &str, message: String) -> NodeCondition {
    NodeCondition {
        type_: kind.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..NodeCondition::default()
    }
}

fn find<'a>(status: Option<&'a NodeStatus>, kind: &str) -> Option<&'a NodeCondition> {
    status?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Whether the status says Ready.
pub(super) fn is_ready(status: &NodeStatus) -> bool {
    find(Some(status), "Ready").is_some_and(|condition| condition.status == "True")
}

/// Event reasons of the conditions that turned between two statuses; all pressures when `all`.
pub(super) fn turned(before: Option<&NodeStatus>, now: &NodeStatus, all: bool) -> Vec<&'static str> {
    let reasons = [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ("Ready", "NodeReady", "NodeNotReady"),
    ];
    let mut events = Vec::new();
    for (kind, yes, no) in reasons {
        let Some(new) = find(Some(now), kind) else { continue };
        let old = find(before, kind).map(|condition| condition.status.as_str());
        if old != Some(new.status.as_str()) || (all && kind != "Ready") {
            events.push(if new.status == "True" { yes } else { no });
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(runtime: Result<(), &str>, network: Result<(), &str>, missing: &[&str]) -> Observation {
        Observation {
            runtime: RuntimeStatus {
                runtime: runtime.map_err(str::to_owned),
                network: network.map_err(str::to_owned),
                missing_controllers: missing.iter().map(|name| (*name).to_owned()).collect(),
            },
            pressures: Pressures::default(),
            images: Vec::new(),
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn check_ready(seen: &Observation, status: &str, reason: &str, message: &str) {
        let all = compute(seen, None);
        let ready = all.iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), (status, Some(reason)));
        assert_eq!(ready.message.as_deref(), Some(message));
    }

    #[test]
    fn readiness() {
        check_ready(
            &observation(Ok(()), Ok(()), &[]),
            "True",
            "KubeletReady",
            "kubelet is posting ready status",
        );
        check_ready(
            &observation(Ok(()), Err("cni config uninitialized"), &[]),
            "False",
            "KubeletNotReady",
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni config uninitialized",
        );
    }

    #[test]
    fn missing_controllers_have_a_condition() {
        let all = compute(&observation(Ok(()), Ok(()), &["memory", "cpu"]), None);
        let missing = all.iter().find(|condition| condition.type_ == CGROUP_CONTROLLERS_MISSING).unwrap();
        assert_eq!(missing.status, "True");
        assert!(missing.message.as_ref().unwrap().contains("memory, cpu"));
        assert!(
            compute(&observation(Ok(()), Ok(()), &[]), None)
                .iter()
                .all(|c| c.type_ != CGROUP_CONTROLLERS_MISSING)
        );
    }

    #[test]
    fn transition_time_moves_only_when_the_status_turns() {
        let first = NodeStatus {
            conditions: Some(compute(&observation(Ok(()), Ok(()), &[]), None)),
            ..NodeStatus::default()
        };
        let mut later = observation(Ok(()), Err("down"), &[]);
        later.now = Timestamp::from_second(100).unwrap();
        for condition in compute(&later, Some(&first)) {
            let expected = if condition.type_ == "Ready" { 100 } else { 0 };
            assert_eq!(
                condition.last_transition_time.unwrap().0.as_second(),
                expected,
                "{}",
                condition.type_
            );
        }
    }

    #[test]
    fn events_for_what_turned() {
        let status = |network| NodeStatus {
            conditions: Some(compute(&observation(Ok(()), network, &[]), None)),
            ..NodeStatus::default()
        };
        let (down, up) = (status(Err("x")), status(Ok(())));
        assert_eq!(turned(Some(&down), &up, false), ["NodeReady"]);
        assert_eq!(turned(Some(&up), &down, false), ["NodeNotReady"]);
        assert!(turned(Some(&up), &up, false).is_empty());
        assert_eq!(turned(Some(&up), &up, true).len(), 3);
    }
}
