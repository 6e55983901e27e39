//! Sandboxes and containers, as CRI's RuntimeService.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::Result;

/// Who a sandbox is: CRI PodSandboxMetadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodSandboxMetadata {
    /// `metadata.name` of the pod.
    pub name: String,
    /// `metadata.namespace` of the pod.
    pub namespace: String,
    /// `metadata.uid` of the pod; for static pods the config hash.
    pub uid: String,
    /// Grows each time a new sandbox is made for the same pod.
    pub attempt: u32,
}

/// Scope of a namespace: CRI NamespaceMode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// One for the pod.
    #[default]
    Pod,
    /// One for each container (PID only).
    Container,
    /// The node's own.
    Node,
}

/// CRI NamespaceOption, with `hostUsers: false` as `user_namespace`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOptions {
    /// `Pod`, or `Node` for hostNetwork.
    pub network: NamespaceMode,
    /// `Container` by default, `Pod` for shareProcessNamespace, `Node` for hostPID.
    pub pid: NamespaceMode,
    /// `Pod`, or `Node` for hostIPC.
    pub ipc: NamespaceMode,
    /// Run the pod in a user namespace of its own: first host id and length of the mapping.
    pub user_namespace: Option<(u32, u32)>,
}

/// A port published on the node (hostPort).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port inside the pod.
    pub container_port: u16,
    /// Port on the node; 0 means not published.
    pub host_port: u16,
    /// Node address to publish on; none means all.
    pub host_ip: Option<IpAddr>,
}

/// resolv.conf of a pod: CRI DNSConfig.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// CRI PodSandboxConfig.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    /// Identity.
    pub metadata: PodSandboxMetadata,
    /// UTS hostname of the pod (at most 63 bytes); empty for hostNetwork.
    pub hostname: String,
    /// Folder of the pod's logs: `/var/log/pods/<ns>_<name>_<uid>`.
    pub log_directory: PathBuf,
    /// Resolver configuration; none means that the kubelet mounts no resolv.conf.
    pub dns: Option<DnsConfig>,
    /// Published ports.
    pub port_mappings: Vec<PortMapping>,
    /// Kubernetes labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Kubernetes annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Pod cgroup, relative to the agent's cgroup root, such as `kubepods/burstable/pod<uid>`.
    pub cgroup_parent: String,
    /// Limits of the pod's own cgroup (sum of its containers', as kubelet computes them).
    pub resources: LinuxResources,
    /// Which namespaces are shared with whom.
    pub namespaces: NamespaceOptions,
    /// `net.ipv4.…` and the like, set inside the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// supplementalGroups and fsGroup apply to containers; this one runs podinit's own group of files.
    pub fs_group: Option<u32>,
}

/// CRI PodSandboxState.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodSandboxState {
    /// podinit lives and the network is set up.
    Ready,
    /// Stopped, or found dead.
    NotReady,
}

/// CRI PodSandboxStatus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodSandboxStatus {
    /// Sandbox id: 64 hexadecimal digits.
    pub id: String,
    /// Identity.
    pub metadata: PodSandboxMetadata,
    /// Ready or not.
    pub state: PodSandboxState,
    /// When it was made.
    pub created_at: SystemTime,
    /// Pod addresses, the primary first; empty for hostNetwork.
    pub ips: Vec<IpAddr>,
    /// Labels given at creation.
    pub labels: BTreeMap<String, String>,
    /// Annotations given at creation.
    pub annotations: BTreeMap<String, String>,
}

/// CRI LinuxContainerResources on cgroup v2. None means unlimited (or the kernel's default).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxResources {
    /// cgroup v1 style shares, 2..=262144; translated to cpu.weight.
    pub cpu_shares: Option<u64>,
    /// CFS quota in microseconds per period; -1 means none.
    pub cpu_quota: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// memory.max in bytes.
    pub memory_limit: Option<i64>,
    /// memory.swap.max in bytes.
    pub memory_swap_limit: Option<i64>,
    /// pids.max.
    pub pids_limit: Option<i64>,
    /// oom_score_adj of the container's processes.
    pub oom_score_adj: Option<i32>,
    /// cpuset.cpus.
    pub cpuset_cpus: Option<String>,
    /// hugetlb limits: page size as the kernel spells it (`2MB`) to bytes.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// memory.oom.group: kill the whole container on OOM.
    pub memory_oom_group: Option<bool>,
}

