//! A runtime, an image store and an API server for tests of pod workers: in memory, driven by the test.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::{
    ContainerConfig, ContainerEvent, ContainerState, ContainerStatus, CriError, ExecRequest, Image,
    ImageService, LinuxResources, PodSandboxConfig, PodSandboxState, PodSandboxStatus, RegistryAuth,
    ResourceUsage, Result, RuntimeService, RuntimeStatus, StreamSession,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::clock::Clock;

/// Sandboxes and containers in memory. Containers run until the test or a stop ends them.
pub struct FakeRuntime {
    clock: Clock,
    state: Mutex<State>,
    events: broadcast::Sender<ContainerEvent>,
}

#[derive(Default)]
struct State {
    sandboxes: Vec<PodSandboxStatus>,
    containers: Vec<ContainerStatus>,
    configs: HashMap<String, ContainerConfig>,
    log: Vec<String>,
    /// How long a container takes to end after its stop signal.
    stubborn: HashMap<String, Duration>,
    refuse_sandbox: bool,
    break_network: bool,
    /// Bytes of writable layers, by container id.
    written: HashMap<String, u64>,
    /// Bytes of memory in use, by container id.
    memory: HashMap<String, u64>,
    refuse_updates: bool,
}

impl State {
    fn update(&mut self, id: &str, r: &LinuxResources) -> Result<()> {
        if self.refuse_updates {
            return Err(CriError::Internal("device busy".into()));
        }
        let mut line = format!("update {id}");
        let shares = r.cpu_shares.and_then(|s| i64::try_from(s).ok());
        for (name, value) in [("memory", r.memory_limit), ("quota", r.cpu_quota), ("shares", shares)] {
            if let Some(value) = value {
                line.push_str(&format!(" {name}={value}"));
            }
        }
        self.log.push(line);
        Ok(())
    }
}

impl FakeRuntime {
    pub fn new(clock: Clock) -> Arc<Self> {
        let (events, _) = broadcast::channel(1024);
        Arc::new(Self { clock, state: Mutex::default(), events })
    }

    /// Calls that changed something, since the last time this was asked.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().log)
    }

    pub fn set_stubborn(&self, name: &str, time: Duration) {
        self.state.lock().stubborn.insert(name.into(), time);
    }

    pub fn refuse_sandboxes(&self, refuse: bool) {
        self.state.lock().refuse_sandbox = refuse;
    }

    /// Sandboxes can neither be made nor undone.
    pub fn break_network(&self, broken: bool) {
        self.state.lock().break_network = broken;
    }

    pub fn refuse_updates(&self, refuse: bool) {
        self.state.lock().refuse_updates = refuse;
    }

    /// A container takes memory.
    pub fn take_memory(&self, id: &str, bytes: u64) {
        self.state.lock().memory.insert(id.into(), bytes);
    }

    /// A container writes into its own layer.
    pub fn write(&self, id: &str, bytes: u64) {
        self.state.lock().written.insert(id.into(), bytes);
    }

    /// Configuration that a container was made from.
    pub fn config(&self, id: &str) -> ContainerConfig {
        self.state.lock().configs[id].clone()
    }

    /// Puts a running pod there, as an agent before this one left it.
    pub fn preload(&self, sandbox: PodSandboxStatus, containers: Vec<ContainerStatus>) {
        let mut state = self.state.lock();
        state.sandboxes.push(sandbox);
        state.containers.extend(containers);
    }

    /// Ends the newest container of that name.
    pub fn exit(&self, name: &str, code: i32) {
        let id = {
            let state = self.state.lock();
            state.containers.iter().rev().find(|c| c.name == name).map(|c| c.id.clone()).unwrap()
        };
        self.end(&id, code);
    }

    /// Kills podinit of the newest sandbox.
    pub fn kill_sandbox(&self) {
        let ids: Vec<String> = {
            let mut state = self.state.lock();
            state.sandboxes.last_mut().unwrap().state = PodSandboxState::NotReady;
            state.containers.iter().map(|c| c.id.clone()).collect()
        };
        ids.iter().for_each(|id| self.end(id, 137));
    }

    fn end(&self, id: &str, code: i32) {
        let mut state = self.state.lock();
        let now = self.clock.now();
        if let Some(c) =
            state.containers.iter_mut().find(|c| c.id == id && c.state == ContainerState::Running)
        {
            c.state = ContainerState::Exited;
            c.exit_code = Some(code);
            c.finished_at = Some(now);
            let event = ContainerEvent::Exited {
                sandbox_id: c.sandbox_id.clone(),
                container_id: id.into(),
                pod_uid: "u".into(),
            };
            let _ = self.events.send(event);
        }
    }
}

