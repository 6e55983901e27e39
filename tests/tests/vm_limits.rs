//! Limits, in a guest with the whole of cgroup v2: memory, CPU, processes, the tree of service classes, OOM scores.
//!
//! `limits` boots the guest; the `guest_*` tests run in there, on one cluster of one node.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::vm::Kernel;
use keelson_tests::vm::programs::GuestTests;

const MANIFEST: &str = include_str!("vm_limits.yaml");
/// `--pod-max-pids` of the node.
const MAX_PIDS: u64 = 40;

#[test]
fn limits() -> Result<()> {
    GuestTests {
        prefix: "guest_",
        kernel: Kernel::V6_12,
        memory_mib: 2048,
        images: &["busybox"],
        limit: Duration::from_secs(480),
    }
    .run()
}

/// The cluster that all tests in the guest share; it ends with the guest.
fn cluster() -> MutexGuard<'static, TestCluster> {
    static CLUSTER: OnceLock<Mutex<TestCluster>> = OnceLock::new();
    let made = CLUSTER.get_or_init(|| {
        let pids = format!("--pod-max-pids={MAX_PIDS}");
        let cluster = TestCluster::up_with("limits", 1, &["busybox"], &[&pids]).unwrap();
        cluster.kubectl.apply(MANIFEST).unwrap();
        Mutex::new(cluster)
    });
    made.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Top of the pods' cgroups, as the guest sees it.
fn kubepods(cluster: &TestCluster) -> PathBuf {
    cluster.node(1).unwrap().cgroup.join("kubepods")
}

/// A pod's cgroup and that of its container number `index`.
fn cgroups(cluster: &TestCluster, class: &str, pod: &str, container: &str) -> Result<(PathBuf, PathBuf)> {
    let json = cluster.eventually(60, || {
        let json = cluster.kubectl.json(&["get", "pod", pod])?;
        ensure!(json["status"]["phase"] == "Running", "{pod} is {}", json["status"]);
        Ok(json)
    })?;
    let uid = json["metadata"]["uid"].as_str().context("no uid")?;
    let id = json["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|status| status["name"] == container)
        .and_then(|status| status["containerID"].as_str())
        .and_then(|id| id.split_once("://"))
        .with_context(|| format!("no container {container}"))?
        .1
        .to_owned();
    let pod = kubepods(cluster).join(class).join(format!("pod{uid}"));
    let found = find(&pod, &id).with_context(|| format!("no cgroup of {id} below {}", pod.display()))?;
    Ok((pod, found))
}

/// The folder below `dir` whose name has `part`.
fn find(dir: &Path, part: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name().to_string_lossy().contains(part) {
                return Some(path);
            }
            if let Some(found) = find(&path, part) {
                return Some(found);
            }
        }
    }
    None
}

