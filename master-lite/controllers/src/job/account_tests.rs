use serde_json::{Value, json};

use super::*;

fn job(spec: Value, status: Value) -> Job {
    let mut job = json!({"metadata": {"name": "j"}, "status": status, "spec": {
        "parallelism": 2, "completions": 4, "backoffLimit": 6,
        "template": {"spec": {"containers": [], "restartPolicy": "Never"}}}});
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

fn indexed(extra: Value, status: Value) -> Job {
    let mut spec = json!({"completionMode": "Indexed"});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    job(spec, status)
}

/// `name phase [ready] [going] [free] [#index] [xFAILURES]`; `free` has no finalizer.
fn pod(text: &str) -> Arc<Pod> {
    let words: Vec<&str> = text.split(' ').collect();
    let has = |word: &str| words.contains(&word);
    let after = |mark: char| words.iter().find_map(|word| word.strip_prefix(mark));
    let mut annotations = json!({});
    if let Some(index) = after('#') {
        annotations["batch.kubernetes.io/job-completion-index"] = index.into();
    }
    if let Some(failures) = after('x') {
        annotations["batch.kubernetes.io/job-index-failure-count"] = failures.into();
    }
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {
                "name": words[0], "uid": words[0], "annotations": annotations,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "finalizers": if has("free") { json!([]) } else { json!([super::super::pods::FINALIZER]) },
                "deletionTimestamp": has("going").then_some("2026-01-01T00:00:00Z"),
            },
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": words[1], "conditions": [
                {"type": "Ready", "status": if has("ready") { "True" } else { "False" }}]},
        }))
        .unwrap(),
    )
}

fn account(job: &Job, pods: &[&str]) -> Account {
    Account::new(job, pods.iter().map(|text| pod(text)).collect(), HashSet::new(), &Record::default())
}

#[test]
fn counting() {
    let status = json!({"succeeded": 1, "failed": 2, "uncountedTerminatedPods": {"succeeded": ["b"]}});
    let job = job(json!({}), status);
    let pods =
        ["a Succeeded", "b Succeeded", "c Succeeded free", "d Failed", "e Running ready", "f Running going"];
    let account = account(&job, &pods);
    assert_eq!((account.succeeded, account.failed), (3, 4));
    assert_eq!((account.active.len(), account.ready, account.terminating), (1, 1, 1));
    let waiting = self::job(json!({"podReplacementPolicy": "Failed"}), json!({}));
    assert_eq!(self::account(&waiting, &["f Running going"]).failed, 0);
}

#[test]
fn released_pods_count_no_more() {
    let released = HashSet::from(["a".to_owned()]);
    let job = job(json!({}), json!({"succeeded": 1}));
    let account = Account::new(&job, vec![pod("a Succeeded")], released, &Record::default());
    assert_eq!(account.succeeded, 1);
}

#[test]
fn counting_indexes() {
    let job =
        indexed(json!({"backoffLimitPerIndex": 1}), json!({"completedIndexes": "0", "failedIndexes": "3"}));
    let pods = ["a Succeeded #1", "b Failed #2 x1", "c Failed #9", "d Succeeded #0 free"];
    let account = account(&job, &pods);
    assert_eq!(account.succeeded_indexes.to_string(), "0,1");
    assert_eq!((account.counted.to_string().as_str(), account.succeeded), ("0", 2));
    assert_eq!(account.failed_indexes.unwrap().to_string(), "2,3");
}

#[track_caller]
fn check_end(job: &Job, pods: &[&str], expected: Option<(&str, &str)>) {
    let account = account(job, pods);
    let end = end(job, &account, &meta::now());
    let shown = end.as_ref().map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap_or_default()));
    assert_eq!(shown, expected);
}

#[test]
fn ends() {
    let one = |extra: Value| job(extra, json!({}));
    check_end(&one(json!({})), &["a Running"], None);
    check_end(
        &one(json!({"backoffLimit": 0})),
        &["a Failed"],
        Some(("FailureTarget", "BackoffLimitExceeded")),
    );
    check_end(&one(json!({"backoffLimit": 1})), &["a Failed"], None);
    let late = job(json!({"activeDeadlineSeconds": 1}), json!({"startTime": "2026-01-01T00:00:00Z"}));
    check_end(&late, &[], Some(("FailureTarget", "DeadlineExceeded")));
    let met = json!([{"type": "SuccessCriteriaMet", "status": "True", "reason": "R"}]);
    check_end(
        &job(json!({"backoffLimit": 0}), json!({"conditions": met})),
        &["a Failed"],
        Some(("SuccessCriteriaMet", "R")),
    );
    let target = json!([{"type": "FailureTarget", "status": "True", "reason": "R"}]);
    check_end(&job(json!({}), json!({"conditions": target})), &[], Some(("Failed", "R")));
    let policy =
        json!({"rules": [{"action": "FailJob", "onPodConditions": [{"type": "Ready", "status": "False"}]}]});
    check_end(
        &one(json!({"podFailurePolicy": policy})),
        &["a Failed"],
        Some(("FailureTarget", "PodFailurePolicy")),
    );
}

