//! Unmodified kubectl against the master: each command as a user types it, over whatever protocol it chooses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;
use keelson_tests::{cmd, images};

/// Runs kubectl on a terminal of its own (util-linux' script), typing `input`.
fn on_a_terminal(cluster: &TestCluster, line: &str, input: &str) -> Result<String> {
    let program = cluster.kubectl.program().display().to_string();
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{program} {line}"), "/dev/null"]).env("KUBECONFIG", cluster.kubeconfig());
    command.env("KUBECACHEDIR", cluster.dir().join("kubectl-cache"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let typed = input.to_owned();
    let typist = std::thread::spawn(move || {
        // A person types after the prompt is there.
        std::thread::sleep(Duration::from_millis(1500));
        let _ = stdin.write_all(typed.as_bytes());
        std::thread::sleep(Duration::from_millis(1500));
    });
    let output = child.wait_with_output()?;
    let _ = typist.join();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "kubectl {line} ended with {}: {text}", output.status);
    Ok(text)
}

#[test]
fn every_command_of_the_thin_path() -> Result<()> {
    let cluster = TestCluster::up("e2e-kubectl", 1, &["testapp-v1", "testapp-v2", "busybox"])?;
    creating(&cluster)?;
    reading(&cluster)?;
    changing(&cluster)?;
    owning(&cluster)?;
    streaming(&cluster)?;
    deleting(&cluster)?;
    cluster.down()
}

fn creating(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    let image = images::reference("testapp-v1");
    assert_eq!(
        k(&["create", "deployment", "web", "--image", &image, "--replicas=2", "--port=8080"])?,
        "deployment.apps/web created"
    );
    assert_eq!(
        k(&["create", "configmap", "settings", "--from-literal=color=blue"])?,
        "configmap/settings created"
    );
    assert_eq!(
        k(&["create", "secret", "generic", "keys", "--from-literal=token=s3cret"])?,
        "secret/keys created"
    );
    assert_eq!(k(&["create", "service", "clusterip", "plain", "--tcp=80:8080"])?, "service/plain created");
    assert_eq!(k(&["create", "serviceaccount", "robot"])?, "serviceaccount/robot created");
    assert_eq!(k(&["create", "token", "robot"])?.split('.').count(), 3);
    assert_eq!(k(&["create", "namespace", "other"])?, "namespace/other created");
    assert!(
        k(&["expose", "deployment", "web", "--port=80", "--target-port=8080"])?
            .contains("service/web exposed")
    );
    let applied = cluster.kubectl.apply(sample::MANIFEST)?;
    assert!(
        applied.contains("deployment.apps/hello created") && applied.contains("service/hello created"),
        "{applied}"
    );
    let again = cluster.kubectl.apply(sample::MANIFEST)?;
    assert!(
        again.contains("deployment.apps/hello unchanged") && again.contains("service/hello unchanged"),
        "{again}"
    );
    k(&["wait", "--for=condition=Available", "deployment/web", "deployment/hello", "--timeout=90s"])?;
    let error = k(&["create", "configmap", "settings"]).expect_err("it exists");
    assert!(format!("{error:#}").contains(r#"configmaps "settings" already exists"#), "{error:#}");
    Ok(())
}

fn reading(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    let pods = k(&["get", "pods", "-l", "app=web"])?;
    let header: Vec<&str> = pods.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(
        pods.lines().filter(|line| line.contains("1/1") && line.contains("Running")).count(),
        2,
        "{pods}"
    );
    let wide = k(&["get", "pods", "-o", "wide"])?;
    assert!(wide.contains("NODE") && wide.contains("node-1") && wide.contains("10.244."), "{wide}");
    let deployments = k(&["get", "deployments"])?;
    let header: Vec<&str> = deployments.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    let services = k(&["get", "service"])?;
    assert!(services.contains("CLUSTER-IP") && services.contains("kubernetes"), "{services}");
    let nodes = k(&["get", "nodes", "-o", "wide"])?;
    assert!(
        nodes.contains("Ready") && nodes.contains("10.89.0.11") && nodes.contains("keelson://"),
        "{nodes}"
    );
    assert!(k(&["get", "configmap", "settings", "-o", "yaml"])?.contains("color: blue"));
    assert_eq!(k(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"])?, "2");
    assert_eq!(
        k(&["get", "deployment", "web", "-o", "custom-columns=N:.metadata.name", "--no-headers"])?,
        "web"
    );
    let described = k(&["describe", "deployment", "web"])?;
    assert!(described.contains("RollingUpdateStrategy:  25% max unavailable, 25% max surge"), "{described}");
    assert!(k(&["describe", "pods", "-l", "app=web"])?.contains("Started"), "events of the pod are shown");
    assert!(k(&["describe", "node", "node-1"])?.contains("PodCIDR"));
    assert!(k(&["explain", "deployment.spec.strategy"])?.contains("rollingUpdate"));
    let resources = k(&["api-resources"])?;
    for line in ["deployments", "pods", "endpointslices", "clusterrolebindings", "apiservices"] {
        assert!(resources.lines().any(|l| l.starts_with(line)), "{line} in {resources}");
    }
    let services = k(&["get", "apiservices"])?;
    let apps = services.lines().find(|line| line.starts_with("v1.apps ")).context("v1.apps is listed")?;
    assert_eq!(apps.split_whitespace().take(3).collect::<Vec<_>>(), ["v1.apps", "Local", "True"]);
    assert_eq!(k(&["auth", "can-i", "create", "pods"])?, "yes");
    let denied = cluster
        .kubectl
        .command(&["auth", "can-i", "create", "pods", "--as=system:serviceaccount:default:robot"])
        .output()?;
    assert_eq!(String::from_utf8_lossy(&denied.stdout).trim(), "no");
    assert!(k(&["version"])?.contains("v1.36"));

    let mut watch = cluster
        .kubectl
        .command(&["get", "configmaps", "-w", "--output-watch-events"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(watch.stdout.take().context("stdout is piped")?).lines();
    while !lines.next().context("the watch goes on")??.contains("settings") {}
    k(&["create", "configmap", "watched"])?;
    while !lines.next().context("the watch goes on")??.contains("watched") {}
    k(&["delete", "configmap", "watched"])?;
    loop {
        let line = lines.next().context("the watch goes on")??;
        if line.starts_with("DELETED") && line.contains("watched") {
            break;
        }
    }
    watch.kill()?;
    watch.wait()?;
    Ok(())
}

fn changing(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    assert_eq!(k(&["label", "configmap", "settings", "tier=backend"])?, "configmap/settings labeled");
    assert!(k(&["get", "configmaps", "-l", "tier=backend"])?.contains("settings"));
    k(&["annotate", "configmap", "settings", "note=hello"])?;
    k(&["patch", "configmap", "settings", "--type=merge", "-p", r#"{"data":{"color":"red"}}"#])?;
    k(&[
        "patch",
        "configmap",
        "settings",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/size","value":"big"}]"#,
    ])?;
    assert_eq!(k(&["get", "configmap", "settings", "-o", "jsonpath={.data.color}-{.data.size}"])?, "red-big");
    let env = r#"{"spec":{"template":{"spec":{"containers":[{"name":"testapp","env":[{"name":"A","value":"b"}]}]}}}}"#;
    k(&["patch", "deployment", "web", "-p", env])?;
    let image =
        "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].value}";
    assert_eq!(
        k(&["get", "deployment", "web", "-o", image])?,
        format!("{} b", images::reference("testapp-v1"))
    );
    k(&["scale", "deployment", "web", "--replicas=3"])?;
    cluster.rolled_out("deployment/web")?;
    assert_eq!(k(&["get", "deployment", "web", "-o", "jsonpath={.status.readyReplicas}"])?, "3");
    k(&["set", "image", "deployment/web", &format!("testapp={}", images::reference("testapp-v2"))])?;
    cluster.rolled_out("deployment/web")?;
    let error = k(&["patch", "deployment", "web", "--type=merge", "-p", r#"{"spec":{"replicas":"many"}}"#]);
    assert!(error.is_err(), "a wrong type is refused");
    Ok(())
}

/// Server-side apply, diff and edit, and who comes to own what.
fn owning(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    let path = cluster.dir().join("owned.yaml").display().to_string();
    let write = |color: &str| {
        let manifest = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: owned\ndata:\n  color: {color}\n  size: big\n"
        );
        std::fs::write(&path, manifest)
    };
    write("red")?;
    assert_eq!(k(&["apply", "--server-side", "-f", &path])?, "configmap/owned serverside-applied");
    let owners = "jsonpath={range .metadata.managedFields[*]}{.manager}/{.operation} {end}";
    assert_eq!(k(&["get", "configmap", "owned", "-o", owners])?, "kubectl/Apply");
    assert!(!k(&["get", "configmap", "owned", "-o", "yaml"])?.contains("managedFields"));
    let shown = k(&["get", "configmap", "owned", "-o", "yaml", "--show-managed-fields"])?;
    assert!(shown.contains("f:color: {}") && shown.contains("manager: kubectl"), "{shown}");

    // Somebody else takes a field: a conflict that names him, and a way to take it back.
    k(&["patch", "configmap", "owned", "--field-manager=painter", "-p", r#"{"data":{"color":"blue"}}"#])?;
    let refused = cluster.kubectl.command(&["apply", "--server-side", "-f", &path]).output()?;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(
        text.contains("Apply failed with 1 conflict: conflict with \"painter\" using v1: .data.color"),
        "{text}"
    );
    let diff = cluster
        .kubectl
        .command(&["diff", "--server-side", "--force-conflicts", "-f", &path])
        .env("KUBECTL_EXTERNAL_DIFF", "diff -u")
        .output()?;
    let text = String::from_utf8_lossy(&diff.stdout);
    assert_eq!(diff.status.code(), Some(1), "{text}{}", String::from_utf8_lossy(&diff.stderr));
    assert!(text.contains("-  color: blue") && text.contains("+  color: red"), "{text}");
    k(&["apply", "--server-side", "--force-conflicts", "-f", &path])?;
    assert_eq!(k(&["get", "configmap", "owned", "-o", owners])?, "kubectl/Apply");
    let same = cluster.kubectl.command(&["diff", "--server-side", "-f", &path]).output()?;
    assert_eq!(same.status.code(), Some(0), "{}", String::from_utf8_lossy(&same.stdout));

    let edit = cluster
        .kubectl
        .command(&["edit", "configmap", "owned"])
        .env("KUBE_EDITOR", "sed -i s/big/small/")
        .output()?;
    assert!(edit.status.success(), "{}", String::from_utf8_lossy(&edit.stderr));
    assert_eq!(k(&["get", "configmap", "owned", "-o", "jsonpath={.data.size}"])?, "small");
    assert_eq!(k(&["get", "configmap", "owned", "-o", owners])?, "kubectl/Apply kubectl-edit/Update");

    // From client-side to server-side apply: kubectl takes what it owned before, without a conflict.
    k(&["apply", "view-last-applied", "deployment/hello"])?;
    let sample = write_manifest(cluster)?;
    let applied = k(&["apply", "--server-side", "-f", &sample])?;
    assert!(applied.contains("deployment.apps/hello serverside-applied"), "{applied}");
    let managers = k(&["get", "deployment", "hello", "-o", owners])?;
    // kubectl keeps the annotation of client-side apply under a name of its own.
    let mut managers: Vec<&str> = managers.split_whitespace().collect();
    managers.sort_unstable();
    assert_eq!(managers, ["kube-controller-manager/Update", "kubectl-last-applied/Apply", "kubectl/Apply"]);
    // Of a Deployment that is not rolled out here, whose pods stay.
    let pod = k(&["get", "pods", "-l", "app=hello", "-o", "name"])?;
    let pod = pod.lines().next().context("a pod")?;
    let owners = k(&["get", pod, "-o", owners])?;
    assert_eq!(owners, "kube-controller-manager/Update kubelet/Update");
    k(&["delete", "configmap", "owned"])?;
    Ok(())
}

fn streaming(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    assert!(k(&["logs", "deploy/hello"])?.contains("serving v1 hello-"));
    let image = images::reference("testapp-v1");
    k(&[
        "run",
        "counter",
        "--image",
        &image,
        "--restart=Never",
        "--",
        "count",
        "--per-second",
        "50",
        "--seconds",
        "600",
    ])?;
    k(&["wait", "--for=condition=Ready", "pod/counter", "--timeout=30s"])?;
    let mut follow = cluster.kubectl.command(&["logs", "-f", "counter"]).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(follow.stdout.take().context("stdout is piped")?).lines();
    for (n, line) in lines.take(150).enumerate() {
        assert_eq!(line?, format!("line {n}"), "followed without a gap");
    }
    follow.kill()?;
    follow.wait()?;
    assert_eq!(k(&["logs", "counter", "--tail=3"])?.lines().count(), 3);
    assert!(k(&["logs", "counter", "--tail=1", "--timestamps"])?.starts_with("20"));

    assert_eq!(k(&["exec", "counter", "--", "cat", "/version"])?, "v1");
    let failed = cluster
        .kubectl
        .command(&["exec", "counter", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])
        .output()?;
    assert_eq!(failed.status.code(), Some(7), "{}", String::from_utf8_lossy(&failed.stderr));
    assert_eq!(String::from_utf8_lossy(&failed.stdout), "out\n");
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("err\n"));
    let echoed =
        cluster.kubectl.run_with_input(&["exec", "-i", "counter", "--", "cat"], "through stdin\n")?;
    assert_eq!(echoed, "through stdin\n");
    let screen = on_a_terminal(cluster, "exec -it counter -- sh", "tty; echo sum=$((40+2)); exit\n")?;
    assert!(screen.contains("/dev/pts/") && screen.contains("sum=42"), "{screen}");

    let scratch = tempfile_dir()?;
    let file = scratch.path().join("sent");
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&file, &content)?;
    let (to, from) = (file.display().to_string(), scratch.path().join("back").display().to_string());
    k(&["cp", &to, "counter:/tmp/sent"])?;
    k(&["cp", "counter:/tmp/sent", &from])?;
    assert_eq!(std::fs::read(&from)?, content, "copied there and back");

    let mut forward =
        cluster.kubectl.command(&["port-forward", "deploy/hello", ":8080"]).stdout(Stdio::piped()).spawn()?;
    let mut first = String::new();
    BufReader::new(forward.stdout.as_mut().context("stdout is piped")?).read_line(&mut first)?;
    let port: u16 = first
        .split("127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .context("a port")?
        .parse()?;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 200];
        let read = stream.read(&mut answer)?;
        assert!(String::from_utf8_lossy(&answer[..read]).contains("v1 hello-") || read > 0);
    }
    forward.kill()?;
    forward.wait()?;

    let busybox = images::reference("busybox");
    let line = format!(
        "run once --image={busybox} --image-pull-policy=IfNotPresent --rm -it --restart=Never -- sh -c 'echo from-$HOSTNAME'"
    );
    let screen = on_a_terminal(cluster, &line, "")?;
    assert!(screen.contains("from-once") && screen.contains(r#"pod "once" deleted"#), "{screen}");
    Ok(())
}

fn tempfile_dir() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir()?)
}

fn deleting(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    assert!(k(&["delete", "deployment", "web"])?.contains(r#"deployment.apps "web" deleted"#));
    k(&["wait", "--for=delete", "pods", "-l", "app=web", "--timeout=60s"])?;
    k(&["delete", "pod", "counter", "--grace-period=1"])?;
    k(&["delete", "namespace", "other", "--timeout=60s"])?;
    k(&["delete", "-f", write_manifest(cluster)?.as_str(), "--timeout=60s"])?;
    cluster.eventually(30, || {
        let left = k(&["get", "pods", "-o", "name"])?;
        ensure!(left.is_empty(), "pods left: {left}");
        Ok(())
    })?;
    // Nothing of the pods is left on the node.
    let node = cluster.node(1)?;
    cluster.eventually(20, || {
        let dirs = cmd::text(node.command("client", "ls").arg("/var/lib/kubelet/pods"))?;
        ensure!(dirs.is_empty(), "pod folders left: {dirs}");
        let links = cmd::text(node.command("client", "ip").args(["-br", "link", "show", "type", "veth"]))?;
        ensure!(links.lines().all(|line| line.starts_with("eth0")), "links left: {links}");
        Ok(())
    })
}

fn write_manifest(cluster: &TestCluster) -> Result<String> {
    let path = cluster.dir().join("sample.yaml");
    std::fs::write(&path, sample::MANIFEST)?;
    Ok(path.display().to_string())
}
