//! A certificate chain with its private key, as read from one PEM text.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Error, Result};

/// A certificate chain (leaf first) with its key.
#[derive(Debug)]
pub struct Identity {
    /// The chain, the leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Subject common name of the leaf.
    pub common_name: String,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// DNS names of the leaf.
    pub dns_names: Vec<String>,
    /// Addresses of the leaf.
    pub ip_addresses: Vec<IpAddr>,
    /// The PEM text it was read from, certificates and key.
    pem: String,
}

impl Identity {
    /// Reads chain and key from one PEM text; `origin` names it in errors.
    pub fn from_pem(pem: &str, origin: &str) -> Result<Self> {
        let bad = |reason: String| Error::Pem { origin: origin.to_owned(), reason };
        let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
        let leaf = chain.first().ok_or_else(|| bad("no certificate".to_owned()))?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| bad(error.to_string()))?;
        let common_name = common_name(&parsed);
        let validity = parsed.validity();
        let (not_before, not_after) =
            (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()));
        let (mut dns_names, mut ip_addresses) = (Vec::new(), Vec::new());
        if let Ok(Some(names)) = parsed.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(dns) => dns_names.push((*dns).to_owned()),
                    GeneralName::IPAddress(octets) => ip_addresses.extend(ip_address(octets)),
                    _ => {}
                }
            }
        }
        Ok(Self {
            common_name,
            not_before,
            not_after,
            dns_names,
            ip_addresses,
            key,
            pem: pem.to_owned(),
            chain,
        })
    }

    /// Whether the certificate is valid at `now`.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// The certificates alone, as PEM.
    pub fn certificates_pem(&self) -> String {
        blocks(&self.pem, |label| label == "CERTIFICATE")
    }

    /// The private key alone, as PEM.
    pub fn key_pem(&self) -> String {
        blocks(&self.pem, |label| label.ends_with("PRIVATE KEY"))
    }
}

/// Common name of a certificate's subject; empty when it has none.
pub(crate) fn common_name(certificate: &X509Certificate<'_>) -> String {
    certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|cn| cn.as_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// Organizations of a certificate's subject: Kubernetes groups.
pub(crate) fn organizations(certificate: &X509Certificate<'_>) -> Vec<String> {
    certificate.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect()
}

fn ip_address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

fn time(seconds: i64) -> SystemTime {
    u64::try_from(seconds).map_or(UNIX_EPOCH, |seconds| UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The PEM blocks of `pem` whose label is wanted.
fn blocks(pem: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in pem.lines() {
        if let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) {
            inside = wanted(label);
        }
        if inside {
            out.push_str(line);
            out.push('\n');
        }
        if line.starts_with("-----END ") {
            inside = false;
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A self-signed certificate with its key.
    pub(crate) fn self_signed(common_name: &str, sans: &[&str]) -> String {
        let sans: Vec<String> = sans.iter().map(|san| (*san).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(sans).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
    }

    #[test]
    fn reads_what_was_written() {
        let pem = self_signed("system:node:n1", &["n1", "10.0.0.1"]);
        let identity = Identity::from_pem(&pem, "test").unwrap();
        assert_eq!(identity.common_name, "system:node:n1");
        assert_eq!(identity.dns_names, ["n1"]);
        assert_eq!(identity.ip_addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(identity.is_valid(SystemTime::now()));
        assert!(identity.certificates_pem().contains("BEGIN CERTIFICATE"));
        assert!(!identity.certificates_pem().contains("PRIVATE"));
        assert!(!identity.key_pem().contains("CERTIFICATE"));
    }

    #[test]
    fn refuses_text_without_key() {
        let pem = self_signed("a", &[]);
        let certificates = Identity::from_pem(&pem, "test").unwrap().certificates_pem();
        assert!(Identity::from_pem(&certificates, "test").is_err());
        assert!(Identity::from_pem("garbage", "test").is_err());
    }
}
