//! HorizontalPodAutoscalers: stored as `autoscaling/v2`, also served as `autoscaling/v1`, where what that version has
//! no field for is text in annotations (`pkg/apis/autoscaling/v1/conversion.go`).

use serde_json::{Map, Value, json};

use super::{child, set_default_number};
use crate::resources::Strategy;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// Those of above, and two of versions that are gone.
const ANNOTATIONS: [&str; 6] = [
    METRICS,
    CURRENT_METRICS,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
/// Average use of the CPU, in percent, that is aimed at unless something else is said.
const CPU_UTILIZATION: i64 = 80;

/// HorizontalPodAutoscalers.
pub struct Autoscaler;

impl Strategy for Autoscaler {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else { return };
        if spec["minReplicas"].is_null() {
            set_default_number(spec, "minReplicas", 1);
        }
        if is_empty(&spec["metrics"]) {
            spec["metrics"] = json!([cpu_metric(CPU_UTILIZATION.into())]);
        }
        if let Some(behavior) = child(spec, "behavior") {
            let policy = |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
            default_rules(behavior, "scaleUp", &[policy("Pods", 4), policy("Percent", 100)]);
            default_rules(behavior, "scaleDown", &[policy("Percent", 100)]);
            if behavior["scaleUp"]["stabilizationWindowSeconds"].is_null() {
                behavior["scaleUp"]["stabilizationWindowSeconds"] = 0.into();
            }
        }
        drop_annotations(object);
    }

    fn warnings(&self, _new: &Value, old: Option<&Value>) -> Vec<String> {
        let words = "no controller of this cluster scales by metrics: the HorizontalPodAutoscaler is kept, but has no effect";
        if old.is_none() { vec![words.to_owned()] } else { Vec::new() }
    }
}

fn default_rules(behavior: &mut Value, direction: &str, policies: &[Value]) {
    let rules = &mut behavior[direction];
    if rules["selectPolicy"].is_null() {
        rules["selectPolicy"] = "Max".into();
    }
    if rules["policies"].is_null() {
        rules["policies"] = policies.into();
    }
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

fn cpu_metric(utilization: Value) -> Value {
    json!({"type": "Resource", "resource": {
        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": utilization},
    }})
}

/// True of the one metric that v1 has a field for.
fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

/// The key of a metric's details: its type with a small first letter.
fn details_key(metric: &Value) -> Option<&'static str> {
    Some(match metric["type"].as_str()? {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "External" => "external",
        _ => return None,
    })
}

/// Names that a value has in v1: those of targets, or those of current values.
struct Names {
    value: &'static str,
    average: &'static str,
    utilization: &'static str,
    /// Key of the values in v2.
    place: &'static str,
}

const TARGET: Names = Names {
    value: "targetValue",
    average: "targetAverageValue",
    utilization: "targetAverageUtilization",
    place: "target",
};
const CURRENT: Names = Names {
    value: "currentValue",
    average: "currentAverageValue",
    utilization: "currentAverageUtilization",
    place: "current",
};

fn copy(from: &Value, key: &str, into: &mut Map<String, Value>, name: &str) {
    if !from[key].is_null() {
        into.insert(name.to_owned(), from[key].clone());
    }
}

