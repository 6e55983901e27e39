//! Requests and limits as cgroup values.
//!
//! Source: upstream `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go` and
//! `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::LinuxResources;

use super::podext::{PodExt, is_sidecar};
use super::qos::{QosClass, Side, container_amount, limits_declared, pod_amount, qos_class};
use keelson_quantity as quantity;

/// Least `cpu.shares`.
pub const MIN_SHARES: u64 = 2;
/// Most `cpu.shares`.
pub const MAX_SHARES: u64 = 262_144;
/// CFS period, microseconds.
pub const QUOTA_PERIOD: u64 = 100_000;
/// Least CFS quota that the kernel takes, microseconds.
pub const MIN_QUOTA: i64 = 1_000;
/// Least priority of the critical classes, `system-cluster-critical` and `system-node-critical`.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;
const BEST_EFFORT_OOM_SCORE_ADJ: i64 = 1000;

/// Thousandths of a CPU as cgroup v1 shares.
pub fn milli_cpu_to_shares(milli: i64) -> u64 {
    let milli = u64::try_from(milli).unwrap_or(0);
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// Thousandths of a CPU as microseconds per [`QUOTA_PERIOD`]; none when there is no limit.
pub fn milli_cpu_to_quota(milli: i64) -> Option<i64> {
    (milli > 0).then(|| (milli.saturating_mul(100_000) / 1000).max(MIN_QUOTA))
}

/// Whether the cluster needs the pod so much that the node neither evicts it nor lets it be killed first.
pub fn is_critical(pod: &Pod) -> bool {
    PodExt::spec(pod).priority.is_some_and(|p| p >= SYSTEM_CRITICAL_PRIORITY)
}

/// `oom_score_adj` of a container's processes. `memory_capacity` is the machine's, in bytes.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: u64) -> i32 {
    let class = qos_class(pod);
    if is_critical(pod) || class == QosClass::Guaranteed {
        return GUARANTEED_OOM_SCORE_ADJ as i32;
    }
    if class == QosClass::BestEffort {
        return BEST_EFFORT_OOM_SCORE_ADJ as i32;
    }
    let capacity = i128::from(memory_capacity.max(1));
    let request = |c: &Container| i128::from(container_amount(c, Side::Requests, "memory"));
    let score = |bytes: i128| i64::try_from(1000 - 1000 * bytes / capacity).unwrap_or(0);
    let mut adj = score(request(container));
    if is_sidecar(container) {
        // A sidecar is not killed before the containers that it serves.
        let least = PodExt::spec(pod).containers.iter().map(request).min().unwrap_or(0);
        adj = adj.min(score(least));
    }
    let adj = adj.max(1000 + GUARANTEED_OOM_SCORE_ADJ);
    let adj = if adj >= BEST_EFFORT_OOM_SCORE_ADJ { BEST_EFFORT_OOM_SCORE_ADJ - 1 } else { adj };
    // Between 3 and 999 by the two lines above.
    adj as i32
}

/// Limits of one container.
pub fn container_resources(pod: &Pod, container: &Container, memory_capacity: u64) -> LinuxResources {
    let amount = |side, name| container_amount(container, side, name);
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let has_request =
        container.resources.as_ref().and_then(|r| r.requests.as_ref()).is_some_and(|r| r.contains_key("cpu"));
    let cpu_limit = amount(Side::Limits, "cpu");
    let shares = if has_request { amount(Side::Requests, "cpu") } else { cpu_limit };
    let memory = amount(Side::Limits, "memory");
    let quota = milli_cpu_to_quota(cpu_limit);
    LinuxResources {
        cpu_shares: Some(milli_cpu_to_shares(shares)),
        cpu_quota: quota,
        cpu_period: quota.map(|_| QUOTA_PERIOD),
        memory_limit: (memory > 0).then_some(memory),
        // No swap, whatever the machine has: upstream's NoSwap behaviour.
        memory_swap_limit: Some(0),
        oom_score_adj: Some(oom_score_adj(pod, container, memory_capacity)),
        hugepage_limits: hugepages(limits),
        // cgroup v2: a container is killed as a whole unless the node says otherwise (singleProcessOOMKill).
        memory_oom_group: Some(true),
        ..LinuxResources::default()
    }
}

