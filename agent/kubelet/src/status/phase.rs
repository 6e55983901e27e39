//! `status.phase`. Source: upstream `getPhase` in `pkg/kubelet/kubelet_pods.go`.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pods::podext::{PodExt, RestartPolicy, is_sidecar};

/// `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers were started once.
    Pending,
    /// All containers were started, at least one runs or is about to run again.
    Running,
    /// All containers ended well and none will run again.
    Succeeded,
    /// All containers ended, at least one badly, and none will run again.
    Failed,
}

impl Phase {
    /// The API's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Reads the API's spelling; anything unknown is none.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Running, Self::Succeeded, Self::Failed].into_iter().find(|p| p.as_str() == text)
    }

    /// Whether the pod will never run again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// Where one container stands, as far as the phase is concerned.
enum Standing {
    Running {
        started: bool,
    },
    Ended {
        success: bool,
    },
    /// Waiting, having run before.
    Again {
        success: bool,
    },
    /// Waiting, never having run.
    NotYet,
    Unknown,
}

fn standing(statuses: &[ContainerStatus], name: &str) -> Standing {
    let Some(status) = statuses.iter().find(|s| s.name == name) else { return Standing::Unknown };
    let Some(state) = &status.state else { return Standing::Unknown };
    if state.running.is_some() {
        Standing::Running { started: status.started == Some(true) }
    } else if let Some(t) = &state.terminated {
        Standing::Ended { success: t.exit_code == 0 }
    } else if state.waiting.is_some() {
        match status.last_state.as_ref().and_then(|l| l.terminated.as_ref()) {
            Some(t) => Standing::Again { success: t.exit_code == 0 },
            None => Standing::NotYet,
        }
    } else {
        Standing::Unknown
    }
}

/// Computes the phase from the statuses of init and regular containers. `pod_is_terminal`: its containers won't be
/// restarted, whatever the restart policy says.
pub fn phase(pod: &Pod, statuses: &[ContainerStatus], pod_is_terminal: bool) -> Phase {
    let policy = pod.restart_policy();
    let mut pending_init = false;
    let mut pending_sidecar = false;
    let mut failed_init = false;
    let (mut running, mut waiting, mut stopped, mut succeeded, mut unknown) = (0, 0, 0, 0, 0);
    for container in pod.init_containers() {
        let standing = standing(statuses, &container.name);
        if is_sidecar(container) {
            match standing {
                Standing::Running { started } => {
                    pending_sidecar |= !started;
                    running += 1;
                }
                // A sidecar that ended does not count.
                Standing::Ended { .. } | Standing::Again { .. } => {}
                Standing::NotYet => {
                    pending_sidecar = true;
                    waiting += 1;
                }
                Standing::Unknown => {
                    pending_sidecar = true;
                    unknown += 1;
                }
            }
        } else {
            match standing {
                Standing::Ended { success } | Standing::Again { success } => failed_init |= !success,
                Standing::Running { .. } | Standing::NotYet | Standing::Unknown => pending_init = true,
            }
        }
    }
    for container in &PodExt::spec(pod).containers {
        match standing(statuses, &container.name) {
            Standing::Running { .. } => running += 1,
            Standing::Ended { success } => {
                stopped += 1;
                succeeded += i32::from(success);
            }
            Standing::Again { .. } => stopped += 1,
            Standing::NotYet => waiting += 1,
            Standing::Unknown => unknown += 1,
        }
    }
    if failed_init && policy == RestartPolicy::Never {
        return Phase::Failed;
    }
    if pending_init || (pending_sidecar && !has_started(pod, statuses)) || waiting > 0 {
        return Phase::Pending;
    }
    if running > 0 && unknown == 0 {
        return Phase::Running;
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        let done = if stopped == succeeded { Phase::Succeeded } else { Phase::Failed };
        return match policy {
            _ if pod_is_terminal && !pod.is_static() => done,
            RestartPolicy::Always => Phase::Running,
            RestartPolicy::OnFailure if done == Phase::Failed => Phase::Running,
            RestartPolicy::OnFailure | RestartPolicy::Never => done,
        };
    }
    Phase::Pending
}

