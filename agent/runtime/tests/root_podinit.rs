//! podinit itself: what it holds, what it costs, how fast a sandbox is.

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

#[tokio::test(flavor = "multi_thread")]
async fn podinit_ends_with_its_last_process_when_the_machine_goes_down() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let config = sandbox_config(&node, "down");
    let pod = node.cgroup.join(&config.cgroup_parent);
    let sandbox = runtime.run_pod_sandbox(config).await.unwrap();
    let polite = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let id = runtime.create_container(&sandbox.id, script("a", polite)).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let log = runtime.container_status(&id).await.unwrap().log_path;
    wait_log(&log, " up\n").await;
    let first = |cgroup: &std::path::Path| -> i32 {
        let procs = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        procs.lines().next().unwrap().parse().unwrap()
    };
    let podinit = first(&node.cgroup.join("podinit").join(&sandbox.id));
    // As systemd-shutdown does: SIGTERM to all, in any order.
    let term = |pid| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    };
    term(podinit);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let state = runtime.container_status(&id).await.unwrap().state;
    assert_eq!(state, ContainerState::Running, "podinit did not wait for its container");
    term(first(&pod.join(&id)));
    let status = wait_exited(&runtime, &id).await;
    assert_eq!(status.exit_code, Some(7));
    assert!(log_lines(&log).iter().any(|line| line.ends_with("bye")), "{:?}", log_lines(&log));
    let started = std::time::Instant::now();
    while runtime.pod_sandbox_status(&sandbox.id).await.unwrap().state == PodSandboxState::Ready {
        assert!(started.elapsed().as_secs() < 5, "podinit still runs");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
    node.finish(runtime).await;
}
