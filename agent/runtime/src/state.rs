//! What is kept on disk of sandboxes and containers, so that an agent that starts finds everything.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use keelson_cri::{
    ContainerConfig, ContainerState, ContainerStatus, PodSandboxConfig, PodSandboxState, PodSandboxStatus,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::plan::{ProcessPlan, ResolvedUser};

/// A process that can be found again: a pid alone may have been given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Pid in the agent's PID namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_time: u64,
}

impl ProcessId {
    /// The process behind a pidfd.
    pub fn of(pidfd: &OwnedFd) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = info.lines().find_map(|l| l.strip_prefix("Pid:")?.trim().parse().ok());
        let pid = pid.filter(|p| *p > 0).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, start_time: start_time(pid)? })
    }

    /// Opens the process if it is still the same one.
    pub fn open(self) -> io::Result<OwnedFd> {
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // Checked after the pidfd exists: from then on the pid can't be reused.
        if start_time(self.pid)? != self.start_time {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(pidfd)
    }
}

fn start_time(pid: i32) -> io::Result<u64> {
    parse_start_time(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?)
        .ok_or_else(|| io::Error::other("unexpected content of /proc/<pid>/stat"))
}

/// The command name, which may hold anything, ends at the last `)`.
fn parse_start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// How far a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxPhase {
    /// Being made; found so at start it is torn down.
    Creating,
    /// podinit lives.
    Ready,
    /// podinit is dead; the network may still be there.
    Dead,
    /// Torn down.
    Stopped,
}

/// Record of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Id.
    pub id: String,
    /// As asked for.
    pub config: PodSandboxConfig,
    /// When.
    pub created_at: SystemTime,
    /// How far.
    pub phase: SandboxPhase,
    /// Pod addresses.
    pub ips: Vec<IpAddr>,
    /// podinit.
    pub podinit: Option<ProcessId>,
}

impl SandboxRecord {
    /// CRI's view.
    pub fn status(&self) -> PodSandboxStatus {
        let ready = self.phase == SandboxPhase::Ready;
        PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: if ready { PodSandboxState::Ready } else { PodSandboxState::NotReady },
            created_at: self.created_at,
            ips: self.ips.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
        }
    }
}

/// Record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// As asked for.
    pub config: ContainerConfig,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub finished_at: Option<SystemTime>,
    /// How far.
    pub state: ContainerState,
    /// How it ended.
    pub exit_code: Option<i32>,
    /// CRI reason.
    pub reason: Option<String>,
    /// Text beside it.
    pub message: Option<String>,
    /// Image id.
    pub image: String,
    /// Layers, topmost first.
    pub lowerdirs: Vec<PathBuf>,
    /// By image id, the folders of images mounted as volumes.
    #[serde(default)]
    pub image_volumes: BTreeMap<String, Vec<PathBuf>>,
    /// Signal that stops it.
    pub stop_signal: i32,
    /// Absolute path of its log.
    pub log_path: PathBuf,
    /// Its first process.
    pub process: Option<ProcessId>,
    /// Who it runs as.
    pub user: Option<ResolvedUser>,
    /// What its first process became; an exec takes over all but the command.
    pub process_plan: ProcessPlan,
}

impl ContainerRecord {
    /// CRI's view.
    pub fn status(&self) -> ContainerStatus {
        let running = self.state == ContainerState::Running;
        ContainerStatus {
            id: self.id.clone(),
            sandbox_id: self.sandbox_id.clone(),
            name: self.config.name.clone(),
            attempt: self.config.attempt,
            state: self.state,
            created_at: self.created_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            exit_code: self.exit_code,
            reason: self.reason.clone(),
            message: self.message.clone(),
            image: self.image.clone(),
            image_ref: self.config.image.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            log_path: self.log_path.clone(),
            pid: self.process.filter(|_| running).and_then(|p| u32::try_from(p.pid).ok()),
            user: self.user.as_ref().map(|u| (u.uid, u.gid, u.groups.clone())),
        }
    }
}

/// Writes a record so that a reader sees the old one or the new one: to a file beside it, then renamed.
pub fn save(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(record)?;
    let beside = path.with_extension("tmp");
    std::fs::write(&beside, json)?;
    std::fs::rename(&beside, path)
}

/// Reads a record.
pub fn load<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_odd_names() {
        let fields: Vec<String> = (3..60).map(|n| n.to_string()).collect();
        assert_eq!(parse_start_time(&format!("7 (a) b) c) {}", fields.join(" "))), Some(22));
        assert_eq!(parse_start_time("7 (x"), None);
        assert!(start_time(i32::try_from(std::process::id()).unwrap()).unwrap() > 0);
    }
}