impl LinuxResources {
    /// These after an update: what it doesn't give stays.
    #[must_use]
    pub fn updated(self, update: Self) -> Self {
        let mut hugepage_limits = self.hugepage_limits;
        hugepage_limits.extend(update.hugepage_limits);
        Self {
            cpu_shares: update.cpu_shares.or(self.cpu_shares),
            cpu_quota: update.cpu_quota.or(self.cpu_quota),
            cpu_period: update.cpu_period.or(self.cpu_period),
            memory_limit: update.memory_limit.or(self.memory_limit),
            memory_swap_limit: update.memory_swap_limit.or(self.memory_swap_limit),
            pids_limit: update.pids_limit.or(self.pids_limit),
            oom_score_adj: update.oom_score_adj.or(self.oom_score_adj),
            cpuset_cpus: update.cpuset_cpus.or(self.cpuset_cpus),
            hugepage_limits,
            memory_oom_group: update.memory_oom_group.or(self.memory_oom_group),
        }
    }
}

/// Propagation of a bind mount: CRI MountPropagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MountPropagation {
    /// `None`: rprivate.
    #[default]
    Private,
    /// `HostToContainer`: rslave.
    HostToContainer,
    /// `Bidirectional`: rshared.
    Bidirectional,
}

/// An image mounted as a volume, read-only: `image` and `image_sub_path` of CRI's Mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// Image id as [`crate::ImageService::pull_image`] returned it.
    pub image: String,
    /// What of the image; empty for all. A path that the image does not have is an error.
    pub sub_path: String,
}

/// One mount of a container: CRI Mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container.
    pub container_path: PathBuf,
    /// Absolute path on the node; trusted by the runtime, checked by the kubelet (subPath too). Empty for an image.
    pub host_path: PathBuf,
    /// An image instead of a path on the node.
    #[serde(default)]
    pub image: Option<ImageMount>,
    /// Mount read-only.
    pub readonly: bool,
    /// Read-only for submounts too (mount_setattr AT_RECURSIVE).
    pub recursive_read_only: bool,
    /// Propagation.
    pub propagation: MountPropagation,
}

/// Seccomp profile: CRI SecurityProfile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// The runtime's own default filter.
    #[default]
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// A profile in moby's JSON format, read by the kubelet from its seccomp folder.
    Localhost(PathBuf),
}

/// CRI LinuxContainerSecurityContext, resolved: pod and container level already merged by the kubelet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityContext {
    /// Capabilities to add (`NET_ADMIN`, without CAP_; `ALL` is allowed).
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop.
    pub drop_capabilities: Vec<String>,
    /// All devices, all capabilities, no masked paths, no seccomp.
    pub privileged: bool,
    /// Numeric user; takes precedence over `run_as_username`.
    pub run_as_user: Option<u32>,
    /// Numeric group; requires a user.
    pub run_as_group: Option<u32>,
    /// User name, looked up in the image's /etc/passwd. None of both: the image's user.
    pub run_as_username: Option<String>,
    /// Refuse to start when the user resolves to 0 (runAsNonRoot).
    pub run_as_non_root: bool,
    /// Groups beside those of the image.
    pub supplemental_groups: Vec<u32>,
    /// supplementalGroupsPolicy Strict: groups of the image are not merged.
    pub strict_supplemental_groups: bool,
    /// Root filesystem read-only.
    pub readonly_rootfs: bool,
    /// PR_SET_NO_NEW_PRIVS (allowPrivilegeEscalation: false).
    pub no_new_privs: bool,
    /// Seccomp filter.
    pub seccomp: SeccompProfile,
    /// procMount: Unmasked.
    pub unmasked_proc: bool,
    /// Join the PID namespace of this container of the same sandbox: CRI NamespaceMode TARGET with its `target_id`. It
    /// must be running when this one is made and when it is started.
    #[serde(default)]
    pub target_id: Option<String>,
}

