//! A container of the API as the runtime wants it. Source: upstream `generateContainerConfig` in
//! `pkg/kubelet/kuberuntime/kuberuntime_container.go` and `GenerateRunContainerOptions` in
//! `pkg/kubelet/kubelet_pods.go`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_cri::{
    ContainerConfig, Image, Mount, MountPropagation, NamespaceMode, PodSandboxStatus, SecurityContext,
};

use super::actions::{HASH_ANNOTATION, container_hash};
use super::context::Context;
use super::hosts::{host_name, hosts_file};
use super::observed::ObservedPod;
use super::podext::PodExt;
use super::resources::container_resources;
use super::sandbox::pid_mode;
use super::security::security_context;
use super::start::pod_grace;
use super::stop::GRACE_ANNOTATION;
use super::termination::{self, PATH_ANNOTATION, POLICY_ANNOTATION};
use crate::env::build::{Sources, build};
use crate::env::expansion::{expand, expand_strict};
use crate::env::services;
use crate::objects::ObjectView;
use crate::volumes::setup::{ImageVolumes, VolumeContext, mounts};
use crate::volumes::token::PodTokens;

/// How long a start waits for the first list of Services.
const SERVICES_WAIT: Duration = Duration::from_secs(10);

/// What a configuration is made from.
pub struct ConfigInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// `restartCount`.
    pub attempt: u32,
    /// Its image.
    pub image: &'a Image,
    /// Those of its volumes.
    pub image_volumes: &'a ImageVolumes,
    /// The ready sandbox.
    pub sandbox: &'a PodSandboxStatus,
    /// ConfigMaps and Secrets.
    pub objects: &'a ObjectView,
    /// Tokens.
    pub tokens: &'a PodTokens,
    /// What the runtime has of the pod.
    pub observed: &'a ObservedPod,
}

/// Labels that every sandbox and container carries.
pub fn identity_labels(pod: &Pod) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("io.kubernetes.pod.name".to_owned(), PodExt::name(pod).to_owned()),
        ("io.kubernetes.pod.namespace".to_owned(), PodExt::namespace(pod).to_owned()),
        ("io.kubernetes.pod.uid".to_owned(), PodExt::uid(pod).to_owned()),
    ])
}

/// Makes it, with texts about variable names that were skipped. The error is the message of
/// `CreateContainerConfigError`.
pub async fn container_config(
    ctx: &Context,
    input: &ConfigInput<'_>,
) -> Result<(ContainerConfig, Vec<String>), String> {
    let (pod, container) = (input.pod, input.container);
    let target_id = target_id(pod, container, input.observed)?;
    let security = security_context(pod, container, input.image, &ctx.config.root_dir.join("seccomp"))?;
    let security = SecurityContext { target_id, ..security };
    let ready = tokio::time::timeout(SERVICES_WAIT, ctx.services.wait_until_ready()).await;
    if !matches!(ready, Ok(Ok(()))) {
        return Err("services have not yet been read at least once, cannot construct envvars".into());
    }
    let all = ctx.services.state();
    let links = PodExt::spec(pod).enable_service_links.unwrap_or(true);
    let visible = services::visible(all.iter().map(|s| &**s), PodExt::namespace(pod), links);
    let service_vars = services::variables(visible);
    let addresses = ctx.addresses(pod, &input.sandbox.ips);
    let sources = Sources {
        objects: input.objects,
        services: &service_vars,
        addresses: &addresses,
        allocatable: &ctx.config.allocatable,
    };
    let env = build(pod, container, &sources)?;
    let values: HashMap<&str, &str> = env.variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let lookup = |name: &str| values.get(name).map(|v| (*v).to_owned());
    let expand_all = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| expand(word, lookup)).collect()
    };
    let pod_dir = ctx.pod_dir(PodExt::uid(pod));
    let volume_context = VolumeContext {
        pod,
        pod_dir: &pod_dir,
        objects: input.objects,
        addresses: &addresses,
        allocatable: &ctx.config.allocatable,
        tokens: input.tokens,
        mounter: &*ctx.mounter,
    };
    let mut all_mounts = managed_mounts(ctx, input, &pod_dir, &addresses.pod_ips)?;
    let own = mounts(&volume_context, container, input.image_volumes, &|text| expand_strict(text, lookup))
        .map_err(|e| format!("failed to prepare volume mounts of container {:?}: {e}", container.name))?;
    // The author's own mount of a path wins over ours.
    all_mounts.retain(|m| own.iter().all(|o| o.container_path != m.container_path));
    all_mounts.extend(own);
    let mut labels = identity_labels(pod);
    labels.insert("io.kubernetes.container.name".into(), container.name.clone());
    let config = ContainerConfig {
        name: container.name.clone(),
        attempt: input.attempt,
        image: input.image.id.clone(),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: all_mounts,
        labels,
        annotations: annotations(pod, container, input.attempt),
        log_path: PathBuf::from(&container.name).join(format!("{}.log", input.attempt)),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        resources: container_resources(pod, container, ctx.config.memory_capacity),
        security,
        stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        envs: env.variables,
    };
    Ok((config, env.skipped))
}

