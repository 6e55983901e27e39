//! The seams between the request path and what plugs into it: authentication, authorization, admission,
//! resources that nothing stores, and subresources that take over the connection.
//!
//! Everything here is a trait or a plain value; the request path holds them in [`Extensions`].

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use keelson_api::meta::{GroupResource, GroupVersionKind};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::admission::dynamic::Dynamic;
pub use crate::admission::hooks::{HookView, Hooks};
use crate::aggregator::FrontProxy;
use crate::authz::relations::References;
pub use crate::core::LateCore;
pub use crate::request_info::RequestInfo;
pub use crate::status::{Result, StatusError};

/// Any error, as a body or a service may end in.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Body of requests and responses, whether from a socket or from a client in this process.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is all there.
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Who makes a request (`authentication.k8s.io` UserInfo).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Unique name: `system:node:n1`, `system:serviceaccount:ns:name`, `system:anonymous`.
    pub name: String,
    /// Unique across time; may be empty.
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with groups and nothing else.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// The server itself (`system:apiserver` in `system:masters`), as upstream's loopback client.
    pub fn apiserver() -> Self {
        Self::new("system:apiserver", &["system:masters", "system:authenticated"])
    }

    /// True if the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is known of the connection a request came over. In the extensions of every request from a socket;
/// requests from a client in this process carry an [`InProcessUser`] instead.
#[derive(Debug, Clone, Default)]
pub struct ConnectionInfo {
    /// Client's certificate chain, leaf first; the TLS layer has checked that the client holds the leaf's key
    /// but nothing about who signed it.
    pub peer_certificates: Arc<[CertificateDer<'static>]>,
    /// Client's address.
    pub remote_addr: Option<SocketAddr>,
}

/// Identity of a client in this process. Only code in this process can put it in a request's extensions.
#[derive(Debug, Clone)]
pub struct InProcessUser(pub UserInfo);

/// Finds out who makes a request.
#[async_trait::async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `Ok(Some(user))`: known. `Ok(None)`: no credentials that this authenticator reads (the caller decides on
    /// anonymous). `Err`: bad credentials, answered as 401. The request's extensions hold a [`ConnectionInfo`].
    /// May add to the headers' meaning (impersonation) but must not read the body.
    async fn authenticate(&self, parts: &http::request::Parts) -> Result<Option<UserInfo>>;
}

/// An authorizer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The request may go on.
    Allow,
    /// The request must not go on, whatever other authorizers say.
    Deny(String),
    /// Nothing speaks for it; the text goes into the 403's message.
    NoOpinion(String),
}

/// What authorization decides about.
#[derive(Debug, Clone, Default)]
pub struct AuthorizerAttributes {
    /// Who asks.
    pub user: UserInfo,
    /// get, list, watch, create, update, patch, delete, deletecollection, or a special verb; lower-case method
    /// for paths.
    pub verb: String,
    /// Namespace; empty for all or none.
    pub namespace: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Name; empty for any.
    pub name: String,
    /// False: only `verb` and `path` mean anything.
    pub resource_request: bool,
    /// Path of the request.
    pub path: String,
    /// `fieldSelector` as sent: nodes may list only pods of their own.
    pub field_selector: String,
}

impl AuthorizerAttributes {
    /// Attributes of a request as it came in.
    pub fn from_request(user: &UserInfo, info: &RequestInfo) -> Self {
        Self {
            user: user.clone(),
            verb: info.verb.clone(),
            namespace: info.namespace.clone(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            name: info.name.clone(),
            resource_request: info.is_resource_request,
            path: info.path.clone(),
            field_selector: info.field_selector.clone(),
        }
    }
}

/// Decides whether a user may do something.
#[async_trait::async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Must not have effects; may be called for questions (SubjectAccessReview) as well as for requests.
    async fn authorize(&self, attributes: &AuthorizerAttributes) -> Decision;
}

