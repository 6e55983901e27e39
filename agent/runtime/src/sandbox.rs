//! Sandboxes: made in one go with rollback, stopped and removed idempotently.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keelson_cri::phase::{phase, phase_of};
use keelson_cri::{CriError, NamespaceMode, PodNetworkRequest, PodSandboxConfig, PodSandboxStatus, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::config::shm;
use crate::plan::SandboxPlan;
use crate::podinit::{Podinit, bind_listener};
use crate::runtime::{Runtime, Sandbox, internal, lock, make_dir, new_id, wait_pidfd};
use crate::spawner::{ChildSync, Request};
use crate::state::{ProcessId, SandboxPhase, SandboxRecord};
use crate::sys;

/// podinit's socket in the sandbox's folder.
pub const SOCKET: &str = "podinit.sock";
/// How long podinit may take to die once killed: its PID namespace is emptied first.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// Refuses what can't be honoured and plans the rest.
fn plan(config: &PodSandboxConfig) -> Result<SandboxPlan> {
    let namespaces = &config.namespaces;
    if namespaces.user_namespace.is_some() {
        return Err(CriError::Invalid("hostUsers: false is not supported by this runtime yet".into()));
    }
    let host_net = namespaces.network == NamespaceMode::Node;
    let host_ipc = namespaces.ipc == NamespaceMode::Node;
    if config.hostname.len() > 63 {
        return Err(CriError::Invalid(format!("hostname {:?} is longer than 63 bytes", config.hostname)));
    }
    if host_net && config.port_mappings.iter().any(|p| p.host_port != 0 && p.host_port != p.container_port) {
        return Err(CriError::Invalid("hostPort must equal containerPort with hostNetwork".into()));
    }
    let sysctls = config
        .sysctls
        .iter()
        .map(|(name, value)| Ok((sysctl_path(name, host_net, host_ipc)?, value.clone())))
        .collect::<Result<_>>()?;
    Ok(SandboxPlan {
        new_net: !host_net,
        new_ipc: !host_ipc,
        new_pid: namespaces.pid != NamespaceMode::Node,
        hostname: (!config.hostname.is_empty() && !host_net).then(|| config.hostname.clone()),
        sysctls,
    })
}

/// File of a namespaced sysctl; runc's rules and words.
fn sysctl_path(name: &str, host_net: bool, host_ipc: bool) -> Result<PathBuf> {
    // As sysctl(8): with a dot first, dots separate and slashes are dots (net.ipv4.conf.eth0/1.x).
    let slashed = match (name.find('.'), name.find('/')) {
        (Some(dot), Some(slash)) if slash < dot => name.to_string(),
        (None, _) => name.to_string(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    if slashed.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
        return Err(CriError::Invalid(format!("sysctl {name:?} is not a valid name")));
    }
    let ipc = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ]
    .contains(&slashed.as_str())
        || slashed.starts_with("fs/mqueue/");
    let net = slashed.starts_with("net/");
    if (ipc && !host_ipc) || (net && !host_net) {
        return Ok(PathBuf::from("/proc/sys").join(slashed));
    }
    Err(CriError::Invalid(format!("sysctl {name:?} is not in a separate kernel namespace")))
}

impl Runtime {
    /// The request of CNI for a sandbox; none for hostNetwork.
    fn network_request(&self, record: &SandboxRecord) -> Option<PodNetworkRequest> {
        let config = &record.config;
        (config.namespaces.network != NamespaceMode::Node).then(|| PodNetworkRequest {
            sandbox_id: record.id.clone(),
            netns: self.config.netns(&record.id),
            namespace: config.metadata.namespace.clone(),
            name: config.metadata.name.clone(),
            uid: config.metadata.uid.clone(),
            port_mappings: config.port_mappings.clone(),
            annotations: config.annotations.clone(),
        })
    }

    /// CRI RunPodSandbox.
    #[tracing::instrument(skip_all, fields(pod = %config.metadata.name, namespace = %config.metadata.namespace))]
    pub(crate) async fn make_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandboxStatus> {
        let plan = plan(&config)?;
        let id = new_id();
        let record = SandboxRecord {
            id: id.clone(),
            config,
            created_at: SystemTime::now(),
            phase: SandboxPhase::Creating,
            ips: Vec::new(),
            podinit: None,
        };
        let sandbox = Sandbox::new(record);
        // Written first: whatever is left half made if the agent dies now is found by this record.
        self.save_sandbox(&sandbox)?;
        match self.build_sandbox(&sandbox, plan).await {
            Ok(()) => {
                let status = lock(&sandbox.record).status();
                lock(&self.sandboxes).insert(id, sandbox.clone());
                if let Some(pidfd) = lock(&sandbox.pidfd).clone() {
                    self.watch_podinit(&sandbox, &pidfd);
                }
                Ok(status)
            }
            Err(err) => {
                self.undo_sandbox(sandbox).await;
                Err(err)
            }
        }
    }

    async fn build_sandbox(&self, sandbox: &Arc<Sandbox>, plan: SandboxPlan) -> Result<()> {
        let id = &sandbox.id;
        let (config, request) = {
            let record = lock(&sandbox.record);
            (record.config.clone(), self.network_request(&record))
        };
        let cgroup = sandbox.cgroup();
        let podinit_cgroup = sandbox.podinit_cgroup();
        phase_of("sandbox.cgroup", || {
            self.cgroups.create(&cgroup)?;
            self.cgroups.apply_above_containers(&cgroup, &config.resources)?;
            self.cgroups.create(&podinit_cgroup)
        })?;

        let run = self.config.sandbox_run(id);
        make_dir(&run, 0o700).map_err(internal("making the sandbox's folder"))?;
        if plan.new_ipc {
            let shm = shm(&run);
            make_dir(&shm, 0o755).map_err(internal("making /dev/shm"))?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("shm", &shm, "tmpfs", flags, Some(c"mode=1777,size=65536k"))
                .map_err(internal("mounting /dev/shm"))?;
        }
        let listener = bind_listener(&run, SOCKET).map_err(internal("podinit's socket"))?;
        let spawned = self.spawn_podinit(plan.clone(), &podinit_cgroup, &listener);
        let pidfd = phase("sandbox.podinit", spawned).await?;
        drop(listener);
        let process = ProcessId::of(&pidfd).map_err(internal("podinit"))?;
        let pidfd = Arc::new(pidfd);
        *lock(&sandbox.pidfd) = Some(pidfd);
        lock(&sandbox.record).podinit = Some(process);

        if let Some(request) = request {
            let netns = &request.netns;
            std::fs::File::create(netns).map_err(internal(netns.display()))?;
            mount_bind(format!("/proc/{}/ns/net", process.pid), netns)
                .map_err(internal("pinning the netns"))?;
            let status = phase("sandbox.network", self.network.setup(&request)).await?;
            lock(&sandbox.record).ips = status.ips;
        }
        let connecting = Podinit::connect(&run, SOCKET, id, self.notices.clone());
        let podinit = phase("sandbox.connect", connecting).await;
        *lock(&sandbox.podinit) = Some(podinit.map_err(internal("connecting to podinit"))?);
        lock(&sandbox.record).phase = SandboxPhase::Ready;
        self.save_sandbox(sandbox)
    }

    async fn spawn_podinit(&self, plan: SandboxPlan, cgroup: &str, listener: &OwnedFd) -> Result<OwnedFd> {
        let (sync, theirs) = ChildSync::pair().map_err(internal("sync socket"))?;
        let cgroup = self.cgroups.open_dir(cgroup)?;
        let fds = [theirs.as_fd(), cgroup.as_fd(), self.podinit_binary.as_fd(), listener.as_fd()];
        let spawned = self.spawn(&Request::Sandbox(plan), &fds).await?;
        drop(theirs);
        let executed = sync.executed().await;
        executed.map_err(|failure| CriError::Internal(format!("making the sandbox: {failure}")))?;
        Ok(spawned.pidfd)
    }

    /// Has the spawner give birth without blocking the executor.
    pub(crate) async fn spawn(
        &self,
        request: &Request,
        fds: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<crate::spawner::Spawned> {
        // A birth takes about a millisecond; a task moved to another thread would need copies of all descriptors.
        let multi =
            tokio::runtime::Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread;
        let call = || self.spawner.spawn(request, fds);
        let result = if multi { tokio::task::block_in_place(call) } else { call() };
        result.map_err(internal("spawner"))
    }

    /// Ends everything of a sandbox but its record. Goes on after a failure and gives the first; each step may be
    /// repeated, and none needs the one before to have worked.
    async fn tear_down(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let mut first = Ok(());
        let mut note = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        // Containers first: their exit codes are still recorded by a living podinit.
        for container in self.containers_of(&sandbox.id) {
            note(self.cgroups.kill(&container.cgroup()).await);
            if container.state() == keelson_cri::ContainerState::Running
                && !container.wait_exited(Duration::from_secs(5)).await
            {
                self.finish(&container, self.exit_record(&container.id));
            }
        }
        let (request, podinit) = {
            let record = lock(&sandbox.record);
            (self.network_request(&record), record.podinit)
        };
        if let Some(request) = &request {
            note(self.network.teardown(request).await);
        }
        {
            let mut record = lock(&sandbox.record);
            record.phase = SandboxPhase::Stopped;
        }
        *lock(&sandbox.podinit) = None;
        let pidfd = lock(&sandbox.pidfd).take().or_else(|| podinit?.open().ok().map(Arc::new));
        if let Some(pidfd) = pidfd {
            note(sys::pidfd_signal(&*pidfd, libc::SIGKILL).map_err(internal("killing podinit")));
            match tokio::time::timeout(KILL_TIMEOUT, wait_pidfd(&pidfd)).await {
                Ok(result) => note(result.map_err(internal("waiting for podinit"))),
                Err(_elapsed) => note(Err(CriError::Internal("podinit does not die".into()))),
            }
        }
        // Whatever else was born there, and podinits of hostPID containers.
        note(self.cgroups.kill(&sandbox.podinit_cgroup()).await);
        note(self.cgroups.remove(&sandbox.podinit_cgroup()));
        note(self.drop_mounts(&sandbox.id));
        first
    }

    /// Mounts and files under `run` of a sandbox. Idempotent.
    pub(crate) fn drop_mounts(&self, id: &str) -> Result<()> {
        for (path, file) in [(self.config.netns(id), true), (shm(&self.config.sandbox_run(id)), false)] {
            match unmount(&path, UnmountFlags::DETACH) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(err) => return Err(internal(format!("unmounting {}", path.display()))(err)),
            }
            if file {
                remove_found(std::fs::remove_file(&path)).map_err(internal(path.display()))?;
            }
        }
        let run = self.config.sandbox_run(id);
        remove_found(std::fs::remove_dir_all(&run)).map_err(internal(run.display()))
    }

    /// CRI StopPodSandbox.
    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _changing = sandbox.changing.lock().await;
        if lock(&sandbox.record).phase == SandboxPhase::Stopped {
            return Ok(());
        }
        let result = self.tear_down(&sandbox).await;
        if result.is_err() {
            // Not done: the next call tries all of it again.
            lock(&sandbox.record).phase = SandboxPhase::Dead;
        }
        self.save_sandbox(&sandbox)?;
        result
    }

    /// CRI RemovePodSandbox.
    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        self.stop_sandbox(id).await?;
        for container in self.containers_of(id) {
            self.drop_container(&container.id).await?;
        }
        let _changing = sandbox.changing.lock().await;
        self.forget(&sandbox)
    }

    /// The last of a sandbox: its pod cgroup, if no other sandbox of the pod has it, and its record.
    pub(crate) fn forget(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        lock(&self.sandboxes).remove(&sandbox.id);
        self.cgroups.remove_if_empty(&sandbox.cgroup());
        let path = self.config.sandbox_record(&sandbox.id);
        remove_found(std::fs::remove_file(&path)).map_err(internal(path.display()))
    }

    /// Ends a sandbox that is half made. What can't be undone now, as when a network plugin hangs, is kept as a dead
    /// sandbox, for whoever looks after the pod to stop: nothing is forgotten before it is gone.
    pub(crate) async fn undo_sandbox(&self, sandbox: Arc<Sandbox>) {
        let undone = self.tear_down(&sandbox).await.and_then(|()| self.forget(&sandbox));
        let Err(err) = undone else { return };
        tracing::warn!(sandbox = sandbox.id, %err, "a half-made sandbox can't be undone yet");
        lock(&sandbox.record).phase = SandboxPhase::Dead;
        if let Err(err) = self.save_sandbox(&sandbox) {
            tracing::warn!(sandbox = sandbox.id, %err, "its record stays as it was");
        }
        lock(&self.sandboxes).insert(sandbox.id.clone(), sandbox);
    }
}

/// That there is nothing to remove is success.
pub(crate) fn remove_found(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls() {
        let check = |name: &str, net: bool, ipc: bool| {
            sysctl_path(name, net, ipc).map(|p| p.display().to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(check("net.ipv4.ip_forward", false, false).unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(
            check("net.ipv4.conf.eth0/1.rp_filter", false, true).unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"
        );
        assert_eq!(check("net/core/somaxconn", false, true).unwrap(), "/proc/sys/net/core/somaxconn");
        assert_eq!(check("kernel.shmmax", true, false).unwrap(), "/proc/sys/kernel/shmmax");
        for (name, net, ipc) in [
            ("kernel.panic", false, false),
            ("net.core.x", true, false),
            ("kernel.sem", false, true),
            ("net/../kernel/panic", false, false),
        ] {
            assert!(check(name, net, ipc).is_err(), "{name}");
        }
    }
}
