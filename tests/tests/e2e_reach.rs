//! Ways to pods: the proxy subresources of the API server, which has no route to the pod network, and node ports.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use keelson_tests::cmd;
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;

/// A node port for the sample, and two for a pod of node-1 that only its own node may answer for.
const NODE_PORTS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: outer}
spec:
  type: NodePort
  selector: {app: hello}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: only}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
---
apiVersion: v1
kind: Pod
metadata: {name: only, labels: {app: only}}
spec:
  nodeName: node-1
  containers:
  - name: testapp
    image: keelson.test/testapp:v1
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node-1
  containers:
  - {name: testapp, image: 'keelson.test/testapp:v1'}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  nodeName: node-2
  hostNetwork: true
  containers:
  - {name: testapp, image: 'keelson.test/testapp:v1', args: [serve, --port, '8099']}
";

const NODES: [&str; 2] = ["10.89.0.11", "10.89.0.12"];

#[test]
fn pods_can_be_reached_through_the_api_and_node_ports() -> Result<()> {
    let cluster = TestCluster::up("e2e-reach", 2, &["testapp-v1"])?;
    cluster.kubectl.apply(sample::MANIFEST)?;
    cluster.kubectl.apply(NODE_PORTS)?;
    cluster.rolled_out("deployment/hello")?;
    cluster.kubectl.run(&[
        "wait",
        "--for=condition=Ready",
        "pod/only",
        "pod/client",
        "pod/host",
        "--timeout=60s",
    ])?;
    proxying(&cluster)?;
    node_ports(&cluster)?;
    local_policy(&cluster)?;
    cluster.down()
}

