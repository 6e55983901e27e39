//! Stops containers and whole pods: hooks, grace periods, the order of sidecars.
//!
//! Source: upstream `killContainer`, `killContainersWithSyncResult` and `terminationOrdering`
//! (`pkg/kubelet/kuberuntime`).

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::{CriError, RuntimeService};
use tokio::sync::watch;
use tokio::time::Instant;

use super::actions::KillReason;
use super::context::Context;
use super::hooks::run_hook;
use super::observed::ObservedPod;
use super::podext::{ContainerKind, PodExt, is_sidecar};
use super::start::pod_grace;
use crate::events::EventType;

/// Least time between the stop signal and SIGKILL.
const MIN_GRACE: Duration = Duration::from_secs(2);
/// Annotation of a container: grace period of its pod, for pods whose object is gone.
pub const GRACE_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";

/// One container to stop.
pub struct StopInput<'a> {
    /// Its pod.
    pub pod: &'a Pod,
    /// Its definition, when the pod still has one.
    pub container: Option<(ContainerKind, &'a Container)>,
    /// Its id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Text of the `Killing` event; empty for the default.
    pub message: &'a str,
    /// Why.
    pub reason: KillReason,
    /// Overrides every other grace period.
    pub grace: Option<Duration>,
    /// For HTTP hooks.
    pub pod_ip: Option<IpAddr>,
}

fn grace_of(input: &StopInput<'_>) -> Duration {
    if let Some(grace) = input.grace {
        return grace;
    }
    let probe = input.container.and_then(|(_, c)| match input.reason {
        KillReason::StartupProbe => c.startup_probe.as_ref(),
        KillReason::LivenessProbe => c.liveness_probe.as_ref(),
        _ => None,
    });
    let own = probe.and_then(|p| p.termination_grace_period_seconds).and_then(|s| u64::try_from(s).ok());
    match own.filter(|_| input.pod.metadata.deletion_grace_period_seconds.is_none()) {
        Some(seconds) => Duration::from_secs(seconds),
        None => pod_grace(input.pod),
    }
}

/// Stops one container: event, preStop hook, its turn, stop signal, SIGKILL.
pub async fn stop_container(
    ctx: &Context,
    input: &StopInput<'_>,
    turn: impl Future<Output = ()>,
) -> Result<(), CriError> {
    let message = if input.message.is_empty() {
        format!("Stopping container {}", input.name)
    } else {
        input.message.to_owned()
    };
    let kind = input.container.map_or(ContainerKind::Regular, |(k, _)| k);
    ctx.events.container(input.pod, kind, input.name, EventType::Normal, "Killing", message);
    let deadline = Instant::now() + grace_of(input);
    let left = || deadline.saturating_duration_since(Instant::now());
    let hook = input.container.and_then(|(_, c)| c.lifecycle.as_ref()?.pre_stop.as_ref().map(|h| (c, h)));
    if let Some((container, hook)) = hook
        && left() > Duration::ZERO
    {
        let run = run_hook(&*ctx.runtime, ctx.reach, input.id, container, hook, input.pod_ip, left());
        match tokio::time::timeout(left(), run).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => ctx.events.container(
                input.pod,
                kind,
                input.name,
                EventType::Warning,
                "FailedPreStopHook",
                format!("PreStopHook failed: {error}"),
            ),
            Err(_elapsed) => tracing::debug!(container = input.id, "preStop hook used up the grace period"),
        }
    }
    if tokio::time::timeout(left(), turn).await.is_err() {
        tracing::debug!(container = input.id, "grace period ended before this container's turn");
    }
    ctx.runtime.stop_container(input.id, left().max(MIN_GRACE)).await
}

/// Stops all that runs of a pod, then its sandboxes. Regular containers go together; a sidecar goes once all regular
/// containers and the sidecars after it are gone, or the grace period is over.
pub async fn stop_pod(
    ctx: &Context,
    pod: &Pod,
    observed: &ObservedPod,
    grace: Option<Duration>,
) -> Result<(), CriError> {
    let sidecars: Vec<&str> =
        pod.init_containers().iter().filter(|c| is_sidecar(c)).map(|c| c.name.as_str()).collect();
    let pod_ip = observed.ready_sandbox().and_then(|s| s.ips.first().copied());
    // Counts what still runs by rank: 0 for regular containers, 1 for the last sidecar, and so on.
    let rank = |name: &str| sidecars.iter().position(|s| *s == name).map_or(0, |i| sidecars.len() - i);
    let mut by_rank = vec![0_usize; sidecars.len() + 1];
    for c in observed.running() {
        by_rank[rank(&c.name)] += 1;
    }
    let (alive, _) = watch::channel(by_rank);
    let stops = observed.running().map(|c| {
        let found = pod.find_container(&c.name);
        let own_rank = rank(&c.name);
        let alive = &alive;
        // A pod whose object is gone: what its container remembers.
        let remembered =
            c.annotations.get(GRACE_ANNOTATION).and_then(|s| s.parse().ok()).map(Duration::from_secs);
        let grace = grace.or(remembered.filter(|_| found.is_none()));
        async move {
            let mut rx = alive.subscribe();
            let turn = async {
                // The sender outlives this future.
                let _ = rx.wait_for(|left| left[..own_rank].iter().all(|n| *n == 0)).await;
            };
            let input = StopInput {
                pod,
                container: found.as_ref().map(|(k, c)| (*k, c)),
                id: &c.id,
                name: &c.name,
                message: "",
                reason: KillReason::PodEnds,
                grace,
                pod_ip,
            };
            let result = stop_container(ctx, &input, turn).await;
            alive.send_modify(|left| left[own_rank] = left[own_rank].saturating_sub(1));
            result
        }
    });
    let results = futures::future::join_all(stops).await;
    stop_sandboxes(&*ctx.runtime, observed).await?;
    results.into_iter().collect()
}

/// Stops every sandbox that is not stopped; keeps going and gives the first error.
pub async fn stop_sandboxes(runtime: &dyn RuntimeService, observed: &ObservedPod) -> Result<(), CriError> {
    let mut first = Ok(());
    for sandbox in &observed.sandboxes {
        first = first.and(runtime.stop_pod_sandbox(&sandbox.id).await);
    }
    first
}
