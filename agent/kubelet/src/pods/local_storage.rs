//! Limits of local storage: `emptyDir.sizeLimit`, and `ephemeral-storage` among a container's limits. Nothing holds a
//! pod to them but this: it is measured, and evicted when it takes more.
//!
//! Source: upstream `localStorageEviction` in `pkg/kubelet/eviction/eviction_manager.go`; what counts is from
//! `calcEphemeralStorage` in `pkg/kubelet/stats/helper.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use keelson_quantity::{self as quantity, Quantity};

use super::context::Context;
use super::observed::ObservedPod;
use super::podext::PodExt;
use super::qos::{Side, pod_amount};
use super::resources::is_critical;
use crate::status::generate::Verdict;
use crate::volumes::setup;

/// How often a pod is measured: upstream's housekeeping interval.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Grace period of a pod that is evicted for this.
pub const GRACE: Duration = Duration::from_secs(1);
/// Reason of event and status.
pub const REASON: &str = "Evicted";

const RESOURCE: &str = "ephemeral-storage";

/// What a pod takes of the node's disk, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// By name: volumes on the disk.
    pub volumes: BTreeMap<String, u64>,
    /// By name: writable layer and logs of containers.
    pub containers: BTreeMap<String, u64>,
    /// What the kubelet keeps for the pod.
    pub other: u64,
}

impl Usage {
    fn total(&self) -> u64 {
        self.volumes
            .values()
            .chain(self.containers.values())
            .fold(self.other, |sum, n| sum.saturating_add(*n))
    }
}

/// The limits of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    volumes: Vec<(String, Quantity)>,
    pod: Option<Quantity>,
    containers: Vec<(String, Quantity)>,
}

impl Limits {
    /// None for a pod that nothing limits, or that is critical: such a pod is never evicted.
    pub fn of(pod: &Pod) -> Option<Self> {
        if is_critical(pod) {
            return None;
        }
        let volumes = PodExt::spec(pod).volumes.iter().flatten().filter(|v| on_disk(v));
        let volumes = volumes
            .filter_map(|v| Some((v.name.clone(), quantity::of(v.empty_dir.as_ref()?.size_limit.as_ref()?))))
            .filter(|(_, limit)| limit.sign() > 0)
            .collect();
        let of_container = |c: &Container| {
            Some((c.name.clone(), quantity::of(c.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?)))
        };
        let containers: Vec<_> = PodExt::spec(pod).containers.iter().filter_map(of_container).collect();
        let init = pod.init_containers().iter().find_map(of_container);
        // Containers without a limit share what the others may take, as upstream has it.
        let first = containers.first().or(init.as_ref()).map(|(_, limit)| *limit);
        let limits = Self {
            volumes,
            pod: first
                .map(|like| Quantity::with_format(pod_amount(pod, Side::Limits, RESOURCE), like.format())),
            containers: containers.into_iter().filter(|(_, limit)| limit.sign() > 0).collect(),
        };
        (limits != Self::default()).then_some(limits)
    }
}

/// Why a pod is evicted, if it is.
pub fn judge(limits: &Limits, usage: &Usage) -> Option<Verdict> {
    let over = |used: u64, limit: &Quantity| i64::try_from(used).unwrap_or(i64::MAX) > limit.value();
    let exceeded = |of: &BTreeMap<String, u64>, name: &str, limit: &Quantity| {
        of.get(name).is_some_and(|used| over(*used, limit))
    };
    let volume = limits.volumes.iter().find(|(name, limit)| exceeded(&usage.volumes, name, limit));
    let container = limits.containers.iter().find(|(name, limit)| exceeded(&usage.containers, name, limit));
    let pod = limits.pod.as_ref().filter(|limit| over(usage.total(), limit));
    let message = if let Some((name, limit)) = volume {
        format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.to_string())
    } else if let Some(limit) = pod {
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    } else if let Some((name, limit)) = container {
        format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", limit.to_string())
    } else {
        return None;
    };
    Some(Verdict { reason: REASON.into(), message })
}

/// Volumes whose content is on the node's disk and belongs to the pod.
fn on_disk(volume: &Volume) -> bool {
    let empty_dir = volume.empty_dir.as_ref();
    empty_dir.is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty())
        || volume.config_map.is_some()
}