/// Kind of write that admission sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A new object, or a POST to a subresource.
    Create,
    /// A change of an object or subresource, by PUT or PATCH.
    Update,
    /// A delete, one object at a time.
    Delete,
    /// exec, attach, portforward, proxy.
    Connect,
}

impl Operation {
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What admission sees of a write.
#[derive(Debug, Clone)]
pub struct Attributes {
    /// Kind of write.
    pub operation: Operation,
    /// Kind of `object` (of the subresource's object where it has its own, such as `autoscaling/v1, Kind=Scale`).
    pub kind: GroupVersionKind,
    /// Group and plural.
    pub resource: GroupResource,
    /// Version the request used.
    pub version: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Namespace or empty.
    pub namespace: String,
    /// Name; empty on a create with generateName until the name is made (before admission, so never in practice).
    pub name: String,
    /// Who writes.
    pub user: UserInfo,
    /// The new object; `None` on delete and on connects without options.
    pub object: Option<Value>,
    /// The object as it is stored now, `resourceVersion` included; `None` on create.
    pub old_object: Option<Arc<Value>>,
    /// Nothing will be kept.
    pub dry_run: bool,
    /// The operation's options (`CreateOptions`, `UpdateOptions`, `DeleteOptions`) as webhooks get them; null for
    /// connects.
    pub options: Value,
    /// What webhooks see, and what they have to say.
    pub hooks: Hooks,
}

/// A plug-in that may change a new object. Runs before validation, in the order of [`Extensions::mutating`].
#[async_trait::async_trait]
pub trait MutatingAdmission: Send + Sync + 'static {
    /// Short name for errors and metrics.
    fn name(&self) -> &'static str;
    /// Changes `attributes.object`, or refuses. Called again if the write is retried after a conflict, and once more
    /// after a webhook has changed the object.
    async fn admit(&self, attributes: &mut Attributes) -> Result<()>;
}

/// A plug-in that may only refuse. Runs after validation.
#[async_trait::async_trait]
pub trait ValidatingAdmission: Send + Sync + 'static {
    /// Short name for errors and metrics.
    fn name(&self) -> &'static str;
    /// Accepts or refuses.
    async fn validate(&self, attributes: &Attributes) -> Result<()>;
}

/// Reads objects out of the watch cache: no IO, and behind the store by the time of one event.
pub trait ObjectReader: Send + Sync + 'static {
    /// One object, with its resourceVersion; `namespace` is `None` for cluster-scoped resources.
    fn get(&self, resource: &GroupResource, namespace: Option<&str>, name: &str) -> Option<Arc<Value>>;
    /// All objects of a namespace, or of all (`None`), in the order of their keys.
    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>>;
    /// Value of a selectable field, such as `spec.nodeName`, of one object. A cache that keeps these answers without
    /// reading the object.
    fn field(
        &self,
        resource: &GroupResource,
        namespace: Option<&str>,
        name: &str,
        field: &str,
    ) -> Option<String> {
        let pointer = format!("/{}", field.replace('.', "/"));
        let object = self.get(resource, namespace, name)?;
        Some(object.pointer(&pointer).and_then(Value::as_str).unwrap_or_default().to_owned())
    }
    /// What the pods of a namespace that are bound to a node refer to, each on its own. A cache finds them without
    /// reading the pods again.
    fn references_on(&self, node: &str, namespace: &str) -> Vec<Arc<References>> {
        let pods = self.list(&GroupResource::new("", "pods"), Some(namespace));
        let bound = pods.iter().filter(|pod| pod["spec"]["nodeName"].as_str().unwrap_or_default() == node);
        bound.map(|pod| Arc::new(References::of(pod))).collect()
    }
    /// The store's revision up to which `resource` is read. Changes when an object of the resource changes, so
    /// that a reader may keep what it derived from a list as long as this stays the same.
    fn resource_version(&self, resource: &GroupResource) -> u64;
}

