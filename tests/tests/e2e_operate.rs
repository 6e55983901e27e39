//! What an operator asks of kubectl: rollouts and their history, changes of templates, debugging, nodes taken out of service,
//! and looking around.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use keelson_tests::images;
use keelson_tests::testbed::fixture::TestCluster;

const MANIFEST: &str = include_str!("e2e_operate.yaml");

#[test]
fn an_operators_commands() -> Result<()> {
    let cluster = TestCluster::up("e2e-operate", 2, &["testapp-v1", "testapp-v2", "busybox"])?;
    cluster.kubectl.apply(MANIFEST)?;
    for workload in ["deployment/web", "daemonset/each", "statefulset/state"] {
        cluster.rolled_out(workload)?;
    }
    deployment_rollouts(&cluster)?;
    other_rollouts(&cluster)?;
    templates(&cluster)?;
    autoscaling(&cluster)?;
    debugging(&cluster)?;
    attaching(&cluster)?;
    nodes(&cluster)?;
    looking(&cluster)?;
    cluster.down()
}

/// What kubectl says when it fails.
fn refused(cluster: &TestCluster, args: &[&str]) -> Result<String> {
    let output = cluster.kubectl.command(args).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "kubectl {args:?} should have been refused: {text}");
    Ok(text)
}

fn image(cluster: &TestCluster, workload: &str) -> Result<String> {
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    cluster.kubectl.run(&["get", workload, "-o", path])
}

/// The revisions that `rollout history` lists, with their causes.
fn history(cluster: &TestCluster, workload: &str) -> Result<Vec<String>> {
    let shown = cluster.kubectl.run(&["rollout", "history", workload])?;
    let is_revision = |line: &&str| line.starts_with(|c: char| c.is_ascii_digit());
    Ok(shown
        .lines()
        .filter(is_revision)
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect())
}

/// Waits for this history: annotations reach it a moment after a rollout.
fn history_is(cluster: &TestCluster, workload: &str, expected: &[&str]) -> Result<()> {
    cluster.eventually(10, || {
        let revisions = history(cluster, workload)?;
        ensure!(revisions == expected, "{workload}: {revisions:?}, not {expected:?}");
        Ok(())
    })
}

fn deployment_rollouts(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    let (v1, v2) = (images::reference("testapp-v1"), images::reference("testapp-v2"));
    history_is(cluster, "deployment/web", &["1 <none>"])?;
    assert_eq!(
        k(&["set", "image", "deployment/web", &format!("app={v2}")])?,
        "deployment.apps/web image updated"
    );
    k(&["annotate", "deployment/web", "kubernetes.io/change-cause=the second"])?;
    let status = k(&["rollout", "status", "deployment/web", "--timeout=90s"])?;
    assert!(status.ends_with("deployment \"web\" successfully rolled out"), "{status}");
    history_is(cluster, "deployment/web", &["1 <none>", "2 the second"])?;
    let second = k(&["rollout", "history", "deployment/web", "--revision=2"])?;
    assert!(second.contains("with revision #2") && second.contains(&v2), "{second}");

    assert_eq!(k(&["rollout", "undo", "deployment/web"])?, "deployment.apps/web rolled back");
    cluster.rolled_out("deployment/web")?;
    assert_eq!(image(cluster, "deployment/web")?, v1);
    let revisions = history(cluster, "deployment/web")?;
    assert_eq!(revisions.iter().map(|r| &r[..1]).collect::<Vec<_>>(), ["2", "3"], "{revisions:?}");
    k(&["rollout", "undo", "deployment/web", "--to-revision=2"])?;
    cluster.rolled_out("deployment/web")?;
    assert_eq!(image(cluster, "deployment/web")?, v2);
    let unknown = refused(cluster, &["rollout", "undo", "deployment/web", "--to-revision=9"])?;
    assert!(unknown.contains("unable to find specified revision 9 in history"), "{unknown}");

    let pods = || k(&["get", "pods", "-l", "app=web", "-o", "name", "--sort-by=.metadata.name"]);
    let before = pods()?;
    assert_eq!(k(&["rollout", "restart", "deployment/web"])?, "deployment.apps/web restarted");
    cluster.rolled_out("deployment/web")?;
    cluster.eventually(30, || {
        let after = pods()?;
        ensure!(after.lines().count() == 2 && before.lines().all(|pod| !after.contains(pod)), "{after}");
        Ok(())
    })?;

    let sets = || Ok::<_, anyhow::Error>(k(&["get", "rs", "-l", "app=web", "-o", "name"])?.lines().count());
    let known = sets()?;
    assert_eq!(k(&["rollout", "pause", "deployment/web"])?, "deployment.apps/web paused");
    k(&["set", "env", "deployment/web", "COLOR=red"])?;
    k(&[
        "wait",
        "--for=jsonpath={.status.conditions[?(@.type==\"Progressing\")].reason}=DeploymentPaused",
        "deployment/web",
        "--timeout=20s",
    ])?;
    assert_eq!(sets()?, known, "nothing is rolled out while paused");
    let twice = refused(cluster, &["rollout", "pause", "deployment/web"])?;
    assert!(twice.contains("is already paused"), "{twice}");
    assert_eq!(k(&["rollout", "resume", "deployment/web"])?, "deployment.apps/web resumed");
    cluster.rolled_out("deployment/web")?;
    assert_eq!(sets()?, known + 1);
    Ok(())
}