fn hugepages(
    limits: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
) -> BTreeMap<String, u64> {
    let mut out = BTreeMap::new();
    for (name, q) in limits.into_iter().flatten() {
        let Some(size) = name.strip_prefix("hugepages-") else { continue };
        // `2Mi` is `2MB` in the name of the kernel's file.
        if let Some(number) = size.strip_suffix('i') {
            out.insert(format!("{number}B"), u64::try_from(quantity::of(q).value()).unwrap_or(0));
        }
    }
    out
}

/// Limits of the pod's own cgroup.
pub fn pod_resources(pod: &Pod) -> LinuxResources {
    let class = qos_class(pod);
    if class == QosClass::BestEffort {
        return LinuxResources { cpu_shares: Some(MIN_SHARES), ..LinuxResources::default() };
    }
    let cpu_limit = if limits_declared(pod, "cpu") { pod_amount(pod, Side::Limits, "cpu") } else { 0 };
    let memory = if limits_declared(pod, "memory") { pod_amount(pod, Side::Limits, "memory") } else { 0 };
    let quota = milli_cpu_to_quota(cpu_limit);
    let requested = pod_amount(pod, Side::Requests, "cpu");
    let shares = if requested == 0 { cpu_limit } else { requested };
    LinuxResources {
        cpu_shares: Some(milli_cpu_to_shares(shares)),
        cpu_quota: quota,
        cpu_period: quota.map(|_| QUOTA_PERIOD),
        memory_limit: (memory > 0).then_some(memory),
        ..LinuxResources::default()
    }
}

/// The pod's cgroup: `<top>/pod<uid>`, `<top>/burstable/pod<uid>` or `<top>/besteffort/pod<uid>`.
pub fn cgroup_parent(top: &str, pod: &Pod) -> String {
    let uid = PodExt::uid(pod);
    match qos_class(pod) {
        QosClass::Guaranteed => format!("{top}/pod{uid}"),
        QosClass::Burstable => format!("{top}/burstable/pod{uid}"),
        QosClass::BestEffort => format!("{top}/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (milli, want) in [(0, 2), (1, 2), (2, 2), (10, 10), (500, 512), (1000, 1024), (i64::MAX, 262_144)]
        {
            assert_eq!(milli_cpu_to_shares(milli), want, "{milli}");
        }
    }

    #[test]
    fn quota() {
        for (milli, want) in
            [(0, None), (1, Some(1000)), (10, Some(1000)), (200, Some(20_000)), (1500, Some(150_000))]
        {
            assert_eq!(milli_cpu_to_quota(milli), want, "{milli}");
        }
    }

    fn check_oom(resources: serde_json::Value, want: i32) {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": resources}]}}))
        .unwrap();
        assert_eq!(
            oom_score_adj(&pod, &PodExt::spec(&pod).containers[0], 4_000_000_000),
            want,
            "{resources}"
        );
    }

    // The cases of upstream's policy_test.go (standardMemoryAmount 8e9 there, scaled).
    #[test]
    fn oom() {
        check_oom(serde_json::json!({}), 1000);
        check_oom(serde_json::json!({"limits": {"cpu": "1", "memory": "1G"}}), -997);
        check_oom(serde_json::json!({"requests": {"cpu": "1"}}), 999);
        check_oom(serde_json::json!({"requests": {"memory": "2G"}}), 500);
        check_oom(serde_json::json!({"requests": {"memory": "4G"}, "limits": {"memory": "5G"}}), 3);
    }

    #[test]
    fn parents() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"},
            "spec": {"containers": [{"name": "c"}]}}))
        .unwrap();
        assert_eq!(cgroup_parent("kubepods", &pod), "kubepods/besteffort/podu");
        assert_eq!(pod_resources(&pod).cpu_shares, Some(2));
    }
}
