//! Short readings of a Pod object that many modules want.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// Which list of a pod a container stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContainerKind {
    /// `spec.initContainers`, sidecars among them.
    Init,
    /// `spec.containers`.
    Regular,
    /// `spec.ephemeralContainers`.
    Ephemeral,
}

impl ContainerKind {
    /// `fieldPath` of an event about a container.
    pub fn field_path(self, name: &str) -> String {
        let list = match self {
            Self::Init => "initContainers",
            Self::Regular => "containers",
            Self::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{name}}}")
    }
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    Always,
    /// Restart unless the exit code is 0.
    OnFailure,
    /// Never restart.
    Never,
}

/// Readings of a pod.
pub trait PodExt {
    /// `metadata.uid`, empty when there is none.
    fn uid(&self) -> &str;
    /// `metadata.name`.
    fn name(&self) -> &str;
    /// `metadata.namespace`.
    fn namespace(&self) -> &str;
    /// The spec; a pod without one reads as an empty spec.
    fn spec(&self) -> &PodSpec;
    /// `spec.initContainers`.
    fn init_containers(&self) -> &[Container];
    /// `spec.ephemeralContainers`.
    fn ephemeral_containers(&self) -> &[EphemeralContainer];
    /// `spec.restartPolicy`, `Always` by default.
    fn restart_policy(&self) -> RestartPolicy;
    /// Whether the pod uses the node's network.
    fn host_network(&self) -> bool;
    /// Upstream's `format.Pod`: `name_namespace(uid)`.
    fn describe(&self) -> String;
    /// Whether the pod is being deleted.
    fn is_deleting(&self) -> bool;
    /// Whether `status.phase` is Succeeded or Failed.
    fn is_terminal(&self) -> bool;
    /// A container of any list, ephemeral ones converted.
    fn find_container(&self, name: &str) -> Option<(ContainerKind, Container)>;
    /// A token or annotation says that a manifest file is the source of this pod.
    fn is_static(&self) -> bool;
}

static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or("default")
    }
    fn spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&EMPTY)
    }
    fn init_containers(&self) -> &[Container] {
        PodExt::spec(self).init_containers.as_deref().unwrap_or_default()
    }
    fn ephemeral_containers(&self) -> &[EphemeralContainer] {
        PodExt::spec(self).ephemeral_containers.as_deref().unwrap_or_default()
    }
    fn restart_policy(&self) -> RestartPolicy {
        match PodExt::spec(self).restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }
    fn host_network(&self) -> bool {
        PodExt::spec(self).host_network == Some(true)
    }
    fn describe(&self) -> String {
        format!("{}_{}({})", PodExt::name(self), PodExt::namespace(self), PodExt::uid(self))
    }
    fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
    fn is_terminal(&self) -> bool {
        let phase = self.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }
    fn find_container(&self, name: &str) -> Option<(ContainerKind, Container)> {
        if let Some(c) = PodExt::spec(self).containers.iter().find(|c| c.name == name) {
            return Some((ContainerKind::Regular, c.clone()));
        }
        if let Some(c) = self.init_containers().iter().find(|c| c.name == name) {
            return Some((ContainerKind::Init, c.clone()));
        }
        let e = self.ephemeral_containers().iter().find(|c| c.name == name)?;
        Some((ContainerKind::Ephemeral, container_of_ephemeral(e)))
    }
    fn is_static(&self) -> bool {
        let source = self.metadata.annotations.as_ref().and_then(|a| a.get("kubernetes.io/config.source"));
        source.is_some_and(|s| s != "api")
    }
}

/// A sidecar: an init container with `restartPolicy: Always`.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The common part of an ephemeral container.
pub fn container_of_ephemeral(e: &EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        name: e.name.clone(),
        resources: e.resources.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Container::default()
    }
}
