//! Bound service account tokens: issuing them and finding out whether one still stands for something
//! (upstream's `pkg/serviceaccount`).

use std::collections::BTreeMap;

use keelson_api::meta::GroupResource;
use serde_json::{Value, json};

use super::jwt::{JwtError, TokenKey, claimed_issuer};
use crate::authz::rbac::text;
use crate::extension::{ObjectReader, UserInfo};

/// Tokens asked for with exactly this life are those that pods get by admission; they live a year and warn from here
/// on, so that programs which never re-read their token go on working.
pub const WARN_ONLY_SECONDS: i64 = 60 * 60 + 7;

/// Life of such a token.
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;

/// Clock skew allowed between issuer and checker, which are the same server or its peers.
const LEEWAY_SECONDS: i64 = 60;

/// Prefix of a service account's user name.
pub const USER_PREFIX: &str = "system:serviceaccount:";

/// An object that a token is bound to: it dies with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Reference {
    /// Name and UID of an object.
    pub fn of(object: &Value) -> Self {
        Self {
            name: text(object, "/metadata/name").to_owned(),
            uid: text(object, "/metadata/uid").to_owned(),
        }
    }

    fn claim(&self) -> Value {
        let mut out = json!({"name": self.name});
        if !self.uid.is_empty() {
            out["uid"] = json!(self.uid);
        }
        out
    }

    fn from_claim(claim: &Value) -> Option<Self> {
        claim
            .is_object()
            .then(|| Self { name: text(claim, "/name").to_owned(), uid: text(claim, "/uid").to_owned() })
    }
}

/// What a token is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    /// Pod, with its node where that is known.
    pub pod: Option<Reference>,
    /// Secret.
    pub secret: Option<Reference>,
    /// Node.
    pub node: Option<Reference>,
}

/// What to issue.
#[derive(Debug, Clone)]
pub struct TokenSpec<'a> {
    /// Namespace of the account.
    pub namespace: &'a str,
    /// Account.
    pub account: Reference,
    /// What it is bound to.
    pub binding: Binding,
    /// Audiences; never empty.
    pub audiences: Vec<String>,
    /// Life asked for, in seconds.
    pub expiration_seconds: i64,
}

/// Why a service account token isn't accepted, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Signature or form.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// Anything that its claims say.
    #[error("{0}")]
    Claims(String),
}

/// Issues and checks tokens.
pub struct TokenIssuer {
    key: TokenKey,
    issuer: String,
    audiences: Vec<String>,
}

/// A token that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who it speaks for.
    pub user: UserInfo,
    /// Those of the wanted audiences that the token is meant for.
    pub audiences: Vec<String>,
}

impl TokenIssuer {
    /// `audiences` are those of the API server; tokens without audiences are taken to be for it.
    pub fn new(key: TokenKey, issuer: &str, audiences: Vec<String>) -> Self {
        Self { key, issuer: issuer.to_owned(), audiences }
    }

    /// The API server's audiences.
    pub fn api_audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The `iss` claim.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The signing key.
    pub fn key(&self) -> &TokenKey {
        &self.key
    }

    /// True if the token claims to be ours: then its errors count, else another authenticator may read it.
    pub fn claims(&self, token: &str) -> bool {
        claimed_issuer(token).as_deref() == Some(self.issuer.as_str())
    }