/// CRI ContainerConfig.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Container name, unique in the pod.
    pub name: String,
    /// restartCount: grows with each start of the same container.
    pub attempt: u32,
    /// Image id (`sha256:…` of the image config) as [`crate::ImageService::pull_image`] returned it.
    pub image: String,
    /// Overrides the image's ENTRYPOINT when not empty.
    pub command: Vec<String>,
    /// Overrides the image's CMD when not empty.
    pub args: Vec<String>,
    /// Overrides the image's WORKDIR when not empty.
    pub working_dir: String,
    /// Environment beside the image's; later entries win.
    pub envs: Vec<(String, String)>,
    /// Bind mounts, in order.
    pub mounts: Vec<Mount>,
    /// Labels to keep with the container.
    pub labels: BTreeMap<String, String>,
    /// Annotations to keep with the container.
    pub annotations: BTreeMap<String, String>,
    /// Log path relative to the sandbox's log directory: `<container>/<attempt>.log`.
    pub log_path: PathBuf,
    /// Keep stdin open.
    pub stdin: bool,
    /// Close stdin after the first attach session ends.
    pub stdin_once: bool,
    /// Allocate a pty.
    pub tty: bool,
    /// Resource limits.
    pub resources: LinuxResources,
    /// Security.
    pub security: SecurityContext,
    /// Signal to stop with, such as `SIGQUIT`; none means the image's, or SIGTERM.
    pub stop_signal: Option<String>,
}

/// CRI ContainerState.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process lives.
    Running,
    /// Ended; exit code and time are known.
    Exited,
    /// The record of it could not be read.
    Unknown,
}

/// CRI ContainerStatus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Container id: 64 hexadecimal digits.
    pub id: String,
    /// The sandbox it lives in.
    pub sandbox_id: String,
    /// Container name.
    pub name: String,
    /// restartCount.
    pub attempt: u32,
    /// State.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: SystemTime,
    /// When its process was started.
    pub started_at: Option<SystemTime>,
    /// When its process ended.
    pub finished_at: Option<SystemTime>,
    /// Exit code, 128 + signal for a signal, as kubelet reports it.
    pub exit_code: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, `StartError`.
    pub reason: Option<String>,
    /// Text beside the reason.
    pub message: Option<String>,
    /// Image id it runs.
    pub image: String,
    /// Image reference it was asked for with.
    pub image_ref: String,
    /// Labels given at creation.
    pub labels: BTreeMap<String, String>,
    /// Annotations given at creation.
    pub annotations: BTreeMap<String, String>,
    /// Absolute path of its log.
    pub log_path: PathBuf,
    /// Pid of its first process in the agent's PID namespace, while it runs.
    pub pid: Option<u32>,
    /// Numeric user and groups of its first process.
    pub user: Option<(u32, u32, Vec<u32>)>,
}

/// What happened to a sandbox or container, pushed as it happens (CRI GetContainerEvents).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// A container was started.
    Started { sandbox_id: String, container_id: String, pod_uid: String },
    /// A container's first process ended.
    Exited { sandbox_id: String, container_id: String, pod_uid: String },
    /// A sandbox's podinit died.
    SandboxDied { sandbox_id: String, pod_uid: String },
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height")]
    pub height: u16,
}

/// A readable end.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// A writable end.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// CRI ExecRequest.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// The command; the first word is looked up in the container's PATH.
    pub command: Vec<String>,
    /// Give it a pty (then there is no stderr).
    pub tty: bool,
    /// Give it stdin.
    pub stdin: bool,
}

/// A running exec or attach session. Dropping it ends the session (an exec'd process is killed).
pub struct StreamSession {
    /// Input, when asked for. Dropping it closes the process's stdin.
    pub stdin: Option<BoxWrite>,
    /// Output.
    pub stdout: Option<BoxRead>,
    /// Error output; none with a tty.
    pub stderr: Option<BoxRead>,
    /// Sizes sent here reach the tty.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// Exit code, once the process ended and its output was read to the end; for attach, of the container.
    pub exit: oneshot::Receiver<Result<i32>>,
}

