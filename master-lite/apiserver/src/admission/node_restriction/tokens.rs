//! Tokens: only for pods bound to the node, and only for audiences that the pod mentions.

use keelson_api::meta::GroupResource;
use serde_json::Value;

use super::NodeRestriction;
use crate::authz::node::node_identity;
use crate::authz::rbac::text;
use crate::authz::rule::go_quote;
use crate::extension::{AuthorizerAttributes, Decision, Result, StatusError, UserInfo};

impl NodeRestriction {
    /// Checks a TokenRequest of a user that may be a node; others pass.
    ///
    /// # Errors
    /// 403 or 404 if the request is a node's and isn't bound to a pod of it, or asks for an audience that the pod
    /// doesn't mention.
    pub fn check_token_request(
        &self,
        user: &UserInfo,
        namespace: &str,
        account: &str,
        object: &Value,
    ) -> Result<()> {
        let Some(node) = node_identity(user) else { return Ok(()) };
        let refuse = |why: String| {
            Err(StatusError::forbidden(&GroupResource::new("", "serviceaccounts"), account, why))
        };
        let reference = &object["spec"]["boundObjectRef"];
        let name = text(reference, "/name");
        if reference["apiVersion"] != "v1" || reference["kind"] != "Pod" || name.is_empty() {
            return refuse("node requested token not bound to a pod".to_owned());
        }
        let uid = text(reference, "/uid");
        if uid.is_empty() {
            return refuse("node requested token with a pod binding without a uid".to_owned());
        }
        let pod = self.existing_pod(namespace, name)?;
        if text(&pod, "/metadata/uid") != uid {
            return refuse(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ));
        }
        if text(&pod, "/spec/nodeName") != node {
            return refuse("node requested token bound to a pod scheduled on a different node".to_owned());
        }
        let audience = match object["spec"]["audiences"].as_array().map(Vec::as_slice).unwrap_or_default() {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return refuse("node may only request 0 or 1 audiences".to_owned()),
        };
        if self.pod_mentions_audience(&pod, namespace, audience)
            || self.may_request_audience(user, namespace, account, audience)
        {
            return Ok(());
        }
        refuse(format!(
            "audience {} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            go_quote(audience),
            user.name
        ))
    }

    fn may_request_audience(&self, user: &UserInfo, namespace: &str, account: &str, audience: &str) -> bool {
        let ask = AuthorizerAttributes {
            user: user.clone(),
            verb: "request-serviceaccounts-token-audience".to_owned(),
            namespace: namespace.to_owned(),
            version: "v1".to_owned(),
            resource: audience.to_owned(),
            name: account.to_owned(),
            resource_request: true,
            ..AuthorizerAttributes::default()
        };
        self.authorizer.decide(&ask) == Decision::Allow
    }

    /// Whether a projected token of the pod, or a CSI driver that it uses, wants the audience.
    fn pod_mentions_audience(&self, pod: &Value, namespace: &str, audience: &str) -> bool {
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        volumes.into_iter().any(|volume| {
            let sources = volume["projected"]["sources"].as_array().into_iter().flatten();
            let projected = sources.filter(|s| s["serviceAccountToken"].is_object());
            if projected.into_iter().any(|s| text(s, "/serviceAccountToken/audience") == audience) {
                return true;
            }
            let driver = self.csi_driver(pod, namespace, volume);
            driver.is_some_and(|driver| {
                let object =
                    self.reader.get(&GroupResource::new("storage.k8s.io", "csidrivers"), None, &driver);
                object.is_some_and(|o| {
                    o["spec"]["tokenRequests"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .any(|t| text(t, "/audience") == audience)
                })
            })
        })
    }

    fn csi_driver(&self, pod: &Value, namespace: &str, volume: &Value) -> Option<String> {
        if let Some(driver) = volume["csi"]["driver"].as_str() {
            return Some(driver.to_owned());
        }
        let claim = if volume["ephemeral"].is_object() {
            format!("{}-{}", text(pod, "/metadata/name"), text(volume, "/name"))
        } else {
            volume["persistentVolumeClaim"]["claimName"].as_str()?.to_owned()
        };
        let claim =
            self.reader.get(&GroupResource::new("", "persistentvolumeclaims"), Some(namespace), &claim)?;
        let volume = self.reader.get(
            &GroupResource::new("", "persistentvolumes"),
            None,
            text(&claim, "/spec/volumeName"),
        )?;
        volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
    }
}
