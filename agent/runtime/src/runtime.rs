//! The runtime's shared state and its event loop.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use keelson_cri::{ContainerEvent, ContainerState, CriError, ImageRootfs, PodNetwork};
use keelson_podinit::record::ExitRecord;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::cgroup::Tree;
use crate::config::Config;
use crate::container::pid_namespace;
use crate::plan::PidNamespace;
use crate::podinit::{Notice, Notices, Podinit};
use crate::spawner::Spawner;
use crate::state::{self, ContainerRecord, SandboxPhase, SandboxRecord};

/// The runtime can't start.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A folder could not be made or read.
    #[error("{path}: {source}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The machine lacks controllers and nobody allowed that.
    #[error(
        "cgroup {path} lacks the controllers {missing:?}, so limits could not be enforced; \
         --allow-missing-controllers runs without them"
    )]
    MissingControllers {
        /// The cgroup root.
        path: PathBuf,
        /// Which.
        missing: Vec<String>,
    },
    /// podinit's binary can't be used.
    #[error("podinit at {path}: {source}")]
    Podinit {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Locks; a panic while a record was being changed leaves it readable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its context, for users.
pub(crate) fn internal<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> CriError {
    move |err| CriError::Internal(format!("{what}: {err}"))
}

/// A sandbox in memory.
pub(crate) struct Sandbox {
    pub id: String,
    pub record: Mutex<SandboxRecord>,
    pub podinit: Mutex<Option<Arc<Podinit>>>,
    pub pidfd: Mutex<Option<Arc<OwnedFd>>>,
    /// Held while the sandbox is stopped or removed.
    pub changing: tokio::sync::Mutex<()>,
}

/// A container in memory.
pub(crate) struct Container {
    pub id: String,
    pub sandbox: Arc<Sandbox>,
    pub record: Mutex<ContainerRecord>,
    pub pidfd: Mutex<Option<Arc<OwnedFd>>>,
    /// With hostPID each container has a podinit of its own.
    pub own_podinit: Mutex<Option<Arc<Podinit>>>,
    /// Becomes true when it has exited and its record says so.
    pub exited: watch::Sender<bool>,
    /// Held while the container is started or removed.
    pub changing: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub fn new(record: SandboxRecord) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            record: Mutex::new(record),
            podinit: Mutex::default(),
            pidfd: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// cgroup of podinit: beside the pods, so that no limit of a pod stops its logs.
    pub fn podinit_cgroup(&self) -> String {
        podinit_cgroup(&self.id)
    }

    /// The pod's own cgroup.
    pub fn cgroup(&self) -> String {
        lock(&self.record).config.cgroup_parent.trim_matches('/').to_string()
    }

    pub fn uid(&self) -> String {
        lock(&self.record).config.metadata.uid.clone()
    }

    /// The connection to podinit and its pidfd, while it lives.
    pub fn live(&self) -> Result<(Arc<Podinit>, Arc<OwnedFd>), CriError> {
        match (lock(&self.podinit).clone(), lock(&self.pidfd).clone()) {
            (Some(podinit), Some(pidfd)) if lock(&self.record).phase == SandboxPhase::Ready => {
                Ok((podinit, pidfd))
            }
            _ => Err(CriError::FailedPrecondition(format!("sandbox {} is not ready", self.id))),
        }
    }
}

pub(crate) fn podinit_cgroup(sandbox_id: &str) -> String {
    format!("{}/{sandbox_id}", crate::cgroup::PODINIT)
}

impl Container {
    pub fn new(sandbox: Arc<Sandbox>, record: ContainerRecord) -> Arc<Self> {
        let exited = record.state == ContainerState::Exited;
        Arc::new(Self {
            id: record.id.clone(),
            sandbox,
            record: Mutex::new(record),
            pidfd: Mutex::default(),
            own_podinit: Mutex::default(),
            exited: watch::Sender::new(exited),
            changing: tokio::sync::Mutex::default(),
        })
    }

    pub fn cgroup(&self) -> String {
        format!("{}/{}", self.sandbox.cgroup(), self.id)
    }

    pub fn state(&self) -> ContainerState {
        lock(&self.record).state
    }

    /// The podinit that keeps this container.
    pub fn podinit(&self) -> Result<Arc<Podinit>, CriError> {
        if let Some(own) = lock(&self.own_podinit).clone() {
            return Ok(own);
        }
        Ok(self.sandbox.live()?.0)
    }

    /// Waits until it has exited; false when `limit` passes first.
    pub async fn wait_exited(&self, limit: Duration) -> bool {
        let mut exited = self.exited.subscribe();
        matches!(tokio::time::timeout(limit, exited.wait_for(|e| *e)).await, Ok(Ok(_)))
    }
}

/// keelson's container runtime.
pub struct Runtime {
    pub(crate) config: Config,
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) images: Arc<dyn ImageRootfs>,
    pub(crate) cgroups: Tree,
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) podinit_binary: OwnedFd,
    pub(crate) sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    pub(crate) containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Running execs, by their id: where their exit goes.
    pub(crate) execs: Mutex<HashMap<String, oneshot::Sender<i32>>>,
    pub(crate) events: broadcast::Sender<ContainerEvent>,
    pub(crate) notices: Notices,
    pub(crate) this: Weak<Self>,
}

