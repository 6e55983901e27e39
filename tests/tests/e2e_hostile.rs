//! Pods and plugins that mean harm, and a disk that is full: the node goes on, and so do the pods beside them.
//!
//! `KEELSON_HOSTILE=long cargo test -p keelson-tests --test e2e_hostile -- --nocapture` floods a log with a whole gigabyte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keelson_tests::testbed::disk;
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::node_state::NodeState;

const MIB: u64 = 1 << 20;

#[test]
fn a_node_goes_on() -> Result<()> {
    let args = ["--container-log-max-size=4Mi", "--container-log-max-files=3"];
    let cluster = TestCluster::up_prepared("e2e-hostile", 2, &["busybox"], &args, |cluster| {
        // Room for what the node keeps of its pods.
        disk::make_small(&cluster.node(2)?, 192)
    })?;
    let started = Instant::now();
    flooded_log(&cluster)?;
    eprintln!("flooded log: {:?}", started.elapsed());
    let started = Instant::now();
    wild_plugin(&cluster)?;
    eprintln!("wild plugin: {:?}", started.elapsed());
    let started = Instant::now();
    let cluster = full_disk(cluster)?;
    eprintln!("full disk: {:?}", started.elapsed());
    cluster.down()
}

fn pod(name: &str, node: &str, script: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{
            "nodeName": "{node}", "terminationGracePeriodSeconds": 1,
            "volumes": [{{"name": "data", "emptyDir": {{}}}}],
            "containers": [{{"name": "main", "image": "keelson.test/busybox:latest", "imagePullPolicy": "IfNotPresent",
                "volumeMounts": [{{"name": "data", "mountPath": "/data"}}],
                "command": ["sh", "-c", {script:?}]}}]}}}}"#
    )
}

fn ready(cluster: &TestCluster, pods: &[&str], limit: &str) -> Result<()> {
    let mut args = vec!["wait", "--for=condition=Ready", limit];
    args.extend(pods);
    cluster.kubectl.run(&args).map(drop)
}

/// A figure of `/proc/<pid>/status` in bytes.
fn memory(pid: i32, figure: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
    let kib: u64 = line.context("no such figure")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// All podinits of a host.
fn podinits(cgroup: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(podinits(&entry.path()));
        }
    }
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let is_podinit = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "keelson-podinit")
    };
    found.extend(pids.lines().filter_map(|pid| pid.parse().ok()).filter(is_podinit));
    found
}

/// The files of a folder with their sizes.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len()))).collect()
}

/// One line of half a gigabyte, or a whole one: neither podinit nor the agent holds it, it takes a bounded part of the disk, and
/// can be read.
fn flooded_log(cluster: &TestCluster) -> Result<()> {
    let bytes = match std::env::var("KEELSON_HOSTILE").as_deref() {
        Ok("long") => 1024 * MIB,
        Ok(other) => anyhow::bail!("KEELSON_HOSTILE={other:?}: the only other form is \"long\""),
        Err(_) => 512 * MIB,
    };
    let host = cluster.node(1)?;
    let agent = cluster.daemon_pid("node-1").context("the agent runs")?;
    let logs = host.dir.join("var/log/pods");
    let before = memory(agent, "VmRSS")?;
    let script = format!("sleep 1; head -c {bytes} /dev/zero; touch /tmp/done; sleep 600");
    cluster.kubectl.apply(&pod("flood", "node-1", &script))?;
    ready(cluster, &["pod/flood"], "--timeout=20s")?;
    let pods = files(&logs);
    let dir =
        &pods.iter().find(|(path, _)| path.display().to_string().contains("_flood_")).context("logs")?.0;
    let dir = dir.join("main");
    let podinits = podinits(&host.cgroup);
    ensure!(!podinits.is_empty(), "podinits are found");

    let started = Instant::now();
    let mut follower = cluster.kubectl.command(&["logs", "-f", "flood"]).stdout(Stdio::null()).spawn()?;
    let over = AtomicBool::new(false);
    let peak = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !over.load(Ordering::Relaxed) {
                peak = peak.max(files(&dir).iter().map(|(_, size)| size).sum());
                std::thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        let done = cluster.eventually(90, || cluster.sh("flood", "test -e /tmp/done"));
        over.store(true, Ordering::Relaxed);
        let peak = sampler.join().map_err(|_panic| anyhow::anyhow!("the sampler panicked"))?;
        done.map(|_| peak)
    })?;
    let took = started.elapsed();
    follower.kill()?;
    follower.wait()?;
    ensure!(peak < bytes / 2, "the log took {peak} bytes of the disk");
    // One more while the newest of the old ones is packed.
    cluster.eventually(10, || {
        let files = files(&dir);
        ensure!(files.len() <= 3, "{files:?}");
        Ok(())
    })?;

    // Parts of a line, as CRI has them.
    let text = fs::read(dir.join("0.log"))?;
    let mut lines = 0;
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        ensure!(&line[30..40] == b" stdout P ", "{:?}", String::from_utf8_lossy(&line[..line.len().min(60)]));
        ensure!(line.len() <= 40 + 16 * 1024, "a part of {} bytes", line.len());
        lines += 1;
    }
    ensure!(lines > 0 || text.is_empty(), "the newest file has lines");

    // Reading it is bounded too.
    let read = |args: &[&str]| -> Result<u64> {
        let output = cluster.kubectl.command(args).output()?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout.len() as u64)
    };
    assert_eq!(read(&["logs", "flood", "--limit-bytes=100000"])?, 100_000);
    assert_eq!(read(&["logs", "flood", "--tail=1", "--limit-bytes=3000000"])?, 3_000_000);
    assert_eq!(read(&["logs", "flood", "-f", "--limit-bytes=3000000"])?, 3_000_000);
    let whole = read(&["logs", "flood"])?;
    ensure!(whole > 3_000_000 && whole < bytes / 2, "{whole}");

    let agent_peak = memory(agent, "VmHWM")?.saturating_sub(before);
    let podinit_peak = podinits.iter().map(|pid| memory(*pid, "VmHWM")).collect::<Result<Vec<_>>>()?;
    let podinit_peak = podinit_peak.into_iter().max().unwrap_or_default();
    eprintln!(
        "{} MiB in {took:?}: on disk at most {} MiB, agent {} MiB more than before, podinit {} KiB",
        bytes / MIB,
        peak / MIB,
        agent_peak / MIB,
        podinit_peak / 1024
    );
    ensure!(agent_peak < 48 * MIB, "the agent grew by {agent_peak} bytes");
    ensure!(podinit_peak < 4 * MIB, "podinit grew to {podinit_peak} bytes");
    // What is set aside is compressed as soon as there is time.
    cluster.eventually(20, || {
        let sum: u64 = files(&dir).iter().map(|(_, size)| size).sum();
        ensure!(sum < peak.max(16 * MIB), "{sum}");
        let packed = files(&dir).iter().any(|(path, _)| path.extension().is_some_and(|e| e == "gz"));
        ensure!(packed, "{:?}", files(&dir));
        Ok(())
    })?;
    cluster.kubectl.run(&["delete", "pod", "flood"])?;
    cluster.eventually(10, || {
        ensure!(!dir.exists(), "the logs go with the pod");
        Ok(())
    })
}

