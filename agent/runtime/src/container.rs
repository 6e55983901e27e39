//! Containers: create, start, stop, remove.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use caps::CapSet;
use keelson_cri::phase::phase;
use keelson_cri::{
    ContainerConfig, ContainerEvent, ContainerState, CriError, LinuxResources, NamespaceMode, Result,
    SeccompProfile, SecurityContext, UnpackedImage,
};
use keelson_podinit::protocol::{self, Request as PodinitRequest};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::config::shm;
use crate::image_volume;
use crate::oom_score;
use crate::plan::{self, ContainerPlan, PidNamespace, ProcessPlan, RootfsPlan, UserSpec};
use crate::podinit::{Podinit, bind_listener};
use crate::runtime::{Container, Runtime, Sandbox, internal, lock, make_dir, new_id};
use crate::sandbox::remove_found;
use crate::seccomp::{self, Environment, Profile, Target};
use crate::spawner::{ChildSync, Failure, FailureKind, Request, Spawned};
use crate::state::{ContainerRecord, ProcessId};
use crate::sys;

/// How long a child may take to set itself up; mounts of a slow network filesystem are the slowest part.
const SETUP_TIMEOUT: Duration = Duration::from_secs(120);

/// A process that is set up and registered with its podinit, waiting to call exec.
pub(crate) struct Prepared {
    pub sync: ChildSync,
    pub pidfd: OwnedFd,
    pub podinit: Arc<Podinit>,
    /// Set when the podinit is this process's own (hostPID).
    pub own: bool,
    pub user: plan::ResolvedUser,
    pub warnings: Vec<String>,
    /// Master of the pty.
    pub console: Option<OwnedFd>,
}

/// The process's and the agent's (or podinit's) ends of the standard streams.
pub(crate) struct Stdio {
    pub child: Vec<OwnedFd>,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Stdio {
    /// Pipes, or nothing for a tty, whose pty is made inside the container.
    pub fn new(tty: bool, stdin: bool) -> Result<Self> {
        if tty {
            return Ok(Self { child: Vec::new(), stdin: None, stdout: None, stderr: None });
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(internal("pipe"));
        let (input, ours_in) = if stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (OwnedFd::from(File::open("/dev/null").map_err(internal("/dev/null"))?), None)
        };
        let (stdout, out) = pipe()?;
        let (stderr, err) = pipe()?;
        Ok(Self { child: vec![input, out, err], stdin: ours_in, stdout: Some(stdout), stderr: Some(stderr) })
    }
}

/// Number of a signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number.
fn signal_number(name: &str) -> Result<i32> {
    let upper = name.trim().to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    // 34 is glibc's SIGRTMIN, which images mean.
    let realtime = full.strip_prefix("SIGRTMIN+").and_then(|n| n.parse::<i32>().ok()).map(|n| 34 + n);
    let number = upper.parse::<i32>().ok().or(realtime);
    match number.or_else(|| nix::sys::signal::Signal::from_str(&full).ok().map(|s| s as i32)) {
        Some(n) if (1..=64).contains(&n) => Ok(n),
        _ => Err(CriError::Invalid(format!("unknown stop signal {name:?}"))),
    }
}

/// The command: `command` replaces the image's ENTRYPOINT and its CMD, `args` its CMD (kubelet's rule).
fn command_line(config: &ContainerConfig, image: &keelson_cri::ImageConfig) -> Result<Vec<String>> {
    let mut line = if config.command.is_empty() { image.entrypoint.clone() } else { config.command.clone() };
    if !config.args.is_empty() {
        line.extend(config.args.iter().cloned());
    } else if config.command.is_empty() {
        line.extend(image.cmd.iter().cloned());
    }
    if line.is_empty() {
        return Err(CriError::Invalid("no command specified".into()));
    }
    Ok(line)
}

/// Compiles the seccomp filter of a security context.
fn seccomp_filter(security: &SecurityContext, capabilities: &[String]) -> Result<Option<Vec<u64>>> {
    let json = match &security.seccomp {
        _ if security.privileged => return Ok(None),
        SeccompProfile::Unconfined => return Ok(None),
        SeccompProfile::RuntimeDefault => seccomp::RUNTIME_DEFAULT.to_string(),
        SeccompProfile::Localhost(path) => std::fs::read_to_string(path)
            .map_err(|e| CriError::Invalid(format!("can't load seccomp profile {}: {e}", path.display())))?,
    };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let environment = Environment {
        caps: capabilities,
        arch: Target::NATIVE.go_arch(),
        kernel: seccomp::parse_kernel(&release).unwrap_or((0, 0)),
    };
    let compiled = Profile::parse(&json)
        .and_then(|profile| profile.evaluate(&environment))
        .and_then(|rules| seccomp::compile(&rules, Target::NATIVE));
    compiled.map(Some).map_err(|e| CriError::Invalid(e.to_string()))
}

/// Capabilities that this process may pass on.
fn held_capabilities() -> Result<BTreeSet<String>> {
    let set = caps::read(None, CapSet::Bounding).map_err(internal("reading the bounding set"))?;
    Ok(set.iter().map(ToString::to_string).collect())
}

impl Runtime {
    fn process_plan(
        &self,
        config: &ContainerConfig,
        image: &UnpackedImage,
        hostname: &str,
    ) -> Result<ProcessPlan> {
        let security = &config.security;
        let capabilities: Vec<String> =
            plan::container_capabilities(security, &held_capabilities()?)?.into_iter().collect();
        let cwd = [&config.working_dir, &image.config.working_dir].into_iter().find(|d| !d.is_empty());
        let cwd = Path::new("/").join(cwd.map_or("/", String::as_str));
        Ok(ProcessPlan {
            args: command_line(config, &image.config)?,
            env: plan::container_env(&image.config.env, &config.envs, hostname, config.tty),
            cwd,
            user: UserSpec::new(security, &image.config.user),
            seccomp: seccomp_filter(security, &capabilities)?,
            capabilities,
            no_new_privs: security.no_new_privs,
            tty: config.tty,
            oom_score_adj: config.resources.oom_score_adj,
            nofile: self.config.nofile,
        })
    }

