//! In-place resize of pods (KEP-1287): cpu and memory of a pod change while it runs.
//!
//! Three sets of resources stand beside each other: what the API wants (the spec), what this node has promised
//! ([`Allocation`]; all decisions about the pod are made from it), and what the cgroups hold ([`Actuated`]). [`allocate`]
//! moves the second to the first when the node has room, [`actuate`] the third to the second, [`report`] tells the API how
//! far it is. The latter two sets are kept on disk, so that a new agent goes on where the old one stopped.
//!
//! Source: upstream `pkg/kubelet/allocation` and `doPodResizeAction` (`pkg/kubelet/kuberuntime/kuberuntime_manager.go`).

pub mod actuate;
pub mod allocate;
pub mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_cri::LinuxResources;
use keelson_quantity as quantity;
use serde::{Deserialize, Serialize};

use super::podext::PodExt;
use super::qos;
use super::resources::pod_resources;

/// Resources of every container of a pod that has any of its own in the spec, and of the pod as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// By container name, init containers too.
    pub containers: BTreeMap<String, ResourceRequirements>,
    /// `spec.resources`.
    pub pod: Option<ResourceRequirements>,
}

impl Allocation {
    /// What a pod's spec says.
    pub fn of(pod: &Pod) -> Self {
        let all = PodExt::spec(pod).containers.iter().chain(pod.init_containers());
        Self {
            containers: all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect(),
            pod: PodExt::spec(pod).resources.clone(),
        }
    }

    /// The pod with these resources in place of its own; the same pod when they do not differ.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if self.matches(pod) {
            return pod.clone();
        }
        let mut changed = Pod::clone(pod);
        if let Some(spec) = &mut changed.spec {
            spec.resources.clone_from(&self.pod);
            let inits = spec.init_containers.iter_mut().flatten();
            for container in spec.containers.iter_mut().chain(inits) {
                if let Some(own) = self.containers.get(&container.name) {
                    container.resources = Some(own.clone());
                }
            }
        }
        Arc::new(changed)
    }

    /// Whether the pod's spec asks for exactly this.
    pub fn matches(&self, pod: &Pod) -> bool {
        let all = PodExt::spec(pod).containers.iter().chain(pod.init_containers());
        let empty = ResourceRequirements::default();
        same(self.pod.as_ref().unwrap_or(&empty), PodExt::spec(pod).resources.as_ref().unwrap_or(&empty))
            && all.into_iter().all(|c| {
                self.containers
                    .get(&c.name)
                    .is_none_or(|own| same(own, c.resources.as_ref().unwrap_or(&empty)))
            })
    }
}

/// Whether two sets of resources mean the same, however their numbers are spelled.
fn same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    let amounts = |map: &Option<BTreeMap<String, Quantity>>| -> BTreeMap<String, quantity::Quantity> {
        map.iter().flatten().map(|(name, q)| (name.clone(), quantity::of(q))).collect()
    };
    amounts(&a.requests) == amounts(&b.requests) && amounts(&a.limits) == amounts(&b.limits)
}

/// What the runtime was last given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Actuated {
    /// Of each container that was ever started, by name.
    pub containers: BTreeMap<String, ResourceRequirements>,
    /// Of the pod's own cgroup.
    pub pod: LinuxResources,
}

impl Actuated {
    /// All of a pod's resources are in effect.
    pub fn of(pod: &Pod) -> Self {
        Self { containers: Allocation::of(pod).containers, pod: pod_resources(pod) }
    }
}

/// Cpu (milli) and memory (bytes) of a container; 0 for what it does not state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    cpu_request: i64,
    cpu_limit: i64,
    memory_request: i64,
    memory_limit: i64,
}

