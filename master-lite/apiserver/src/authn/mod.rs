//! Authentication: who makes a request.
//!
//! In order: client certificate, then bearer token (service account, bootstrap), then anonymous; at last the
//! `Impersonate-*` headers. A certificate or token that is there but bad is a 401, never anonymous.

pub mod bootstrap_token;
pub mod impersonation;
pub mod jwt;
pub mod openid;
pub mod service_account;
pub mod x509;

use std::sync::Arc;

use http::header::AUTHORIZATION;

use crate::extension::{
    Authenticator, Authorizer, ConnectionInfo, ObjectReader, Result, StatusError, UserInfo,
};
use service_account::{Identity, TokenIssuer};
use x509::CertificateAuthenticator;

/// Group of everyone whose credentials were good.
pub const AUTHENTICATED: &str = "system:authenticated";

/// The user of requests without credentials.
pub fn anonymous() -> UserInfo {
    UserInfo::new("system:anonymous", &["system:unauthenticated"])
}

/// The user of a component in this process, by its name: a service account such as
/// `system:serviceaccount:kube-system:deployment-controller` has its account's groups, any other just
/// `system:authenticated`.
pub fn component(name: &str) -> UserInfo {
    let groups = service_account::split_user(name).map(|(namespace, _)| service_account::groups(namespace));
    authenticated(UserInfo {
        name: name.to_owned(),
        groups: groups.unwrap_or_default(),
        ..UserInfo::default()
    })
}

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

/// The server's authenticator.
pub struct ClusterAuthenticator {
    certificates: CertificateAuthenticator,
    tokens: Arc<TokenAuthenticator>,
    authorizer: Arc<dyn Authorizer>,
}

impl ClusterAuthenticator {
    /// Puts the parts together; the authorizer decides on impersonation.
    pub fn new(
        certificates: CertificateAuthenticator,
        tokens: Arc<TokenAuthenticator>,
        authorizer: Arc<dyn Authorizer>,
    ) -> Self {
        Self { certificates, tokens, authorizer }
    }

    /// Who the credentials stand for, before impersonation.
    fn identify(&self, parts: &http::request::Parts) -> Result<UserInfo> {
        let refuse = |why: &str| {
            tracing::debug!(why, path = parts.uri.path(), "unable to authenticate the request");
            StatusError::unauthorized()
        };
        let mut bad_certificate = None;
        if let Some(connection) = parts.extensions.get::<ConnectionInfo>() {
            match self.certificates.authenticate(&connection.peer_certificates, now()) {
                Ok(Some(user)) => return Ok(authenticated(user)),
                Ok(None) => {}
                // A token may still say who this is.
                Err(why) => bad_certificate = Some(why),
            }
        }
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            return match bad_certificate {
                None => Ok(anonymous()),
                Some(why) => Err(refuse(&why)),
            };
        };
        let token = header
            .to_str()
            .ok()
            .and_then(bearer)
            .ok_or_else(|| refuse("authorization header is no bearer token"))?;
        match self.tokens.authenticate(token, &[]) {
            Ok(Some(identity)) => Ok(identity.user),
            Ok(None) => Err(refuse("token is of no known kind")),
            Err(why) => Err(refuse(&why)),
        }
    }
}

#[async_trait::async_trait]
impl Authenticator for ClusterAuthenticator {
    async fn authenticate(&self, parts: &http::request::Parts) -> Result<Option<UserInfo>> {
        let user = self.identify(parts)?;
        impersonation::impersonate(&parts.headers, user, &*self.authorizer).await.map(Some)
    }
}

/// The token of a `Bearer` authorization header.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

/// Reads bearer tokens of all kinds.
pub struct TokenAuthenticator {
    issuer: Arc<TokenIssuer>,
    reader: Arc<dyn ObjectReader>,
}

impl TokenAuthenticator {
    /// Checks tokens against the objects of a cache.
    pub fn new(issuer: Arc<TokenIssuer>, reader: Arc<dyn ObjectReader>) -> Self {
        Self { issuer, reader }
    }

