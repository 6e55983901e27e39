//! The work that a pod's worker has done: each function is one [`Op`](super::decide::Op) and ends in one [`Done`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::phase::phase;
use keelson_cri::{CriError, PodSandboxStatus};
use kube::api::{Api, DeleteParams, Preconditions};

use super::actions::Kill;
use super::context::Context;
use super::event::{Done, NoSandbox};
use super::local_storage;
use super::observed::ObservedPod;
use super::podext::{ContainerKind, PodExt};
use super::resize::actuate::{Plan, Step};
use super::sandbox::{dns_of, sandbox_config};
use super::start::{StartError, StartInput, start_container};
use super::stop::{StopInput, stop_container, stop_pod};
use crate::env::fieldref::Addresses;
use crate::events::EventType;
use crate::log_files;
use crate::objects::PodObjects;
use crate::status::writer;
use crate::volumes::setup::{Outcome, VolumeContext, remove_dir, set_up, tear_down};
use crate::volumes::token::PodTokens;

const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets up or updates all volumes. Runs on a blocking thread: it walks folders and may meet slow storage.
pub async fn volumes(ctx: Arc<Context>, pod: Arc<Pod>, objects: PodObjects, tokens: Arc<PodTokens>) -> Done {
    let objects = objects.view().await;
    let handle = tokio::runtime::Handle::current();
    let work = tokio::task::spawn_blocking(move || {
        let pod_dir = ctx.pod_dir(PodExt::uid(&*pod));
        let addresses = Addresses { pod_ips: Vec::new(), host_ips: ctx.config.node_ips.clone() };
        let context = VolumeContext {
            pod: &pod,
            pod_dir: &pod_dir,
            objects: &objects,
            addresses: &addresses,
            allocatable: &ctx.config.allocatable,
            tokens: &tokens,
            mounter: &*ctx.mounter,
        };
        handle.block_on(set_up(&context))
    });
    match phase("volumes", work).await {
        Ok(outcome) => Done::Volumes(outcome),
        Err(error) => {
            let error = crate::volumes::VolumeError::Retry(error.to_string());
            let failure = crate::volumes::setup::Failure { volume: "*".into(), error };
            Done::Volumes(Outcome { failures: vec![failure], renew_at: None })
        }
    }
}

/// Stops what is left of old sandboxes, then makes a new one.
pub async fn sandbox(
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    attempt: u32,
    stale: Vec<String>,
    observed: Arc<ObservedPod>,
) -> Done {
    let work = async {
        if !stale.is_empty() {
            stop_pod(&ctx, &pod, &observed, None).await.map_err(|e| e.to_string())?;
        }
        for (reason, text) in dns_of(&ctx, &pod).1 {
            ctx.events.pod(&pod, EventType::Warning, reason, text);
        }
        let config = sandbox_config(&ctx, &pod, attempt)?;
        ctx.runtime.run_pod_sandbox(config).await.map_err(|e| e.to_string())
    };
    match phase("sandbox", work).await {
        Ok(status) => Done::Sandbox(Ok(status)),
        Err(error) => {
            let found = ctx.runtime.list_pod_sandboxes().await.unwrap_or_else(|error| {
                tracing::warn!(%error, "sandboxes not listed");
                Vec::new()
            });
            let own = found.into_iter().filter(|s| s.metadata.uid == PodExt::uid(&*pod));
            Done::Sandbox(Err(NoSandbox { error, left: own.map(|s| s.id).collect() }))
        }
    }
}

/// One container to start.
pub struct StartJob {
    /// Shared parts.
    pub ctx: Arc<Context>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Which list the container stands in.
    pub kind: ContainerKind,
    /// The container.
    pub container: Container,
    /// `restartCount`.
    pub attempt: u32,
    /// The ready sandbox.
    pub sandbox: PodSandboxStatus,
    /// ConfigMaps and Secrets.
    pub objects: PodObjects,
    /// Tokens.
    pub tokens: Arc<PodTokens>,
    /// What the runtime has of the pod.
    pub observed: Arc<ObservedPod>,
}

