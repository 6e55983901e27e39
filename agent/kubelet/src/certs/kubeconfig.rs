//! Reading the kubeconfigs of a node, and writing `kubelet.conf` after TLS bootstrapping.

use std::fs;
use std::path::Path;
use std::time::Duration;

use http::{HeaderValue, header};
use kube::Config;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};

use super::store::write_atomically;
use super::{Error, Identity, Result};
use crate::node::KUBELET_VERSION;

/// A connection attempt to the API fails after this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Loads a kubeconfig's current context.
pub(super) async fn load(path: &Path) -> Result<(Kubeconfig, Config)> {
    let wrap = |source| Error::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrap)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default())
        .await
        .map_err(|source| Error::Kubeconfig { path: path.to_owned(), source })?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The part before the slash comes to own the fields that the node writes.
    if let Ok(agent) = HeaderValue::from_str(&format!("kubelet/{KUBELET_VERSION}")) {
        config.headers.push((header::USER_AGENT, agent));
    }
    Ok((kubeconfig, config))
}

/// The same API endpoint with the node's certificate as its only credential.
pub(super) fn with_identity(endpoint: &Config, identity: &Identity) -> Result<Config> {
    use base64::Engine;
    let encode = |pem: String| base64::engine::general_purpose::STANDARD.encode(pem);
    // Through serde, because the field's secret type is not part of kube's own public names.
    let auth_info: AuthInfo = serde_json::from_value(serde_json::json!({
        "client-certificate-data": encode(identity.certificates_pem()),
        "client-key-data": encode(identity.key_pem()),
    }))
    .map_err(|error| Error::Pem { origin: "client certificate".to_owned(), reason: error.to_string() })?;
    let mut config = endpoint.clone();
    config.auth_info = auth_info;
    Ok(config)
}

/// Writes `kubelet.conf`: the cluster of the bootstrap kubeconfig, and a user whose certificate is the rotating file.
pub(super) fn write(path: &Path, endpoint: &Config, certificate: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    write_atomically(path, &render(endpoint, certificate), 0o600)
}

fn render(endpoint: &Config, certificate: &Path) -> String {
    use base64::Engine;
    let authority: String =
        endpoint.root_cert.iter().flatten().map(|der| pem_block("CERTIFICATE", der)).collect();
    let authority = base64::engine::general_purpose::STANDARD.encode(authority);
    let server = endpoint.cluster_url.to_string();
    let server = quote(server.trim_end_matches('/'));
    let server_name =
        endpoint.tls_server_name.as_deref().map(|name| format!("\n    tls-server-name: {}", quote(name)));
    let certificate = quote(&certificate.display().to_string());
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: default-cluster
  cluster:
    certificate-authority-data: {authority}
    server: {server}{server_name}
contexts:
- name: default-context
  context:
    cluster: default-cluster
    namespace: default
    user: default-auth
current-context: default-context
users:
- name: default-auth
  user:
    client-certificate: {certificate}
    client-key: {certificate}
",
        server_name = server_name.unwrap_or_default(),
    )
}

/// A YAML scalar in double quotes (JSON strings are YAML).
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn pem_block(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::identity::tests::self_signed;
    use super::*;

    #[tokio::test]
    async fn what_is_written_can_be_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::from_pem(&self_signed("ca", &[]), "test").unwrap();
        let mut endpoint = Config::new("https://10.89.0.2:6443".parse().unwrap());
        endpoint.root_cert = Some(vec![identity.chain[0].to_vec()]);
        let (path, certificate) = (dir.path().join("etc/kubelet.conf"), dir.path().join("current.pem"));
        write(&path, &endpoint, &certificate).unwrap();
        let (kubeconfig, config) = load(&path).await.unwrap();
        assert_eq!(config.cluster_url, endpoint.cluster_url);
        assert_eq!(config.root_cert, endpoint.root_cert);
        let [(name, agent)] = config.headers.as_slice() else { panic!("{:?}", config.headers) };
        assert!(name == header::USER_AGENT && agent.to_str().unwrap().starts_with("kubelet/v1."));
        let user = kubeconfig.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.client_certificate.as_deref(), certificate.to_str());
    }
}
