//! Two nodes whose pods' packets are always wrapped, with routed pods (machines of their own, with bridges: `vm_nodes.rs`).

use anyhow::{Result, ensure};
use keelson_tests::cmd;
use keelson_tests::testbed::fixture::TestCluster;

const MANIFEST: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: one}}
spec:
  nodeName: node-1
  containers:
  - {name: testapp, image: 'keelson.test/testapp:v1'}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: two}}
spec:
  nodeName: node-2
  containers:
  - {name: testapp, image: 'keelson.test/testapp:v1'}
---
apiVersion: v1
kind: Service
metadata: {name: one}
spec:
  selector: {app: one}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec:
  type: NodePort
  selector: {app: two}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
";
/// Addresses of the nodes.
const NODES: [&str; 2] = ["10.89.0.11", "10.89.0.12"];

fn on_host(cluster: &TestCluster, host: &str, words: &[&str]) -> Result<String> {
    cmd::text(cluster.host(host)?.command("client", words[0]).args(&words[1..]))
}

fn device(cluster: &TestCluster) -> Result<String> {
    on_host(cluster, "node-1", &["ip", "-o", "link", "show", "vxlan.keelson"])
}

#[test]
fn pods_and_services_over_vxlan() -> Result<()> {
    let args = ["--vxlan-mode=always", "--network-mode=routed"];
    let mut cluster = TestCluster::up_with("e2e-vxlan", 2, &["testapp-v1"], &args)?;
    cluster.kubectl.apply(MANIFEST)?;
    cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=60s"])?;
    reach(&cluster)?;
    // An agent that comes back finds the device, and leaves it as it is.
    let before = device(&cluster)?;
    ensure!(before.contains("mtu 1450"), "{before}");
    let routes = on_host(&cluster, "node-1", &["ip", "route"])?;
    ensure!(routes.contains(&format!("via {} dev vxlan.keelson", NODES[1])), "{routes}");
    cluster.kill_daemon("node-1")?;
    cluster.start_agent(1)?;
    reach(&cluster)?;
    let after = device(&cluster)?;
    ensure!(after == before, "{before} has become {after}");
    // A node that is no more takes its route along, and the last one the device.
    cluster.kill_daemon("node-2")?;
    cluster.kubectl.run(&["delete", "node", "node-2"])?;
    cluster.eventually(20, || {
        let left = on_host(&cluster, "node-1", &["sh", "-c", "ip route; ip link"])?;
        ensure!(!left.contains("vxlan"), "{left}");
        Ok(())
    })?;
    cluster.down()
}

fn reach(cluster: &TestCluster) -> Result<()> {
    for (from, to) in [("one", "two"), ("two", "one")] {
        let get = || cluster.sh(from, &format!("timeout 5 wget -q -O - http://{to}/"));
        let said = cluster.eventually(30, get)?;
        ensure!(said == format!("v1 {to}"), "{to} from {from}: {said}");
        ensure!(cluster.sh(from, "cat /sys/class/net/eth0/mtu")? == "1450");
    }
    let ip = cluster.kubectl.run(&["get", "service", "two", "-o", "jsonpath={.spec.clusterIP}"])?;
    // A process of the other node, and one outside of the cluster by the node that has no endpoint.
    for (host, address) in [("node-1", format!("{ip}:80")), ("master", format!("{}:30080", NODES[0]))] {
        let url = format!("http://{address}/");
        let get = || on_host(cluster, host, &["busybox", "timeout", "5", "wget", "-q", "-O", "-", &url]);
        let said = cluster.eventually(20, get)?;
        ensure!(said == "v1 two", "{url} from {host}: {said}");
    }
    Ok(())
}
