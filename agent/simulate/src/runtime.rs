//! The runtime of a simulated node: containers are times.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use keelson_cri::{
    ContainerConfig, ContainerEvent, ContainerState, ContainerStatus, CriError, ExecRequest, LinuxResources,
    NamespaceMode, PodSandboxConfig, PodSandboxState, PodSandboxStatus, ResourceUsage, Result,
    RuntimeService, RuntimeStatus, StreamSession,
};
use parking_lot::Mutex;
use tokio::sync::{broadcast, oneshot};
use tokio::task::AbortHandle;

use crate::plan::Plan;

/// Events that wait for the kubelet; when it is slower it looks at every pod.
const EVENTS: usize = 64;
/// Exit code of a container that was stopped: 128 + SIGTERM.
const STOPPED: i32 = 143;

/// Sandboxes and containers of one node, in memory only.
pub struct SimulatedRuntime {
    defaults: Plan,
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<ContainerEvent>,
}

#[derive(Default)]
struct State {
    /// Pod ranges of the node, once it has some.
    ranges: Vec<IpNet>,
    /// Where the search for a free address begins, by range: addresses are used again as late as possible.
    next: Vec<usize>,
    used: HashSet<IpAddr>,
    sandboxes: HashMap<String, Sandbox>,
    containers: HashMap<String, Container>,
}

struct Sandbox {
    status: PodSandboxStatus,
    plan: Plan,
    containers: Vec<String>,
}

struct Container {
    status: ContainerStatus,
    /// Ends it by itself.
    end: Option<AbortHandle>,
}

impl State {
    /// An address of each range, not used by another sandbox.
    fn take_addresses(&mut self) -> Result<Vec<IpAddr>> {
        let mut taken = Vec::new();
        for (range, next) in self.ranges.iter().zip(&mut self.next) {
            let hosts = range.hosts().take(1 << 16);
            // The first is the node's own, as that of a bridge.
            let hosts: Vec<IpAddr> = hosts.skip(1).collect();
            let free = (0..hosts.len())
                .map(|i| (*next + i) % hosts.len())
                .find(|i| hosts.get(*i).is_some_and(|address| !self.used.contains(address)));
            let Some(index) = free else {
                self.used.retain(|address| !taken.contains(address));
                return Err(CriError::Internal(format!("no address of {range} is free")));
            };
            *next = index + 1;
            self.used.insert(hosts[index]);
            taken.push(hosts[index]);
        }
        if taken.is_empty() {
            return Err(CriError::Internal("the node has no pod range yet".into()));
        }
        Ok(taken)
    }

    fn sandbox(&self, id: &str) -> Result<&Sandbox> {
        self.sandboxes.get(id).ok_or_else(|| CriError::NotFound(format!("sandbox {id}")))
    }

    fn container(&mut self, id: &str) -> Result<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| CriError::NotFound(format!("container {id}")))
    }

    /// Ends a container that runs; the event to send.
    fn end(&mut self, id: &str, code: i32) -> Option<ContainerEvent> {
        let container = self.containers.get_mut(id)?;
        if let Some(end) = container.end.take() {
            end.abort();
        }
        let status = &mut container.status;
        if status.state != ContainerState::Running {
            return None;
        }
        status.state = ContainerState::Exited;
        status.exit_code = Some(code);
        status.finished_at = Some(SystemTime::now());
        status.reason = Some(if code == 0 { "Completed" } else { "Error" }.into());
        let sandbox_id = status.sandbox_id.clone();
        let pod_uid = self.sandboxes.get(&sandbox_id)?.status.metadata.uid.clone();
        Some(ContainerEvent::Exited { sandbox_id, container_id: id.to_owned(), pod_uid })
    }
}

/// An id as the kubelet expects it: 64 hexadecimal digits.
fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

impl SimulatedRuntime {
    /// An empty node, without pod ranges.
    pub fn new(defaults: Plan) -> Arc<Self> {
        Arc::new(Self { defaults, state: Arc::default(), events: broadcast::channel(EVENTS).0 })
    }

