//! One version of a group that another server serves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1::SendRequest;
use keelson_api::custom::names;
use parking_lot::RwLock;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::sync::Notify;

use super::document::Document;
use super::proxy::user_headers;
use super::{AVAILABLE, FrontProxy};
use crate::authz::rbac::text;
use crate::backend_tls::{Trust, client_config};
use crate::core::Core;
use crate::extension::{Body, UserInfo, full_body};

/// Most bytes of a document that is read here.
const DOCUMENT_LIMIT: usize = 16 << 20;
/// Port of a service that does not say.
const PORT: u16 = 443;

/// What an APIService says of where its server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    /// Name of the APIService.
    pub(super) name: String,
    /// Of the object: one that is made anew is another.
    uid: String,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) port: u16,
    insecure: bool,
    ca_bundle: String,
}

impl Spec {
    /// `None` if there is no service.
    pub(super) fn read(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let service = spec["service"].as_object().map(|_| &spec["service"])?;
        let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
        Some(Self {
            name: text(object, "/metadata/name").to_owned(),
            uid: text(object, "/metadata/uid").to_owned(),
            group: text(spec, "/group").to_owned(),
            version: text(spec, "/version").to_owned(),
            namespace: text(service, "/namespace").to_owned(),
            service: text(service, "/name").to_owned(),
            port,
            insecure: spec["insecureSkipTLSVerify"] == true,
            ca_bundle: text(spec, "/caBundle").to_owned(),
        })
    }

    /// Where the server must answer: the document of its version.
    pub(super) fn path(&self) -> String {
        if self.group.is_empty() {
            return format!("/api/{}", self.version);
        }
        format!("/apis/{}/{}", self.group, self.version)
    }

    /// `host:port`, as in URLs.
    pub(super) fn authority(&self) -> String {
        format!("{}.{}.svc:{}", self.service, self.namespace, self.port)
    }
}

/// Such a version, with what is known of its server.
pub(crate) struct Remote {
    pub(super) spec: Spec,
    tls: Result<Arc<ClientConfig>, String>,
    available: AtomicBool,
    /// resourceVersion of the APIService as it was last seen.
    revision: AtomicU64,
    pub(super) document: RwLock<Document>,
    /// The APIService has changed.
    pub(super) changed: Notify,
    task: OnceLock<tokio::task::AbortHandle>,
}

impl Remote {
    pub(super) fn new(spec: Spec, front_proxy: Option<&FrontProxy>) -> Self {
        let trust = if spec.insecure { Trust::Anyone } else { Trust::Bundle(&spec.ca_bundle) };
        let tls = match front_proxy {
            Some(front_proxy) => client_config(trust, Some(front_proxy.identity())),
            None => Err("there is no front proxy".to_owned()),
        };
        Self {
            spec,
            tls,
            available: AtomicBool::new(false),
            revision: AtomicU64::new(0),
            document: RwLock::default(),
            changed: Notify::new(),
            task: OnceLock::new(),
        }
    }

    /// The APIService as it is now.
    pub(super) fn saw(&self, object: &Value) {
        self.available.store(names::is_true(object, AVAILABLE), Ordering::Relaxed);
        let revision = text(object, "/metadata/resourceVersion").parse().unwrap_or_default();
        if self.revision.swap(revision, Ordering::Relaxed) != revision {
            self.changed.notify_one();
        }
    }

    /// Whether requests are sent on.
    pub(super) fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// Starts the task that looks after it.
    pub(super) fn attend(self: &Arc<Self>, core: &Arc<Core>) {
        let task = tokio::spawn(super::availability::attend(Arc::downgrade(core), self.clone()));
        // Called once, by whoever made it.
        let _ = self.task.set(task.abort_handle());
    }

    /// Ends it.
    pub(super) fn leave(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// How to talk to the server, or why that can't be.
    pub(super) fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        self.tls.clone()
    }

    /// A connection to the server.
    pub(super) async fn connect(&self, core: &Core) -> Result<SendRequest<Body>, String> {
        let front_proxy = core.extensions.front_proxy.as_ref().ok_or("there is no front proxy")?;
        let Spec { namespace, service, port, .. } = &self.spec;
        let sender = front_proxy.dialer.https_service(namespace, service, *port, self.tls()?).await;
        sender.map_err(|error| error.to_string())
    }

    /// GET, as the aggregator itself.
    pub(super) async fn get(
        &self,
        core: &Core,
        path: &str,
        accept: &str,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let mut sender = self.connect(core).await?;
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .header(header::HOST, self.spec.authority())
            .header(header::USER_AGENT, "kube-aggregator")
            .body(full_body(""))
            .map_err(|error| error.to_string())?;
        let accept = HeaderValue::from_str(accept).map_err(|error| error.to_string())?;
        request.headers_mut().insert(header::ACCEPT, accept);
        let user = UserInfo::new("system:kube-aggregator", &["system:masters"]);
        request.headers_mut().extend(user_headers(&user).map_err(|error| error.message)?);
        let answer: Response<_> = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, DOCUMENT_LIMIT).collect().await.map_err(|error| error.to_string())?;
        Ok((parts.status, parts.headers, body.to_bytes()))
    }
}
