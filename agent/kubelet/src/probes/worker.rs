//! One task for each probe of each running container, and the table of what they found.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use keelson_cri::{ContainerState, ContainerStatus, RuntimeService};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::http::HttpTarget;
use super::schedule::{Run, Timing};
use super::{ProbeKind, ProbeOutcome, Reach, dial, exec, grpc, http, resolve_port};
use crate::clock::Clock;
use crate::events::{EventRecorder, EventType};
use crate::pods::ObservedPod;
use crate::pods::actions::ProbeVerdicts;
use crate::pods::podext::{ContainerKind, PodExt, is_sidecar};

/// Probes that could not run are tried this many times in a row before the result counts as unknown.
const TRIES: usize = 3;

type Key = (String, ProbeKind);

/// Verdicts of one pod's probes by container id. A change notifies the pod's worker.
#[derive(Default)]
pub struct ProbeTable {
    verdicts: Mutex<HashMap<Key, bool>>,
    changed: Arc<Notify>,
}

impl ProbeTable {
    /// Notified when a verdict changes.
    pub fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// A verdict, once there is one.
    pub fn get(&self, container_id: &str, kind: ProbeKind) -> Option<bool> {
        self.verdicts.lock().get(&(container_id.to_owned(), kind)).copied()
    }

    fn set(&self, container_id: &str, kind: ProbeKind, verdict: bool) {
        let old = self.verdicts.lock().insert((container_id.to_owned(), kind), verdict);
        if old != Some(verdict) {
            self.changed.notify_one();
        }
    }
}

impl ProbeVerdicts for ProbeTable {
    fn liveness(&self, container_id: &str) -> Option<bool> {
        self.get(container_id, ProbeKind::Liveness)
    }
    fn startup(&self, container_id: &str) -> Option<bool> {
        self.get(container_id, ProbeKind::Startup)
    }
}

/// Runs the probes of one pod.
pub struct Probes {
    runtime: Arc<dyn RuntimeService>,
    events: EventRecorder,
    clock: Clock,
    reach: Reach,
    table: Arc<ProbeTable>,
    tasks: HashMap<Key, AbortHandle>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What one probe task works on.
struct Task {
    runtime: Arc<dyn RuntimeService>,
    events: EventRecorder,
    clock: Clock,
    reach: Reach,
    table: Arc<ProbeTable>,
    pod: Arc<Pod>,
    container: Container,
    list: ContainerKind,
    id: String,
    kind: ProbeKind,
    probe: Probe,
    pod_ip: Option<IpAddr>,
    has_startup: bool,
    started_at: std::time::SystemTime,
}

impl Probes {
    /// Runs nothing until [`Probes::reconcile`].
    pub fn new(runtime: Arc<dyn RuntimeService>, events: EventRecorder, clock: Clock, reach: Reach) -> Self {
        Self { runtime, events, clock, reach, table: Arc::default(), tasks: HashMap::new() }
    }

    /// The table of verdicts.
    pub fn table(&self) -> &Arc<ProbeTable> {
        &self.table
    }

    /// Ends all probes.
    pub fn stop(&mut self) {
        self.tasks.drain().for_each(|(_, task)| task.abort());
    }

    /// Probes every running container, and nothing else. A container that was running before this agent started
    /// keeps the readiness that was reported of it until its first result, so that its endpoints stay.
    pub fn reconcile(
        &mut self,
        pod: &Arc<Pod>,
        observed: &ObservedPod,
        pod_ip: Option<IpAddr>,
        deleting: bool,
    ) {
        let mut wanted: HashMap<Key, Task> = HashMap::new();
        let sidecars =
            pod.init_containers().iter().filter(|c| is_sidecar(c)).map(|c| (ContainerKind::Init, c));
        let regular = PodExt::spec(&**pod).containers.iter().map(|c| (ContainerKind::Regular, c));
        for (list, container) in regular.chain(sidecars) {
            let running = observed.container(&container.name).filter(|c| c.state == ContainerState::Running);
            let Some(status) = running else { continue };
            self.adopt(pod, status);
            let all = [
                (ProbeKind::Startup, &container.startup_probe),
                (ProbeKind::Liveness, &container.liveness_probe),
                (ProbeKind::Readiness, &container.readiness_probe),
            ];
            for (kind, probe) in all {
                // A pod that ends is no longer restarted; only its readiness still matters.
                let Some(probe) = probe.clone().filter(|_| !deleting || kind == ProbeKind::Readiness) else {
                    continue;
                };
                let task = Task {
                    runtime: self.runtime.clone(),
                    events: self.events.clone(),
                    clock: self.clock,
                    reach: self.reach,
                    table: self.table.clone(),
                    pod: pod.clone(),
                    container: container.clone(),
                    list,
                    id: status.id.clone(),
                    kind,
                    probe,
                    pod_ip,
                    has_startup: container.startup_probe.is_some(),
                    started_at: status.started_at.unwrap_or(status.created_at),
                };
                wanted.insert((status.id.clone(), kind), task);
            }
        }
        self.tasks.retain(|key, task| {
            let keep = wanted.contains_key(key);
            if !keep {
                task.abort();
            }
            keep
        });
        self.table.verdicts.lock().retain(|(id, _), _| observed.by_id(id).is_some());
        for (key, task) in wanted {
            self.tasks.entry(key).or_insert_with(|| tokio::spawn(task.run()).abort_handle());
        }
    }