impl Amounts {
    /// Reads them.
    pub fn of(resources: Option<&ResourceRequirements>) -> Self {
        let read = |map: Option<&BTreeMap<String, Quantity>>, name: &str| {
            map.and_then(|m| m.get(name)).map_or(0, |q| qos::amount(name, q))
        };
        let requests = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        Self {
            cpu_request: read(requests, "cpu"),
            cpu_limit: read(limits, "cpu"),
            memory_request: read(requests, "memory"),
            memory_limit: read(limits, "memory"),
        }
    }
}

/// Whether a running container must be restarted to take up what is allocated: its `resizePolicy` says so for a resource
/// that changed.
pub fn requires_restart(container: &Container, actuated: &Actuated) -> bool {
    let Some(old) = actuated.containers.get(&container.name) else { return false };
    let (old, new) = (Amounts::of(Some(old)), Amounts::of(container.resources.as_ref()));
    let restarts = |name: &str| {
        let policy = container.resize_policy.iter().flatten().find(|p| p.resource_name == name);
        policy.is_some_and(|p| p.restart_policy == "RestartContainer")
    };
    let cpu = (old.cpu_request, old.cpu_limit) != (new.cpu_request, new.cpu_limit);
    let memory = (old.memory_request, old.memory_limit) != (new.memory_request, new.memory_limit);
    (cpu && restarts("cpu")) || (memory && restarts("memory"))
}

/// What is kept on disk of one pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What this node has promised.
    pub allocated: Allocation,
    /// What is in effect.
    pub actuated: Actuated,
}

impl Checkpoint {
    /// A pod that is about to start: nothing differs.
    pub fn of(pod: &Pod) -> Self {
        Self { allocated: Allocation::of(pod), actuated: Actuated::of(pod) }
    }

    fn path(pod_dir: &Path) -> PathBuf {
        pod_dir.join("resources.json")
    }

    /// Reads it; none when there is none, or none that can be read (said in the log).
    pub fn load(pod_dir: &Path) -> Option<Self> {
        let path = Self::path(pod_dir);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "a pod's allocated resources can't be read");
                return None;
            }
        };
        let read = serde_json::from_slice(&text);
        read.inspect_err(|error| {
            tracing::error!(%error, path = %path.display(), "a pod's allocated resources can't be read");
        })
        .ok()
    }

    /// Writes it; whole or not at all.
    pub fn save(&self, pod_dir: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(pod_dir)?;
        let path = Self::path(pod_dir);
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(&temporary, &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    fn pod(cpu: &str) -> Arc<Pod> {
        let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]});
        Arc::new(pod_json(spec))
    }

    #[test]
    fn an_allocation_replaces_the_spec() {
        let old = Allocation::of(&pod("1"));
        assert!(old.matches(&pod("1000m")));
        assert!(!old.matches(&pod("2")));
        assert_eq!(old.apply(&pod("2")), pod("1"));
        let same = pod("1000m");
        assert!(Arc::ptr_eq(&old.apply(&same), &same));
    }

    #[test]
    fn kept_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::load(dir.path()), None);
        let kept = Checkpoint::of(&pod("1"));
        kept.save(dir.path()).unwrap();
        assert_eq!(Checkpoint::load(dir.path()), Some(kept));
        std::fs::write(dir.path().join("resources.json"), "{").unwrap();
        assert_eq!(Checkpoint::load(dir.path()), None);
    }

    #[test]
    fn restarts_by_policy() {
        let check = |policy: serde_json::Value, requests: serde_json::Value, want: bool| {
            let container = json!({"name": "a", "resizePolicy": policy, "resources": {"requests": requests}});
            let container: Container = serde_json::from_value(container).unwrap();
            let actuated = Actuated::of(&pod("1"));
            assert_eq!(requires_restart(&container, &actuated), want, "{container:?}");
        };
        let cpu = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        check(cpu.clone(), json!({"cpu": "2"}), true);
        check(cpu.clone(), json!({"cpu": "1"}), false);
        check(cpu, json!({"cpu": "1", "memory": "1Gi"}), false);
        check(json!([]), json!({"cpu": "2"}), false);
    }
}
