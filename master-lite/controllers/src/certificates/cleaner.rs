//! Deletes certificate signing requests that have served their time.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::meta;
use kube::Api;
use kube::api::DeleteParams;

use super::{ACCOUNT, is_issued};
use crate::context::{Context, Task};

/// How often they are looked at.
const PERIOD: Duration = Duration::from_secs(3600);
/// How long issued, denied and failed ones stay.
const DECIDED: Duration = Duration::from_secs(3600);
/// How long undecided ones, and approved ones that no one has signed, stay.
const PENDING: Duration = Duration::from_secs(24 * 3600);

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let csrs = context.informers.csrs.clone();
    let api: Api<CertificateSigningRequest> = Api::all(context.client(ACCOUNT));
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! { () = shutdown.cancelled() => return, () = csrs.synced() => {} }
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            tokio::select! { () = shutdown.cancelled() => return, _ = ticks.tick() => {} }
            let now = meta::now();
            for csr in csrs.list().iter().filter(|csr| is_over(csr, &now)) {
                let name = meta::name(&csr.metadata);
                match api.delete(name, &DeleteParams::default()).await {
                    Err(error) if !meta::is_not_found(&error) => {
                        tracing::warn!(csr = name, error = %meta::message(&error), "cannot delete an old request");
                    }
                    _ => {}
                }
            }
        }
    })
}

fn is_over(csr: &CertificateSigningRequest, now: &Time) -> bool {
    let older = |then: Option<&Time>, age: Duration| then.is_some_and(|then| meta::plus(then, age).0 < now.0);
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if conditions.is_empty() {
        return older(csr.metadata.creation_timestamp.as_ref(), PENDING);
    }
    conditions.iter().any(|condition| {
        let age = match condition.type_.as_str() {
            "Approved" if !is_issued(csr) => PENDING,
            "Approved" | "Denied" | "Failed" => DECIDED,
            _ => return false,
        };
        older(condition.last_update_time.as_ref(), age)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(condition: Option<&str>, issued: bool, hours: i64, expected: bool) {
        let now = Time("2026-01-03T00:00:00Z".parse().unwrap());
        let then = Time(now.0 - Duration::from_secs(hours.unsigned_abs() * 3600));
        let conditions: Vec<_> = condition
            .iter()
            .map(|kind| json!({"type": kind, "status": "True", "lastUpdateTime": then}))
            .collect();
        let csr: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"creationTimestamp": then},
            "spec": {"request": "", "signerName": "s"},
            "status": {"conditions": conditions, "certificate": if issued { "AAAA" } else { "" }},
        }))
        .unwrap();
        assert_eq!(is_over(&csr, &now), expected, "{condition:?} {issued} {hours}");
    }

    #[test]
    fn ages() {
        check(None, false, 23, false);
        check(None, false, 25, true);
        check(Some("Approved"), true, 2, true);
        check(Some("Approved"), false, 2, false);
        check(Some("Approved"), false, 25, true);
        check(Some("Denied"), false, 2, true);
        check(Some("Failed"), false, 0, false);
    }
}