    fn adopt(&self, pod: &Pod, status: &ContainerStatus) {
        let full_id = crate::status::containers::container_id(&status.id);
        let mut reported = pod.status.iter().flat_map(|s| {
            s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten())
        });
        let Some(reported) = reported.find(|s| s.container_id.as_deref() == Some(&full_id)) else {
            return;
        };
        let mut verdicts = self.table.verdicts.lock();
        if reported.started == Some(true) {
            verdicts.entry((status.id.clone(), ProbeKind::Startup)).or_insert(true);
        }
        if reported.ready {
            verdicts.entry((status.id.clone(), ProbeKind::Readiness)).or_insert(true);
        }
    }
}

impl Task {
    async fn run(self) {
        let timing = Timing::of(&self.probe);
        let mut run = Run::default();
        self.clock.sleep_until(self.started_at + timing.initial_delay).await;
        let mut next = Instant::now();
        loop {
            tokio::time::sleep_until(next).await;
            next = Instant::now() + timing.period;
            let startup = self.table.get(&self.id, ProbeKind::Startup);
            if self.kind == ProbeKind::Startup {
                if startup.is_some() {
                    // Decided: started, or about to be killed.
                    return;
                }
            } else if self.has_startup && startup != Some(true) {
                // Waits for the startup probe; looks often, so that readiness follows it at once.
                next = Instant::now() + timing.period.min(std::time::Duration::from_millis(250));
                continue;
            }
            let success = match self.ask(&timing).await {
                ProbeOutcome::Success => true,
                ProbeOutcome::Failure(output) => {
                    self.warn(format!("{} probe failed: {output}", self.kind.title()));
                    false
                }
                ProbeOutcome::Unknown(error) => {
                    self.warn(format!(
                        "{} probe errored and resulted in unknown state: {error}",
                        self.kind.title()
                    ));
                    continue;
                }
            };
            let Some(verdict) = run.add(success, &timing) else { continue };
            self.table.set(&self.id, self.kind, verdict);
            if !verdict && self.kind != ProbeKind::Readiness {
                // The container will be killed; a new one gets a new task.
                return;
            }
        }
    }

    fn warn(&self, message: String) {
        let (pod, name) = (&self.pod, &self.container.name);
        self.events.container(pod, self.list, name, EventType::Warning, "Unhealthy", message);
    }

    async fn ask(&self, timing: &Timing) -> ProbeOutcome {
        let mut outcome = ProbeOutcome::Unknown("not tried".into());
        for _ in 0..TRIES {
            outcome = self.ask_once(timing).await;
            if !matches!(outcome, ProbeOutcome::Unknown(_)) {
                break;
            }
        }
        outcome
    }

    async fn ask_once(&self, timing: &Timing) -> ProbeOutcome {
        let probe = &self.probe;
        let pod_ip = self.pod_ip.map(|ip| ip.to_string()).unwrap_or_default();
        if let Some(action) = &probe.exec {
            let command = action.command.as_deref().unwrap_or_default();
            return exec::probe(&*self.runtime, &self.id, command, timing.timeout).await;
        }
        let over_network = probe.http_get.is_some() || probe.tcp_socket.is_some() || probe.grpc.is_some();
        if over_network && self.reach == Reach::Nobody {
            return ProbeOutcome::Success;
        }
        if let Some(action) = &probe.http_get {
            return match HttpTarget::new(action, &self.container, self.pod_ip) {
                Ok(target) => http::probe(&target, timing.timeout).await,
                Err(error) => ProbeOutcome::Unknown(error),
            };
        }
        if let Some(action) = &probe.tcp_socket {
            let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
            return match resolve_port(&action.port, &self.container) {
                Ok(port) => dial(&host, port, timing.timeout).await,
                Err(error) => ProbeOutcome::Unknown(error),
            };
        }
        if let Some(action) = &probe.grpc {
            return match u16::try_from(action.port) {
                Ok(port) => {
                    grpc::probe(&pod_ip, port, action.service.as_deref().unwrap_or_default(), timing.timeout)
                        .await
                }
                Err(_out_of_range) => ProbeOutcome::Unknown(format!("invalid port number: {}", action.port)),
            };
        }
        ProbeOutcome::Unknown(format!("missing probe handler for {}", self.pod.describe()))
    }
}
