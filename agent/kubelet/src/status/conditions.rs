//! Conditions that the kubelet owns. Source: upstream `pkg/kubelet/status/generate.go`.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

use super::phase::{Phase, has_started};
use crate::pods::podext::{PodExt, is_sidecar};
use crate::pods::resize::report;

/// Types that the kubelet writes; all others in a pod belong to somebody else and are kept.
pub const OWNED: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    report::PENDING,
    report::IN_PROGRESS,
];

fn condition(type_: &str, result: Result<Option<&str>, (&str, String)>) -> PodCondition {
    let (status, reason, message) = match result {
        Ok(reason) => ("True", reason.map(str::to_owned), None),
        Err((reason, message)) => ("False", Some(reason.to_owned()), Some(message).filter(|m| !m.is_empty())),
    };
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        ..PodCondition::default()
    }
}

fn find<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|s| s.name == name)
}

/// Go's `%s` of a string slice.
fn go_list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn unready_message(unknown: &[&str], not_yet: &[&str], word: &str) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", go_list(unknown)));
    }
    if !not_yet.is_empty() {
        parts.push(format!("containers with {word} status: {}", go_list(not_yet)));
    }
    parts.join(", ")
}

/// `ContainersReady`.
pub fn containers_ready(pod: &Pod, statuses: &[ContainerStatus], phase: Phase) -> PodCondition {
    condition("ContainersReady", containers_ready_result(pod, statuses, phase))
}

fn containers_ready_result(
    pod: &Pod,
    statuses: &[ContainerStatus],
    phase: Phase,
) -> Result<Option<&'static str>, (&'static str, String)> {
    let sidecars = pod.init_containers().iter().filter(|c| is_sidecar(c));
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for container in sidecars.chain(&PodExt::spec(pod).containers) {
        match find(statuses, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(s) if !s.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if phase == Phase::Succeeded && unknown.is_empty() {
        return Err(("PodCompleted", String::new()));
    }
    if phase == Phase::Failed {
        return Err(("PodFailed", String::new()));
    }
    let message = unready_message(&unknown, &unready, "unready");
    if message.is_empty() { Ok(None) } else { Err(("ContainersNotReady", message)) }
}

/// `Ready`: containers and readiness gates; `others` are the pod's conditions as the API has them.
pub fn ready(pod: &Pod, statuses: &[ContainerStatus], phase: Phase, others: &[PodCondition]) -> PodCondition {
    if let Err(not) = containers_ready_result(pod, statuses, phase) {
        return condition("Ready", Err(not));
    }
    let mut messages = Vec::new();
    for gate in PodExt::spec(pod).readiness_gates.iter().flatten() {
        match others.iter().find(|c| c.type_ == gate.condition_type) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {:?} does not exist.",
                gate.condition_type
            )),
            Some(c) if c.status != "True" => messages.push(format!(
                "the status of pod readiness gate {:?} is not \"True\", but {}",
                gate.condition_type, c.status
            )),
            Some(_) => {}
        }
    }
    let result =
        if messages.is_empty() { Ok(None) } else { Err(("ReadinessGatesNotReady", messages.join(", "))) };
    condition("Ready", result)
}

/// `Initialized`.
pub fn initialized(pod: &Pod, statuses: &[ContainerStatus], phase: Phase) -> PodCondition {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in pod.init_containers() {
        match find(statuses, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(s) if is_sidecar(container) && s.started != Some(true) => {
                incomplete.push(container.name.as_str())
            }
            Some(s) if !is_sidecar(container) && !s.ready => incomplete.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    if phase == Phase::Succeeded && unknown.is_empty() {
        return condition("Initialized", Ok(Some("PodCompleted")));
    }
    if has_started(pod, statuses) {
        return condition("Initialized", Ok(None));
    }
    let message = unready_message(&unknown, &incomplete, "incomplete");
    condition(
        "Initialized",
        if message.is_empty() { Ok(None) } else { Err(("ContainersNotInitialized", message)) },
    )
}

/// `PodReadyToStartContainers` and `PodScheduled`: plain facts.
pub fn plain(type_: &str, holds: bool) -> PodCondition {
    PodCondition {
        type_: type_.to_owned(),
        status: if holds { "True" } else { "False" }.to_owned(),
        ..PodCondition::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap()
    }

    fn statuses(list: serde_json::Value) -> Vec<ContainerStatus> {
        let mut list = list;
        for s in list.as_array_mut().unwrap() {
            for (k, v) in [
                ("image", json!("")),
                ("imageID", json!("")),
                ("restartCount", json!(0)),
                ("ready", json!(false)),
            ] {
                s.as_object_mut().unwrap().entry(k).or_insert(v);
            }
        }
        serde_json::from_value(list).unwrap()
    }

    fn check(c: &PodCondition, status: &str, reason: &str, message: &str) {
        let got = (
            c.status.as_str(),
            c.reason.as_deref().unwrap_or_default(),
            c.message.as_deref().unwrap_or_default(),
        );
        assert_eq!(got, (status, reason, message));
    }

    #[test]
    fn containers() {
        let p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}));
        let s = statuses(json!([{"name": "a", "ready": true}, {"name": "b"}]));
        check(
            &containers_ready(&p, &s, Phase::Running),
            "False",
            "ContainersNotReady",
            "containers with unknown status: [c], containers with unready status: [b]",
        );
        check(&containers_ready(&p, &s, Phase::Failed), "False", "PodFailed", "");
        let s = statuses(
            json!([{"name": "a", "ready": true}, {"name": "b", "ready": true}, {"name": "c", "ready": true}]),
        );
        check(&containers_ready(&p, &s, Phase::Running), "True", "", "");
        check(&containers_ready(&p, &s, Phase::Succeeded), "False", "PodCompleted", "");
    }

    #[test]
    fn gates() {
        let p = pod(json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]}));
        let s = statuses(json!([{"name": "a", "ready": true}]));
        check(
            &ready(&p, &s, Phase::Running, &[]),
            "False",
            "ReadinessGatesNotReady",
            "corresponding condition of pod readiness gate \"x/y\" does not exist.",
        );
        check(
            &ready(&p, &s, Phase::Running, &[plain("x/y", false)]),
            "False",
            "ReadinessGatesNotReady",
            "the status of pod readiness gate \"x/y\" is not \"True\", but False",
        );
        check(&ready(&p, &s, Phase::Running, &[plain("x/y", true)]), "True", "", "");
    }

    #[test]
    fn initialization() {
        let p = pod(json!({"containers": [{"name": "a"}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]}));
        let s = statuses(json!([{"name": "i"}]));
        check(
            &initialized(&p, &s, Phase::Pending),
            "False",
            "ContainersNotInitialized",
            "containers with unknown status: [s], containers with incomplete status: [i]",
        );
        let s = statuses(json!([{"name": "i", "ready": true}, {"name": "s", "started": true}]));
        check(&initialized(&p, &s, Phase::Pending), "True", "", "");
    }
}