/// Starts a container.
pub async fn start(job: StartJob) -> Done {
    let name = job.container.name.clone();
    // Ephemeral containers arrive after the pod was admitted.
    let unsupported = super::admission::unsupported_in_container(&job.container, job.ctx.config.selinux);
    if let Some(message) = unsupported.map(|v| v.message) {
        let text = format!("Error: {message}");
        job.ctx.events.container(&job.pod, job.kind, &name, EventType::Warning, "Failed", text);
        return Done::Started(name, Err(StartError::new("CreateContainerConfigError", message)));
    }
    let objects = job.objects.view().await;
    let input = StartInput {
        pod: &job.pod,
        kind: job.kind,
        container: &job.container,
        attempt: job.attempt,
        sandbox: &job.sandbox,
        objects: &objects,
        tokens: &job.tokens,
        observed: &job.observed,
    };
    let result = start_container(&job.ctx, &input).await;
    Done::Started(name, result)
}

/// Changes resources of the pod and its running containers, in the order of the plan.
pub async fn resize(ctx: Arc<Context>, sandbox: String, plan: Plan, observed: Arc<ObservedPod>) -> Done {
    if let Err(error) = in_use(&ctx, &plan, &observed).await {
        return Done::Resized(Vec::new(), Err(error));
    }
    let mut done = Vec::new();
    for step in plan.steps {
        let result = match &step {
            Step::Pod(resources) => {
                ctx.runtime.update_pod_sandbox_resources(&sandbox, resources.clone()).await
            }
            Step::Container { id, resources, .. } => {
                ctx.runtime.update_container_resources(id, resources.clone()).await
            }
        };
        if let Err(error) = result {
            return Done::Resized(done, Err(error.to_string()));
        }
        done.push(step);
    }
    Done::Resized(done, Ok(()))
}

/// Refuses memory limits below what is in use, before anything is written: the kernel would kill.
async fn in_use(ctx: &Context, plan: &Plan, observed: &ObservedPod) -> Result<(), String> {
    let usage = async |id: &str| match ctx.runtime.container_usage(id).await {
        Ok(usage) => Ok(i64::try_from(usage.memory_usage).unwrap_or(i64::MAX)),
        Err(error) => Err(format!("unable to read memory usage: {error}")),
    };
    let mut too_low = Vec::new();
    for decrease in &plan.decreases {
        let (what, used) = match &decrease.container {
            Some((id, name)) => (format!("container {name:?}"), usage(id).await?),
            None => {
                let mut sum = 0_i64;
                for container in observed.running() {
                    sum = sum.saturating_add(usage(&container.id).await?);
                }
                ("pod".to_owned(), sum)
            }
        };
        if used >= decrease.limit {
            too_low.push(format!(
                "attempting to set {what} memory limit ({}) below current usage ({used})",
                decrease.limit
            ));
        }
    }
    match too_low.as_slice() {
        [] => Ok(()),
        [one] => Err(format!("cannot decrease memory limits: {one}")),
        many => Err(format!("cannot decrease memory limits: [{}]", many.join(", "))),
    }
}

/// Stops one container.
pub async fn kill(ctx: Arc<Context>, pod: Arc<Pod>, kill: Kill, pod_ip: Option<IpAddr>) -> Done {
    let found = pod.find_container(&kill.name);
    let input = StopInput {
        pod: &pod,
        container: found.as_ref().map(|(k, c)| (*k, c)),
        id: &kill.id,
        name: &kill.name,
        message: &kill.message,
        reason: kill.reason,
        grace: None,
        pod_ip,
    };
    let result = stop_container(&ctx, &input, std::future::ready(())).await;
    Done::Killed(kill.id.clone(), result.map_err(|e| e.to_string()))
}

