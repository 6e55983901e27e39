//! Service account tokens for projected volumes: requested, kept, renewed in time.
//!
//! Source: upstream `pkg/kubelet/token/token_manager.go`: a token is renewed at 80 % of its life, or after 24 hours.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::{Api, PostParams};
use tokio::sync::Mutex;

use super::VolumeError;
use crate::clock::Clock;
use crate::pods::podext::PodExt;

const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_SECONDS: i64 = 3600;
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: SystemTime,
    expires: SystemTime,
}

/// Tokens of one pod.
pub struct PodTokens {
    client: kube::Client,
    clock: Clock,
    tokens: Mutex<HashMap<(String, i64), Token>>,
}

impl PodTokens {
    /// Holds nothing yet.
    pub fn new(client: kube::Client, clock: Clock) -> Self {
        Self { client, clock, tokens: Mutex::default() }
    }

    /// A token for a projection, and when it must be renewed. An old token that still lives is better than none:
    /// it is given when the request for a new one fails.
    pub async fn get(
        &self,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<(String, SystemTime), VolumeError> {
        let audience = projection.audience.clone().unwrap_or_default();
        let seconds = projection.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let key = (audience, seconds);
        let mut tokens = self.tokens.lock().await;
        let now = self.clock.now();
        let kept = tokens.get(&key).cloned();
        if let Some(token) = kept.as_ref().filter(|t| t.renew_at > now) {
            return Ok((token.text.clone(), token.renew_at));
        }
        match (self.request(pod, &key.0, seconds, now).await, kept) {
            (Ok(token), _) => {
                tokens.insert(key, token.clone());
                Ok((token.text, token.renew_at))
            }
            (Err(error), Some(old)) if old.expires > now => {
                tracing::warn!(%error, pod = pod.describe(), "service account token not renewed, trying again");
                Ok((old.text, now + Duration::from_secs(10)))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn request(
        &self,
        pod: &Pod,
        audience: &str,
        seconds: i64,
        now: SystemTime,
    ) -> Result<Token, VolumeError> {
        let account = PodExt::spec(pod).service_account_name.as_deref().unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), PodExt::namespace(pod));
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(PodExt::name(pod).to_owned()),
                    uid: Some(PodExt::uid(pod).to_owned()),
                }),
            }),
            ..TokenRequest::default()
        };
        let failed = |why: String| VolumeError::Retry(format!("failed to fetch token: {why}"));
        let params = PostParams::default();
        let call = api.create_token_request(account, &params, &request);
        let answer = tokio::time::timeout(TIMEOUT, call)
            .await
            .map_err(|elapsed| failed(elapsed.to_string()))?
            .map_err(|e| failed(e.to_string()))?;
        let status = answer.status.ok_or_else(|| failed("answer without status".into()))?;
        let expires = status
            .expiration_timestamp
            .map(|t| SystemTime::from(t.0))
            .unwrap_or(now + Duration::from_secs(u64::try_from(seconds).unwrap_or(3600)));
        let life = expires.duration_since(now).unwrap_or_default();
        let renew_at = now + (life.mul_f64(0.8)).min(MAX_AGE);
        let text =
            status.token.filter(|t| !t.is_empty()).ok_or_else(|| failed("answer without token".into()))?;
        Ok(Token { text, renew_at, expires })
    }
}
