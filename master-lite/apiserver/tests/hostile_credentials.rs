//! Tokens that are forged or stale, and certificates that reach for what is not theirs.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/socket.rs"]
mod socket;

use keelson_apiserver::Timeouts;
use keelson_apiserver::authn::jwt::TokenKey;
use keelson_apiserver::authn::service_account::{Binding, Reference, TokenIssuer, TokenSpec};
use keelson_apiserver::pki::Profile;
use serde_json::{Value, json};
use socket::{Fixture, ISSUER, pki};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_do_not_stand() {
    let f = Fixture::new(Timeouts::default()).await;
    let mut admin = f.connect(Some(f.pki.admin())).await;
    let account =
        admin.make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "bot"}})).await;
    let uid = account["metadata"]["uid"].as_str().unwrap().to_owned();
    let issue = |key: &str, issuer: &str, audience: &str, uid: &str, at: i64| {
        let issuer = TokenIssuer::new(TokenKey::from_pem(key).unwrap(), issuer, vec![ISSUER.into()]);
        let spec = TokenSpec {
            namespace: "default",
            account: Reference { name: "bot".into(), uid: uid.into() },
            binding: Binding::default(),
            audiences: vec![audience.into()],
            expiration_seconds: 3600,
        };
        issuer.issue(&spec, at).unwrap()
    };
    let ours = f.pki.token_key_pem();
    let good = issue(ours, ISSUER, ISSUER, &uid, now());
    let mut client = f.connect(None).await;
    let (code, status) = client.send("GET", "/api/v1/secrets", &good, Value::Null).await;
    assert_eq!(code, 403, "known, and not allowed: {status}");
    let user = "User \"system:serviceaccount:default:bot\" cannot list resource \"secrets\"";
    assert!(status["message"].as_str().unwrap().contains(user), "{status}");

    let stranger = pki(f.dir.path().join("stranger"));
    let parts: Vec<&str> = good.split('.').collect();
    let [header, claims, signature] = parts.as_slice() else { panic!("{good}") };
    let other = issue(ours, ISSUER, ISSUER, "other", now());
    let encode = |text: &str| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    };
    for (what, token) in [
        ("signed by another key", issue(stranger.token_key_pem(), ISSUER, ISSUER, &uid, now())),
        ("claims exchanged", format!("{header}.{}.{signature}", other.split('.').nth(1).unwrap())),
        ("not signed", format!("{}.{claims}.", encode("{\"alg\":\"none\"}"))),
        ("symmetric", format!("{}.{claims}.{signature}", encode("{\"alg\":\"HS256\"}"))),
        ("expired", issue(ours, ISSUER, ISSUER, &uid, now() - 7200)),
        ("not yet in force", issue(ours, ISSUER, ISSUER, &uid, now() + 7200)),
        ("for another audience", issue(ours, ISSUER, "vault", &uid, now())),
        ("of another issuer", issue(ours, "https://else.where", ISSUER, &uid, now())),
        ("of an account that was made again", other),
        ("noise", "a.b.c".into()),
    ] {
        for path in ["/api/v1/secrets", "/version"] {
            let (code, status) = client.send("GET", path, &token, Value::Null).await;
            assert_eq!((code, &status["reason"]), (401, &json!("Unauthorized")), "{what}: {path} {status}");
            // Why is for the log, not for the one who tries.
            assert_eq!(status["message"], "Unauthorized", "{what}");
        }
    }
    let (code, _) = client.send("GET", "/version", &good, Value::Null).await;
    assert_eq!(code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_reaches_no_further_than_its_pods() {
    let f = Fixture::new(Timeouts::default()).await;
    let mut admin = f.connect(Some(f.pki.admin())).await;
    admin.make("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    for i in [1, 2] {
        let secret = json!({"metadata": {"name": format!("s{i}")}, "stringData": {"k": "v"}});
        admin.make("/api/v1/namespaces/default/secrets", secret).await;
        admin.make("/api/v1/nodes", json!({"metadata": {"name": format!("n{i}")}})).await;
        let pod = json!({"metadata": {"name": format!("p{i}")}, "spec": {
            "nodeName": format!("n{i}"), "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "secret": {"secretName": format!("s{i}")}}],
        }});
        admin.make("/api/v1/namespaces/default/pods", pod).await;
    }
    let identity = f.pki.issue(&Profile::client("system:node:n1", Some("system:nodes"))).unwrap();
    let mut node = f.connect(Some(&identity)).await;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let s = |i: u8| format!("/api/v1/namespaces/default/secrets/s{i}");
    let (code, secret) = node.send("GET", &s(1), "", Value::Null).await;
    assert_eq!((code, &secret["data"]["k"]), (200, &json!("dg==")), "{secret}");
    let (code, own) = node.send("PATCH", "/api/v1/nodes/n1/status", "", ready.clone()).await;
    assert_eq!(code, 200, "{own}");

    let before = admin.send("GET", "/api/v1/nodes/n2", "", Value::Null).await.1;
    let secrets = "/api/v1/namespaces/default/secrets";
    let pods = "/api/v1/namespaces/default/pods";
    for (method, path, body, kind, name, says) in [
        (
            "GET",
            s(2),
            Value::Null,
            "secrets",
            "s2",
            "no relationship found between node 'n1' and this object",
        ),
        ("GET", secrets.into(), Value::Null, "secrets", "", "cannot list resource \"secrets\""),
        ("DELETE", s(1), Value::Null, "secrets", "s1", "cannot delete resource \"secrets\""),
        ("PATCH", "/api/v1/nodes/n2/status".into(), ready, "nodes", "n2", "node \"n1\""),
        ("PATCH", "/api/v1/nodes/n2".into(), label, "nodes", "n2", "node \"n1\""),
        (
            "DELETE",
            format!("{pods}/p2"),
            Value::Null,
            "pods",
            "p2",
            "node \"n1\" can only delete pods with spec.nodeName set to itself",
        ),
    ] {
        let (code, status) = node.send(method, &path, "", body).await;
        assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")), "{method} {path}: {status}");
        assert_eq!(status["details"]["kind"], kind, "{method} {path}: {status}");
        assert_eq!(status["details"]["name"].as_str().unwrap_or_default(), name, "{method} {path}: {status}");
        assert!(status["message"].as_str().unwrap().contains(says), "{method} {path}: {status}");
    }
    let after = admin.send("GET", "/api/v1/nodes/n2", "", Value::Null).await.1;
    assert_eq!(after, before);
    // The same name from another authority is not let in at all.
    let stranger = pki(f.dir.path().join("stranger"));
    let forged = stranger.issue(&Profile::client("system:node:n2", Some("system:nodes"))).unwrap();
    let mut stream = f.tls(Some(&forged)).await;
    stream.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.ok();
    let mut answer = Vec::new();
    assert!(stream.read_to_end(&mut answer).await.is_err() && answer.is_empty(), "{answer:?}");
}