/// CPU and memory of one cgroup, read on demand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResourceUsage {
    /// When it was read.
    pub timestamp: Option<SystemTime>,
    /// CPU time used so far, nanoseconds.
    pub cpu_usage_ns: u64,
    /// memory.current, bytes.
    pub memory_usage: u64,
    /// memory.current less inactive_file, bytes.
    pub memory_working_set: u64,
    /// memory.stat anon, bytes.
    pub memory_rss: u64,
    /// Bytes of the writable layer.
    pub rootfs_used: Option<u64>,
}

/// CRI RuntimeService, as the kubelet sees it. All calls are idempotent where CRI says so: stopping or removing
/// what is not there succeeds.
#[async_trait::async_trait]
pub trait RuntimeService: Send + Sync {
    /// Makes a sandbox: cgroup, namespaces, network, podinit. Rolls back on failure.
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandboxStatus>;
    /// Kills what is left in the sandbox and tears its network down. Idempotent.
    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<()>;
    /// Removes a stopped sandbox and its containers' state. Idempotent.
    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<()>;
    /// Status of one sandbox.
    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus>;
    /// All sandboxes, those found at start included.
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>>;
    /// Makes a container (rootfs, cgroup) without starting it.
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String>;
    /// Starts it; an error such as a missing command is kept as `ContainerCannotRun`/`StartError` in its status.
    async fn start_container(&self, container_id: &str) -> Result<()>;
    /// Sends the stop signal, waits for `grace`, then kills. Idempotent.
    async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<()>;
    /// Removes an exited container, its writable layer too. The log stays. Idempotent.
    async fn remove_container(&self, container_id: &str) -> Result<()>;
    /// Status of one container.
    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus>;
    /// All containers, of one sandbox when given.
    async fn list_containers(&self, sandbox_id: Option<&str>) -> Result<Vec<ContainerStatus>>;
    /// Changes limits of a live container.
    async fn update_container_resources(&self, container_id: &str, resources: LinuxResources) -> Result<()>;
    /// Changes limits of a live sandbox's own cgroup, the one around its containers: what is not given stays (CRI
    /// UpdatePodSandboxResources).
    async fn update_pod_sandbox_resources(&self, sandbox_id: &str, resources: LinuxResources) -> Result<()>;
    /// Makes a cgroup above those of pods, unless it is there, and sets its limits; `cgroup` is relative to the runtime's
    /// cgroup root. Not of CRI, whose kubelet writes cgroups by itself.
    async fn update_cgroup(&self, cgroup: &str, resources: LinuxResources) -> Result<()>;
    /// Runs a command in a live container.
    async fn exec(&self, container_id: &str, request: ExecRequest) -> Result<StreamSession>;
    /// Joins a live container's stdio.
    async fn attach(&self, container_id: &str, stdin: bool) -> Result<StreamSession>;
    /// Connects to a TCP port on the pod's loopback, from inside its network namespace.
    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream>;
    /// Moves the log aside: podinit gets a new file at the same path.
    async fn reopen_container_log(&self, container_id: &str) -> Result<()>;
    /// Usage of one container.
    async fn container_usage(&self, container_id: &str) -> Result<ResourceUsage>;
    /// Events from now on. A receiver that lags must list again.
    fn events(&self) -> broadcast::Receiver<ContainerEvent>;
    /// cgroup controllers that this machine lacks, as in the status; it asks nobody, so it takes no time.
    fn missing_controllers(&self) -> Vec<String>;
    /// Whether sandboxes can be made now, which network plugins may be long in answering; the text is the Node's `NetworkUnavailable`/`Ready` message when not.
    async fn status(&self) -> RuntimeStatus;
}

/// CRI RuntimeStatus: both must hold for the node to be Ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeStatus {
    /// Error text when the runtime itself is not ready.
    pub runtime: std::result::Result<(), String>,
    /// Error text when the network plugin is not ready.
    pub network: std::result::Result<(), String>,
    /// cgroup controllers that this machine lacks (see `--allow-missing-controllers`).
    pub missing_controllers: Vec<String>,
}
