//! Pods.

use serde_json::{Value, json};

use super::duration::{human_duration, seconds};
use super::tree::{condition, get_or, int_at, list_at, str_at};
use super::{AGE, NAME, Spec, text};

pub(super) const POD: &[Spec] = &[
    NAME,
    text("Ready", "Containers that are ready, of all that should be.", |pod, _| {
        let summary = Summary::of(pod);
        format!("{}/{}", summary.ready, summary.total).into()
    }),
    text(
        "Status",
        "The pod's state in one word, made from its phase and its containers' states.",
        |pod, _| Summary::of(pod).reason.into(),
    ),
    text("Restarts", "How often containers were restarted, and when the last one was.", |pod, now| {
        Summary::of(pod).restarts(now).into()
    }),
    AGE,
    text("IP", "Address of the pod.", |pod, _| get_or(&pod["status"]["podIPs"][0], "ip", "<none>")).wide(),
    text("Node", "Node that the pod is bound to.", |pod, _| get_or(pod, "spec.nodeName", "<none>")).wide(),
    text("Nominated Node", "Node where preemption makes room for the pod.", |pod, _| {
        get_or(pod, "status.nominatedNodeName", "<none>")
    })
    .wide(),
    text("Readiness Gates", "Readiness gates that are true, of all.", |pod, _| readiness_gates(pod).into())
        .wide(),
];

/// A finished pod's row says so, so that clients can leave it out.
pub(super) fn conditions(pod: &Value) -> Vec<Value> {
    let (reason, message) = match str_at(pod, "status.phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

/// What the columns say of a pod.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// When the newest terminated instance ended, in seconds since 1970.
    last_restart: Option<i64>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let conditions = list_at(pod, "status.conditions");
        let init = Init::of(pod);
        let mut this = Self {
            ready: init.ready,
            total: list_at(pod, "spec.containers").len() + init.sidecars,
            reason: phase_reason(pod, conditions),
            restarts: init.restarts.0,
            last_restart: init.restarts.1,
        };
        let initializing = init.reason.is_some();
        if let Some(reason) = init.reason {
            this.reason = reason;
        }
        if !initializing || condition(conditions, "Initialized") == Some("True") {
            (this.restarts, this.last_restart) = init.sidecar_restarts;
            this.add_containers(list_at(pod, "status.containerStatuses"), conditions);
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            if str_at(pod, "status.reason") == "NodeLost" {
                "Unknown".clone_into(&mut this.reason);
            } else if !matches!(str_at(pod, "status.phase"), "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut this.reason);
            }
        }
        this
    }

    fn add_containers(&mut self, statuses: &[Value], conditions: &[Value]) {
        let mut running = false;
        let mut error = None;
        // From last to first, so that the first container's state is what shows.
        for status in statuses.iter().rev() {
            self.restarts = self.restarts.saturating_add(int_at(status, "restartCount"));
            self.last_restart = self.last_restart.max(last_finish(status));
            let state = &status["state"];
            let waiting = str_at(state, "waiting.reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if state["terminated"].is_object() {
                self.reason = terminated_reason(&state["terminated"]);
                if int_at(state, "terminated.exitCode") != 0 {
                    error = Some(self.reason.clone());
                }
            } else if status["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            // One completed container does not complete a pod whose others run or failed.
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            if running && ready {
                "Running".clone_into(&mut self.reason);
            } else if let Some(error) = error {
                self.reason = error;
            } else if running {
                "NotReady".clone_into(&mut self.reason);
            }
        }
    }

    fn restarts(&self, now: i64) -> String {
        match self.last_restart {
            Some(then) if self.restarts != 0 => {
                format!("{} ({} ago)", self.restarts, human_duration(now.saturating_sub(then)))
            }
            _ => self.restarts.to_string(),
        }
    }
}

fn phase_reason(pod: &Value, conditions: &[Value]) -> String {
    const GATED: &str = "SchedulingGated";
    if conditions.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == GATED) {
        return GATED.to_owned();
    }
    let reason = str_at(pod, "status.reason");
    if reason.is_empty() { str_at(pod, "status.phase") } else { reason }.to_owned()
}

/// What the init containers add.
struct Init {
    /// Init containers that keep running beside the others.
    sidecars: usize,
    ready: usize,
    /// Restarts and the last end of one, of all init containers up to the one that runs.
    restarts: (i64, Option<i64>),
    /// The same, of sidecars only.
    sidecar_restarts: (i64, Option<i64>),
    /// Set while the pod initializes.
    reason: Option<String>,
}

impl Init {
    fn of(pod: &Value) -> Self {
        let containers = list_at(pod, "spec.initContainers");
        let is_sidecar = |c: &Value| c["restartPolicy"] == "Always";
        let mut this = Self {
            sidecars: containers.iter().filter(|c| is_sidecar(c)).count(),
            ready: 0,
            restarts: (0, None),
            sidecar_restarts: (0, None),
            reason: None,
        };
        for (i, status) in list_at(pod, "status.initContainerStatuses").iter().enumerate() {
            let sidecar = containers.iter().any(|c| c["name"] == status["name"] && is_sidecar(c));
            let add = |sum: &mut (i64, Option<i64>)| {
                sum.0 = sum.0.saturating_add(int_at(status, "restartCount"));
                sum.1 = sum.1.max(last_finish(status));
            };
            add(&mut this.restarts);
            if sidecar {
                add(&mut this.sidecar_restarts);
            }
            let terminated = &status["state"]["terminated"];
            if terminated.is_object() && int_at(terminated, "exitCode") == 0 {
                continue;
            }
            if sidecar && status["started"] == true {
                this.ready += usize::from(status["ready"] == true);
                continue;
            }
            let waiting = str_at(status, "state.waiting.reason");
            this.reason = Some(if terminated.is_object() {
                format!("Init:{}", terminated_reason(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", containers.len())
            });
            break;
        }
        this
    }
}

fn terminated_reason(terminated: &Value) -> String {
    let reason = str_at(terminated, "reason");
    match int_at(terminated, "signal") {
        _ if !reason.is_empty() => reason.to_owned(),
        0 => format!("ExitCode:{}", int_at(terminated, "exitCode")),
        signal => format!("Signal:{signal}"),
    }
}

fn last_finish(status: &Value) -> Option<i64> {
    seconds(&status["lastState"]["terminated"]["finishedAt"])
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list_at(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let conditions = list_at(pod, "status.conditions");
    let holds = |gate: &&Value| condition(conditions, str_at(gate, "conditionType")) == Some("True");
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len())
}
