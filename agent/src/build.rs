//! The node's table of contents: every subsystem, in the order in which they stand on each other.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use keelson_cri::{ImageService, PodNetwork, RuntimeService};
use keelson_images::ImageStore;
use keelson_kubelet::certs::{self, CertificateStore, NodeIdentity, ServingCertificate, Template, serving};
use keelson_kubelet::node::{NodeConfig, NodeManager};
use keelson_kubelet::pods::{PodManager, PodManagerConfig};
use keelson_kubelet::server::{self, ApiReviews, Backend};
use keelson_runtime::Runtime;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{ApiConfig, Config};
use crate::host;
use crate::network::{CniNetwork, follow_pod_ranges, keep_routes};

/// How long subsystems may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// A node whose subsystems run.
pub struct Agent {
    tasks: Tasks,
}

/// Makes the node.
pub async fn build(mut config: Config, shutdown: CancellationToken) -> anyhow::Result<Agent> {
    let mut tasks = Tasks::new(shutdown.clone());

    // What is on this machine already, and who this machine is: neither needs the other.
    let (images, identity) = tokio::try_join!(
        async { ImageStore::open(config.images.clone()).await.context("open the image store") },
        async { certs::join(config.join.clone()).await.context("join the cluster") },
    )?;
    let client = identity.client.clone();
    if config.node_ips.is_empty() {
        config.node_ips.push(host::address_towards(&identity.endpoint.cluster_url)?);
    }

    // Pods: network, containers.
    let network: Arc<dyn PodNetwork> = Arc::new(CniNetwork::new(config.network.clone()));
    let runtime =
        Runtime::new(config.runtime.clone(), network, images.clone()).await.context("start the runtime")?;
    let runtime: Arc<dyn RuntimeService> = runtime;
    let listener =
        keelson_images::local::listen(&config.images_socket).context("listen for image imports")?;
    tasks.spawn_endless("image imports", keelson_images::local::serve(listener, images.clone()));
    let images: Arc<dyn ImageService> = images;

    // The Node, and what its object says.
    let node = NodeConfig { addresses: config.node_ips.clone(), ..config.node.clone() };
    let node = NodeManager::new(node, client.clone(), runtime.clone(), images.clone())?;
    tasks.spawn("node", infallible(node.clone().run(shutdown.clone())));
    tasks.spawn_endless("pod ranges", follow_pod_ranges(config.pod_ranges.clone(), node.clone()));
    tasks.spawn_endless("routes", keep_routes(client.clone(), config.routes.clone()));

    // The pods of this node.
    let pods = PodManagerConfig {
        node_ips: config.node_ips.clone(),
        allocatable: node.allocatable(),
        extended_resources: node.extended_resources(),
        memory_capacity: node.machine().memory,
        pid_capacity: keelson_kubelet::node::pid_capacity(),
        // Mounted by the kernel where SELinux is enabled.
        selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists(),
        ..config.pods.clone()
    };
    let pods = PodManager::new(pods, client.clone(), runtime.clone(), images);
    tasks.spawn("pods", infallible(pods.clone().run(shutdown.clone())));

    // What others ask of this node.
    let serving = serving_certificate(&config, client.clone(), &mut tasks)?;
    let authorities = client_authorities(&config.api, &identity)?;
    let reviews = Arc::new(ApiReviews::new(client.clone()));
    let backend = Backend { config: config.api.server.clone(), pods, runtime, reviews };
    let listener = TcpListener::bind(config.api.listen).await;
    let listener = listener.with_context(|| format!("listen on {}", config.api.listen))?;
    tracing::info!(address = %config.api.listen, "kubelet API");
    let token = shutdown.clone();
    tasks.spawn("kubelet API", async move {
        Ok(server::serve(listener, backend, serving, &authorities, token).await?)
    });
    if let Some(address) = config.api.healthz {
        let token = shutdown.clone();
        tasks.spawn("healthz", async move {
            server::serve_healthz(address, token).await.with_context(|| format!("listen on {address}"))
        });
    }

    // What pods ask of this node.
    let (proxy, token) = (config.proxy.clone(), shutdown.clone());
    let proxy = keelson_proxy::run(client.clone(), proxy, token);
    tasks.spawn("proxy", async move { Ok(proxy.await?) });
    tasks.spawn("dns", dns(client, config.dns.clone(), config.dns_worker.clone(), shutdown.clone()));

    tasks.spawn_endless("client certificate", identity.rotate());
    Ok(Agent { tasks })
}

