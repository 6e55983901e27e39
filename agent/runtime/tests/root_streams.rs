//! Exec, attach, terminals, port-forward, and pods that share namespaces.

mod common;

use std::time::Duration;

use common::*;
use keelson_cri::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_inside() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "exec")).await.unwrap();
    let config = ContainerConfig {
        security: SecurityContext { run_as_user: Some(101), ..SecurityContext::default() },
        ..script("a", "echo up; sleep 1000")
    };
    let id = runtime.create_container(&sandbox.id, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let text = "echo out; echo err >&2; id -u; hostname; echo $FROM_POD; \
                grep -E 'Seccomp:|CapBnd' /proc/self/status; grep ^0: /proc/self/cgroup; exit 4";
    let (code, out, err) = exec(&runtime, &id, &["sh", "-c", text]).await.unwrap();
    assert_eq!(out, "out\n101\nexec-host\n2\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n0::/\n");
    assert_eq!((code, err.as_str()), (4, "err\n"));
    let err = exec(&runtime, &id, &["nope"]).await.unwrap_err().to_string();
    assert!(err.ends_with(r#"exec: "nope": executable file not found in $PATH"#), "{err}");
    let (code, ..) = exec(&runtime, &id, &["sh", "-c", "kill -9 $$"]).await.unwrap();
    assert_eq!(code, 137);

    // stdin, and a large output.
    let command = words(&["sh", "-c", "cat; head -c 3000000 /dev/zero"]);
    let mut session = runtime.exec(&id, ExecRequest { command, stdin: true, tty: false }).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    drop(stdin);
    let mut out = Vec::new();
    session.stdout.take().unwrap().read_to_end(&mut out).await.unwrap();
    drop(session.stderr.take());
    assert_eq!((session.exit.await.unwrap().unwrap(), out.len()), (0, 3_000_005));

    // Dropping the session kills the command.
    let command = words(&["sleep", "4321"]);
    drop(runtime.exec(&id, ExecRequest { command, ..ExecRequest::default() }).await.unwrap());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (_, out, _) = exec(&runtime, &id, &["ps"]).await.unwrap();
    assert!(!out.contains("4321"), "{out}");
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(137));
    assert!(matches!(exec(&runtime, &id, &["true"]).await, Err(CriError::FailedPrecondition(_))));
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "tty")).await.unwrap();
    let config = ContainerConfig { tty: true, stdin: true, command: words(&["/bin/sh"]), ..script("a", "") };
    let id = runtime.create_container(&sandbox.id, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let mut session = runtime.attach(&id, true).await.unwrap();
    assert!(session.stderr.is_none());
    session.resize.as_ref().unwrap().send(TerminalSize { width: 123, height: 45 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"tty; stty size; echo $TERM; echo conso''le > /dev/console; exit 6\n").await.unwrap();
    let mut out = String::new();
    session.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert!(out.contains("/dev/pts/0\r\n45 123\r\nxterm\r\n"), "{out:?}");
    assert!(out.contains("\r\nconsole\r\n"), "{out:?}");
    assert_eq!(session.exit.await.unwrap().unwrap(), 6);
    let status = wait_exited(&runtime, &id).await;
    assert!(log_lines(&status.log_path).iter().any(|l| l.contains("45 123")));

    let keeper = runtime.create_container(&sandbox.id, script("b", "sleep 1000")).await.unwrap();
    runtime.start_container(&keeper).await.unwrap();
    let request = ExecRequest { command: words(&["sh"]), stdin: true, tty: true };
    let mut session = runtime.exec(&keeper, request).await.unwrap();
    session.resize.as_ref().unwrap().send(TerminalSize { width: 99, height: 11 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    session.stdin.as_mut().unwrap().write_all(b"stty size; exit 9\n").await.unwrap();
    let mut out = String::new();
    session.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert!(out.contains("11 99"), "{out:?}");
    assert_eq!(session.exit.await.unwrap().unwrap(), 9);
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_and_log_rotation() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "attach")).await.unwrap();
    let text = "echo start; cat; echo done >&2";
    let config = ContainerConfig { stdin: true, stdin_once: true, ..script("a", text) };
    let id = runtime.create_container(&sandbox.id, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let log = runtime.container_status(&id).await.unwrap().log_path;
    wait_log(&log, "start").await;
    let rotated = log.with_extension("old");
    std::fs::rename(&log, &rotated).unwrap();
    runtime.reopen_container_log(&id).await.unwrap();
    let mut session = runtime.attach(&id, true).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through stdin\n").await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (session.stdout.take().unwrap(), session.stderr.take().unwrap());
    let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    a.unwrap();
    b.unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("through stdin\n", "done\n"));
    assert_eq!(session.exit.await.unwrap().unwrap(), 0);
    assert_eq!(log_lines(&rotated), ["start"]);
    assert_eq!(log_lines(&log), ["through stdin", "done"]);
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_up_no_container() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let node = Node::new();
    let logs = node.dir.join("logs");
    std::fs::create_dir(&logs).unwrap();
    mount("small", &logs, "tmpfs", MountFlags::empty(), Some(c"size=1m")).unwrap();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "full")).await.unwrap();
    // Four times what there is room for, in lines of many lengths.
    let text = "n=0; while [ $n -lt 50000 ]; do echo line $n of many; n=$((n+1)); done; exit 4";
    let (status, lines) = run(&runtime, &sandbox.id, script("a", text)).await;
    assert_eq!(status.exit_code, Some(4));
    assert!(lines.len() > 5000 && lines.len() < 50000, "{}", lines.len());
    // Whole lines up to where there was no more room.
    let mut expected = (0..50_000).map(|n| format!("line {n} of many"));
    assert!(lines.iter().all(|line| expected.any(|next| next == *line)), "a torn line, or out of order");
    std::fs::remove_file(&status.log_path).unwrap();
    let (_, lines) = run(&runtime, &sandbox.id, script("b", "echo room again")).await;
    assert_eq!(lines, ["room again"]);
    unmount(&logs, UnmountFlags::DETACH).unwrap();
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward_reaches_the_pods_loopback() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "port")).await.unwrap();
    let id = runtime.create_container(&sandbox.id, script("a", "nc -l -p 8080 -e cat")).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let mut stream = None;
    for _ in 0..100 {
        stream = runtime.port_forward(&sandbox.id, 8080).await.ok();
        if stream.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut stream = stream.expect("a connection");
    stream.write_all(b"ping").await.unwrap();
    let mut buf = [0; 4];
    stream.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"ping");
    let err = runtime.port_forward(&sandbox.id, 9).await.unwrap_err().to_string();
    assert!(
        err.contains("failed to connect to localhost:9 inside namespace") && err.contains("refused"),
        "{err}"
    );
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_pid_namespace() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let mut config = sandbox_config(&node, "shared");
    config.namespaces.pid = NamespaceMode::Pod;
    let sandbox = runtime.run_pod_sandbox(config).await.unwrap();
    let first = script("first", "touch /dev/shm/seen; echo up; sleep 777");
    let first = runtime.create_container(&sandbox.id, first).await.unwrap();
    runtime.start_container(&first).await.unwrap();
    wait_log(&runtime.container_status(&first).await.unwrap().log_path, "up").await;
    let text = "ps | grep -c [7]77; ls /dev/shm; cat /proc/1/comm; \
                cat /proc/1/fd/0 /proc/1/exe /proc/1/mem /proc/1/environ 2>/dev/null | wc -c; \
                for f in /proc/1/fd/* /proc/1/exe /proc/1/root; do readlink $f; done | wc -l";
    let (_, lines) = run(&runtime, &sandbox.id, script("second", text)).await;
    // Root of the pod sees that podinit is there, and can open nothing of it: it is not dumpable.
    assert_eq!(lines[1..], ["seen", "keelson-podinit", "0", "0"]);
    let (code, ..) = exec(&runtime, &first, &["sh", "-c", "exit 3"]).await.unwrap();
    assert_eq!(code, 3);
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn host_namespaces() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let mut config = sandbox_config(&node, "host");
    let host = NamespaceMode::Node;
    config.namespaces = NamespaceOptions { network: host, pid: host, ipc: host, user_namespace: None };
    config.sysctls.clear();
    config.hostname = String::new();
    let sandbox = runtime.run_pod_sandbox(config).await.unwrap();
    assert!(sandbox.ips.is_empty());
    let text = "trap 'exit 8' TERM; readlink /proc/self/ns/net; readlink /proc/self/ns/pid; \
                while true; do sleep 0.01; done";
    let id = runtime.create_container(&sandbox.id, script("h", text)).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let link =
        |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let log = runtime.container_status(&id).await.unwrap().log_path;
    wait_log(&log, "pid:").await;
    assert_eq!(log_lines(&log), [link("net"), link("pid")]);
    let (code, ..) = exec(&runtime, &id, &["sh", "-c", "exit 2"]).await.unwrap();
    assert_eq!(code, 2);
    // The agent restarts here too: the container has a podinit of its own to come back to.
    drop(runtime);
    let runtime = node.runtime().await;
    assert_eq!(runtime.container_status(&id).await.unwrap().state, ContainerState::Running);
    runtime.stop_container(&id, Duration::from_secs(5)).await.unwrap();
    assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(8));
    node.finish(runtime).await;
}