/// The container whose PID namespace an ephemeral one joins (`targetContainerName`). As with upstream it must be known in
/// any case, and says no more than that in a pod whose containers share one PID namespace.
fn target_id(pod: &Pod, container: &Container, observed: &ObservedPod) -> Result<Option<String>, String> {
    let ephemeral = pod.ephemeral_containers().iter().find(|e| e.name == container.name);
    let target = ephemeral.and_then(|e| e.target_container_name.as_deref()).filter(|name| !name.is_empty());
    let Some(name) = target else { return Ok(None) };
    let found = observed.container(name).ok_or_else(|| format!("unable to find target container {name}"))?;
    Ok((pid_mode(pod) == NamespaceMode::Container).then(|| found.id.clone()))
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> BTreeMap<String, String> {
    let path = container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".into());
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    BTreeMap::from([
        (HASH_ANNOTATION.to_owned(), container_hash(container)),
        ("io.kubernetes.container.restartCount".to_owned(), attempt.to_string()),
        (PATH_ANNOTATION.to_owned(), path),
        (POLICY_ANNOTATION.to_owned(), policy),
        (GRACE_ANNOTATION.to_owned(), pod_grace(pod).as_secs().to_string()),
        // What the container was asked to run, as `status.image` shows it.
        ("io.kubernetes.container.image".to_owned(), container.image.clone().unwrap_or_default()),
    ])
}

/// Files that the kubelet keeps for a container: /etc/hosts, /etc/hostname, /etc/resolv.conf, termination log.
fn managed_mounts(
    ctx: &Context,
    input: &ConfigInput<'_>,
    pod_dir: &Path,
    pod_ips: &[std::net::IpAddr],
) -> Result<Vec<Mount>, String> {
    let (pod, container) = (input.pod, input.container);
    let mount = |container_path: &str, host_path: PathBuf| Mount {
        container_path: container_path.into(),
        host_path,
        image: None,
        readonly: container
            .security_context
            .as_ref()
            .is_some_and(|s| s.read_only_root_filesystem == Some(true))
            && container_path.starts_with("/etc/"),
        recursive_read_only: false,
        propagation: MountPropagation::Private,
    };
    let mut out = Vec::new();
    let name = host_name(pod, &ctx.config.cluster_domain)?;
    let node_hosts = if pod.host_network() {
        std::fs::read_to_string(&ctx.config.etc_hosts).unwrap_or_default()
    } else {
        String::new()
    };
    let hosts = pod_dir.join("etc-hosts");
    write_file(&hosts, &hosts_file(pod, &name, pod_ips, &node_hosts), 0o644)?;
    out.push(mount("/etc/hosts", hosts));
    if !pod.host_network() {
        let hostname = pod_dir.join("hostname");
        write_file(&hostname, &format!("{}\n", name.hostname), 0o644)?;
        out.push(mount("/etc/hostname", hostname));
    }
    let resolv = pod_dir.join("resolv.conf");
    let (dns, _) = super::sandbox::dns_of(ctx, pod);
    write_file(&resolv, &super::dns::render(&dns), 0o644)?;
    out.push(mount("/etc/resolv.conf", resolv));
    let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !path.is_empty() {
        let file = termination::file(pod_dir, &container.name, input.attempt);
        // Any user of the container may write its last words.
        write_file(&file, "", 0o666)?;
        let mut log = mount(path, file);
        log.readonly = false;
        out.push(log);
    }
    Ok(out)
}

/// Writes a file in place when its content differs, so that mounts of it stay valid.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |e: std::io::Error| format!("writing {}: {e}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    if std::fs::read_to_string(path).ok().as_deref() != Some(text) {
        std::fs::write(path, text).map_err(fail)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(fail)
}