impl Runtime {
    /// Opens the state, adopts all that still runs, and clears away what was half made. Needs a tokio runtime.
    pub async fn new(
        config: Config,
        network: Arc<dyn PodNetwork>,
        images: Arc<dyn ImageRootfs>,
    ) -> Result<Arc<Self>, RuntimeError> {
        for (dir, mode) in [
            (config.root.join("sandboxes"), 0o700),
            (config.root.join("containers"), 0o711),
            (config.run.join("sandboxes"), 0o700),
            (config.run.join("netns"), 0o755),
        ] {
            make_dir(&dir, mode).map_err(|source| RuntimeError::Path { path: dir, source })?;
        }
        let path = config.cgroup_root.clone();
        let cgroups =
            Tree::open(&path).map_err(|source| RuntimeError::Path { path: path.clone(), source })?;
        let missing = cgroups.missing();
        if !missing.is_empty() && !config.allow_missing_controllers {
            return Err(RuntimeError::MissingControllers { path, missing });
        }
        let path = config.podinit_path.clone();
        let podinit_binary =
            crate::spawner::readonly_clone(&path).map_err(|source| RuntimeError::Podinit { path, source })?;
        let (notices, received) = mpsc::channel(256);
        let runtime = Arc::new_cyclic(|this| Self {
            spawner: Arc::new(Spawner::new(config.spawner_path.clone())),
            config,
            network,
            images,
            cgroups,
            podinit_binary,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            execs: Mutex::default(),
            events: broadcast::Sender::new(1024),
            notices,
            this: this.clone(),
        });
        tokio::spawn(listen(Arc::downgrade(&runtime), received));
        runtime.adopt().await;
        Ok(runtime)
    }

    /// Pid of the spawner while one runs; for tests of its death.
    pub fn spawner_pid(&self) -> Option<u32> {
        self.spawner.pid()
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, CriError> {
        lock(&self.sandboxes).get(id).cloned().ok_or_else(|| CriError::NotFound(format!("sandbox {id}")))
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, CriError> {
        lock(&self.containers).get(id).cloned().ok_or_else(|| CriError::NotFound(format!("container {id}")))
    }

    pub(crate) fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        lock(&self.containers).values().filter(|c| c.sandbox.id == sandbox_id).cloned().collect()
    }

    /// Writes a sandbox's record after a change.
    pub(crate) fn save_sandbox(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        let record = lock(&sandbox.record).clone();
        state::save(&self.config.sandbox_record(&sandbox.id), &record)
            .map_err(internal("writing the sandbox's record"))
    }

    /// Writes a container's record after a change.
    pub(crate) fn save_container(&self, container: &Container) -> Result<(), CriError> {
        let record = lock(&container.record).clone();
        let path = self.config.container_record(&container.id);
        state::save(&path, &record).map_err(internal("writing the container's record"))
    }

    /// A container has ended: record, waiters, event. What is known already is not overwritten.
    pub(crate) fn finish(&self, container: &Container, exit: Option<ExitRecord>) {
        {
            let mut record = lock(&container.record);
            // One that was registered and never started has not run: it is started again, not reported as ended.
            if record.state != ContainerState::Running {
                return;
            }
            record.state = ContainerState::Exited;
            match exit {
                Some(exit) => {
                    let code = exit.exit_code();
                    record.finished_at =
                        Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(exit.finished_ns));
                    record.exit_code = Some(code);
                    let reason = if self.cgroups.oom_kills(&container.cgroup()) > 0 {
                        "OOMKilled"
                    } else if code == 0 {
                        "Completed"
                    } else {
                        "Error"
                    };
                    record.reason = Some(reason.into());
                }
                None => {
                    // containerd's words and code for a task whose status is lost.
                    record.finished_at = Some(SystemTime::now());
                    record.exit_code = Some(255);
                    record.reason = Some("Unknown".into());
                    record.message =
                        Some("the node restarted or podinit was killed; the exit status is lost".into());
                }
            }
        }
        *lock(&container.pidfd) = None;
        self.end_leftovers(container);
        if let Err(err) = self.save_container(container) {
            tracing::error!(container = container.id, %err, "exit could not be recorded");
        }
        container.exited.send_replace(true);
        let _ = self.events.send(ContainerEvent::Exited {
            sandbox_id: container.sandbox.id.clone(),
            container_id: container.id.clone(),
            pod_uid: container.sandbox.uid(),
        });
    }