/// Whether a regular container of the pod runs or ran: then initialization is behind it.
pub fn has_started(pod: &Pod, statuses: &[ContainerStatus]) -> bool {
    PodExt::spec(pod)
        .containers
        .iter()
        .any(|c| !matches!(standing(statuses, &c.name), Standing::NotYet | Standing::Unknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// `r` running, `s` succeeded, `f` failed, `w` waiting, `b` waiting after a failure.
    fn status(name: &str, code: char) -> Option<ContainerStatus> {
        let (state, last) = match code {
            'r' => (json!({"running": {}}), Value::Null),
            's' => (json!({"terminated": {"exitCode": 0}}), Value::Null),
            'f' => (json!({"terminated": {"exitCode": 1}}), Value::Null),
            'w' => (json!({"waiting": {}}), Value::Null),
            'b' => (json!({"waiting": {}}), json!({"terminated": {"exitCode": 1}})),
            _ => return None,
        };
        let v = json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "started": code == 'r',
            "state": state, "lastState": last});
        Some(serde_json::from_value(v).unwrap())
    }

    /// Each letter one container: init containers (capital letter: sidecar), then regular ones.
    fn check(policy: &str, init: &str, regular: &str, want: Phase) {
        check_terminal(policy, init, regular, false, want);
    }

    fn check_terminal(policy: &str, init: &str, regular: &str, terminal: bool, want: Phase) {
        let mut inits = vec![];
        let mut containers = vec![];
        let mut statuses = vec![];
        for (i, c) in init.chars().enumerate() {
            let name = format!("i{i}");
            let sidecar = c.is_ascii_uppercase().then_some("Always");
            inits.push(json!({"name": name, "restartPolicy": sidecar}));
            statuses.extend(status(&name, c.to_ascii_lowercase()));
        }
        for (i, c) in regular.chars().enumerate() {
            let name = format!("c{i}");
            containers.push(json!({"name": name}));
            statuses.extend(status(&name, c));
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec":
            {"restartPolicy": policy, "containers": containers, "initContainers": inits}}))
        .unwrap();
        assert_eq!(phase(&pod, &statuses, terminal), want, "{policy} {init}/{regular} {terminal}");
    }

    #[test]
    fn regular_containers() {
        check("Always", "", "ww", Phase::Pending);
        check("Always", "", "rr", Phase::Running);
        check("Always", "", "rf", Phase::Running);
        check("Always", "", "ss", Phase::Running);
        check("Always", "", "r-", Phase::Pending);
        check("Always", "", "rb", Phase::Running);
        check("Always", "", "bb", Phase::Running);
        check("Never", "", "ss", Phase::Succeeded);
        check("Never", "", "sf", Phase::Failed);
        check("Never", "", "sr", Phase::Running);
        check("OnFailure", "", "ss", Phase::Succeeded);
        check("OnFailure", "", "sf", Phase::Running);
        check_terminal("Always", "", "ss", true, Phase::Succeeded);
        check_terminal("Always", "", "sf", true, Phase::Failed);
        check_terminal("OnFailure", "", "f", true, Phase::Failed);
    }

    #[test]
    fn init_containers() {
        check("Always", "r", "w", Phase::Pending);
        check("Always", "-", "w", Phase::Pending);
        check("Always", "f", "w", Phase::Pending);
        check("Never", "f", "w", Phase::Failed);
        check("Always", "s", "r", Phase::Running);
        check("OnFailure", "b", "w", Phase::Pending);
    }

    #[test]
    fn sidecars() {
        check("Always", "R", "r", Phase::Running);
        check("Always", "W", "w", Phase::Pending);
        check("Never", "R", "s", Phase::Running);
        check("Never", "F", "s", Phase::Succeeded);
        check("Never", "S", "f", Phase::Failed);
    }
}
