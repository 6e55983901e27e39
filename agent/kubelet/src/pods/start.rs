//! Starts one container: image, configuration, creation, start, postStart hook.
//!
//! Source: upstream `startContainer` in `pkg/kubelet/kuberuntime/kuberuntime_container.go`.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::PodSandboxStatus;
use keelson_cri::phase::phase;

use super::container_config::{ConfigInput, container_config};
use super::context::Context;
use super::hooks::run_hook;
use super::observed::ObservedPod;
use super::podext::{ContainerKind, PodExt};
use super::pull::PullFor;
use super::stop::{StopInput, stop_container};
use super::{actions::KillReason, qos};
use crate::events::EventType;
use crate::objects::ObjectView;
use crate::volumes::setup::ImageVolumes;
use crate::volumes::token::PodTokens;

/// Why a container is not running; becomes `state.waiting`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct StartError {
    /// Upstream's reason: `ErrImagePull`, `CreateContainerConfigError`, …
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// When to try again, if the cause knows.
    pub retry_at: Option<SystemTime>,
}

impl StartError {
    /// An error without a time of its own.
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into(), retry_at: None }
    }
}

/// What a start needs.
pub struct StartInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Which list the container stands in.
    pub kind: ContainerKind,
    /// The container.
    pub container: &'a Container,
    /// `restartCount` of the new container.
    pub attempt: u32,
    /// The ready sandbox.
    pub sandbox: &'a PodSandboxStatus,
    /// ConfigMaps and Secrets.
    pub objects: &'a ObjectView,
    /// Tokens.
    pub tokens: &'a PodTokens,
    /// What the runtime has of the pod.
    pub observed: &'a ObservedPod,
}

/// Starts it; gives the container id. Events are recorded on the way.
pub async fn start_container(ctx: &Context, input: &StartInput<'_>) -> Result<String, StartError> {
    let name = &input.container.name;
    let say = |type_, reason: &str, message: String| {
        ctx.events.container(input.pod, input.kind, name, type_, reason, message);
    };
    let failed = |reason: &str, message: String| {
        say(EventType::Warning, "Failed", format!("Error: {message}"));
        StartError::new(reason, message)
    };
    let image_volumes = image_volumes(ctx, input).await?;
    let who = PullFor::container(input.pod, input.kind, input.container, input.objects);
    let image = match phase("image", ctx.puller.ensure(&*ctx.images, &ctx.events, &who)).await {
        Ok(image) => image,
        Err(error) => {
            say(EventType::Warning, "Failed", format!("Error: {}", error.reason));
            return Err(error);
        }
    };
    let config_input = ConfigInput {
        pod: input.pod,
        container: input.container,
        attempt: input.attempt,
        image: &image,
        image_volumes: &image_volumes,
        sandbox: input.sandbox,
        objects: input.objects,
        tokens: input.tokens,
        observed: input.observed,
    };
    let (config, skipped) = container_config(ctx, &config_input)
        .await
        .map_err(|message| failed("CreateContainerConfigError", message))?;
    for text in skipped {
        ctx.events.pod(input.pod, EventType::Warning, "InvalidEnvironmentVariableNames", text);
    }
    let id = phase("create", ctx.runtime.create_container(&input.sandbox.id, config))
        .await
        .map_err(|e| failed("CreateContainerError", e.to_string()))?;
    say(EventType::Normal, "Created", "Container created".into());
    if let Err(error) = phase("start", ctx.runtime.start_container(&id)).await {
        return Err(failed("RunContainerError", error.to_string()));
    }
    say(EventType::Normal, "Started", "Container started".into());
    link_log(ctx, input, &id);
    post_start(ctx, input, &id).await?;
    Ok(id)
}

