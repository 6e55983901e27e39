//! Resources that are questions: who am I, whose token is this, may they do that, give me a token.

mod access;
mod attributes;
mod identity;
mod rules;
mod token_request;

use std::collections::HashMap;
use std::sync::Arc;

use keelson_api::field::FieldError;
use keelson_api::meta::{GroupResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::admission::node_restriction::NodeRestriction;
use crate::authn::TokenAuthenticator;
use crate::authn::service_account::TokenIssuer;
use crate::authz::ClusterAuthorizer;
use crate::extension::{ExtensionKey, ObjectReader, StatusError, VirtualResource};

/// What the reviews ask.
pub struct ReviewParts {
    /// Decides access.
    pub authorizer: Arc<ClusterAuthorizer>,
    /// Reads tokens.
    pub tokens: Arc<TokenAuthenticator>,
    /// Signs tokens.
    pub issuer: Arc<TokenIssuer>,
    /// Checks what nodes ask for.
    pub node_restriction: Arc<NodeRestriction>,
    /// Finds accounts, and what tokens are bound to.
    pub reader: Arc<dyn ObjectReader>,
}

/// All reviews by their resource.
pub fn resources(parts: &ReviewParts) -> HashMap<ExtensionKey, Arc<dyn VirtualResource>> {
    const AUTHN: &str = "authentication.k8s.io";
    const AUTHZ: &str = "authorization.k8s.io";
    let authorizer = || parts.authorizer.clone();
    let access = |scope| Arc::new(access::AccessReview::new(authorizer(), scope)) as Arc<dyn VirtualResource>;
    let key = |group: &str, resource: &str, subresource: &str| {
        (GroupResource::new(group, resource), subresource.to_owned())
    };
    HashMap::from([
        (
            key(AUTHN, "selfsubjectreviews", ""),
            Arc::new(identity::SelfSubjectReview) as Arc<dyn VirtualResource>,
        ),
        (
            key(AUTHN, "tokenreviews", ""),
            Arc::new(identity::TokenReview::new(parts.tokens.clone(), &parts.issuer)),
        ),
        (key(AUTHZ, "subjectaccessreviews", ""), access(access::Scope::Anyone)),
        (key(AUTHZ, "localsubjectaccessreviews", ""), access(access::Scope::Local)),
        (key(AUTHZ, "selfsubjectaccessreviews", ""), access(access::Scope::Oneself)),
        (
            key(AUTHZ, "selfsubjectrulesreviews", ""),
            Arc::new(rules::SelfSubjectRulesReview::new(authorizer())),
        ),
        (
            key("", "serviceaccounts", "token"),
            Arc::new(token_request::TokenRequests::new(
                parts.issuer.clone(),
                parts.node_restriction.clone(),
                parts.reader.clone(),
            )),
        ),
    ])
}

/// A 422, as reviews give it: without a name.
fn invalid(kind: &GroupVersionKind, errors: &[FieldError]) -> StatusError {
    StatusError::invalid(kind, "", errors)
}

/// The answer's kind and version, whatever the request left out.
fn stamp(kind: &GroupVersionKind, object: &mut Value) {
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
}

/// Fields of metadata that a client set, other than those that never count.
fn has_metadata(object: &Value, except: &[&str]) -> bool {
    let fields = object["metadata"].as_object().into_iter().flatten();
    fields
        .into_iter()
        .any(|(key, value)| !except.contains(&key.as_str()) && key != "managedFields" && !value.is_null())
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::extension::{RequestContext, RequestInfo, UserInfo};

    /// A POST by a user.
    pub(crate) fn context(user: UserInfo, namespace: &str, name: &str) -> RequestContext {
        let info = RequestInfo {
            namespace: namespace.into(),
            name: name.into(),
            verb: "create".into(),
            ..RequestInfo::default()
        };
        RequestContext { info, user, query: Vec::new(), dry_run: false }
    }
}