    /// CRI CreateContainer.
    pub(crate) async fn make_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let sandbox = self.sandbox(sandbox_id)?;
        sandbox.live()?;
        check_mounts(&config)?;
        let id = new_id();
        let dir = self.config.container_dir(&id);
        // The folder first: one without a record is what a dead agent left, and is removed at start.
        make_dir(&dir, 0o700).map_err(internal("making the container's folder"))?;
        let result = self.build_container(&sandbox, &id, config).await;
        if result.is_err() {
            let undo = self.drop_container_files(&id, &format!("{}/{id}", sandbox.cgroup())).await;
            if let Err(err) = undo {
                tracing::warn!(container = id, %err, "rollback of a container");
            }
        }
        result.map(|()| id)
    }

    async fn build_container(&self, sandbox: &Arc<Sandbox>, id: &str, config: ContainerConfig) -> Result<()> {
        let (image, volumes) = self.lease_images(&config, id).await?;
        plan::check_non_root(&config.security, &image.config.user)?;
        let (hostname, log_directory) = {
            let record = lock(&sandbox.record);
            (record.config.hostname.clone(), record.config.log_directory.clone())
        };
        let hostname = if hostname.is_empty() {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        } else {
            hostname
        };
        let stop_signal =
            config.stop_signal.as_deref().or(image.config.stop_signal.as_deref()).unwrap_or("SIGTERM");
        let record = ContainerRecord {
            id: id.to_string(),
            sandbox_id: sandbox.id.clone(),
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
            state: ContainerState::Created,
            exit_code: None,
            reason: None,
            message: None,
            image: image.id.clone(),
            stop_signal: signal_number(stop_signal)?,
            log_path: log_directory.join(&config.log_path),
            process: None,
            user: None,
            process_plan: self.process_plan(&config, &image, &hostname)?,
            lowerdirs: image.lowerdirs,
            image_volumes: volumes,
            config,
        };
        self.target(&record)?;
        let dir = self.config.container_dir(id);
        for name in ["upper", "work", "rootfs"] {
            make_dir(&dir.join(name), 0o755).map_err(internal("making the container's folders"))?;
        }
        // overlayfs shows the upper folder's owner and mode as those of `/`.
        if let Some(top) = record.lowerdirs.first() {
            copy_root_attributes(top, &dir.join("upper")).map_err(internal("the writable layer"))?;
        }
        self.check_image_volumes(&record).await?;
        let container = Container::new(sandbox.clone(), record);
        let cgroup = container.cgroup();
        self.cgroups.create(&cgroup)?;
        let (resources, privileged) = {
            let record = lock(&container.record);
            (record.config.resources.clone(), record.config.security.privileged)
        };
        self.cgroups.apply(&cgroup, &resources)?;
        if !privileged {
            let fd = self.cgroups.open_dir(&cgroup)?;
            sys::attach_device_filter(&fd, &plan::device_filter()).map_err(internal("device filter"))?;
        }
        self.save_container(&container)?;
        lock(&self.containers).insert(id.to_string(), container);
        Ok(())
    }

