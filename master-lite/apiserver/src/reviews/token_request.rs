//! `serviceaccounts/token`: a token for an account, bound to a pod, secret or node if asked
//! (`pkg/registry/core/serviceaccount/storage/token.go`).

use std::sync::Arc;

use keelson_api::field::FieldError;
use keelson_api::meta::{GroupResource, GroupVersionKind};
use serde_json::{Value, json};

use super::identity::timestamp;
use super::stamp;
use crate::admission::node_restriction::NodeRestriction;
use crate::authn::now;
use crate::authn::service_account::{Binding, Reference, TokenIssuer, TokenSpec};
use crate::authz::rbac::text;
use crate::authz::rule::{go_quote, strings};
use crate::extension::{ObjectReader, RequestContext, Result, StatusError, VirtualResource};

/// Shortest life of a token, in seconds.
const MIN_SECONDS: i64 = 600;
/// Longest.
const MAX_SECONDS: i64 = 1 << 32;
/// When none is asked for.
const DEFAULT_SECONDS: i64 = 3600;

/// Issues tokens.
pub(super) struct TokenRequests {
    issuer: Arc<TokenIssuer>,
    node_restriction: Arc<NodeRestriction>,
    reader: Arc<dyn ObjectReader>,
}

impl TokenRequests {
    pub(super) fn new(
        issuer: Arc<TokenIssuer>,
        node_restriction: Arc<NodeRestriction>,
        reader: Arc<dyn ObjectReader>,
    ) -> Self {
        Self { issuer, node_restriction, reader }
    }

    fn get(&self, resource: &str, namespace: Option<&str>, name: &str) -> Result<Arc<Value>> {
        let resource = GroupResource::new("", resource);
        self.reader.get(&resource, namespace, name).ok_or_else(|| StatusError::not_found(&resource, name))
    }