    /// A signed token. `now` in seconds since the epoch.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, spec: &TokenSpec<'_>, now: i64) -> Result<String, TokenError> {
        let extend = spec.binding.pod.is_some()
            && spec.expiration_seconds == WARN_ONLY_SECONDS
            && spec.audiences.iter().all(|a| self.audiences.contains(a));
        let life = if extend { EXTENDED_SECONDS } else { spec.expiration_seconds };
        let mut kubernetes = json!({"namespace": spec.namespace, "serviceaccount": spec.account.claim()});
        let bound =
            [("pod", &spec.binding.pod), ("secret", &spec.binding.secret), ("node", &spec.binding.node)];
        for (key, reference) in bound {
            if let Some(reference) = reference {
                kubernetes[key] = reference.claim();
            }
        }
        if extend {
            kubernetes["warnafter"] = json!(now + spec.expiration_seconds);
        }
        let claims = json!({
            "aud": spec.audiences,
            "exp": now + life,
            "iat": now,
            "iss": self.issuer,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": kubernetes,
            "nbf": now,
            "sub": format!("{USER_PREFIX}{}:{}", spec.namespace, spec.account.name),
        });
        Ok(self.key.sign(&claims)?)
    }

    /// Who a token speaks for, if it is ours, in force, meant for one of `wanted` (the API server's audiences when
    /// empty), and all it is bound to still exists.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(
        &self,
        token: &str,
        wanted: &[String],
        reader: &dyn ObjectReader,
        now: i64,
    ) -> Result<Identity, TokenError> {
        let claims = self.key.verify(token)?;
        if text(&claims, "/iss") != self.issuer {
            return Err(TokenError::Claims(format!("token issuer {:?} is invalid", text(&claims, "/iss"))));
        }
        let audiences = self.audiences_of(&claims, wanted)?;
        check_times(&claims, now)?;
        let user = living_user(&claims, reader, now).map_err(TokenError::Claims)?;
        Ok(Identity { user, audiences })
    }

    fn audiences_of(&self, claims: &Value, wanted: &[String]) -> Result<Vec<String>, TokenError> {
        let given: Vec<String> = match &claims["aud"] {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().filter_map(|a| a.as_str().map(str::to_owned)).collect(),
            _ => self.audiences.clone(),
        };
        let wanted = if wanted.is_empty() { &self.audiences } else { wanted };
        let both: Vec<String> = given.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if both.is_empty() {
            return Err(TokenError::Claims(format!(
                "token audiences {} is invalid for the target audiences {}",
                crate::authz::rule::go_quoted_list(&given),
                crate::authz::rule::go_quoted_list(wanted),
            )));
        }
        Ok(both)
    }
}

fn check_times(claims: &Value, now: i64) -> Result<(), TokenError> {
    let refuse = |why: &str| Err(TokenError::Claims(why.to_owned()));
    // A fraction is allowed by the standard; whole seconds are what we write.
    let time = |key: &str| claims[key].as_f64().map(|t| t as i64);
    match time("exp") {
        Some(expiry) if now - LEEWAY_SECONDS < expiry => {}
        _ => return refuse("service account token has expired"),
    }
    if time("nbf").is_some_and(|t| now + LEEWAY_SECONDS < t) {
        return refuse("service account token is not valid yet");
    }
    if time("iat").is_some_and(|t| now + LEEWAY_SECONDS < t) {
        return refuse("service account token is issued in the future");
    }
    Ok(())
}

