//! The cgroup tree of pods: kubepods/… in the layout of kubelet's cgroupfs driver, on cgroup v2.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use keelson_cri::{CriError, LinuxResources, ResourceUsage};
use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager;
use oci_spec::runtime as oci;

/// Controllers that limits need. Without them limits are not enforced.
pub const WANTED: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

/// Parent of podinits' cgroups: beside the pods, so that no limit of a pod stops its logs.
pub const PODINIT: &str = "podinit";

/// The tree below one cgroup2 folder.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
    available: BTreeSet<String>,
}

fn internal(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> CriError {
    move |err| CriError::Internal(format!("{what}: {err}"))
}

impl Tree {
    /// Looks at what the root offers.
    pub fn open(root: &Path) -> io::Result<Self> {
        let controllers = std::fs::read_to_string(root.join("cgroup.controllers"))?;
        let available = controllers.split_whitespace().map(ToString::to_string).collect();
        Ok(Self { root: root.to_path_buf(), available })
    }

    /// Wanted controllers that are not there.
    pub fn missing(&self) -> Vec<String> {
        WANTED.iter().filter(|c| !self.available.contains(**c)).map(ToString::to_string).collect()
    }

    /// Absolute path of a cgroup.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative.trim_start_matches('/'))
    }

    /// Makes a cgroup with its parents; controllers are enabled on the way down, but not in the leaf itself, which is
    /// to hold processes. Idempotent.
    pub fn create(&self, relative: &str) -> Result<(), CriError> {
        let path = Path::new(relative);
        if path.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
            return Err(CriError::Invalid(format!("cgroup path {relative:?} is not a plain relative path")));
        }
        let enable: Vec<String> = self.available.iter().map(|c| format!("+{c}")).collect();
        let mut current = self.root.clone();
        for component in path.components() {
            // One by one: a controller that the kernel refuses here must not take the others with it.
            for controller in &enable {
                if let Err(err) = std::fs::write(current.join("cgroup.subtree_control"), controller) {
                    tracing::debug!(cgroup = %current.display(), %controller, %err, "controller not enabled");
                }
            }
            current.push(component);
            match std::fs::create_dir(&current) {
                Ok(()) => {}
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(internal(format!("making cgroup {}", current.display()))(err)),
            }
        }
        Ok(())
    }

    /// A descriptor to be born into.
    pub fn open_dir(&self, relative: &str) -> Result<OwnedFd, CriError> {
        let path = self.path(relative);
        std::fs::File::open(&path)
            .map(OwnedFd::from)
            .map_err(internal(format!("opening cgroup {}", path.display())))
    }

    /// Sets limits, through libcgroups. Those of controllers that are missing are left out; that the machine lacks them
    /// was accepted with `allow_missing_controllers`.
    pub fn apply(&self, relative: &str, resources: &LinuxResources) -> Result<(), CriError> {
        let fail = |what: String| CriError::Internal(format!("limits of cgroup {relative}: {what}"));
        let oci = to_oci(resources, &self.available).map_err(|e| fail(e.to_string()))?;
        let manager =
            Manager::new(self.root.clone(), PathBuf::from(relative)).map_err(|e| fail(e.to_string()))?;
        let options = ControllerOpt {
            resources: &oci,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        manager.apply(&options).map_err(|e| fail(e.to_string()))?;
        // Not in the OCI resources as cgroup v2 means them: swap of its own, and the group kill.
        if self.available.contains("memory") {
            let write = |file: &str, value: String| {
                std::fs::write(self.path(relative).join(file), value)
                    .map_err(internal(format!("{relative}/{file}")))
            };
            if let Some(swap) = resources.memory_swap_limit {
                // A kernel without swap accounting has no such file and no swap to limit.
                let file = self.path(relative).join("memory.swap.max");
                if file.exists() {
                    write("memory.swap.max", if swap < 0 { "max".into() } else { swap.to_string() })?;
                }
            }
            if let Some(group) = resources.memory_oom_group {
                write("memory.oom.group", u8::from(group).to_string())?;
            }
        }
        Ok(())
    }

    /// Sets limits of a pod's cgroup or of one above pods. What upstream's kubelet writes by itself has its own, linear
    /// mapping of shares to weights (`getCPUWeight`, `pkg/kubelet/cm/cgroup_manager_linux.go`); containers have OCI's.
    pub fn apply_above_containers(&self, relative: &str, resources: &LinuxResources) -> Result<(), CriError> {
        let rest = LinuxResources { cpu_shares: None, ..resources.clone() };
        self.apply(relative, &rest)?;
        match resources.cpu_shares.filter(|_| self.available.contains("cpu")) {
            Some(shares) => {
                std::fs::write(self.path(relative).join("cpu.weight"), linear_weight(shares).to_string())
                    .map_err(internal(format!("{relative}/cpu.weight")))
            }
            None => Ok(()),
        }
    }

    /// Kills everything in a cgroup and below, and waits (bounded) until it is empty. Idempotent.
    pub async fn kill(&self, relative: &str) -> Result<(), CriError> {
        let path = self.path(relative);
        match std::fs::write(path.join("cgroup.kill"), "1") {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(err) => return Err(internal(format!("killing cgroup {}", path.display()))(err)),
        }
        // The kill is done; dying takes the kernel a moment, longer with much memory.
        let mut pause = Duration::from_millis(1);
        for _ in 0..400 {
            if !populated(&path) {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        Err(CriError::Internal(format!("processes in cgroup {} do not die", path.display())))
    }

    /// Removes a cgroup and what is below it. Idempotent.
    pub fn remove(&self, relative: &str) -> Result<(), CriError> {
        let path = self.path(relative);
        remove_tree(&path).map_err(internal(format!("removing cgroup {}", path.display())))
    }

    /// Removes a cgroup if nothing is below it.
    pub fn remove_if_empty(&self, relative: &str) {
        // Busy means that another sandbox of the pod still uses it: that one will remove it.
        let _ = std::fs::remove_dir(self.path(relative));
    }

    /// How often the OOM killer struck in a cgroup.
    pub fn oom_kills(&self, relative: &str) -> u64 {
        let events = std::fs::read_to_string(self.path(relative).join("memory.events")).unwrap_or_default();
        flat_value(&events, "oom_kill").unwrap_or(0)
    }

    /// Reads what a cgroup used.
    pub fn usage(&self, relative: &str) -> ResourceUsage {
        let path = self.path(relative);
        let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        let stat = read("memory.stat");
        let memory_usage = read("memory.current").trim().parse().unwrap_or(0);
        ResourceUsage {
            timestamp: Some(SystemTime::now()),
            cpu_usage_ns: flat_value(&read("cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000),
            memory_usage,
            memory_working_set: memory_usage.saturating_sub(flat_value(&stat, "inactive_file").unwrap_or(0)),
            memory_rss: flat_value(&stat, "anon").unwrap_or(0),
            rootfs_used: None,
        }
    }
}

/// Kills what is left in these cgroups below `root`, and in podinits' own, and removes them. Idempotent.
///
/// # Errors
/// The root is no cgroup2 folder, or processes do not die.
pub async fn remove_cgroups(root: &Path, cgroups: &[&str]) -> Result<(), CriError> {
    let tree = Tree::open(root).map_err(internal(root.display()))?;
    for cgroup in cgroups.iter().chain(&[PODINIT]) {
        tree.kill(cgroup).await?;
        tree.remove(cgroup)?;
    }
    Ok(())
}

/// Shares of 2..=262144 as a weight of 1..=10000.
fn linear_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn populated(path: &Path) -> bool {
    let events = std::fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    flat_value(&events, "populated") == Some(1)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A value of a flat keyed file (`key value` lines).
fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// CRI's resources as OCI's, less what no controller is there for. Ranges: shares 2..=262144 (libcgroups maps them to a
/// weight of 1..=10000), quota in microseconds with anything below 0 for none, memory -1 for none, pids likewise.
fn to_oci(
    resources: &LinuxResources,
    available: &BTreeSet<String>,
) -> Result<oci::LinuxResources, oci_spec::OciSpecError> {
    let has = |name: &str| available.contains(name);
    let mut builder = oci::LinuxResourcesBuilder::default();
    let mut cpu = oci::LinuxCpuBuilder::default();
    if has("cpu") {
        if let Some(shares) = resources.cpu_shares {
            cpu = cpu.shares(shares);
        }
        if let Some(quota) = resources.cpu_quota {
            cpu = cpu.quota(quota);
        }
        if let Some(period) = resources.cpu_period {
            cpu = cpu.period(period);
        }
    }
    if let Some(cpus) = resources.cpuset_cpus.as_ref().filter(|c| has("cpuset") && !c.is_empty()) {
        cpu = cpu.cpus(cpus.clone());
    }
    builder = builder.cpu(cpu.build()?);
    if let Some(limit) = resources.memory_limit.filter(|_| has("memory")) {
        builder = builder.memory(oci::LinuxMemoryBuilder::default().limit(limit).build()?);
    }
    if let Some(limit) = resources.pids_limit.filter(|_| has("pids")) {
        builder = builder.pids(oci::LinuxPidsBuilder::default().limit(limit).build()?);
    }
    if has("hugetlb") && !resources.hugepage_limits.is_empty() {
        let limit = |(size, bytes): (&String, &u64)| {
            let bytes = i64::try_from(*bytes).unwrap_or(i64::MAX);
            oci::LinuxHugepageLimitBuilder::default().page_size(size.clone()).limit(bytes).build()
        };
        builder = builder
            .hugepage_limits(resources.hugepage_limits.iter().map(limit).collect::<Result<Vec<_>, _>>()?);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a cgroup with these files.
    fn fake(controllers: &str, files: &[&str]) -> (PathBuf, Tree) {
        let root = std::env::temp_dir().join(format!("keelson-cgroup-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(root.join("pod")).unwrap();
        std::fs::write(root.join("cgroup.controllers"), controllers).unwrap();
        std::fs::write(root.join("cgroup.subtree_control"), "").unwrap();
        for file in files {
            std::fs::write(root.join("pod").join(file), "").unwrap();
        }
        let tree = Tree::open(&root).unwrap();
        (root, tree)
    }

    #[test]
    fn limits_are_written() {
        let files =
            ["cpu.weight", "cpu.max", "memory.max", "memory.oom.group", "memory.swap.max", "pids.max"];
        let (root, tree) = fake("cpu memory pids\n", &files);
        let resources = LinuxResources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit: Some(64 << 20),
            memory_swap_limit: Some(0),
            memory_oom_group: Some(true),
            pids_limit: Some(100),
            ..LinuxResources::default()
        };
        tree.apply("pod", &resources).unwrap();
        let check = |file: &str, expected: &str| {
            assert_eq!(std::fs::read_to_string(root.join("pod").join(file)).unwrap(), expected, "{file}");
        };
        check("cpu.weight", "100");
        check("cpu.max", "50000 100000");
        check("memory.max", "67108864");
        check("memory.swap.max", "0");
        check("memory.oom.group", "1");
        check("pids.max", "100");
        assert_eq!(tree.missing(), ["cpuset", "io"]);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn shares_to_weight_keeps_both_ends() {
        for (shares, weight) in [(2, "1"), (1024, "100"), (262_144, "10000")] {
            let (root, tree) = fake("cpu", &["cpu.weight"]);
            tree.apply("pod", &LinuxResources { cpu_shares: Some(shares), ..LinuxResources::default() })
                .unwrap();
            assert_eq!(std::fs::read_to_string(root.join("pod/cpu.weight")).unwrap(), weight);
            std::fs::remove_dir_all(root).unwrap();
        }
    }

    #[test]
    fn weights_above_containers_are_linear() {
        for (shares, weight) in [(2, "1"), (256, "10"), (1024, "39"), (262_144, "10000")] {
            let (root, tree) = fake("cpu", &["cpu.weight"]);
            let resources = LinuxResources { cpu_shares: Some(shares), ..LinuxResources::default() };
            tree.apply_above_containers("pod", &resources).unwrap();
            assert_eq!(std::fs::read_to_string(root.join("pod/cpu.weight")).unwrap(), weight);
            std::fs::remove_dir_all(root).unwrap();
        }
    }

    #[test]
    fn missing_controllers_are_left_out() {
        let (root, tree) = fake("hugetlb\n", &[]);
        let resources =
            LinuxResources { memory_limit: Some(1), cpu_shares: Some(2), ..LinuxResources::default() };
        tree.apply("pod", &resources).unwrap();
        assert_eq!(tree.missing(), WANTED);
        assert!(matches!(tree.create("../x"), Err(CriError::Invalid(_))));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn usage_is_read() {
        let (root, tree) = fake("", &[]);
        std::fs::write(root.join("pod/memory.stat"), "anon 10\nfile 5\ninactive_file 3\n").unwrap();
        std::fs::write(root.join("pod/memory.current"), "20\n").unwrap();
        std::fs::write(root.join("pod/cpu.stat"), "usage_usec 7\n").unwrap();
        std::fs::write(root.join("pod/memory.events"), "oom 1\noom_kill 2\noom_group_kill 0\n").unwrap();
        let usage = tree.usage("pod");
        assert_eq!((usage.memory_working_set, usage.memory_rss, usage.cpu_usage_ns), (17, 10, 7000));
        assert_eq!(tree.oom_kills("pod"), 2);
        std::fs::remove_dir_all(root).unwrap();
    }
}