    /// CRI StartContainer.
    pub(crate) async fn launch_container(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _changing = container.changing.lock().await;
        if container.state() != ContainerState::Created {
            return Err(CriError::FailedPrecondition(format!("container {id} is not in created state")));
        }
        match self.try_launch(&container).await {
            Ok(()) => {
                let _ = self.events.send(ContainerEvent::Started {
                    sandbox_id: container.sandbox.id.clone(),
                    container_id: container.id.clone(),
                    pod_uid: container.sandbox.uid(),
                });
                Ok(())
            }
            Err(err) => {
                self.start_failed(&container, &err).await;
                Err(err)
            }
        }
    }

    /// containerd's way: the container counts as exited with 128, reason StartError.
    async fn start_failed(&self, container: &Container, err: &CriError) {
        if let Err(err) = self.cgroups.kill(&container.cgroup()).await {
            tracing::warn!(container = container.id, %err, "clearing a container that did not start");
        }
        if let Ok(podinit) = container.podinit() {
            podinit.release(&container.id).await;
        }
        {
            let mut record = lock(&container.record);
            record.state = ContainerState::Exited;
            record.finished_at = Some(SystemTime::now());
            record.exit_code = Some(128);
            record.reason = Some("StartError".into());
            record.message = Some(err.to_string());
        }
        if let Err(err) = self.save_container(container) {
            tracing::error!(container = container.id, %err, "failed start could not be recorded");
        }
        container.exited.send_replace(true);
        let _ = self.events.send(ContainerEvent::Exited {
            sandbox_id: container.sandbox.id.clone(),
            container_id: container.id.clone(),
            pod_uid: container.sandbox.uid(),
        });
    }

