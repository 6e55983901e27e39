//! Putting the server together, and serving it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt as _;
use keelson_api::meta::GroupResource;
use keelson_api::resources::ResourceTable;
use keelson_store::{EmbeddedStore, Options, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::aggregator::{self, Aggregator};
use crate::allocate::Allocators;
use crate::auth::{self, AuthConfig, AuthError};
use crate::cache::WatchCache;
use crate::core::{Core, LateCore, PathHandler};
use crate::extension::{Body, BoxError, Extensions, InProcessUser, ServerHandles, UserInfo};
use crate::in_flight::InFlight;
use crate::metrics::Metrics;
use crate::serve::Timeouts;
use crate::{bootstrap, definitions, handlers, serve};

/// Where objects are kept.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// The embedded engine in this file.
    Embedded(PathBuf),
}

/// Settings of [`Server::build`].
pub struct Config {
    /// Where objects are kept.
    pub store: StoreConfig,
    /// Network of cluster IPs; its first address is the `kubernetes` Service's, its tenth kube-dns's.
    pub service_cidr: ipnet::Ipv4Net,
    /// Address at which nodes and pods reach this server.
    pub advertise_address: std::net::IpAddr,
    /// Port of the same.
    pub advertise_port: u16,
    /// Addresses to bind.
    pub listen: Vec<SocketAddr>,
    /// Sockets that are bound already (LISTEN_FDS).
    pub listeners: Vec<std::net::TcpListener>,
    /// Authentication, keys and certificates.
    pub auth: AuthConfig,
}

