//! Approves the requests of nodes: for client certificates as upstream, after a SubjectAccessReview; for serving
//! certificates, which upstream leaves to people, after checking every name against the node itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Node;
use keelson_client::{Delta, Informer, Key, WorkQueue, meta, run_workers};
use kube::api::PostParams;
use kube::{Api, Client};

use super::request::{self, NODE_GROUP, NODE_USER, Request};
use super::{ACCOUNT, KUBELET_CLIENT, KUBELET_SERVING, has_condition, is_issued};
use crate::context::{Context, Task};
use crate::error::{Error, Result};

const NAME: &str = "certificatesigningrequest-approving-controller";

/// Starts the controller.
pub fn start(context: &Context) -> Task {
    let controller = Arc::new(Controller {
        client: context.client(ACCOUNT),
        csrs: context.informers.csrs.clone(),
        nodes: context.informers.nodes.clone(),
        queue: WorkQueue::new(),
    });
    let on_csr = controller.clone();
    controller.csrs.on_change(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            on_csr.queue.add(Key::of(&**delta.object()));
        }
    });
    let on_node = controller.clone();
    controller.nodes.on_change(move |delta| {
        // A request for a serving certificate may be there before the node has said its addresses.
        let addresses = |node: &Node| node.status.as_ref().and_then(|s| s.addresses.clone());
        if delta.old().is_none_or(|old| addresses(old) != addresses(delta.object())) {
            let waiting = on_node.csrs.list();
            for csr in
                waiting.iter().filter(|csr| csr.spec.signer_name == KUBELET_SERVING && !is_decided(csr))
            {
                on_node.queue.add(Key::of(&**csr));
            }
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        let synced = async {
            controller.csrs.synced().await;
            controller.nodes.synced().await;
        };
        tokio::select! { () = shutdown.cancelled() => return, () = synced => {} }
        let queue = controller.queue.clone();
        run_workers(NAME, queue, 2, shutdown, move |key| {
            let controller = controller.clone();
            async move { controller.sync(&key).await }
        })
        .await;
    })
}

fn is_decided(csr: &CertificateSigningRequest) -> bool {
    is_issued(csr) || has_condition(csr, "Approved") || has_condition(csr, "Denied")
}

struct Controller {
    client: Client,
    csrs: Arc<Informer<CertificateSigningRequest>>,
    nodes: Arc<Informer<Node>>,
    queue: Arc<WorkQueue<Key>>,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result {
        let Some(csr) = self.csrs.get(key).filter(|csr| !is_decided(csr)) else { return Ok(()) };
        if ![KUBELET_CLIENT, KUBELET_SERVING].contains(&csr.spec.signer_name.as_str()) {
            return Ok(());
        }
        let request = match request::parse(&csr.spec.request.0) {
            Ok(request) => request,
            Err(error) => {
                // It will never be readable; people may deny it.
                tracing::warn!(csr = %key, %error, "not approving");
                return Ok(());
            }
        };
        if request::validate(&request, &csr.spec).is_err() {
            return Ok(());
        }
        if csr.spec.signer_name == KUBELET_SERVING {
            return self.decide_serving(key, &csr, &request).await;
        }
        let own = csr.spec.username.as_deref() == request.common_name.as_deref();
        let recognizers = [
            (
                "selfnodeclient",
                own,
                "Auto approving self kubelet client certificate after SubjectAccessReview.",
            ),
            ("nodeclient", true, "Auto approving kubelet client certificate after SubjectAccessReview."),
        ];
        for (subresource, _, message) in recognizers.into_iter().filter(|(_, recognized, _)| *recognized) {
            if self.is_allowed(&csr, subresource).await? {
                return self.approve(&csr, message).await;
            }
        }
        Err(Error::Pending(format!(
            "recognized csr {:?} as kubelet client but subject access review was not approved",
            key.name
        )))
    }

    async fn decide_serving(&self, key: &Key, csr: &CertificateSigningRequest, request: &Request) -> Result {
        let user = csr.spec.username.as_deref().unwrap_or_default();
        let groups = csr.spec.groups.as_deref().unwrap_or_default();
        let name = user.strip_prefix(NODE_USER).unwrap_or_default();
        let is_node = groups.iter().any(|g| g == NODE_GROUP);
        if !is_node || request.common_name.as_deref() != Some(user) {
            tracing::warn!(csr = %key, user, "not approving: a node may ask only for itself");
            return Ok(());
        }
        match self.nodes.get(&Key::cluster(name)).filter(|node| names_are_its_own(node, request)) {
            Some(_) => {
                let message = "Auto approving kubelet serving certificate after checking its names.";
                self.approve(csr, message).await
            }
            None => {
                // The node's addresses may come yet, and they wake us; what is asked may also never be right.
                tracing::debug!(csr = %key, user, "not approving yet: names are not the node's");
                Ok(())
            }
        }
    }

    async fn is_allowed(&self, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                uid: csr.spec.uid.clone(),
                groups: csr.spec.groups.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn approve(&self, csr: &CertificateSigningRequest, message: &str) -> Result {
        let mut approved = csr.clone();
        let now = meta::now();
        approved.status.get_or_insert_default().conditions.get_or_insert_default().push(
            CertificateSigningRequestCondition {
                type_: "Approved".into(),
                status: "True".into(),
                reason: Some("AutoApproved".into()),
                message: Some(message.into()),
                last_update_time: Some(now.clone()),
                last_transition_time: Some(now),
            },
        );
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let name = meta::name(&csr.metadata);
        let outcome: std::result::Result<CertificateSigningRequest, _> =
            api.replace_subresource("approval", name, &PostParams::default(), &approved).await;
        outcome?;
        Ok(())
    }
}

/// Whether every name in the request is one of the node's addresses, or its name.
fn names_are_its_own(node: &Node, request: &Request) -> bool {
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let mut dns: BTreeSet<&str> = BTreeSet::from([meta::name(&node.metadata)]);
    let mut ips: BTreeSet<IpAddr> = BTreeSet::new();
    for address in addresses {
        match address.type_.as_str() {
            "InternalIP" | "ExternalIP" => ips.extend(address.address.parse::<IpAddr>().ok()),
            "Hostname" | "InternalDNS" | "ExternalDNS" => {
                dns.insert(&address.address);
            }
            _ => {}
        }
    }
    request.dns_names.iter().all(|name| dns.contains(name.as_str())) && request.ips.is_subset(&ips)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(names: &[&str], expected: bool) {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1"},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "Hostname", "address": "host1"}]},
        }))
        .unwrap();
        let pem = super::request::tests::csr("system:node:n1", NODE_GROUP, names);
        assert_eq!(names_are_its_own(&node, &request::parse(&pem).unwrap()), expected, "{names:?}");
    }

    #[test]
    fn a_node_serves_under_its_own_names_only() {
        check(&["n1", "host1", "10.0.0.1"], true);
        check(&["10.0.0.2"], false);
        check(&["kubernetes.default.svc", "10.0.0.1"], false);
    }
}
