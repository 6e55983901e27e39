//! What a pod needs next, decided from what is wanted and what is there. Pure.
//!
//! Source: upstream `computePodActions`, `computeInitContainerActions`, `PodSandboxChanged`
//! (`pkg/kubelet/kuberuntime/kuberuntime_manager.go`) and `ShouldContainerBeRestarted`
//! (`pkg/kubelet/container/helpers.go`).

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::{ContainerState, ContainerStatus};

use std::collections::HashSet;

use super::observed::ObservedPod;
use super::podext::{ContainerKind, PodExt, RestartPolicy, is_sidecar};
use super::resize::{Actuated, requires_restart};

/// Annotation of a container that holds [`container_hash`] of the spec it was made from.
pub const HASH_ANNOTATION: &str = "io.kubernetes.container.hash";

/// Why a container is killed; it selects the grace period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KillReason {
    /// Its liveness probe failed.
    LivenessProbe,
    /// Its startup probe failed.
    StartupProbe,
    /// Its definition changed.
    Changed,
    /// Its resize policy wants it restarted.
    Resize,
    /// Its state is not known.
    Unknown,
    /// Its postStart hook failed.
    PostStartHook,
    /// The pod ends.
    PodEnds,
}

/// One container to kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Container id.
    pub id: String,
    /// Container name.
    pub name: String,
    /// Text of the `Killing` event.
    pub message: String,
    /// Why.
    pub reason: KillReason,
}

/// What is to be done. Indexes are into the pod's lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodActions {
    /// Stop everything that runs and the sandbox.
    pub kill_pod: bool,
    /// Make a new sandbox, as this attempt.
    pub create_sandbox: Option<u32>,
    /// Init containers to start, in order.
    pub init_to_start: Vec<usize>,
    /// Regular containers to start.
    pub containers_to_start: Vec<usize>,
    /// Ephemeral containers to start.
    pub ephemeral_to_start: Vec<usize>,
    /// Containers to kill.
    pub to_kill: Vec<Kill>,
}

/// What the probes of running containers have found, by container id. None: not run yet.
pub trait ProbeVerdicts {
    /// Liveness: `Some(false)` asks for a restart.
    fn liveness(&self, container_id: &str) -> Option<bool>;
    /// Startup: `Some(true)` lets what waits for it go on, `Some(false)` asks for a restart.
    fn startup(&self, container_id: &str) -> Option<bool>;
}

/// What restarts a container although it neither failed nor ended by itself.
#[derive(Clone, Copy)]
pub struct Restarts<'a> {
    /// Resources that are in effect.
    pub actuated: &'a Actuated,
    /// Names of containers that were killed to be started again, whatever the restart policy says.
    pub owed: &'a HashSet<String>,
}

/// Identity of a container's definition: name and image, the only parts that may change under a running container
/// and need a restart (FNV-1a, 32 bits, as upstream spells hashes).
pub fn container_hash(container: &Container) -> String {
    let text = format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default());
    let hash = text.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("{hash:x}")
}

/// Whether a dead (or never started) container will be started again.
pub fn should_be_restarted(pod: &Pod, container: &Container, observed: &ObservedPod) -> bool {
    if pod.is_deleting() {
        return false;
    }
    let Some(status) = observed.container(&container.name) else { return true };
    match status.state {
        ContainerState::Running => false,
        ContainerState::Unknown | ContainerState::Created => true,
        ContainerState::Exited => restarts_after(pod, container, status.exit_code.unwrap_or(137)),
    }
}

/// Restart policy of a container after an exit: its own rules, its own policy, the pod's policy.
pub fn restarts_after(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.as_ref().is_some_and(|v| v.contains(&exit_code));
        let matches = if codes.operator == "NotIn" { !listed } else { listed };
        if matches {
            return rule.action == "Restart";
        }
    }
    match container.restart_policy.as_deref() {
        Some("Always") => true,
        Some("OnFailure") => exit_code != 0,
        Some("Never") => false,
        _ => match pod.restart_policy() {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        },
    }
}

