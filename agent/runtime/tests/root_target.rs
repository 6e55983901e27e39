//! Containers in the PID namespace of another one of their pod: what `kubectl debug --target` makes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::*;
use keelson_cri::*;
use keelson_runtime::Runtime;

/// A container that looks at the processes of another.
fn looker(name: &str, target: &str, text: &str) -> ContainerConfig {
    let security = SecurityContext { target_id: Some(target.into()), ..SecurityContext::default() };
    ContainerConfig { security, ..script(name, text) }
}

async fn start(runtime: &Runtime, sandbox: &str, config: ContainerConfig) -> String {
    let id = runtime.create_container(sandbox, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

async fn processes(runtime: &Runtime, id: &str) -> String {
    exec(runtime, id, &["ps", "-o", "pid,args"]).await.unwrap().1
}

const APP: &str = "echo inside > /tmp/mark; sleep 4321 & echo up; wait";

#[tokio::test(flavor = "multi_thread")]
async fn it_sees_the_targets_processes_and_files() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "see")).await.unwrap();
    let app = start(&runtime, &sandbox.id, script("app", APP)).await;
    wait_log(&runtime.container_status(&app).await.unwrap().log_path, "up").await;
    let text = "exec 2>&1; ps -o args | grep '^sleep 432'; cat /proc/1/root/tmp/mark; ls /tmp; [ $$ != 1 ] && echo not first; sleep 777 & exit 3";
    let (status, lines) = run(&runtime, &sandbox.id, looker("looker", &app, text)).await;
    assert_eq!((status.exit_code, lines.join("\n").as_str()), (Some(3), "sleep 4321\ninside\nnot first"));
    // What the looker leaves behind does not stay with the target, which goes on.
    let shown = processes(&runtime, &app).await;
    assert!(!shown.contains("sleep 777") && shown.contains("sleep 4321"), "{shown}");
    // It is stopped by a signal of its own; as it is not the first process, a signal needs no handler.
    let plain = start(&runtime, &sandbox.id, looker("plain", &app, "sleep 1000; true")).await;
    let handler = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let handles = start(&runtime, &sandbox.id, looker("handles", &app, handler)).await;
    wait_log(&runtime.container_status(&handles).await.unwrap().log_path, "ready").await;
    for (id, code) in [(&plain, 143), (&handles, 5)] {
        runtime.stop_container(id, Duration::from_secs(20)).await.unwrap();
        assert_eq!(runtime.container_status(id).await.unwrap().exit_code, Some(code));
    }
    assert_eq!(runtime.container_status(&app).await.unwrap().state, ContainerState::Running);
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_adopted_and_ends_with_its_target() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "end")).await.unwrap();
    let app = start(&runtime, &sandbox.id, script("app", APP)).await;
    let stays = start(&runtime, &sandbox.id, looker("stays", &app, "sleep 1000")).await;
    let ends = start(&runtime, &sandbox.id, looker("ends", &app, "sleep 0.3; exit 6")).await;
    let later = runtime.create_container(&sandbox.id, looker("later", &app, "sleep 1000")).await.unwrap();
    kill_agent(runtime).await;
    tokio::time::sleep(Duration::from_millis(500)).await;

    let runtime = node.runtime().await;
    let status = runtime.container_status(&ends).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, Some(6)));
    runtime.start_container(&later).await.unwrap();
    for id in [&app, &stays, &later] {
        let shown = processes(&runtime, id).await;
        assert!(shown.contains("sleep 4321") && shown.contains("sleep 1000"), "{shown}");
    }
    // The first process of a PID namespace takes the others with it, however it ends.
    runtime.stop_container(&app, Duration::ZERO).await.unwrap();
    for id in [&app, &stays, &later] {
        let status = wait_exited(&runtime, id).await;
        assert_eq!((status.exit_code, status.reason.as_deref()), (Some(137), Some("Error")));
    }
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_running_container_of_the_pod_is_a_target() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "one")).await.unwrap();
    let other = runtime.run_pod_sandbox(sandbox_config(&node, "two")).await.unwrap();
    let created = runtime.create_container(&sandbox.id, script("created", "true")).await.unwrap();
    let exited = start(&runtime, &sandbox.id, script("exited", "true")).await;
    wait_exited(&runtime, &exited).await;
    let strange = start(&runtime, &other.id, script("strange", "sleep 1000")).await;
    for (target, why) in [
        ("nobody", "does not exist: not found".to_string()),
        (&created, "is not running - in state CONTAINER_CREATED".into()),
        (&exited, "is not running - in state CONTAINER_EXITED".into()),
        (&strange, format!("(sandbox {}) does not belong to sandbox {}", other.id, sandbox.id)),
    ] {
        let err = runtime.create_container(&sandbox.id, looker("looker", target, "true")).await.unwrap_err();
        assert_eq!(err.to_string(), format!("invalid target container: container {target:?} {why}"));
    }
    // It may also end in between.
    let app = start(&runtime, &sandbox.id, script("app", "sleep 1000")).await;
    let late = runtime.create_container(&sandbox.id, looker("late", &app, "true")).await.unwrap();
    runtime.stop_container(&app, Duration::ZERO).await.unwrap();
    let err = runtime.start_container(&late).await.unwrap_err();
    let text =
        format!("invalid target container: container {app:?} is not running - in state CONTAINER_EXITED");
    assert_eq!(err.to_string(), text);
    let status = runtime.container_status(&late).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_deref()), (Some(128), Some("StartError")));
    node.finish(runtime).await;
}
