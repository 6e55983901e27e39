//! The cgroups above the pods': `kubepods` holds what the node has for pods, its tiers `burstable` and `besteffort` the
//! pods of their class (Guaranteed ones stand in `kubepods` itself).
//!
//! Source: upstream `pkg/kubelet/cm/qos_container_manager_linux.go` and `node_container_manager_linux.go`
//! (`--cgroups-per-qos` and `--enforce-node-allocatable=pods`, both by default).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::LinuxResources;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::manager::PodManagerConfig;
use super::podext::PodExt;
use super::qos::{QosClass, Side, amount, pod_amount, qos_class};
use super::resources::{MIN_SHARES, milli_cpu_to_shares};
use super::table::PodTable;

/// The tiers are written at least this often, should anybody else have changed them.
const INTERVAL: Duration = Duration::from_secs(60);

/// The cgroups with what they are to hold, outer first. Pure.
pub fn tiers(config: &PodManagerConfig, pods: &[Arc<Pod>]) -> Vec<(String, LinuxResources)> {
    let top = &config.cgroup_parent;
    let cpu = config.allocatable.get("cpu").map_or(0, |q| amount("cpu", q));
    let burstable = pods
        .iter()
        .filter(|pod| !pod.is_terminal() && qos_class(pod) == QosClass::Burstable)
        .fold(0_i64, |sum, pod| sum.saturating_add(pod_amount(pod, Side::Requests, "cpu")));
    let shares = |shares| LinuxResources { cpu_shares: Some(shares), ..LinuxResources::default() };
    let whole = LinuxResources {
        memory_limit: i64::try_from(config.memory_capacity).ok().filter(|bytes| *bytes > 0),
        pids_limit: config.pid_capacity.and_then(|pids| i64::try_from(pids).ok()),
        ..shares(milli_cpu_to_shares(cpu))
    };
    vec![
        (top.clone(), whole),
        (format!("{top}/burstable"), shares(milli_cpu_to_shares(burstable))),
        (format!("{top}/besteffort"), shares(MIN_SHARES)),
    ]
}

/// Keeps the cgroups as [`tiers`] says until `shutdown`.
pub async fn keep(ctx: Arc<Context>, table: Arc<PodTable>, shutdown: CancellationToken) {
    let mut written = Vec::new();
    let mut due = tokio::time::Instant::now();
    loop {
        let wanted = tiers(&ctx.config, &table.pods());
        if wanted != written || tokio::time::Instant::now() >= due {
            written = match write(&ctx, &wanted).await {
                Ok(()) => wanted,
                Err(error) => {
                    tracing::warn!(%error, "cgroups of the service classes not written, trying again");
                    Vec::new()
                }
            };
            due = tokio::time::Instant::now() + INTERVAL;
        }
        let wait = if written.is_empty() { Duration::from_secs(5) } else { INTERVAL };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = ctx.allocations.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn write(ctx: &Context, tiers: &[(String, LinuxResources)]) -> keelson_cri::Result<()> {
    for (cgroup, resources) in tiers {
        ctx.runtime.update_cgroup(cgroup, resources.clone()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::json;

    #[test]
    fn burstable_has_what_its_pods_request() {
        let mut config = PodManagerConfig::new("n", Vec::new());
        config.allocatable.insert("cpu".into(), Quantity("2".into()));
        config.memory_capacity = 1 << 30;
        config.pid_capacity = Some(4096);
        let pod = |resources: serde_json::Value| {
            Arc::new(pod_json(json!({"containers": [{"name": "a", "resources": resources}]})))
        };
        let ended = {
            let mut pod = Pod::clone(&pod(json!({"requests": {"cpu": "1"}})));
            pod.status.get_or_insert_default().phase = Some("Succeeded".into());
            Arc::new(pod)
        };
        let pods = [
            pod(json!({"requests": {"cpu": "250m"}})),
            pod(json!({"requests": {"cpu": "100m"}})),
            pod(json!({"limits": {"cpu": "1", "memory": "1Gi"}})),
            pod(json!({})),
            ended,
        ];
        let rendered: Vec<_> = tiers(&config, &pods)
            .into_iter()
            .map(|(name, r)| (name, r.cpu_shares.unwrap(), r.memory_limit, r.pids_limit))
            .collect();
        assert_eq!(
            rendered,
            [
                ("kubepods".into(), 2048, Some(1 << 30), Some(4096)),
                ("kubepods/burstable".into(), 358, None, None),
                ("kubepods/besteffort".into(), 2, None, None),
            ]
        );
    }
}
