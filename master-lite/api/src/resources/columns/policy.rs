//! Autoscalers, disruption budgets, priority and fairness.

use serde_json::Value;

use super::tree::{at, condition, get, get_int, list_at, scalar, str_at};
use super::{AGE, NAME, Spec, integer, text};

pub(super) const POD_DISRUPTION_BUDGET: &[Spec] = &[
    NAME,
    text("Min Available", "Pods that must stay.", |o, _| or_na(at(o, "spec.minAvailable"))),
    text("Max Unavailable", "Pods that may be gone.", |o, _| or_na(at(o, "spec.maxUnavailable"))),
    integer("Allowed Disruptions", "Pods that may be evicted now.", |o, _| {
        get_int(o, "status.disruptionsAllowed")
    }),
    AGE,
];

fn or_na(value: &Value) -> Value {
    scalar(value).unwrap_or_else(|| "N/A".to_owned()).into()
}

pub(super) const SCALE: &[Spec] = &[
    Spec { format: "", ..NAME },
    integer("Desired", "Pods that should be.", |o, _| get_int(o, "spec.replicas")),
    integer("Available", "Pods that are.", |o, _| get_int(o, "status.replicas")),
    AGE,
];

pub(super) const HORIZONTAL_POD_AUTOSCALER: &[Spec] = &[
    NAME,
    text("Reference", "What it scales.", |o, _| {
        format!("{}/{}", str_at(o, "spec.scaleTargetRef.kind"), str_at(o, "spec.scaleTargetRef.name")).into()
    }),
    text("Targets", "Current and wanted values of its metrics.", |o, _| metrics(o).into()),
    text("MinPods", "Fewest pods.", |o, _| {
        scalar(at(o, "spec.minReplicas")).unwrap_or_else(|| "<unset>".to_owned()).into()
    }),
    text("MaxPods", "Most pods.", |o, _| get_int(o, "spec.maxReplicas")),
    text("Replicas", "Pods that are.", |o, _| get_int(o, "status.currentReplicas")),
    AGE,
];

pub(super) const FLOW_SCHEMA: &[Spec] = &[
    NAME,
    text("PriorityLevel", "Level that its requests get.", |o, _| {
        get(o, "spec.priorityLevelConfiguration.name")
    }),
    text("MatchingPrecedence", "Lower is tried first.", |o, _| get_int(o, "spec.matchingPrecedence")),
    text("DistinguisherMethod", "What tells its flows apart.", |o, _| {
        scalar(at(o, "spec.distinguisherMethod.type")).unwrap_or_else(|| "<none>".to_owned()).into()
    }),
    AGE,
    text("MissingPL", "Whether its level is missing or broken.", |o, _| {
        condition(list_at(o, "status.conditions"), "Dangling").unwrap_or("?").into()
    }),
];

pub(super) const PRIORITY_LEVEL: &[Spec] = &[
    NAME,
    text("Type", "Exempt or Limited.", |o, _| get(o, "spec.type")),
    text("NominalConcurrencyShares", "Its part of the server.", |o, _| {
        number_or_none(at(o, "spec.limited.nominalConcurrencyShares"))
    }),
    text("Queues", "Number of its queues.", |o, _| {
        number_or_none(at(o, "spec.limited.limitResponse.queuing.queues"))
    }),
    text("HandSize", "Queues that a flow may use.", |o, _| {
        number_or_none(at(o, "spec.limited.limitResponse.queuing.handSize"))
    }),
    text("QueueLengthLimit", "Requests that a queue holds.", |o, _| {
        number_or_none(at(o, "spec.limited.limitResponse.queuing.queueLengthLimit"))
    }),
    AGE,
];

fn number_or_none(value: &Value) -> Value {
    if value.is_null() { "<none>".into() } else { value.clone() }
}

fn metrics(hpa: &Value) -> String {
    const MAX: usize = 2;
    let specs = list_at(hpa, "spec.metrics");
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let statuses = list_at(hpa, "status.currentMetrics");
    let shown: Vec<String> =
        specs.iter().take(MAX).enumerate().map(|(i, spec)| metric(spec, statuses.get(i))).collect();
    let shown = shown.join(", ");
    if specs.len() > MAX { format!("{shown} + {} more...", specs.len() - MAX) } else { shown }
}

fn metric(spec: &Value, status: Option<&Value>) -> String {
    let field = match str_at(spec, "type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let target = &spec[field]["target"];
    let current = |value: &str| {
        let status = status.map(|status| &status[field]).filter(|status| status.is_object());
        status.and_then(|status| scalar(&status["current"][value])).unwrap_or_else(|| "<unknown>".to_owned())
    };
    let average = scalar(&target["averageValue"]);
    match field {
        "resource" | "containerResource" => {
            let name = str_at(&spec[field], "name");
            if let Some(average) = average {
                return format!("{name}: {}/{average}", current("averageValue"));
            }
            let percent = |text: String| if text.starts_with('<') { text } else { format!("{text}%") };
            let wanted = scalar(&target["averageUtilization"]).unwrap_or_else(|| "<auto>".to_owned());
            format!("{name}: {}/{}", percent(current("averageUtilization")), percent(wanted))
        }
        "pods" => format!("{}/{}", current("averageValue"), average.unwrap_or_else(|| "<nil>".to_owned())),
        _ => match average {
            Some(average) => format!("{}/{average} (avg)", current("averageValue")),
            None => {
                let wanted = scalar(&target["value"]).unwrap_or_else(|| "<nil>".to_owned());
                format!("{}/{wanted}", current("value"))
            }
        },
    }
}