/// The user of a token whose account and bound objects are all there, with the same UIDs.
fn living_user(claims: &Value, reader: &dyn ObjectReader, now: i64) -> Result<UserInfo, String> {
    const INVALIDATED: &str = "service account token has been invalidated";
    let kubernetes = &claims["kubernetes.io"];
    let namespace = text(kubernetes, "/namespace");
    let account = Reference::from_claim(&kubernetes["serviceaccount"])
        .unwrap_or(Reference { name: String::new(), uid: String::new() });
    let get = |resource: &str, namespace: Option<&str>, name: &str| {
        reader.get(&GroupResource::new("", resource), namespace, name)
    };

    let object = get("serviceaccounts", Some(namespace), &account.name)
        .ok_or_else(|| format!("serviceaccounts {:?} not found", account.name))?;
    let uid = text(&object, "/metadata/uid");
    if uid != account.uid {
        return Err(format!("service account UID ({uid}) does not match claim ({})", account.uid));
    }
    if deleted(&object, now) {
        return Err(format!("service account {namespace}/{} has been deleted", account.name));
    }

    let pod = Reference::from_claim(&kubernetes["pod"]);
    let node = Reference::from_claim(&kubernetes["node"]);
    let secret = Reference::from_claim(&kubernetes["secret"]);
    // The node of a pod-bound token is information only; a token bound to a node alone dies with it.
    let bound = [
        ("secret", "secrets", Some(namespace), &secret),
        ("pod", "pods", Some(namespace), &pod),
        ("node", "nodes", None, if pod.is_some() { &None } else { &node }),
    ];
    for (kind, resource, namespace, reference) in bound {
        let Some(reference) = reference else { continue };
        let object = get(resource, namespace, &reference.name).ok_or(INVALIDATED)?;
        let uid = text(&object, "/metadata/uid");
        if uid != reference.uid {
            return Err(format!(
                "{kind} UID ({uid}) does not match service account {kind} ref claim ({})",
                reference.uid
            ));
        }
        if deleted(&object, now) {
            return Err(INVALIDATED.to_owned());
        }
    }

    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
        }
    };
    if let Some(pod) = &pod {
        add("pod-name", &pod.name);
        add("pod-uid", &pod.uid);
    }
    if let Some(node) = &node {
        add("node-name", &node.name);
        add("node-uid", &node.uid);
    }
    let jti = text(claims, "/jti");
    if !jti.is_empty() {
        add("credential-id", &format!("JTI={jti}"));
    }
    Ok(UserInfo {
        name: format!("{USER_PREFIX}{namespace}:{}", account.name),
        uid: account.uid,
        groups: groups(namespace),
        extra,
    })
}

/// Groups of every service account of a namespace, without `system:authenticated`.
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

