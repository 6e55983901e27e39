//! Kinds that carry a pod template (`pkg/apis/{apps,batch,core}/v1/defaults.go`).

use serde_json::{Value, json};

use super::pod_template::default_pod_spec;
use super::{child, items, object_at, set_default};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, validation};

/// Defaults the template at a dotted path, if there is one.
fn default_template(object: &mut Value, path: &str) {
    let mut at = Some(object);
    for key in path.split('.') {
        at = at.and_then(|v| child(v, key));
    }
    if let Some(spec) = at.and_then(|template| child(template, "spec")) {
        default_pod_spec(spec);
    }
}

/// Deployments.
pub struct Deployment;

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "replicas", 1);
            if let Some(strategy) = object_at(spec, "strategy") {
                set_default(strategy, "type", "RollingUpdate");
                if strategy["type"] == "RollingUpdate"
                    && let Some(rolling) = object_at(strategy, "rollingUpdate")
                {
                    set_default(rolling, "maxUnavailable", "25%");
                    set_default(rolling, "maxSurge", "25%");
                }
            }
            set_default(spec, "revisionHistoryLimit", 10);
            set_default(spec, "progressDeadlineSeconds", 600);
        }
        default_template(object, "spec.template");
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::deployment(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return validation::deployment_status(new, old);
        }
        let mut errors = validation::deployment(new);
        errors.extend(validation::immutable_selector(new, old));
        errors
    }
}

/// ReplicaSets.
pub struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "replicas", 1);
        }
        default_template(object, "spec.template");
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        // Go's ReplicaSetStatus always prints its replicas.
        object["status"] = json!({"replicas": 0});
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::replica_set(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return validation::replicas_status(new, old);
        }
        let mut errors = validation::replica_set(new);
        errors.extend(validation::immutable_selector(new, old));
        errors
    }
}

/// StatefulSets.
pub struct StatefulSet;

impl Strategy for StatefulSet {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "podManagementPolicy", "OrderedReady");
            set_default(spec, "replicas", 1);
            set_default(spec, "revisionHistoryLimit", 10);
            if let Some(update) = object_at(spec, "updateStrategy") {
                if update["type"].as_str().unwrap_or_default().is_empty() {
                    update["type"] = "RollingUpdate".into();
                    object_at(update, "rollingUpdate");
                }
                if update["type"] == "RollingUpdate"
                    && let Some(rolling) = child(update, "rollingUpdate")
                {
                    set_default(rolling, "partition", 0);
                }
            }
            if let Some(policy) = object_at(spec, "persistentVolumeClaimRetentionPolicy") {
                set_default(policy, "whenDeleted", "Retain");
                set_default(policy, "whenScaled", "Retain");
            }
            for claim in items(spec, "volumeClaimTemplates") {
                super::PersistentVolumeClaim.default(claim);
            }
        }
        default_template(object, "spec.template");
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"replicas": 0, "availableReplicas": 0});
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::stateful_set(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return validation::stateful_set_status(new, old);
        }
        validation::stateful_set_update(new, old)
    }
}

/// Where a DaemonSet's `templateGeneration`, a field of extensions/v1beta1, lives on.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(object: &Value) -> Option<i64> {
    object["metadata"]["annotations"][TEMPLATE_GENERATION].as_str()?.parse().ok()
}

fn set_template_generation(object: &mut Value, generation: i64) {
    if let Some(annotations) = object_at(object, "metadata").and_then(|m| object_at(m, "annotations")) {
        annotations[TEMPLATE_GENERATION] = generation.to_string().into();
    }
}

/// DaemonSets.
pub struct DaemonSet;

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            if let Some(update) = object_at(spec, "updateStrategy") {
                set_default(update, "type", "RollingUpdate");
                if update["type"] == "RollingUpdate"
                    && let Some(rolling) = object_at(update, "rollingUpdate")
                {
                    set_default(rolling, "maxUnavailable", 1);
                    set_default(rolling, "maxSurge", 0);
                }
            }
            set_default(spec, "revisionHistoryLimit", 10);
        }
        default_template(object, "spec.template");
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0,
        });
        if template_generation(object).is_none_or(|generation| generation < 1) {
            set_template_generation(object, 1);
        }
    }

    /// The template's changes are counted, and by the server alone.
    fn prepare_for_update(&self, _context: &StrategyContext, new: &mut Value, old: &Value) {
        let changed = !validation::same(&new["spec"]["template"], &old["spec"]["template"]);
        set_template_generation(new, template_generation(old).unwrap_or(0) + i64::from(changed));
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::daemon_set(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return validation::daemon_set_status(new, old);
        }
        let mut errors = validation::daemon_set(new);
        errors.extend(validation::immutable_selector(new, old));
        errors
    }
}

/// ReplicationControllers.
pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.as_object().is_some_and(|l| !l.is_empty()) {
            if let Some(spec) = child(object, "spec") {
                set_default(spec, "selector", labels.clone());
            }
            if let Some(metadata) = child(object, "metadata") {
                set_default(metadata, "labels", labels);
            }
        }
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "replicas", 1);
        }
        default_template(object, "spec.template");
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn orphans_dependents(&self) -> bool {
        true
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::replication_controller(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return validation::replicas_status(new, old);
        }
        validation::replication_controller(new)
    }
}