/// The actions of a pod that is to run.
pub fn compute_pod_actions(
    pod: &Pod,
    observed: &ObservedPod,
    probes: &dyn ProbeVerdicts,
    restarts: Restarts<'_>,
) -> PodActions {
    if let Some(attempt) = sandbox_changed(pod, observed) {
        return fresh_start(pod, observed, attempt);
    }
    let mut actions = PodActions::default();
    for (index, container) in pod.ephemeral_containers().iter().enumerate() {
        // Ephemeral containers are never restarted.
        if observed.container(&container.name).is_none() {
            actions.ephemeral_to_start.push(index);
        }
    }
    let initialized = init_actions(pod, observed, probes, restarts, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let mut keep = 0;
    for (index, container) in PodExt::spec(pod).containers.iter().enumerate() {
        let status = observed.container(&container.name);
        let Some(status) = status.filter(|s| s.state == ContainerState::Running) else {
            let owed = restarts.owed.contains(&container.name) && !pod.is_deleting();
            if owed || should_be_restarted(pod, container, observed) {
                actions.containers_to_start.push(index);
                if let Some(status) = status.filter(|s| s.state == ContainerState::Unknown) {
                    actions.to_kill.push(kill_unknown(status, "Container"));
                }
            }
            continue;
        };
        let Some((text, reason)) = verdict(container, status, probes, restarts, "Container") else {
            keep += 1;
            continue;
        };
        let asked = matches!(reason, KillReason::Changed | KillReason::Resize);
        let restart = asked || restarts_after(pod, container, 137);
        let says_so = restart && reason != KillReason::Resize;
        let message = if says_so { format!("{text}, will be restarted") } else { text };
        if restart {
            actions.containers_to_start.push(index);
        }
        actions.to_kill.push(Kill { id: status.id.clone(), name: container.name.clone(), message, reason });
    }
    if keep == 0 && actions.containers_to_start.is_empty() {
        actions.kill_pod = true;
        // Sidecars do not keep a pod alive.
        actions.init_to_start.clear();
    }
    actions
}

/// Why a running container must be killed, if it must.
fn verdict(
    container: &Container,
    status: &ContainerStatus,
    probes: &dyn ProbeVerdicts,
    restarts: Restarts<'_>,
    word: &str,
) -> Option<(String, KillReason)> {
    let name = &container.name;
    let made_from = status.annotations.get(HASH_ANNOTATION);
    if made_from.is_some_and(|hash| *hash != container_hash(container)) {
        return Some((format!("{word} {name} definition changed"), KillReason::Changed));
    }
    if probes.liveness(&status.id) == Some(false) {
        return Some((format!("{word} {name} failed liveness probe"), KillReason::LivenessProbe));
    }
    if probes.startup(&status.id) == Some(false) {
        return Some((format!("{word} {name} failed startup probe"), KillReason::StartupProbe));
    }
    if requires_restart(container, restarts.actuated) {
        return Some((format!("Container {name} resize requires restart"), KillReason::Resize));
    }
    None
}

fn kill_unknown(status: &ContainerStatus, word: &str) -> Kill {
    Kill {
        id: status.id.clone(),
        name: status.name.clone(),
        message: format!("{word} is in \"unknown\" state, try killing it before restart"),
        reason: KillReason::Unknown,
    }
}

/// Some(attempt) when the pod needs a new sandbox.
fn sandbox_changed(pod: &Pod, observed: &ObservedPod) -> Option<u32> {
    let Some(latest) = observed.latest_sandbox() else { return Some(0) };
    let next = latest.metadata.attempt + 1;
    let ready = observed.sandboxes.iter().filter(|s| s.state == keelson_cri::PodSandboxState::Ready).count();
    let usable =
        ready == 1 && observed.ready_sandbox().is_some() && (pod.host_network() || !latest.ips.is_empty());
    (!usable).then_some(next)
}

/// Everything from the start, in a new sandbox, unless there is nothing left to run.
fn fresh_start(pod: &Pod, observed: &ObservedPod, attempt: u32) -> PodActions {
    let stop = PodActions { kill_pod: true, ..PodActions::default() };
    let never = pod.restart_policy() == RestartPolicy::Never;
    if never && attempt != 0 && !observed.containers.is_empty() {
        return stop;
    }
    let done = |c: &Container| {
        observed.container(&c.name).is_some_and(|s| {
            s.state == ContainerState::Exited && !restarts_after(pod, c, s.exit_code.unwrap_or(137))
        })
    };
    let start: Vec<usize> = PodExt::spec(pod)
        .containers
        .iter()
        .enumerate()
        .filter(|(_, c)| pod.restart_policy() == RestartPolicy::Always || !done(c))
        .map(|(i, _)| i)
        .collect();
    let was_initialized = PodExt::spec(pod).containers.iter().any(|c| observed.container(&c.name).is_some());
    if start.is_empty() && was_initialized {
        return stop;
    }
    let mut actions =
        PodActions { kill_pod: attempt != 0, create_sandbox: Some(attempt), ..PodActions::default() };
    if pod.init_containers().is_empty() {
        actions.containers_to_start = start;
    } else {
        actions.init_to_start = vec![0];
    }
    actions
}

/// Adds what init containers need. True when regular containers may run.
fn init_actions(
    pod: &Pod,
    observed: &ObservedPod,
    probes: &dyn ProbeVerdicts,
    restarts: Restarts<'_>,
    actions: &mut PodActions,
) -> bool {
    let inits = pod.init_containers();
    if inits.is_empty() {
        return true;
    }
    // Records of an earlier sandbox say nothing about this one: init containers run again in a new sandbox.
    let sandbox = observed.ready_sandbox().map(|s| s.id.as_str()).unwrap_or_default();
    let status_of = |name: &str| observed.container(name).filter(|s| s.sandbox_id == sandbox);
    // A regular container that runs proves that initialization is behind us, even when its records are gone.
    let mut has_initialized = PodExt::spec(pod).containers.iter().any(|c| {
        status_of(&c.name).is_some_and(|s| {
            // An exited one of this very sandbox proves it too: the runtime keeps records by sandbox here.
            !matches!(s.state, ContainerState::Unknown)
        })
    });
    let mut previously = has_initialized;
    let last = inits.len() - 1;
    let mut start = Vec::new();
    for (i, container) in inits.iter().enumerate().rev() {
        let sidecar = is_sidecar(container);
        let Some(status) = status_of(&container.name) else {
            if previously && sidecar {
                start.push(i);
            }
            continue;
        };
        if previously && !sidecar {
            continue;
        }
        match status.state {
            ContainerState::Created => start.push(i),
            ContainerState::Running if !sidecar => {}
            ContainerState::Running => {
                let waits = container.startup_probe.is_some() && probes.startup(&status.id) != Some(true);
                if let Some((message, reason)) =
                    verdict(container, status, probes, restarts, "Init container")
                {
                    let message = match reason {
                        KillReason::Resize => message,
                        _ => format!("{message}, will be restarted"),
                    };
                    let (id, name) = (status.id.clone(), container.name.clone());
                    actions.to_kill.push(Kill { id, name, message, reason });
                    start.push(i);
                } else if !waits {
                    if i == last {
                        has_initialized = true;
                    } else if !previously {
                        start.push(i + 1);
                    }
                }
            }
            ContainerState::Exited if sidecar => start.push(i),
            ContainerState::Exited => {
                if status.exit_code == Some(0) {
                    if i == last {
                        has_initialized = true;
                    } else {
                        start.push(i + 1);
                    }
                } else if restarts_after(pod, container, status.exit_code.unwrap_or(137)) {
                    start.push(i);
                } else {
                    actions.kill_pod = true;
                    actions.init_to_start.clear();
                    return false;
                }
            }
            ContainerState::Unknown => {
                if !sidecar && pod.restart_policy() == RestartPolicy::Never {
                    actions.kill_pod = true;
                    actions.init_to_start.clear();
                    return false;
                }
                actions.to_kill.push(kill_unknown(status, "Init container"));
                start.push(i);
            }
        }
        previously = true;
    }
    if !previously {
        start.push(0);
    }
    start.sort_unstable();
    start.dedup();
    // Only sidecars run beside others: a plain init container starts once nothing before it waits to start.
    actions.init_to_start = start;
    has_initialized
}

/// Name and kind of every container that [`PodActions`] starts, in the order of starting.
pub fn starts<'a>(pod: &'a Pod, actions: &'a PodActions) -> impl Iterator<Item = (ContainerKind, &'a str)> {
    let ephemeral = actions.ephemeral_to_start.iter().filter_map(|i| pod.ephemeral_containers().get(*i));
    let init = actions.init_to_start.iter().filter_map(|i| pod.init_containers().get(*i));
    let regular = actions.containers_to_start.iter().filter_map(|i| PodExt::spec(pod).containers.get(*i));
    ephemeral
        .map(|c| (ContainerKind::Ephemeral, c.name.as_str()))
        .chain(init.map(|c| (ContainerKind::Init, c.name.as_str())))
        .chain(regular.map(|c| (ContainerKind::Regular, c.name.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::{cri_container, cri_sandbox, pod_json};
    use serde_json::json;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Verdicts(HashMap<(&'static str, String), bool>);

    impl ProbeVerdicts for Verdicts {
        fn liveness(&self, id: &str) -> Option<bool> {
            self.0.get(&("liveness", id.to_owned())).copied()
        }
        fn startup(&self, id: &str) -> Option<bool> {
            self.0.get(&("startup", id.to_owned())).copied()
        }
    }

    /// One word a container: `name:r` running, `:s` succeeded, `:f` failed, `:c` created, `:u` unknown.
    fn observe(text: &str, ready: bool) -> ObservedPod {
        let containers = text.split_whitespace().map(|word| {
            let (name, code) = word.split_once(':').unwrap();
            let (state, exit) = match code {
                "r" => (ContainerState::Running, None),
                "s" => (ContainerState::Exited, Some(0)),
                "f" => (ContainerState::Exited, Some(1)),
                "c" => (ContainerState::Created, None),
                _ => (ContainerState::Unknown, None),
            };
            cri_container(name, 0, state, exit)
        });
        ObservedPod::new(vec![cri_sandbox(0, ready)], containers.collect())
    }

    fn actions_of(pod: &Pod, observed: &ObservedPod, probes: &dyn ProbeVerdicts) -> PodActions {
        let (actuated, owed) = (Actuated::of(pod), HashSet::new());
        compute_pod_actions(pod, observed, probes, Restarts { actuated: &actuated, owed: &owed })
    }

    /// Renders actions as text: `kill sandbox:N init:0,1 start:0 debug:0 stop:id`.
    fn render(a: &PodActions) -> String {
        let mut out = Vec::new();
        let list = |v: &[usize]| v.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        if a.kill_pod {
            out.push("kill".to_owned());
        }
        if let Some(n) = a.create_sandbox {
            out.push(format!("sandbox:{n}"));
        }
        for (name, v) in
            [("init", &a.init_to_start), ("start", &a.containers_to_start), ("debug", &a.ephemeral_to_start)]
        {
            if !v.is_empty() {
                out.push(format!("{name}:{}", list(v)));
            }
        }
        out.extend(a.to_kill.iter().map(|k| format!("stop:{}", k.id)));
        out.join(" ")
    }

    fn check(spec: serde_json::Value, observed: &ObservedPod, want: &str) {
        let pod = pod_json(spec.clone());
        assert_eq!(render(&actions_of(&pod, observed, &Verdicts::default())), want, "{spec}");
    }

    fn two(policy: &str) -> serde_json::Value {
        json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]})
    }

    #[test]
    fn a_new_pod() {
        check(two("Always"), &ObservedPod::default(), "sandbox:0 start:0,1");
        check(
            json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}),
            &ObservedPod::default(),
            "sandbox:0 init:0",
        );
    }

    #[test]
    fn regular_containers() {
        check(two("Always"), &observe("", true), "start:0,1");
        check(two("Always"), &observe("a:r", true), "start:1");
        check(two("Always"), &observe("a:r b:r", true), "");
        check(two("Always"), &observe("a:r b:s", true), "start:1");
        check(two("OnFailure"), &observe("a:r b:s", true), "");
        check(two("OnFailure"), &observe("a:r b:f", true), "start:1");
        check(two("Never"), &observe("a:r b:f", true), "");
        check(two("Never"), &observe("a:s b:f", true), "kill");
        check(two("OnFailure"), &observe("a:s b:s", true), "kill");
        check(two("Always"), &observe("a:r b:u", true), "start:1 stop:b-0");
        check(two("Always"), &observe("a:r b:c", true), "start:1");
    }

    #[test]
    fn dead_sandboxes() {
        check(two("Always"), &observe("a:f b:f", false), "kill sandbox:1 start:0,1");
        check(two("Never"), &observe("a:s b:s", false), "kill");
        check(two("Never"), &observe("", false), "kill sandbox:1 start:0,1");
        check(two("OnFailure"), &observe("a:s b:f", false), "kill sandbox:1 start:1");
        check(two("OnFailure"), &observe("a:s b:s", false), "kill");
    }

    #[test]
    fn init_containers_in_order() {
        let spec = |policy: &str| {
            json!({"restartPolicy": policy, "containers": [{"name": "a"}],
                "initContainers": [{"name": "i"}, {"name": "j"}]})
        };
        check(spec("Always"), &observe("", true), "init:0");
        check(spec("Always"), &observe("i:r", true), "");
        check(spec("Always"), &observe("i:s", true), "init:1");
        check(spec("Always"), &observe("i:f", true), "init:0");
        check(spec("Never"), &observe("i:f", true), "kill");
        check(spec("Always"), &observe("i:s j:s", true), "start:0");
        check(spec("Always"), &observe("j:s", true), "start:0");
        check(spec("Always"), &observe("a:r", true), "");
    }

    #[test]
    fn sidecars() {
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
            "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "j"}]});
        check(spec.clone(), &observe("s:r", true), "init:1");
        check(spec.clone(), &observe("s:r j:r", true), "");
        check(spec.clone(), &observe("s:f j:r", true), "init:0");
        check(spec.clone(), &observe("s:r j:s", true), "start:0");
        check(spec.clone(), &observe("s:f j:s a:r", true), "init:0");
        check(spec.clone(), &observe("s:r j:s a:s", true), "kill");
        check(spec, &observe("s:f j:s a:s", true), "kill");
    }

    #[test]
    fn sidecar_startup_probe_gates_the_next() {
        let pod = pod_json(json!({"containers": [{"name": "a"}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {}}]}));
        let observed = observe("s:r", true);
        let mut v = Verdicts::default();
        assert_eq!(render(&actions_of(&pod, &observed, &v)), "");
        v.0.insert(("startup", "s-0".into()), true);
        assert_eq!(render(&actions_of(&pod, &observed, &v)), "start:0");
        v.0.insert(("startup", "s-0".into()), false);
        assert_eq!(render(&actions_of(&pod, &observed, &v)), "init:0 stop:s-0");
    }

    #[test]
    fn failed_probes() {
        let mut v = Verdicts::default();
        v.0.insert(("liveness", "a-0".into()), false);
        let observed = observe("a:r b:r", true);
        let actions = actions_of(&pod_json(two("Always")), &observed, &v);
        assert_eq!(render(&actions), "start:0 stop:a-0");
        assert_eq!(actions.to_kill[0].message, "Container a failed liveness probe, will be restarted");
        let actions = actions_of(&pod_json(two("Never")), &observed, &v);
        assert_eq!(render(&actions), "stop:a-0");
    }

    #[test]
    fn changed_image() {
        let mut observed = observe("a:r b:r", true);
        observed.containers[0].annotations.insert(HASH_ANNOTATION.into(), "other".into());
        let actions = actions_of(&pod_json(two("Never")), &observed, &Verdicts::default());
        assert_eq!(actions.to_kill.len(), 1);
        assert_eq!(actions.containers_to_start.len(), 1);
    }

    #[test]
    fn restart_rules() {
        let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}, {"name": "b"}]});
        check(spec.clone(), &observe("a:f b:r", true), "start:0");
        check(spec, &observe("a:s b:r", true), "");
    }

    #[test]
    fn ephemeral_once() {
        let spec = json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "d"}]});
        check(spec.clone(), &observe("a:r", true), "debug:0");
        check(spec, &observe("a:r d:f", true), "");
    }

    #[test]
    fn a_resize_may_restart_a_container() {
        let spec = |memory: &str, policy: &str| {
            pod_json(json!({"restartPolicy": "OnFailure", "containers": [{
                "name": "a", "resources": {"requests": {"memory": memory}},
                "resizePolicy": [{"resourceName": "memory", "restartPolicy": policy}],
            }]}))
        };
        let check = |policy: &str, observed: &str, owed: &[&str], want: &str| {
            let actuated = Actuated::of(&spec("1Gi", policy));
            let owed = owed.iter().map(|name| (*name).to_owned()).collect();
            let restarts = Restarts { actuated: &actuated, owed: &owed };
            let pod = spec("2Gi", policy);
            let got = compute_pod_actions(&pod, &observe(observed, true), &Verdicts::default(), restarts);
            assert_eq!(render(&got), want, "{policy} {observed}");
        };
        check("NotRequired", "a:r", &[], "");
        check("RestartContainer", "a:r", &[], "start:0 stop:a-0");
        // It was asked to stop and ended well: that is no reason not to start it again.
        check("RestartContainer", "a:s", &["a"], "start:0");
        check("RestartContainer", "a:s", &[], "kill");
    }
}
