//! Kinds that keep pods running (`pkg/apis/apps/validation`).

use serde_json::{Value, json};

use super::errors::{Errors, Path, list, number, same, set, text};
use super::pod::template;
use super::rules::{at_most_100_percent, int_or_percent, is_zero};
use super::selectors;
use crate::field::FieldError;
use crate::resources::metadata::dns_label;

const NO_MATCH: &str = "`selector` does not match template `labels`";

/// Selector, and the template that it must select. `kind` as upstream names it where it complains.
fn selector_and_template(errors: &mut Errors, spec: &Value, empty: &str, kind: &str, at: &Path) {
    selector(errors, spec, empty, at);
    matching_template(errors, &spec["selector"], &spec["template"], kind, &at.child("template"));
}

fn selector(errors: &mut Errors, spec: &Value, empty: &str, at: &Path) {
    let (selector, at) = (&spec["selector"], at.child("selector"));
    if selector.is_null() {
        return errors.required(&at, "");
    }
    selectors::label_selector(errors, selector, &at);
    if selectors::is_empty(selector) {
        errors.invalid(&at, selector, empty);
    }
}

fn matching_template(errors: &mut Errors, selector: &Value, pod: &Value, kind: &str, at: &Path) {
    let labels = &pod["metadata"]["labels"];
    if !selector.is_null() && !selectors::is_empty(selector) && !selectors::matches(selector, labels) {
        errors.invalid(&at.child("metadata").child("labels"), labels, NO_MATCH);
    }
    template(errors, pod, at);
    always_running(errors, pod, kind, at);
}

/// The pods of these kinds have no end.
fn always_running(errors: &mut Errors, pod: &Value, kind: &str, at: &Path) {
    let (spec, at) = (&pod["spec"], at.child("spec"));
    if spec["restartPolicy"] != "Always" {
        errors.unsupported(&at.child("restartPolicy"), &json!(text(spec, "restartPolicy")), &["Always"]);
    }
    if set(spec, "activeDeadlineSeconds") {
        let words = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&at.child("activeDeadlineSeconds"), words);
    }
}

/// A Deployment, new or changed.
pub(in crate::resources) fn deployment(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    errors.not_negative(spec, &["replicas"], &at);
    selector_and_template(&mut errors, spec, "empty selector is invalid for deployment", "ReplicaSet", &at);
    deployment_strategy(&mut errors, spec, &at.child("strategy"));
    errors.not_negative(spec, &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], &at);
    if spec["progressDeadlineSeconds"].as_i64().is_some_and(|s| s <= number(spec, "minReadySeconds")) {
        errors.invalid(
            &at.child("progressDeadlineSeconds"),
            &spec["progressDeadlineSeconds"],
            "must be greater than minReadySeconds",
        );
    }
    errors.0
}

fn deployment_strategy(errors: &mut Errors, spec: &Value, at: &Path) {
    let strategy = &spec["strategy"];
    let (rolling, place) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
    match text(strategy, "type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors.forbidden(&place, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => {
            if rolling.is_null() {
                return errors.required(&place, "this should be defaulted and never be nil");
            }
            let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
            int_or_percent(errors, &place.child("maxUnavailable"), unavailable);
            int_or_percent(errors, &place.child("maxSurge"), surge);
            if is_zero(unavailable) && is_zero(surge) {
                let words = "may not be 0 when `maxSurge` is 0";
                errors.invalid(&place.child("maxUnavailable"), unavailable, words);
            }
            at_most_100_percent(errors, &place.child("maxUnavailable"), unavailable);
        }
        _ => errors.unsupported(at, strategy, &["Recreate", "RollingUpdate"]),
    }
}

/// A ReplicaSet, new or changed.
pub(in crate::resources) fn replica_set(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    errors.not_negative(spec, &["replicas", "minReadySeconds"], &at);
    selector_and_template(&mut errors, spec, "empty selector is invalid for deployment", "ReplicaSet", &at);
    errors.0
}

/// The selector of a Deployment, ReplicaSet or DaemonSet never changes.
pub(in crate::resources) fn immutable_selector(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let at = Path::new("spec").child("selector");
    errors.immutable(&at, &new["spec"]["selector"], &old["spec"]["selector"]);
    errors.0
}

/// A DaemonSet, new or changed.
pub(in crate::resources) fn daemon_set(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    selector_and_template(&mut errors, spec, "empty selector is invalid for daemonset", "DaemonSet", &at);
    errors.not_negative(spec, &["minReadySeconds", "revisionHistoryLimit"], &at);
    let (strategy, at) = (&spec["updateStrategy"], at.child("updateStrategy"));
    match text(strategy, "type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let (rolling, at) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
            if rolling.is_null() {
                errors.required(&at, "");
                return errors.0;
            }
            for field in ["maxUnavailable", "maxSurge"] {
                int_or_percent(&mut errors, &at.child(field), &rolling[field]);
                at_most_100_percent(&mut errors, &at.child(field), &rolling[field]);
            }
            match (is_zero(&rolling["maxUnavailable"]), is_zero(&rolling["maxSurge"])) {
                (false, false) => errors.invalid(
                    &at.child("maxSurge"),
                    &rolling["maxSurge"],
                    "may not be set when maxUnavailable is non-zero",
                ),
                (true, true) => {
                    errors.required(&at.child("maxUnavailable"), "cannot be 0 when maxSurge is 0")
                }
                _ => {}
            }
        }
        _ => errors.unsupported(&at, strategy, &["RollingUpdate", "OnDelete"]),
    }
    errors.0
}

