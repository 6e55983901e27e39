//! The certificate of the kubelet's HTTPS server: shown by rustls, swapped while connections go on.

use std::sync::{Arc, RwLock};
use std::time::SystemTime;

use kube::Client;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::client::ClientSource;
use super::rotation::{obtain, sleep_until_due};
use super::{CertificateStore, Error, Identity, Result, Template};

/// The serving certificate of now. Until there is one, handshakes fail, as upstream's do while its request waits.
#[derive(Debug, Default)]
pub struct ServingCertificate {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl ServingCertificate {
    /// Shows this certificate from the next handshake on.
    pub fn set(&self, identity: &Identity) -> Result<()> {
        let provider = rustls::crypto::ring::default_provider();
        let key =
            CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &provider).map_err(
                |error| Error::Pem { origin: "serving certificate".to_owned(), reason: error.to_string() },
            )?;
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(key));
        Ok(())
    }

    /// Whether a certificate is there.
    pub fn is_set(&self) -> bool {
        self.get().is_some()
    }

    fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}

/// Whether a stored certificate still serves `template`: valid now, and for all its names.
fn serves(identity: &Identity, template: &Template, now: SystemTime) -> bool {
    identity.is_valid(now)
        && identity.common_name == template.common_name
        && template.dns_names.iter().all(|name| identity.dns_names.contains(name))
        && template.ip_addresses.iter().all(|address| identity.ip_addresses.contains(address))
}

/// Keeps `shown` supplied for ever: takes the stored certificate if it still serves, requests one if not, renews it
/// at 70 to 90 % of its lifetime. Failures are logged and tried again.
pub async fn maintain(
    client: Client,
    template: Template,
    store: CertificateStore,
    shown: Arc<ServingCertificate>,
) {
    let source = ClientSource::Fixed(client);
    let mut stored = match store.load() {
        Ok(stored) => stored.filter(|identity| serves(identity, &template, SystemTime::now())),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "stored serving certificate is unusable"
            );
            None
        }
    };
    loop {
        let identity = match stored.take() {
            Some(identity) => identity,
            None => obtain(&source, &template, &store).await,
        };
        if let Err(error) = shown.set(&identity) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "issued serving certificate is unusable"
            );
        }
        sleep_until_due(&identity).await;
    }
}

/// A self-signed certificate for the node, for clusters whose signer issues none (`--rotate-server-certificates=false`,
/// upstream's default).
pub fn self_signed(template: &Template) -> Result<Identity> {
    let names =
        template.dns_names.iter().cloned().chain(template.ip_addresses.iter().map(ToString::to_string));
    let mut params = rcgen::CertificateParams::new(names.collect::<Vec<_>>())?;
    params.distinguished_name.push(rcgen::DnType::CommonName, template.common_name.as_str());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    Identity::from_pem(&(certificate.pem() + &key.serialize_pem()), "self-signed certificate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_address_needs_a_new_certificate() {
        let template = |ip: &str| Template::serving("n1", "n1", vec![ip.parse().unwrap()]);
        let identity = self_signed(&template("10.0.0.1")).unwrap();
        assert!(serves(&identity, &template("10.0.0.1"), SystemTime::now()));
        assert!(!serves(&identity, &template("10.0.0.2"), SystemTime::now()));
        assert!(!serves(&identity, &template("10.0.0.1"), std::time::UNIX_EPOCH));
    }

    #[test]
    fn certificate_is_swapped() {
        let shown = ServingCertificate::default();
        assert!(!shown.is_set());
        shown.set(&self_signed(&Template::serving("n1", "n1", Vec::new())).unwrap()).unwrap();
        assert!(shown.is_set());
    }
}
