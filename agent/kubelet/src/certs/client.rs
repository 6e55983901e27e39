//! The node's API client, whose certificate changes under it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use http::{Request, Response};
use kube::client::Body;
use kube::{Client, Config};
use tower::{BoxError, Service};

use super::rotation::{obtain, sleep_until_due};
use super::transport::connect;
use super::{CertificateStore, Error, Identity, Result, Template, kubeconfig};

/// How a node finds its cluster and its own credentials.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// `metadata.name` of the Node.
    pub node_name: String,
    /// `--bootstrap-kubeconfig`: a token good for one CSR.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--kubeconfig`: written after bootstrapping, used as it is when it holds credentials of its own.
    pub kubeconfig: PathBuf,
    /// `--cert-dir`, `/var/lib/kubelet/pki`.
    pub cert_dir: PathBuf,
}

/// The node's identity towards the API.
pub struct NodeIdentity {
    /// Client that always speaks with the newest certificate.
    pub client: Client,
    /// The API endpoint, with its certificate authorities; `auth_info` is that of the start.
    pub endpoint: Config,
    rotating: Option<(Rotating, Identity, CertificateStore, JoinOptions)>,
}

/// Joins the cluster: takes the node's certificate from disk while it is valid, else gets one with the bootstrap token.
/// Waits for the API and for the approver as long as it takes; fails only on what waiting can't mend.
pub async fn join(options: JoinOptions) -> Result<NodeIdentity> {
    let store = CertificateStore::new(&options.cert_dir, "kubelet-client");
    let existing =
        if exists(&options.kubeconfig) { Some(kubeconfig::load(&options.kubeconfig).await?) } else { None };
    if let Some((file, endpoint)) = &existing
        && !refers_to(file, &store.current_path())
    {
        let client = connect(endpoint)?;
        return Ok(NodeIdentity { client, endpoint: endpoint.clone(), rotating: None });
    }
    let template = Template::client(&options.node_name);
    let stored = store.load()?.filter(|identity| {
        identity.is_valid(SystemTime::now()) && identity.common_name == template.common_name
    });
    let (endpoint, identity) = match (existing, stored) {
        (Some((_, endpoint)), Some(identity)) => (endpoint, identity),
        (_, stored) => bootstrap(&options, &template, &store, stored).await?,
    };
    let rotating = Rotating::new(client_of(&endpoint, &identity)?);
    let client = Client::new(rotating.clone(), "default");
    Ok(NodeIdentity { client, endpoint, rotating: Some((rotating, identity, store, options)) })
}

impl NodeIdentity {
    /// Renews the client certificate at 70 to 90 % of its lifetime, for ever. Returns at once when the kubeconfig holds
    /// credentials that are not ours to renew.
    pub async fn rotate(self) {
        let Some((rotating, mut identity, store, options)) = self.rotating else { return };
        let template = Template::client(&options.node_name);
        loop {
            sleep_until_due(&identity).await;
            let source = ClientSource::Rotating {
                client: rotating.clone(),
                expires: identity.not_after,
                bootstrap: options.bootstrap_kubeconfig.clone(),
            };
            identity = obtain(&source, &template, &store).await;
            match client_of(&self.endpoint, &identity) {
                Ok(client) => {
                    rotating.replace(client);
                    tracing::info!("client certificate renewed");
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "issued client certificate is unusable"
                    );
                    // Not at once again: each turn makes a request that somebody signs.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            }
        }
    }
}

async fn bootstrap(
    options: &JoinOptions,
    template: &Template,
    store: &CertificateStore,
    stored: Option<Identity>,
) -> Result<(Config, Identity)> {
    let no_credentials = || Error::NoCredentials { node: options.node_name.clone() };
    let path =
        options.bootstrap_kubeconfig.as_deref().filter(|path| exists(path)).ok_or_else(no_credentials)?;
    let (_, endpoint) = kubeconfig::load(path).await?;
    let identity = match stored {
        Some(identity) => identity,
        None => {
            tracing::info!(node = %options.node_name, server = %endpoint.cluster_url, "joining with the bootstrap token");
            obtain(&ClientSource::Bootstrap(path.to_owned()), template, store).await
        }
    };
    kubeconfig::write(&options.kubeconfig, &endpoint, &store.current_path())?;
    Ok((endpoint, identity))
}

/// Whose credentials a certificate is asked for with; looked at anew for each attempt.
pub(super) enum ClientSource {
    /// Always the same client, whatever it does inside.
    Fixed(Client),
    /// The bootstrap token, read again each time: an administrator may have put a fresh one there.
    Bootstrap(PathBuf),
    /// The certificate to be renewed. Expired (the machine slept too long), it can't ask for its successor: the token
    /// can.
    Rotating {
        /// The client to be renewed.
        client: Rotating,
        /// End of its certificate.
        expires: SystemTime,
        /// Where the token is.
        bootstrap: Option<PathBuf>,
    },
}

impl ClientSource {
    pub(super) async fn client(&self) -> Result<Client> {
        match self {
            Self::Fixed(client) => Ok(client.clone()),
            Self::Bootstrap(path) => bootstrap_client(path).await,
            Self::Rotating { expires, bootstrap: Some(path), .. } if SystemTime::now() >= *expires => {
                bootstrap_client(path).await
            }
            Self::Rotating { client, .. } => Ok(client.current()),
        }
    }
}

async fn bootstrap_client(path: &Path) -> Result<Client> {
    let (_, config) = kubeconfig::load(path).await?;
    connect(&config)
}

fn client_of(endpoint: &Config, identity: &Identity) -> Result<Client> {
    connect(&kubeconfig::with_identity(endpoint, identity)?)
}

fn exists(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}

/// Whether the kubeconfig's credential is the rotating certificate.
fn refers_to(file: &kube::config::Kubeconfig, certificate: &Path) -> bool {
    file.auth_infos
        .iter()
        .filter_map(|named| named.auth_info.as_ref())
        .any(|user| user.client_certificate.as_deref().is_some_and(|path| Path::new(path) == certificate))
}

/// A service that hands each request to the client of the moment. Requests under way (watches too) end on the
/// connection they began on; new ones go out with the new certificate.
#[derive(Clone)]
pub(super) struct Rotating {
    current: Arc<RwLock<Client>>,
}

impl Rotating {
    fn new(client: Client) -> Self {
        Self { current: Arc::new(RwLock::new(client)) }
    }

    fn current(&self) -> Client {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, client: Client) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = client;
    }
}

impl Service<Request<Body>> for Rotating {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.current();
        Box::pin(async move { client.send(request).await.map_err(BoxError::from) })
    }
}