impl Agent {
    /// Runs until `shutdown`; an error when a subsystem ended by itself with one.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let failed = loop {
            tokio::select! {
                () = shutdown.cancelled() => break None,
                ended = self.tasks.next_failed() => match ended {
                    Some(error) => break Some(error),
                    // All ended well: nothing is left to do but wait.
                    None => shutdown.cancelled().await,
                },
            }
        };
        shutdown.cancel();
        let drained =
            tokio::time::timeout(DRAIN, async { while self.tasks.set.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(after = ?DRAIN, "some subsystems did not end in time and are cut");
            self.tasks.set.abort_all();
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Subsystems, by name.
struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: CancellationToken,
}

impl Tasks {
    fn new(shutdown: CancellationToken) -> Self {
        Self { set: JoinSet::new(), shutdown }
    }

    fn spawn(&mut self, name: &'static str, work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.set.spawn(async move { (name, work.await) });
    }

    /// Work that has nothing to save and is cut at the end.
    fn spawn_endless(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.spawn(name, async move {
            tokio::select! {
                () = work => {}
                () = shutdown.cancelled() => {}
            }
            Ok(())
        });
    }

    /// The error of the first subsystem that fails; none when all have ended without one.
    async fn next_failed(&mut self) -> Option<anyhow::Error> {
        while let Some(ended) = self.set.join_next().await {
            match ended {
                Ok((name, Ok(()))) => tracing::debug!(name, "subsystem ended"),
                Ok((name, Err(error))) => return Some(error.context(name)),
                Err(error) => return Some(error.into()),
            }
        }
        None
    }
}

/// Work that can't fail, or deals with its failures itself.
async fn infallible(work: impl Future<Output = ()>) -> anyhow::Result<()> {
    work.await;
    Ok(())
}

/// The certificate of the kubelet's API, kept up by a task.
fn serving_certificate(
    config: &Config,
    client: kube::Client,
    tasks: &mut Tasks,
) -> anyhow::Result<Arc<ServingCertificate>> {
    let shown = Arc::new(ServingCertificate::default());
    let template = Template::serving(&config.node.name, &config.node.hostname, config.node_ips.clone());
    if config.api.rotate_certificate {
        let store = CertificateStore::new(&config.join.cert_dir, "kubelet-server");
        tasks.spawn_endless("serving certificate", serving::maintain(client, template, store, shown.clone()));
    } else {
        shown.set(&serving::self_signed(&template)?)?;
    }
    Ok(shown)
}

/// Whose client certificates are accepted.
fn client_authorities(
    config: &ApiConfig,
    identity: &NodeIdentity,
) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let authorities = match &config.client_ca_file {
        Some(path) => {
            read_certificates(path).with_context(|| format!("--client-ca-file {}", path.display()))?
        }
        None => identity.endpoint.root_cert.iter().flatten().cloned().map(CertificateDer::from).collect(),
    };
    anyhow::ensure!(
        !authorities.is_empty(),
        "the kubeconfig names no certificate authority: give --client-ca-file"
    );
    Ok(authorities)
}

fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?)
}

/// Cluster DNS on its Service addresses, which are put on this host's loopback.
async fn dns(
    client: kube::Client,
    config: keelson_dns::DnsConfig,
    worker: keelson_dns::worker::Place,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    for address in &config.listen {
        keelson_cni::host::add_local_address(address.ip())
            .await
            .with_context(|| format!("take {}", address.ip()))?;
    }
    let changes = || keelson_dns::watch::changes(client.clone());
    Ok(keelson_dns::worker::keep(changes, config, worker, shutdown).await?)
}