#[async_trait::async_trait]
impl RuntimeService for FakeRuntime {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandboxStatus> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut state = self.state.lock();
        if state.refuse_sandbox {
            return Err(CriError::Internal("no network".into()));
        }
        let attempt = config.metadata.attempt;
        if state.break_network {
            state.sandboxes.push(PodSandboxStatus {
                id: format!("sandbox-{attempt}"),
                metadata: config.metadata,
                state: PodSandboxState::NotReady,
                created_at: self.clock.now(),
                ips: Vec::new(),
                labels: config.labels,
                annotations: config.annotations,
            });
            return Err(CriError::Internal("network broken".into()));
        }
        state.log.push(format!("sandbox {attempt}"));
        let status = PodSandboxStatus {
            id: format!("sandbox-{attempt}"),
            metadata: config.metadata,
            state: PodSandboxState::Ready,
            created_at: self.clock.now(),
            ips: vec![format!("10.244.0.{}", 5 + attempt).parse().unwrap()],
            labels: config.labels,
            annotations: config.annotations,
        };
        state.sandboxes.push(status.clone());
        Ok(status)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        if state.break_network {
            return Err(CriError::Internal("network still broken".into()));
        }
        if let Some(s) = state.sandboxes.iter_mut().find(|s| s.id == id && s.state == PodSandboxState::Ready)
        {
            s.state = PodSandboxState::NotReady;
            state.log.push(format!("stop {id}"));
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.sandboxes.retain(|s| s.id != id);
        state.containers.retain(|c| c.sandbox_id != id);
        state.log.push(format!("remove {id}"));
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        let state = self.state.lock();
        state.sandboxes.iter().find(|s| s.id == id).cloned().ok_or_else(|| CriError::NotFound(id.into()))
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>> {
        Ok(self.state.lock().sandboxes.clone())
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let id = format!("{}-{}", config.name, config.attempt);
        let mut state = self.state.lock();
        state.containers.push(ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.into(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at: self.clock.now(),
            started_at: None,
            finished_at: None,
            exit_code: None,
            reason: None,
            message: None,
            image: config.image.clone(),
            image_ref: "i".into(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: config.log_path.clone(),
            pid: None,
            user: None,
        });
        state.configs.insert(id.clone(), config);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let c = state.containers.iter_mut().find(|c| c.id == id).unwrap();
        c.state = ContainerState::Running;
        c.started_at = Some(now);
        state.log.push(format!("start {id}"));
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let (name, time) = {
            let mut state = self.state.lock();
            state.log.push(format!("term {id} {}s", grace.as_secs_f64().ceil()));
            let name =
                state.containers.iter().find(|c| c.id == id).map(|c| c.name.clone()).unwrap_or_default();
            let time = state.stubborn.get(&name).copied().unwrap_or_default();
            (name, time)
        };
        tokio::time::sleep(time.min(grace)).await;
        self.end(id, if time > grace { 137 } else { 143 });
        self.state.lock().log.push(format!("dead {name}"));
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.containers.retain(|c| c.id != id);
        state.log.push(format!("remove {id}"));
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let state = self.state.lock();
        state.containers.iter().find(|c| c.id == id).cloned().ok_or_else(|| CriError::NotFound(id.into()))
    }

    async fn list_containers(&self, sandbox_id: Option<&str>) -> Result<Vec<ContainerStatus>> {
        let state = self.state.lock();
        let all = state.containers.iter().filter(|c| sandbox_id.is_none_or(|s| c.sandbox_id == s));
        Ok(all.cloned().collect())
    }

    async fn update_container_resources(&self, id: &str, resources: LinuxResources) -> Result<()> {
        self.state.lock().update(id, &resources)
    }

    async fn update_pod_sandbox_resources(&self, id: &str, resources: LinuxResources) -> Result<()> {
        self.state.lock().update(id, &resources)
    }

    async fn update_cgroup(&self, cgroup: &str, resources: LinuxResources) -> Result<()> {
        self.state.lock().update(cgroup, &resources)
    }

    async fn exec(&self, _: &str, request: ExecRequest) -> Result<StreamSession> {
        let (tx, exit) = tokio::sync::oneshot::channel();
        self.state.lock().log.push(format!("exec {}", request.command.join(" ")));
        let code = if request.command.first().is_some_and(|c| c == "false") { 1 } else { 0 };
        let _ = tx.send(Ok(code));
        Ok(StreamSession { stdin: None, stdout: None, stderr: None, resize: None, exit })
    }

    async fn attach(&self, id: &str, _: bool) -> Result<StreamSession> {
        Err(CriError::NotFound(id.into()))
    }

    async fn port_forward(&self, id: &str, _: u16) -> Result<tokio::net::TcpStream> {
        Err(CriError::NotFound(id.into()))
    }

    async fn reopen_container_log(&self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn container_usage(&self, id: &str) -> Result<ResourceUsage> {
        let state = self.state.lock();
        let rootfs_used = state.written.get(id).copied();
        let memory_usage = state.memory.get(id).copied().unwrap_or(0);
        Ok(ResourceUsage { rootfs_used, memory_usage, ..ResourceUsage::default() })
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

/// Knows every image but those whose name begins with `missing`.
pub struct FakeImages;

#[async_trait::async_trait]
impl ImageService for FakeImages {
    async fn pull_image(&self, reference: &str, _: &[RegistryAuth]) -> Result<Image> {
        Err(CriError::ImagePull(format!("{reference}: no such image")))
    }
    async fn image_status(&self, reference: &str) -> Result<Option<Image>> {
        let image = Image {
            id: "sha256:1".into(),
            repo_tags: vec![],
            repo_digests: vec![],
            size: 0,
            uid: Some(0),
            username: String::new(),
        };
        Ok((!reference.starts_with("missing")).then_some(image))
    }
    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(vec![])
    }
    async fn remove_image(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn fs_info(&self) -> Result<(std::path::PathBuf, u64)> {
        Ok(("/".into(), 0))
    }
}

/// One pod in an API server.
#[derive(Default)]
pub struct FakeApi {
    pod: Mutex<Value>,
    deletes: Mutex<Vec<Value>>,
    events: Mutex<Vec<String>>,
    writes: Mutex<usize>,
    unknown: Mutex<Option<&'static str>>,
}

impl FakeApi {
    pub fn new(pod: &Pod) -> Arc<Self> {
        let mut value = serde_json::to_value(pod).unwrap();
        value["metadata"]["resourceVersion"] = "1".into();
        Arc::new(Self { pod: Mutex::new(value), ..Self::default() })
    }

    pub fn client(self: &Arc<Self>) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let api = api.clone();
            async move { api.answer(request).await }
        });
        kube::Client::new(service, "ns")
    }

    /// The pod as the API has it.
    pub fn pod(&self) -> Pod {
        serde_json::from_value(self.pod.lock().clone()).unwrap()
    }

    /// From now on a field of the status is dropped.
    pub fn drop_field(&self, name: &'static str) {
        *self.unknown.lock() = Some(name);
    }

    /// Bodies of DELETE requests.
    pub fn deletes(&self) -> Vec<Value> {
        self.deletes.lock().clone()
    }

    /// `Reason: message` of each event created.
    pub fn events(&self) -> Vec<String> {
        self.events.lock().clone()
    }

    /// Number of status writes.
    pub fn writes(&self) -> usize {
        *self.writes.lock()
    }

    async fn answer(
        &self,
        request: http::Request<kube::client::Body>,
    ) -> std::result::Result<http::Response<http_body_util::Full<bytes::Bytes>>, std::convert::Infallible>
    {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        if query.contains("watch=true") {
            // Nothing ever changes.
            std::future::pending::<()>().await;
        }
        let path = parts.uri.path().to_owned();
        let (status, answer) = match parts.method.as_str() {
            "PATCH" if path.ends_with("/status") => (200, self.patch_status(&body)),
            "PATCH" => (200, body),
            "POST" if path.ends_with("/events") => {
                let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
                self.events.lock().push(format!("{}: {}", text("reason"), text("message")));
                (201, body)
            }
            "DELETE" => {
                self.deletes.lock().push(body);
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            "GET" if path == "/api/v1/pods" => {
                let items = [self.pod.lock().clone()];
                (
                    200,
                    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}),
                )
            }
            "GET" => (
                200,
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}),
            ),
            _ => (
                404,
                json!({"kind": "Status", "apiVersion": "v1", "code": 404, "reason": "NotFound", "message": path}),
            ),
        };
        let bytes = bytes::Bytes::from(answer.to_string());
        Ok(http::Response::builder().status(status).body(http_body_util::Full::new(bytes)).unwrap())
    }

    /// A strategic merge patch, as far as `pod.status` needs it.
    fn patch_status(&self, body: &Value) -> Value {
        *self.writes.lock() += 1;
        let mut pod = self.pod.lock();
        let version: u64 = pod["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        pod["metadata"]["resourceVersion"] = (version + 1).to_string().into();
        if pod["status"].is_null() {
            pod["status"] = json!({});
        }
        let unknown = *self.unknown.lock();
        for (key, value) in body["status"].as_object().unwrap() {
            if unknown == Some(key) {
                continue;
            }
            let target = &mut pod["status"][key];
            match value {
                Value::Null => *target = Value::Null,
                Value::Array(list) if key == "conditions" => {
                    let mut merged = target.as_array().cloned().unwrap_or_default();
                    merged.retain(|c| list.iter().all(|n| n["type"] != c["type"]));
                    merged.extend(list.iter().filter(|c| c["$patch"].is_null()).cloned());
                    *target = merged.into();
                }
                Value::Array(list) => {
                    *target =
                        list.iter().filter(|i| i["$patch"].is_null()).cloned().collect::<Vec<_>>().into();
                }
                other => *target = other.clone(),
            }
        }
        pod.clone()
    }
}
