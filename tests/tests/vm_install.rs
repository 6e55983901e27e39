//! The Debian packages on a bare Debian: installed, a Ready node by `systemctl enable --now` alone, upgraded beneath a running
//! pod, rebooted, and removed without a trace.
//!
//! `packages_on_a_bare_debian` boots the guest; `guest_packages` runs in there, once in each of two boots.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_tests::kubectl::Kubectl;
use keelson_tests::testbed::sample::retry;
use keelson_tests::testbed::snapshot::Snapshot;
use keelson_tests::vm::programs::{put, put_kubectl};
use keelson_tests::vm::{Kernel, Vm};
use keelson_tests::{cmd, dist, images, paths};
use serde_json::Value;

const IMAGE: &str = "testapp-v1";
const MANIFEST: &str = include_str!("vm_install.yaml");
/// What the machine was like before anything was installed.
const BEFORE: &str = "/result/before";
const UNITS: [&str; 2] = ["keelson-master", "keelson-agent"];
/// The Service of [`MANIFEST`].
const SERVICE: &str = "10.96.7.7:80";
/// How long each thing may take.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn packages_on_a_bare_debian() -> Result<()> {
    let parent = paths::target().join("vm");
    fs::create_dir_all(&parent)?;
    let staged = tempfile::Builder::new().prefix("stage-").tempdir_in(&parent)?;
    for version in dist::VERSIONS {
        for package in dist::PACKAGES {
            let deb = dist::package(package, version)?;
            put(&deb, &staged.path().join(version).join(format!("{package}.deb")))?;
        }
    }
    put(&images::ensure(IMAGE)?, &staged.path().join("image.tar"))?;
    put(&std::env::current_exe()?, &staged.path().join("tests"))?;
    put_kubectl(&staged.path().join("bin"))?;
    let outcome = Vm::debian(Kernel::V6_12)
        .disk_from_dir(staged.path())
        .env("PATH", "/job/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
        .env("CARGO_TARGET_DIR", "/job/target")
        .run(
            &["./tests", "--ignored", "--exact", "--nocapture", "guest_packages"],
            Duration::from_secs(600),
        )?;
    let (log, status) = (outcome.log()?, outcome.status);
    let boots = log.lines().filter(|line| line.starts_with("test result: ok. 1 passed")).count();
    if status != 0 || boots != 2 {
        let kept = parent.join("failed-install");
        outcome.keep(&kept)?;
        bail!("{boots} of 2 boots went well, the last ended with {status}; output is in {}", kept.display());
    }
    Ok(())
}

#[test]
#[ignore = "runs in a guest"]
fn guest_packages() -> Result<()> {
    match std::env::var("KEELSON_BOOT")?.as_str() {
        "1" => install_and_upgrade(),
        "2" => reboot_and_purge(),
        other => bail!("boot {other}: the guest was rebooted by itself"),
    }
}

/// Says how long a stage took.
fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work().with_context(|| name.to_owned());
    println!("stage {name}: {:.1} s", start.elapsed().as_secs_f64());
    result
}

fn install_and_upgrade() -> Result<()> {
    fs::write(BEFORE, stage("take a picture of the machine", picture)?.join("\n"))?;
    stage("install", || install(dist::VERSIONS[0]))?;
    for unit in UNITS {
        let state = unit_state(unit)?;
        ensure!(state == ("inactive".into(), "disabled".into()), "{unit} after the installation: {state:?}");
    }
    stage("enable --now", || run("systemctl", &["enable", "--now", UNITS[0], UNITS[1]]))?;
    stage("Ready", wait_ready)?;
    stage("import an image", || run("keelson-agent", &["image", "import", "/job/image.tar"]))?;
    let kubectl = kubectl()?;
    let pod = stage("a pod answers through its Service", || {
        // Until the namespace has its service account. Validation would fetch a large document.
        retry(Instant::now() + LIMIT, || {
            kubectl.run_with_input(&["apply", "--validate=false", "-f", "-"], MANIFEST)
        })?;
        wait_pod(0)
    })?;
    stage("upgrade", || upgrade(&pod))?;
    fs::write("/run/keelson-vm/reboot", "")?;
    Ok(())
}

