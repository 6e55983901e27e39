//! Containers as users see them: output, exit codes, environment, users, capabilities, mounts.

mod common;

use common::*;
use keelson_cri::*;

#[tokio::test(flavor = "multi_thread")]
async fn runs_logs_and_exits() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let mut events = runtime.events();
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "web")).await.unwrap();
    assert_eq!(sandbox.state, PodSandboxState::Ready);
    assert_eq!(sandbox.ips.len(), 1);
    let text = "echo out; echo err >&2; hostname; echo $$ $FROM_IMAGE $FROM_POD $HOSTNAME $HOME; pwd; printf half; exit 3";
    let (status, mut lines) = run(&runtime, &sandbox.id, script("a", text)).await;
    lines.sort();
    assert_eq!(lines, ["/", "1 1 2 web-host /root", "err", "half", "out", "web-host"]);
    assert_eq!((status.exit_code, status.reason.as_deref()), (Some(3), Some("Error")));
    assert!(status.started_at.unwrap() <= status.finished_at.unwrap());
    assert!(matches!(events.recv().await.unwrap(), ContainerEvent::Started { .. }));
    assert!(matches!(events.recv().await.unwrap(), ContainerEvent::Exited { .. }));
    let (status, _) = run(&runtime, &sandbox.id, script("b", "kill -9 $$; sleep 9 & kill -9 $!; true")).await;
    assert_eq!((status.exit_code, status.reason.as_deref()), (Some(0), Some("Completed")));
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn isolation_is_in_place() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "iso")).await.unwrap();
    // One stream: lines of two would come in any order.
    let text = "
        exec 2>&1
        grep -E 'Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs|Seccomp:' /proc/self/status
        cat /proc/keys | wc -c
        ls /sys/firmware | wc -l
        echo x > /proc/sys/kernel/hostname || echo sys-readonly
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start
        ip link | grep -c UP
        mknod /tmp/disk b 254 0 && cat /tmp/disk 2>&1
        mount -t tmpfs none /tmp 2>&1
        unshare -m true 2>&1
        cat /proc/1/cgroup
        ls /sys/fs/cgroup/cgroup.procs
        touch /sys/fs/cgroup/x 2>&1
        ls -l /proc/self/fd | grep -c ' -> '
        ls /dev";
    let (status, lines) = run(&runtime, &sandbox.id, script("a", text)).await;
    let all = lines.join("\n");
    assert_eq!(status.exit_code, Some(0), "{all}");
    let caps = "00000000a80425fb";
    for expected in [
        "CapInh:\t0000000000000000".to_string(),
        format!("CapPrm:\t{caps}"),
        format!("CapEff:\t{caps}"),
        format!("CapBnd:\t{caps}"),
        "NoNewPrivs:\t0\nSeccomp:\t2\n".into(),
        "sys-readonly\n77\n1\n".into(),
        "cat: can't open '/tmp/disk': Operation not permitted".into(),
        "mount: permission denied".into(),
        "unshare: unshare(0x20000): Operation not permitted".into(),
        "0::/\n/sys/fs/cgroup/cgroup.procs".into(),
        "touch: /sys/fs/cgroup/x: Read-only file system".into(),
        "\nurandom\nzero".into(),
    ] {
        assert!(all.contains(&expected), "no {expected:?} in:\n{all}");
    }
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn security_context_is_honoured() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "sec")).await.unwrap();
    let with = |name: &str, text: &str, security: SecurityContext| ContainerConfig {
        security,
        ..script(name, text)
    };
    let base = SecurityContext::default;

    let by_name =
        SecurityContext { run_as_username: Some("web".into()), supplemental_groups: vec![7], ..base() };
    let (status, lines) = run(
        &runtime,
        &sandbox.id,
        with(
            "u",
            "id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status; echo hi > /dev/stdout",
            by_name,
        ),
    )
    .await;
    assert_eq!(lines, ["101", "102", "102 4 7", "/var/web", "CapEff:\t0000000000000000", "hi"]);
    assert_eq!(status.user, Some((101, 102, vec![4, 7])));

    let no_new_privs = SecurityContext {
        run_as_user: Some(1234),
        run_as_group: Some(55),
        no_new_privs: true,
        run_as_non_root: true,
        readonly_rootfs: true,
        drop_capabilities: vec!["ALL".into()],
        add_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..base()
    };
    let text = "id -u; id -g; grep -E 'NoNewPrivs|CapBnd|Seccomp:' /proc/self/status; touch /x 2>&1; touch /dev/shm/x && echo shm";
    let (_, lines) = run(&runtime, &sandbox.id, with("n", text, no_new_privs)).await;
    assert_eq!(
        lines,
        [
            "1234",
            "55",
            "CapBnd:\t0000000000000400",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "touch: /x: Read-only file system",
            "shm"
        ]
    );

    let privileged = SecurityContext { privileged: true, ..base() };
    let (_, lines) = run(
        &runtime,
        &sandbox.id,
        with("p", "grep Seccomp: /proc/self/status; mount -t tmpfs none /tmp && echo mounted", privileged),
    )
    .await;
    assert_eq!(lines, ["Seccomp:\t0", "mounted"]);

    let profile = node.dir.join("profile.json");
    std::fs::write(&profile, r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#).unwrap();
    let localhost = SecurityContext { seccomp: SeccompProfile::Localhost(profile), ..base() };
    let (_, lines) = run(&runtime, &sandbox.id, with("l", "mkdir /x 2>&1", localhost)).await;
    assert_eq!(lines, ["mkdir: can't create directory '/x': No space left on device"]);

    let non_root = SecurityContext { run_as_non_root: true, ..base() };
    let err = runtime.create_container(&sandbox.id, with("r", "true", non_root)).await.unwrap_err();
    assert_eq!(err.to_string(), "container has runAsNonRoot and image will run as root");
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_as_volumes() {
    use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
    let node = Node::new();
    let (top, bottom) = (node.dir.join("top"), node.dir.join("bottom"));
    for dir in [top.join("etc"), top.join("opaque"), bottom.join("etc/conf.d"), bottom.join("opaque")] {
        std::fs::create_dir_all(dir).unwrap();
    }
    for (file, text) in [
        (bottom.join("etc/below"), "below"),
        (bottom.join("etc/both"), "hidden"),
        (bottom.join("etc/gone"), "removed"),
        (bottom.join("opaque/covered"), "covered"),
        (bottom.join("etc/conf.d/a"), "a"),
        (top.join("etc/both"), "shown"),
    ] {
        std::fs::write(file, format!("{text}\n")).unwrap();
    }
    // As unpacked layers have them: a whiteout and an opaque folder; and links, which mean paths of the image.
    mknodat(CWD, top.join("etc/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    setxattr(top.join("opaque"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    std::os::unix::fs::symlink("/etc/conf.d", top.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../etc", top.join("out")).unwrap();
    {
        let mut images = node.images.more.lock().unwrap();
        images.insert("two".into(), vec![top.clone(), bottom.clone()]);
        images.insert("one".into(), vec![bottom.clone()]);
        images.insert("none".into(), Vec::new());
    }
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "vol")).await.unwrap();
    let config = ContainerConfig {
        mounts: vec![
            volume("/two", "two", ""),
            volume("/one", "one", ""),
            volume("/none", "none", ""),
            volume("/conf", "two", "link"),
            volume("/out", "two", "out/conf.d"),
            volume("/file", "two", "etc/both"),
        ],
        ..script(
            "v",
            "exec 2>&1; cat /two/etc/both /two/etc/below /file; ls /two/etc /two/opaque /one/etc /none /conf /out
             touch /two/x; rm /two/etc/both; touch /none/x; echo x > /file; grep -c ' - overlay .* ro,' /proc/self/mountinfo",
        )
    };
    let (status, lines) = run(&runtime, &sandbox.id, config).await;
    let all = lines.join("\n");
    assert_eq!(status.exit_code, Some(0), "{all}");
    let listing = "shown\nbelow\nshown\n/conf:\na\n\n/none:\n\n/one/etc:\nbelow\nboth\nconf.d\ngone\n\n/out:\na\n\n/two/etc:\nbelow\nboth\nconf.d\n\n/two/opaque:\n";
    let read_only = "touch: /two/x: Read-only file system\nrm: can't remove '/two/etc/both': Read-only file system\ntouch: /none/x: Read-only file system\n/bin/sh: can't create /file: Read-only file system";
    assert!(all.starts_with(listing), "{all}");
    assert!(all.contains(read_only), "{all}");
    assert!(!top.join("x").exists() && !bottom.join("x").exists());

    let create = |name: &str, mount: Mount| {
        let config = ContainerConfig { mounts: vec![mount], ..script(name, "true") };
        runtime.create_container(&sandbox.id, config)
    };
    let absent = create("absent", volume("/v", "two", "etc/gone")).await.unwrap_err();
    assert_eq!(absent.to_string(), "ImageVolumeMountFailed: /v: the image two has no path \"etc/gone\"");
    assert!(matches!(create("unknown", volume("/v", "nowhere", "")).await, Err(CriError::NotFound(_))));
    let shared = Mount { propagation: MountPropagation::Bidirectional, ..volume("/v", "two", "") };
    assert!(matches!(create("shared", shared).await, Err(CriError::Invalid(_))));
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_and_working_dir() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "mnt")).await.unwrap();
    let host = node.dir.join("volume");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("file"), "content\n").unwrap();
    let bind = |container: &str, host: std::path::PathBuf, readonly: bool| Mount {
        container_path: container.into(),
        host_path: host,
        image: None,
        readonly,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    };
    // A link in the image that points out of it must lead nowhere but into it.
    std::os::unix::fs::symlink("/../../../../var/tmp", node.dir.join("layer/evil")).unwrap();
    let config = ContainerConfig {
        working_dir: "/made/here".into(),
        mounts: vec![
            bind("/ro/deep", host.clone(), true),
            bind("/rw", host.clone(), false),
            bind("/etc/hosts", host.join("file"), false),
            bind("/evil/keelson-escape", host.clone(), false),
        ],
        ..script(
            "m",
            "pwd; cat /etc/hosts; touch /ro/deep/x 2>&1; echo new > /rw/new; cat /ro/deep/new; ls -d /var/tmp/keelson-escape",
        )
    };
    let (_, lines) = run(&runtime, &sandbox.id, config).await;
    assert_eq!(
        lines,
        [
            "/made/here",
            "content",
            "touch: /ro/deep/x: Read-only file system",
            "new",
            "/var/tmp/keelson-escape"
        ]
    );
    assert!(!std::path::Path::new("/var/tmp/keelson-escape").exists());
    std::os::unix::fs::symlink("/proc/sys", node.dir.join("layer/tricky")).unwrap();
    let config = ContainerConfig { mounts: vec![bind("/tricky/kernel", host, false)], ..script("t", "true") };
    let id = runtime.create_container(&sandbox.id, config).await.unwrap();
    let err = runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(err.contains("inside /proc"), "{err}");
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_cannot_start() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "bad")).await.unwrap();
    for (command, message) in [
        ("nope", r#"exec: "nope": executable file not found in $PATH"#),
        ("/bin/nope", r#"exec: "/bin/nope": stat /bin/nope: no such file or directory"#),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
    ] {
        let config = ContainerConfig { command: vec![command.into()], ..script("c", "") };
        let id = runtime.create_container(&sandbox.id, config).await.unwrap();
        let err = runtime.start_container(&id).await.unwrap_err();
        assert!(err.to_string().contains(message), "{err}");
        let status = runtime.container_status(&id).await.unwrap();
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited, Some(128)));
        assert_eq!(status.reason.as_deref(), Some("StartError"));
    }
    node.finish(runtime).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oom_scores_follow_updates() {
    let node = Node::new();
    let runtime = node.runtime().await;
    let sandbox = runtime.run_pod_sandbox(sandbox_config(&node, "oom")).await.unwrap();
    let resources = |score, shares| LinuxResources {
        oom_score_adj: Some(score),
        cpu_shares: shares,
        ..LinuxResources::default()
    };
    let config = ContainerConfig {
        resources: resources(500, Some(1024)),
        ..script("a", "while :; do sleep 0.05; done")
    };
    let id = runtime.create_container(&sandbox.id, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let scores = async || {
        let text = "cat /proc/1/oom_score_adj /proc/self/oom_score_adj";
        exec(&runtime, &id, &["sh", "-c", text]).await.unwrap().1
    };
    assert_eq!(scores().await, "500\n500\n");
    runtime.update_container_resources(&id, resources(900, None)).await.unwrap();
    assert_eq!(scores().await, "900\n900\n");
    let err = runtime.update_container_resources(&id, resources(1001, None)).await.unwrap_err();
    assert!(matches!(err, CriError::Invalid(_)), "{err}");
    // Whether it may be lowered is up to the machine that the test runs on; it is never passed over in silence.
    match runtime.update_container_resources(&id, resources(-900, None)).await {
        Ok(()) => assert_eq!(scores().await, "-900\n-900\n"),
        Err(err) => {
            assert!(
                matches!(&err, CriError::FailedPrecondition(text) if text.contains("CAP_SYS_RESOURCE")),
                "{err}"
            );
            assert_eq!(scores().await, "900\n900\n");
        }
    }
    node.finish(runtime).await;
}
