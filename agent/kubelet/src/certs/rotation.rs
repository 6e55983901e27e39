//! When a certificate is renewed, and the loop that does it.

use std::time::{Duration, SystemTime};

use super::client::ClientSource;
use super::csr::{self, Template};
use super::{CertificateStore, Error, Identity, Result};

/// First pause after a failed request; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// When to renew: at 70 to 90 % of the lifetime, `jitter` (0 to 1) saying where between. The spread keeps nodes that
/// joined together from asking together (upstream's nextRotationDeadline).
pub fn rotation_deadline(not_before: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    not_before + lifetime.mul_f64(0.7 + 0.2 * jitter.clamp(0.0, 1.0))
}

/// Sleeps until `identity` should be renewed.
pub(super) async fn sleep_until_due(identity: &Identity) {
    let deadline = rotation_deadline(identity.not_before, identity.not_after, rand::random());
    loop {
        let Ok(left) = deadline.duration_since(SystemTime::now()) else { return };
        // In steps: timers stand still while a machine sleeps, the wall clock doesn't.
        tokio::time::sleep(left.min(Duration::from_secs(600))).await;
    }
}

/// Requests, waits and stores, again and again until it succeeds.
pub(super) async fn obtain(source: &ClientSource, template: &Template, store: &CertificateStore) -> Identity {
    let mut pause = MIN_PAUSE;
    loop {
        match attempt(source, template, store).await {
            Ok(identity) => return identity,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    signer = template.signer,
                    error,
                    ?pause,
                    "could not get a certificate, retrying"
                );
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn attempt(source: &ClientSource, template: &Template, store: &CertificateStore) -> Result<Identity> {
    let client = source.client().await?;
    let key = store.pending_key()?;
    match csr::request(&client, template, &key).await {
        Ok(chain) => store.update(&chain, &key.serialize_pem()),
        Err(error) => {
            // A refused request stays refused, and so does one that was cleaned up: the next attempt needs a new key.
            if matches!(error, Error::Refused { .. } | Error::NotIssued(_)) {
                store.forget_pending_key()?;
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn check(lifetime: u64, jitter: f64, expected: u64) {
        let deadline = rotation_deadline(UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(lifetime), jitter);
        assert_eq!(deadline.duration_since(UNIX_EPOCH).unwrap().as_secs(), expected);
    }

    #[test]
    fn between_70_and_90_percent() {
        check(1000, 0.0, 700);
        check(1000, 0.5, 800);
        check(1000, 1.0, 900);
        check(1000, 7.0, 900);
        check(0, 0.5, 0);
    }
}
