//! Who asks, and whether they may: TokenReview and SubjectAccessReview, as kubelet's webhook mode.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certs::{common_name, organizations};

/// Deadline of one review.
const CALL: Duration = Duration::from_secs(10);
/// How long a token's user is kept: kubelet's authentication.webhook.cacheTTL.
const TOKEN_TTL: Duration = Duration::from_secs(120);
/// How long "yes" is kept: authorization.webhook.cacheAuthorizedTTL.
const ALLOWED_TTL: Duration = Duration::from_secs(300);
/// How long "no" is kept: authorization.webhook.cacheUnauthorizedTTL.
const DENIED_TTL: Duration = Duration::from_secs(30);
/// Most answers kept of each kind.
const CACHE: usize = 4096;

/// An authenticated user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// Uid, if the API gave one.
    pub uid: Option<String>,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user that a verified client certificate names: CN and O.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let name = common_name(&parsed);
        let mut groups = organizations(&parsed);
        groups.push("system:authenticated".to_owned());
        (!name.is_empty()).then(|| Self { name, groups, ..Self::default() })
    }
}

/// What is asked of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// API verb.
    pub verb: &'static str,
    /// Subresource of `nodes`.
    pub subresource: &'static str,
    /// The node.
    pub node: String,
}

/// A review could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API answered with an error.
    #[error("review access")]
    Api(#[source] Box<kube::Error>),
    /// The API did not answer in time.
    #[error("review access: no answer in time")]
    Timeout,
}

/// The API's judgement of tokens and access.
#[async_trait::async_trait]
pub trait AccessReview: Send + Sync {
    /// The user of a bearer token; none when it is not valid.
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ReviewError>;
    /// Whether the user may.
    async fn allowed(&self, user: &User, attributes: &Attributes) -> Result<bool, ReviewError>;
}

/// Reviews through the API.
pub struct ApiReviews {
    client: Client,
}

impl ApiReviews {
    /// Reviews with the node's own credentials.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn create<K>(&self, review: K) -> Result<K, ReviewError>
    where
        K: kube::Resource<Scope = k8s_openapi::ClusterResourceScope>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.client.clone());
        tokio::time::timeout(CALL, api.create(&PostParams::default(), &review))
            .await
            .map_err(|_elapsed| ReviewError::Timeout)?
            .map_err(|error| ReviewError::Api(Box::new(error)))
    }
}

