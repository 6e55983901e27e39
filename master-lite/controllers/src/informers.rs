//! The caches that all controllers share: one watch a kind, whoever reads it.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota,
    Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keelson_client::{Informer, trim};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// One cache a kind. Some hold a part only, as said.
#[derive(Default)]
pub struct Informers {
    /// All pods, without what no controller reads ([`trim::pod`]).
    pub pods: Arc<Informer<Pod>>,
    /// All nodes.
    pub nodes: Arc<Informer<Node>>,
    /// All namespaces.
    pub namespaces: Arc<Informer<Namespace>>,
    /// All services.
    pub services: Arc<Informer<Service>>,
    /// All legacy Endpoints.
    pub endpoints: Arc<Informer<Endpoints>>,
    /// All endpoint slices.
    pub endpoint_slices: Arc<Informer<EndpointSlice>>,
    /// All deployments.
    pub deployments: Arc<Informer<Deployment>>,
    /// All replica sets.
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    /// All daemon sets.
    pub daemon_sets: Arc<Informer<DaemonSet>>,
    /// All controller revisions.
    pub revisions: Arc<Informer<ControllerRevision>>,
    /// All stateful sets.
    pub stateful_sets: Arc<Informer<StatefulSet>>,
    /// All claims of volumes.
    pub claims: Arc<Informer<PersistentVolumeClaim>>,
    /// All disruption budgets.
    pub budgets: Arc<Informer<PodDisruptionBudget>>,
    /// All cron jobs.
    pub cron_jobs: Arc<Informer<CronJob>>,
    /// All jobs.
    pub jobs: Arc<Informer<Job>>,
    /// All replication controllers.
    pub replication_controllers: Arc<Informer<ReplicationController>>,
    /// All quotas.
    pub resource_quotas: Arc<Informer<ResourceQuota>>,
    /// All service accounts.
    pub service_accounts: Arc<Informer<ServiceAccount>>,
    /// The `kube-root-ca.crt` of each namespace, no other ConfigMap.
    pub root_cas: Arc<Informer<ConfigMap>>,
    /// Bootstrap tokens, no other Secret.
    pub bootstrap_tokens: Arc<Informer<Secret>>,
    /// The nodes' leases, no other.
    pub node_leases: Arc<Informer<Lease>>,
    /// All certificate signing requests.
    pub csrs: Arc<Informer<CertificateSigningRequest>>,
}

impl Informers {
    /// Empty caches.
    pub fn new() -> Self {
        Self { pods: Informer::with_trim(trim::pod), ..Self::default() }
    }

    /// Starts every watch.
    pub fn spawn(&self, tasks: &mut JoinSet<()>, client: Client, shutdown: CancellationToken) {
        let mut watch = Watch { tasks, client, shutdown };
        watch.all(&self.pods);
        watch.all(&self.nodes);
        watch.all(&self.namespaces);
        watch.all(&self.services);
        watch.all(&self.endpoints);
        watch.all(&self.endpoint_slices);
        watch.all(&self.deployments);
        watch.all(&self.replica_sets);
        watch.all(&self.daemon_sets);
        watch.all(&self.revisions);
        watch.all(&self.stateful_sets);
        watch.all(&self.claims);
        watch.all(&self.budgets);
        watch.all(&self.cron_jobs);
        watch.all(&self.jobs);
        watch.all(&self.replication_controllers);
        watch.all(&self.resource_quotas);
        watch.all(&self.service_accounts);
        watch.all(&self.csrs);
        watch.some(&self.root_cas, Api::all, "metadata.name=kube-root-ca.crt");
        watch.some(
            &self.bootstrap_tokens,
            |client| Api::namespaced(client, "kube-system"),
            "type=bootstrap.kubernetes.io/token",
        );
        watch.some(&self.node_leases, |client| Api::namespaced(client, "kube-node-lease"), "");
    }
}

struct Watch<'a> {
    tasks: &'a mut JoinSet<()>,
    client: Client,
    shutdown: CancellationToken,
}

impl Watch<'_> {
    fn all<K>(&mut self, informer: &Arc<Informer<K>>)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.some(informer, Api::all, "");
    }

    fn some<K>(&mut self, informer: &Arc<Informer<K>>, api: impl FnOnce(Client) -> Api<K>, fields: &str)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut config = watcher::Config::default().any_semantic();
        if !fields.is_empty() {
            config = config.fields(fields);
        }
        let api = api(self.client.clone());
        self.tasks.spawn(informer.clone().run(api, config, self.shutdown.clone()));
    }
}
