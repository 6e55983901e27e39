//! keelson-controllers: the loops that bring the cluster to the state that its objects describe.
//!
//! Each controller is a module with one function `start(&Context) -> Task`: it registers its handlers with the
//! shared informers and returns the future that does its work. They know the API through [`kube::Client`] alone, and
//! each acts as its own user, as upstream's do with `--use-service-account-credentials`.

pub mod backoff;
pub mod certificates;
pub mod config;
pub mod context;
pub mod cronjob;
pub mod daemon;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod error;
pub mod expectations;
pub mod garbagecollector;
pub mod hash;
pub mod history;
pub mod informers;
pub mod job;
pub mod namespace;
pub mod node;
pub mod owners;
pub mod percent;
pub mod pod_control;
pub mod podgc;
pub mod ranking;
pub mod replicaset;
pub mod report;
pub mod resourcequota;
pub mod root_ca;
pub mod serviceaccount;
pub mod statefulset;
pub mod template;
pub mod token_cleaner;
pub mod ttl_after_finished;

pub use config::{ClientFactory, ControllersConfig, SigningConfig};
pub use error::Error;

use context::{Context, Task};
use keelson_client::run_as_leader;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A controller: its name, and how to start it.
type Row = (&'static str, fn(&Context) -> Task);

/// Every controller, by upstream's names where upstream has it.
const CONTROLLERS: &[Row] = &[
    ("deployment-controller", deployment::start),
    ("daemonset-controller", daemon::start),
    ("replicaset-controller", replicaset::start_replica_sets),
    ("replicationcontroller-controller", replicaset::start_replication_controllers),
    ("disruption-controller", disruption::start),
    ("statefulset-controller", statefulset::start),
    ("job-controller", job::start),
    ("cronjob-controller", cronjob::start),
    ("ttl-after-finished-controller", ttl_after_finished::start),
    ("endpointslice-controller", endpointslice::start),
    ("endpoints-controller", endpoints::start),
    ("endpointslice-mirroring-controller", endpointslice::mirroring::start),
    ("namespace-controller", namespace::start),
    ("garbage-collector-controller", garbagecollector::start),
    ("serviceaccount-controller", serviceaccount::start),
    ("root-ca-certificate-publisher-controller", root_ca::start),
    ("node-lifecycle-controller", node::lifecycle::start),
    ("taint-eviction-controller", node::taint_eviction::start),
    ("node-ipam-controller", node::ipam::start),
    ("certificatesigningrequest-approving-controller", certificates::approver::start),
    ("certificatesigningrequest-signing-controller", certificates::signer::start),
    ("certificatesigningrequest-cleaner-controller", certificates::cleaner::start),
    ("token-cleaner-controller", token_cleaner::start),
    ("pod-garbage-collector-controller", podgc::start),
    ("resourcequota-controller", resourcequota::start),
];

/// Runs all controllers until `shutdown`. With leader election they run while this process leads, and it takes
/// part in the next election when it has lost one.
pub async fn run(clients: ClientFactory, config: ControllersConfig, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match config.leader_election.clone() {
            None => run_term(&clients, &config, shutdown.clone()).await,
            Some(lease) => {
                let client = clients.for_user(config::MANAGER);
                let term = |term| run_term(&clients, &config, term);
                if let Err(error) = run_as_leader(client, lease, shutdown.clone(), term).await {
                    tracing::warn!(%error, "the controllers stopped leading");
                }
            }
        }
    }
}

/// Runs every controller until `shutdown`. Handlers are registered before the informers run, so none misses an
/// object.
async fn run_term(clients: &ClientFactory, config: &ControllersConfig, shutdown: CancellationToken) {
    let context = Context::new(clients.clone(), config.clone(), shutdown.clone());
    let mut tasks = JoinSet::new();
    for (name, start) in CONTROLLERS {
        if !config.disabled.iter().any(|disabled| disabled == name) {
            tasks.spawn(start(&context));
        }
    }
    context.informers.spawn(&mut tasks, clients.for_user(config::MANAGER), shutdown.clone());
    shutdown.cancelled().await;
    // Workers finish the item they are at, within the queue's own limit.
    while tasks.join_next().await.is_some() {}
}
