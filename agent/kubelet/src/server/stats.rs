//! What pods use: `/stats/summary` and the figures of `/metrics/resource`.

use std::collections::HashMap;
use std::fs;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use keelson_cri::{ContainerState, PodSandboxMetadata, PodSandboxState, ResourceUsage};
use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Backend;

/// Usage of one running container.
pub(super) struct ContainerUsage {
    pub id: String,
    pub name: String,
    pub started: Option<SystemTime>,
    pub usage: ResourceUsage,
}

/// Usage of one pod.
pub(super) struct PodUsage {
    pub pod: PodSandboxMetadata,
    pub created: SystemTime,
    pub containers: Vec<ContainerUsage>,
}

/// Usage of the machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NodeUsage {
    /// CPU time so far, nanoseconds.
    pub cpu_ns: u64,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes free without any reclaim.
    pub memory_free: u64,
    /// Bytes that new processes could have.
    pub memory_available: u64,
}

/// All figures of one moment.
pub(super) struct Usage {
    pub pods: Vec<PodUsage>,
    pub node: NodeUsage,
    pub now: SystemTime,
    /// Something could not be read.
    pub failed: bool,
}

/// Reads everything.
pub(super) async fn collect(backend: &Backend) -> Usage {
    let runtime = &backend.runtime;
    let mut failed = false;
    let (sandboxes, containers) =
        match tokio::try_join!(runtime.list_pod_sandboxes(), runtime.list_containers(None)) {
            Ok(lists) => lists,
            Err(error) => {
                tracing::warn!(%error, "could not list containers for stats");
                failed = true;
                (Vec::new(), Vec::new())
            }
        };
    let mut pods: Vec<PodUsage> = Vec::new();
    let mut by_sandbox = HashMap::new();
    for sandbox in sandboxes.into_iter().filter(|sandbox| sandbox.state == PodSandboxState::Ready) {
        by_sandbox.insert(sandbox.id, pods.len());
        pods.push(PodUsage { pod: sandbox.metadata, created: sandbox.created_at, containers: Vec::new() });
    }
    for container in containers.into_iter().filter(|container| container.state == ContainerState::Running) {
        let Some(pod) = by_sandbox.get(&container.sandbox_id).and_then(|index| pods.get_mut(*index)) else {
            continue;
        };
        match runtime.container_usage(&container.id).await {
            Ok(usage) => pod.containers.push(ContainerUsage {
                id: container.id,
                name: container.name,
                started: container.started_at,
                usage,
            }),
            // It may have ended since it was listed.
            Err(error) => tracing::debug!(%error, container = container.id, "no usage of a container"),
        }
    }
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let node = node_usage(&read("/proc/stat"), &read("/proc/meminfo"));
    Usage { pods, node, now: SystemTime::now(), failed }
}

/// CPU time and memory, from /proc/stat and /proc/meminfo.
fn node_usage(stat: &str, meminfo: &str) -> NodeUsage {
    let ticks: u64 = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .map(|line| {
            let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
            // user nice system (idle iowait) irq softirq steal; guest time is in user already.
            [0, 1, 2, 5, 6, 7].iter().filter_map(|index| fields.get(*index)).sum()
        })
        .unwrap_or(0);
    let memory = |field: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = rest.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    NodeUsage {
        // USER_HZ is 100 on every architecture that Kubernetes runs on.
        cpu_ns: ticks.saturating_mul(10_000_000),
        memory_total: memory("MemTotal"),
        memory_free: memory("MemFree"),
        memory_available: memory("MemAvailable"),
    }
}

/// Remembers the last CPU times, so that the next ones give a rate.
#[derive(Default)]
pub(super) struct Sampler {
    last: Mutex<HashMap<String, (SystemTime, u64)>>,
}

impl Sampler {
    /// Nanocores used since the last sample of `id`; none at the first, or when too little time has passed.
    fn rate(&self, id: &str, at: SystemTime, cpu_ns: u64) -> Option<u64> {
        let mut last = self.last.lock();
        let Some((before, used)) = last.get(id).copied() else {
            last.insert(id.to_owned(), (at, cpu_ns));
            return None;
        };
        let elapsed = at.duration_since(before).unwrap_or_default().as_nanos();
        if elapsed < 100_000_000 {
            return None;
        }
        last.insert(id.to_owned(), (at, cpu_ns));
        u64::try_from(u128::from(cpu_ns.saturating_sub(used)) * 1_000_000_000 / elapsed).ok()
    }

    fn keep(&self, ids: &[&str]) {
        self.last.lock().retain(|id, _| ids.contains(&id.as_str()));
    }
}

