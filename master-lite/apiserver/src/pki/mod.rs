//! The cluster's keys and certificates: made once under one directory, loaded afterwards, renewed at start.
//!
//! File names are kubeadm's (`ca.crt`, `apiserver.crt`, `sa.key`, ...), so that its documentation applies.

mod files;
mod issue;
pub mod kubeconfig;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use issue::{Profile, Usage};

use files::{CA, FRONT_PROXY_CA};
pub use kubeconfig::Kubeconfig;

/// What goes wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file can't be read or written.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file's content isn't what its name says.
    #[error("{path}: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate or key can't be made.
    #[error("making a certificate")]
    Make(#[from] rcgen::Error),
    /// The TLS library refuses a certificate or key.
    #[error("building a TLS configuration")]
    Tls(#[from] rustls::Error),
    /// The client certificate verifier can't be built.
    #[error("building the client certificate verifier: {0}")]
    Verifier(String),
    /// Only one of a certificate and its key is there.
    #[error("{0} is there, but the other half of the pair is not")]
    HalfPair(PathBuf),
}

/// Name in the certificate that this server shows to servers of other groups.
pub const FRONT_PROXY_CLIENT: &str = "front-proxy-client";

/// Settings of [`Pki::load_or_create`].
#[derive(Debug, Clone)]
pub struct PkiConfig {
    /// Directory of keys and certificates, made with mode 0700.
    pub directory: PathBuf,
    /// Address that nodes and clients reach the server at.
    pub advertise_address: IpAddr,
    /// First address of the service network, that of the `kubernetes` Service.
    pub service_address: IpAddr,
    /// Cluster domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// More names or addresses for the serving certificate.
    pub extra_sans: Vec<String>,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct KeyPairPem {
    /// Certificate.
    pub certificate: String,
    /// PKCS#8 private key.
    pub key: String,
}

/// The cluster's keys and certificates, loaded.
pub struct Pki {
    directory: PathBuf,
    ca: KeyPairPem,
    ca_der: CertificateDer<'static>,
    serving: KeyPairPem,
    kubelet_client: KeyPairPem,
    admin: KeyPairPem,
    front_proxy_ca: KeyPairPem,
    front_proxy_client: KeyPairPem,
    token_key: String,
}

impl Pki {
    /// Loads what is there, makes what isn't, and renews certificates that have less than a third of their life left,
    /// that another CA signed, or whose names no longer fit.
    ///
    /// # Errors
    /// When a file can't be read, written or understood. Nothing that exists and is valid is ever replaced.
    pub fn load_or_create(config: &PkiConfig) -> Result<Self, PkiError> {
        let dir = config.directory.as_path();
        files::make_directory(dir)?;
        let ca = authority(dir, CA, "kubernetes")?;
        let ca_der = parse_certificate(&dir.join("ca.crt"), &ca.certificate)?;
        let ensure = |name: &str, profile: &Profile| certificate(dir, name, &ca, &ca_der, profile);
        let serving = ensure("apiserver", &serving_profile(config))?;
        let kubelet_client =
            ensure("apiserver-kubelet-client", &Profile::client("kube-apiserver-kubelet-client", None))?;
        let admin = ensure("admin", &Profile::client("kubernetes-admin", Some("system:masters")))?;
        let front_proxy_ca = authority(dir, FRONT_PROXY_CA, "front-proxy-ca")?;
        let front_proxy_der =
            parse_certificate(&dir.join(format!("{FRONT_PROXY_CA}.crt")), &front_proxy_ca.certificate)?;
        let profile = Profile::client(FRONT_PROXY_CLIENT, None);
        let front_proxy_client =
            certificate(dir, FRONT_PROXY_CLIENT, &front_proxy_ca, &front_proxy_der, &profile)?;
        let token_key = match files::read(&dir.join("sa.key"))? {
            Some(key) => key,
            None => {
                let pair = rcgen::KeyPair::generate()?;
                let key = pair.serialize_pem();
                files::write(&dir.join("sa.key"), &key, 0o600)?;
                files::write(&dir.join("sa.pub"), &pair.public_key_pem(), 0o644)?;
                key
            }
        };
        Ok(Self {
            directory: dir.to_owned(),
            ca,
            ca_der,
            serving,
            kubelet_client,
            admin,
            front_proxy_ca,
            front_proxy_client,
            token_key,
        })
    }

    /// Where the files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cluster CA's certificate: what clients trust, and what `kube-root-ca.crt` holds.
    pub fn ca_certificate_pem(&self) -> &str {
        &self.ca.certificate
    }

    /// The cluster CA's certificate.
    pub fn ca_certificate(&self) -> &CertificateDer<'static> {
        &self.ca_der
    }

    /// The cluster CA with its key, for the certificate signing controller.
    pub fn ca(&self) -> &KeyPairPem {
        &self.ca
    }

    /// Certificate of the CA by which servers of other groups know this one. It signs nothing else: what it vouches
    /// for may speak for any user.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.front_proxy_ca.certificate
    }

    /// What the server shows to servers of other groups.
    ///
    /// # Errors
    /// When certificate or key can't be read.
    pub fn front_proxy_client(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        self.parse_pair(FRONT_PROXY_CLIENT, &self.front_proxy_client)
    }

    /// The server's certificate and key.
    pub fn serving(&self) -> &KeyPairPem {
        &self.serving
    }

    /// What the server shows to kubelets.
    pub fn kubelet_client(&self) -> &KeyPairPem {
        &self.kubelet_client
    }

    /// The administrator's certificate and key (`system:masters`).
    pub fn admin(&self) -> &KeyPairPem {
        &self.admin
    }

    /// PKCS#8 PEM of the P-256 key that signs service account tokens.
    pub fn token_key_pem(&self) -> &str {
        &self.token_key
    }

    /// Issues a certificate signed by the cluster CA, with a new key; not kept.
    ///
    /// # Errors
    /// When the CA's key can't sign, or a name is no valid DNS name.
    pub fn issue(&self, profile: &Profile) -> Result<KeyPairPem, PkiError> {
        issue::issue(&self.ca, profile)
    }

    /// TLS for the server's socket: our certificate, client certificates asked for but not required, HTTP/2 offered.
    ///
    /// A certificate that the cluster CA didn't sign is refused in the handshake.
    ///
    /// # Errors
    /// When certificate and key don't fit each other.
    pub fn server_tls(&self) -> Result<rustls::ServerConfig, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = self.roots()?;
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|e| PkiError::Verifier(e.to_string()))?;
        let (chain, key) = self.parse_pair("apiserver", &self.serving)?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// TLS towards kubelets: our client certificate, trusting only the cluster CA.
    ///
    /// # Errors
    /// When certificate and key don't fit each other.
    pub fn kubelet_tls(&self) -> Result<rustls::ClientConfig, PkiError> {
        let (chain, key) = self.parse_pair("apiserver-kubelet-client", &self.kubelet_client)?;
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(self.roots()?)
                .with_client_auth_cert(chain, key)?;
        Ok(config)
    }

    /// A store that trusts the cluster CA alone.
    ///
    /// # Errors
    /// When the CA's certificate can't be an anchor.
    pub fn roots(&self) -> Result<rustls::RootCertStore, PkiError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca_der.clone())?;
        Ok(roots)
    }

    fn parse_pair(
        &self,
        name: &str,
        pair: &KeyPairPem,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let path = self.directory.join(format!("{name}.crt"));
        let chain = vec![parse_certificate(&path, &pair.certificate)?];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())
            .map_err(|e| PkiError::Content { path: path.with_extension("key"), why: e.to_string() })?;
        Ok((chain, key))
    }

    /// Kubeconfig of the administrator.
    pub fn admin_kubeconfig(&self, server: &str) -> String {
        Kubeconfig {
            server: server.to_owned(),
            ca_pem: self.ca.certificate.clone(),
            user: "kubernetes-admin".to_owned(),
            credentials: kubeconfig::Credentials::Certificate(self.admin.clone()),
        }
        .to_yaml()
    }

    /// Kubeconfig with which a new node asks for its certificate.
    pub fn bootstrap_kubeconfig(&self, server: &str, token: &str) -> String {
        Kubeconfig {
            server: server.to_owned(),
            ca_pem: self.ca.certificate.clone(),
            user: "tls-bootstrap-token-user".to_owned(),
            credentials: kubeconfig::Credentials::Token(token.to_owned()),
        }
        .to_yaml()
    }
}

