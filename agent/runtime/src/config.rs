//! Where the runtime keeps things, and what it may do without.

use std::path::{Path, PathBuf};

/// Configuration of a [`crate::Runtime`].
#[derive(Debug, Clone)]
pub struct Config {
    /// State that outlives a boot: records and writable layers. `/var/lib/keelson`.
    pub root: PathBuf,
    /// State that does not: sockets of podinits, network namespaces, shared memory. `/run/keelson`.
    pub run: PathBuf,
    /// cgroup2 folder below which pods live. `/sys/fs/cgroup`, or what the agent was delegated.
    pub cgroup_root: PathBuf,
    /// The static keelson-podinit.
    pub podinit_path: PathBuf,
    /// A program whose `main` begins with [`crate::spawner_main_if_requested`]; `/proc/self/exe` in the agent.
    pub spawner_path: PathBuf,
    /// Run although cgroup controllers are missing; their limits are then not enforced.
    pub allow_missing_controllers: bool,
    /// RLIMIT_NOFILE of containers, soft and hard; lowered to the agent's own hard limit. systemd's default is
    /// (1024, 524288).
    pub nofile: (u64, u64),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/keelson".into(),
            run: "/run/keelson".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            podinit_path: "/usr/libexec/keelson/keelson-podinit".into(),
            spawner_path: "/proc/self/exe".into(),
            allow_missing_controllers: false,
            nofile: (1024, 524_288),
        }
    }
}

impl Config {
    /// Record of a sandbox.
    pub(crate) fn sandbox_record(&self, id: &str) -> PathBuf {
        self.root.join("sandboxes").join(format!("{id}.json"))
    }

    /// Volatile folder of a sandbox.
    pub(crate) fn sandbox_run(&self, id: &str) -> PathBuf {
        self.run.join("sandboxes").join(id)
    }

    /// Bind mount of a sandbox's network namespace.
    pub(crate) fn netns(&self, id: &str) -> PathBuf {
        self.run.join("netns").join(id)
    }

    /// Folder of a container.
    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// Its record.
    pub(crate) fn container_record(&self, id: &str) -> PathBuf {
        self.container_dir(id).join("state.json")
    }

    /// The exit record that podinit writes.
    pub(crate) fn exit_record(&self, id: &str) -> PathBuf {
        self.container_dir(id).join("exit")
    }
}

/// `/run/…/shm` of a sandbox folder.
pub(crate) fn shm(run: &Path) -> PathBuf {
    run.join("shm")
}