/// The Summary of stats.k8s.io/v1alpha1.
pub(super) async fn summary(backend: &Backend, sampler: &Sampler) -> Value {
    let usage = collect(backend).await;
    let now = time(usage.now);
    let mut ids = vec!["/"];
    ids.extend(usage.pods.iter().flat_map(|pod| &pod.containers).map(|container| container.id.as_str()));
    sampler.keep(&ids);
    let pods: Vec<Value> = usage.pods.iter().map(|pod| pod_stats(pod, sampler, usage.now)).collect();
    let node = &usage.node;
    json!({
        "node": {
            "nodeName": backend.config.node_name,
            "cpu": cpu(&now, sampler.rate("/", usage.now, node.cpu_ns), node.cpu_ns),
            "memory": {
                "time": now,
                "availableBytes": node.memory_available,
                "usageBytes": node.memory_total.saturating_sub(node.memory_free),
                "workingSetBytes": node.memory_total.saturating_sub(node.memory_available),
            },
            "fs": filesystem(&backend.config.root_dir, &now),
        },
        "pods": pods,
    })
}

fn pod_stats(pod: &PodUsage, sampler: &Sampler, now: SystemTime) -> Value {
    let mut containers = Vec::new();
    let (mut cpu_ns, mut rate, mut memory) = (0_u64, None::<u64>, (0_u64, 0_u64, 0_u64));
    for container in &pod.containers {
        let usage = &container.usage;
        let at = usage.timestamp.unwrap_or(now);
        let own = sampler.rate(&container.id, at, usage.cpu_usage_ns);
        cpu_ns = cpu_ns.saturating_add(usage.cpu_usage_ns);
        rate = match (rate, own) {
            (Some(sum), Some(own)) => Some(sum.saturating_add(own)),
            (sum, own) => sum.or(own),
        };
        memory.0 = memory.0.saturating_add(usage.memory_usage);
        memory.1 = memory.1.saturating_add(usage.memory_working_set);
        memory.2 = memory.2.saturating_add(usage.memory_rss);
        let at = time(at);
        containers.push(json!({
            "name": container.name,
            "startTime": container.started.map(time),
            "cpu": cpu(&at, own, usage.cpu_usage_ns),
            "memory": memory_stats(&at, (usage.memory_usage, usage.memory_working_set, usage.memory_rss)),
            "rootfs": { "time": at, "usedBytes": usage.rootfs_used },
        }));
    }
    let at = time(now);
    json!({
        "podRef": { "name": pod.pod.name, "namespace": pod.pod.namespace, "uid": pod.pod.uid },
        "startTime": time(pod.created),
        "containers": containers,
        "cpu": cpu(&at, rate, cpu_ns),
        "memory": memory_stats(&at, memory),
    })
}

fn cpu(at: &str, nanocores: Option<u64>, cpu_ns: u64) -> Value {
    let mut stats = json!({ "time": at, "usageCoreNanoSeconds": cpu_ns });
    if let Some(nanocores) = nanocores {
        stats["usageNanoCores"] = nanocores.into();
    }
    stats
}

fn memory_stats(at: &str, (usage, working_set, rss): (u64, u64, u64)) -> Value {
    json!({ "time": at, "usageBytes": usage, "workingSetBytes": working_set, "rssBytes": rss })
}

fn filesystem(path: &std::path::Path, at: &str) -> Value {
    match statvfs(path) {
        Ok(stat) => {
            let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
            json!({
                "time": at,
                "availableBytes": bytes(stat.blocks_available()),
                "capacityBytes": bytes(stat.blocks()),
                "usedBytes": bytes(stat.blocks().saturating_sub(stat.blocks_free())),
                "inodesFree": stat.files_free(),
                "inodes": stat.files(),
                "inodesUsed": stat.files().saturating_sub(stat.files_free()),
            })
        }
        Err(_) => json!({ "time": at }),
    }
}

fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn node_figures() {
        let stat = "cpu  10 20 30 1000 2000 1 2 3 99 99\ncpu0 1 1 1\n";
        let meminfo = "MemTotal: 100 kB\nMemFree: 40 kB\nMemAvailable: 60 kB\n";
        let expected = NodeUsage {
            cpu_ns: 66 * 10_000_000,
            memory_total: 102_400,
            memory_free: 40_960,
            memory_available: 61_440,
        };
        assert_eq!(node_usage(stat, meminfo), expected);
        assert_eq!(node_usage("", ""), NodeUsage::default());
    }

    #[test]
    fn rates_need_two_samples() {
        let sampler = Sampler::default();
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(sampler.rate("a", at(0), 0), None);
        assert_eq!(sampler.rate("a", at(50), 1), None);
        assert_eq!(sampler.rate("a", at(2000), 1_000_000_000), Some(500_000_000));
        sampler.keep(&[]);
        assert_eq!(sampler.rate("a", at(3000), 2_000_000_000), None);
    }
}