#[async_trait::async_trait]
impl AccessReview for ApiReviews {
    async fn authenticate(&self, token: &str) -> Result<Option<User>, ReviewError> {
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = self.create(TokenReview { spec, ..TokenReview::default() }).await?;
        let Some(status) = review.status.filter(|status| status.authenticated == Some(true)) else {
            return Ok(None);
        };
        let user = status.user.unwrap_or_default();
        let name = user.username.unwrap_or_default();
        let mut groups = user.groups.unwrap_or_default();
        if !groups.iter().any(|group| group == "system:authenticated") {
            groups.push("system:authenticated".to_owned());
        }
        Ok((!name.is_empty()).then(|| User {
            name,
            uid: user.uid,
            groups,
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn allowed(&self, user: &User, attributes: &Attributes) -> Result<bool, ReviewError> {
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: user.uid.clone(),
            groups: Some(user.groups.clone()),
            extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(attributes.verb.to_owned()),
                group: Some(String::new()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(attributes.subresource.to_owned()),
                name: Some(attributes.node.clone()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        };
        let review = self.create(SubjectAccessReview { spec, ..SubjectAccessReview::default() }).await?;
        Ok(review.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

/// Reviews that remember their answers.
pub(super) struct Guard {
    tokens: Cache<[u8; 32], Option<User>>,
    decisions: Cache<(User, Attributes), bool>,
}

impl Guard {
    pub(super) fn new() -> Self {
        Self { tokens: Cache::new(), decisions: Cache::new() }
    }

    pub(super) async fn authenticate(
        &self,
        reviews: &dyn AccessReview,
        token: &str,
    ) -> Result<Option<User>, ReviewError> {
        // By digest: no token lies in memory longer than its request.
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(user) = self.tokens.get(&key) {
            return Ok(user);
        }
        let user = reviews.authenticate(token).await?;
        // A wrong token is kept for less: it may be one that is not known yet.
        self.tokens.put(key, user.clone(), if user.is_some() { TOKEN_TTL } else { Duration::from_secs(10) });
        Ok(user)
    }

    /// Whether one of the subresources is allowed.
    pub(super) async fn allowed(
        &self,
        reviews: &dyn AccessReview,
        user: &User,
        verb: &'static str,
        subresources: &[&'static str],
        node: &str,
    ) -> Result<bool, ReviewError> {
        for &subresource in subresources {
            let key = (user.clone(), Attributes { verb, subresource, node: node.to_owned() });
            let allowed = match self.decisions.get(&key) {
                Some(allowed) => allowed,
                None => {
                    let allowed = reviews.allowed(&key.0, &key.1).await?;
                    self.decisions.put(key, allowed, if allowed { ALLOWED_TTL } else { DENIED_TTL });
                    allowed
                }
            };
            if allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The API verb of a method; none for methods that no path here takes.
pub(super) fn verb(method: &Method) -> Option<&'static str> {
    Some(match method.as_str() {
        "POST" | "CONNECT" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => return None,
    })
}

/// The subresources of `nodes` of which one must be allowed for a path: upstream's fine-grained mapping (KEP-2862),
/// the finer ones first.
pub(super) fn subresources(path: &str) -> &'static [&'static str] {
    let under =
        |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    if under("/stats") {
        &["stats"]
    } else if under("/metrics") {
        &["metrics"]
    } else if under("/logs") {
        &["log"]
    } else if under("/checkpoint") {
        &["checkpoint"]
    } else if under("/pods") || under("/runningpods") {
        &["pods", "proxy"]
    } else if under("/healthz") {
        &["healthz", "proxy"]
    } else if under("/configz") {
        &["configz", "proxy"]
    } else {
        &["proxy"]
    }
}

/// Answers with an end.
struct Cache<K, V> {
    entries: Mutex<HashMap<K, (V, Instant)>>,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self { entries: Mutex::new(HashMap::new()) }
    }

    fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock();
        entries.get(key).filter(|(_, end)| *end > Instant::now()).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, ttl: Duration) {
        let mut entries = self.entries.lock();
        if entries.len() >= CACHE {
            let now = Instant::now();
            entries.retain(|_, (_, end)| *end > now);
            if entries.len() >= CACHE {
                // Full of live answers: somebody tries many tokens. Begin again rather than grow.
                entries.clear();
            }
        }
        entries.insert(key, (value, Instant::now() + ttl));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn check(path: &str, expected: &[&str]) {
        assert_eq!(subresources(path), expected, "{path}");
    }

    #[test]
    fn paths_map_to_subresources() {
        check("/exec/ns/pod/c", &["proxy"]);
        check("/containerLogs/ns/pod/c", &["proxy"]);
        check("/pods", &["pods", "proxy"]);
        check("/podsx", &["proxy"]);
        check("/runningpods/", &["pods", "proxy"]);
        check("/stats/summary", &["stats"]);
        check("/metrics/resource", &["metrics"]);
        check("/healthz/ping", &["healthz", "proxy"]);
        check("/configz", &["configz", "proxy"]);
        check("/logs/syslog", &["log"]);
    }

    #[test]
    fn certificates_name_users() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let user = User::from_certificate(certificate.der()).unwrap();
        assert_eq!(user.name, "admin");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    }

    #[derive(Default)]
    struct Counting {
        calls: AtomicU32,
    }

    #[async_trait::async_trait]
    impl AccessReview for Counting {
        async fn authenticate(&self, token: &str) -> Result<Option<User>, ReviewError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            Ok((token == "good").then(User::default))
        }

        async fn allowed(&self, _user: &User, attributes: &Attributes) -> Result<bool, ReviewError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            Ok(attributes.subresource == "proxy")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_their_time() {
        let (guard, reviews) = (Guard::new(), Counting::default());
        let calls = || reviews.calls.load(Ordering::Relaxed);
        assert!(guard.authenticate(&reviews, "good").await.unwrap().is_some());
        assert!(guard.authenticate(&reviews, "good").await.unwrap().is_some());
        assert!(guard.authenticate(&reviews, "bad").await.unwrap().is_none());
        assert_eq!(calls(), 2);
        let ask = async || {
            guard.allowed(&reviews, &User::default(), "get", &["pods", "proxy"], "n1").await.unwrap()
        };
        assert!(ask().await && ask().await);
        assert_eq!(calls(), 4);
        tokio::time::advance(Duration::from_secs(31)).await;
        // "No" to pods has run out, "yes" to proxy has not.
        assert!(ask().await);
        assert_eq!(calls(), 5);
        tokio::time::advance(Duration::from_secs(301)).await;
        assert!(ask().await);
        assert_eq!(calls(), 7);
    }
}
