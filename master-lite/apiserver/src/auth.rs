//! Puts authentication, authorization, admission, reviews and the way to kubelets together.

use std::collections::HashMap;
use std::sync::Arc;

use crate::admission;
use crate::admission::dynamic::Dynamic;
use crate::admission::node_restriction::NodeRestriction;
use crate::admission::policy::{MutatingPolicies, ValidatingPolicies};
use crate::admission::webhook::Webhooks;
use crate::aggregator::FrontProxy;
use crate::authn::jwt::{JwtError, TokenKey};
use crate::authn::openid::{JWKS_PATH, OpenIdDocuments};
use crate::authn::service_account::TokenIssuer;
use crate::authn::x509::CertificateAuthenticator;
use crate::authn::{ClusterAuthenticator, TokenAuthenticator};
use crate::authz::ClusterAuthorizer;
use crate::extension::{
    Connector, ExtensionKey, Extensions, MutatingAdmission, ServerHandles, ValidatingAdmission,
    VirtualResource,
};
use crate::kubelet_proxy::{self, Dialer};
use crate::pki::{Pki, PkiError};
use crate::reviews::{self, ReviewParts};

/// Settings of [`build`].
pub struct AuthConfig {
    /// Keys and certificates, loaded before the server's socket is made.
    pub pki: Arc<Pki>,
    /// `iss` of service account tokens, such as `https://kubernetes.default.svc.cluster.local`.
    pub issuer: String,
    /// Audiences of the API server; empty means the issuer alone.
    pub api_audiences: Vec<String>,
    /// URL at which others reach this server, for the OIDC documents: `https://10.0.0.1:6443`.
    pub external_url: String,
}

/// Why the parts couldn't be put together.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The token signing key.
    #[error("loading the service account signing key")]
    TokenKey(#[from] JwtError),
}

/// Everything that plugs into the request path and has to do with who may do what.
pub struct AuthStack {
    /// Keys and certificates.
    pub pki: Arc<Pki>,
    /// Who makes a request.
    pub authenticator: Arc<ClusterAuthenticator>,
    /// Whether they may.
    pub authorizer: Arc<ClusterAuthorizer>,
    /// Admission that changes objects, in order.
    pub mutating: Vec<Arc<dyn MutatingAdmission>>,
    /// Admission that only refuses, in order.
    pub validating: Vec<Arc<dyn ValidatingAdmission>>,
    /// Webhooks and policies, which are among both.
    pub dynamic: Arc<Dynamic>,
    /// Reviews and token requests.
    pub virtual_resources: HashMap<ExtensionKey, Arc<dyn VirtualResource>>,
    /// Logs, exec, attach, port-forward and proxies.
    pub connectors: HashMap<ExtensionKey, Arc<dyn Connector>>,
    /// The way to pods and services, for whatever calls them.
    pub dialer: Arc<Dialer>,
    /// The way to servers of other groups.
    pub front_proxy: Arc<FrontProxy>,
    /// OIDC discovery: answers for two paths outside the resource API, after authorization.
    pub openid: Arc<OpenIdDocuments>,
}

impl AuthStack {
    /// What the request path holds.
    pub fn extensions(&self) -> Extensions {
        Extensions {
            authenticator: self.authenticator.clone(),
            authorizer: self.authorizer.clone(),
            mutating: self.mutating.clone(),
            validating: self.validating.clone(),
            dynamic: Some(self.dynamic.clone()),
            virtual_resources: self.virtual_resources.clone(),
            connectors: self.connectors.clone(),
            front_proxy: Some(self.front_proxy.clone()),
        }
    }
}

/// Builds all of it over the server's cache. Nothing is read until the first request.
///
/// # Errors
/// When a key or certificate can't be used.
pub fn build(config: &AuthConfig, handles: &ServerHandles) -> Result<AuthStack, AuthError> {
    let reader = handles.reader.clone();
    let audiences = if config.api_audiences.is_empty() {
        vec![config.issuer.clone()]
    } else {
        config.api_audiences.clone()
    };
    let key = TokenKey::from_pem(config.pki.token_key_pem())?;
    let issuer = Arc::new(TokenIssuer::new(key, &config.issuer, audiences));
    let authorizer = Arc::new(ClusterAuthorizer::new(reader.clone()));
    let tokens = Arc::new(TokenAuthenticator::new(issuer.clone(), reader.clone()));
    let certificates = CertificateAuthenticator::new(&config.pki)?;
    let authenticator = Arc::new(ClusterAuthenticator::new(certificates, tokens.clone(), authorizer.clone()));
    let node_restriction = Arc::new(NodeRestriction::new(reader.clone(), authorizer.clone()));
    let openid = Arc::new(OpenIdDocuments::new(
        &issuer,
        &format!("{}{JWKS_PATH}", config.external_url.trim_end_matches('/')),
    ));
    let virtual_resources = reviews::resources(&ReviewParts {
        authorizer: authorizer.clone(),
        tokens,
        issuer,
        node_restriction: node_restriction.clone(),
        reader: reader.clone(),
    });
    let dialer = Arc::new(Dialer::new(&config.pki, reader.clone())?);
    let connectors = kubelet_proxy::connectors(dialer.clone(), reader.clone(), authorizer.clone());
    let dynamic = Arc::new(Dynamic {
        webhooks: Arc::new(Webhooks::new(reader.clone(), handles.core.clone(), dialer.clone())),
        mutating: Arc::new(MutatingPolicies::new(reader.clone(), handles.core.clone())),
        validating: Arc::new(ValidatingPolicies::new(reader.clone(), handles.core.clone())),
    });
    let front_proxy = Arc::new(FrontProxy::new(&config.pki, dialer.clone())?);
    Ok(AuthStack {
        pki: config.pki.clone(),
        authenticator,
        authorizer: authorizer.clone(),
        mutating: admission::mutating(&reader, node_restriction, &dynamic),
        validating: admission::validating(&reader, &authorizer, handles.core.clone(), &dynamic),
        dynamic,
        virtual_resources,
        connectors,
        dialer,
        front_proxy,
        openid,
    })
}