/// DaemonSets and StatefulSets keep their history in ControllerRevisions.
fn other_rollouts(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    let (v1, v2) = (images::reference("testapp-v1"), images::reference("testapp-v2"));
    for (workload, said, app) in [
        ("daemonset/each", "daemonset.apps/each", "each"),
        ("statefulset/state", "statefulset.apps/state", "state"),
    ] {
        history_is(cluster, workload, &["1 <none>"])?;
        k(&["set", "image", workload, &format!("app={v2}")])?;
        cluster.rolled_out(workload)?;
        history_is(cluster, workload, &["1 <none>", "2 <none>"])?;
        let first = k(&["rollout", "history", workload, "--revision=1"])?;
        assert!(first.contains(&v1), "{first}");
        let kept = k(&["get", "controllerrevisions", "-l", &format!("app={app}"), "--no-headers"])?;
        assert_eq!(kept.lines().filter(|line| line.contains(said)).count(), 2, "{kept}");
        assert_eq!(k(&["rollout", "undo", workload])?, format!("{said} rolled back"));
        cluster.rolled_out(workload)?;
        assert_eq!(image(cluster, workload)?, v1);
        history_is(cluster, workload, &["2 <none>", "3 <none>"])?;
        assert_eq!(k(&["rollout", "restart", workload])?, format!("{said} restarted"));
        cluster.rolled_out(workload)?;
    }
    Ok(())
}

fn templates(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    let container = |path: &str| {
        k(&["get", "deployment/web", "-o", &format!("jsonpath={{.spec.template.spec.containers[0]{path}}}")])
    };
    k(&["create", "configmap", "settings", "--from-literal=SIZE=big"])?;
    assert_eq!(k(&["set", "env", "deployment/web", "SHAPE=round"])?, "deployment.apps/web env updated");
    k(&["set", "env", "deployment/web", "--from=configmap/settings"])?;
    assert!(k(&["set", "env", "deployment/web", "--list"])?.contains("SHAPE=round"));
    assert_eq!(container(".env[?(@.name==\"SIZE\")].valueFrom.configMapKeyRef.key")?, "SIZE");
    k(&["set", "env", "deployment/web", "SHAPE-"])?;
    assert!(!k(&["set", "env", "deployment/web", "--list"])?.contains("SHAPE"));
    assert_eq!(
        k(&["set", "resources", "deployment/web", "--requests=cpu=10m,memory=8Mi", "--limits=memory=64Mi"])?,
        "deployment.apps/web resource requirements updated"
    );
    assert_eq!(container(".resources.requests.cpu")?, "10m");
    assert_eq!(container(".resources.limits.memory")?, "64Mi");
    k(&["create", "serviceaccount", "robot"])?;
    k(&["set", "serviceaccount", "deployment/web", "robot"])?;
    cluster.rolled_out("deployment/web")
}

