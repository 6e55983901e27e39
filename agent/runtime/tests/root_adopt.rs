//! The agent dies and comes back: nothing that runs is touched, no line and no exit code is lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use keelson_cri::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_adopts_everything() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "adopt")).await.unwrap();
    let create = async |name: &str, text: &str| {
        let id = runtime.create_container(&sandbox.id, script(name, text)).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        id
    };
    let count = "trap 'echo term; exit 7' TERM; i=0; while true; do echo $i; i=$((i+1)); sleep 0.01; done";
    let long = create("long", count).await;
    let short = create("short", "sleep 0.3; echo last words; exit 5").await;
    let created = runtime.create_container(&sandbox.id, script("created", "echo later")).await.unwrap();
    let before = runtime.container_status(&long).await.unwrap();
    kill_agent(runtime).await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    let runtime = node.runtime().await;
    assert_eq!(runtime.container_status(&long).await.unwrap(), before);
    assert_eq!(runtime.pod_sandbox_status(&sandbox.id).await.unwrap(), sandbox);
    let status = runtime.container_status(&short).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, Some(5)));
    assert_eq!(log_lines(&status.log_path), ["last words"]);
    runtime.start_container(&created).await.unwrap();
    assert_eq!(wait_exited(&runtime, &created).await.exit_code, Some(0));

    let (code, out, _) = exec(&runtime, &long, &["echo", "still here"]).await.unwrap();
    assert_eq!((code, out.as_str()), (0, "still here\n"));
    let mut events = runtime.events();
    runtime.stop_container(&long, Duration::from_secs(5)).await.unwrap();
    let status = runtime.container_status(&long).await.unwrap();
    assert_eq!(status.exit_code, Some(7));
    let event = events.recv().await.unwrap();
    assert!(matches!(event, ContainerEvent::Exited { container_id, .. } if container_id == long));
    let lines = log_lines(&status.log_path);
    let numbers: Vec<usize> = lines.iter().filter_map(|l| l.parse().ok()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "lines were lost");
    assert!(numbers.len() > 20 && lines.last().unwrap() == "term");
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_short_is_cleared() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "cut")).await.unwrap();
    let id = runtime.create_container(&sandbox.id, script("a", "true")).await.unwrap();
    kill_agent(runtime).await;
    // A record that was being written, and a container whose record never was.
    std::fs::write(node.dir.join("lib/sandboxes").join(format!("{}.tmp", sandbox.id)), "{").unwrap();
    std::fs::remove_file(node.dir.join("lib/containers").join(&id).join("state.json")).unwrap();
    let runtime = node.runtime().await;
    assert!(runtime.container_status(&id).await.is_err());
    node.finish(runtime).await;
}

