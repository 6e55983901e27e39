//! What the runtime says of one pod, in the order in which decisions want it: newest first.

use keelson_cri::{ContainerState, ContainerStatus, PodSandboxState, PodSandboxStatus};

/// Sandboxes and containers of one pod. Both lists are sorted newest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedPod {
    /// Sandboxes; at most one is ready in a healthy pod.
    pub sandboxes: Vec<PodSandboxStatus>,
    /// Containers of all those sandboxes, dead ones included.
    pub containers: Vec<ContainerStatus>,
}

impl ObservedPod {
    /// Sorts what the runtime listed.
    pub fn new(mut sandboxes: Vec<PodSandboxStatus>, mut containers: Vec<ContainerStatus>) -> Self {
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.metadata.attempt, s.created_at)));
        containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.attempt)));
        Self { sandboxes, containers }
    }

    /// The newest record of a container.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The record before the newest one: what `kubectl logs --previous` reads.
    pub fn previous(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// A container by its id.
    pub fn by_id(&self, id: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.id == id)
    }

    /// The newest sandbox, ready or not.
    pub fn latest_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first()
    }

    /// The newest sandbox, when it is ready.
    pub fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes.first().filter(|s| s.state == PodSandboxState::Ready)
    }

    /// Containers whose process may live.
    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers
            .iter()
            .filter(|c| matches!(c.state, ContainerState::Running | ContainerState::Unknown))
    }
}