/// A metric of v2 in the form that v1's annotation has.
fn metric_to_v1(metric: &Value, names: &Names) -> Value {
    let Some(key) = details_key(metric) else { return metric.clone() };
    let (details, mut out) = (&metric[key], Map::new());
    let values = &details[names.place];
    // What v1 cannot leave out.
    let required = |value: &Value| if value.is_null() { "0".into() } else { value.clone() };
    match key {
        "object" => {
            copy(details, "describedObject", &mut out, "target");
            out.insert(names.value.to_owned(), required(&values["value"]));
            copy(values, "averageValue", &mut out, "averageValue");
            copy(&details["metric"], "selector", &mut out, "selector");
        }
        "pods" => {
            out.insert(names.average.to_owned(), required(&values["averageValue"]));
            copy(&details["metric"], "selector", &mut out, "selector");
        }
        "external" => {
            copy(values, "value", &mut out, names.value);
            if names.place == CURRENT.place {
                out.insert(names.value.to_owned(), required(&values["value"]));
            }
            copy(values, "averageValue", &mut out, names.average);
            copy(&details["metric"], "selector", &mut out, "metricSelector");
        }
        _ => {
            copy(details, "name", &mut out, "name");
            copy(details, "container", &mut out, "container");
            copy(values, "averageUtilization", &mut out, names.utilization);
            copy(values, "averageValue", &mut out, names.average);
            if names.place == CURRENT.place {
                out.insert(names.average.to_owned(), required(&values["averageValue"]));
            }
        }
    }
    copy(&details["metric"], "name", &mut out, "metricName");
    json!({"type": metric["type"], key: out})
}

/// A metric of v1's annotation as it is in v2.
fn metric_from_v1(metric: &Value, names: &Names) -> Value {
    let Some(key) = details_key(metric) else { return metric.clone() };
    let (details, mut out, mut values) = (&metric[key], Map::new(), Map::new());
    copy(details, names.utilization, &mut values, "averageUtilization");
    let average = if key == "object" { "averageValue" } else { names.average };
    copy(details, average, &mut values, "averageValue");
    let has_average = values.contains_key("averageValue");
    // Of an object's metric v1 always has a value, which means nothing if there is an average and it is zero.
    if !(key == "object" && names.place == TARGET.place && has_average && details[names.value] == "0") {
        copy(details, names.value, &mut values, "value");
    }
    if names.place == TARGET.place {
        let kind = match key {
            "resource" | "containerResource" if values.contains_key("averageUtilization") => "Utilization",
            "object" if !has_average => "Value",
            "external" if values.contains_key("value") => "Value",
            _ => "AverageValue",
        };
        values.insert("type".to_owned(), kind.into());
    }
    if matches!(key, "resource" | "containerResource") {
        copy(details, "name", &mut out, "name");
        copy(details, "container", &mut out, "container");
    } else {
        let mut identity = Map::new();
        copy(details, "metricName", &mut identity, "name");
        let selector = if key == "external" { "metricSelector" } else { "selector" };
        copy(details, selector, &mut identity, "selector");
        out.insert("metric".to_owned(), identity.into());
        copy(details, "target", &mut out, "describedObject");
    }
    out.insert(names.place.to_owned(), values.into());
    json!({"type": metric["type"], key: out})
}

/// Upstream writes the behavior by the names of Go's fields.
fn rename(value: &Value, name: fn(&str) -> String) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(key, value)| (name(key), rename(value, name))).collect(),
        Value::Array(items) => items.iter().map(|item| rename(item, name)).collect(),
        other => other.clone(),
    }
}

fn first_letter(text: &str, change: fn(&char) -> char) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| change(&first)).into_iter().chain(letters).collect()
}

