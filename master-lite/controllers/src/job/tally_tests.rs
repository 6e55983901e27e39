use serde_json::{Value, json};

use super::super::backoff::Record;
use super::*;

fn job(spec: Value, status: Value) -> Job {
    let mut job = json!({"metadata": {"name": "j"}, "status": status, "spec": {
        "parallelism": 2, "completions": 4, "template": {"spec": {"containers": []}}}});
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

fn pod(name: &str, phase: &str, index: Option<&str>) -> Arc<Pod> {
    let annotations = index.map(|index| json!({"batch.kubernetes.io/job-completion-index": index}));
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "finalizers": [super::super::pods::FINALIZER],
                         "annotations": annotations},
            "status": {"phase": phase},
        }))
        .unwrap(),
    )
}

fn run(job: &mut Job, pods: &[Arc<Pod>], end: Option<&str>) -> Tally {
    let account = Account::new(job, pods.to_vec(), HashSet::new(), &Record::default());
    let end = end.map(|kind| condition(kind, "R", "m", &meta::now()));
    tally(job, &account, end, &meta::now())
}

fn uncounted(job: &Job) -> (Vec<String>, Vec<String>) {
    let listed = job.status.clone().unwrap().uncounted_terminated_pods.unwrap();
    (listed.succeeded.unwrap_or_default(), listed.failed.unwrap_or_default())
}

#[test]
fn each_end_counts_once() {
    let mut job = job(json!({}), json!({}));
    let pods = [pod("a", "Succeeded", None), pod("b", "Failed", None), pod("c", "Running", None)];
    let mut tally = run(&mut job, &pods, None);
    assert!(tally.changed);
    assert_eq!(tally.release.len(), 2);
    assert_eq!(uncounted(&job), (vec!["a".to_owned()], vec!["b".to_owned()]));
    // The controller stops here and another begins: nothing is listed twice.
    assert!(!run(&mut job, &pods, None).changed);
    tally.held.remove("a");
    assert!(settle(job.status.as_mut().unwrap(), &tally.held));
    let status = job.status.clone().unwrap();
    assert_eq!((status.succeeded, status.failed), (Some(1), None));
    assert_eq!(uncounted(&job), (vec![], vec!["b".to_owned()]));
    // The pod that was let go is gone; the one that was not is still held.
    assert!(!run(&mut job, &pods[1..], None).changed);
    assert_eq!(job.status.unwrap().succeeded, Some(1));
}

#[test]
fn indexes_count_by_themselves() {
    let spec = json!({"completionMode": "Indexed"});
    let mut job = job(spec, json!({"completedIndexes": "0", "succeeded": 1}));
    let pods = [
        pod("c", "Succeeded", Some("2")),
        pod("b", "Succeeded", Some("1")),
        pod("a", "Succeeded", Some("0")),
    ];
    let tally = run(&mut job, &pods, None);
    assert!(tally.changed);
    let status = job.status.clone().unwrap();
    assert_eq!((status.completed_indexes.as_deref(), status.succeeded), (Some("0-2"), Some(3)));
    assert_eq!(uncounted(&job), (vec![], vec![]));
    assert!(!run(&mut job, &pods, None).changed);
}

#[test]
fn a_job_that_is_given_up_counts_all_pods_as_failed() {
    let mut failed = job(json!({}), json!({}));
    let tally = run(&mut failed, &[pod("a", "Running", None)], Some("FailureTarget"));
    assert_eq!(uncounted(&failed).1, ["a"]);
    assert_eq!(tally.end.unwrap().type_, "Failed");
    let mut met = job(json!({}), json!({}));
    let tally = run(&mut met, &[pod("a", "Running", None)], Some("SuccessCriteriaMet"));
    assert_eq!((uncounted(&met).1.len(), tally.release.len()), (0, 1));
    assert_eq!(tally.end.unwrap().type_, "Complete");
}

#[test]
fn the_end_waits_for_the_last_pod() {
    let mut job = job(json!({}), json!({}));
    let tally = run(&mut job, &[pod("a", "Succeeded", None)], Some("SuccessCriteriaMet"));
    let now = meta::now();
    assert!(finish(&mut job, &tally, 0, &now).is_none(), "a is not counted");
    settle(job.status.as_mut().unwrap(), &HashSet::new());
    assert!(finish(&mut job, &tally, 1, &now).is_none(), "a pod is about to go");
    assert_eq!(finish(&mut job, &tally, 0, &now).unwrap().type_, "Complete");
    let status = job.status.as_ref().unwrap();
    let kinds: Vec<_> = status.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(kinds, ["SuccessCriteriaMet", "Complete"]);
    assert!(status.completion_time.is_some());
}

#[test]
fn conditions() {
    let now = meta::now();
    let mut status = JobStatus::default();
    let mut off = condition("Suspended", "JobResumed", "Job resumed", &now);
    off.status = "False".into();
    assert!(!ensure(&mut status, off.clone(), &now) && status.conditions.is_none());
    let on = condition("Suspended", "JobSuspended", "Job suspended", &now);
    assert!(ensure(&mut status, on.clone(), &now) && !ensure(&mut status, on, &now));
    assert!(ensure(&mut status, off, &now));
}

#[test]
fn strays() {
    let held = |owner: Option<(&str, &str)>| -> Pod {
        let owners = owner.map(|(version, kind)| {
            json!([{"apiVersion": version, "kind": kind, "name": "j", "uid": "j", "controller": true}])
        });
        let mut pod = (*pod("a", "Running", None)).clone();
        pod.metadata.owner_references = owners.map(|o| serde_json::from_value(o).unwrap());
        pod
    };
    let running = job(json!({}), json!({}));
    let finished = job(json!({}), json!({"conditions": [{"type": "Complete", "status": "True"}]}));
    let of_job = held(Some(("batch/v1", "Job")));
    assert!(!is_stray(Some(&running), &of_job));
    assert!(is_stray(Some(&finished), &of_job));
    assert!(is_stray(None, &of_job) && is_stray(None, &held(None)));
    assert!(!is_stray(None, &held(Some(("apps/v1", "ReplicaSet")))));
    assert!(!is_stray(None, &Pod::default()));
}