/// Why a server couldn't be built or served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store.
    #[error("opening the store")]
    Store(#[from] StoreError),
    /// Keys, certificates, tokens.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The built-in namespaces, Services or roles.
    #[error("making the objects that every cluster has")]
    Bootstrap(#[source] BoxError),
    /// A socket.
    #[error("listening on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Certificates for the socket.
    #[error(transparent)]
    Tls(#[from] crate::pki::PkiError),
}

/// A built server: it answers clients in this process at once and the network once [`Server::serve`] runs.
#[derive(Clone)]
pub struct Server {
    core: Arc<Core>,
}

impl Server {
    /// Opens the store, fills the watch cache, plugs authentication in, and makes the objects that every cluster
    /// has. Returns what [`Server::serve`] needs besides.
    pub async fn build(config: Config) -> Result<(Self, Serving), ServerError> {
        let StoreConfig::Embedded(path) = &config.store;
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(Options::new(path)).await?);
        let tls = config.auth.pki.server_tls()?;
        let parts = Parts::start(store).await?;
        let stack = auth::build(&config.auth, &parts.handles())?;
        let documents = stack.openid.clone();
        let paths: Vec<PathHandler> = vec![Arc::new(move |path: &str| documents.respond(path))];
        let server = parts.finish(stack.extensions(), config.service_cidr, paths);
        bootstrap::namespaces(&server.admin_client()).await.map_err(ServerError::Bootstrap)?;
        crate::authz::reconcile::reconcile_policy(&server.admin_client())
            .await
            .map_err(|error| ServerError::Bootstrap(error.into()))?;
        let pki = &config.auth.pki;
        let cluster = bootstrap::Cluster {
            client_ca: pki.ca_certificate_pem().to_owned(),
            front_proxy_ca: pki.front_proxy_ca_pem().to_owned(),
            advertise_address: config.advertise_address,
            advertise_port: config.advertise_port,
            service_cidr: config.service_cidr,
        };
        let client = server.admin_client();
        bootstrap::services(&client, &cluster).await.map_err(ServerError::Bootstrap)?;
        bootstrap::service_cidr(&client, &cluster).await.map_err(ServerError::Bootstrap)?;
        bootstrap::priorities(&client).await.map_err(ServerError::Bootstrap)?;
        bootstrap::authentication(&client, &cluster).await.map_err(ServerError::Bootstrap)?;
        // It ends with the server.
        tokio::spawn(aggregator::keep(Arc::downgrade(&server.core)));
        let serving = Serving {
            listen: config.listen,
            listeners: config.listeners,
            tls: Arc::new(tls),
            timeouts: Timeouts::default(),
            cluster,
        };
        Ok((server, serving))
    }
}

/// What is there before the extensions are.
struct Parts {
    store: Arc<dyn Store>,
    table: ResourceTable,
    cache: Arc<WatchCache>,
    cache_task: tokio::task::JoinHandle<()>,
    core: LateCore,
}

impl Parts {
    async fn start(store: Arc<dyn Store>) -> Result<Self, ServerError> {
        let table = definitions::stored_table(&*store).await?;
        let (cache, cache_task) = WatchCache::start(store.clone(), &table).await?;
        Ok(Self { store, table, cache, cache_task, core: LateCore::default() })
    }

    fn handles(&self) -> ServerHandles {
        ServerHandles { reader: self.cache.clone(), core: self.core.clone() }
    }

    fn finish(self, extensions: Extensions, service_cidr: ipnet::Ipv4Net, paths: Vec<PathHandler>) -> Server {
        let allocators = Allocators::new(service_cidr);
        if let Some(services) = self.cache.resource(&GroupResource::new("", "services")) {
            let stored: Vec<_> = services.snapshot(None).iter().map(|s| s.parse()).collect();
            allocators.restore(stored.iter());
        }
        let core = Core {
            store: self.store,
            cache: self.cache,
            table: parking_lot::RwLock::new(Arc::new(self.table)),
            extensions,
            allocators,
            aggregator: Aggregator::default(),
            metrics: Metrics::default(),
            paths,
            in_flight: InFlight::new(),
            cache_task: self.cache_task,
            tasks: std::sync::OnceLock::new(),
        };
        let core = Arc::new(core);
        self.core.set(&core);
        let tasks = [
            tokio::spawn(definitions::follow(Arc::downgrade(&core))),
            tokio::spawn(aggregator::follow(Arc::downgrade(&core))),
        ];
        // Set once, here.
        let _ = core.tasks.set(tasks);
        Server { core }
    }
}

impl Server {
    /// A server over any store where everyone may do everything, without the built-in objects. For tests only.
    pub async fn for_tests(store: Arc<dyn Store>, service_cidr: ipnet::Ipv4Net) -> Result<Self, ServerError> {
        let parts = Parts::start(store).await?;
        Ok(parts.finish(Extensions::allow_everything_for_tests(), service_cidr, Vec::new()))
    }

    /// What requests share.
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Answers one request, wherever it came from.
    pub async fn handle(&self, request: Request<Body>) -> Response<Body> {
        handlers::handle(self.core.clone(), request).await
    }

    /// A client in this process that acts as `user`, without a socket. Authorization and admission apply. `program`
    /// is the first part of its `User-Agent`, and so the owner of fields that it writes.
    pub fn client_for(&self, user: UserInfo, program: &'static str) -> kube::Client {
        let agent = HeaderValue::from_static(program);
        let core = self.core.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let core = core.clone();
            let user = user.clone();
            let agent = agent.clone();
            async move {
                let mut request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
                request.headers_mut().entry(header::USER_AGENT).or_insert(agent);
                request.extensions_mut().insert(InProcessUser(user));
                Ok::<_, BoxError>(handlers::handle(core, request).await)
            }
        });
        kube::Client::new(service, "default")
    }

    /// A client in this process in `system:masters`.
    pub fn admin_client(&self) -> kube::Client {
        self.client_for(UserInfo::apiserver(), crate::write::SERVER)
    }

    /// Serves the network until `shutdown`, then lets running requests end.
    pub async fn serve(&self, serving: Serving, shutdown: CancellationToken) -> Result<(), ServerError> {
        let mut sockets = Vec::new();
        let failed = |address: String| move |source| ServerError::Listen { address, source };
        for address in &serving.listen {
            let socket = tokio::net::TcpListener::bind(address).await.map_err(failed(address.to_string()))?;
            sockets.push(socket);
        }
        for listener in serving.listeners {
            listener.set_nonblocking(true).map_err(failed("an inherited socket".to_owned()))?;
            let socket = tokio::net::TcpListener::from_std(listener)
                .map_err(failed("an inherited socket".to_owned()))?;
            sockets.push(socket);
        }
        let reconcile = bootstrap::keep(self.admin_client(), serving.cluster.clone(), shutdown.clone());
        let reconcile = tokio::spawn(reconcile);
        let mut accepting = tokio::task::JoinSet::new();
        for socket in sockets {
            if let Ok(address) = socket.local_addr() {
                tracing::info!(%address, "serving the Kubernetes API");
            }
            accepting.spawn(serve::accept(
                self.core.clone(),
                socket,
                serving.tls.clone(),
                serving.timeouts,
                shutdown.clone(),
            ));
        }
        while accepting.join_next().await.is_some() {}
        reconcile.abort();
        Ok(())
    }
}

/// What [`Server::serve`] needs.
pub struct Serving {
    /// Addresses to bind.
    pub listen: Vec<SocketAddr>,
    /// Sockets that are bound already.
    pub listeners: Vec<std::net::TcpListener>,
    /// Certificates.
    pub tls: Arc<rustls::ServerConfig>,
    /// How long slow clients are waited for.
    pub timeouts: Timeouts,
    /// What the `kubernetes` Service says.
    pub cluster: bootstrap::Cluster,
}