fn proxying(cluster: &TestCluster) -> Result<()> {
    let raw =
        |path: &str| cluster.kubectl.run(&["get", "--raw", &format!("/api/v1/namespaces/default/{path}")]);
    for service in ["hello:80", "hello:http", "http:hello:http"] {
        let answer = raw(&format!("services/{service}/proxy/"))?;
        ensure!(answer.starts_with("v1 hello-"), "{service}: {answer}");
    }
    let names = "jsonpath={.items[*].metadata.name}";
    let pods = cluster.kubectl.run(&["get", "pods", "-l", "app=hello", "-o", names])?;
    for pod in pods.split(' ') {
        let answer = raw(&format!("pods/{pod}:8080/proxy/"))?;
        ensure!(answer.trim() == format!("v1 {pod}"), "{pod}: {answer}");
    }
    // Its address is the node's, where the agent dials nothing.
    let answer = cluster.eventually(20, || raw("pods/host:8099/proxy/"))?;
    ensure!(answer.starts_with("v1 "), "{answer}");
    let error = |path: &str| raw(path).err().map(|error| format!("{error:#}")).unwrap_or_default();
    let none = error("services/hello:81/proxy/");
    ensure!(none.contains(r#"no service port 81 found for service "hello""#), "{none}");
    let closed = error("pods/client:9/proxy/");
    ensure!(closed.contains("error trying to reach service: ") && closed.contains("refused"), "{closed}");

    let mut proxy = cluster.kubectl.command(&["proxy", "--port=0"]).stdout(Stdio::piped()).spawn()?;
    let mut first = String::new();
    BufReader::new(proxy.stdout.as_mut().context("stdout is piped")?).read_line(&mut first)?;
    let port: u16 = first.trim().rsplit(':').next().context("a port")?.parse()?;
    let path = "/api/v1/namespaces/default/pods/http:client:8080/proxy/";
    let answer = get(std::process::Command::new("bash"), &format!("127.0.0.1/{port}"), path);
    proxy.kill()?;
    proxy.wait()?;
    let answer = answer?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("v1 client"), "{answer}");
    Ok(())
}

/// The answer to a GET, by bash's own means: hosts have no other client.
fn get(mut bash: std::process::Command, address: &str, path: &str) -> Result<String> {
    let script = format!(
        r#"exec 3<>/dev/tcp/{address} && printf 'GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3 && {{ timeout 1 cat <&3 || true; }}"#
    );
    cmd::text(bash.args(["-c", &script]))
}

/// What a process of a node itself gets.
fn from_node(cluster: &TestCluster, node: usize, address: &str) -> Result<String> {
    get(cluster.node(node)?.command("client", "bash"), address, "/")
}

fn from_outside(cluster: &TestCluster, address: &str) -> Result<String> {
    get(cluster.host("master")?.command("client", "bash"), address, "/")
}

/// What the pod `client` on node-1 gets.
fn from_pod(cluster: &TestCluster, address: &str) -> Result<String> {
    cluster.sh("client", &format!("timeout 5 wget -q -O - http://{address}/"))
}

fn node_ports(cluster: &TestCluster) -> Result<()> {
    for address in NODES {
        let answer = cluster.eventually(20, || from_pod(cluster, &format!("{address}:30080")))?;
        ensure!(answer.starts_with("v1 hello-"), "{address}: {answer}");
        for node in [1, 2] {
            let answer = from_node(cluster, node, &format!("{address}/30080"))?;
            ensure!(answer.contains("v1 hello-"), "{address} from node {node}: {answer}");
        }
    }
    // The master's host is no node: a client from outside.
    for address in NODES {
        ensure!(from_outside(cluster, &format!("{address}/30080"))?.contains("v1 hello-"));
    }
    // The node's loopback has them for the node, the pod's for nobody.
    ensure!(from_node(cluster, 1, "127.0.0.1/30080")?.contains("v1 hello-"));
    ensure!(from_pod(cluster, "127.0.0.1:30080").is_err());
    // Other ports of a node are its own.
    let mut bash = cluster.node(1)?.command("client", "bash");
    cmd::run(bash.args(["-c", &format!("exec 3<>/dev/tcp/{}/10250", NODES[1])])).map(drop)
}

/// `externalTrafficPolicy: Local`, with the only endpoint on node-1.
fn local_policy(cluster: &TestCluster) -> Result<()> {
    let own = format!("{}:30081", NODES[0]);
    let answer = cluster.eventually(20, || from_pod(cluster, &own))?;
    ensure!(answer.starts_with("v1 only"), "{answer}");
    ensure!(from_node(cluster, 2, &format!("{}/30081", NODES[0]))?.contains("v1 only"));
    // Another node has none of its own and says so; asked by its own processes, a node takes any.
    ensure!(from_pod(cluster, &format!("{}:30081", NODES[1])).is_err());
    ensure!(from_node(cluster, 2, &format!("{}/30081", NODES[1]))?.contains("v1 only"));

    ensure!(from_outside(cluster, &format!("{}/30081", NODES[0]))?.contains("v1 only"));
    ensure!(from_outside(cluster, &format!("{}/30081", NODES[1])).is_err());

    let health_port = || {
        let path = "jsonpath={.spec.healthCheckNodePort}";
        cluster.kubectl.run(&["get", "service", "local", "-o", path])
    };
    let port = health_port()?;
    for (node, want) in [(NODES[0], "HTTP/1.1 200 OK"), (NODES[1], "HTTP/1.1 503 ")] {
        let answer = cluster.eventually(20, || from_node(cluster, 1, &format!("{node}/{port}")))?;
        ensure!(answer.starts_with(want) && answer.contains(r#""name": "local""#), "{node}: {answer}");
    }

    // With the policy the port of its health check goes, and every node answers.
    let policy = r#"{"spec":{"externalTrafficPolicy":"Cluster"}}"#;
    cluster.kubectl.run(&["patch", "service", "local", "-p", policy])?;
    let left = health_port()?;
    ensure!(left.is_empty(), "{left}");
    let answer = cluster.eventually(20, || from_outside(cluster, &format!("{}/30081", NODES[1])))?;
    ensure!(answer.contains("v1 only"), "{answer}");
    cluster.eventually(20, || {
        ensure!(from_node(cluster, 1, &format!("{}/{port}", NODES[0])).is_err(), "{port} is still open");
        Ok(())
    })
}
