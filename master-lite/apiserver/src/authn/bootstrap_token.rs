//! Bootstrap tokens: `id.secret`, kept in Secrets of kube-system, with which a machine asks to become a node
//! (upstream's `plugin/pkg/auth/authenticator/token/bootstrap`).

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_api::meta::GroupResource;
use serde_json::{Value, json};

use crate::authz::rbac::text;
use crate::extension::{ObjectReader, UserInfo};

const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const DEFAULT_GROUP: &str = "system:bootstrappers";

/// The group that `kubeadm` and `keelson-master` give to tokens of joining nodes.
pub const NODE_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

/// Id (6 characters) and secret (16) of a token of this form.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str, len: usize| {
        s.len() == len && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (plain(id, 6) && plain(secret, 16)).then_some((id, secret))
}

/// Who a bootstrap token stands for; `None` for anything that isn't one in force.
pub fn authenticate(token: &str, reader: &dyn ObjectReader, now: i64) -> Option<UserInfo> {
    let (id, secret) = parse(token)?;
    let object =
        reader.get(&GroupResource::new("", "secrets"), Some(NAMESPACE), &format!("bootstrap-token-{id}"))?;
    match check(&object, id, secret, now) {
        Ok(user) => Some(user),
        Err(why) => {
            tracing::debug!(token_id = id, why, "bootstrap token refused");
            None
        }
    }
}

fn check(object: &Value, id: &str, secret: &str, now: i64) -> Result<UserInfo, &'static str> {
    let data = |key: &str| -> String {
        let bytes = STANDARD.decode(text(&object["data"], &format!("/{key}"))).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Err("is deleted and awaiting removal");
    }
    if text(object, "/type") != SECRET_TYPE {
        return Err("has another type than bootstrap.kubernetes.io/token");
    }
    if !constant_time_equal(data("token-secret").as_bytes(), secret.as_bytes()) {
        return Err("has another value for key token-secret");
    }
    if data("token-id") != id {
        return Err("has another value for key token-id");
    }
    let expiration = data("expiration");
    if !expiration.is_empty() {
        match chrono::DateTime::parse_from_rfc3339(&expiration) {
            Ok(time) if time.timestamp() > now => {}
            Ok(_) => return Err("has expired"),
            Err(_) => return Err("has an unreadable expiration, taken as expired"),
        }
    }
    if data("usage-bootstrap-authentication") != "true" {
        return Err("is not marked usage-bootstrap-authentication=true");
    }
    let mut groups = BTreeSet::from([DEFAULT_GROUP.to_owned()]);
    let extra = data("auth-extra-groups");
    for group in extra.split(',').filter(|_| !extra.is_empty()) {
        if !valid_group(group) {
            return Err("has an invalid value for key auth-extra-groups");
        }
        groups.insert(group.to_owned());
    }
    Ok(UserInfo {
        name: format!("system:bootstrap:{id}"),
        groups: groups.into_iter().collect(),
        ..UserInfo::default()
    })
}

/// `\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`
fn valid_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|b| plain(b) || b == b':' || b == b'-')
        && rest.bytes().last().is_some_and(plain)
}

/// Compares without telling by its time where the difference is; only the lengths show.
pub(super) fn constant_time_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |acc, (x, y)| std::hint::black_box(acc | (x ^ y))) == 0
}

/// The Secret of a token for joining nodes; `expiration` in RFC 3339, or none for a token that lasts.
///
/// Returns `None` if the token isn't of the form `[a-z0-9]{6}.[a-z0-9]{16}`.
pub fn secret(token: &str, expiration: Option<&str>) -> Option<Value> {
    let (id, secret) = parse(token)?;
    let mut data = json!({
        "token-id": STANDARD.encode(id),
        "token-secret": STANDARD.encode(secret),
        "usage-bootstrap-authentication": STANDARD.encode("true"),
        "usage-bootstrap-signing": STANDARD.encode("true"),
        "auth-extra-groups": STANDARD.encode(NODE_GROUP),
    });
    if let Some(expiration) = expiration {
        data["expiration"] = json!(STANDARD.encode(expiration));
    }
    Some(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": NAMESPACE},
        "type": SECRET_TYPE,
        "data": data,
    }))
}

/// A new random token.
pub fn generate() -> String {
    use rand::Rng as _;
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    let mut take = |n: usize| -> String {
        (0..n).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
    };
    format!("{}.{}", take(6), take(16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::fake::FakeReader;

    const TOKEN: &str = "abcdef.0123456789abcdef";
    const NOW: i64 = 1_800_000_000;

    #[test]
    fn tokens_in_force_only() {
        let check = |change: &dyn Fn(&mut Value), token: &str, want: Option<&[&str]>| {
            let mut secret = secret(TOKEN, Some("2030-01-01T00:00:00Z")).unwrap();
            change(&mut secret);
            let reader = FakeReader::new(vec![("", "secrets", secret)]);
            let got = authenticate(token, &reader, NOW);
            assert_eq!(
                got.as_ref().map(|u| u.groups.iter().map(String::as_str).collect::<Vec<_>>()).as_deref(),
                want
            );
        };
        let set = |key: &'static str, value: &'static str| {
            move |s: &mut Value| s["data"][key] = json!(STANDARD.encode(value))
        };
        let both: Option<&[&str]> = Some(&[DEFAULT_GROUP, NODE_GROUP]);
        check(&|_| {}, TOKEN, both);
        check(&|_| {}, "abcdef.0123456789abcdeg", None);
        check(&|_| {}, "abcdeg.0123456789abcdef", None);
        check(&|_| {}, "abcdef.0123456789ABCDEF", None);
        check(&|_| {}, "", None);
        check(&set("expiration", "2020-01-01T00:00:00Z"), TOKEN, None);
        check(&set("expiration", "soon"), TOKEN, None);
        check(&set("expiration", ""), TOKEN, both);
        check(&set("usage-bootstrap-authentication", "false"), TOKEN, None);
        check(&set("auth-extra-groups", ""), TOKEN, Some(&[DEFAULT_GROUP]));
        check(&set("auth-extra-groups", "system:masters"), TOKEN, None);
        check(&set("auth-extra-groups", "system:bootstrappers:"), TOKEN, None);
        check(&|s| s["type"] = json!("Opaque"), TOKEN, None);
        check(&|s| s["metadata"]["deletionTimestamp"] = json!("2020-01-01T00:00:00Z"), TOKEN, None);
    }

    #[test]
    fn made_tokens_parse() {
        let token = generate();
        assert!(parse(&token).is_some(), "{token}");
        assert_eq!(
            authenticate(&token, &FakeReader::new(vec![("", "secrets", secret(&token, None).unwrap())]), NOW)
                .unwrap()
                .name,
            format!("system:bootstrap:{}", &token[..6])
        );
        assert!(secret("short", None).is_none());
    }
}