    /// Resolves `spec.boundObjectRef`.
    fn binding(&self, namespace: &str, account: &str, reference: &Value) -> Result<Binding> {
        if !reference.is_object() {
            return Ok(Binding::default());
        }
        let kind = GroupVersionKind::from_type_meta(text(reference, "/apiVersion"), text(reference, "/kind"));
        let name = text(reference, "/name");
        let (binding, object) = match (kind.group.as_str(), kind.kind.as_str()) {
            ("", "Pod") => {
                let pod = self.get("pods", Some(namespace), name)?;
                if text(&pod, "/spec/serviceAccountName") != account {
                    return Err(StatusError::bad_request(format!(
                        "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                        go_quote(account)
                    )));
                }
                let node_name = text(&pod, "/spec/nodeName");
                // A node that is gone still says where the pod is assigned.
                let node = (!node_name.is_empty()).then(|| match self.get("nodes", None, node_name) {
                    Ok(node) => Reference::of(&node),
                    Err(_) => Reference { name: node_name.to_owned(), uid: String::new() },
                });
                (Binding { pod: Some(Reference::of(&pod)), node, secret: None }, pod)
            }
            ("", "Node") => {
                let node = self.get("nodes", None, name)?;
                (Binding { node: Some(Reference::of(&node)), ..Binding::default() }, node)
            }
            ("", "Secret") => {
                let secret = self.get("secrets", Some(namespace), name)?;
                (Binding { secret: Some(Reference::of(&secret)), ..Binding::default() }, secret)
            }
            _ => {
                let shown = format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind);
                return Err(StatusError::bad_request(format!("cannot bind token to object of type {shown}")));
            }
        };
        let wanted = text(reference, "/uid");
        if !wanted.is_empty() && wanted != text(&object, "/metadata/uid") {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(StatusError::conflict(&GroupResource::new(&kind.group, &kind.kind), name, why));
        }
        Ok(binding)
    }

    /// Name, namespace and UID, if the body has them, must be those of the account.
    fn check_metadata(&self, object: &Value, namespace: &str, name: &str, account: &Value) -> Result<()> {
        for (field, want, why) in [
            ("name", name, "must match the service account name if specified"),
            ("namespace", namespace, "must match the service account namespace if specified"),
        ] {
            let given = &object["metadata"][field];
            if given.as_str().is_some_and(|g| !g.is_empty() && g != want) {
                let error = FieldError::invalid(format!("metadata.{field}"), given, why);
                return Err(StatusError::invalid(&self.kind(), name, &[error]));
            }
        }
        let (given, uid) = (text(object, "/metadata/uid"), text(account, "/metadata/uid"));
        if !given.is_empty() && given != uid {
            let why = format!(
                "the UID in the token request ({given}) does not match the UID of the service account ({uid})"
            );
            return Err(StatusError::conflict(
                &GroupResource::new("authentication.k8s.io", "TokenRequest"),
                name,
                why,
            ));
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl VirtualResource for TokenRequests {
    fn kind(&self) -> GroupVersionKind {
        GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest")
    }

    async fn create(&self, context: &RequestContext, object: Value) -> Result<Value> {
        let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
        let account = self.get("serviceaccounts", Some(namespace), name)?;
        self.check_metadata(&object, namespace, name, &account)?;
        let seconds = match &object["spec"]["expirationSeconds"] {
            Value::Null => DEFAULT_SECONDS,
            given => given.as_i64().unwrap_or(0),
        };
        let at = "spec.expirationSeconds";
        let error = if seconds < MIN_SECONDS {
            Some(FieldError::invalid(at, &json!(seconds), "may not specify a duration less than 10 minutes"))
        } else if seconds > MAX_SECONDS {
            Some(FieldError::invalid(
                at,
                &json!(seconds),
                "may not specify a duration larger than 2^32 seconds",
            ))
        } else {
            None
        };
        if let Some(error) = error {
            return Err(StatusError::invalid(&self.kind(), "", &[error]));
        }
        // Before audiences are defaulted: a pod's volume that names no audience asks for none.
        self.node_restriction.check_token_request(&context.user, namespace, name, &object)?;
        let mut audiences = strings(&object["spec"], "audiences");
        if audiences.is_empty() {
            audiences = self.issuer.api_audiences().to_vec();
        }
        let reference = &object["spec"]["boundObjectRef"];
        let spec = TokenSpec {
            namespace,
            account: Reference::of(&account),
            binding: self.binding(namespace, name, reference)?,
            audiences: audiences.clone(),
            expiration_seconds: seconds,
        };
        let now = now();
        let token = self
            .issuer
            .issue(&spec, now)
            .map_err(|e| StatusError::internal(format!("failed to generate token: {e}")))?;
        let mut answer = json!({
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": spec.account.uid,
                "creationTimestamp": timestamp(now),
            },
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": null},
            "status": {"token": token, "expirationTimestamp": timestamp(now + seconds)},
        });
        if reference.is_object() {
            answer["spec"]["boundObjectRef"] = reference.clone();
        }
        stamp(&self.kind(), &mut answer);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::context;
    use super::*;
    use crate::authn::jwt::tests::key;
    use crate::authz::ClusterAuthorizer;
    use crate::authz::fake::FakeReader;
    use crate::extension::UserInfo;

    fn requests() -> TokenRequests {
        let reader: Arc<dyn ObjectReader> = Arc::new(FakeReader::new(vec![
            ("", "serviceaccounts", json!({"metadata": {"name": "bot", "namespace": "a", "uid": "sa1"}})),
            (
                "",
                "pods",
                json!({"metadata": {"name": "p", "namespace": "a", "uid": "pod1"}, "spec": {"serviceAccountName": "bot", "nodeName": "n1",
                "volumes": [{"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}}),
            ),
            (
                "",
                "pods",
                json!({"metadata": {"name": "q", "namespace": "a", "uid": "pod2"}, "spec": {"serviceAccountName": "x", "nodeName": "n1"}}),
            ),
        ]));
        let issuer = Arc::new(TokenIssuer::new(key(), "https://i", vec!["https://i".into()]));
        let authorizer = Arc::new(ClusterAuthorizer::new(reader.clone()));
        TokenRequests::new(issuer, Arc::new(NodeRestriction::new(reader.clone(), authorizer)), reader)
    }

    #[tokio::test]
    async fn tokens_are_issued_and_refused() {
        let requests = requests();
        let check = async |user: &UserInfo, account: &str, spec: Value, want: Result<i64, &str>| {
            let got = requests.create(&context(user.clone(), "a", account), json!({"spec": spec})).await;
            match (got, want) {
                (Ok(answer), Ok(seconds)) => {
                    assert_eq!(answer["spec"]["expirationSeconds"], seconds);
                    let token = answer["status"]["token"].as_str().unwrap();
                    let identity = requests.issuer.check(token, &[], &*requests.reader, now()).unwrap();
                    assert_eq!(identity.user.name, "system:serviceaccount:a:bot");
                }
                (Err(error), Err(text)) => assert!(error.message.contains(text), "{}", error.message),
                (got, want) => panic!("{got:?} but {want:?}"),
            }
        };
        let admin = UserInfo::new("admin", &["system:masters"]);
        let node = UserInfo::new("system:node:n1", &["system:nodes"]);
        let bound = |name: &str, uid: &str| json!({"expirationSeconds": 3607, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}});
        check(&admin, "bot", json!({}), Ok(3600)).await;
        check(
            &admin,
            "bot",
            json!({"expirationSeconds": 599}),
            Err("may not specify a duration less than 10 minutes"),
        )
        .await;
        check(&admin, "gone", json!({}), Err("serviceaccounts \"gone\" not found")).await;
        check(&admin, "bot", bound("p", "pod1"), Ok(3607)).await;
        check(&admin, "bot", bound("p", ""), Ok(3607)).await;
        check(
            &admin,
            "bot",
            bound("p", "old"),
            Err("Operation cannot be fulfilled on Pod \"p\": the UID in the bound object reference (old)"),
        )
        .await;
        check(
            &admin,
            "bot",
            bound("q", "pod2"),
            Err("cannot bind token for serviceaccount \"bot\" to pod running with different"),
        )
        .await;
        let odd = json!({"boundObjectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
        check(&admin, "bot", odd, Err("cannot bind token to object of type apps/v1, Kind=Deployment")).await;
        check(&node, "bot", bound("p", "pod1"), Ok(3607)).await;
        check(&node, "bot", json!({}), Err("node requested token not bound to a pod")).await;
    }
}
