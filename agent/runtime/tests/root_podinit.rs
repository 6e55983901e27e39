//! podinit itself: what it holds, what it costs, how fast a sandbox is.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use keelson_cri::*;

#[tokio::test(flavor = "multi_thread")]
async fn podinit_holds_next_to_nothing() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "small")).await.unwrap();
    let id = runtime.create_container(&sandbox.id, script("a", "seq 1 200000; sleep 1000")).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let log = runtime.container_status(&id).await.unwrap().log_path;
    wait_log(&log, " 200000\n").await;
    let procs = node.cgroup.join("podinit").join(&sandbox.id).join("cgroup.procs");
    let procs = std::fs::read_to_string(procs).unwrap();
    let pid = procs.trim();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let none = "0000000000000000";
    for line in [
        format!("CapPrm:\t{none}"),
        format!("CapBnd:\t{none}"),
        "NoNewPrivs:\t1".into(),
        "Threads:\t1".into(),
    ] {
        assert!(status.contains(&line), "no {line:?} in {status}");
    }
    // Listener, epoll, signalfd; exit record, log, stdout, stderr; the agent's connection.
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let fds: Vec<_> = fds.map(|e| std::fs::read_link(e.path()).unwrap()).collect();
    assert_eq!(fds.len(), 8, "{fds:?}");
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let dirty =
        rollup.lines().find_map(|l| l.strip_prefix("Private_Dirty:")?.trim().strip_suffix(" kB")).unwrap();
    println!("podinit: {dirty} kB Private_Dirty");
    assert!(dirty.parse::<u64>().unwrap() < 256, "podinit has {dirty} kB of private memory");
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_is_fast() {
    let node = Node::new();
    let runtime = node.runtime().await;
    for round in 0..5 {
        let name = format!("fast{round}");
        let start = std::time::Instant::now();
        let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, &name)).await.unwrap();
        let made = start.elapsed();
        let id = runtime.create_container(&sandbox.id, script("a", "sleep 1000")).await.unwrap();
        let created = start.elapsed();
        runtime.start_container(&id).await.unwrap();
        let started = start.elapsed();
        let stop = std::time::Instant::now();
        runtime.stop_pod_sandbox(&sandbox.id).await.unwrap();
        runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        println!(
            "sandbox {made:?}, created {created:?}, started {started:?}, removed in {:?}",
            stop.elapsed()
        );
        // A bound against accidents, not the aim: the machine may be busy.
        assert!(started.as_millis() < 2000);
    }
    node.finish(runtime).await;
}

/// CPU time that a process has used, in clock ticks of 10 ms.
fn cpu_ticks(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_back_but_loses_nothing() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "slow")).await.unwrap();
    let config = ContainerConfig {
        stdin: true,
        ..script("a", "read x; exec <&-; seq 1 300000; echo end; sleep 1000")
    };
    let id = runtime.create_container(&sandbox.id, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let mut session = runtime.attach(&id, true).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(session.stdin.as_mut().unwrap(), b"go\n").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let log = runtime.container_status(&id).await.unwrap().log_path;
    assert!(!log_lines(&log).contains(&"end".to_string()), "the container was not held back");
    drop(session);
    wait_log(&log, " end\n").await;
    let numbers: Vec<usize> = log_lines(&log).iter().filter_map(|l| l.parse().ok()).collect();
    assert_eq!(numbers, (1..=300_000).collect::<Vec<_>>());
    // Nothing is left that wakes podinit: not the closed stdin, not the closed session.
    let procs = node.cgroup.join("podinit").join(&sandbox.id).join("cgroup.procs");
    let procs = std::fs::read_to_string(procs).unwrap();
    let before = cpu_ticks(procs.trim());
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(cpu_ticks(procs.trim()) <= before + 1, "podinit spins");
    node.finish(runtime).await;
}
