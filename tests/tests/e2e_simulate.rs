//! Simulated nodes beside a real one: what the control plane sees of them is what it sees of any node.

use std::time::Duration;

use anyhow::{Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;

const MANIFEST: &str = include_str!("e2e_simulate.yaml");
const NODES: usize = 40;

#[test]
fn nodes_without_a_machine() -> Result<()> {
    let mut cluster = TestCluster::up("e2e-simulate", 1, &[])?;
    cluster.start_simulation(NODES, &["--zones=4", "--taints=only=simulated:NoSchedule"])?;
    cluster.wait_ready(NODES + 1, Duration::from_secs(60))?;
    let zones =
        cluster.kubectl.run(&["get", "nodes", "-l", "topology.kubernetes.io/zone=zone-3", "-o", "name"])?;
    assert_eq!(zones.lines().count(), NODES / 4);

    cluster.kubectl.apply(MANIFEST)?;
    cluster.rolled_out("deployment/many")?;
    addresses_are_of_the_nodes(&cluster)?;
    ends(&cluster)?;

    // A node whose process is gone is not Ready in the end; its successor is, with all its pods started anew.
    let before = cluster.kubectl.run(&["get", "pods", "-l", "app=many", "-o", "name"])?;
    cluster.kill_daemon("simulate")?;
    cluster.start_simulation(NODES, &["--zones=4"])?;
    cluster.eventually(60, || {
        let restarted = cluster.kubectl.run(&[
            "get", "pods", "-l", "app=many",
            "-o", "jsonpath={range .items[*]}{.status.containerStatuses[0].restartCount}{.status.containerStatuses[0].ready}{\" \"}{end}",
        ])?;
        ensure!(restarted.split_whitespace().all(|pod| pod == "1true"), "{restarted}");
        Ok(())
    })?;
    assert_eq!(cluster.kubectl.run(&["get", "pods", "-l", "app=many", "-o", "name"])?, before);

    cluster.kubectl.run(&["delete", "deployment/many", "job/ends", "job/fails", "--timeout=60s"])?;
    cluster.eventually(60, || {
        let left = cluster.kubectl.run(&["get", "pods", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    cluster.down()
}

/// Each pod has an address of its own, within the range of its node.
fn addresses_are_of_the_nodes(cluster: &TestCluster) -> Result<()> {
    let nodes = cluster.kubectl.json(&["get", "nodes"])?;
    let pods = cluster.kubectl.json(&["get", "pods", "-l", "app=many"])?;
    let mut seen = std::collections::HashSet::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let address = pod["status"]["podIP"].as_str().unwrap_or_default();
        let of_pod = |node: &&serde_json::Value| node["metadata"]["name"] == pod["spec"]["nodeName"];
        let node = nodes["items"].as_array().into_iter().flatten().find(of_pod);
        let range = node.and_then(|node| node["spec"]["podCIDR"].as_str()).unwrap_or_default();
        let inside = range.rsplit_once('.').is_some_and(|(net, _)| address.starts_with(&format!("{net}.")));
        ensure!(inside && seen.insert(address.to_owned()), "{address} in {range}");
    }
    ensure!(seen.len() == 400, "{} pods", seen.len());
    Ok(())
}

/// What the annotations say happens: ends with 0 after a second, and with another code.
fn ends(cluster: &TestCluster) -> Result<()> {
    cluster.kubectl.run(&["wait", "--for=condition=Complete", "job/ends", "--timeout=60s"])?;
    cluster.kubectl.run(&["wait", "--for=condition=Failed", "job/fails", "--timeout=60s"])?;
    let path = "jsonpath={.items[0].status.containerStatuses[0].state.terminated['exitCode','reason']}";
    let failed = cluster.kubectl.run(&["get", "pods", "-l", "job-name=fails", "-o", path])?;
    assert_eq!(failed, "7 Error");
    Ok(())
}