    async fn try_launch(&self, container: &Arc<Container>) -> Result<()> {
        let record = lock(&container.record).clone();
        let sandbox_config = lock(&container.sandbox.record).config.clone();
        let (_, podinit_pidfd) = container.sandbox.live()?;
        let config = &record.config;
        let mut stdio = Stdio::new(config.tty, config.stdin)?;
        let target = self.target(&record)?;
        let plan = self.container_plan(&record, &sandbox_config)?;
        let pod_pid = plan.pid != PidNamespace::Node;
        let cgroup = self.cgroups.open_dir(&container.cgroup())?;
        let request = Request::Container(plan);
        let mut fds = vec![cgroup.as_fd(), podinit_pidfd.as_fd()];
        fds.extend(target.as_ref().map(|pidfd| pidfd.as_fd()));
        let birth = self.give_birth(&container.sandbox, &request, &fds, &stdio.child, pod_pid, &container.id);
        let (sync, spawned, own) = phase("start.birth", birth).await?;
        stdio.child.clear();

        let mut flags = 0;
        for (on, flag) in [
            (config.tty, protocol::FLAG_TTY),
            (config.stdin, protocol::FLAG_STDIN),
            (config.stdin && config.stdin_once, protocol::FLAG_STDIN_ONCE),
        ] {
            if on {
                flags |= flag;
            }
        }
        let record_path = self.config.exit_record(&container.id);
        // Of a start that an agent did not live to finish.
        match std::fs::remove_file(&record_path) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(internal(record_path.display())(err));
            }
            _ => {}
        }
        let exit = create_file(&record_path, 0o600)?;
        let log = open_log(&record.log_path)?;
        let preparing =
            self.prepare(&container.sandbox, sync, spawned, own, &container.id, flags, |console| {
                let mut fds = vec![exit, log];
                fds.extend(console.into_iter().chain(stdio.stdout).chain(stdio.stderr).chain(stdio.stdin));
                fds
            });
        let prepared = phase("start.setup", preparing).await?;
        for warning in &prepared.warnings {
            tracing::warn!(container = container.id, warning, "container starts with a limitation");
        }
        if prepared.own {
            *lock(&container.own_podinit) = Some(prepared.podinit.clone());
        }
        {
            let mut record = lock(&container.record);
            record.state = ContainerState::Running;
            record.started_at = Some(SystemTime::now());
            record.process = ProcessId::of(&prepared.pidfd).ok();
            record.user = Some(prepared.user);
            // Not fatal and yet not silent: the status carries it until there is something worse to say.
            record.message = (!prepared.warnings.is_empty()).then(|| prepared.warnings.join("; "));
        }
        *lock(&container.pidfd) = Some(Arc::new(prepared.pidfd));
        // On disk before the process runs: an agent that dies now leaves nothing running that the next one won't know.
        self.save_container(container)?;
        phase("start.exec", prepared.sync.go()).await.map_err(|failure| start_error(&failure))
    }

    fn container_plan(
        &self,
        record: &ContainerRecord,
        sandbox: &keelson_cri::PodSandboxConfig,
    ) -> Result<ContainerPlan> {
        let security = &record.config.security;
        let dir = self.config.container_dir(&record.id);
        let shm = match sandbox.namespaces.ipc {
            NamespaceMode::Node => PathBuf::from("/dev/shm"),
            _ => shm(&self.config.sandbox_run(&record.sandbox_id)),
        };
        let devices = if security.privileged { plan::host_devices() } else { plan::DeviceNode::defaults() };
        Ok(ContainerPlan {
            pid: pid_namespace(sandbox.namespaces.pid, security),
            rootfs: RootfsPlan {
                lowerdirs: record.lowerdirs.clone(),
                upper: dir.join("upper"),
                work: dir.join("work"),
                target: dir.join("rootfs"),
                readonly: security.readonly_rootfs,
            },
            mounts: plan::mount_plan(security, &record.config.mounts, &shm, devices, &record.image_volumes)?,
            process: record.process_plan.clone(),
        })
    }

    /// First process of the container whose PID namespace this one joins; containerd's rules and words.
    fn target(&self, record: &ContainerRecord) -> Result<Option<Arc<OwnedFd>>> {
        let Some(id) = &record.config.security.target_id else { return Ok(None) };
        let invalid = |why: String| {
            CriError::FailedPrecondition(format!("invalid target container: container {id:?} {why}"))
        };
        let target = self.container(id).map_err(|_unknown| invalid("does not exist: not found".into()))?;
        let (own, of) = (&record.sandbox_id, &target.sandbox.id);
        if own != of {
            return Err(invalid(format!("(sandbox {of}) does not belong to sandbox {own}")));
        }
        let state = match target.state() {
            ContainerState::Running => None,
            ContainerState::Created => Some("CONTAINER_CREATED"),
            ContainerState::Exited => Some("CONTAINER_EXITED"),
            ContainerState::Unknown => Some("CONTAINER_UNKNOWN"),
        };
        match (state, lock(&target.pidfd).clone()) {
            (None, Some(pidfd)) => Ok(Some(pidfd)),
            (state, _) => {
                Err(invalid(format!("is not running - in state {}", state.unwrap_or("CONTAINER_EXITED"))))
            }
        }
    }

    /// Sends a birth to the spawner; with hostPID a podinit of its own comes with it, whose socket's name is given.
    pub(crate) async fn give_birth(
        &self,
        sandbox: &Sandbox,
        request: &Request,
        fds: &[std::os::fd::BorrowedFd<'_>],
        stdio: &[OwnedFd],
        pod_pid: bool,
        id: &str,
    ) -> Result<(ChildSync, Spawned, Option<String>)> {
        let (sync, theirs) = ChildSync::pair().map_err(internal("sync socket"))?;
        let mut all = vec![theirs.as_fd()];
        all.extend_from_slice(fds);
        all.extend(stdio.iter().map(AsFd::as_fd));
        if pod_pid {
            let spawned = self.spawn(request, &all).await?;
            return Ok((sync, spawned, None));
        }
        let socket = format!("{id}.sock");
        let listener =
            bind_listener(&self.config.sandbox_run(&sandbox.id), &socket).map_err(internal("socket"))?;
        let cgroup = self.cgroups.open_dir(&sandbox.podinit_cgroup())?;
        all.extend([cgroup.as_fd(), self.podinit_binary.as_fd(), listener.as_fd()]);
        let spawned = self.spawn(request, &all).await?;
        Ok((sync, spawned, Some(socket)))
    }

    /// Waits until the child is set up and registers it, so that its exit is recorded whatever happens next.
    #[expect(clippy::too_many_arguments, reason = "the one place where a birth's parts come together")]
    pub(crate) async fn prepare(
        &self,
        sandbox: &Sandbox,
        sync: ChildSync,
        spawned: Spawned,
        own: Option<String>,
        id: &str,
        flags: u8,
        fds: impl FnOnce(Option<OwnedFd>) -> Vec<OwnedFd>,
    ) -> Result<Prepared> {
        let ready = tokio::time::timeout(SETUP_TIMEOUT, sync.ready()).await;
        let (user, warnings, console) = match ready {
            Ok(result) => result.map_err(|failure| start_error(&failure))?,
            Err(_elapsed) => {
                sys::pidfd_signal(&spawned.pidfd, libc::SIGKILL)
                    .map_err(internal("killing a stuck process"))?;
                return Err(CriError::Internal("the container's set-up took more than two minutes".into()));
            }
        };
        let podinit = match &own {
            None => sandbox.live()?.0,
            Some(socket) => {
                let run = self.config.sandbox_run(&sandbox.id);
                let connected = Podinit::connect(&run, socket, &sandbox.id, self.notices.clone()).await;
                connected.map_err(internal("connecting to podinit"))?
            }
        };
        let kept = if flags & protocol::FLAG_EXEC != 0 {
            console.as_ref().map(OwnedFd::try_clone).transpose().map_err(internal("console"))?
        } else {
            None
        };
        let fds = fds(console);
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let register = PodinitRequest::Register { id: id.into(), pid: spawned.pid, flags };
        podinit.request(&register, &borrowed).await.map_err(internal("registering with podinit"))?;
        Ok(Prepared {
            sync,
            pidfd: spawned.pidfd,
            podinit,
            own: own.is_some(),
            user,
            warnings,
            console: kept,
        })
    }

    /// CRI StopContainer.
    pub(crate) async fn end_container(&self, id: &str, grace: Duration) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        if container.state() != ContainerState::Running {
            return Ok(());
        }
        let pidfd = lock(&container.pidfd).clone();
        if let Some(pidfd) = pidfd.filter(|_| !grace.is_zero()) {
            let signal = lock(&container.record).stop_signal;
            sys::pidfd_signal(&*pidfd, signal).map_err(internal("sending the stop signal"))?;
            if container.wait_exited(grace).await {
                // What it left behind in its cgroup (shared PID namespace) goes too.
                return self.cgroups.kill(&container.cgroup()).await;
            }
        }
        self.cgroups.kill(&container.cgroup()).await?;
        if container.wait_exited(Duration::from_secs(10)).await {
            return Ok(());
        }
        // All its processes are dead; podinit did not say so. The record may still be there.
        self.finish(&container, self.exit_record(id));
        Ok(())
    }

    /// CRI RemoveContainer.
    pub(crate) async fn drop_container(&self, id: &str) -> Result<()> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        self.end_container(id, Duration::ZERO).await?;
        let _changing = container.changing.lock().await;
        let own = lock(&container.own_podinit).take();
        if let Some(own) = own {
            // Its answer is its end.
            let _ = own.request(&PodinitRequest::Shutdown, &[]).await;
        } else if let Ok(podinit) = container.podinit() {
            podinit.release(id).await;
        }
        self.drop_container_files(id, &container.cgroup()).await?;
        lock(&self.containers).remove(id);
        Ok(())
    }

    /// Everything of a container that is not in memory. The folder goes last: by it the next agent finds what was not done
    /// when this one dies.
    pub(crate) async fn drop_container_files(&self, id: &str, cgroup: &str) -> Result<()> {
        self.cgroups.kill(cgroup).await?;
        self.cgroups.remove(cgroup)?;
        self.images.release(id).await?;
        let dir = self.config.container_dir(id);
        let removed = tokio::task::spawn_blocking(move || remove_found(std::fs::remove_dir_all(dir))).await;
        removed
            .map_err(internal("removing the container's files"))?
            .map_err(internal("removing the container's files"))
    }

    /// CRI UpdateContainerResources: everything that `update` gives, or nothing.
    pub(crate) async fn update_resources(&self, id: &str, update: LinuxResources) -> Result<()> {
        let container = self.container(id)?;
        // Not while it starts: its plan is on its way to the spawner then.
        let _changing = container.changing.lock().await;
        if container.state() == ContainerState::Exited {
            return Err(CriError::FailedPrecondition(format!("container {id} has exited")));
        }
        let former = lock(&container.record).config.resources.clone();
        let cgroup = container.cgroup();
        let score = update.oom_score_adj.filter(|score| Some(*score) != former.oom_score_adj);
        let scored = score.map(|score| oom_score::set(&self.cgroups.path(&cgroup), score)).transpose()?;
        if let Err(err) = self.cgroups.apply(&cgroup, &update) {
            if let Some(scored) = scored {
                scored.undo();
            }
            return Err(err);
        }
        {
            let mut record = lock(&container.record);
            record.config.resources = former.updated(update);
            // What is executed in it from now on has the new score too.
            record.process_plan.oom_score_adj = record.config.resources.oom_score_adj;
        }
        self.save_container(&container)
    }

    /// CRI UpdatePodSandboxResources: everything that `update` gives, or nothing.
    pub(crate) async fn update_sandbox_resources(&self, id: &str, update: LinuxResources) -> Result<()> {
        let sandbox = self.sandbox(id)?;
        let _changing = sandbox.changing.lock().await;
        sandbox.live()?;
        self.cgroups.apply_above_containers(&sandbox.cgroup(), &update)?;
        {
            let mut record = lock(&sandbox.record);
            record.config.resources = std::mem::take(&mut record.config.resources).updated(update);
        }
        self.save_sandbox(&sandbox)
    }

    /// CRI ReopenContainerLog.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let path = lock(&container.record).log_path.clone();
        let log = open_log(&path)?;
        let request = PodinitRequest::ReopenLog { id: id.into() };
        container
            .podinit()?
            .request(&request, &[log.as_fd()])
            .await
            .map_err(internal("reopening the log"))?;
        Ok(())
    }
}

