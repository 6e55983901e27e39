//! The heartbeat: a Lease in `kube-node-lease`, as KEP-589 has it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use super::CALL;

/// How long the control plane waits for a heartbeat: kubelet's nodeLeaseDurationSeconds.
const DURATION_SECONDS: i32 = 40;
/// A quarter of it, as upstream.
const RENEW: Duration = Duration::from_secs(10);
/// Pause after a failure: the next try must come well before the lease runs out.
const RETRY: Duration = Duration::from_secs(1);

/// Renews the lease for ever.
pub(super) async fn keep(client: &Client, name: &str, node: watch::Receiver<Option<Arc<Node>>>) {
    let api: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let mut held: Option<Lease> = None;
    loop {
        let uid = node.borrow().as_ref().and_then(|node| node.metadata.uid.clone());
        let step = tokio::time::timeout(CALL, renew(&api, name, uid.as_deref(), held.take())).await;
        let pause = match step {
            Ok(Ok(lease)) => {
                held = Some(lease);
                RENEW
            }
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not renew the node lease");
                RETRY
            }
            Err(_elapsed) => {
                tracing::warn!("could not renew the node lease: no answer in time");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One heartbeat: updates the lease that is held, else the one that is there, else makes it.
async fn renew(api: &Api<Lease>, name: &str, uid: Option<&str>, held: Option<Lease>) -> kube::Result<Lease> {
    let known = match held {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    let wanted = lease(name, uid, known.as_ref(), Timestamp::now());
    match known {
        Some(_) => api.replace(name, &PostParams::default(), &wanted).await,
        None => api.create(&PostParams::default(), &wanted).await,
    }
}

/// The lease as it should be now, on top of what is known of it.
fn lease(name: &str, uid: Option<&str>, known: Option<&Lease>, now: Timestamp) -> Lease {
    let mut lease = known.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("kube-node-lease".to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    // The owner lets the garbage collector remove the lease with its node; the uid is known only after registration.
    if let Some(uid) = uid
        && lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty)
    {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }]);
    }
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(name.to_owned());
    spec.lease_duration_seconds = Some(DURATION_SECONDS);
    spec.renew_time = Some(MicroTime(now));
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_comes_with_the_uid_and_stays() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = lease("n1", None, None, at(0));
        assert_eq!(first.metadata.owner_references, None);
        let second = lease("n1", Some("u1"), Some(&first), at(10));
        let owners = second.metadata.owner_references.clone().unwrap();
        assert_eq!((owners[0].kind.as_str(), owners[0].uid.as_str()), ("Node", "u1"));
        let spec = second.spec.unwrap();
        assert_eq!(spec.lease_duration_seconds, Some(40));
        assert_eq!(spec.renew_time, Some(MicroTime(at(10))));
    }
}
