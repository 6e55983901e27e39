//! When the node gets its pod ranges: the default network configuration, forwarding, masquerade.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::NodeSpec;
use keelson_cni::netconf::{DefaultNetwork, DefaultOutcome, ensure_default};
use keelson_cni::vxlan::VxlanMode;
use keelson_cni::{Mode, host, masquerade};
use keelson_kubelet::node::NodeManager;

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// What the default network is made of, beside the node's ranges.
#[derive(Debug, Clone)]
pub struct PodRangeConfig {
    /// `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// How pods are wired.
    pub mode: Mode,
    /// Ranges that see pod addresses: every node's pods, and Services.
    pub cluster_cidrs: Vec<IpNet>,
    /// Folder of address records.
    pub data_dir: PathBuf,
    /// When packets to other nodes' pods are wrapped: those of pods are shorter then.
    pub vxlan: VxlanMode,
}

/// Follows the node's ranges for ever.
pub async fn follow_pod_ranges(config: PodRangeConfig, node: Arc<NodeManager>) {
    let mut spec = node.spec();
    loop {
        let ranges = pod_ranges(&spec.borrow_and_update());
        match ranges {
            Ok(ranges) if ranges.is_empty() => {}
            Ok(ranges) => {
                let config = config.clone();
                // Netlink and files, and milliseconds of both.
                let applied = tokio::task::spawn_blocking(move || apply(&config, &ranges)).await;
                match applied.map_err(anyhow::Error::from).and_then(|applied| applied) {
                    Ok(()) => node.status_changed(),
                    Err(error) => {
                        tracing::error!(
                            error = format!("{error:#}"),
                            "could not set up the pod network, retrying"
                        );
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the node's pod ranges are unusable"),
        }
        if spec.changed().await.is_err() {
            return;
        }
    }
}

/// The ranges of a node: podCIDRs, or podCIDR of an old API server.
pub fn pod_ranges(spec: &NodeSpec) -> anyhow::Result<Vec<IpNet>> {
    let many = spec.pod_cidrs.as_deref().unwrap_or_default();
    let ranges = if many.is_empty() { spec.pod_cidr.as_slice() } else { many };
    let ranges = ranges.iter().filter(|range| !range.is_empty());
    ranges.map(|range| range.parse().with_context(|| format!("pod range {range:?}"))).collect()
}

fn apply(config: &PodRangeConfig, ranges: &[IpNet]) -> anyhow::Result<()> {
    let network = DefaultNetwork {
        mode: config.mode,
        pod_cidrs: ranges.to_vec(),
        cluster_cidrs: config.cluster_cidrs.clone(),
        mtu: 0,
        overhead: config.vxlan.overhead(ranges),
        data_dir: config.data_dir.clone(),
    };
    let outcome =
        ensure_default(&config.conf_dir, &network).context("write the default network configuration")?;
    tracing::info!(?outcome, ?ranges, "pod network configured");
    if matches!(outcome, DefaultOutcome::Foreign(_)) {
        // Somebody else's network: its plugin does what it needs on the host.
        return Ok(());
    }
    host::ensure_forwarding().context("switch forwarding on")?;
    masquerade::ensure(ranges, &config.cluster_cidrs).context("set masquerade rules")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(many: &[&str], one: Option<&str>, expected: Option<usize>) {
        let many: Vec<String> = many.iter().map(|range| (*range).to_owned()).collect();
        let spec = NodeSpec {
            pod_cidrs: (!many.is_empty()).then_some(many),
            pod_cidr: one.map(str::to_owned),
            ..NodeSpec::default()
        };
        assert_eq!(pod_ranges(&spec).ok().map(|ranges| ranges.len()), expected, "{spec:?}");
    }

    #[test]
    fn ranges() {
        check(&[], None, Some(0));
        check(&[], Some("10.244.1.0/24"), Some(1));
        check(&["10.244.1.0/24", "fd00::/64"], Some("10.244.1.0/24"), Some(2));
        check(&["nonsense"], None, None);
    }
}