/// Stops everything. `grace` overrides the pod's own grace period.
pub async fn kill_pod(
    ctx: Arc<Context>,
    pod: Arc<Pod>,
    observed: Arc<ObservedPod>,
    grace: Option<Duration>,
) -> Done {
    Done::PodKilled(stop_pod(&ctx, &pod, &observed, grace).await.map_err(|e| e.to_string()))
}

/// Measures what the pod takes of the disk.
pub async fn measure(ctx: Arc<Context>, pod: Arc<Pod>, observed: Arc<ObservedPod>) -> Done {
    Done::Measured(local_storage::measure(&ctx, &pod, &observed).await)
}

/// Removes the record of a dead container, with its log and its last words.
pub async fn remove_container(ctx: Arc<Context>, id: String) -> Done {
    if let Ok(status) = ctx.runtime.container_status(&id).await {
        for file in log_files::useless(&status.log_path).into_iter().chain(log_files::all(&status.log_path)) {
            // Gone already is as good.
            let _ = tokio::fs::remove_file(file).await;
        }
    }
    if let Err(error) = ctx.runtime.remove_container(&id).await {
        tracing::warn!(%error, container = id, "dead container not removed");
        // Not at once again.
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    Done::Collected(id)
}

/// Removes a dead sandbox.
pub async fn remove_sandbox(ctx: Arc<Context>, id: String) -> Done {
    if let Err(error) = ctx.runtime.remove_pod_sandbox(&id).await {
        tracing::warn!(%error, sandbox = id, "dead sandbox not removed");
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    Done::Collected(id)
}

/// Writes the status.
pub async fn write_status(ctx: Arc<Context>, pod: Arc<Pod>, patch: serde_json::Value) -> Done {
    Done::Status(Box::new(phase("status", writer::patch(&ctx.client, &pod, patch)).await))
}

/// Unmounts all volumes of a pod that has ended.
pub async fn unmount(ctx: Arc<Context>, uid: String) -> Done {
    let work = tokio::task::spawn_blocking(move || tear_down(&*ctx.mounter, &ctx.pod_dir(&uid)));
    Done::Unmounted(work.await.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.to_string())))
}

/// Deletes the API object of a pod that has ended: the last step of its graceful deletion. The uid makes sure that a
/// new pod of the same name is not meant.
pub async fn delete(ctx: Arc<Context>, pod: Arc<Pod>) -> Done {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), PodExt::namespace(&*pod));
    let preconditions =
        Preconditions { uid: Some(PodExt::uid(&*pod).to_owned()), ..Preconditions::default() };
    let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }
        .preconditions(preconditions);
    let call = tokio::time::timeout(DELETE_TIMEOUT, api.delete(PodExt::name(&*pod), &params));
    Done::Deleted(match call.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(elapsed) => Err(elapsed.to_string()),
    })
}

/// Removes records, folders and logs of a pod whose API object is gone.
pub async fn forget(ctx: Arc<Context>, pod: Arc<Pod>, observed: Arc<ObservedPod>) -> Done {
    let work = async {
        for sandbox in &observed.sandboxes {
            ctx.runtime.remove_pod_sandbox(&sandbox.id).await?;
        }
        for container in &observed.containers {
            match ctx.runtime.remove_container(&container.id).await {
                Ok(()) | Err(CriError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    if let Err(error) = work.await {
        return Done::Forgotten(Err(error.to_string()));
    }
    let folders = tokio::task::spawn_blocking(move || {
        let uid = PodExt::uid(&*pod);
        remove_dir(&*ctx.mounter, &ctx.pod_dir(uid)).map_err(|e| e.to_string())?;
        super::gc::remove_logs(&ctx.config, &ctx.log_dir(PodExt::namespace(&*pod), PodExt::name(&*pod), uid))
            .map_err(|e| e.to_string())
    });
    Done::Forgotten(folders.await.map_err(|e| e.to_string()).and_then(|r| r))
}
