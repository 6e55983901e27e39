//! Prometheus text: `/metrics` and `/metrics/resource`, with upstream's names.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use keelson_cri::{ContainerState, PodSandboxState};

use super::Backend;
use super::stats::Usage;
use crate::node::KUBELET_VERSION;

/// Prometheus' text format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes metric families. Writing to a String can't fail, so results are dropped.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        value: impl std::fmt::Display,
        at: Option<SystemTime>,
    ) {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let at =
            at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| format!(" {}", at.as_millis()));
        let _ = writeln!(self.0, "{name}{labels} {value}{}", at.unwrap_or_default());
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// `/metrics`.
pub(super) async fn kubelet(backend: &Backend) -> String {
    let mut text = Text(String::new());
    text.family("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", &backend.config.node_name)], 1, None);
    text.family("kubernetes_build_info", "gauge", "[BETA] Always 1, labeled by version and platform.");
    let platform = format!("linux/{}", std::env::consts::ARCH);
    text.sample(
        "kubernetes_build_info",
        &[("git_version", KUBELET_VERSION), ("platform", &platform)],
        1,
        None,
    );
    let runtime = &backend.runtime;
    if let Ok(sandboxes) = runtime.list_pod_sandboxes().await {
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == PodSandboxState::Ready).count();
        text.family("kubelet_running_pods", "gauge", "[BETA] Number of pods that have a running pod sandbox");
        text.sample("kubelet_running_pods", &[], ready, None);
    }
    if let Ok(containers) = runtime.list_containers(None).await {
        text.family("kubelet_running_containers", "gauge", "[BETA] Number of containers by state");
        let states = [
            (ContainerState::Created, "created"),
            (ContainerState::Running, "running"),
            (ContainerState::Exited, "exited"),
            (ContainerState::Unknown, "unknown"),
        ];
        for (state, name) in states {
            let count = containers.iter().filter(|container| container.state == state).count();
            text.sample("kubelet_running_containers", &[("container_state", name)], count, None);
        }
    }
    text.0
}

/// `/metrics/resource`, which metrics-server reads.
pub(super) fn resource(usage: &Usage) -> String {
    let mut text = Text(String::new());
    let containers = || {
        usage.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (&pod.pod, container)))
    };
    text.family("container_cpu_usage_seconds_total", "counter", "[STABLE] CPU time used by the container");
    for (pod, container) in containers() {
        let labels = [("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
        let value = seconds(container.usage.cpu_usage_ns);
        text.sample("container_cpu_usage_seconds_total", &labels, value, container.usage.timestamp);
    }
    text.family(
        "container_memory_working_set_bytes",
        "gauge",
        "[STABLE] Working set of the container in bytes",
    );
    for (pod, container) in containers() {
        let labels = [("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
        let value = container.usage.memory_working_set;
        text.sample("container_memory_working_set_bytes", &labels, value, container.usage.timestamp);
    }
    text.family(
        "container_start_time_seconds",
        "gauge",
        "[STABLE] Start time of the container since unix epoch",
    );
    for (pod, container) in containers() {
        let labels = [("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
        if let Some(started) = container.started.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            text.sample("container_start_time_seconds", &labels, started.as_secs_f64(), None);
        }
    }
    let node = &usage.node;
    text.family(
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] CPU time used by the node in core-seconds",
    );
    text.sample("node_cpu_usage_seconds_total", &[], seconds(node.cpu_ns), Some(usage.now));
    text.family("node_memory_working_set_bytes", "gauge", "[STABLE] Working set of the node in bytes");
    let working_set = node.memory_total.saturating_sub(node.memory_available);
    text.sample("node_memory_working_set_bytes", &[], working_set, Some(usage.now));
    text.family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] CPU time used by the pod in core-seconds",
    );
    for pod in &usage.pods {
        let sum: u64 = pod.containers.iter().map(|container| container.usage.cpu_usage_ns).sum();
        let labels = [("namespace", &*pod.pod.namespace), ("pod", &*pod.pod.name)];
        text.sample("pod_cpu_usage_seconds_total", &labels, seconds(sum), Some(usage.now));
    }
    text.family("pod_memory_working_set_bytes", "gauge", "[STABLE] Working set of the pod in bytes");
    for pod in &usage.pods {
        let sum: u64 = pod.containers.iter().map(|container| container.usage.memory_working_set).sum();
        let labels = [("namespace", &*pod.pod.namespace), ("pod", &*pod.pod.name)];
        text.sample("pod_memory_working_set_bytes", &labels, sum, Some(usage.now));
    }
    text.family(
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting metrics, 0 otherwise",
    );
    text.sample("resource_scrape_error", &[], u8::from(usage.failed), None);
    text.0
}

#[expect(clippy::cast_precision_loss, reason = "metrics are f64 by definition")]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_labels_and_times() {
        let mut text = Text(String::new());
        text.sample("m", &[("a", "x\"y")], 1.5, Some(UNIX_EPOCH + std::time::Duration::from_millis(1234)));
        text.sample("n", &[], 2, None);
        assert_eq!(text.0, "m{a=\"x\\\"y\"} 1.5 1234\nn 2\n");
    }
}
