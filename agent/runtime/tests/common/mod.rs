//! What the privileged tests share: a runtime over a temporary folder and a cgroup of its own, a busybox image, and a
//! network that does nothing. A test that lacks something fails and says what.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use keelson_cri::*;
use keelson_runtime::{Config, Runtime};
use tokio::io::AsyncReadExt;

/// A network that remembers who is attached.
#[derive(Default)]
pub struct FakeNetwork {
    pub attached: Mutex<Vec<String>>,
    pub fail: std::sync::atomic::AtomicBool,
    pub fail_teardown: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl PodNetwork for FakeNetwork {
    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus> {
        assert!(request.netns.exists());
        if self.fail.load(Ordering::Relaxed) {
            return Err(CriError::Internal("no network today".into()));
        }
        self.attached.lock().unwrap().push(request.sandbox_id.clone());
        Ok(PodNetworkStatus { ips: vec!["10.244.0.9".parse().unwrap()] })
    }
    async fn teardown(&self, request: &PodNetworkRequest) -> Result<()> {
        if self.fail_teardown.load(Ordering::Relaxed) {
            return Err(CriError::Internal("it can't be undone".into()));
        }
        self.attached.lock().unwrap().retain(|id| *id != request.sandbox_id);
        Ok(())
    }
    async fn check(&self, _: &PodNetworkRequest) -> Result<()> {
        Ok(())
    }
    async fn gc(&self, valid: &[String]) -> Result<()> {
        self.attached.lock().unwrap().retain(|id| valid.contains(id));
        Ok(())
    }
    async fn status(&self) -> std::result::Result<(), String> {
        Ok(())
    }
}

/// One image, busybox, and what a test adds.
pub struct FakeImages {
    layer: PathBuf,
    containers: PathBuf,
    /// By name, folders of layers, the topmost first.
    pub more: Mutex<BTreeMap<String, Vec<PathBuf>>>,
    pub leases: Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl ImageRootfs for FakeImages {
    async fn lease(&self, images: &[&str], container_id: &str) -> Result<Vec<UnpackedImage>> {
        let config = ImageConfig {
            env: vec!["PATH=/bin".into(), "FROM_IMAGE=1".into()],
            cmd: vec!["/bin/sh".into()],
            ..ImageConfig::default()
        };
        let more = self.more.lock().unwrap();
        let unpacked = images.iter().map(|&image| {
            let lowerdirs = match image {
                "busybox" => vec![self.layer.clone()],
                other => {
                    let found = more.get(other).cloned();
                    found.ok_or_else(|| CriError::NotFound(format!("image {other}")))?
                }
            };
            Ok(UnpackedImage { id: format!("sha256:{image}"), lowerdirs, config: config.clone() })
        });
        let unpacked = unpacked.collect::<Result<_>>()?;
        self.leases.lock().unwrap().push(container_id.into());
        Ok(unpacked)
    }
    async fn release(&self, container_id: &str) -> Result<()> {
        // By its folder a container is found again when the agent dies now.
        assert!(self.containers.join(container_id).exists(), "released too late");
        self.leases.lock().unwrap().retain(|id| id != container_id);
        Ok(())
    }
}

/// Builds the static podinit by the one documented command, once per test program.
pub fn podinit() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("KEELSON_PODINIT") {
                return path.into();
            }
            let target = Path::new(env!("CARGO_BIN_EXE_keelson-spawner")).parent().unwrap().parent().unwrap();
            let status = std::process::Command::new(env!("CARGO"))
                .args(["build", "-q", "-p", "keelson-podinit", "--profile", "podinit"])
                .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
                .arg(target)
                .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
                .status()
                .unwrap();
            assert!(status.success(), "building podinit");
            target.join("x86_64-unknown-linux-gnu/podinit/keelson-podinit")
        })
        .clone()
}

/// The machine's cgroup2 mount.
fn cgroup2() -> PathBuf {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.join("cgroup.controllers").exists())
        .expect("a cgroup2 mount")
}

/// A runtime and everything around it.
pub struct Node {
    pub dir: PathBuf,
    pub cgroup: PathBuf,
    pub network: Arc<FakeNetwork>,
    pub images: Arc<FakeImages>,
}

static NODES: AtomicU32 = AtomicU32::new(0);