/// Where a container's processes are numbered. With hostPID there is nothing to join that it is not in already.
pub(crate) fn pid_namespace(pod: NamespaceMode, security: &SecurityContext) -> PidNamespace {
    match pod {
        NamespaceMode::Node => PidNamespace::Node,
        NamespaceMode::Pod => PidNamespace::Pod,
        NamespaceMode::Container if security.target_id.is_some() => PidNamespace::Target,
        NamespaceMode::Container => PidNamespace::Container,
    }
}

/// What a failed birth means to the kubelet, in runc's words.
pub(crate) fn start_error(failure: &Failure) -> CriError {
    match failure.kind {
        FailureKind::Setup => CriError::Internal(format!("unable to start container process: {failure}")),
        FailureKind::CommandNotFound | FailureKind::CommandNotExecutable => CriError::Internal(format!(
            "failed to create containerd task: unable to start container process: {failure}"
        )),
    }
}

/// Bidirectional and HostToContainer need a source on a shared mount, or they would do nothing.
fn check_mounts(config: &ContainerConfig) -> Result<()> {
    use keelson_cri::MountPropagation;
    for mount in &config.mounts {
        if mount.image.is_some() {
            image_volume::check(mount)?;
            continue;
        }
        if !mount.host_path.is_absolute() || !mount.container_path.is_absolute() {
            return Err(CriError::Invalid(format!(
                "mount {} is not absolute",
                mount.container_path.display()
            )));
        }
        if mount.propagation == MountPropagation::Private {
            continue;
        }
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(internal("mountinfo"))?;
        let source = mount.host_path.canonicalize().map_err(internal(mount.host_path.display()))?;
        let (point, shared, slave) = propagation_of(&mountinfo, &source);
        let wanted = mount.propagation;
        let suffices = shared || (slave && wanted == MountPropagation::HostToContainer);
        if !suffices {
            return Err(CriError::Invalid(format!(
                "path {:?} is mounted on {point:?} but it is not a shared{} mount",
                mount.host_path,
                if wanted == MountPropagation::HostToContainer { " or slave" } else { "" },
            )));
        }
    }
    Ok(())
}