/// Namespace and name of a service account's user name.
pub fn split_user(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(USER_PREFIX)?.split_once(':')?;
    let label = |s: &str| {
        !s.is_empty()
            && s.len() <= 253
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    (label(namespace) && !name.is_empty() && name.split('.').all(label)).then_some((namespace, name))
}

/// Whether an object's deletion lies so far back that what is bound to it counts as gone.
fn deleted(object: &Value, now: i64) -> bool {
    chrono::DateTime::parse_from_rfc3339(text(object, "/metadata/deletionTimestamp"))
        .is_ok_and(|t| t.timestamp() < now - LEEWAY_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::super::jwt::tests::key;
    use super::*;
    use crate::authz::fake::FakeReader;

    const NOW: i64 = 1_800_000_000;

    fn issuer() -> TokenIssuer {
        TokenIssuer::new(
            key(),
            "https://kubernetes.default.svc",
            vec!["https://kubernetes.default.svc".to_owned()],
        )
    }

    fn object(name: &str, uid: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "a", "uid": uid}})
    }

    fn world() -> FakeReader {
        FakeReader::new(vec![
            ("", "serviceaccounts", object("bot", "sa1")),
            ("", "pods", object("p", "pod1")),
            ("", "secrets", object("s", "sec1")),
            ("", "nodes", json!({"metadata": {"name": "n", "uid": "node1"}})),
        ])
    }

    fn reference(name: &str, uid: &str) -> Option<Reference> {
        Some(Reference { name: name.into(), uid: uid.into() })
    }

    fn spec(binding: Binding, audience: &str, seconds: i64) -> TokenSpec<'static> {
        TokenSpec {
            namespace: "a",
            account: Reference { name: "bot".into(), uid: "sa1".into() },
            binding,
            audiences: vec![audience.to_owned()],
            expiration_seconds: seconds,
        }
    }

    #[test]
    fn a_pod_token_names_its_pod_and_node() {
        let issuer = issuer();
        let binding = Binding { pod: reference("p", "pod1"), node: reference("n", "node1"), secret: None };
        let token = issuer.issue(&spec(binding, issuer.issuer(), WARN_ONLY_SECONDS), NOW).unwrap();
        let claims = issuer.key.verify(&token).unwrap();
        assert_eq!(claims["exp"], NOW + EXTENDED_SECONDS);
        assert_eq!(claims["kubernetes.io"]["warnafter"], NOW + WARN_ONLY_SECONDS);
        assert_eq!(claims["sub"], "system:serviceaccount:a:bot");
        let got = issuer.check(&token, &[], &world(), NOW + 10).unwrap();
        assert_eq!(got.user.name, "system:serviceaccount:a:bot");
        assert_eq!(got.user.uid, "sa1");
        assert_eq!(got.user.groups, ["system:serviceaccounts", "system:serviceaccounts:a"]);
        assert_eq!(got.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(got.user.extra["authentication.kubernetes.io/node-uid"], ["node1"]);
        assert!(got.user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));
    }

    #[test]
    fn tokens_die() {
        let issuer = issuer();
        let ours = issuer.issuer().to_owned();
        let check = |binding: Binding, audience: &str, wanted: &[&str], at: i64, gone: &str, want: &str| {
            let world = world();
            world.remove(gone);
            let token = issuer.issue(&spec(binding, audience, 600), NOW).unwrap();
            let wanted: Vec<String> = wanted.iter().map(|s| (*s).to_owned()).collect();
            let got = issuer.check(&token, &wanted, &world, at);
            assert_eq!(got.map(|i| i.user.name).unwrap_or_else(|e| e.to_string()), want);
        };
        let ok = "system:serviceaccount:a:bot";
        let invalid = "service account token has been invalidated";
        let none = Binding::default;
        let pod = |uid: &str| Binding { pod: reference("p", uid), ..Binding::default() };
        let secret = || Binding { secret: reference("s", "sec1"), ..Binding::default() };
        let node = || Binding { node: reference("n", "node1"), ..Binding::default() };
        check(none(), &ours, &[], NOW, "", ok);
        check(none(), &ours, &[], NOW + 599 + LEEWAY_SECONDS, "", ok);
        check(none(), &ours, &[], NOW + 600 + LEEWAY_SECONDS, "", "service account token has expired");
        check(none(), &ours, &[], NOW - LEEWAY_SECONDS - 1, "", "service account token is not valid yet");
        check(none(), "vault", &["vault", "x"], NOW, "", ok);
        let wrong = "token audiences [\"vault\"] is invalid for the target audiences [\"https://kubernetes.default.svc\"]";
        check(none(), "vault", &[], NOW, "", wrong);
        check(none(), &ours, &[], NOW, "bot", "serviceaccounts \"bot\" not found");
        check(pod("pod1"), &ours, &[], NOW, "", ok);
        check(pod("pod1"), &ours, &[], NOW, "p", invalid);
        check(
            pod("old"),
            &ours,
            &[],
            NOW,
            "",
            "pod UID (pod1) does not match service account pod ref claim (old)",
        );
        check(secret(), &ours, &[], NOW, "", ok);
        check(secret(), &ours, &[], NOW, "s", invalid);
        check(node(), &ours, &[], NOW, "", ok);
        check(node(), &ours, &[], NOW, "n", invalid);
        check(Binding { pod: reference("p", "pod1"), ..node() }, &ours, &[], NOW, "n", ok);
    }

    #[test]
    fn an_account_made_again_is_another() {
        let issuer = issuer();
        let world = world();
        let token = issuer.issue(&spec(Binding::default(), issuer.issuer(), 600), NOW).unwrap();
        world.remove("bot");
        world.add("", "serviceaccounts", object("bot", "sa2"));
        let got = issuer.check(&token, &[], &world, NOW).unwrap_err();
        assert_eq!(got.to_string(), "service account UID (sa2) does not match claim (sa1)");
        world.remove("bot");
        let mut dying = object("bot", "sa1");
        dying["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z");
        world.add("", "serviceaccounts", dying);
        let got = issuer.check(&token, &[], &world, NOW).unwrap_err();
        assert_eq!(got.to_string(), "service account a/bot has been deleted");
    }

    #[test]
    fn user_names_split() {
        for (user, want) in [
            ("system:serviceaccount:a:b.c", Some(("a", "b.c"))),
            ("system:serviceaccount:a:b:c", None),
            ("system:serviceaccount:a:", None),
            ("system:serviceaccount:A:b", None),
            ("jane", None),
        ] {
            assert_eq!(split_user(user), want);
        }
    }
}
