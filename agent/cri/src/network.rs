//! What the runtime needs of a pod network: CNI's operations, as the agent drives them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{PortMapping, Result};

/// One attachment of a sandbox, kept by the runtime so that DEL and CHECK can be repeated after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetworkRequest {
    /// CNI_CONTAINERID: the sandbox id.
    pub sandbox_id: String,
    /// CNI_NETNS: a bind mount of the pod's network namespace, such as `/run/netns/keelson-<id>`. May be gone at DEL.
    pub netns: PathBuf,
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID.
    pub uid: String,
    /// Capability `portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// Pod annotations (bandwidth: `kubernetes.io/ingress-bandwidth`).
    pub annotations: BTreeMap<String, String>,
}

/// What ADD gave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetworkStatus {
    /// Addresses of eth0, in the order of the result: the first is the primary pod IP.
    pub ips: Vec<IpAddr>,
}

/// The pod network.
#[async_trait::async_trait]
pub trait PodNetwork: Send + Sync {
    /// CNI ADD through the whole plugin chain. On failure the caller calls [`PodNetwork::teardown`].
    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus>;
    /// CNI DEL. Idempotent, works when the namespace is gone.
    async fn teardown(&self, request: &PodNetworkRequest) -> Result<()>;
    /// CNI CHECK.
    async fn check(&self, request: &PodNetworkRequest) -> Result<()>;
    /// CNI GC: only these sandboxes still exist.
    async fn gc(&self, valid_sandbox_ids: &[String]) -> Result<()>;
    /// CNI STATUS and whether a configuration is there at all.
    async fn status(&self) -> std::result::Result<(), String>;
}
