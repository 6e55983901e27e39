//! OIDC discovery of the service account issuer, so that others can check our tokens.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::service_account::TokenIssuer;
use crate::extension::{Body, full_body};

/// Path of the discovery document.
pub const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
/// Path of the key set.
pub const JWKS_PATH: &str = "/openid/v1/jwks";

/// The two documents, rendered once.
pub struct OpenIdDocuments {
    configuration: String,
    keys: String,
}

impl OpenIdDocuments {
    /// `jwks_uri` is the URL at which others reach [`JWKS_PATH`].
    pub fn new(issuer: &TokenIssuer, jwks_uri: &str) -> Self {
        let configuration = json!({
            "issuer": issuer.issuer(),
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        Self { configuration: configuration.to_string(), keys: issuer.key().jwks().to_string() }
    }

    /// The answer to an authorized GET of one of the two paths; `None` for any other path.
    pub fn respond(&self, path: &str) -> Option<Response<Body>> {
        let (content_type, text) = match path {
            CONFIGURATION_PATH => ("application/json", &self.configuration),
            JWKS_PATH => ("application/jwk-set+json", &self.keys),
            _ => return None,
        };
        let mut response = Response::new(full_body(text.clone()));
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        Some(response)
    }
}