    /// The ranges that pods get addresses of from now on.
    pub fn set_ranges(&self, ranges: Vec<IpNet>) {
        let mut state = self.state.lock();
        state.next = vec![0; ranges.len()];
        state.ranges = ranges;
    }

    fn send(&self, event: Option<ContainerEvent>) {
        if let Some(event) = event {
            // Nobody listens yet: the kubelet lists when it begins to.
            let _ = self.events.send(event);
        }
    }
}

#[async_trait::async_trait]
impl RuntimeService for SimulatedRuntime {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandboxStatus> {
        let plan = Plan::of(self.defaults, &config.annotations).map_err(CriError::Invalid)?;
        if !plan.start_after.is_zero() {
            tokio::time::sleep(plan.start_after).await;
        }
        let mut state = self.state.lock();
        let host_network = config.namespaces.network == NamespaceMode::Node;
        let status = PodSandboxStatus {
            id: new_id(),
            metadata: config.metadata,
            state: PodSandboxState::Ready,
            created_at: SystemTime::now(),
            ips: if host_network { Vec::new() } else { state.take_addresses()? },
            labels: config.labels,
            annotations: config.annotations,
        };
        let sandbox = Sandbox { status: status.clone(), plan, containers: Vec::new() };
        state.sandboxes.insert(status.id.clone(), sandbox);
        Ok(status)
    }

    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        let mut ended = Vec::new();
        {
            let mut state = self.state.lock();
            let Some(sandbox) = state.sandboxes.get_mut(sandbox_id) else { return Ok(()) };
            if std::mem::replace(&mut sandbox.status.state, PodSandboxState::NotReady)
                == PodSandboxState::NotReady
            {
                return Ok(());
            }
            let (ips, containers) = (sandbox.status.ips.clone(), sandbox.containers.clone());
            state.used.retain(|address| !ips.contains(address));
            ended.extend(containers.iter().filter_map(|id| state.end(id, 137)));
        }
        ended.into_iter().for_each(|event| self.send(Some(event)));
        Ok(())
    }

    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        self.stop_pod_sandbox(sandbox_id).await?;
        let mut state = self.state.lock();
        if let Some(sandbox) = state.sandboxes.remove(sandbox_id) {
            sandbox.containers.iter().for_each(|id| drop(state.containers.remove(id)));
        }
        Ok(())
    }

    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus> {
        Ok(self.state.lock().sandbox(sandbox_id)?.status.clone())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>> {
        Ok(self.state.lock().sandboxes.values().map(|sandbox| sandbox.status.clone()).collect())
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let id = new_id();
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            name: config.name,
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
            exit_code: None,
            reason: None,
            message: None,
            image_ref: config.image.clone(),
            image: config.image,
            labels: config.labels,
            annotations: config.annotations,
            log_path: config.log_path,
            pid: None,
            user: None,
        };
        let mut state = self.state.lock();
        let sandbox = state.sandboxes.get_mut(sandbox_id);
        let sandbox = sandbox.ok_or_else(|| CriError::NotFound(format!("sandbox {sandbox_id}")))?;
        if sandbox.status.state != PodSandboxState::Ready {
            return Err(CriError::FailedPrecondition(format!("sandbox {sandbox_id} is not ready")));
        }
        sandbox.containers.push(id.clone());
        state.containers.insert(id.clone(), Container { status, end: None });
        Ok(id)
    }

    async fn start_container(&self, container_id: &str) -> Result<()> {
        let event = {
            let mut state = self.state.lock();
            let sandbox_id = state.container(container_id)?.status.sandbox_id.clone();
            let sandbox = state.sandbox(&sandbox_id)?;
            let (plan, pod_uid) = (sandbox.plan, sandbox.status.metadata.uid.clone());
            let end = plan.end_after.map(|after| {
                let (events, shared) = (self.events.clone(), self.state.clone());
                let id = container_id.to_owned();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let event = shared.lock().end(&id, plan.exit_code);
                    if let Some(event) = event {
                        let _ = events.send(event);
                    }
                })
                .abort_handle()
            });
            let container = state.container(container_id)?;
            if container.status.state != ContainerState::Created {
                if let Some(end) = end {
                    end.abort();
                }
                return Err(CriError::FailedPrecondition(format!("container {container_id} was started")));
            }
            container.end = end;
            container.status.state = ContainerState::Running;
            container.status.started_at = Some(SystemTime::now());
            ContainerEvent::Started { sandbox_id, container_id: container_id.to_owned(), pod_uid }
        };
        self.send(Some(event));
        Ok(())
    }

    async fn stop_container(&self, container_id: &str, _grace: Duration) -> Result<()> {
        let event = self.state.lock().end(container_id, STOPPED);
        self.send(event);
        Ok(())
    }

    async fn remove_container(&self, container_id: &str) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(container) = state.containers.remove(container_id) {
            if let Some(end) = container.end {
                end.abort();
            }
            if let Some(sandbox) = state.sandboxes.get_mut(&container.status.sandbox_id) {
                sandbox.containers.retain(|id| id != container_id);
            }
        }
        Ok(())
    }

    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus> {
        Ok(self.state.lock().container(container_id)?.status.clone())
    }

    async fn list_containers(&self, sandbox_id: Option<&str>) -> Result<Vec<ContainerStatus>> {
        let state = self.state.lock();
        Ok(match sandbox_id {
            Some(id) => {
                let ids = state.sandboxes.get(id).map(|sandbox| sandbox.containers.as_slice());
                let containers = ids.unwrap_or_default().iter().filter_map(|id| state.containers.get(id));
                containers.map(|container| container.status.clone()).collect()
            }
            None => state.containers.values().map(|container| container.status.clone()).collect(),
        })
    }

    async fn update_container_resources(&self, container_id: &str, _resources: LinuxResources) -> Result<()> {
        self.state.lock().container(container_id).map(drop)
    }

    async fn update_pod_sandbox_resources(&self, sandbox_id: &str, _resources: LinuxResources) -> Result<()> {
        self.state.lock().sandbox(sandbox_id).map(drop)
    }

    async fn update_cgroup(&self, _cgroup: &str, _resources: LinuxResources) -> Result<()> {
        Ok(())
    }

    async fn exec(&self, container_id: &str, _request: ExecRequest) -> Result<StreamSession> {
        self.state.lock().container(container_id)?;
        let (code, exit) = oneshot::channel();
        // Whoever asked may be gone.
        let _ = code.send(Ok(0));
        Ok(StreamSession { stdin: None, stdout: None, stderr: None, resize: None, exit })
    }

    async fn attach(&self, container_id: &str, _stdin: bool) -> Result<StreamSession> {
        Err(no_process(container_id))
    }

    async fn port_forward(&self, sandbox_id: &str, _port: u16) -> Result<tokio::net::TcpStream> {
        Err(no_process(sandbox_id))
    }

    async fn reopen_container_log(&self, _container_id: &str) -> Result<()> {
        Ok(())
    }

    async fn container_usage(&self, container_id: &str) -> Result<ResourceUsage> {
        self.state.lock().container(container_id)?;
        Ok(ResourceUsage { timestamp: Some(SystemTime::now()), ..ResourceUsage::default() })
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    fn missing_controllers(&self) -> Vec<String> {
        Vec::new()
    }

    async fn status(&self) -> RuntimeStatus {
        let network = if self.state.lock().ranges.is_empty() {
            Err("the node has no pod range yet".to_owned())
        } else {
            Ok(())
        };
        RuntimeStatus { runtime: Ok(()), network, missing_controllers: self.missing_controllers() }
    }
}

