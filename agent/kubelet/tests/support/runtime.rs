//! A runtime with one running container whose commands are made up.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use keelson_cri::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc, oneshot};

/// The runtime.
pub struct FakeRuntime {
    events: broadcast::Sender<ContainerEvent>,
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self { events: broadcast::channel(16).0 }
    }
}

fn metadata() -> PodSandboxMetadata {
    PodSandboxMetadata { name: "web".into(), namespace: "default".into(), uid: "u1".into(), attempt: 0 }
}

/// Runs a made-up command: its input and sizes come in, output goes out, the exit code is its value.
fn session(request: &ExecRequest) -> StreamSession {
    let (stdin, mut input) = tokio::io::duplex(1024);
    let (stdout, mut output) = tokio::io::duplex(1024);
    let (stderr, mut errors) = tokio::io::duplex(1024);
    let (resize, mut sizes) = mpsc::channel::<TerminalSize>(1);
    let (exit_tx, exit) = oneshot::channel();
    let command = request.command.clone();
    tokio::spawn(async move {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let code = match words.as_slice() {
            ["cat"] => {
                let mut all = Vec::new();
                input.read_to_end(&mut all).await.unwrap();
                output.write_all(&all).await.unwrap();
                errors.write_all(format!("{} bytes\n", all.len()).as_bytes()).await.unwrap();
                0
            }
            ["size"] => {
                let size = sizes.recv().await.unwrap();
                output.write_all(format!("{}x{}", size.width, size.height).as_bytes()).await.unwrap();
                0
            }
            ["exit", code] => code.parse().unwrap(),
            _ => {
                output.write_all(b"attached").await.unwrap();
                3
            }
        };
        drop((output, errors));
        let _ = exit_tx.send(Ok(code));
    });
    StreamSession {
        stdin: request.stdin.then(|| Box::new(stdin) as BoxWrite),
        stdout: Some(Box::new(stdout)),
        stderr: (!request.tty).then(|| Box::new(stderr) as BoxRead),
        resize: request.tty.then_some(resize),
        exit,
    }
}

fn unused<T>() -> Result<T> {
    Err(CriError::Internal("not part of these tests".into()))
}

#[async_trait::async_trait]
impl RuntimeService for FakeRuntime {
    async fn run_pod_sandbox(&self, _config: PodSandboxConfig) -> Result<PodSandboxStatus> {
        unused()
    }
    async fn stop_pod_sandbox(&self, _sandbox_id: &str) -> Result<()> {
        unused()
    }
    async fn remove_pod_sandbox(&self, _sandbox_id: &str) -> Result<()> {
        unused()
    }
    async fn pod_sandbox_status(&self, _sandbox_id: &str) -> Result<PodSandboxStatus> {
        unused()
    }
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>> {
        Ok(vec![PodSandboxStatus {
            id: "s1".into(),
            metadata: metadata(),
            state: PodSandboxState::Ready,
            created_at: SystemTime::UNIX_EPOCH,
            ips: vec![[127, 0, 0, 1].into()],
            labels: Default::default(),
            annotations: Default::default(),
        }])
    }
    async fn create_container(&self, _sandbox_id: &str, _config: ContainerConfig) -> Result<String> {
        unused()
    }
    async fn start_container(&self, _container_id: &str) -> Result<()> {
        unused()
    }
    async fn stop_container(&self, _container_id: &str, _grace: Duration) -> Result<()> {
        unused()
    }
    async fn remove_container(&self, _container_id: &str) -> Result<()> {
        unused()
    }
    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus> {
        Ok(ContainerStatus {
            id: container_id.into(),
            sandbox_id: "s1".into(),
            name: "app".into(),
            attempt: 0,
            state: ContainerState::Running,
            created_at: SystemTime::UNIX_EPOCH,
            started_at: Some(SystemTime::UNIX_EPOCH),
            finished_at: None,
            exit_code: None,
            reason: None,
            message: None,
            image: String::new(),
            image_ref: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: PathBuf::new(),
            pid: Some(1),
            user: None,
        })
    }
    async fn list_containers(&self, _sandbox_id: Option<&str>) -> Result<Vec<ContainerStatus>> {
        Ok(vec![self.container_status("c1").await?])
    }
    async fn update_container_resources(
        &self,
        _container_id: &str,
        _resources: LinuxResources,
    ) -> Result<()> {
        unused()
    }
    async fn update_pod_sandbox_resources(
        &self,
        _sandbox_id: &str,
        _resources: LinuxResources,
    ) -> Result<()> {
        unused()
    }
    async fn update_cgroup(&self, _cgroup: &str, _resources: LinuxResources) -> Result<()> {
        Ok(())
    }
    async fn exec(&self, _container_id: &str, request: ExecRequest) -> Result<StreamSession> {
        match request.command.first().map(String::as_str) {
            Some("missing") => Err(CriError::Internal("executable file not found in $PATH".into())),
            _ => Ok(session(&request)),
        }
    }
    async fn attach(&self, _container_id: &str, stdin: bool) -> Result<StreamSession> {
        Ok(session(&ExecRequest { command: Vec::new(), tty: false, stdin }))
    }
    async fn port_forward(&self, _sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream> {
        let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        connected.map_err(|error| CriError::Internal(error.to_string()))
    }
    async fn reopen_container_log(&self, _container_id: &str) -> Result<()> {
        unused()
    }
    async fn container_usage(&self, _container_id: &str) -> Result<ResourceUsage> {
        Ok(ResourceUsage {
            timestamp: Some(SystemTime::UNIX_EPOCH),
            cpu_usage_ns: 1_000_000_000,
            memory_usage: 8192,
            memory_working_set: 4096,
            memory_rss: 2048,
            rootfs_used: Some(0),
        })
    }
    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }
    fn missing_controllers(&self) -> Vec<String> {
        Vec::new()
    }
    async fn status(&self) -> RuntimeStatus {
        RuntimeStatus { runtime: Ok(()), network: Ok(()), missing_controllers: Vec::new() }
    }
}
