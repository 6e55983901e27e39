//! Issuing of certificates by the cluster CA.

use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use super::{KeyPairPem, PkiError};

/// Life of a CA.
const AUTHORITY_LIFE: Duration = Duration::days(3650);
/// Life of what the CA issues here.
const LIFE: Duration = Duration::days(365);
/// Clocks of nodes may be behind ours by this much.
const SKEW: Duration = Duration::minutes(5);

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
}

/// What to put into a certificate.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Common name: the user, for clients.
    pub common_name: String,
    /// Organization: the group, for clients.
    pub organization: Option<String>,
    /// Server or client.
    pub usage: Usage,
    /// DNS names and addresses.
    pub names: Vec<String>,
}

impl Profile {
    /// A client certificate for a user in at most one group.
    pub fn client(user: &str, group: Option<&str>) -> Self {
        Self {
            common_name: user.to_owned(),
            organization: group.map(str::to_owned),
            usage: Usage::Client,
            names: Vec::new(),
        }
    }
}

/// A new self-signed CA.
pub(super) fn authority(common_name: &str) -> Result<KeyPairPem, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name(common_name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key)?;
    Ok(KeyPairPem { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new certificate with a new key.
pub(super) fn issue(ca: &KeyPairPem, profile: &Profile) -> Result<KeyPairPem, PkiError> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(profile.names.clone())?;
    params.distinguished_name = name(&profile.common_name, profile.organization.as_deref());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![match profile.usage {
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, LIFE);
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(KeyPairPem { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut out = DistinguishedName::new();
    if let Some(organization) = organization {
        out.push(DnType::OrganizationName, organization);
    }
    out.push(DnType::CommonName, common_name);
    out
}

fn validity(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + life;
}

/// Whether a certificate that is there may be kept: signed by this CA, for these names, a third of its life to go.
pub(super) fn still_good(
    path: &Path,
    pair: &KeyPairPem,
    ca: &CertificateDer<'_>,
    profile: &Profile,
) -> Result<bool, PkiError> {
    let bad = |why: String| PkiError::Content { path: path.to_owned(), why };
    let (_, pem) =
        x509_parser::pem::parse_x509_pem(pair.certificate.as_bytes()).map_err(|e| bad(e.to_string()))?;
    let certificate = pem.parse_x509().map_err(|e| bad(e.to_string()))?;
    let (_, authority) = x509_parser::parse_x509_certificate(ca).map_err(|e| bad(e.to_string()))?;
    if certificate.verify_signature(Some(authority.public_key())).is_err() {
        return Ok(false);
    }
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let now = OffsetDateTime::now_utc().unix_timestamp();
    if now < from || until - now < (until - from) / 3 {
        return Ok(false);
    }
    let subject = certificate.subject();
    let first = |mut it: Box<dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>> + '_>| {
        it.next().and_then(|a| a.as_str().ok()).map(str::to_owned)
    };
    if first(Box::new(subject.iter_common_name())).as_deref() != Some(profile.common_name.as_str())
        || first(Box::new(subject.iter_organization())) != profile.organization
    {
        return Ok(false);
    }
    let names = certificate.subject_alternative_name().map_err(|e| bad(e.to_string()))?;
    let mut have: Vec<String> =
        names.map(|n| n.value.general_names.iter().filter_map(text).collect()).unwrap_or_default();
    let mut want = profile.names.clone();
    have.sort();
    want.sort();
    Ok(have == want)
}

fn text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(dns) => Some((*dns).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}