fn no_process(id: &str) -> CriError {
    CriError::FailedPrecondition(format!("{id} is simulated: there is no process to connect to"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_cri::{NamespaceOptions, PodSandboxMetadata, SecurityContext};

    use crate::plan::{END_AFTER, EXIT_CODE, START_AFTER};

    fn sandbox(name: &str, annotations: &[(&str, &str)]) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: name.into(),
                namespace: "ns".into(),
                uid: format!("uid-{name}"),
                attempt: 0,
            },
            hostname: name.into(),
            log_directory: "/nowhere".into(),
            dns: None,
            port_mappings: Vec::new(),
            labels: Default::default(),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            cgroup_parent: String::new(),
            resources: LinuxResources::default(),
            namespaces: NamespaceOptions::default(),
            sysctls: Default::default(),
            fs_group: None,
        }
    }

    fn container(name: &str) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            attempt: 0,
            image: "i".into(),
            command: Vec::new(),
            args: Vec::new(),
            working_dir: String::new(),
            envs: Vec::new(),
            mounts: Vec::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: "c/0.log".into(),
            stdin: false,
            stdin_once: false,
            tty: false,
            resources: LinuxResources::default(),
            security: SecurityContext::default(),
            stop_signal: None,
        }
    }

    fn runtime() -> Arc<SimulatedRuntime> {
        let runtime = SimulatedRuntime::new(Plan::default());
        runtime.set_ranges(vec!["10.1.2.0/29".parse().unwrap()]);
        runtime
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_ends_by_itself_when_its_time_comes() {
        let runtime = runtime();
        let mut events = runtime.events();
        let times = [(START_AFTER, "2s"), (END_AFTER, "10s"), (EXIT_CODE, "3")];
        let began = tokio::time::Instant::now();
        let pod = runtime.run_pod_sandbox(sandbox("p", &times)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        let id = runtime.create_container(&pod.id, container("c")).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        assert!(runtime.start_container(&id).await.is_err(), "twice");
        assert_eq!(runtime.container_status(&id).await.unwrap().state, ContainerState::Running);
        assert!(
            matches!(events.recv().await, Ok(ContainerEvent::Started { pod_uid, .. }) if pod_uid == "uid-p")
        );
        assert!(matches!(events.recv().await, Ok(ContainerEvent::Exited { .. })));
        assert_eq!(began.elapsed(), Duration::from_secs(12));
        let status = runtime.container_status(&id).await.unwrap();
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited, Some(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_stopped_does_not_end_again() {
        let runtime = runtime();
        let pod = runtime.run_pod_sandbox(sandbox("p", &[(END_AFTER, "10s")])).await.unwrap();
        let id = runtime.create_container(&pod.id, container("c")).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        let mut events = runtime.events();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(runtime.container_status(&id).await.unwrap().exit_code, Some(STOPPED));
        assert!(events.try_recv().is_err());
        runtime.remove_pod_sandbox(&pod.id).await.unwrap();
        assert!(runtime.list_containers(None).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn addresses_are_distinct_and_come_back() {
        let runtime = runtime();
        let mut pods = Vec::new();
        // 8 addresses, less network, broadcast and the node's own.
        for n in 0..5 {
            pods.push(runtime.run_pod_sandbox(sandbox(&n.to_string(), &[])).await.unwrap());
        }
        let distinct: HashSet<IpAddr> = pods.iter().flat_map(|pod| pod.ips.clone()).collect();
        assert_eq!(distinct.len(), 5, "{distinct:?}");
        assert!(!distinct.contains(&IpAddr::from([10, 1, 2, 1])));
        let error = runtime.run_pod_sandbox(sandbox("one too many", &[])).await.unwrap_err();
        assert_eq!(error.to_string(), "no address of 10.1.2.0/29 is free");
        runtime.stop_pod_sandbox(&pods[2].id).await.unwrap();
        let again = runtime.run_pod_sandbox(sandbox("again", &[])).await.unwrap();
        assert_eq!(again.ips, pods[2].ips);
    }

    #[tokio::test]
    async fn what_can_not_be_honoured_is_refused() {
        let runtime = runtime();
        let error = runtime.run_pod_sandbox(sandbox("p", &[(END_AFTER, "soon")])).await.unwrap_err();
        assert!(error.to_string().contains(END_AFTER), "{error}");
        let bare = SimulatedRuntime::new(Plan::default());
        assert!(bare.status().await.network.is_err());
        assert!(bare.run_pod_sandbox(sandbox("p", &[])).await.is_err());
    }
}