/// Jobs.
pub struct Job;

/// Sets a field that is absent, even where it might be empty.
fn set_missing(parent: &mut Value, key: &str, value: &Value) {
    if parent.get(key).is_none() {
        parent[key] = value.clone();
    }
}

fn default_job_spec(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        spec["completions"] = 1.into();
    }
    set_default(spec, "parallelism", 1);
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    set_default(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    set_default(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    let policy = if spec["podFailurePolicy"].is_null() { "TerminatingOrFailed" } else { "Failed" };
    set_default(spec, "podReplacementPolicy", policy);
    set_default(spec, "manualSelector", false);
}

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.as_object().is_some_and(|l| !l.is_empty())
            && let Some(metadata) = child(object, "metadata")
        {
            set_default(metadata, "labels", labels);
        }
        if let Some(spec) = child(object, "spec") {
            default_job_spec(spec);
        }
        default_template(object, "spec.template");
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({});
        if object["spec"]["manualSelector"].as_bool() == Some(true) {
            return;
        }
        // The selector is the job's own uid, so that no two jobs ever fight over pods. What the user has written
        // in these places stays for validation to refuse.
        let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
        let Some(spec) = child(object, "spec") else { return };
        if let Some(labels) = object_at(spec, "template")
            .and_then(|t| object_at(t, "metadata"))
            .and_then(|m| object_at(m, "labels"))
        {
            for (key, value) in [
                ("job-name", &name),
                ("batch.kubernetes.io/job-name", &name),
                ("controller-uid", &uid),
                ("batch.kubernetes.io/controller-uid", &uid),
            ] {
                set_missing(labels, key, value);
            }
        }
        if let Some(labels) = object_at(spec, "selector").and_then(|s| object_at(s, "matchLabels")) {
            set_missing(labels, "batch.kubernetes.io/controller-uid", &uid);
        }
    }

    fn orphans_dependents(&self) -> bool {
        true
    }

    fn deletion_warning(&self) -> Option<&'static str> {
        Some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning",
        )
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::job(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return validation::job_status_update(new, old);
        }
        validation::job_update(new, old)
    }
}

/// CronJobs.
pub struct CronJob;

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = child(object, "spec") {
            set_default(spec, "concurrencyPolicy", "Allow");
            set_default(spec, "suspend", false);
            set_default(spec, "successfulJobsHistoryLimit", 3);
            set_default(spec, "failedJobsHistoryLimit", 1);
        }
        default_template(object, "spec.jobTemplate.spec.template");
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::cron_job(object, None)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if !context.subresource.is_empty() {
            return Vec::new();
        }
        validation::cron_job(new, Some(old))
    }
}

/// ControllerRevisions.
pub struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::controller_revision(object, None)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        validation::controller_revision(new, Some(old))
    }
}

/// PodDisruptionBudgets.
pub struct PodDisruptionBudget;

impl Strategy for PodDisruptionBudget {
    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        // Go's PodDisruptionBudgetStatus always prints these.
        object["status"] =
            json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::disruption_budget(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        if context.subresource == "status" {
            return validation::disruption_budget_status(new);
        }
        validation::disruption_budget(new)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// A kind that holds a template at a path and nothing else of note.
pub struct Templated(pub &'static str);

impl Strategy for Templated {
    fn default(&self, object: &mut Value) {
        default_template(object, self.0);
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::pod_template(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        validation::pod_template(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployment_defaults() {
        let mut object = json!({"spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        }});
        Deployment.default(&mut object);
        assert_eq!(object["spec"]["replicas"], 1);
        assert_eq!(object["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
        assert_eq!(object["spec"]["template"]["spec"]["restartPolicy"], "Always");
        assert!(object["spec"]["template"]["spec"]["enableServiceLinks"].is_null(), "pods only");
        assert_eq!(Deployment.validate_create(&StrategyContext::default(), &object), []);
        object["spec"]["template"]["metadata"]["labels"]["a"] = "c".into();
        assert_eq!(Deployment.validate_create(&StrategyContext::default(), &object).len(), 1);
    }

    #[test]
    fn a_daemon_sets_template_is_counted() {
        let context = StrategyContext::default();
        let mut old = json!({"metadata": {}, "spec": {"template": {"spec": {"nodeName": "a"}}}});
        DaemonSet.prepare_for_create(&context, &mut old);
        assert_eq!(template_generation(&old), Some(1));
        let mut new = old.clone();
        new["metadata"]["annotations"] = json!({TEMPLATE_GENERATION: "7"});
        DaemonSet.prepare_for_update(&context, &mut new, &old);
        assert_eq!(template_generation(&new), Some(1));
        new["spec"]["template"]["spec"]["nodeName"] = "b".into();
        DaemonSet.prepare_for_update(&context, &mut new, &old);
        assert_eq!(template_generation(&new), Some(2));
    }
}