/// Installs the next version while somebody asks the pod again and again.
fn upgrade(pod: &Value) -> Result<()> {
    let (processes, agent) = (pod_processes()?, main_pid("keelson-agent")?);
    let stop = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !stop.load(Ordering::SeqCst) {
                ask(SERVICE).with_context(|| format!("request {asked} amid the upgrade"))?;
                asked += 1;
                std::thread::sleep(Duration::from_millis(200));
            }
            Ok::<_, anyhow::Error>(asked)
        });
        let upgraded = install(dist::VERSIONS[1]).and_then(|()| {
            let now = main_pid("keelson-agent")?;
            ensure!(now != agent && now != 0, "the agent was not restarted: {now}");
            wait_ready()?;
            retry(Instant::now() + LIMIT, ensure_no_old_programs)
        });
        stop.store(true, Ordering::SeqCst);
        let asked = asking.join().map_err(|_panic| anyhow::anyhow!("the asking thread panicked"))?;
        upgraded.and(asked)
    })?;
    println!("{asked} requests amid the upgrade, none failed");
    ensure!(asked > 5, "only {asked} requests");
    let after = pod_processes()?;
    ensure!(after == processes, "the pod's processes were {processes:?}, and are {after:?}");
    let now = wait_pod(0)?;
    ensure!(now["status"]["containerStatuses"] == pod["status"]["containerStatuses"], "{now:#}");
    Ok(())
}

fn reboot_and_purge() -> Result<()> {
    stage("Ready again", wait_ready)?;
    stage("the pod came back", || wait_pod(1))?;
    stage("reset refuses", || {
        let output = Command::new("keelson-agent").arg("reset").output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains("runs on this machine already"), "{said}");
        ask(SERVICE).map(drop)
    })?;
    stage("purge", || run("dpkg", &["--purge", "keelson-agent", "keelson-master"]))?;
    let before: BTreeSet<String> = fs::read_to_string(BEFORE)?.lines().map(str::to_owned).collect();
    let after: BTreeSet<String> = stage("look for traces", picture)?.into_iter().collect();
    let left: Vec<_> = after.difference(&before).collect();
    let lost: Vec<_> = before.difference(&after).collect();
    ensure!(left.is_empty() && lost.is_empty(), "left behind: {left:#?}\nlost: {lost:#?}");
    Ok(())
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    cmd::run(Command::new(program).args(args)).map(drop)
}

fn install(version: &str) -> Result<()> {
    let debs = dist::PACKAGES.map(|package| format!("/job/{version}/{package}.deb"));
    run("dpkg", &["--install", &debs[0], &debs[1]])
}

/// ActiveState and UnitFileState.
fn unit_state(unit: &str) -> Result<(String, String)> {
    let show = |what: &str| cmd::text(Command::new("systemctl").args(["show", "--value", "-P", what, unit]));
    Ok((show("ActiveState")?, show("UnitFileState")?))
}

fn main_pid(unit: &str) -> Result<u32> {
    Ok(cmd::text(Command::new("systemctl").args(["show", "--value", "-P", "MainPID", unit]))?.parse()?)
}

/// kubectl as the administrator, whose cache is kept from the machine's own folders. Looked for once: it takes seconds to
/// start here.
fn kubectl() -> Result<&'static Kubectl> {
    static FOUND: OnceLock<Kubectl> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found);
    }
    fs::copy("/etc/kubernetes/admin.conf", "/result/admin.conf").context("read admin.conf")?;
    let found = Kubectl::new(Path::new("/result/admin.conf"))?;
    Ok(FOUND.get_or_init(|| found))
}

/// Whether an object's condition `Ready` is true.
fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Waits until the agent answers and its node, as of this boot, is Ready.
fn wait_ready() -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    retry(deadline, || ask("127.0.0.1:10248"))?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    retry(deadline, || {
        let node = kubectl()?.json(&["get", "node", "guest"])?;
        ensure!(node["status"]["nodeInfo"]["bootID"] == boot.trim() && is_ready(&node), "{node:#}");
        Ok(())
    })
}

