//! What the spawner is to do, as plain values: computed by pure functions in the agent, carried out without a further
//! decision by a thin executor in a child.

mod caps;
mod devices;
mod env;
mod mounts;
mod users;

pub use caps::container_capabilities;
pub use devices::{DeviceNode, device_filter, host_devices};
pub use env::container_env;
pub use mounts::{BindPlan, ImagePlan, MountKind, MountPlan, MountStep, image_lowerdirs, mount_plan};
pub use users::{MAX_FILE as MAX_USER_FILE, ResolvedUser, UserSpec, check_non_root, resolve_user};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A sandbox: what podinit's process sets up before it becomes podinit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// Own network namespace (else the node's).
    pub new_net: bool,
    /// Own IPC namespace.
    pub new_ipc: bool,
    /// Own PID namespace.
    pub new_pid: bool,
    /// Own UTS namespace, with this hostname.
    pub hostname: Option<String>,
    /// Files below /proc/sys and their values.
    pub sysctls: Vec<(PathBuf, String)>,
}

/// Root filesystem of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsPlan {
    /// Layers, the topmost first.
    pub lowerdirs: Vec<PathBuf>,
    /// Writable layer.
    pub upper: PathBuf,
    /// overlayfs' work folder, on the same filesystem as `upper`.
    pub work: PathBuf,
    /// Empty folder that the root is mounted on before it becomes `/`.
    pub target: PathBuf,
    /// Remount read-only once everything is in place.
    pub readonly: bool,
}

/// What a process becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Command; the first word is looked up in PATH.
    pub args: Vec<String>,
    /// `NAME=value`; HOME is added from /etc/passwd if it is missing.
    pub env: Vec<String>,
    /// Working folder, made if it is not there (containers only).
    pub cwd: PathBuf,
    /// Who it runs as.
    pub user: UserSpec,
    /// Capabilities, `CAP_…`: permitted, effective and bounding; nothing is inheritable or ambient.
    pub capabilities: Vec<String>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// Seccomp filter, each word one `struct sock_filter`.
    pub seccomp: Option<Vec<u64>>,
    /// Give it a pty.
    pub tty: bool,
    /// oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// RLIMIT_NOFILE, soft and hard, lowered to what the agent itself may have.
    pub nofile: (u64, u64),
}

/// PID namespace that a container's first process is born in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// The node's: hostPID.
    Node,
    /// The pod's, podinit's.
    Pod,
    /// Its own, below the pod's.
    Container,
    /// Another container's.
    Target,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// PID namespace.
    pub pid: PidNamespace,
    /// Root.
    pub rootfs: RootfsPlan,
    /// Everything mounted below it.
    pub mounts: MountPlan,
    /// Process.
    pub process: ProcessPlan,
}

/// A command in a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The pod has a PID namespace of its own, podinit's.
    pub pod_pid: bool,
    /// Process.
    pub process: ProcessPlan,
}