impl Node {
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let name = format!("keelson-test-{}-{number}", std::process::id());
        // Not /tmp: on some machines that is a tmpfs mounted nodev or noexec.
        let dir = PathBuf::from("/var/tmp").join(&name);
        let layer = dir.join("layer");
        for sub in ["bin", "etc", "tmp", "proc", "dev", "sys", "root"] {
            std::fs::create_dir_all(layer.join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox-static is installed");
        let list = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|a| *a != "busybox") {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            layer.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:101:102::/var/web:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:102:\nlogs:x:4:web\n").unwrap();
        let cgroup = cgroup2().join(&name);
        std::fs::create_dir(&cgroup).unwrap();
        let containers = dir.join("lib/containers");
        let images =
            Arc::new(FakeImages { layer, containers, more: Mutex::default(), leases: Mutex::default() });
        Self { dir, cgroup, network: Arc::default(), images }
    }

    pub async fn runtime(&self) -> Arc<Runtime> {
        let config = Config {
            root: self.dir.join("lib"),
            run: self.dir.join("run"),
            cgroup_root: self.cgroup.clone(),
            podinit_path: podinit(),
            spawner_path: env!("CARGO_BIN_EXE_keelson-spawner").into(),
            allow_missing_controllers: true,
            ..Config::default()
        };
        Runtime::new(config, self.network.clone(), self.images.clone()).await.unwrap()
    }

    /// Removes all sandboxes and asserts that nothing is left of them.
    pub async fn finish(self, runtime: Arc<Runtime>) {
        for sandbox in runtime.list_pod_sandboxes().await.unwrap() {
            runtime.stop_pod_sandbox(&sandbox.id).await.unwrap();
            runtime.remove_pod_sandbox(&sandbox.id).await.unwrap();
        }
        drop(runtime);
        self.assert_clean();
    }

    pub fn assert_clean(&self) {
        let name = self.dir.display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&name), "left mounts:\n{mounts}");
        for (dir, what) in [
            ("run/netns", "netns"),
            ("run/sandboxes", "sandboxes"),
            ("lib/sandboxes", "records"),
            ("lib/containers", "containers"),
        ] {
            let left: Vec<_> = std::fs::read_dir(self.dir.join(dir)).unwrap().flatten().collect();
            assert!(left.is_empty(), "left {what}: {left:?}");
        }
        assert_eq!(*self.images.leases.lock().unwrap(), Vec::<String>::new());
        assert_eq!(*self.network.attached.lock().unwrap(), Vec::<String>::new());
        let mut left = Vec::new();
        let mut todo = vec![self.cgroup.clone()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).unwrap().flatten().filter(|e| e.path().is_dir()) {
                let name = entry.file_name().into_string().unwrap();
                if name.len() == 64 || name.starts_with("pod") && name != "podinit" {
                    left.push(entry.path());
                }
                todo.push(entry.path());
            }
        }
        assert!(left.is_empty(), "left cgroups: {left:?}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Also after a failed assertion: whatever still runs goes.
        let _ = std::fs::write(self.cgroup.join("cgroup.kill"), "1");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let name = self.dir.display().to_string();
        for point in mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|p| p.starts_with(&name)) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        std::thread::sleep(Duration::from_millis(50));
        fn remove(dir: &Path) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir())
            {
                remove(&entry.path());
            }
            let _ = std::fs::remove_dir(dir);
        }
        remove(&self.cgroup);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn sandbox_config(node: &Node, name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: name.into(),
            namespace: "default".into(),
            uid: name.into(),
            attempt: 0,
        },
        hostname: format!("{name}-host"),
        log_directory: node.dir.join("logs").join(name),
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::from([("app".to_string(), name.to_string())]),
        annotations: BTreeMap::new(),
        cgroup_parent: format!("kubepods/burstable/pod{name}"),
        resources: LinuxResources::default(),
        namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
        sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".to_string(), "77".to_string())]),
        fs_group: None,
    }
}

/// A container that runs a shell script.
pub fn script(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        attempt: 0,
        image: "busybox".into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        args: Vec::new(),
        working_dir: String::new(),
        envs: vec![("FROM_POD".into(), "2".into())],
        mounts: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: format!("{name}/0.log").into(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: LinuxResources::default(),
        security: SecurityContext::default(),
        stop_signal: None,
    }
}

/// A mount of an image.
pub fn volume(container: &str, image: &str, sub_path: &str) -> Mount {
    Mount {
        container_path: container.into(),
        host_path: PathBuf::new(),
        image: Some(ImageMount { image: image.into(), sub_path: sub_path.into() }),
        readonly: true,
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    }
}

pub async fn wait_exited(runtime: &Runtime, id: &str) -> ContainerStatus {
    for _ in 0..1000 {
        let status = runtime.container_status(id).await.unwrap();
        if status.state == ContainerState::Exited {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("container {id} does not exit: {:?}", runtime.container_status(id).await);
}

/// Contents of log lines, after a check of their form.
pub fn log_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .map(|line| {
            let mut parts = line.splitn(4, ' ');
            let (time, stream, tag) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            assert!(
                time.ends_with('Z') && ["stdout", "stderr"].contains(&stream) && ["F", "P"].contains(&tag),
                "{line}"
            );
            parts.next().unwrap().to_string()
        })
        .collect()
}

/// Runs a script to its end: its status and log.
pub async fn run(
    runtime: &Runtime,
    sandbox: &str,
    config: ContainerConfig,
) -> (ContainerStatus, Vec<String>) {
    let id = runtime.create_container(sandbox, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let status = wait_exited(runtime, &id).await;
    let lines = log_lines(&status.log_path);
    runtime.remove_container(&id).await.unwrap();
    (status, lines)
}

pub async fn wait_log(path: &Path, wanted: &str) {
    for _ in 0..500 {
        if std::fs::read_to_string(path).is_ok_and(|t| t.contains(wanted)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{wanted:?} does not come: {:?}", std::fs::read_to_string(path));
}

/// Runs a command in a container: exit code, stdout, stderr.
pub async fn exec(runtime: &Runtime, id: &str, command: &[&str]) -> Result<(i32, String, String)> {
    let command = command.iter().map(ToString::to_string).collect();
    let mut session = runtime.exec(id, ExecRequest { command, ..ExecRequest::default() }).await?;
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (session.stdout.take().unwrap(), session.stderr.take().unwrap());
    let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    a.unwrap();
    b.unwrap();
    Ok((session.exit.await.unwrap()?, out, err))
}

pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Kills one process for good.
pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Ends a runtime as kill -9 ends an agent: its spawner goes too, nothing is told to anybody.
pub async fn kill_agent(runtime: Arc<Runtime>) {
    kill(runtime.spawner_pid().unwrap());
    drop(runtime);
    tokio::time::sleep(Duration::from_millis(20)).await;
}