/// Waits until the pod has been restarted so often, is ready, and answers through its Service.
fn wait_pod(restarts: u32) -> Result<Value> {
    let deadline = Instant::now() + LIMIT;
    let pod = retry(deadline, || {
        let pod = kubectl()?.json(&["get", "pod", "web"])?;
        let count = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*count == restarts && is_ready(&pod), "{:#}", pod["status"]);
        Ok(pod)
    })?;
    let answer = retry(deadline, || ask(SERVICE))?;
    ensure!(answer.contains("v1 web"), "{answer}");
    Ok(pod)
}

/// Fails while a process runs a program that is not there any more, as the DNS worker does until the next agent has another.
fn ensure_no_old_programs() -> Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        // Gone meanwhile, or the kernel's own.
        let Ok(program) = fs::read_link(entry.path().join("exe")) else { continue };
        let program = program.to_string_lossy();
        ensure!(!program.ends_with("keelson-agent (deleted)"), "{}: {program}", entry.path().display());
    }
    Ok(())
}

/// One request on a connection of its own, from a process of the node.
fn ask(address: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&address.parse()?, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let (mut answer, mut buffer) = (String::new(), [0; 512]);
    loop {
        let read = stream.read(&mut buffer)?;
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
        // The application leaves the connection open after its one line; others close it.
        let whole = answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n'));
        if whole || (read == 0 && !answer.is_empty()) {
            return Ok(answer);
        }
        ensure!(read > 0, "no answer");
    }
}

/// Pid and start time of every process of pods, podinits among them.
fn pod_processes() -> Result<BTreeSet<(u32, u64)>> {
    let mut found = BTreeSet::new();
    let mut folders = vec!["/sys/fs/cgroup/kubepods".into(), Path::new("/sys/fs/cgroup/podinit").to_owned()];
    while let Some(dir) = folders.pop() {
        for pid in fs::read_to_string(dir.join("cgroup.procs"))?.lines() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // Field 22, the 20th after the name (proc_pid_stat(5)).
            let started = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
            found.insert((pid.parse()?, started.context("no start time")?.parse()?));
        }
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    ensure!(found.len() >= 2, "a podinit and a container at least: {found:?}");
    Ok(found)
}

/// All that could be left behind, one line each: files, links, addresses, routes, mounts, cgroups, processes, BPF links and
/// pins, nftables.
fn picture() -> Result<Vec<String>> {
    // What Debian itself writes at each boot or installation.
    const DEBIANS: [&str; 9] = [
        "/var/lib/dpkg",
        "/var/lib/systemd",
        "/var/log/dpkg.log",
        "/var/log/journal",
        "/var/log/wtmp",
        "/var/cache/ldconfig",
        "/etc/ld.so.cache",
        "/result",
        "/job",
    ];
    let mut lines = Vec::new();
    let files = cmd::text(Command::new("find").args(["/", "-xdev"]))?;
    lines.extend(
        files.lines().filter(|path| !DEBIANS.iter().any(|own| path.starts_with(own))).map(str::to_owned),
    );
    let mut table = |name: &str, program: &str, args: &[&str]| -> Result<()> {
        let text = cmd::text(Command::new(program).args(args))?;
        lines.extend(text.lines().map(|line| format!("{name} {line}")));
        Ok(())
    };
    table("link", "ip", &["-br", "link"])?;
    table("address", "ip", &["-br", "address"])?;
    table("route", "ip", &["route", "show", "table", "all"])?;
    table("nft", "nft", &["list", "ruleset"])?;
    table("bpf", "find", &["/sys/fs/bpf"])?;
    table("cgroup", "find", &["/sys/fs/cgroup", "-maxdepth", "1", "-type", "d"])?;
    table(
        "cgroup",
        "find",
        &["/sys/fs/cgroup/system.slice", "-name", "keelson-*", "-not", "-name", "keelson-vm*"],
    )?;
    table("run", "find", &["/run", "-maxdepth", "1"])?;
    table("mount", "findmnt", &["--raw", "--noheadings", "--output", "TARGET,FSTYPE"])?;
    let machine = Snapshot::take()?;
    lines.extend(machine.lines().filter(|line| line.starts_with("process ")).map(str::to_owned));
    // Their numbers count all that ever were.
    let links = machine.lines().filter(|line| line.starts_with("bpf link ")).count();
    lines.push(format!("bpf links {links}"));
    Ok(lines)
}
