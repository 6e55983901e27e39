//! What pods may ask for on the thin path: volumes, environment, init containers, restarts, exit codes, security; and
//! what Services answer besides TCP.

use std::time::Duration;

use anyhow::{Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;

const MANIFEST: &str = include_str!("e2e_pods.yaml");

#[test]
fn pods_get_what_they_ask_for() -> Result<()> {
    let cluster = TestCluster::up("e2e-pods", 1, &["testapp-v1", "busybox"])?;
    rest(&cluster)?;
    cluster.kubectl.apply(MANIFEST)?;
    volumes_and_environment(&cluster)?;
    ends_and_restarts(&cluster)?;
    evictions(&cluster)?;
    late_objects(&cluster)?;
    services(&cluster)?;
    cluster.down()
}

fn field(cluster: &TestCluster, pod: &str, path: &str) -> Result<String> {
    cluster.kubectl.run(&["get", "pod", pod, "-o", &format!("jsonpath={{{path}}}")])
}

/// A pod that does not change costs the API server nothing.
fn rest(cluster: &TestCluster) -> Result<()> {
    let image = "--image=keelson.test/testapp:v1";
    cluster.kubectl.run(&["run", "still", image, "--image-pull-policy=Never"])?;
    cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod/still", "--timeout=60s"])?;
    std::thread::sleep(Duration::from_secs(1));
    let before = status_writes(cluster)?;
    std::thread::sleep(Duration::from_secs(3));
    let writes = status_writes(cluster)? - before;
    ensure!(before > 0 && writes == 0, "{writes} writes of its status in 3 s, {before} before");
    cluster.kubectl.run(&["delete", "pod", "still", "--now"])?;
    Ok(())
}

/// Requests so far that changed the status of a pod.
fn status_writes(cluster: &TestCluster) -> Result<u64> {
    let metrics = cluster.kubectl.run(&["get", "--raw", "/metrics"])?;
    let of_status = |line: &&str| {
        line.starts_with("apiserver_request_total")
            && line.contains(r#"verb="PATCH""#)
            && line.contains(r#"resource="pods",subresource="status""#)
    };
    let counts =
        metrics.lines().filter(of_status).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(counts.sum())
}

fn volumes_and_environment(cluster: &TestCluster) -> Result<()> {
    cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod/full", "--timeout=60s"])?;
    let sh = |script: &str| cluster.sh("full", script);
    assert_eq!(sh("cat /shared/order")?, "first\nsecond", "init containers ran in order");
    assert_eq!(sh("cat /config/color /secret/token")?, "blues3cret");
    assert_eq!(sh("cat /projected/color /projected/name")?, "bluefull");
    // 0400, and the group of fsGroup may read.
    assert_eq!(sh("stat -c %a -L /secret/token")?, "440");
    assert_eq!(sh("echo $COLOR $TOKEN $POD_NAME $GREETING $CPU")?, "blue s3cret full hello-full 1");
    let ip = field(cluster, "full", ".status.podIP")?;
    assert_eq!(sh("echo $POD_IP")?, ip);
    assert_eq!(sh("id -u; id -g; id -G")?, "1234\n5678\n5678 4321");
    assert_eq!(sh("stat -c %g /shared")?, "4321", "fsGroup owns the volume");
    assert!(sh("grep ' / ' /proc/self/mounts")?.contains(" ro,"), "the root is read-only");
    assert_eq!(sh("grep -c . /host/hostname")?, "1");
    assert!(sh("grep NoNewPrivs /proc/self/status")?.ends_with('1'));
    assert!(sh("cat /etc/hosts")?.contains("10.1.2.3\textra.example"));
    assert_eq!(sh("hostname")?, "full");
    assert_eq!(sh("test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo there")?, "there");
    // A changed ConfigMap reaches the running pod.
    cluster.kubectl.run(&["patch", "configmap", "settings", "-p", r#"{"data":{"color":"red"}}"#])?;
    cluster.eventually(20, || {
        let now = sh("cat /config/color")?;
        ensure!(now == "red", "still {now}");
        Ok(())
    })
}

fn ends_and_restarts(cluster: &TestCluster) -> Result<()> {
    cluster.eventually(30, || {
        let seven = field(cluster, "seven", ".status.containerStatuses[0].state.terminated.exitCode")?;
        ensure!(seven == "7", "exit code {seven:?}");
        ensure!(field(cluster, "seven", ".status.phase")? == "Failed");
        ensure!(field(cluster, "seven", ".status.containerStatuses[0].state.terminated.message")? == "why");
        ensure!(field(cluster, "well", ".status.phase")? == "Succeeded");
        let reason = field(cluster, "missing-command", ".status.containerStatuses[0].state.waiting.reason")?;
        ensure!(reason == "CrashLoopBackOff" || reason == "RunContainerError", "reason {reason:?}");
        Ok(())
    })?;
    cluster.eventually(60, || {
        let restarts: u32 = field(cluster, "crash", ".status.containerStatuses[0].restartCount")?.parse()?;
        ensure!(restarts >= 2, "{restarts} restarts");
        let reason = field(cluster, "crash", ".status.containerStatuses[0].state.waiting.reason")?;
        ensure!(reason == "CrashLoopBackOff", "reason {reason:?}");
        ensure!(
            field(cluster, "crash", ".status.containerStatuses[0].lastState.terminated.exitCode")? == "3"
        );
        let unwell: u32 = field(cluster, "unwell", ".status.containerStatuses[0].restartCount")?.parse()?;
        ensure!(unwell >= 1, "the liveness probe restarts it");
        Ok(())
    })
}

/// Pods that write more than they may.
fn evictions(cluster: &TestCluster) -> Result<()> {
    for (pod, want) in [
        ("hog", r#"Usage of EmptyDir volume "data" exceeds the limit "1Mi"."#),
        ("writer", "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi."),
    ] {
        cluster.eventually(40, || {
            let status = field(cluster, pod, ".status.phase} {.status.reason} {.status.message")?;
            ensure!(status.trim() == format!("Failed Evicted {want}"), "{pod}: {status}");
            let code = field(cluster, pod, ".status.containerStatuses[0].state.terminated.exitCode")?;
            ensure!(code == "137" || code == "143", "{pod} ended with {code:?}");
            let events = format!("involvedObject.name={pod},reason=Evicted,type=Warning");
            let events = cluster.kubectl.run(&["get", "events", "--field-selector", &events])?;
            ensure!(events.contains(want), "{events}");
            Ok(())
        })?;
    }
    ensure!(field(cluster, "modest", ".status.phase")? == "Running");
    Ok(())
}

fn late_objects(cluster: &TestCluster) -> Result<()> {
    let waiting = "involvedObject.name=late,reason=FailedMount";
    cluster.eventually(30, || {
        let events = cluster.kubectl.run(&["get", "events", "--field-selector", waiting])?;
        ensure!(events.contains(r#"configmap "not-yet" not found"#), "{events}");
        Ok(())
    })?;
    cluster.kubectl.run(&["create", "configmap", "not-yet", "--from-literal=here=now"])?;
    cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod/late", "--timeout=30s"])?;
    assert_eq!(cluster.sh("late", "cat /late/here")?, "now");
    Ok(())
}

fn services(cluster: &TestCluster) -> Result<()> {
    cluster.rolled_out("deployment/echo")?;
    let answer = cluster.eventually(20, || cluster.sh("client", "/testapp udp-client udp-echo:53"))?;
    assert!(answer.starts_with("v1 echo-"), "{answer}");
    // Headless: the endpoints' own addresses.
    let ips =
        cluster.kubectl.run(&["get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[*].status.podIP}"])?;
    cluster.eventually(20, || {
        let found = cluster.sh("client", "nslookup -type=a headless.default.svc.cluster.local")?;
        ensure!(ips.split(' ').all(|ip| found.contains(ip)), "{found} has not all of {ips}");
        Ok(())
    })?;
    // A Service without endpoints refuses at once, and so does a port that a Service does not have.
    for target in ["empty:80", "udp-echo:81"] {
        let start = std::time::Instant::now();
        let refused =
            cluster.sh("client", &format!("/testapp client {target} --seconds 1 2>&1 | head -1"))?;
        assert!(refused.contains("refused"), "{target}: {refused}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    Ok(())
}
