//! Deletes bootstrap tokens that have expired.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use keelson_client::{Key, WorkQueue, meta, run_workers};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use crate::context::{Context, Task};
use crate::error::{Error, Result};

const NAME: &str = "token-cleaner";

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let client = context.client(NAME);
    let tokens = context.informers.bootstrap_tokens.clone();
    let queue: Arc<WorkQueue<Key>> = WorkQueue::new();
    let on_token = queue.clone();
    tokens.on_change(move |delta| on_token.add(Key::of(&**delta.object())));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! { () = shutdown.cancelled() => return, () = tokens.synced() => {} }
        let delayed = queue.clone();
        run_workers(NAME, queue, 1, shutdown, move |key| {
            let (client, tokens, delayed) = (client.clone(), tokens.clone(), delayed.clone());
            async move {
                let Some(secret) = tokens.get(&key) else { return Ok(()) };
                match time_left(&secret, &meta::now()) {
                    None => Ok(()),
                    Some(Duration::ZERO) => delete(client, &secret).await,
                    Some(left) => {
                        delayed.add_after(key, left);
                        Ok(())
                    }
                }
            }
        })
        .await;
    })
}

/// How long the token is still good; nothing if for ever. An expiry that can't be read is in the past.
fn time_left(secret: &Secret, now: &Time) -> Option<Duration> {
    let expiry = secret.data.as_ref()?.get("expiration")?;
    let parsed = std::str::from_utf8(&expiry.0).ok().and_then(|text| text.trim().parse::<Timestamp>().ok());
    Some(parsed.and_then(|expiry| meta::until(now, &Time(expiry))).unwrap_or_default())
}

async fn delete(client: kube::Client, secret: &Secret) -> Result {
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: secret.metadata.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    let api: Api<Secret> = Api::namespaced(client, meta::namespace(&secret.metadata));
    match api.delete(meta::name(&secret.metadata), &params).await {
        Err(error) if !meta::is_not_found(&error) && !meta::is_conflict(&error) => Err(Error::Api(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn check(expiration: Option<&str>, expected: Option<u64>) {
        let data = expiration.map(|e| [("expiration".to_string(), ByteString(e.into()))].into());
        let secret = Secret { data, ..Default::default() };
        let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(time_left(&secret, &now).map(|d| d.as_secs()), expected);
    }

    #[test]
    fn expiry() {
        check(None, None);
        check(Some("2026-01-01T00:01:00Z"), Some(60));
        check(Some("2025-01-01T00:01:00Z"), Some(0));
        check(Some("soon"), Some(0));
    }
}
