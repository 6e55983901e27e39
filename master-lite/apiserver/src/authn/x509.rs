//! Users from client certificates: common name is the user, organizations are the groups.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use x509_parser::oid_registry::{Oid, asn1_rs::oid};

use crate::extension::UserInfo;
use crate::pki::{Pki, PkiError};

/// Attribute of a subject that holds a user's UID (upstream's `asn1util.X509UID`).
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// Verified leaves to remember. A connection's requests share one; nodes and clients together stay far below.
const CACHE_SIZE: usize = 4096;

/// Checks client certificates against the cluster CA and reads users from them.
pub struct CertificateAuthenticator {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Users by hash of the leaf, with the second at which the leaf expires.
    known: Mutex<HashMap<[u8; 32], (UserInfo, i64)>>,
}

impl CertificateAuthenticator {
    /// Trusts the cluster CA.
    ///
    /// # Errors
    /// When the verifier can't be built from the CA's certificate.
    pub fn new(pki: &Pki) -> Result<Self, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(pki.roots()?), provider)
            .build()
            .map_err(|e| PkiError::Verifier(e.to_string()))?;
        Ok(Self { verifier, known: Mutex::default() })
    }

    /// The user that a peer's chain stands for; `None` if there is no chain or the subject has no common name.
    ///
    /// # Errors
    /// Why the chain isn't trusted: another CA, expired, not for clients.
    pub fn authenticate(&self, chain: &[CertificateDer<'_>], now: i64) -> Result<Option<UserInfo>, String> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Ok(None) };
        let hash: [u8; 32] = Sha256::digest(leaf).into();
        if let Some((user, expiry)) = self.known.lock().get(&hash)
            && now < *expiry
        {
            return Ok(Some(user.clone()));
        }
        let seconds = std::time::Duration::from_secs(now.max(0).unsigned_abs());
        self.verifier
            .verify_client_cert(leaf, intermediates, UnixTime::since_unix_epoch(seconds))
            .map_err(|e| e.to_string())?;
        let Some((user, expiry)) = user_of(leaf, &hash)? else { return Ok(None) };
        let mut known = self.known.lock();
        if known.len() >= CACHE_SIZE {
            known.clear();
        }
        known.insert(hash, (user.clone(), expiry));
        Ok(Some(user))
    }
}

/// Reads the user out of a leaf that has been verified.
fn user_of(leaf: &CertificateDer<'_>, hash: &[u8; 32]) -> Result<Option<(UserInfo, i64)>, String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|e| e.to_string())?;
    let subject = certificate.subject();
    let strings = |it: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| -> Result<Vec<String>, String> {
        it.map(|a| a.as_str().map(str::to_owned).map_err(|e| e.to_string())).collect()
    };
    let Some(name) = strings(&mut subject.iter_common_name())?.pop().filter(|n| !n.is_empty()) else {
        return Ok(None);
    };
    let mut uids = strings(&mut subject.iter_by_oid(&UID))?;
    if uids.len() > 1 {
        return Err(format!("expected 1 UID, but found multiple: {uids:?}"));
    }
    let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    let user = UserInfo {
        name,
        uid: uids.pop().unwrap_or_default(),
        groups: strings(&mut subject.iter_organization())?,
        extra: BTreeMap::from([(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("X509SHA256={hex}")],
        )]),
    };
    Ok(Some((user, certificate.validity().not_after.timestamp())))
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject as _;

    use super::*;
    use crate::pki::{PkiConfig, Profile, Usage};

    fn pki(dir: &std::path::Path) -> Pki {
        Pki::load_or_create(&PkiConfig {
            directory: dir.to_owned(),
            advertise_address: [127, 0, 0, 1].into(),
            service_address: [10, 96, 0, 1].into(),
            cluster_domain: "cluster.local".into(),
            extra_sans: vec![],
        })
        .unwrap()
    }

    #[test]
    fn only_our_ca_and_only_clients() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, theirs) = (pki(ours.path()), pki(theirs.path()));
        let authenticator = CertificateAuthenticator::new(&ours).unwrap();
        let now = chrono::Utc::now().timestamp();
        let chain = |pki: &Pki, profile: &Profile| {
            vec![CertificateDer::from_pem_slice(pki.issue(profile).unwrap().certificate.as_bytes()).unwrap()]
        };
        let node = Profile::client("system:node:n1", Some("system:nodes"));
        let good = chain(&ours, &node);
        for _ in 0..2 {
            let user = authenticator.authenticate(&good, now).unwrap().unwrap();
            assert_eq!(
                (user.name.as_str(), user.groups.as_slice()),
                ("system:node:n1", &["system:nodes".to_owned()][..])
            );
            assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));
        }
        assert_eq!(authenticator.authenticate(&[], now), Ok(None));
        assert!(authenticator.authenticate(&good, now + 400 * 86400).is_err(), "expired, though remembered");
        assert!(authenticator.authenticate(&chain(&theirs, &node), now).is_err());
        let server = Profile { usage: Usage::Server, ..node };
        assert!(authenticator.authenticate(&chain(&ours, &server), now).is_err());
        assert_eq!(authenticator.authenticate(&chain(&ours, &Profile::client("", None)), now), Ok(None));
    }
}