/// A request to a virtual resource or connector, after authentication and authorization.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// What is asked for.
    pub info: RequestInfo,
    /// Who asks.
    pub user: UserInfo,
    /// Decoded query pairs.
    pub query: Vec<(String, String)>,
    /// `dryRun=All`.
    pub dry_run: bool,
}

impl RequestContext {
    /// First value of a query parameter.
    pub fn query(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// A resource or subresource that is computed, never stored: TokenReview, SubjectAccessReview,
/// serviceaccounts/token, ...
#[async_trait::async_trait]
pub trait VirtualResource: Send + Sync + 'static {
    /// Kind of the body, to decode and validate it.
    fn kind(&self) -> GroupVersionKind;
    /// POST. `object` is decoded, pruned and defaulted; the answer is sent with 201.
    async fn create(&self, context: &RequestContext, object: Value) -> Result<Value>;
}

/// A subresource that owns its request and answer: pods/log, exec, attach, portforward, proxy; nodes/proxy.
///
/// Upgrades: the request's extensions hold hyper's `OnUpgrade` (HTTP/1.1 only), so a connector answers 101 and
/// takes the connection from `hyper::upgrade::on(&mut request)`.
#[async_trait::async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Methods the subresource takes, for discovery and 405s: `get`, `create`, ...
    fn verbs(&self) -> &'static [&'static str];
    /// Answers the request; an error becomes a Status.
    async fn connect(
        &self,
        context: &RequestContext,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>>;
}

/// Key of the tables in [`Extensions`]: resource and subresource (empty for the resource itself).
pub type ExtensionKey = (GroupResource, String);

/// Everything that plugs into the request path.
pub struct Extensions {
    /// Asked once a request, unless it comes from a client in this process.
    pub authenticator: Arc<dyn Authenticator>,
    /// Asked once a request. `system:masters` is not special here: the authorizer knows it.
    pub authorizer: Arc<dyn Authorizer>,
    /// In order.
    pub mutating: Vec<Arc<dyn MutatingAdmission>>,
    /// In order.
    pub validating: Vec<Arc<dyn ValidatingAdmission>>,
    /// Those of the plug-ins that are asked about requests too that are no writes of stored objects.
    pub dynamic: Option<Arc<Dynamic>>,
    /// Computed resources.
    pub virtual_resources: HashMap<ExtensionKey, Arc<dyn VirtualResource>>,
    /// Connection-owning subresources.
    pub connectors: HashMap<ExtensionKey, Arc<dyn Connector>>,
    /// The way to servers of other groups; without one they count as unavailable.
    pub front_proxy: Option<Arc<FrontProxy>>,
}

impl Extensions {
    /// No authentication and no limits: everyone is in `system:masters`. For tests only.
    pub fn allow_everything_for_tests() -> Self {
        Self {
            authenticator: Arc::new(EveryoneIsMaster),
            authorizer: Arc::new(AlwaysAllow),
            mutating: Vec::new(),
            validating: Vec::new(),
            dynamic: None,
            virtual_resources: HashMap::new(),
            connectors: HashMap::new(),
            front_proxy: None,
        }
    }
}

/// What a factory of [`Extensions`] may use of the server.
#[derive(Clone)]
pub struct ServerHandles {
    /// Reads the watch cache. Empty until the server has started.
    pub reader: Arc<dyn ObjectReader>,
    /// The server itself, once it is put together.
    pub core: LateCore,
}

struct EveryoneIsMaster;

#[async_trait::async_trait]
impl Authenticator for EveryoneIsMaster {
    async fn authenticate(&self, _parts: &http::request::Parts) -> Result<Option<UserInfo>> {
        Ok(Some(UserInfo::new("system:admin", &["system:masters", "system:authenticated"])))
    }
}

struct AlwaysAllow;

#[async_trait::async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _attributes: &AuthorizerAttributes) -> Decision {
        Decision::Allow
    }
}
