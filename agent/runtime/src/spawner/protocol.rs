//! What agent and spawner say to each other. Both are the same build of one program, so it is plain JSON.

use serde::{Deserialize, Serialize};

use crate::plan::{ContainerPlan, ExecPlan, ResolvedUser, SandboxPlan};

/// Number of the spawner's socket.
pub const SOCKET: i32 = 3;
/// Longest packet.
pub const MAX_PACKET: usize = 16 * 1024;

/// What the agent asks. The request itself travels in a memfd, the first descriptor, as an environment may be longer
/// than a packet; the others are listed here.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Descriptors: sync, podinit's cgroup, podinit's binary, podinit's listener.
    Sandbox(SandboxPlan),
    /// Descriptors: sync, the container's cgroup, podinit's pidfd; for the PID namespace of a target its pidfd; without a
    /// tty stdin, stdout, stderr; without a pod PID namespace podinit's cgroup, binary and a listener for a podinit of its
    /// own.
    Container(ContainerPlan),
    /// Descriptors: sync, the container's cgroup, podinit's pidfd, the container's pidfd; from the streams on as above.
    Exec(ExecPlan),
    /// A TCP socket of a pod's network namespace. Descriptors: sync, podinit's pidfd. `v6` is the family.
    Socket { v6: bool },
}

/// What the spawner answers; the process's pidfd comes along when it was born.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Pid as the parent of the process saw it: in the agent's namespace for a sandbox, in the pod's for the rest.
    pub pid: i32,
    /// Why nothing was born.
    pub error: Option<String>,
}

/// Class of a failure before exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// Setting up namespaces, mounts, users…
    Setup,
    /// The command is not there.
    CommandNotFound,
    /// The command can't be run.
    CommandNotExecutable,
}

/// Why a child gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Class.
    pub kind: FailureKind,
    /// Text for users.
    pub message: String,
}

impl Failure {
    /// A step of the set-up failed.
    pub fn setup(what: impl std::fmt::Display, err: impl std::fmt::Display) -> Self {
        Self { kind: FailureKind::Setup, message: format!("{what}: {err}") }
    }
}

/// What a child says over its sync socket. End of file after `Ready` and "go" means that exec succeeded.
#[derive(Debug, Serialize, Deserialize)]
pub enum ChildMessage {
    /// All is set up; the child waits for one byte before it calls exec. With a tty the pty's master comes along.
    Ready {
        /// Who it will run as.
        user: ResolvedUser,
        /// What could not be honoured without being fatal.
        warnings: Vec<String>,
    },
    /// It gave up.
    Failed(Failure),
}
