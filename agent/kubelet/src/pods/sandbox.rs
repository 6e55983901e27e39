//! A pod as the runtime wants its sandbox. Source: upstream `pkg/kubelet/kuberuntime/kuberuntime_sandbox.go`.

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::{
    DnsConfig, LinuxResources, NamespaceMode, NamespaceOptions, PodSandboxConfig, PodSandboxMetadata,
    PortMapping,
};

use super::container_config::identity_labels;
use super::context::Context;
use super::dns;
use super::hosts::host_name;
use super::podext::{PodExt, is_sidecar};
use super::resources::{cgroup_parent, pod_resources};

/// Resolver configuration of a pod, with warnings for events.
pub fn dns_of(ctx: &Context, pod: &Pod) -> (DnsConfig, Vec<(&'static str, String)>) {
    // A node without the file has no resolver of its own: an empty one.
    let host = std::fs::read_to_string(&ctx.config.resolv_conf).unwrap_or_default();
    dns::pod_dns(pod, &dns::parse(&host), &ctx.config.cluster_dns, &ctx.config.cluster_domain)
}

/// Makes it. The error is the message of `FailedCreatePodSandBox`.
pub fn sandbox_config(ctx: &Context, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, String> {
    let spec = PodExt::spec(pod);
    let hostname = host_name(pod, &ctx.config.cluster_domain)?.hostname;
    let mode = |host: bool| if host { NamespaceMode::Node } else { NamespaceMode::Pod };
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(identity_labels(pod));
    let security = spec.security_context.as_ref();
    let sysctls = security.and_then(|s| s.sysctls.as_ref()).into_iter().flatten();
    Ok(PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: PodExt::name(pod).to_owned(),
            namespace: PodExt::namespace(pod).to_owned(),
            uid: PodExt::uid(pod).to_owned(),
            attempt,
        },
        hostname: if pod.host_network() { String::new() } else { hostname },
        log_directory: ctx.log_dir(PodExt::namespace(pod), PodExt::name(pod), PodExt::uid(pod)),
        dns: Some(dns_of(ctx, pod).0),
        port_mappings: port_mappings(pod)?,
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        cgroup_parent: cgroup_parent(&ctx.config.cgroup_parent, pod),
        resources: LinuxResources { pids_limit: ctx.config.pod_pids_limit, ..pod_resources(pod) },
        namespaces: NamespaceOptions {
            network: mode(pod.host_network()),
            pid: pid_mode(pod),
            ipc: mode(spec.host_ipc == Some(true)),
            user_namespace: None,
        },
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
        fs_group: security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok()),
    })
}

/// Whose PID namespace the pod's containers are in.
pub fn pid_mode(pod: &Pod) -> NamespaceMode {
    let spec = PodExt::spec(pod);
    match (spec.host_pid == Some(true), spec.share_process_namespace == Some(true)) {
        (true, _) => NamespaceMode::Node,
        (false, true) => NamespaceMode::Pod,
        (false, false) => NamespaceMode::Container,
    }
}

fn port_mappings(pod: &Pod) -> Result<Vec<PortMapping>, String> {
    // The ports of a pod in the node's network are the node's own.
    if pod.host_network() {
        return Ok(Vec::new());
    }
    let sidecars = pod.init_containers().iter().filter(|c| is_sidecar(c));
    let ports = PodExt::spec(pod).containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let mut out = Vec::new();
    for port in ports {
        let number = |n: i32| u16::try_from(n).map_err(|_out_of_range| format!("port {n} is out of range"));
        let host_port = port.host_port.map(number).transpose()?.unwrap_or(0);
        if host_port == 0 {
            continue;
        }
        let host_ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "0.0.0.0" && *ip != "::");
        out.push(PortMapping {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            container_port: number(port.container_port)?,
            host_port,
            host_ip: host_ip.map(|ip| ip.parse().map_err(|e| format!("hostIP {ip:?}: {e}"))).transpose()?,
        });
    }
    Ok(out)
}
