//! The runtime's side of the protocol (specification section 3): runs the chain of plugins that the
//! configuration names, keelson-cni and third-party ones alike.

mod cache;
mod execute;
mod request;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::RwLock;

use crate::error::Error;
use crate::netconf::{self, Loaded, NetworkConfig};
use crate::types::config::PortMapping;
use crate::types::invocation::{Command, Owner};
use crate::types::report::ErrorReport;
use crate::types::result::{AddResult, Dns};
use crate::types::version::Version;
use cache::{Cache, Entry};
use execute::Call;

/// Where a driver finds things and how long it waits.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// Folder of network configurations.
    pub conf_dir: PathBuf,
    /// Folders of plugin executables, searched in order.
    pub bin_dirs: Vec<PathBuf>,
    /// Folder of cached results.
    pub cache_dir: PathBuf,
    /// The longest one plugin may take for one command.
    pub timeout: Duration,
    /// Whether keelson-cni runs within this process instead of being executed.
    pub in_process: bool,
}

impl Default for DriverConfig {
    fn default() -> Self {
        DriverConfig {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into()],
            cache_dir: "/var/lib/cni/cache".into(),
            timeout: Duration::from_secs(60),
            in_process: true,
        }
    }
}

/// Bandwidth limits of the capability `bandwidth`: rates in bits per second, bursts in bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Towards the pod.
    #[serde(default)]
    pub ingress_rate: u64,
    /// Towards the pod.
    #[serde(default)]
    pub ingress_burst: u64,
    /// From the pod.
    #[serde(default)]
    pub egress_rate: u64,
    /// From the pod.
    #[serde(default)]
    pub egress_burst: u64,
}

/// A container to attach: the parameters that stay the same from ADD to DEL.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    /// Sandbox id, unique on the node.
    pub container_id: String,
    /// Path of its network namespace; `None` in a DEL when it is gone.
    pub netns: Option<PathBuf>,
    /// Interface to make, `eth0` by custom.
    pub ifname: String,
    /// CNI_ARGS in order. [`Attachment::for_pod`] fills in Kubernetes' own.
    pub args: Vec<(String, String)>,
    /// Capability `portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// Capability `bandwidth`.
    pub bandwidth: Option<Bandwidth>,
    /// Capability `dns`, given to plugins that declare it.
    pub dns: Option<Dns>,
    /// Capability `cgroupPath`, given to plugins that declare it.
    pub cgroup_path: Option<String>,
}

impl Attachment {
    /// An attachment of a pod's `eth0`, with the CNI_ARGS that Kubernetes' runtimes pass.
    pub fn for_pod(
        container_id: &str,
        netns: Option<PathBuf>,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Self {
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", namespace),
            ("K8S_POD_NAME", name),
            ("K8S_POD_INFRA_CONTAINER_ID", container_id),
            ("K8S_POD_UID", uid),
        ];
        Attachment {
            container_id: container_id.to_owned(),
            netns,
            ifname: "eth0".into(),
            args: args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Attachment::default()
        }
    }
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// No configuration, so no pod network: kubelet's `NetworkPluginNotReady`.
    #[error("no network config found in {conf_dir}: cni plugin not initialized")]
    NotInitialized {
        /// The folder looked in.
        conf_dir: String,
    },
    /// Configuration, parameters or cache are unusable.
    #[error(transparent)]
    Invalid(#[from] Error),
    /// No plugin of the chain can do what the pod asks.
    #[error("no plugin of network {network:?} has the capability {capability:?}")]
    NoCapability {
        /// The network.
        network: String,
        /// The capability of the CNI conventions.
        capability: &'static str,
    },
    /// The executable isn't there.
    #[error("failed to find plugin {plugin:?} in path {path:?}")]
    NotFound {
        /// The plugin's type.
        plugin: String,
        /// The folders searched.
        path: Vec<PathBuf>,
    },
    /// The plugin reported an error.
    #[error("plugin type={plugin:?} failed ({command}): {}", describe(.report))]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// CNI_COMMAND.
        command: &'static str,
        /// What it said.
        report: ErrorReport,
    },
    /// The plugin broke the protocol: no or unreadable output, or a signal.
    #[error("plugin type={plugin:?} ({command}) broke the protocol: {reason}")]
    Protocol {
        /// The plugin's type.
        plugin: String,
        /// CNI_COMMAND.
        command: &'static str,
        /// What was seen, with the start of its output.
        reason: String,
    },
    /// The plugin did not end in time and was killed with all it had started.
    #[error("plugin type={plugin:?} ({command}) was killed after {timeout:?}")]
    TimedOut {
        /// The plugin's type.
        plugin: String,
        /// CNI_COMMAND.
        command: &'static str,
        /// The limit.
        timeout: Duration,
    },
    /// Every plugin was content, yet the pod can't be reached.
    #[error("network {network:?} gives interface {ifname:?} {reason}")]
    Unusable {
        /// The network.
        network: String,
        /// The pod's interface.
        ifname: String,
        /// What it gives.
        reason: String,
    },
    /// Failures of several plugins in GC.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<DriverError>),
}

