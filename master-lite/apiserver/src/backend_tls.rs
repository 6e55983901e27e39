//! TLS towards servers that users of the API name: webhooks, and servers of aggregated APIs.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// A certificate chain with its key, to be shown to a server.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Whom to take for the server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust<'a> {
    /// Whom one of these certificates (PEM, base64-encoded) vouches for; an empty text stands for the machine's own roots.
    Bundle(&'a str),
    /// Anyone.
    Anyone,
}

/// How to talk to such a server.
///
/// # Errors
/// When the bundle holds no certificate, or the identity can't be used.
pub(crate) fn client_config(
    trust: Trust<'_>,
    identity: Option<Identity>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Anyone => Arc::new(AnyServer::new(&provider)),
        Trust::Bundle(bundle) => Arc::new(Pool::new(certificates(bundle)?, provider.clone())?),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?,
    };
    Ok(Arc::new(config))
}

fn certificates(bundle: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if bundle.is_empty() {
        return Ok(rustls_native_certs::load_native_certs().certs);
    }
    let pem = base64::engine::general_purpose::STANDARD
        .decode(bundle)
        .map_err(|error| format!("unable to load root certificates: {error}"))?;
    Ok(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect())
}

/// Takes the certificates that Go's `x509.Certificate.Verify` takes with a pool: those that one of the pool has signed,
/// and those of the pool themselves, whether they are authorities or not.
#[derive(Debug)]
struct Pool {
    certificates: Vec<CertificateDer<'static>>,
    signed: Arc<WebPkiServerVerifier>,
}

impl Pool {
    fn new(
        certificates: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        if added == 0 {
            return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
        }
        let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Self { certificates, signed: signed.map_err(|error| error.to_string())? })
    }
}

/// What is left to check of a certificate that is trusted as such: its time, its names, its purpose.
fn check_itself(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    rustls::client::verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_unreadable| CertificateError::BadEncoding)?;
    let validity = parsed.validity();
    // What is before 1970 is past anyway.
    let seconds = |time: i64| UnixTime::since_unix_epoch(Duration::from_secs(time.try_into().unwrap_or(0)));
    let not_before = seconds(validity.not_before.timestamp());
    let not_after = seconds(validity.not_after.timestamp());
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    let usage = parsed.extended_key_usage().map_err(|_unreadable| CertificateError::BadEncoding)?;
    match usage {
        Some(usage) if !usage.value.any && !usage.value.server_auth => {
            Err(CertificateError::InvalidPurpose.into())
        }
        _ => Ok(()),
    }
}

impl ServerCertVerifier for Pool {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificates.iter().any(|known| known.as_ref() == end_entity.as_ref()) {
            return check_itself(end_entity, server_name, now).map(|()| ServerCertVerified::assertion());
        }
        self.signed.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

/// Takes any certificate, but not a handshake that its key didn't sign.
#[derive(Debug)]
pub(crate) struct AnyServer(WebPkiSupportedAlgorithms);

impl AnyServer {
    pub(crate) fn new(provider: &CryptoProvider) -> Self {
        Self(provider.signature_verification_algorithms)
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    struct Made {
        der: CertificateDer<'static>,
        key: KeyPair,
        pem: String,
    }

    fn made(change: impl FnOnce(&mut CertificateParams), issuer: Option<Made>) -> Made {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["s.n.svc".to_owned()]).unwrap();
        change(&mut params);
        let certificate = match issuer {
            None => params.self_signed(&key),
            Some(ca) => params.signed_by(&key, &Issuer::from_ca_cert_pem(&ca.pem, ca.key).unwrap()),
        };
        let certificate = certificate.unwrap();
        Made { der: certificate.der().clone(), pem: certificate.pem(), key }
    }

    async fn handshake(server: &Made, bundle: &str, name: &str) -> Result<(), String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![server.der.clone()],
                PrivateKeyDer::try_from(server.key.serialize_der()).unwrap(),
            )
            .unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let task = tokio::spawn(async move { TlsAcceptor::from(Arc::new(config)).accept(far).await });
        let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
        let config = client_config(Trust::Bundle(&bundle), None)?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let outcome = TlsConnector::from(config).connect(name, near).await;
        drop(task);
        outcome.map(|_| ()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn certificates_of_the_pool_and_those_it_signed() {
        let authority =
            |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // One certificate as authority and server, with and without being an authority.
        for change in [authority, |_: &mut CertificateParams| ()] {
            let alone = made(change, None);
            handshake(&alone, &alone.pem, "s.n.svc").await.unwrap();
            let error = handshake(&alone, &alone.pem, "other.n.svc").await.unwrap_err();
            assert!(error.contains("not valid for name"), "{error}");
        }
        let ca = made(authority, None);
        let pem = ca.pem.clone();
        let signed = made(|_| (), Some(ca));
        handshake(&signed, &pem, "s.n.svc").await.unwrap();
        let stranger = made(authority, None);
        let error = handshake(&signed, &stranger.pem, "s.n.svc").await.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
    }

    #[tokio::test]
    async fn being_in_the_pool_is_not_all() {
        let expired = |params: &mut CertificateParams| {
            params.not_before = time::OffsetDateTime::UNIX_EPOCH;
            params.not_after = time::OffsetDateTime::UNIX_EPOCH + time::Duration::days(1);
        };
        let early = |params: &mut CertificateParams| {
            params.not_before = time::OffsetDateTime::now_utc() + time::Duration::days(1);
        };
        let client = |params: &mut CertificateParams| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        };
        let refused =
            async |certificate: Made| handshake(&certificate, &certificate.pem, "s.n.svc").await.unwrap_err();
        for (certificate, why) in [
            (made(expired, None), "expired"),
            (made(early, None), "not valid yet"),
            (made(client, None), "InvalidPurpose"),
        ] {
            let error = refused(certificate).await;
            assert!(error.contains(why), "{error}");
        }
        let error = handshake(&made(|_| (), None), "nonsense", "s.n.svc").await.unwrap_err();
        assert_eq!(error, "unable to load root certificates: unable to parse bytes as PEM block");
    }
}
