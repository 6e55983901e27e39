//! Jobs, CronJobs, StatefulSets, ReplicationControllers and PodDisruptionBudgets, with their pods really run.

use anyhow::{Context, Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;

const MANIFEST: &str = include_str!("e2e_workloads.yaml");

#[test]
fn workloads_come_to_their_ends() -> Result<()> {
    let cluster = TestCluster::up("e2e-workloads", 2, &["testapp-v1", "testapp-v2", "busybox"])?;
    cluster.kubectl.apply(MANIFEST)?;
    jobs(&cluster)?;
    suspended_job(&cluster)?;
    replication_controller(&cluster)?;
    stateful_set(&cluster)?;
    disruption_budget(&cluster)?;
    cron_job(&cluster)?;
    cluster.down()
}

fn field(cluster: &TestCluster, what: &str, path: &str) -> Result<String> {
    cluster.kubectl.run(&["get", what, "-o", &format!("jsonpath={{{path}}}")])
}

/// Reason and message of a condition of a job that is true.
fn condition(cluster: &TestCluster, job: &str, kind: &str) -> Result<String> {
    cluster.kubectl.run(&[
        "wait",
        &format!("--for=condition={kind}"),
        &format!("job/{job}"),
        "--timeout=30s",
    ])?;
    let path = format!(".status.conditions[?(@.type==\"{kind}\")]['reason','message']");
    field(cluster, &format!("job/{job}"), &path)
}

fn jobs(cluster: &TestCluster) -> Result<()> {
    let done = "CompletionsReached Reached expected number of succeeded pods";
    assert_eq!(condition(cluster, "three", "Complete")?, done);
    assert_eq!(field(cluster, "job/three", ".status['succeeded','ready','terminating']")?, "3 0 0");
    let shown = cluster.kubectl.run(&["get", "job", "three", "--no-headers"])?;
    assert_eq!(shown.split_whitespace().take(3).collect::<Vec<_>>(), ["three", "Complete", "3/3"]);
    let held = cluster.kubectl.run(&[
        "get",
        "pods",
        "-l",
        "job-name=three",
        "-o",
        "jsonpath={.items[*].metadata.finalizers}",
    ])?;
    assert_eq!(held, "", "what is counted is let go");

    assert_eq!(condition(cluster, "indexed", "Failed")?, "FailedIndexes Job has failed indexes");
    assert_eq!(field(cluster, "job/indexed", ".status['completedIndexes','failedIndexes']")?, "0,2 1");
    let selector = "job-name=indexed,batch.kubernetes.io/job-completion-index=2";
    assert_eq!(cluster.kubectl.run(&["logs", "-l", selector])?, "2 indexed-2");

    let limit = "BackoffLimitExceeded Job has reached the specified backoff limit";
    assert_eq!(condition(cluster, "failing", "Failed")?, limit);
    assert_eq!(field(cluster, "job/failing", ".status.failed")?, "1");
    let hopeless = condition(cluster, "hopeless", "Failed")?;
    assert!(hopeless.starts_with("PodFailurePolicy Container main for pod default/hopeless-"), "{hopeless}");
    assert!(hopeless.ends_with("failed with exit code 42 matching FailJob rule at index 0"), "{hopeless}");

    assert_eq!(condition(cluster, "leader", "Complete")?, "SuccessPolicy Matched rules at index 0");
    assert_eq!(field(cluster, "job/leader", ".status.completedIndexes")?, "0");
    Ok(())
}

/// One that is told to wait has no pods; told to go on it runs, and goes when its time after the end is over.
fn suspended_job(cluster: &TestCluster) -> Result<()> {
    assert_eq!(condition(cluster, "paused", "Suspended")?, "JobSuspended Job suspended");
    assert_eq!(cluster.kubectl.run(&["get", "pods", "-l", "job-name=paused", "-o", "name"])?, "");
    cluster.kubectl.run(&["patch", "job", "paused", "-p", r#"{"spec":{"suspend":false}}"#])?;
    cluster.kubectl.run(&["wait", "--for=condition=Complete", "job/paused", "--timeout=20s"])?;
    cluster.kubectl.run(&["wait", "--for=delete", "job/paused", "--timeout=20s"])?;
    cluster.eventually(10, || {
        let pods = cluster.kubectl.run(&["get", "pods", "-l", "job-name=paused", "-o", "name"])?;
        ensure!(pods.is_empty(), "{pods} go with their job");
        Ok(())
    })
}

fn replication_controller(cluster: &TestCluster) -> Result<()> {
    let ready = |n: &str| {
        cluster.eventually(20, || {
            let shown = field(cluster, "rc/pair", ".status['replicas','readyReplicas']")?;
            ensure!(shown == format!("{n} {n}"), "{shown}");
            Ok(())
        })
    };
    ready("2")?;
    cluster.kubectl.run(&["scale", "rc", "pair", "--replicas=1"])?;
    ready("1")?;
    cluster.kubectl.run(&["delete", "rc", "pair"]).map(drop)
}

fn stateful_set(cluster: &TestCluster) -> Result<()> {
    let pods = |path: &str| {
        cluster.kubectl.run(&["get", "pods", "-l", "app=web", "-o", &format!("jsonpath={{.items[*]{path}}}")])
    };
    cluster.rolled_out("statefulset/web")?;
    assert_eq!(pods(".metadata.name")?, "web-0 web-1 web-2");
    let began = pods(".metadata.creationTimestamp")?;
    let mut sorted: Vec<&str> = began.split(' ').collect();
    sorted.sort_unstable();
    assert_eq!(sorted.join(" "), began, "they come one by one");
    // Each has a name of its own.
    let ip = field(cluster, "pod/web-1", ".status.podIP")?;
    cluster.eventually(20, || {
        let found = cluster.sh("web-0", "nslookup -type=a web-1.web.default.svc.cluster.local")?;
        ensure!(found.contains(&ip), "{found} has not {ip}");
        Ok(())
    })?;
    assert_eq!(cluster.sh("web-0", "hostname -f")?, "web-0.web.default.svc.cluster.local");

    cluster.kubectl.run(&["scale", "statefulset", "web", "--replicas=2"])?;
    cluster.kubectl.run(&["wait", "--for=delete", "pod/web-2", "--timeout=20s"])?;
    let uid = field(cluster, "pod/web-0", ".metadata.uid")?;
    let partition = |n: i32| {
        let patch = format!(r#"{{"spec":{{"updateStrategy":{{"rollingUpdate":{{"partition":{n}}}}}}}}}"#);
        cluster.kubectl.run(&["patch", "statefulset", "web", "-p", &patch])
    };
    partition(1)?;
    cluster.kubectl.run(&["set", "image", "statefulset/web", "main=keelson.test/testapp:v2"])?;
    cluster.rolled_out("statefulset/web")?;
    assert_eq!(pods(".spec.containers[0].image")?, "keelson.test/testapp:v1 keelson.test/testapp:v2");
    assert_eq!(field(cluster, "pod/web-0", ".metadata.uid")?, uid, "below the partition nothing is touched");
    partition(0)?;
    cluster.rolled_out("statefulset/web")?;
    assert_eq!(pods(".spec.containers[0].image")?, "keelson.test/testapp:v2 keelson.test/testapp:v2");
    let revisions = field(cluster, "statefulset/web", ".status['currentRevision','updateRevision']")?;
    let (current, update) = revisions.split_once(' ').context("two revisions")?;
    assert_eq!(current, update);
    cluster.kubectl.run(&["rollout", "undo", "statefulset/web"])?;
    cluster.rolled_out("statefulset/web")?;
    assert_eq!(pods(".spec.containers[0].image")?, "keelson.test/testapp:v1 keelson.test/testapp:v1");
    assert_eq!(cluster.kubectl.run(&["get", "controllerrevisions", "-o", "name"])?.lines().count(), 2);
    Ok(())
}

fn disruption_budget(cluster: &TestCluster) -> Result<()> {
    cluster.rolled_out("deployment/guarded")?;
    let status = ".status['expectedPods','currentHealthy','desiredHealthy','disruptionsAllowed']";
    cluster.eventually(10, || {
        let shown = field(cluster, "pdb/guard", status)?;
        ensure!(shown == "2 2 2 0", "{shown}");
        Ok(())
    })?;
    let node = cluster.kubectl.run(&[
        "get",
        "pods",
        "-l",
        "app=guarded",
        "-o",
        "jsonpath={.items[0].spec.nodeName}",
    ])?;
    let drain = |timeout: &str| {
        let selector = "--pod-selector=app=guarded";
        cluster.kubectl.run(&["drain", &node, selector, "--timeout", timeout])
    };
    let refused = drain("2s").err().context("the budget forbids it")?;
    let refused = format!("{refused:#}");
    let words = "Cannot evict pod as it would violate the pod's disruption budget.";
    assert!(refused.contains(words), "{refused}");
    // One may be missing: they go one by one, each when the one before it has been replaced elsewhere.
    cluster.kubectl.run(&["patch", "pdb", "guard", "-p", r#"{"spec":{"minAvailable":1}}"#])?;
    drain("60s")?;
    cluster.kubectl.run(&["uncordon", &node])?;
    cluster.rolled_out("deployment/guarded")?;
    let nodes = cluster.kubectl.run(&[
        "get",
        "pods",
        "-l",
        "app=guarded",
        "-o",
        "jsonpath={.items[*].spec.nodeName}",
    ])?;
    assert!(!nodes.contains(&node), "{nodes} should not have {node}");
    cluster.eventually(10, || {
        let shown = field(cluster, "pdb/guard", status)?;
        ensure!(shown == "2 2 1 1", "{shown}");
        Ok(())
    })
}

/// A minute has begun since the test did, or begins soon.
fn cron_job(cluster: &TestCluster) -> Result<()> {
    let name = cluster.eventually(65, || {
        let ended = field(cluster, "cronjob/minutely", ".status.lastSuccessfulTime")?;
        ensure!(!ended.is_empty(), "no job has succeeded yet");
        let jobs = cluster.kubectl.run(&["get", "jobs", "-o", "name"])?;
        jobs.lines()
            .rfind(|name| name.starts_with("job.batch/minutely-"))
            .map(str::to_owned)
            .context("no job")
    })?;
    let scheduled =
        field(cluster, &name, ".metadata.annotations.batch\\.kubernetes\\.io/cronjob-scheduled-timestamp")?;
    assert!(scheduled.ends_with(":00+01:00") || scheduled.ends_with(":00+02:00"), "{scheduled}");
    let last = field(cluster, "cronjob/minutely", ".status.lastScheduleTime")?;
    assert!(last.ends_with(":00Z"), "{last}");
    // By hand, from the same template.
    cluster.kubectl.run(&["create", "job", "now", "--from=cronjob/minutely"])?;
    cluster.kubectl.run(&["wait", "--for=condition=Complete", "job/now", "--timeout=20s"]).map(drop)
}