/// An agent that dies between a process's registration and its start leaves a record that says created, and a process that
/// podinit has seen give up. It has not run: the container is started, not reported with the exit code of that process.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_short_is_made_again() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "again")).await.unwrap();
    let text = "test -e /tmp/second && { sleep 0.5; exit 4; }; touch /tmp/second; exit 1";
    let id = runtime.create_container(&sandbox.id, script("a", text)).await.unwrap();
    let record = node.dir.join("lib/containers").join(&id).join("state.json");
    let created = std::fs::read(&record).unwrap();
    runtime.start_container(&id).await.unwrap();
    assert_eq!(wait_exited(&runtime, &id).await.exit_code, Some(1));
    kill_agent(runtime).await;
    std::fs::write(&record, created).unwrap();

    let runtime = node.runtime().await;
    let status = runtime.container_status(&id).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Created, None));
    runtime.start_container(&id).await.unwrap();
    let running = std::fs::read(&record).unwrap();
    assert_eq!(wait_exited(&runtime, &id).await.exit_code, Some(4));
    // An agent that missed the end and finds no podinit to ask reads it in the file, where nothing of the first start is.
    kill_agent(runtime).await;
    let procs = node.cgroup.join("podinit").join(&sandbox.id).join("cgroup.procs");
    kill(std::fs::read_to_string(procs).unwrap().trim().parse().unwrap());
    std::fs::write(&record, running).unwrap();
    let runtime = node.runtime().await;
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(4));
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spawner_may_die() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "respawn")).await.unwrap();
    let pid = runtime.spawner_pid().unwrap();
    kill(pid);
    let (status, lines) = run(&runtime, &sandbox.id, script("a", "echo fine")).await;
    assert_eq!((status.exit_code, lines), (Some(0), vec!["fine".to_string()]));
    assert_ne!(runtime.spawner_pid().unwrap(), pid);
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_podinit_is_told_and_cleared() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "dead")).await.unwrap();
    let id = runtime.create_container(&sandbox.id, script("a", "sleep 1000")).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let mut events = runtime.events();
    let procs = node.cgroup.join("podinit").join(&sandbox.id).join("cgroup.procs");
    kill(std::fs::read_to_string(procs).unwrap().trim().parse().unwrap());
    assert!(matches!(events.recv().await.unwrap(), ContainerEvent::Exited { .. }));
    assert!(matches!(events.recv().await.unwrap(), ContainerEvent::SandboxDied { .. }));
    let status = runtime.container_status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_deref()), (Some(255), Some("Unknown")));
    assert_eq!(runtime.pod_sandbox_status(&sandbox.id).await.unwrap().state, PodSandboxState::NotReady);
    assert!(runtime.create_container(&sandbox.id, script("b", "true")).await.is_err());
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_roll_back() {
    let node = Node::new();
    let runtime = node.runtime().await;
    node.network.fail.store(true, std::sync::atomic::Ordering::Relaxed);
    let err = runtime.run_pod_sandbox(sandbox_config(&node, "roll")).await.unwrap_err();
    assert_eq!(err.to_string(), "no network today");
    node.assert_clean();
    node.network.fail.store(false, std::sync::atomic::Ordering::Relaxed);
    let mut config = sandbox_config(&node, "users");
    config.namespaces.user_namespace = Some((100_000, 65_536));
    assert!(matches!(runtime.run_pod_sandbox(config).await, Err(CriError::Invalid(_))));
    let mut config = sandbox_config(&node, "sysctl");
    config.sysctls.insert("kernel.panic".into(), "1".into());
    let err = runtime.run_pod_sandbox(config).await.unwrap_err();
    assert_eq!(err.to_string(), "sysctl \"kernel.panic\" is not in a separate kernel namespace");
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_undone_is_not_forgotten() {
    use std::sync::atomic::Ordering::Relaxed;
    let node = Node::new();
    let runtime = node.runtime().await;
    node.network.fail.store(true, Relaxed);
    node.network.fail_teardown.store(true, Relaxed);
    let err = runtime.run_pod_sandbox(sandbox_config(&node, "stay")).await.unwrap_err();
    assert_eq!(err.to_string(), "no network today", "the first cause counts");
    let left = runtime.list_pod_sandboxes().await.unwrap();
    assert_eq!(left.iter().map(|s| s.state).collect::<Vec<_>>(), [PodSandboxState::NotReady]);
    let id = left[0].id.clone();
    assert_eq!(runtime.stop_pod_sandbox(&id).await.unwrap_err().to_string(), "it can't be undone");
    // One that was being made when the agent died is no other case.
    let record = node.dir.join("lib/sandboxes").join(format!("{id}.json"));
    let creating =
        std::fs::read_to_string(&record).unwrap().replace(r#""phase":"Dead""#, r#""phase":"Creating""#);
    assert!(creating.contains("Creating"), "{creating}");
    kill_agent(runtime).await;
    std::fs::write(&record, creating).unwrap();
    let runtime = node.runtime().await;
    let status = runtime.pod_sandbox_status(&id).await.unwrap();
    assert_eq!((status.state, status.metadata.name.as_str()), (PodSandboxState::NotReady, "stay"));
    assert!(runtime.stop_pod_sandbox(&id).await.is_err());
    node.network.fail_teardown.store(false, Relaxed);
    runtime.stop_pod_sandbox(&id).await.unwrap();
    runtime.remove_pod_sandbox(&id).await.unwrap();
    node.assert_clean();
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_volume_stays_when_the_agent_goes() {
    let node = Node::new();
    let folder = node.dir.join("content");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("file"), "content\n").unwrap();
    node.images.more.lock().unwrap().insert("content".into(), vec![folder]);
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "keep")).await.unwrap();
    let config = |name: &str| ContainerConfig {
        mounts: vec![volume("/v", "content", "")],
        ..script(name, "sleep 300")
    };
    let running = runtime.create_container(&sandbox.id, config("running")).await.unwrap();
    runtime.start_container(&running).await.unwrap();
    let created = runtime.create_container(&sandbox.id, config("created")).await.unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/containers/"), "nothing is mounted on the node:\n{mounts}");
    kill_agent(runtime).await;
    let runtime = node.runtime().await;
    runtime.start_container(&created).await.unwrap();
    for id in [&running, &created] {
        let (code, out, err) = exec(&runtime, id, &["cat", "/v/file"]).await.unwrap();
        assert_eq!((code, out.as_str()), (0, "content\n"), "{err}");
    }
    assert_eq!(node.images.leases.lock().unwrap().len(), 2);
    for id in [running, created] {
        runtime.stop_container(&id, std::time::Duration::ZERO).await.unwrap();
        runtime.remove_container(&id).await.unwrap();
    }
    assert!(node.images.leases.lock().unwrap().is_empty());
    node.finish(runtime).await;
}
