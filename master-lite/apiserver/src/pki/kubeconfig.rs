//! Writing of kubeconfig files (`client.config` v1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::KeyPairPem;

/// How the user of a kubeconfig proves who it is.
pub enum Credentials {
    /// Client certificate and key, embedded.
    Certificate(KeyPairPem),
    /// Bearer token.
    Token(String),
}

/// One cluster, one user, one context.
pub struct Kubeconfig {
    /// URL of the server.
    pub server: String,
    /// CA that signed the server's certificate, in PEM.
    pub ca_pem: String,
    /// Name of the user's entry.
    pub user: String,
    /// What the user shows.
    pub credentials: Credentials,
}

impl Kubeconfig {
    /// The file's text. JSON is YAML, and quoting is then never in doubt.
    pub fn to_yaml(&self) -> String {
        let user = match &self.credentials {
            Credentials::Certificate(pair) => serde_json::json!({
                "client-certificate-data": STANDARD.encode(&pair.certificate),
                "client-key-data": STANDARD.encode(&pair.key),
            }),
            Credentials::Token(token) => serde_json::json!({"token": token}),
        };
        let context = format!("{}@kubernetes", self.user);
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "kubernetes",
                "cluster": {"server": self.server, "certificate-authority-data": STANDARD.encode(&self.ca_pem)},
            }],
            "users": [{"name": self.user, "user": user}],
            "contexts": [{"name": context, "context": {"cluster": "kubernetes", "user": self.user}}],
            "current-context": context,
            "preferences": {},
        });
        format!("{config:#}\n")
    }
}