/// Which pods get what of the plugin, and what the pod's event says of it.
const WILD: [(&str, &str, &str); 4] = [
    ("garbage", "head -c 100000000 /dev/zero", "output is longer than 1048576 bytes"),
    ("refused", r#"echo '{"cniVersion":"1.1.0","code":11,"msg":"not today"}'; exit 1"#, "not today"),
    ("silent", "echo for no reason >&2; exit 3", "for no reason"),
    (
        "loopback",
        r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"127.0.0.1/8"}]}'"#,
        "127.0.0.1, which no pod can have",
    ),
];

/// A plugin that hangs, fails and lies: its pods wait and say why, others start, and all is well once it is mended.
fn wild_plugin(cluster: &TestCluster) -> Result<()> {
    let host = cluster.node(1)?;
    let conf = host.dir.join("etc/cni/net.d");
    let (own, _) = files(&conf).into_iter().next().context("the agent's own configuration")?;
    let text = fs::read_to_string(&own)?;
    ensure!(text.contains("\"keelson-cni\""), "{text}");
    let cases: String =
        WILD.iter().map(|(name, work, _)| format!("*={name};*) {work}; exit 0;;\n")).collect();
    let plugin = host.dir.join("opt/cni/bin/wild");
    fs::write(
        &plugin,
        format!(
            "#!/bin/sh\nif [ -e /etc/wild ] && [ $CNI_COMMAND = ADD ]; then case \"$CNI_ARGS\" in\n{cases}\
             *=hangs;*) while [ -e /etc/wild ]; do sleep 0.2; done; exit 1;;\nesac; fi\nexec /opt/cni/bin/keelson-cni\n"
        )
        .replace(";*)", "\\;*)"),
    )?;
    fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let before = NodeState::take(&host)?;
    fs::write(host.dir.join("etc/wild"), "")?;
    let conf = conf.join("00-wild.conflist");
    fs::write(&conf, text.replace("\"keelson-cni\"", "\"wild\""))?;

    let names: Vec<&str> = WILD.iter().map(|(name, ..)| *name).chain(["hangs"]).collect();
    for name in &names {
        cluster.kubectl.apply(&pod(name, "node-1", "sleep 600"))?;
    }
    cluster.kubectl.apply(&pod("fine", "node-1", "sleep 600"))?;
    ready(cluster, &["pod/fine"], "--timeout=20s")?;
    for (name, _, expected) in WILD {
        cluster.eventually(30, || {
            let said = cluster.kubectl.run(&[
                "get",
                "events",
                "--field-selector",
                &format!("involvedObject.name={name},reason=FailedCreatePodSandBox"),
                "-o",
                "jsonpath={.items[*].message}",
            ])?;
            ensure!(said.contains(expected), "{name}: {said:?}");
            Ok(())
        })?;
    }
    let phase = cluster.kubectl.run(&["get", "pod", "hangs", "-o", "jsonpath={.status.phase}"])?;
    assert_eq!(phase, "Pending");
    fs::remove_file(host.dir.join("etc/wild"))?;
    let pods: Vec<String> = names.iter().map(|name| format!("pod/{name}")).collect();
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    ready(cluster, &pods, "--timeout=60s")?;
    let mut delete = vec!["delete", "pod", "fine"];
    delete.extend(&names);
    cluster.kubectl.run(&delete)?;
    fs::remove_file(conf)?;
    // Nothing of all the attempts is left.
    cluster.eventually(20, || {
        let added = NodeState::take(&host)?.added_since(&before);
        let added: Vec<_> = added.iter().filter(|line| !line.contains("last_reserved_ip")).collect();
        ensure!(added.is_empty(), "{added:#?}");
        Ok(())
    })
}