    /// Processes that a container left behind end with its first process by the kernel's doing where that was PID 1; in a
    /// PID namespace with others, as with containerd, by ours.
    fn end_leftovers(&self, container: &Container) {
        let pod = lock(&container.sandbox.record).config.namespaces.pid;
        let pid = pid_namespace(pod, &lock(&container.record).config.security);
        if pid == PidNamespace::Container {
            return;
        }
        let Some(runtime) = self.this.upgrade() else { return };
        let (id, cgroup) = (container.id.clone(), container.cgroup());
        tokio::spawn(async move {
            if let Err(err) = runtime.cgroups.kill(&cgroup).await {
                tracing::warn!(container = id, %err, "processes that a container left behind");
            }
        });
    }

    /// The exit record of a container, if podinit wrote one.
    pub(crate) fn exit_record(&self, id: &str) -> Option<ExitRecord> {
        ExitRecord::decode(&std::fs::read(self.config.exit_record(id)).ok()?)
    }

    fn on_notice(self: &Arc<Self>, about: &str, notice: Notice) {
        match notice {
            Notice::Exited(process) => self.on_exit(&process),
            Notice::Disconnected => {
                if let Ok(sandbox) = self.sandbox(about)
                    && lock(&sandbox.record).phase == SandboxPhase::Ready
                    && lock(&sandbox.pidfd).as_ref().is_some_and(|p| alive(p))
                {
                    // Cut off while it lives: join again and ask what was missed.
                    let runtime = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        if let Err(err) = runtime.join_podinit(&sandbox).await {
                            tracing::warn!(sandbox = sandbox.id, %err, "podinit can't be reached");
                        }
                    });
                }
            }
        }
    }

    /// A process that podinit keeps has ended.
    pub(crate) fn on_exit(&self, process: &keelson_podinit::protocol::ProcessState) {
        let Some((wait_status, finished_ns)) = process.exit else { return };
        let exit = ExitRecord { wait_status, finished_ns };
        if process.lost_lines > 0 {
            tracing::warn!(id = process.id, lines = process.lost_lines, "log lines were lost");
        }
        if let Some(tx) = lock(&self.execs).remove(&process.id) {
            // The session may have been dropped.
            let _ = tx.send(exit.exit_code());
        } else if let Ok(container) = self.container(&process.id) {
            self.finish(&container, Some(exit));
        }
    }

    /// Watches podinit's pidfd: its death is the sandbox's.
    pub(crate) fn watch_podinit(&self, sandbox: &Arc<Sandbox>, pidfd: &Arc<OwnedFd>) {
        let (this, sandbox, pidfd) = (self.this.clone(), Arc::downgrade(sandbox), pidfd.clone());
        tokio::spawn(async move {
            if wait_pidfd(&pidfd).await.is_err() {
                return;
            }
            let (Some(runtime), Some(sandbox)) = (this.upgrade(), sandbox.upgrade()) else { return };
            runtime.sandbox_died(&sandbox);
        });
    }

    /// podinit is dead, and with it everything in its PID namespace.
    pub(crate) fn sandbox_died(&self, sandbox: &Arc<Sandbox>) {
        {
            let mut record = lock(&sandbox.record);
            if record.phase != SandboxPhase::Ready {
                return;
            }
            record.phase = SandboxPhase::Dead;
        }
        *lock(&sandbox.podinit) = None;
        if let Err(err) = self.save_sandbox(sandbox) {
            tracing::error!(sandbox = sandbox.id, %err, "death of a sandbox could not be recorded");
        }
        for container in self.containers_of(&sandbox.id) {
            if container.state() == ContainerState::Running && lock(&container.own_podinit).is_none() {
                self.finish(&container, self.exit_record(&container.id));
            }
        }
        let pod_uid = sandbox.uid();
        let _ = self.events.send(ContainerEvent::SandboxDied { sandbox_id: sandbox.id.clone(), pod_uid });
    }
}

async fn listen(runtime: Weak<Runtime>, mut notices: mpsc::Receiver<(String, Notice)>) {
    while let Some((about, notice)) = notices.recv().await {
        let Some(runtime) = runtime.upgrade() else { return };
        runtime.on_notice(&about, notice);
    }
}

/// Waits until the process behind a pidfd has ended.
pub(crate) async fn wait_pidfd(pidfd: &OwnedFd) -> io::Result<()> {
    // A duplicate: several may wait for one process, and epoll takes each number once.
    let fd = crate::sys::async_fd(pidfd.try_clone()?, true)?;
    fd.readable().await?.retain_ready();
    Ok(())
}

/// Whether the process behind a pidfd lives.
pub(crate) fn alive(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n == 0)
}

/// Makes a folder with its parents and sets its mode.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Id of a sandbox, container or exec: 64 hexadecimal digits.
pub(crate) fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}