/// Nothing scales by metrics, and who asks for it is told.
fn autoscaling(cluster: &TestCluster) -> Result<()> {
    let line = ["autoscale", "deployment", "web", "--max=5", "--cpu-percent=80"];
    let asked = cluster.kubectl.command(&line).output()?;
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("Warning: no controller of this cluster scales by metrics"), "{asked:?}");
    let shown = cluster.kubectl.run(&["get", "hpa", "web", "--no-headers"])?;
    assert!(shown.contains("Deployment/web") && shown.contains("cpu: <unknown>/80%"), "{shown}");
    cluster.kubectl.run(&["delete", "hpa", "web"])?;
    Ok(())
}

/// A container put into a running pod sees the processes of the one that it is to look at.
fn debugging(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    let busybox = images::reference("busybox");
    let pod = "state-0";
    let before = k(&["get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"])?;
    k(&[
        "debug",
        pod,
        "--image",
        &busybox,
        "--image-pull-policy=IfNotPresent",
        "-c",
        "looker",
        "--target=app",
        // CAP_SYS_PTRACE: the target runs as another user.
        "--profile=general",
        "--",
        "sh",
        "-c",
        "echo looking; sleep 600",
    ])?;
    let state = "jsonpath={.status.ephemeralContainerStatuses[0].state.running.startedAt}";
    cluster.eventually(30, || {
        ensure!(!k(&["get", "pod", pod, "-o", state])?.is_empty(), "the debugger runs");
        Ok(())
    })?;
    cluster.eventually(10, || {
        let logs = k(&["logs", pod, "-c", "looker"])?;
        ensure!(logs.contains("looking"), "{logs}");
        Ok(())
    })?;
    let shown = k(&["exec", pod, "-c", "looker", "--", "ps", "-o", "pid,args"])?;
    assert!(shown.contains("sleep 600"), "{shown}");
    let first = shown.lines().find(|line| line.trim_start().starts_with("1 "));
    assert!(
        first.is_some_and(|line| line.contains("testapp")),
        "the target's first process is the first: {shown}"
    );
    let root = k(&["exec", pod, "-c", "looker", "--", "ls", "/proc/1/root/"])?;
    assert!(root.contains("testapp"), "the target's files: {root}");
    let described = k(&["describe", "pod", pod])?;
    assert!(described.contains("Ephemeral Containers:") && described.contains("looker"), "{described}");
    assert_eq!(k(&["get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"])?, before);

    // A copy of the pod with another command.
    k(&[
        "debug",
        pod,
        "--copy-to=copy",
        "--container=app",
        "--image-pull-policy=IfNotPresent",
        "--",
        "/testapp",
        "count",
        "--per-second",
        "5",
        "--seconds",
        "600",
    ])?;
    k(&["wait", "--for=condition=Ready", "pod/copy", "--timeout=30s"])?;
    k(&["delete", "pod", "copy", "--grace-period=1"])?;
    Ok(())
}

