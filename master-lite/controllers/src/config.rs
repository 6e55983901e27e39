//! What the controllers are given: clients and settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use keelson_client::LeaderConfig;

/// The user that reads for all controllers, and that holds the lease.
pub const MANAGER: &str = "system:kube-controller-manager";

/// Makes a client that acts as a given user.
#[derive(Clone)]
pub struct ClientFactory(Arc<dyn Fn(&str) -> kube::Client + Send + Sync>);

impl ClientFactory {
    /// `make` is called with a user's name, such as `system:serviceaccount:kube-system:deployment-controller`.
    pub fn new(make: impl Fn(&str) -> kube::Client + Send + Sync + 'static) -> Self {
        ClientFactory(Arc::new(make))
    }

    /// A client that acts as `user`.
    pub fn for_user(&self, user: &str) -> kube::Client {
        (self.0)(user)
    }

    /// A client that acts as the service account `name` in kube-system.
    pub fn for_controller(&self, name: &str) -> kube::Client {
        self.for_user(&format!("system:serviceaccount:kube-system:{name}"))
    }
}

impl fmt::Debug for ClientFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientFactory")
    }
}

/// The cluster's certificate authority, for the signing controller.
#[derive(Clone)]
pub struct SigningConfig {
    /// The CA's certificate in PEM.
    pub ca_certificate: String,
    /// The CA's key in PEM (PKCS #8).
    pub ca_key: String,
    /// Longest validity, and the one given when a request names none (upstream: one year).
    pub max_validity: Duration,
}

impl fmt::Debug for SigningConfig {
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningConfig").field("max_validity", &self.max_validity).finish_non_exhaustive()
    }
}

/// Settings of the controllers.
#[derive(Debug, Clone)]
pub struct ControllersConfig {
    /// Be elected first; `None` when there is but one master.
    pub leader_election: Option<LeaderConfig>,
    /// Controllers that shall not run, by name.
    pub disabled: Vec<String>,
    /// What verifies the API server: content of the `kube-root-ca.crt` ConfigMaps, in PEM. Empty: none are made.
    pub root_ca: String,
    /// With what certificates are signed; `None`: none are.
    pub signing: Option<SigningConfig>,
    /// The network of all pods; `None`: nodes get no pod CIDR from us.
    pub cluster_cidr: Option<IpNet>,
    /// Prefix length of a node's part of it.
    pub node_cidr_mask: u8,
    /// How long a node may be silent before it counts as unreachable (upstream: 50 s).
    pub node_monitor_grace_period: Duration,
    /// How often silent nodes are looked for (upstream: 5 s).
    pub node_monitor_period: Duration,
    /// Ended pods kept cluster-wide before the oldest are removed (upstream: 12500).
    pub terminated_pod_threshold: usize,
}

impl Default for ControllersConfig {
    fn default() -> Self {
        ControllersConfig {
            leader_election: None,
            disabled: Vec::new(),
            root_ca: String::new(),
            signing: None,
            cluster_cidr: Some(IpNet::V4(Ipv4Net::new_assert([10, 244, 0, 0].into(), 16))),
            node_cidr_mask: 24,
            node_monitor_grace_period: Duration::from_secs(50),
            node_monitor_period: Duration::from_secs(5),
            terminated_pod_threshold: 12_500,
        }
    }
}