/// `autoscaling/v2` to `autoscaling/v1`.
pub fn autoscaler_to_v1(mut object: Value) -> Value {
    drop_annotations(&mut object);
    let mut texts = Vec::new();
    if let Some(spec) = child(&mut object, "spec").and_then(Value::as_object_mut) {
        let metrics = spec.remove("metrics").unwrap_or_default();
        let metrics = metrics.as_array().map_or(&[][..], Vec::as_slice);
        let utilization = |metric: &Value| {
            let found = &metric["resource"]["target"]["averageUtilization"];
            (is_cpu(metric) && !found.is_null()).then(|| found.clone())
        };
        if let Some(found) = metrics.iter().find_map(utilization) {
            spec.insert("targetCPUUtilizationPercentage".to_owned(), found);
        }
        let others = metrics.iter().filter(|metric| utilization(metric).is_none());
        let others: Vec<Value> = others.map(|metric| metric_to_v1(metric, &TARGET)).collect();
        if !others.is_empty() {
            texts.push((METRICS, Value::from(others).to_string()));
        }
        if let Some(behavior) = spec.remove("behavior").filter(|behavior| !behavior.is_null()) {
            let named = rename(&behavior, |key| first_letter(key, char::to_ascii_uppercase));
            texts.push((BEHAVIOR, named.to_string()));
        }
    }
    if let Some(status) = child(&mut object, "status").and_then(Value::as_object_mut) {
        let metrics = status.remove("currentMetrics").unwrap_or_default();
        let metrics = metrics.as_array().map_or(&[][..], Vec::as_slice);
        let current = metrics.iter().find(|metric| is_cpu(metric));
        if let Some(metric) = current {
            let current = &metric["resource"]["current"];
            copy(current, "averageUtilization", status, "currentCPUUtilizationPercentage");
        }
        if !metrics.is_empty() {
            let all: Vec<Value> = metrics.iter().map(|metric| metric_to_v1(metric, &CURRENT)).collect();
            texts.push((CURRENT_METRICS, Value::from(all).to_string()));
        }
        if let Some(conditions) = status.remove("conditions").filter(|conditions| !is_empty(conditions)) {
            texts.push((CONDITIONS, conditions.to_string()));
        }
    }
    if !texts.is_empty()
        && let Some(annotations) =
            child(&mut object, "metadata").and_then(|meta| super::object_at(meta, "annotations"))
    {
        for (key, text) in texts {
            annotations[key] = text.into();
        }
    }
    set_version(&mut object, "autoscaling/v1");
    object
}

/// `autoscaling/v1` to `autoscaling/v2`.
pub fn autoscaler_from_v1(mut object: Value) -> Value {
    let annotation = |object: &Value, key: &str| {
        let text = object["metadata"]["annotations"][key].as_str()?;
        // What is no such text is left out, as upstream does.
        serde_json::from_str::<Value>(text).ok()
    };
    let list = |object: &Value, key: &str| match annotation(object, key) {
        Some(Value::Array(items)) => Some(items),
        _ => None,
    };
    let others = list(&object, METRICS).unwrap_or_default();
    let behavior = annotation(&object, BEHAVIOR).filter(|b| b.as_object().is_some_and(|b| !b.is_empty()));
    let (current, conditions) = (list(&object, CURRENT_METRICS), list(&object, CONDITIONS));
    if let Some(spec) = child(&mut object, "spec").and_then(Value::as_object_mut) {
        let mut metrics: Vec<Value> = others.iter().map(|m| metric_from_v1(m, &TARGET)).collect();
        let utilization = spec.remove("targetCPUUtilizationPercentage").filter(|value| !value.is_null());
        metrics.extend(utilization.map(cpu_metric));
        if metrics.is_empty() {
            metrics.push(cpu_metric(CPU_UTILIZATION.into()));
        }
        spec.insert("metrics".to_owned(), metrics.into());
        if let Some(behavior) = behavior {
            let named = rename(&behavior, |key| first_letter(key, char::to_ascii_lowercase));
            spec.insert("behavior".to_owned(), named);
        }
    }
    if let Some(status) = child(&mut object, "status").and_then(Value::as_object_mut) {
        let utilization = status.remove("currentCPUUtilizationPercentage").filter(|value| !value.is_null());
        let current = match (current, utilization) {
            (Some(all), _) => Some(all.iter().map(|m| metric_from_v1(m, &CURRENT)).collect()),
            (None, Some(percent)) => Some(vec![json!({"type": "Resource", "resource": {
                "name": "cpu", "current": {"averageUtilization": percent},
            }})]),
            (None, None) => None,
        };
        for (key, items) in [("currentMetrics", current), ("conditions", conditions)] {
            if let Some(items) = items {
                status.insert(key.to_owned(), items.into());
            }
        }
    }
    drop_annotations(&mut object);
    set_version(&mut object, "autoscaling/v2");
    object
}

fn set_version(object: &mut Value, version: &str) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".to_owned(), version.into());
    }
}

