//! An agent that itself lives in a PID, mount and cgroup namespace, as those of a test cluster do.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::*;
use keelson_cri::*;

#[test]
fn in_namespaces_of_its_own() {
    podinit();
    let output = std::process::Command::new("unshare")
        .args(["--fork", "--pid", "--mount-proc", "--cgroup", "--ipc", "--uts", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inner", "--ignored", "--nocapture"])
        .output()
        .expect("unshare is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by in_namespaces_of_its_own inside its namespaces"]
async fn inner() {
    assert!(std::process::id() < 10, "not in a PID namespace of its own");
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "nested")).await.unwrap();
    let id = runtime.create_container(&sandbox.id, script("a", "echo up; sleep 1000")).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let before = runtime.container_status(&id).await.unwrap();
    wait_log(&before.log_path, "up").await;
    let (code, out, _) =
        exec(&runtime, &id, &["sh", "-c", "grep ^0: /proc/self/cgroup; exit 5"]).await.unwrap();
    assert_eq!((code, out.as_str()), (5, "0::/\n"));
    drop(runtime);
    let runtime = node.runtime().await;
    assert_eq!(runtime.container_status(&id).await.unwrap(), before);
    let (code, ..) = exec(&runtime, &id, &["true"]).await.unwrap();
    assert_eq!(code, 0);
    node.finish(runtime).await;
}