#[test]
fn ends_by_index() {
    let limited = |extra: Value| {
        let mut spec = json!({"backoffLimitPerIndex": 0, "backoffLimit": 100});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        indexed(spec, json!({"completedIndexes": "1-3"}))
    };
    check_end(&limited(json!({})), &["a Failed #0"], Some(("FailureTarget", "FailedIndexes")));
    check_end(&limited(json!({"completions": 5})), &["a Failed #0"], None);
    let most = json!({"completions": 9, "maxFailedIndexes": 1});
    check_end(&limited(most.clone()), &["a Failed #0"], None);
    check_end(
        &limited(most),
        &["a Failed #0", "b Failed #4"],
        Some(("FailureTarget", "MaxFailedIndexesExceeded")),
    );
    let policy = json!({"successPolicy": {"rules": [{"succeededCount": 3}]}, "completions": 9});
    check_end(&limited(policy), &["a Running #0"], Some(("SuccessCriteriaMet", "SuccessPolicy")));
}

#[test]
fn restarts_in_place_count_too() {
    let restarting = |limit: i32| {
        job(
            json!({"backoffLimit": limit, "template": {"spec": {"containers": [], "restartPolicy": "OnFailure"}}}),
            json!({}),
        )
    };
    let mut pod = (*pod("a Running")).clone();
    pod.status.get_or_insert_default().container_statuses = Some(vec![
        serde_json::from_value(
            json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 2}),
        )
        .unwrap(),
    ]);
    for (limit, ends) in [(0, true), (2, true), (3, false)] {
        let job = restarting(limit);
        let account = Account::new(&job, vec![Arc::new(pod.clone())], HashSet::new(), &Record::default());
        assert_eq!(end(&job, &account, &meta::now()).is_some(), ends, "{limit}");
    }
}

#[track_caller]
fn check_work(job: &Job, pods: &[&str], expected: &str) {
    let account = account(job, pods);
    let shown = match work(job, &account, &meta::now()) {
        Work::Nothing => "nothing".to_owned(),
        Work::Wait(_) => "wait".to_owned(),
        Work::Delete(doomed) => {
            let mut names: Vec<_> = doomed.iter().map(|pod| meta::name(&pod.metadata)).collect();
            names.sort_unstable();
            format!("delete {}", names.join(" "))
        }
        Work::Create(indexes) => {
            let shown: Vec<_> = indexes.iter().map(|i| i.map_or("-".to_owned(), |i| i.to_string())).collect();
            format!("create {}", shown.join(" "))
        }
    };
    assert_eq!(shown, expected);
}

#[test]
fn pods_come_and_go() {
    let plain = |extra: Value, status: Value| job(extra, status);
    check_work(&plain(json!({}), json!({})), &[], "create - -");
    check_work(&plain(json!({}), json!({})), &["a Running"], "create -");
    check_work(&plain(json!({}), json!({"succeeded": 3})), &["a Running"], "nothing");
    check_work(&plain(json!({}), json!({"succeeded": 3})), &["a Running ready", "b Pending"], "delete b");
    check_work(&plain(json!({"suspend": true}), json!({})), &["a Running", "b Failed"], "delete a");
    check_work(&plain(json!({"suspend": true}), json!({})), &[], "nothing");
    check_work(&plain(json!({"completions": null}), json!({"succeeded": 1})), &["a Running"], "nothing");
    check_work(&plain(json!({"completions": null}), json!({})), &["a Running"], "create -");
    check_work(&plain(json!({"parallelism": 0}), json!({})), &["a Running"], "delete a");
    // A pod that is about to go is replaced at once, or when it is gone.
    check_work(
        &plain(json!({"completions": 1}), json!({"failed": 1})),
        &["a Running going free"],
        "create -",
    );
    let patient = json!({"completions": 1, "podReplacementPolicy": "Failed"});
    check_work(&plain(patient, json!({})), &["a Running going"], "nothing");
}

#[test]
fn failed_pods_are_replaced_after_a_while() {
    let job = job(json!({}), json!({}));
    let mut failed = (*pod("a Failed")).clone();
    let status = failed.status.get_or_insert_default();
    status.conditions = Some(vec![
        serde_json::from_value(
            json!({"type": "Ready", "status": "False", "lastTransitionTime": meta::now()}),
        )
        .unwrap(),
    ]);
    let account = Account::new(&job, vec![Arc::new(failed)], HashSet::new(), &Record::default());
    let Work::Wait(wait) = work(&job, &account, &meta::now()) else { panic!("no wait") };
    assert!((9..=10).contains(&wait.as_secs()), "{wait:?}");
}

#[test]
fn indexes_come_and_go() {
    let plain = |status: Value| indexed(json!({"parallelism": 3}), status);
    check_work(&plain(json!({})), &[], "create 0 1 2");
    check_work(&plain(json!({"completedIndexes": "0"})), &["a Running #2"], "create 1 3");
    check_work(
        &plain(json!({})),
        &["a Running #1 ready", "b Running #1", "c Running", "d Running #7"],
        "delete b c d",
    );
    let limited = indexed(json!({"backoffLimitPerIndex": 1}), json!({"failedIndexes": "0"}));
    check_work(&limited, &[], "create 1 2");
    // The failed pod of index 1 stays until its successor has taken over its count.
    let account = account(&limited, &["a Failed #1"]);
    assert_eq!(account.delayed.keys().copied().collect::<Vec<_>>(), [1]);
    assert!(self::account(&limited, &["a Failed #1", "b Running #1"]).delayed.is_empty());
}

#[test]
fn completion() {
    let all = job(json!({}), json!({"succeeded": 4}));
    assert!(is_complete(&all, &account(&all, &[]), 0) && !is_complete(&all, &account(&all, &[]), 1));
    let any = job(json!({"completions": null}), json!({"succeeded": 1}));
    assert!(is_complete(&any, &account(&any, &[]), 0));
    let none = job(json!({"completions": null}), json!({}));
    assert!(!is_complete(&none, &account(&none, &[]), 0));
}