/// A CA of the directory, made if it is not there.
fn authority(dir: &Path, name: &str, common_name: &str) -> Result<KeyPairPem, PkiError> {
    if let Some(pair) = files::read_pair(dir, name)? {
        return Ok(pair);
    }
    let pair = issue::authority(common_name)?;
    files::write_pair(dir, name, &pair)?;
    Ok(pair)
}

/// A certificate of the directory, issued if there is none that is still good.
fn certificate(
    dir: &Path,
    name: &str,
    ca: &KeyPairPem,
    ca_der: &CertificateDer<'_>,
    profile: &Profile,
) -> Result<KeyPairPem, PkiError> {
    if let Some(pair) = files::read_pair(dir, name)?
        && issue::still_good(&dir.join(format!("{name}.crt")), &pair, ca_der, profile)?
    {
        return Ok(pair);
    }
    tracing::info!(certificate = name, "issuing");
    let pair = issue::issue(ca, profile)?;
    files::write_pair(dir, name, &pair)?;
    Ok(pair)
}

/// Writes a file that holds credentials: mode 0600, in place at once, parent directories made.
///
/// # Errors
/// When the file can't be written.
pub fn write_secret_file(path: &Path, content: &str) -> Result<(), PkiError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| PkiError::Io {
            action: "making",
            path: parent.to_owned(),
            source,
        })?;
    }
    files::write(path, content, 0o600)
}