/// Folders and files to be measured.
struct Paths {
    volumes: Vec<(String, PathBuf)>,
    logs: Vec<(String, PathBuf)>,
    hosts: PathBuf,
}

impl Paths {
    fn measure(&self, mut usage: Usage) -> Usage {
        for (name, path) in &self.volumes {
            usage.volumes.insert(name.clone(), bytes(path));
        }
        for (name, path) in &self.logs {
            let sum = usage.containers.entry(name.clone()).or_default();
            *sum = sum.saturating_add(bytes(path));
        }
        usage.other = bytes(&self.hosts);
        usage
    }
}

fn bytes(path: &Path) -> u64 {
    keelson_tree::disk_usage(path).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "disk usage not measured");
        0
    })
}

/// Measures a pod. What can't be measured counts nothing until the next time.
pub async fn measure(ctx: &Context, pod: &Pod, observed: &ObservedPod) -> Usage {
    let (uid, pod_dir) = (PodExt::uid(pod), ctx.pod_dir(PodExt::uid(pod)));
    let log_dir = ctx.log_dir(PodExt::namespace(pod), PodExt::name(pod), uid);
    let names: BTreeSet<&str> = observed.containers.iter().map(|c| c.name.as_str()).collect();
    let volumes = PodExt::spec(pod).volumes.iter().flatten().filter(|v| on_disk(v));
    let paths = Paths {
        volumes: volumes.filter_map(|v| Some((v.name.clone(), setup::path(&pod_dir, v)?))).collect(),
        logs: names.iter().map(|name| ((*name).to_owned(), log_dir.join(name))).collect(),
        hosts: pod_dir.join("etc-hosts"),
    };
    let mut usage = Usage::default();
    for container in names.iter().filter_map(|name| observed.container(name)) {
        match ctx.runtime.container_usage(&container.id).await {
            Ok(own) => {
                usage.containers.insert(container.name.clone(), own.rootfs_used.unwrap_or_default());
            }
            // It may have been removed since it was seen.
            Err(error) => tracing::debug!(%error, container = container.id, "no usage of a container"),
        }
    }
    let work = tokio::task::spawn_blocking(move || paths.measure(usage));
    work.await.unwrap_or_else(|error| {
        tracing::error!(%error, uid, "measuring a pod failed");
        Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    const MI: u64 = 1 << 20;

    fn spec() -> serde_json::Value {
        json!({
            "initContainers": [{"name": "i", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}],
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "4Mi"}}},
                {"name": "c"}],
            "volumes": [
                {"name": "small", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "free", "emptyDir": {}},
                {"name": "none", "emptyDir": {"sizeLimit": "0"}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        })
    }

    fn check(spec: serde_json::Value, volumes: &[(&str, u64)], containers: &[(&str, u64)], want: &str) {
        let map = |list: &[(&str, u64)]| list.iter().map(|(n, b)| ((*n).to_owned(), *b)).collect();
        let usage = Usage { volumes: map(volumes), containers: map(containers), other: 0 };
        let verdict = Limits::of(&pod_json(spec)).and_then(|limits| judge(&limits, &usage));
        let (reason, message) = verdict.map(|v| (v.reason, v.message)).unwrap_or_default();
        assert_eq!(message, want);
        assert_eq!(reason.is_empty(), want.is_empty());
    }

    #[test]
    fn verdicts() {
        check(spec(), &[("small", MI)], &[("a", MI), ("b", MI)], "");
        let want = r#"Usage of EmptyDir volume "small" exceeds the limit "1Mi". "#;
        check(spec(), &[("small", MI + 1)], &[], want);
        check(spec(), &[("none", MI), ("free", 4 * MI)], &[], "");
        let want = "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ";
        check(spec(), &[("free", 4 * MI)], &[("c", MI + 1)], want);
        let want = r#"Container a exceeded its local ephemeral storage limit "1Mi". "#;
        check(spec(), &[], &[("a", MI + 1)], want);
    }

    #[test]
    fn who_is_not_limited() {
        assert_eq!(Limits::of(&pod_json(json!({"containers": [{"name": "a"}]}))), None);
        let mut critical = spec();
        critical["priority"] = 2_000_001_000.into();
        check(critical, &[("small", 2 * MI)], &[], "");
    }
}