fn attaching(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    k(&["wait", "--for=condition=Ready", "pod/ticker", "pod/echo", "--timeout=30s"])?;
    let mut attached = cluster
        .kubectl
        .command(&["attach", "ticker"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(attached.stdout.take().context("stdout is piped")?).lines();
    let first = lines.next().context("a line")??;
    let second = lines.next().context("another line")??;
    attached.kill()?;
    attached.wait()?;
    let number = |line: &str| line.trim_start_matches("tick ").parse::<u32>();
    assert_eq!(number(&second)?, number(&first)? + 1, "{first:?} {second:?}");
    let echoed = cluster.kubectl.run_with_input(&["attach", "-i", "echo"], "through attach\n")?;
    assert!(echoed.contains("through attach"), "{echoed}");
    k(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/echo", "--timeout=20s"])?;
    Ok(())
}

/// The nodes that pods with this label are on.
fn nodes_of(cluster: &TestCluster, label: &str) -> Result<Vec<String>> {
    let path = "jsonpath={range .items[*]}{.spec.nodeName}{\"\\n\"}{end}";
    let shown = cluster.kubectl.run(&["get", "pods", "-l", label, "-o", path])?;
    Ok(shown.split_whitespace().map(str::to_owned).collect())
}

fn nodes(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    assert_eq!(k(&["cordon", "node-2"])?, "node/node-2 cordoned");
    assert_eq!(k(&["cordon", "node-2"])?, "node/node-2 already cordoned");
    let shown = k(&["get", "node", "node-2", "--no-headers"])?;
    assert!(shown.contains("Ready,SchedulingDisabled"), "{shown}");
    assert_eq!(k(&["uncordon", "node-2"])?, "node/node-2 uncordoned");

    let taint = "dedicated=db:NoSchedule";
    assert_eq!(k(&["taint", "nodes", "node-2", taint])?, "node/node-2 tainted");
    let again = refused(cluster, &["taint", "nodes", "node-2", taint])?;
    assert!(again.contains("already has dedicated taint(s)"), "{again}");
    let image = images::reference("testapp-v1");
    k(&["create", "deployment", "picky", "--image", &image, "--replicas=3"])?;
    cluster.rolled_out("deployment/picky")?;
    assert_eq!(nodes_of(cluster, "app=picky")?, ["node-1"; 3]);
    assert_eq!(k(&["taint", "nodes", "node-2", "dedicated-"])?, "node/node-2 untainted");
    // NoExecute drives out what is there.
    assert!(nodes_of(cluster, "app=each")?.contains(&"node-1".to_owned()));
    k(&["taint", "nodes", "node-1", "gone=now:NoExecute"])?;
    cluster.eventually(60, || {
        let on = nodes_of(cluster, "app=picky")?;
        ensure!(on == ["node-2"; 3], "{on:?}");
        Ok(())
    })?;
    k(&["taint", "nodes", "node-1", "gone:NoExecute-"])?;
    cluster.rolled_out("deployment/picky")?;
    cluster.rolled_out("daemonset/each")?;

    let refused = refused(cluster, &["drain", "node-2"])?;
    assert!(refused.contains("cannot delete DaemonSet-managed Pods"), "{refused}");
    let drained =
        k(&["drain", "node-2", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"])?;
    assert!(
        drained.contains("evicting pod default/picky-") && drained.ends_with("node/node-2 drained"),
        "{drained}"
    );
    let left = k(&["get", "pods", "--field-selector=spec.nodeName=node-2", "-o", "name"])?;
    assert!(left.lines().all(|pod| pod.starts_with("pod/each-")) && left.lines().count() == 1, "{left}");
    k(&["uncordon", "node-2"])?;
    cluster.rolled_out("deployment/picky")?;
    assert_eq!(nodes_of(cluster, "app=picky")?, ["node-1"; 3]);
    Ok(())
}

fn looking(cluster: &TestCluster) -> Result<()> {
    let k = |args: &[&str]| cluster.kubectl.run(args).with_context(|| format!("kubectl {args:?}"));
    assert!(k(&["cluster-info"])?.contains("is running at"));
    let dir = cluster.dir().join("dump");
    k(&["cluster-info", "dump", "--output-directory", &dir.display().to_string()])?;
    let dumped = |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| name.to_owned());
    let nodes: serde_json::Value = serde_json::from_str(&dumped("nodes.json")?)?;
    assert_eq!(nodes["items"].as_array().map(Vec::len), Some(2));
    assert!(dumped("default/pods.json")?.contains("state-0"));
    assert!(dumped("default/ticker/logs.txt")?.contains("tick 1"));

    let who = k(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?;
    let shown = k(&["auth", "whoami"])?;
    assert!(!who.is_empty() && shown.contains(&who) && shown.contains("Groups"), "{shown}");
    assert!(k(&["auth", "can-i", "--list"])?.contains("*.*"));
    let who = k(&[
        "auth",
        "whoami",
        "--as=system:serviceaccount:default:robot",
        "-o",
        "jsonpath={.status.userInfo.groups}",
    ])?;
    assert!(who.contains("system:serviceaccounts:default"), "{who}");

    let events = k(&["events", "--for", "pod/ticker"])?;
    let header: Vec<&str> = events.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(header, ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    assert!(events.contains("Created") && events.contains("Started"), "{events}");
    assert!(k(&["events", "--types=Normal", "-A"])?.contains("ScalingReplicaSet"));

    let columns =
        "custom-columns=POD:.metadata.name,IMAGES:.spec.containers[*].image,FIRST:.spec.containers[0].name";
    let shown = k(&["get", "pod", "ticker", "-o", columns])?;
    let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    let busybox = images::reference("busybox");
    assert_eq!(rows, [vec!["POD", "IMAGES", "FIRST"], vec!["ticker", busybox.as_str(), "tick"]]);
    let ready = r#"jsonpath={range .items[?(@.metadata.name=="node-1")]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{end}"#;
    assert_eq!(k(&["get", "nodes", "-o", ready])?, "node-1=True");
    let names = k(&["get", "nodes", "-o", "go-template={{range .items}}{{.metadata.name}} {{end}}"])?;
    assert_eq!(names.trim(), "node-1 node-2");
    let sorted = k(&["get", "nodes", "--sort-by={.metadata.name}", "-o", "name"])?;
    assert_eq!(sorted, "node/node-1\nnode/node-2");
    every_kind(cluster)
}

/// Each kind is shown with its own columns: of what is there in every cluster, the headers.
fn every_kind(cluster: &TestCluster) -> Result<()> {
    let listed = cluster.kubectl.run(&["api-resources", "--verbs=list", "-o", "name"])?;
    ensure!(listed.lines().count() > 50, "{listed}");
    for name in listed.lines() {
        cluster.kubectl.run(&["get", name, "-A"]).with_context(|| format!("get {name}"))?;
    }
    for (kind, header) in [
        ("nodes", "NAME STATUS ROLES AGE VERSION"),
        ("pods", "NAMESPACE NAME READY STATUS RESTARTS AGE"),
        ("deployments", "NAMESPACE NAME READY UP-TO-DATE AVAILABLE AGE"),
        ("replicasets", "NAMESPACE NAME DESIRED CURRENT READY AGE"),
        ("daemonsets", "NAMESPACE NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE"),
        ("statefulsets", "NAMESPACE NAME READY AGE"),
        ("controllerrevisions", "NAMESPACE NAME CONTROLLER REVISION AGE"),
        ("services", "NAMESPACE NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE"),
        ("endpointslices", "NAMESPACE NAME ADDRESSTYPE PORTS ENDPOINTS AGE"),
        ("configmaps", "NAMESPACE NAME DATA AGE"),
        ("serviceaccounts", "NAMESPACE NAME AGE"),
        ("leases", "NAMESPACE NAME HOLDER AGE"),
        ("priorityclasses", "NAME VALUE GLOBAL-DEFAULT AGE PREEMPTIONPOLICY"),
        ("clusterrolebindings", "NAME ROLE AGE"),
        ("clusterroles", "NAME CREATED AT"),
        ("flowschemas", "NAME PRIORITYLEVEL MATCHINGPRECEDENCE DISTINGUISHERMETHOD AGE MISSINGPL"),
        ("servicecidrs", "NAME CIDRS AGE"),
    ] {
        let shown = cluster.kubectl.run(&["get", kind, "-A"])?;
        let got: Vec<&str> = shown.lines().next().unwrap_or_default().split_whitespace().collect();
        assert_eq!(got.join(" "), header, "{kind}");
    }
    Ok(())
}