/// Images of those of the pod's volumes that the container mounts, pulled when their policy asks for it. When some can't
/// be had the others are pulled all the same, as upstream does; the last error is the container's.
async fn image_volumes(ctx: &Context, input: &StartInput<'_>) -> Result<ImageVolumes, StartError> {
    let mut images = ImageVolumes::new();
    let mut failure = None;
    let mounts = input.container.volume_mounts.as_deref().unwrap_or_default();
    for volume in PodExt::spec(input.pod).volumes.iter().flatten() {
        let Some(source) = &volume.image else { continue };
        if !mounts.iter().any(|mount| mount.name == volume.name) {
            continue;
        }
        let who = PullFor::volume(input.pod, source, input.objects);
        match phase("image_volume", ctx.puller.ensure(&*ctx.images, &ctx.events, &who)).await {
            Ok(image) => drop(images.insert(volume.name.clone(), image.id)),
            Err(error) => {
                let text = format!("Error: {}", error.reason);
                let name = &input.container.name;
                ctx.events.container(input.pod, input.kind, name, EventType::Warning, "Failed", text);
                failure = Some(error);
            }
        }
    }
    failure.map_or(Ok(images), Err)
}

async fn post_start(ctx: &Context, input: &StartInput<'_>, id: &str) -> Result<(), StartError> {
    let Some(hook) = input.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
        return Ok(());
    };
    let pod_ip = ctx.addresses(input.pod, &input.sandbox.ips).pod_ips.first().copied();
    // Upstream gives a postStart no limit but the pod's end, which cancels this future.
    let limit = Duration::from_secs(24 * 3600);
    let Err(error) = run_hook(&*ctx.runtime, ctx.reach, id, input.container, hook, pod_ip, limit).await
    else {
        return Ok(());
    };
    let name = &input.container.name;
    ctx.events.container(
        input.pod,
        input.kind,
        name,
        EventType::Warning,
        "FailedPostStartHook",
        format!("PostStartHook failed: {error}"),
    );
    let stop = StopInput {
        pod: input.pod,
        container: Some((input.kind, input.container)),
        id,
        name,
        message: "FailedPostStartHook",
        reason: KillReason::PostStartHook,
        grace: None,
        pod_ip,
    };
    if let Err(error) = stop_container(ctx, &stop, std::future::ready(())).await {
        tracing::warn!(%error, container = id, "container not stopped after its postStart hook failed");
    }
    Err(StartError::new("PostStartHookError", error))
}

/// `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`, which log collectors follow.
fn link_log(ctx: &Context, input: &StartInput<'_>, id: &str) {
    let pod = input.pod;
    let (namespace, name, container) = (PodExt::namespace(pod), PodExt::name(pod), &input.container.name);
    let mut stem = format!("{name}_{namespace}_{container}");
    // The longest file name is 255 bytes, less `-`, 64 digits of the id and `.log`.
    stem.truncate(255 - 69);
    let link = ctx.config.container_logs_dir.join(format!("{stem}-{id}.log"));
    let target =
        ctx.log_dir(namespace, name, PodExt::uid(pod)).join(container).join(format!("{}.log", input.attempt));
    if std::os::unix::fs::symlink(&target, &link).is_err() && !link.exists() {
        tracing::debug!(link = %link.display(), "log symlink not made");
    }
}

/// The pod's grace period: of its deletion, else of its spec.
pub fn pod_grace(pod: &Pod) -> Duration {
    let spec = PodExt::spec(pod).termination_grace_period_seconds;
    let seconds = pod.metadata.deletion_grace_period_seconds.or(spec).unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// Whether limits of this pod can't be enforced for want of cgroup controllers; the text of the event.
pub fn unenforced(pod: &Pod, missing: &[String]) -> Option<String> {
    let limits: Vec<&str> = [("cpu", "cpu"), ("memory", "memory")]
        .into_iter()
        .filter(|(_, controller)| missing.iter().any(|m| m == controller))
        .filter(|(resource, _)| {
            PodExt::spec(pod)
                .containers
                .iter()
                .chain(pod.init_containers())
                .any(|c| qos::container_amount(c, qos::Side::Limits, resource) > 0)
        })
        .map(|(resource, _)| resource)
        .collect();
    (!limits.is_empty()).then(|| {
        format!(
            "limits of {} are not enforced: this node lacks the cgroup v2 controllers {}",
            limits.join(", "),
            missing.join(", ")
        )
    })
}
