//! Traffic that must not be hurt while a Deployment is scaled and rolled.

use std::time::Duration;

use anyhow::{Context, Result};
use keelson_tests::images;
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;

fn start_client(cluster: &TestCluster, name: &str, args: &[&str]) -> Result<()> {
    let image = images::reference("testapp-v1");
    let mut all = vec!["run", name, "--image", &image, "--restart=Never", "--"];
    all.extend(args);
    cluster.kubectl.run(&all)?;
    cluster.kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]).map(drop)
}

/// The line that a client prints when it is through, once it is there.
fn summary(cluster: &TestCluster, pod: &str, start: &str) -> Result<String> {
    let log = cluster.kubectl.run(&["logs", pod, "--tail=3"])?;
    let line = log.lines().find(|line| line.starts_with(start));
    line.map(str::to_owned).with_context(|| format!("still running: {log}"))
}

/// Ends a client pod's process and gives what it printed last.
fn finish_client(cluster: &TestCluster, pod: &str) -> Result<String> {
    // The client is PID 1 of its container and ends by itself on SIGTERM.
    cluster.terminate(pod);
    cluster.eventually(20, || summary(cluster, pod, "done"))
}

/// What went wrong for a client, a second of counts before each.
fn errors(cluster: &TestCluster, pod: &str) -> Result<String> {
    let log = cluster.kubectl.run(&["logs", pod, "--timestamps"])?;
    Ok(log.lines().filter(|line| line.contains("error")).collect::<Vec<_>>().join("\n"))
}

#[test]
fn no_request_fails_while_scaled_and_rolled() -> Result<()> {
    let cluster = TestCluster::up("e2e-rollout", 1, &["testapp-v1", "testapp-v2"])?;
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    cluster.kubectl.apply(sample::MANIFEST)?;
    cluster.rolled_out("deployment/hello")?;
    sample::ask(&cluster, Duration::from_secs(20))?;
    start_client(&cluster, "client", &["client", "hello:80", "--seconds", "600"])?;
    for replicas in ["30", "3"] {
        k(&["scale", "deployment/hello", &format!("--replicas={replicas}")])?;
        cluster.rolled_out("deployment/hello")?;
    }
    k(&["set", "image", "deployment/hello", &format!("hello={}", images::reference("testapp-v2"))])?;
    cluster.rolled_out("deployment/hello")?;
    std::thread::sleep(Duration::from_secs(4));
    assert!(cluster.sh("client", "wget -q -O - http://hello/")?.starts_with("v2 "));
    let last = finish_client(&cluster, "client")?;
    assert!(last.ends_with("failed=0"), "{last}\n{}", errors(&cluster, "client")?);
    cluster.down()
}
