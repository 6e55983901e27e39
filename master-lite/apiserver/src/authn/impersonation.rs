//! Acting as someone else: the `Impersonate-*` headers, each thing asked for authorized by the verb `impersonate`
//! (upstream's `endpoints/filters/impersonation`).

use std::collections::BTreeMap;

use http::HeaderMap;
use keelson_api::meta::GroupResource;

use super::service_account;
use crate::authz::forbidden_message;
use crate::extension::{Authorizer, AuthorizerAttributes, Decision, Result, StatusError, UserInfo};

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// One thing that must be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    User(String),
    ServiceAccount(String, String),
    Group(String),
    Extra(String, String),
    Uid(String),
}

/// Reads the headers.
fn wanted(headers: &HeaderMap) -> Result<Vec<Wanted>> {
    let bad = |name: &str| StatusError::bad_request(format!("header {name} is not valid UTF-8"));
    let values = |name: &str| -> Result<Vec<String>> {
        let all = headers.get_all(name).into_iter();
        all.map(|v| std::str::from_utf8(v.as_bytes()).map(str::to_owned).map_err(|_not_utf8| bad(name)))
            .collect()
    };
    let mut out = Vec::new();
    let user = values("impersonate-user")?.into_iter().next().filter(|u| !u.is_empty());
    let has_user = user.is_some();
    if let Some(user) = user {
        out.push(match service_account::split_user(&user) {
            Some((namespace, name)) => Wanted::ServiceAccount(namespace.to_owned(), name.to_owned()),
            None => Wanted::User(user),
        });
    }
    out.extend(values("impersonate-group")?.into_iter().map(Wanted::Group));
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA_PREFIX) {
            let key = percent_decode(key);
            out.extend(values(name.as_str())?.into_iter().map(|value| Wanted::Extra(key.clone(), value)));
        }
    }
    out.extend(values("impersonate-uid")?.into_iter().next().filter(|u| !u.is_empty()).map(Wanted::Uid));
    if !out.is_empty() && !has_user {
        return Err(StatusError::internal(
            "requested impersonation without impersonating a user: Impersonate-User is required with other Impersonate headers",
        ));
    }
    Ok(out)
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex =
            bytes.get(i + 1..i + 3).filter(|_| bytes[i] == b'%').and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    // Malformed encodings are kept as they came, so that they're still recorded.
    String::from_utf8(out).unwrap_or_else(|_not_utf8| text.to_owned())
}

