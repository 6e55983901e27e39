//! A job's pods: their index, the finalizer that keeps them until they are counted, and how new ones look.

use std::collections::BTreeMap;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodTemplateSpec,
};
use keelson_client::{meta, pods};
use serde_json::{Value, json};

use super::policy;

/// Keeps a pod from going before its end is in the job's status.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label with the index of an Indexed job's pod.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the index has failed before this pod.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often it has failed without that counting.
const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Longest base of a generated name, so that name and suffix fit into a label.
const LONGEST_BASE: usize = 58;

/// The job's spec, if it has one; the API sees to that.
pub fn spec(job: &Job) -> &JobSpec {
    static NONE: std::sync::LazyLock<JobSpec> = std::sync::LazyLock::new(JobSpec::default);
    job.spec.as_ref().unwrap_or(&NONE)
}

/// Whether each pod has an index.
pub fn is_indexed(job: &Job) -> bool {
    spec(job).completion_mode.as_deref() == Some("Indexed")
}

/// Whether it is told to have no pods for now.
pub fn is_suspended(job: &Job) -> bool {
    spec(job).suspend.unwrap_or(false)
}

/// Whether failures are limited index by index.
pub fn is_limited_per_index(job: &Job) -> bool {
    is_indexed(job) && spec(job).backoff_limit_per_index.is_some()
}

/// Whether a pod is replaced only when it has ended, and not already when it is about to go.
pub fn only_replaces_failed(job: &Job) -> bool {
    spec(job).pod_replacement_policy.as_deref() == Some("Failed") || spec(job).pod_failure_policy.is_some()
}

/// Whether another controller looks after the job.
pub fn is_managed_by_other(job: &Job) -> bool {
    spec(job).managed_by.as_deref().is_some_and(|name| name != "kubernetes.io/job-controller")
}

/// Whether the job has come to its end, one way or the other.
pub fn is_finished(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

/// The pod's index, if it has a sound one.
pub fn index_of(pod: &Pod) -> Option<i32> {
    meta::annotation(&pod.metadata, INDEX)?.parse().ok().filter(|index| *index >= 0)
}

/// The pod's index, if it is one of the job's.
pub fn valid_index(job: &Job, pod: &Pod) -> Option<i32> {
    index_of(pod).filter(|index| *index < spec(job).completions.unwrap_or(0))
}

/// Whether the pod waits to be counted.
pub fn is_held(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// Lets the pod go.
pub fn release_patch() -> Value {
    json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}})
}

/// Whether the pod counts as failed: one that is about to go may never reach that phase.
pub fn is_failed(job: &Job, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !only_replaces_failed(job) && pods::is_terminating(pod),
    }
}

fn count(pod: &Pod, annotation: &str) -> i32 {
    meta::annotation(&pod.metadata, annotation)
        .and_then(|text| text.parse().ok())
        .map_or(0, |n: i32| n.max(0))
}

/// Failures of the index that count, before this pod.
pub fn failures(pod: &Pod) -> i32 {
    count(pod, FAILURES)
}

/// All failures of the index before this pod.
pub fn all_failures(pod: &Pod) -> i32 {
    failures(pod).saturating_add(count(pod, IGNORED_FAILURES))
}

/// Whether the pod's end means that its index has failed for good.
pub fn fails_index(job: &Job, pod: &Pod) -> bool {
    if !is_failed(job, pod) {
        return false;
    }
    let failure = policy::judge(spec(job).pod_failure_policy.as_ref(), pod);
    failure == policy::Failure::Index
        || (failure.counts() && failures(pod) >= spec(job).backoff_limit_per_index.unwrap_or(i32::MAX))
}

/// How the job's pods look.
pub fn template(job: &Job) -> PodTemplateSpec {
    let mut template = spec(job).template.clone();
    let finalizers = template.metadata.get_or_insert_default().finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    if is_indexed(job) {
        let spec = template.spec.get_or_insert_default();
        let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
        containers.for_each(add_index_variable);
    }
    template
}

fn add_index_variable(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    env.push(EnvVar {
        name: INDEX_VARIABLE.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{INDEX}']"),
            }),
            ..Default::default()
        }),
    });
}

/// Makes the template that of an index. `replaced` is the failed pod of the index, if there is one.
pub fn with_index(
    job: &Job,
    mut template: PodTemplateSpec,
    index: i32,
    replaced: Option<&Pod>,
) -> PodTemplateSpec {
    let metadata = template.metadata.get_or_insert_default();
    let annotations: &mut BTreeMap<String, String> = metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.into(), index.to_string());
    if is_limited_per_index(job) {
        let (mut failures, mut ignored) =
            replaced.map_or((0, 0), |pod| (failures(pod), count(pod, IGNORED_FAILURES)));
        if let Some(pod) = replaced {
            let counts = policy::judge(spec(job).pod_failure_policy.as_ref(), pod).counts();
            let which = if counts { &mut failures } else { &mut ignored };
            *which = which.saturating_add(1);
        }
        annotations.insert(FAILURES.into(), failures.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.into(), ignored.to_string());
        }
    }
    metadata.labels.get_or_insert_default().insert(INDEX.into(), index.to_string());
    template.spec.get_or_insert_default().hostname = Some(format!("{}-{index}", meta::name(&job.metadata)));
    template
}

/// The base of the name of an index's pod.
pub fn generate_name(job: &Job, index: i32) -> String {
    let suffix = format!("-{index}-");
    let mut name = meta::name(&job.metadata).to_owned();
    name.truncate(LONGEST_BASE.saturating_sub(suffix.len()));
    name + &suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(spec: Value) -> Job {
        let mut job = json!({"metadata": {"name": "pi"}, "spec": {
            "completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 1,
            "template": {"spec": {"containers": [{"name": "c"}]}}}});
        for (key, value) in spec.as_object().unwrap() {
            job["spec"][key] = value.clone();
        }
        serde_json::from_value(job).unwrap()
    }

    fn pod(phase: &str, failures: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": {INDEX: "1", FAILURES: failures}},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_of_an_index() {
        let job = job(json!({}));
        let template = with_index(&job, template(&job), 1, Some(&pod("Failed", "2")));
        let metadata = template.metadata.unwrap();
        assert_eq!(metadata.annotations.as_ref().unwrap()[INDEX], "1");
        assert_eq!(metadata.annotations.as_ref().unwrap()[FAILURES], "3");
        assert_eq!(metadata.labels.unwrap()[INDEX], "1");
        assert_eq!(metadata.finalizers.unwrap(), [FINALIZER]);
        let spec = template.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("pi-1"));
        assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, INDEX_VARIABLE);
        assert_eq!(generate_name(&job, 1), "pi-1-");
    }

    #[test]
    fn long_names_are_cut() {
        let mut job = job(json!({}));
        job.metadata.name = Some("x".repeat(63));
        let name = generate_name(&job, 12);
        assert_eq!((name.len(), name.ends_with("x-12-")), (58, true));
    }

    #[test]
    fn failed_indexes() {
        let limit = job(json!({}));
        assert!(!fails_index(&limit, &pod("Failed", "0")));
        assert!(fails_index(&limit, &pod("Failed", "1")));
        assert!(!fails_index(&limit, &pod("Running", "1")));
        assert!(!fails_index(&limit, &pod("Failed", "nonsense")));
        let mut going = pod("Running", "1");
        going.metadata.deletion_timestamp = Some(meta::now());
        assert!(fails_index(&limit, &going));
        assert!(!fails_index(&job(json!({"podReplacementPolicy": "Failed"})), &going));
    }
}
