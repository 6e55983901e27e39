//! How far a resize is: the conditions `PodResizePending` and `PodResizeInProgress`, and the words of events. Pure.
//!
//! Source: upstream `pkg/kubelet/status/status_manager.go` and `pkg/kubelet/events/event.go`.

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use serde::Serialize;

use super::allocate::Pending;
use crate::pods::podext::PodExt;

/// Condition of a resize that is not allocated.
pub const PENDING: &str = "PodResizePending";
/// Condition of a resize that is allocated and not yet in effect.
pub const IN_PROGRESS: &str = "PodResizeInProgress";

/// A resize as the API shall see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Why it is not allocated, and the generation that asks for it.
    pub pending: Option<(Pending, String, Option<i64>)>,
    /// It is being carried out.
    pub in_progress: Option<InProgress>,
}

/// An allocated resize on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InProgress {
    /// The generation that asked for it.
    pub generation: Option<i64>,
    /// What went wrong at the last try.
    pub error: Option<String>,
}

impl Progress {
    /// Reads what an agent before this one has reported.
    pub fn of(pod: &Pod) -> Self {
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let mut out = Self::default();
        for c in conditions.filter(|c| c.status == "True") {
            let message = c.message.clone().unwrap_or_default();
            match (c.type_.as_str(), c.reason.as_deref()) {
                (PENDING, Some("Infeasible")) => {
                    out.pending = Some((Pending::Infeasible, message, c.observed_generation));
                }
                (PENDING, _) => out.pending = Some((Pending::Deferred, message, c.observed_generation)),
                (IN_PROGRESS, reason) => {
                    let error = reason.filter(|r| *r == "Error").map(|_| message);
                    out.in_progress = Some(InProgress { generation: c.observed_generation, error });
                }
                _ => {}
            }
        }
        out
    }

    /// The conditions, without times.
    pub fn conditions(&self) -> Vec<PodCondition> {
        let make = |type_: &str, reason: Option<&str>, message: Option<&String>, generation: Option<i64>| {
            PodCondition {
                type_: type_.to_owned(),
                status: "True".into(),
                reason: reason.map(str::to_owned),
                message: message.filter(|m| !m.is_empty()).cloned(),
                observed_generation: generation,
                ..PodCondition::default()
            }
        };
        let pending = self
            .pending
            .as_ref()
            .map(|(why, message, generation)| make(PENDING, Some(why.reason()), Some(message), *generation));
        let going = self
            .in_progress
            .as_ref()
            .map(|p| make(IN_PROGRESS, p.error.as_ref().map(|_| "Error"), p.error.as_ref(), p.generation));
        pending.into_iter().chain(going).collect()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<Part<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<Part<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Part<'a> {
    name: &'a str,
    resources: ResourceRequirements,
}

/// An event's message: `Pod resize started: {"containers":[…],"generation":2}`.
pub fn message(prefix: &str, pod: &Pod, generation: Option<i64>, error: Option<&str>) -> String {
    let part = |c: &'_ Container| -> ResourceRequirements {
        let mut resources = c.resources.clone().unwrap_or_default();
        resources.claims = None;
        for map in [&mut resources.requests, &mut resources.limits] {
            if let Some(amounts) = map {
                amounts.retain(|name, _| name == "cpu" || name == "memory");
            }
            *map = map.take().filter(|amounts| !amounts.is_empty());
        }
        resources
    };
    let summary = Summary {
        init_containers: pod
            .init_containers()
            .iter()
            .map(|c| Part { name: &c.name, resources: part(c) })
            .collect(),
        containers: PodExt::spec(pod)
            .containers
            .iter()
            .map(|c| Part { name: &c.name, resources: part(c) })
            .collect(),
        generation,
        error: error.filter(|e| !e.is_empty()),
    };
    match serde_json::to_string(&summary) {
        Ok(text) => format!("{prefix}: {text}"),
        Err(_) => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    #[test]
    fn words_of_events() {
        let pod = pod_json(json!({
            "initContainers": [{"name": "c0", "restartPolicy": "Always",
                "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}}}],
            "containers": [{"name": "c1", "resources": {"requests": {"memory": "100", "ephemeral-storage": "1"}}}],
        }));
        assert_eq!(
            message("Pod resize completed", &pod, Some(2), None),
            r#"Pod resize completed: {"initContainers":[{"name":"c0","resources":{"limits":{"cpu":"200m"},"requests":{"cpu":"100m"}}}],"containers":[{"name":"c1","resources":{"requests":{"memory":"100"}}}],"generation":2}"#
        );
        let plain = pod_json(json!({"containers": [{"name": "c0"}]}));
        assert_eq!(
            message("Pod resize error", &plain, Some(1), Some("no")),
            r#"Pod resize error: {"containers":[{"name":"c0","resources":{}}],"generation":1,"error":"no"}"#
        );
    }

    #[test]
    fn conditions_are_read_back() {
        let progress = Progress {
            pending: Some((Pending::Deferred, "full".into(), Some(3))),
            in_progress: Some(InProgress { generation: Some(2), error: Some("no".into()) }),
        };
        let mut pod = pod_json(json!({"containers": []}));
        pod.status.get_or_insert_default().conditions = Some(progress.conditions());
        assert_eq!(Progress::of(&pod), progress);
    }
}