/// The user to go on as: the requestor itself without such headers.
///
/// # Errors
/// 403 for the first thing that isn't allowed; 500 for headers without `Impersonate-User`, as upstream.
pub async fn impersonate(
    headers: &HeaderMap,
    requestor: UserInfo,
    authorizer: &dyn Authorizer,
) -> Result<UserInfo> {
    let wanted = wanted(headers)?;
    if wanted.is_empty() {
        return Ok(requestor);
    }
    let mut user = UserInfo::default();
    let mut groups_given = Vec::new();
    let mut account_groups = Vec::new();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for thing in wanted {
        let mut ask = AuthorizerAttributes {
            user: requestor.clone(),
            verb: "impersonate".to_owned(),
            version: "v1".to_owned(),
            resource_request: true,
            ..AuthorizerAttributes::default()
        };
        let (group, resource, name) = match &thing {
            Wanted::User(name) => ("", "users", name),
            Wanted::ServiceAccount(namespace, name) => {
                ask.namespace.clone_from(namespace);
                ("", "serviceaccounts", name)
            }
            Wanted::Group(name) => ("", "groups", name),
            Wanted::Extra(key, value) => {
                ask.subresource.clone_from(key);
                ("authentication.k8s.io", "userextras", value)
            }
            Wanted::Uid(uid) => ("authentication.k8s.io", "uids", uid),
        };
        ask.group = group.to_owned();
        ask.resource = resource.to_owned();
        ask.name.clone_from(name);
        if let Decision::Deny(reason) | Decision::NoOpinion(reason) = authorizer.authorize(&ask).await {
            let resource = GroupResource::new(&ask.group, &ask.resource);
            return Err(StatusError::forbidden(&resource, &ask.name, forbidden_message(&ask, &reason)));
        }
        match thing {
            Wanted::User(name) => user.name = name,
            Wanted::ServiceAccount(namespace, name) => {
                user.name = format!("{}{namespace}:{name}", service_account::USER_PREFIX);
                account_groups = service_account::groups(&namespace);
            }
            Wanted::Group(name) => groups_given.push(name),
            Wanted::Extra(key, value) => extra.entry(key).or_default().push(value),
            Wanted::Uid(uid) => user.uid = uid,
        }
    }
    // Groups of an account follow from its name, unless groups are given: then those count alone.
    user.groups = if groups_given.is_empty() { account_groups } else { groups_given };
    user.extra = extra;
    const AUTHENTICATED: &str = "system:authenticated";
    const UNAUTHENTICATED: &str = "system:unauthenticated";
    if user.name == "system:anonymous" {
        if !user.in_group(UNAUTHENTICATED) {
            user.groups.push(UNAUTHENTICATED.to_owned());
        }
    } else if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;
    use crate::authz::fake::FakeReader;
    use crate::authz::{ClusterAuthorizer, RBAC_GROUP};

    #[tokio::test]
    async fn each_header_is_authorized() {
        let authorizer = ClusterAuthorizer::new(Arc::new(FakeReader::new(vec![
            (
                RBAC_GROUP,
                "clusterroles",
                json!({"metadata": {"name": "i"}, "rules": [
                    {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["jane", "system:anonymous"]},
                    {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]},
                    {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["dev"]},
                    {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"]}]}),
            ),
            (
                RBAC_GROUP,
                "clusterrolebindings",
                json!({"metadata": {"name": "i"}, "roleRef": {"kind": "ClusterRole", "name": "i"}, "subjects": [{"kind": "User", "name": "me"}]}),
            ),
        ])));
        let check = async |headers: &[(&str, &str)], want: Result<(&str, &[&str]), &str>| {
            let mut map = HeaderMap::new();
            for (key, value) in headers {
                map.append(
                    HeaderName::from_bytes(key.as_bytes()).unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                );
            }
            let got = impersonate(&map, UserInfo::new("me", &["g"]), &authorizer).await;
            match (got, want) {
                (Ok(user), Ok((name, groups))) => assert_eq!(
                    (user.name.as_str(), user.groups),
                    (name, groups.iter().map(|g| (*g).to_owned()).collect())
                ),
                (Err(error), Err(text)) => assert_eq!(error.message, text),
                (got, want) => panic!("{headers:?}: {got:?} but {want:?}"),
            }
        };
        check(&[], Ok(("me", &["g"]))).await;
        check(&[("impersonate-user", "jane")], Ok(("jane", &["system:authenticated"]))).await;
        check(
            &[("Impersonate-User", "jane"), ("Impersonate-Group", "dev")],
            Ok(("jane", &["dev", "system:authenticated"])),
        )
        .await;
        check(
            &[("Impersonate-User", "system:anonymous")],
            Ok(("system:anonymous", &["system:unauthenticated"])),
        )
        .await;
        check(
            &[("Impersonate-User", "system:serviceaccount:a:b")],
            Ok((
                "system:serviceaccount:a:b",
                &["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"],
            )),
        )
        .await;
        check(
            &[("Impersonate-User", "root")],
            Err("users \"root\" is forbidden: User \"me\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"),
        )
        .await;
        let group = "groups \"system:masters\" is forbidden: User \"me\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope";
        check(&[("Impersonate-User", "jane"), ("Impersonate-Group", "system:masters")], Err(group)).await;
        check(
            &[("Impersonate-User", "jane"), ("Impersonate-Extra-Scopes", "x")],
            Ok(("jane", &["system:authenticated"])),
        )
        .await;
        assert!(
            impersonate(
                &HeaderMap::from_iter([(
                    HeaderName::from_static("impersonate-group"),
                    HeaderValue::from_static("dev")
                )]),
                UserInfo::new("me", &[]),
                &authorizer
            )
            .await
            .is_err()
        );
    }

    proptest::proptest! {
        #[test]
        fn decoding_never_fails(text in "[%0-9a-zA-Z/é]{0,40}") {
            let decoded = percent_decode(&text);
            proptest::prop_assert!(text.contains('%') || decoded == text);
        }
    }
}