    /// Who a token stands for, with `system:authenticated` added, and for which of the wanted audiences (the API
    /// server's own when empty). `None` if it is no token that this server knows.
    ///
    /// # Errors
    /// Why a token of ours isn't accepted.
    pub fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Identity>, String> {
        if self.issuer.claims(token) {
            let identity =
                self.issuer.check(token, audiences, &*self.reader, now()).map_err(|e| e.to_string())?;
            return Ok(Some(Identity { user: authenticated(identity.user), ..identity }));
        }
        let api = self.issuer.api_audiences();
        let Some(user) = bootstrap_token::authenticate(token, &*self.reader, now()) else { return Ok(None) };
        // A token without audiences is good for the API server only.
        let audiences: Vec<String> =
            api.iter().filter(|a| audiences.is_empty() || audiences.contains(a)).cloned().collect();
        Ok((!audiences.is_empty()).then(|| Identity { user: authenticated(user), audiences }))
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    use serde_json::json;

    use super::*;
    use crate::authz::ClusterAuthorizer;
    use crate::authz::fake::FakeReader;
    use crate::pki::{Pki, PkiConfig, Profile};

    #[test]
    fn components_have_their_groups() {
        let account = component("system:serviceaccount:kube-system:node-controller");
        assert_eq!(
            account.groups,
            ["system:serviceaccounts", "system:serviceaccounts:kube-system", AUTHENTICATED]
        );
        assert_eq!(component("system:kube-scheduler").groups, [AUTHENTICATED]);
    }

    #[tokio::test]
    async fn credentials_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(&PkiConfig {
            directory: dir.path().to_owned(),
            advertise_address: [127, 0, 0, 1].into(),
            service_address: [10, 96, 0, 1].into(),
            cluster_domain: "cluster.local".into(),
            extra_sans: vec![],
        })
        .unwrap();
        let boot = "abcdef.0123456789abcdef";
        let reader = Arc::new(FakeReader::new(vec![
            ("", "secrets", bootstrap_token::secret(boot, None).unwrap()),
            ("", "serviceaccounts", json!({"metadata": {"name": "bot", "namespace": "a", "uid": "u"}})),
        ]));
        let key = jwt::TokenKey::from_pem(pki.token_key_pem()).unwrap();
        let issuer = Arc::new(TokenIssuer::new(key, "https://i", vec!["https://i".into()]));
        let spec = service_account::TokenSpec {
            namespace: "a",
            account: service_account::Reference { name: "bot".into(), uid: "u".into() },
            binding: service_account::Binding::default(),
            audiences: vec!["https://i".into()],
            expiration_seconds: 600,
        };
        let jwt = issuer.issue(&spec, now()).unwrap();
        let authenticator = ClusterAuthenticator::new(
            CertificateAuthenticator::new(&pki).unwrap(),
            Arc::new(TokenAuthenticator::new(issuer, reader.clone())),
            Arc::new(ClusterAuthorizer::new(reader)),
        );
        let certificate = pki.issue(&Profile::client("jane", Some("dev"))).unwrap().certificate;
        let chain: Arc<[CertificateDer<'static>]> =
            Arc::new([CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()]);
        let stranger = tempfile::tempdir().unwrap();
        let stranger = Pki::load_or_create(&PkiConfig {
            directory: stranger.path().to_owned(),
            advertise_address: [127, 0, 0, 1].into(),
            service_address: [10, 96, 0, 1].into(),
            cluster_domain: "cluster.local".into(),
            extra_sans: vec![],
        })
        .unwrap();
        let foreign = stranger.issue(&Profile::client("jane", None)).unwrap().certificate;
        let foreign: Arc<[CertificateDer<'static>]> =
            Arc::new([CertificateDer::from_pem_slice(foreign.as_bytes()).unwrap()]);
        for (header, want) in
            [(None, None), (Some(format!("Bearer {jwt}")), Some("system:serviceaccount:a:bot"))]
        {
            let connection = ConnectionInfo { peer_certificates: foreign.clone(), remote_addr: None };
            let mut request = http::Request::builder().extension(connection);
            if let Some(header) = header {
                request = request.header("authorization", header);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let got = authenticator.authenticate(&parts).await.ok().flatten();
            assert_eq!(got.as_ref().map(|u| u.name.as_str()), want, "a certificate of another CA");
        }
        let check = async |with_certificate: bool, header: Option<&str>, want: Option<&str>| {
            let mut request = http::Request::builder().uri("/api");
            if let Some(header) = header {
                request = request.header("authorization", header);
            }
            if with_certificate {
                request =
                    request.extension(ConnectionInfo { peer_certificates: chain.clone(), remote_addr: None });
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let got = authenticator.authenticate(&parts).await;
            assert_eq!(
                got.as_ref().ok().and_then(|u| u.as_ref()).map(|u| u.name.as_str()),
                want,
                "{header:?}: {got:?}"
            );
            if let Ok(Some(user)) = got {
                assert_eq!(user.in_group(AUTHENTICATED), want != Some("system:anonymous"));
            }
        };
        check(false, None, Some("system:anonymous")).await;
        check(true, None, Some("jane")).await;
        check(true, Some("Bearer nonsense"), Some("jane")).await;
        check(false, Some(&format!("Bearer {jwt}")), Some("system:serviceaccount:a:bot")).await;
        check(false, Some(&format!("bearer {boot}")), Some("system:bootstrap:abcdef")).await;
        check(false, Some("Bearer nonsense"), None).await;
        check(false, Some(&format!("Bearer {jwt}x")), None).await;
        check(false, Some("Basic abc"), None).await;
    }
}