fn read(cgroup: &Path, file: &str) -> String {
    let path = cgroup.join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

fn keyed(cgroup: &Path, file: &str, key: &str) -> u64 {
    read(cgroup, file)
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or_else(|| panic!("no {key} in {file}"))
}

/// The first process of a container.
fn process(cgroup: &Path) -> u32 {
    read(cgroup, "cgroup.procs").lines().next().unwrap().parse().unwrap()
}

fn oom_score_adj(cgroup: &Path) -> i32 {
    fs::read_to_string(format!("/proc/{}/oom_score_adj", process(cgroup))).unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "runs in a guest"]
fn guest_memory_limit_kills_the_container() -> Result<()> {
    let cluster = cluster();
    cluster.eventually(60, || {
        let state = cluster.kubectl.json(&["get", "pod", "eater"])?["status"]["containerStatuses"].take();
        let states: Vec<_> = state.as_array().into_iter().flatten().collect();
        let of = |name: &str| states.iter().find(|status| status["name"] == name).map(|s| &s["state"]);
        let ended = &of("eater").context("no status")?["terminated"];
        ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{state:#}");
        ensure!(of("bystander").context("no status")?["running"].is_object(), "{state:#}");
        Ok(())
    })?;
    let log = cluster.kubectl.run(&["logs", "eater", "-c", "eater"])?;
    assert_eq!(log, "first\nthe last line");
    Ok(())
}

#[test]
#[ignore = "runs in a guest"]
fn guest_cpu_limit_throttles() -> Result<()> {
    let cluster = cluster();
    let (pod, container) = cgroups(&cluster, "burstable", "spinner", "spinner")?;
    assert_eq!(read(&container, "cpu.max"), "20000 100000");
    assert_eq!(read(&pod, "cpu.max"), "20000 100000");
    let (start, used, throttled) = (
        Instant::now(),
        keyed(&container, "cpu.stat", "usage_usec"),
        keyed(&container, "cpu.stat", "nr_throttled"),
    );
    std::thread::sleep(Duration::from_secs(5));
    let used = keyed(&container, "cpu.stat", "usage_usec") - used;
    let share = used as f64 / start.elapsed().as_micros() as f64;
    assert!((0.18..0.22).contains(&share), "a container limited to 200m used {share:.3} CPUs");
    assert!(keyed(&container, "cpu.stat", "nr_throttled") > throttled + 30);
    Ok(())
}

#[test]
#[ignore = "runs in a guest"]
fn guest_pids_limit_stops_a_fork_bomb() -> Result<()> {
    let cluster = cluster();
    let (pod, _) = cgroups(&cluster, "besteffort", "bomb", "bomb")?;
    assert_eq!(read(&pod, "pids.max"), MAX_PIDS.to_string());
    cluster.eventually(60, || {
        ensure!(keyed(&pod, "pids.events", "max") > 0, "the bomb has not met its limit");
        Ok(())
    })?;
    assert!(read(&pod, "pids.current").parse::<u64>()? <= MAX_PIDS);
    // The node and other pods go on.
    assert_eq!(cluster.sh("guaranteed", "echo alive")?, "alive");
    cluster.kubectl.run(&["delete", "pod", "bomb", "--timeout=30s"])?;
    cluster.eventually(30, || {
        ensure!(!pod.exists(), "{} is still there", pod.display());
        Ok(())
    })
}

#[test]
#[ignore = "runs in a guest"]
fn guest_tree_of_service_classes() -> Result<()> {
    let cluster = cluster();
    let top = kubepods(&cluster);
    let node = cluster.kubectl.json(&["get", "node", "node-1"])?;
    let kib: u64 = node["status"]["capacity"]["memory"].as_str().unwrap().trim_end_matches("Ki").parse()?;
    assert_eq!(read(&top, "memory.max"), (kib * 1024).to_string(), "pods can't take more than the node has");
    // 2 CPUs are 2048 shares; besteffort has the least.
    assert_eq!(read(&top, "cpu.weight"), "79");
    assert_eq!(read(&top.join("besteffort"), "cpu.weight"), "1");

    let (pod, main) = cgroups(&cluster, "", "guaranteed", "main")?;
    assert_eq!(read(&pod, "cpu.max"), "15000 100000");
    assert_eq!(read(&pod, "memory.max"), (30 << 20).to_string());
    assert_eq!(read(&main, "memory.max"), (20 << 20).to_string());
    assert_eq!(read(&main, "cpu.max"), "10000 100000");
    assert_eq!(read(&main, "memory.min"), "0", "MemoryQoS is off");
    assert_eq!(oom_score_adj(&main), -997);

    let (pod, main) = cgroups(&cluster, "burstable", "burstable", "main")?;
    assert_eq!(read(&pod, "memory.max"), "max");
    assert_eq!(read(&pod, "cpu.max"), "max 100000");
    // 250m are 256 shares: kubelet's own mapping for the pod, the runtime's for the container.
    assert_eq!(read(&pod, "cpu.weight"), "10");
    let of_requests = 1000 - 1000 * (200 << 20) / (kib as i64 * 1024);
    assert_eq!(i64::from(oom_score_adj(&main)), of_requests);
    // What the class as a whole has is the sum of its pods' requests: 250m and spinner's 100m.
    cluster.eventually(70, || {
        let weight = read(&top.join("burstable"), "cpu.weight");
        ensure!(weight == "14", "{weight}");
        Ok(())
    })?;

    let (pod, main) = cgroups(&cluster, "besteffort", "besteffort", "main")?;
    assert_eq!(read(&pod, "cpu.weight"), "1");
    assert_eq!(oom_score_adj(&main), 1000);
    Ok(())
}

#[test]
#[ignore = "runs in a guest"]
fn guest_open_files_are_limited_as_systemd_does() -> Result<()> {
    let cluster = cluster();
    cgroups(&cluster, "besteffort", "besteffort", "main")?;
    assert_eq!(cluster.kubectl.run(&["logs", "besteffort"])?, "524288\n1024");
    Ok(())
}
