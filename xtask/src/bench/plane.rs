//! A control plane that is measured beside another one: its processes in the master's host, and the client that loads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_tests::testbed::cluster::Cluster;
use keelson_tests::testbed::host::{Host, ended};
use keelson_tests::{cmd, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::compare::{Comparison, Whose};
use super::{daemon, kilobytes, pss};

/// How long a control plane may take to be ready, to freeze or to end.
const LIMIT: Duration = Duration::from_secs(60);
/// Kilobytes of what is printed as a megabyte.
pub const MB: f64 = 1024.0;

/// One that runs.
pub struct Plane {
    /// Whose figures it gives.
    pub whose: Whose,
    /// Where it runs.
    pub host: Host,
    /// An administrator's kubeconfig, as the host has it.
    pub kubeconfig: String,
    /// Its processes, in the order in which they wake.
    pub processes: Vec<Process>,
}

/// A process of it, alone in its cgroup.
pub struct Process {
    /// Name of the cgroup, below the host's `system`.
    pub unit: &'static str,
    /// As the machine sees it.
    pub pid: i32,
}

impl Plane {
    /// Keelson's, which the cluster has started.
    pub fn keelson(cluster: &Cluster) -> Result<Self> {
        Ok(Self {
            whose: Whose::Ours,
            host: cluster.host("master")?,
            kubeconfig: "/etc/kubernetes/admin.conf".to_owned(),
            processes: vec![Process { unit: "master", pid: daemon(cluster, "master")? }],
        })
    }

    /// What it is called in steps.
    pub fn name(&self) -> &'static str {
        match self.whose {
            Whose::Ours => "Keelson",
            Whose::Peers => "upstream",
        }
    }

    /// Runs the measuring program in the host; gives what it prints.
    pub fn client(&self, what: &str, args: &[&str]) -> Result<Value> {
        let program = paths::bin("keelson-bench");
        let mut command = self.host.command("client", &program.to_string_lossy());
        command.args([what, "--kubeconfig", &self.kubeconfig]).args(args);
        let text = cmd::text(&mut command).with_context(|| format!("load {}", self.name()))?;
        match text.as_str() {
            "" => Ok(Value::Null),
            text => Ok(serde_json::from_str(text)?),
        }
    }

    /// Waits until it is ready. One whose process has ended is not waited for.
    pub fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(process) = self.processes.iter().find(|process| ended(process.pid)) {
                bail!("{} ended:\n{}", process.unit, last_words(&self.host, process.unit));
            }
            match self.client("api", &["ready", "--limit", "2"]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_not_yet) => {}
            }
        }
    }

    fn cgroup(&self, process: &Process) -> PathBuf {
        self.host.cgroup.join("system").join(process.unit)
    }

    /// Stops its processes where they are, so that only the other's take time.
    pub fn freeze(&self) -> Result<()> {
        self.processes.iter().rev().try_for_each(|process| self.set_frozen(process, true))
    }

    /// Lets them go on, and waits until it is ready again.
    pub fn thaw(&self) -> Result<()> {
        self.processes.iter().try_for_each(|process| self.set_frozen(process, false))?;
        self.wait_ready()
    }

    fn set_frozen(&self, process: &Process, frozen: bool) -> Result<()> {
        set_frozen(&self.cgroup(process), frozen)
    }

    /// PSS of each of its processes, MB.
    pub fn pss(&self) -> Result<Vec<(&'static str, f64)>> {
        self.processes.iter().map(|process| Ok((process.unit, pss(process.pid)? / MB))).collect()
    }

    /// Runs work; adds what processor time its processes took for it, and how much memory they had at most.
    pub fn watched(
        &self,
        name: &str,
        comparison: &mut Comparison,
        work: impl FnOnce(&mut Comparison) -> Result<()>,
    ) -> Result<()> {
        for process in &self.processes {
            // "Reset the peak resident set size" (proc(5)).
            let path = format!("/proc/{}/clear_refs", process.pid);
            fs::write(&path, "5").with_context(|| format!("write {path}"))?;
        }
        let before = self.cpu_seconds()?;
        work(comparison)?;
        let took = self.cpu_seconds()? - before;
        comparison.add(self.whose, &format!("{name}: processor time of the servers"), "s", took);
        comparison.add(self.whose, &format!("{name}: peak of RSS"), "MB", self.peak()?);
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "kilobytes of some processes")]
    fn peak(&self) -> Result<f64> {
        let peaks = self.processes.iter().map(|process| {
            let path = format!("/proc/{}/status", process.pid);
            kilobytes(&fs::read_to_string(&path).with_context(|| format!("read {path}"))?, "VmHWM")
        });
        Ok(peaks.sum::<Result<u64>>()? as f64 / MB)
    }

    fn cpu_seconds(&self) -> Result<f64> {
        self.processes.iter().try_fold(0.0, |sum, process| {
            let path = self.cgroup(process).join("cpu.stat");
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(sum + usage_seconds(&text).with_context(|| format!("no usage in {}", path.display()))?)
        })
    }

    /// Kills its processes, the last to be started first, and waits until they are gone.
    pub fn end(self) -> Result<()> {
        for process in self.processes.iter().rev() {
            kill(Pid::from_raw(process.pid), Signal::SIGKILL)?;
            let deadline = Instant::now() + LIMIT;
            while !ended(process.pid) {
                if Instant::now() > deadline {
                    bail!("{} does not end", process.unit);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

/// Stops all processes of a cgroup where they are, or lets them go on, and waits until that is so.
pub fn set_frozen(cgroup: &Path, frozen: bool) -> Result<()> {
    fs::write(cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" })
        .with_context(|| format!("freeze or thaw {}", cgroup.display()))?;
    let wanted = if frozen { "frozen 1" } else { "frozen 0" };
    let deadline = Instant::now() + LIMIT;
    while !fs::read_to_string(cgroup.join("cgroup.events"))?.lines().any(|line| line == wanted) {
        if Instant::now() > deadline {
            bail!("{} does not become '{wanted}'", cgroup.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The last lines of what a daemon logged.
pub fn last_words(host: &Host, unit: &str) -> String {
    let log = fs::read_to_string(host.dir.join(format!("log/{unit}.log"))).unwrap_or_default();
    let tail: Vec<&str> = log.lines().rev().take(15).collect();
    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// `usage_usec` of a cgroup's `cpu.stat`, in seconds.
fn usage_seconds(text: &str) -> Option<f64> {
    let us: f64 = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()?;
    Some(us / 1e6)
}

/// Who comes first in a round: each in turn.
pub fn order(round: usize, count: usize) -> Vec<usize> {
    let forward = 0..count;
    if round.is_multiple_of(2) { forward.collect() } else { forward.rev().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_alternates() {
        assert_eq!([0, 1, 2].map(|round| order(round, 2)), [vec![0, 1], vec![1, 0], vec![0, 1]]);
        assert_eq!(order(1, 1), [0]);
    }

    #[test]
    fn processor_time_is_read() {
        assert_eq!(usage_seconds("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n"), Some(2.5));
        assert_eq!(usage_seconds("user_usec 1\n"), None);
    }
}