fn drop_annotations(object: &mut Value) {
    let Some(meta) = child(object, "metadata").and_then(Value::as_object_mut) else { return };
    let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    let before = annotations.len();
    annotations.retain(|key, _| !ANNOTATIONS.contains(&key.as_str()));
    if annotations.is_empty() && before > 0 {
        meta.remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2() -> Value {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a", "annotations": {"kept": "yes"}},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 1, "maxReplicas": 5,
                "metrics": [
                    {"type": "Pods", "pods": {
                        "metric": {"name": "hits", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "AverageValue", "averageValue": "10"}}},
                    {"type": "Object", "object": {
                        "describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "rps"},
                        "target": {"type": "Value", "value": "2k"}}},
                    {"type": "Object", "object": {
                        "describedObject": {"kind": "Service", "name": "s"}, "metric": {"name": "rps"},
                        "target": {"type": "AverageValue", "averageValue": "7"}}},
                    {"type": "External", "external": {
                        "metric": {"name": "queue"}, "target": {"type": "Value", "value": "30"}}},
                    {"type": "ContainerResource", "containerResource": {
                        "name": "memory", "container": "c",
                        "target": {"type": "Utilization", "averageUtilization": 60}}},
                    {"type": "Resource", "resource": {
                        "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                ],
                "behavior": {"scaleUp": {"selectPolicy": "Max", "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15}]}},
            },
            "status": {
                "currentReplicas": 2, "desiredReplicas": 3,
                "currentMetrics": [{"type": "Resource", "resource": {
                    "name": "cpu", "current": {"averageValue": "100m", "averageUtilization": 40}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        })
    }

    #[test]
    fn there_and_back() {
        let v1 = autoscaler_to_v1(v2());
        assert_eq!(v1["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(v1["status"]["currentCPUUtilizationPercentage"], 40);
        assert!(v1["spec"]["metrics"].is_null() && v1["spec"]["behavior"].is_null());
        assert!(v1["status"]["conditions"].is_null());
        let annotations = &v1["metadata"]["annotations"];
        assert!(annotations[BEHAVIOR].as_str().unwrap().contains("\"PeriodSeconds\":15"));
        let metrics: Value = serde_json::from_str(annotations[METRICS].as_str().unwrap()).unwrap();
        assert_eq!(
            metrics[0],
            json!({"type": "Pods", "pods": {"metricName": "hits", "targetAverageValue": "10", "selector": {"matchLabels": {"a": "b"}}}})
        );
        assert_eq!(metrics[2]["object"]["targetValue"], "0");
        assert_eq!(autoscaler_from_v1(v1), v2());
    }

    #[test]
    fn what_v1_does_not_say_is_eighty_percent() {
        let v1 = json!({"apiVersion": "autoscaling/v1", "metadata": {"annotations": {METRICS: "nonsense"}},
                        "spec": {"maxReplicas": 2}});
        let stored = autoscaler_from_v1(v1);
        assert_eq!(stored["spec"]["metrics"], json!([cpu_metric(80.into())]));
        assert_eq!(stored["metadata"], json!({}));
    }

    #[test]
    fn defaults_are_v2s() {
        let mut object = json!({"spec": {"behavior": {"scaleDown": {"selectPolicy": "Min"}}}});
        Autoscaler.default(&mut object);
        assert_eq!(object["spec"]["minReplicas"], 1);
        assert_eq!(object["spec"]["metrics"], json!([cpu_metric(80.into())]));
        let behavior = &object["spec"]["behavior"];
        assert_eq!(behavior["scaleDown"]["selectPolicy"], "Min");
        assert_eq!(
            behavior["scaleDown"]["policies"],
            json!([{"type": "Percent", "value": 100, "periodSeconds": 15}])
        );
        assert_eq!(behavior["scaleUp"]["policies"].as_array().unwrap().len(), 2);
        assert_eq!(behavior["scaleUp"]["stabilizationWindowSeconds"], 0);
    }
}