/// The mount that a path lies on, and whether it is shared or a slave.
fn propagation_of(mountinfo: &str, path: &Path) -> (String, bool, bool) {
    let mut best = (String::from("/"), false, false);
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4) else { continue };
        if path.starts_with(point) && point.len() >= best.0.len() {
            let optional: Vec<&str> = fields.skip(1).take_while(|f| *f != "-").collect();
            let has = |prefix: &str| optional.iter().any(|f| f.starts_with(prefix));
            best = (point.to_string(), has("shared:"), has("master:"));
        }
    }
    best
}

fn copy_root_attributes(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(meta.uid()), Some(meta.gid()))?;
    std::fs::set_permissions(to, meta.permissions())
}

fn create_file(path: &Path, mode: u32) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().create(true).append(true).mode(mode).open(path);
    file.map(OwnedFd::from).map_err(internal(path.display()))
}

/// Opens a container's log for appending, with its folder.
fn open_log(path: &Path) -> Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(internal(parent.display()))?;
    }
    create_file(path, 0o640)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (name, number) in [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMIN+1", 35)] {
            assert_eq!(signal_number(name).unwrap(), number, "{name}");
        }
        assert!(
            signal_number("SIGFOO").is_err() && signal_number("0").is_err() && signal_number("99").is_err()
        );
    }

    #[test]
    fn mount_of_a_path() {
        let info = "1 0 8:1 / / rw shared:1 - ext4 a rw\n2 1 8:1 / /var rw master:4 - ext4 a rw\n3 1 8:1 / /v rw - x y z\n";
        assert_eq!(propagation_of(info, Path::new("/var/lib")), ("/var".into(), false, true));
        assert_eq!(propagation_of(info, Path::new("/usr")), ("/".into(), true, false));
        assert_eq!(propagation_of(info, Path::new("/v/x")), ("/v".into(), false, false));
    }
}
