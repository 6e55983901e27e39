//! What is watched while the agent is dead.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;
use keelson_tests::{cmd, images};

/// Where the containers listen that end with code 7 once somebody knocks.
const DOOR: &str = "9999";

/// What a client of the sample is told: long enough for every test.
const LONG: [&str; 2] = ["--seconds", "600"];

/// Addresses of the pods that are to end.
pub struct Watched {
    /// The one that does not come back.
    pub leaver: String,
    /// The one that is started again.
    pub returner: String,
}

impl Watched {
    /// Starts clients of the sample, a container that logs 1,000 lines a second, and two that end when they are told.
    pub fn start(cluster: &TestCluster) -> Result<Self> {
        cluster.rolled_out("deployment/hello")?;
        sample::ask(cluster, Duration::from_secs(20))?;
        let ip = cluster.kubectl.run(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
        let (address, name) = (format!("{ip}:80"), "hello.default.svc.cluster.local");
        let by_name = format!("{name}:80");
        for (pod, args) in [
            ("by-address", &["client", &address][..]),
            ("by-name", &["client", &by_name]),
            ("holder", &["hold", &address]),
            ("resolver", &["resolve", name]),
            ("counter", &["count", "--per-second", "1000"]),
        ] {
            run(cluster, pod, "Never", &[&["--"], args, &LONG].concat())?;
        }
        let script = format!("nc -l -p {DOOR} > /dev/null; exit 7");
        for (pod, restart) in [("leaver", "Never"), ("returner", "Always")] {
            run(cluster, pod, restart, &["--command", "--", "sh", "-c", &script])?;
        }
        cluster.kubectl.run(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
        // Until each has something to lose.
        std::thread::sleep(Duration::from_secs(1));
        let mut pods = pods(cluster)?;
        let mut ip = |pod: &str| pods.remove(pod).map(|pod| pod.ip).with_context(|| pod.to_owned());
        Ok(Self { leaver: ip("leaver")?, returner: ip("returner")? })
    }
}

fn run(cluster: &TestCluster, pod: &str, restart: &str, more: &[&str]) -> Result<()> {
    let (image, restart) = (images::reference("testapp-v1"), format!("--restart={restart}"));
    cluster.kubectl.run(&[&["run", pod, "--image", &image, &restart], more].concat()).map(drop)
}

/// A pod of one container, as the API shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    pub uid: String,
    pub ip: String,
    pub phase: String,
    pub container: String,
    pub started: Option<String>,
    pub running: bool,
    pub restarts: u64,
    /// Of the container that is there.
    pub code: Option<i64>,
    pub ended: Option<String>,
    /// Of the one before it.
    pub last_code: Option<i64>,
}

/// All pods of the default namespace.
pub fn pods(cluster: &TestCluster) -> Result<BTreeMap<String, Shown>> {
    let list = cluster.kubectl.json(&["get", "pods"])?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let shown = list["items"].as_array().into_iter().flatten().map(|pod| {
        let status = &pod["status"]["containerStatuses"][0];
        let (state, last) = (&status["state"], &status["lastState"]["terminated"]);
        let shown = Shown {
            uid: text(&pod["metadata"]["uid"]),
            ip: text(&pod["status"]["podIP"]),
            phase: text(&pod["status"]["phase"]),
            container: text(&status["containerID"]),
            started: state["running"]["startedAt"].as_str().map(str::to_owned),
            running: state["running"].is_object(),
            restarts: status["restartCount"].as_u64().unwrap_or_default(),
            code: state["terminated"]["exitCode"].as_i64(),
            ended: state["terminated"]["finishedAt"].as_str().map(str::to_owned),
            last_code: last["exitCode"].as_i64(),
        };
        (text(&pod["metadata"]["name"]), shown)
    });
    Ok(shown.collect())
}

/// Has a listening container end: from the node, since no agent is there to ask.
pub fn knock(cluster: &TestCluster, ip: &str) -> Result<()> {
    let script = format!("echo | timeout 3 nc {ip} {DOOR}");
    let mut command = cluster.node(1)?.command("client", "busybox");
    cmd::run(command.args(["sh", "-c", &script])).map(drop)
}

/// Asks the node's DNS from the node.
pub fn ask_dns(cluster: &TestCluster) -> Result<()> {
    let mut command = cluster.node(1)?.command("client", "busybox");
    let lookup =
        ["timeout", "2", "busybox", "nslookup", "-type=a", "hello.default.svc.cluster.local", "10.96.0.10"];
    cmd::run(command.args(lookup)).context("ask for a name while the agent is dead").map(drop)
}

/// Now, as the API writes it.
pub fn now() -> Result<String> {
    let text = cmd::text(std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]))?;
    Ok(text.trim().to_owned())
}

/// The process that answers DNS.
pub struct DnsWorker {
    pub pid: i32,
}

/// Finds it by its cgroup, the agent's.
pub fn dns_worker(cluster: &TestCluster) -> Result<DnsWorker> {
    let cgroup = cluster.node(1)?.cgroup.join("system/agent/cgroup.procs");
    let pids = fs::read_to_string(&cgroup)?;
    let mut found = pids.lines().filter_map(|pid| pid.parse().ok()).filter(|pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "keelson-dns")
    });
    let pid = found.next().context("no DNS worker runs")?;
    ensure!(found.next().is_none(), "more than one DNS worker runs");
    Ok(DnsWorker { pid })
}

impl DnsWorker {
    /// That it could do no harm.
    pub fn check_unprivileged(&self) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let none = "0000000000000000";
        for (field, wanted) in [
            ("Uid", "65534\t65534\t65534\t65534"),
            ("Gid", "65534\t65534\t65534\t65534"),
            ("Groups", ""),
            ("CapInh", none),
            ("CapPrm", none),
            ("CapEff", none),
            ("CapBnd", none),
            ("CapAmb", none),
            ("NoNewPrivs", "1"),
        ] {
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":"));
            ensure!(line.map(str::trim) == Some(wanted), "the DNS worker has {field} {line:?}");
        }
        Ok(())
    }
}

/// Ends clients and gives what each printed last; with what went wrong, if anything did.
pub fn finish_all(cluster: &TestCluster, pods: &[&str]) -> Result<BTreeMap<String, String>> {
    for pod in pods {
        cluster.terminate(pod);
    }
    pods.iter()
        .map(|pod| {
            let last = cluster.eventually(20, || {
                let log = cluster.kubectl.run(&["logs", pod, "--timestamps"])?;
                let errors: Vec<&str> = log.lines().filter(|line| line.contains(" error ")).collect();
                let last = log.lines().last().and_then(|line| line.split_once(' '));
                let (_, last) = last.filter(|(_, line)| line.starts_with("done")).context("still running")?;
                if !errors.is_empty() {
                    eprintln!("{pod}:\n{}", errors.join("\n"));
                }
                Ok(last.to_owned())
            })?;
            Ok(((*pod).to_owned(), last))
        })
        .collect()
}
