//! What `cargo xtask up` and `down` promise: a cluster of one node answers through a Service; one of three nodes has
//! pods on all, and traffic between them; nothing is left behind.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;
use keelson_tests::testbed::snapshot::Snapshot;

#[test]
fn one_node_answers_and_goes_without_a_trace() -> Result<()> {
    let before = Snapshot::take()?;
    let cluster = TestCluster::up("e2e-up", 1, &["testapp-v1"])?;
    cluster.kubectl.apply(sample::MANIFEST)?;
    sample::wait_available(&cluster, Duration::from_secs(60))?;
    let (by_ip, by_name) = sample::ask(&cluster, Duration::from_secs(20))?;
    assert!(by_ip.starts_with("v1 hello-"), "{by_ip}");
    assert!(by_name.starts_with("v1 hello-"), "{by_name}");
    cluster.down()?;
    assert_eq!(Snapshot::take()?.added_since(&before), Vec::<String>::new());
    Ok(())
}

#[test]
fn three_nodes_share_the_work() -> Result<()> {
    three_nodes("bridge")
}

#[test]
fn three_nodes_share_the_work_without_a_bridge() -> Result<()> {
    three_nodes("routed")
}

fn three_nodes(mode: &str) -> Result<()> {
    let cluster = TestCluster::up_with("e2e-nodes", 3, &["testapp-v1"], &["--network-mode", mode])?;
    let kubectl = &cluster.kubectl;
    kubectl.apply(sample::MANIFEST)?;
    kubectl.run(&["scale", "deployment/hello", "--replicas=6"])?;
    cluster.rolled_out("deployment/hello")?;
    let pods = kubectl.json(&["get", "pods", "-l", "app=hello"])?;
    let pods = pods["items"].as_array().context("a list")?;
    let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    assert_eq!(nodes.len(), 3, "pods on all three nodes: {nodes:?}");

    // Each pod reaches each other pod by address, whatever node it is on.
    let name = |pod: &serde_json::Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    for from in pods {
        let urls: Vec<String> = pods
            .iter()
            .filter_map(|to| {
                Some(format!("timeout 5 wget -q -O - http://{}:8080/", to["status"]["podIP"].as_str()?))
            })
            .collect();
        let answers = cluster.sh(&name(from), &urls.join(" && "))?;
        let seen: BTreeSet<&str> = answers.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        let expected: BTreeSet<String> = pods.iter().map(name).collect();
        assert_eq!(seen, expected.iter().map(String::as_str).collect(), "from {}", name(from));
    }

    // A client on one node is balanced over the endpoints of all.
    let many = "for i in $(seq 60); do timeout 5 wget -q -O - http://hello/; done";
    let answers = cluster.sh(&name(&pods[0]), many)?;
    let seen: BTreeSet<&str> = answers.lines().collect();
    ensure!(seen.len() == 6, "60 requests reach all 6 endpoints: {seen:?}");

    // Processes of the node itself reach Services too.
    let ip = kubectl.run(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
    let node = cluster.node(2)?;
    let answer = keelson_tests::cmd::text(node.command("client", "busybox").args([
        "timeout",
        "5",
        "busybox",
        "wget",
        "-q",
        "-O",
        "-",
        &format!("http://{ip}/"),
    ]))?;
    assert!(answer.starts_with("v1 "), "{answer}");
    cluster.down()
}