/// Condition and taint of a full disk.
fn has_disk_pressure(cluster: &TestCluster, expected: bool) -> Result<()> {
    let node = cluster.kubectl.json(&["get", "node", "node-2"])?;
    let condition = |name: &str| {
        let all = node["status"]["conditions"].as_array();
        all.and_then(|all| all.iter().find(|c| c["type"] == name)).map(|c| c["status"] == "True")
    };
    let tainted = node["spec"]["taints"].as_array().is_some_and(|taints| {
        taints.iter().any(|t| t["key"] == "node.kubernetes.io/disk-pressure" && t["effect"] == "NoSchedule")
    });
    ensure!(condition("Ready") == Some(true), "the node stays ready");
    ensure!(condition("DiskPressure") == Some(expected) && tainted == expected, "{node}");
    Ok(())
}

/// The disk of node-2 is full to the last byte, and then is not.
fn full_disk(mut cluster: TestCluster) -> Result<TestCluster> {
    let host = cluster.node(2)?;
    let count = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.1; done";
    cluster.kubectl.apply(&pod("writer", "node-2", count))?;
    ready(&cluster, &["pod/writer"], "--timeout=20s")?;
    let identity =
        "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}";
    let identity = ["get", "pod", "writer", "-o", identity];
    let before = cluster.kubectl.run(&identity)?;
    has_disk_pressure(&cluster, false)?;

    disk::fill(&host)?;
    cluster.eventually(40, || has_disk_pressure(&cluster, true))?;
    // Volumes and the writable layer: the pod's own affair.
    let failed = cluster.sh("writer", "echo x > /data/file").map(drop).err().context("there is no room")?;
    ensure!(format!("{failed:#}").contains("No space left on device"), "{failed:#}");
    cluster.kubectl.apply(&pod("late", "node-2", "sleep 600"))?;
    cluster.eventually(30, || {
        let path = "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
        let said = cluster.kubectl.run(&[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=late",
            "-o",
            path,
        ])?;
        let clear = said.lines().any(|line| {
            line.contains("No space left on device")
                && ["FailedCreatePodSandBox", "FailedMount", "Failed"].iter().any(|r| line.starts_with(r))
        });
        ensure!(clear, "{said:?}");
        Ok(())
    })?;
    // What writes logs is neither stopped nor killed. The agent can even be started anew.
    assert_eq!(cluster.kubectl.run(&identity)?, before);
    cluster.kill_daemon("node-2")?;
    cluster.start_agent(2)?;
    cluster.eventually(30, || {
        assert_eq!(cluster.sh("writer", "echo still here")?, "still here");
        Ok(())
    })?;

    disk::empty(&host)?;
    cluster.eventually(40, || has_disk_pressure(&cluster, false))?;
    ready(&cluster, &["pod/late"], "--timeout=60s")?;
    assert_eq!(cluster.kubectl.run(&identity)?, before);
    cluster.sh("writer", "echo x > /data/file")?;
    // Lines that had no room are lost, all others are whole and in order; they come again.
    let numbers = |text: &str| -> Result<Vec<u64>> {
        let number = |line: &str| line.strip_prefix("line ").and_then(|n| n.parse().ok());
        text.lines().map(|line| number(line).with_context(|| format!("a torn line: {line:?}"))).collect()
    };
    let seen = numbers(&cluster.kubectl.run(&["logs", "writer"])?)?;
    ensure!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    cluster.eventually(10, || {
        let now = numbers(&cluster.kubectl.run(&["logs", "writer", "--tail=1"])?)?;
        ensure!(now > seen[seen.len() - 1..].to_vec(), "{now:?}");
        Ok(())
    })?;
    cluster.kubectl.run(&["delete", "pod", "writer", "late"])?;
    Ok(cluster)
}