fn serving_profile(config: &PkiConfig) -> Profile {
    let domain = &config.cluster_domain;
    let mut names: Vec<String> = vec![
        "kubernetes".into(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{domain}"),
        "localhost".into(),
        "127.0.0.1".into(),
        "::1".into(),
        config.advertise_address.to_string(),
        config.service_address.to_string(),
    ];
    names.extend(config.extra_sans.iter().cloned());
    names.sort();
    names.dedup();
    Profile { common_name: "kube-apiserver".into(), organization: None, usage: Usage::Server, names }
}

fn parse_certificate(path: &Path, pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| PkiError::Content { path: path.to_owned(), why: e.to_string() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn config(dir: &Path) -> PkiConfig {
        PkiConfig {
            directory: dir.join("pki"),
            advertise_address: IpAddr::from([10, 89, 0, 2]),
            service_address: IpAddr::from([10, 96, 0, 1]),
            cluster_domain: "cluster.local".into(),
            extra_sans: vec!["example.test".into()],
        }
    }

    #[test]
    fn made_once_then_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(&config(dir.path())).unwrap();
        let second = Pki::load_or_create(&config(dir.path())).unwrap();
        assert_eq!(first.ca.certificate, second.ca.certificate);
        assert_eq!(first.serving.certificate, second.serving.certificate);
        assert_eq!(first.token_key, second.token_key);
        let keys = [
            "ca.key",
            "apiserver.key",
            "sa.key",
            "admin.key",
            "apiserver-kubelet-client.key",
            "front-proxy-ca.key",
            "front-proxy-client.key",
        ];
        for key in keys {
            let mode = std::fs::metadata(dir.path().join("pki").join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        first.server_tls().unwrap();
        first.kubelet_tls().unwrap();
        assert_eq!(first.front_proxy_client.certificate, second.front_proxy_client.certificate);
        let (chain, _) = first.front_proxy_client().unwrap();
        let (_, client) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        // Signed by its own CA and no other: who it is must not come from the cluster's.
        for (pem, signed) in [(first.front_proxy_ca_pem(), true), (first.ca_certificate_pem(), false)] {
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            let authority = pem.parse_x509().unwrap();
            assert_eq!(client.verify_signature(Some(authority.public_key())).is_ok(), signed);
        }
    }

    #[test]
    fn new_names_renew_the_serving_certificate_only() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(&config(dir.path())).unwrap();
        let mut wider = config(dir.path());
        wider.extra_sans.push("10.1.2.3".into());
        let second = Pki::load_or_create(&wider).unwrap();
        assert_ne!(first.serving.certificate, second.serving.certificate);
        assert_eq!(first.admin.certificate, second.admin.certificate);
        let (_, pem) = x509_parser::pem::parse_x509_pem(second.serving.certificate.as_bytes()).unwrap();
        let text =
            format!("{:?}", pem.parse_x509().unwrap().subject_alternative_name().unwrap().unwrap().value);
        for name in [
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "example.test",
            "[10, 1, 2, 3]",
            "[10, 96, 0, 1]",
        ] {
            assert!(text.contains(name), "{name} not in {text}");
        }
    }

    #[test]
    fn a_lost_key_is_an_error_not_a_new_ca() {
        let dir = tempfile::tempdir().unwrap();
        Pki::load_or_create(&config(dir.path())).unwrap();
        for lost in ["ca.key", "front-proxy-ca.crt"] {
            let path = dir.path().join("pki").join(lost);
            let content = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert!(matches!(Pki::load_or_create(&config(dir.path())), Err(PkiError::HalfPair(_))), "{lost}");
            std::fs::write(&path, content).unwrap();
        }
    }
}