fn describe(report: &ErrorReport) -> String {
    let (msg, details) =
        (execute::excerpt(report.msg.as_bytes()), execute::excerpt(report.details.as_bytes()));
    if details.is_empty() { msg } else { format!("{msg}: {details}") }
}

/// Addresses of the pod's interface, in the chain's order. A network that gives none, or one that no pod can be reached
/// at, has not attached it.
fn pod_addresses(network: &NetworkConfig, attachment: &Attachment, result: &Value) -> Result<Vec<IpAddr>> {
    let unusable = |reason: String| DriverError::Unusable {
        network: network.name.clone(),
        ifname: attachment.ifname.clone(),
        reason,
    };
    let ips = AddResult::from_json(result)?.container_ips(&attachment.ifname);
    let nobodys = |ip: &&IpAddr| {
        ip.is_unspecified()
            || ip.is_loopback()
            || ip.is_multicast()
            || **ip == IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    match ips.iter().find(nobodys) {
        Some(ip) => Err(unusable(format!("the address {ip}, which no pod can have"))),
        None if ips.is_empty() => Err(unusable("no address".into())),
        None => Ok(ips),
    }
}

/// What ADD gave a pod.
#[derive(Debug, Clone)]
pub struct Attached {
    /// Network that the pod is in.
    pub network: String,
    /// Addresses of the pod's interface, in the chain's order.
    pub ips: Vec<IpAddr>,
    /// The whole result.
    pub result: AddResult,
}

/// Runs plugin chains. Cheap to share; operations on different containers run in parallel, GC alone.
#[derive(Debug)]
pub struct Driver {
    config: DriverConfig,
    cache: Cache,
    /// Shared by ADD, DEL and CHECK, exclusive to GC (specification section 3, "Lifecycle & Ordering").
    gate: RwLock<()>,
    /// "The container runtime must not invoke parallel operations for the same container."
    containers: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

type Result<T, E = DriverError> = std::result::Result<T, E>;

impl Driver {
    /// A driver; nothing is read or run yet.
    pub fn new(config: DriverConfig) -> Driver {
        let cache = Cache::new(config.cache_dir.join("results"));
        Driver { config, cache, gate: RwLock::new(()), containers: Mutex::default() }
    }

    /// The configuration in use.
    pub fn config(&self) -> &DriverConfig {
        &self.config
    }

    /// Attaches a container to the default network. When a plugin fails, the chain's DEL runs before the
    /// error is returned, so that nothing stays behind.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub async fn add(&self, attachment: &Attachment) -> Result<Attached> {
        let _open = self.gate.read().await;
        let own = self.container_lock(&attachment.container_id);
        let _one = own.lock().await;
        let owner = Owner::new(&attachment.container_id, &attachment.ifname)?;
        let loaded = self.load()?;
        require_capabilities(&loaded.network, attachment)?;
        let outcome = self.run_add(&loaded.network, attachment).await;
        let kept = outcome.and_then(|result| {
            let ips = pod_addresses(&loaded.network, attachment, &result)?;
            self.cache.put(&owner, &loaded.network, attachment, &result)?;
            Ok((AddResult::from_json(&result)?, ips))
        });
        let (result, ips) = match kept {
            Ok(kept) => kept,
            Err(error) => {
                if let Err(left) = self.run_del(&loaded.network, attachment, None).await {
                    tracing::warn!(container = attachment.container_id, error = %left, "clean-up after a failed ADD is incomplete");
                }
                return Err(error);
            }
        };
        Ok(Attached { network: loaded.network.name, ips, result })
    }

    async fn run_add(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<Value> {
        let mut previous = None;
        for plugin in &network.plugins {
            let request = request::derive(network, plugin, attachment, previous.as_ref());
            let output = self.call(network, plugin, Command::Add, Some(attachment), request).await?;
            let Some(output) = output else {
                return Err(DriverError::Protocol {
                    plugin: plugin.kind.clone(),
                    command: Command::Add.as_str(),
                    reason: "no result".into(),
                });
            };
            AddResult::from_json(&output).map_err(|error| DriverError::Protocol {
                plugin: plugin.kind.clone(),
                command: Command::Add.as_str(),
                reason: error.to_string(),
            })?;
            previous = Some(output);
        }
        previous.ok_or_else(|| Error::InvalidConfig("network has no plugins".into()).into())
    }

    /// Detaches a container: from every network it was attached to by this driver, or from the default
    /// network when the cache knows nothing. Detaching what isn't attached is success.
    ///
    /// # Errors
    /// See [`DriverError`]. The cached result stays, so that the call can be repeated.
    pub async fn del(&self, attachment: &Attachment) -> Result<()> {
        let _open = self.gate.read().await;
        let own = self.container_lock(&attachment.container_id);
        let _one = own.lock().await;
        let done = self.del_locked(attachment).await;
        self.unlist_container(&attachment.container_id);
        done
    }

    async fn del_locked(&self, attachment: &Attachment) -> Result<()> {
        let owner = Owner::new(&attachment.container_id, &attachment.ifname)?;
        let cached = self.cache.find(&owner)?;
        if cached.is_empty() {
            return match netconf::load_first(&self.config.conf_dir)? {
                Some(loaded) => self.run_del(&loaded.network, attachment, None).await,
                None => Ok(()),
            };
        }
        for entry in cached {
            let restored = entry.restore(attachment);
            self.run_del(&entry.network, &restored, Some(&entry.result)).await?;
            self.cache.remove(&entry)?;
        }
        Ok(())
    }

    async fn run_del(
        &self,
        network: &NetworkConfig,
        attachment: &Attachment,
        result: Option<&Value>,
    ) -> Result<()> {
        // 0.3.x knows no prevResult in DEL.
        let result = result.filter(|_| network.version >= Version::V0_4_0);
        for plugin in network.plugins.iter().rev() {
            let request = request::derive(network, plugin, attachment, result);
            self.call(network, plugin, Command::Del, Some(attachment), request).await?;
        }
        Ok(())
    }

    /// Asks every plugin whether the attachment is as ADD left it. Success when the configuration forbids
    /// the question or is too old for it.
    ///
    /// # Errors
    /// See [`DriverError`]; a container that was never attached is [`DriverError::Invalid`].
    pub async fn check(&self, attachment: &Attachment) -> Result<()> {
        let _open = self.gate.read().await;
        let own = self.container_lock(&attachment.container_id);
        let _one = own.lock().await;
        let owner = Owner::new(&attachment.container_id, &attachment.ifname)?;
        let cached = self.cache.find(&owner)?;
        if cached.is_empty() {
            return Err(Error::CheckFailed(format!("no cached result of {}", owner.container_id)).into());
        }
        for entry in cached {
            if entry.network.disable_check || entry.network.version < Version::V0_4_0 {
                continue;
            }
            let restored = entry.restore(attachment);
            for plugin in &entry.network.plugins {
                let request = request::derive(&entry.network, plugin, &restored, Some(&entry.result));
                self.call(&entry.network, plugin, Command::Check, Some(&restored), request).await?;
            }
        }
        Ok(())
    }

    /// Detaches every cached attachment that is not among `valid`, then has the plugins of the default
    /// network remove what belongs to none. Goes on past failures.
    ///
    /// # Errors
    /// All failures, gathered.
    pub async fn gc(&self, valid: &[Owner]) -> Result<()> {
        let _alone = self.gate.write().await;
        let mut errors = Vec::new();
        self.cache.remove_unfinished()?;
        for entry in self.cache.all()? {
            if valid.contains(&entry.owner) {
                continue;
            }
            let restored = entry.restore(&Attachment::default());
            match self.run_del(&entry.network, &restored, Some(&entry.result)).await {
                Ok(()) => self.cache.remove(&entry)?,
                Err(error) => errors.push(error),
            }
        }
        if let Some(loaded) = netconf::load_first(&self.config.conf_dir)? {
            let network = &loaded.network;
            if !network.disable_gc && network.version >= Version::V1_1_0 {
                for plugin in &network.plugins {
                    let request = request::derive_gc(network, plugin, valid);
                    errors.extend(self.call(network, plugin, Command::Gc, None, request).await.err());
                }
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(DriverError::Several(errors)),
        }
    }

    /// Whether pods can be attached: a configuration is there, its executables exist and, from 1.1.0 on,
    /// every plugin says so.
    ///
    /// # Errors
    /// Why not; [`DriverError::NotInitialized`] without a configuration.
    pub async fn status(&self) -> Result<()> {
        let loaded = self.load()?;
        for plugin in &loaded.network.plugins {
            if loaded.network.version >= Version::V1_1_0 {
                let request = request::derive_plain(&loaded.network, plugin);
                self.call(&loaded.network, plugin, Command::Status, None, request).await?;
            } else if !self.runs_in_process(plugin) {
                execute::find(&plugin.kind, &self.config.bin_dirs)?;
            }
        }
        Ok(())
    }

    /// Attachments that the cache knows of.
    ///
    /// # Errors
    /// I/O errors.
    pub fn attachments(&self) -> Result<Vec<Owner>> {
        Ok(self.cache.all()?.into_iter().map(|entry: Entry| entry.owner).collect())
    }

    fn load(&self) -> Result<Loaded> {
        netconf::load_first(&self.config.conf_dir)?.ok_or_else(|| DriverError::NotInitialized {
            conf_dir: self.config.conf_dir.display().to_string(),
        })
    }

    fn runs_in_process(&self, plugin: &netconf::PluginConfig) -> bool {
        self.config.in_process && plugin.kind == crate::plugin::PLUGIN_TYPE
    }

    async fn call(
        &self,
        network: &NetworkConfig,
        plugin: &netconf::PluginConfig,
        command: Command,
        attachment: Option<&Attachment>,
        request: Value,
    ) -> Result<Option<Value>> {
        let call = Call {
            plugin: plugin.kind.clone(),
            command,
            env: request::environment(command, attachment, &self.config.bin_dirs),
            stdin: request.to_string().into_bytes(),
            timeout: self.config.timeout,
        };
        tracing::debug!(
            network = network.name,
            plugin = call.plugin,
            command = command.as_str(),
            "calling plugin"
        );
        if self.runs_in_process(plugin) {
            execute::in_process(call).await
        } else {
            let program = execute::find(&plugin.kind, &self.config.bin_dirs)?;
            execute::program(&program, call).await
        }
    }

    /// Forgets a container's lock, unless another operation waits for it: the map's reference and the
    /// caller's are two.
    fn unlist_container(&self, container_id: &str) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.get(container_id).is_some_and(|lock| Arc::strong_count(lock) <= 2) {
            containers.remove(container_id);
        }
    }

    fn container_lock(&self, container_id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(containers.entry(container_id.to_owned()).or_default())
    }
}

/// What a pod asks for must be done by some plugin: libcni drops it silently, which a user can't see.
fn require_capabilities(network: &NetworkConfig, attachment: &Attachment) -> Result<()> {
    let needed = [
        ("portMappings", !attachment.port_mappings.is_empty()),
        ("bandwidth", attachment.bandwidth.is_some()),
    ];
    for (capability, _) in needed.into_iter().filter(|(_, asked)| *asked) {
        if !network.plugins.iter().any(|plugin| plugin.has_capability(capability)) {
            return Err(DriverError::NoCapability { network: network.name.clone(), capability });
        }
    }
    Ok(())
}