/// A StatefulSet, new or changed.
pub(in crate::resources) fn stateful_set(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    if !matches!(text(spec, "podManagementPolicy"), "OrderedReady" | "Parallel") {
        let place = at.child("podManagementPolicy");
        errors.invalid(&place, &spec["podManagementPolicy"], "must be 'OrderedReady' or 'Parallel'");
    }
    stateful_strategy(&mut errors, &spec["updateStrategy"], &at.child("updateStrategy"));
    let place = at.child("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let policy = &spec["persistentVolumeClaimRetentionPolicy"][field];
        errors.optional_one_of(&place.child(field), policy, &["Retain", "Delete"]);
    }
    errors.not_negative(spec, &["replicas", "minReadySeconds", "revisionHistoryLimit"], &at);
    errors.not_negative(&spec["ordinals"], &["start"], &at.child("ordinals"));
    let service = text(spec, "serviceName");
    if !service.is_empty() {
        errors.rule(&at.child("serviceName"), &spec["serviceName"], dns_label(service));
    }
    selector(&mut errors, spec, "empty selector is invalid for statefulset", &at);
    let pod = with_claims(spec);
    matching_template(&mut errors, &spec["selector"], &pod, "StatefulSet", &at.child("template"));
    errors.0
}

/// The template with a volume for each claim template, since its containers may mount them.
fn with_claims(spec: &Value) -> Value {
    let mut pod = spec["template"].clone();
    let claims: Vec<&str> =
        list(spec, "volumeClaimTemplates").iter().map(|claim| text(&claim["metadata"], "name")).collect();
    let Some(pod_spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return pod };
    // Both are made from the pod's name, whatever the template says.
    pod_spec.remove("hostname");
    pod_spec.remove("subdomain");
    if !claims.is_empty() {
        let mut volumes: Vec<Value> = claims
            .iter()
            .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
            .collect();
        let own = list(&spec["template"]["spec"], "volumes").iter();
        volumes.extend(own.filter(|volume| !claims.contains(&text(volume, "name"))).cloned());
        pod_spec.insert("volumes".to_owned(), volumes.into());
    }
    pod
}

fn stateful_strategy(errors: &mut Errors, strategy: &Value, at: &Path) {
    let (rolling, place) = (&strategy["rollingUpdate"], at.child("rollingUpdate"));
    match text(strategy, "type") {
        "" => errors.required(at, ""),
        "OnDelete" if rolling.is_null() => {}
        "OnDelete" => errors.invalid(&place, rolling, "only allowed for updateStrategy 'RollingUpdate'"),
        "RollingUpdate" => {
            errors.not_negative(rolling, &["partition"], &place);
            let unavailable = &rolling["maxUnavailable"];
            if !unavailable.is_null() {
                let place = place.child("maxUnavailable");
                int_or_percent(errors, &place, unavailable);
                if is_zero(unavailable) {
                    errors.invalid(&place, unavailable, "cannot be 0");
                }
                at_most_100_percent(errors, &place, unavailable);
            }
        }
        _ => errors.invalid(at, strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// What of a StatefulSet may change.
pub(in crate::resources) fn stateful_set_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(stateful_set(new));
    let rest = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(map) = spec.as_object_mut() {
            for field in [
                "replicas",
                "template",
                "updateStrategy",
                "minReadySeconds",
                "ordinals",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
            ] {
                map.remove(field);
            }
        }
        spec
    };
    if !same(&rest(new), &rest(old)) {
        errors.forbidden(&Path::new("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
    }
    errors.0
}

/// A ReplicationController, new or changed.
pub(in crate::resources) fn replication_controller(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    errors.not_negative(spec, &["minReadySeconds", "replicas"], &at);
    if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
        errors.required(&at.child("selector"), "");
    }
    if spec["template"].is_null() {
        errors.required(&at.child("template"), "");
        return errors.0;
    }
    let selector = json!({"matchLabels": spec["selector"]});
    matching_template(
        &mut errors,
        &selector,
        &spec["template"],
        "ReplicationController",
        &at.child("template"),
    );
    errors.0
}

/// A PodTemplate, new or changed.
pub(in crate::resources) fn pod_template(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    template(&mut errors, &object["template"], &Path::new("template"));
    errors.0
}
