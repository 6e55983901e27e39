//! Signs approved requests with the cluster's CA.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use keelson_client::{Delta, Key, WorkQueue, meta, run_workers};
use kube::api::PostParams;
use kube::{Api, Client};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use super::request::{self, Request};
use super::{ACCOUNT, CLIENT, KUBELET_CLIENT, KUBELET_SERVING, has_condition, is_issued};
use crate::config::SigningConfig;
use crate::context::{Context, Task};
use crate::error::Result;

const NAME: &str = "certificatesigningrequest-signing-controller";
/// Certificates are good from this long ago, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Shortest validity that is given.
const SHORTEST: Duration = Duration::from_secs(10 * 60);
/// Below this the time before now comes on top of the validity.
const SHORT: Duration = Duration::from_secs(8 * 3600);

/// Starts the controller; without a CA in the settings it does nothing.
pub fn start(context: &Context) -> Task {
    let Some(config) = context.config.signing.clone() else { return Box::pin(async {}) };
    let authority = match Authority::new(&config) {
        Ok(authority) => Arc::new(authority),
        Err(error) => {
            tracing::error!(%error, "certificates can't be signed");
            return Box::pin(async {});
        }
    };
    let client = context.client(ACCOUNT);
    let csrs = context.informers.csrs.clone();
    let queue: Arc<WorkQueue<Key>> = WorkQueue::new();
    let on_csr = queue.clone();
    csrs.on_change(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            on_csr.add(Key::of(&**delta.object()));
        }
    });
    let shutdown = context.shutdown.clone();
    Box::pin(async move {
        tokio::select! { () = shutdown.cancelled() => return, () = csrs.synced() => {} }
        run_workers(NAME, queue, 2, shutdown, move |key| {
            let (client, csrs, authority) = (client.clone(), csrs.clone(), authority.clone());
            async move {
                match csrs.get(&key) {
                    Some(csr) => sync(client, &authority, (*csr).clone()).await,
                    None => Ok(()),
                }
            }
        })
        .await;
    })
}

async fn sync(client: Client, authority: &Authority, mut csr: CertificateSigningRequest) -> Result {
    let is_ours = [KUBELET_CLIENT, KUBELET_SERVING, CLIENT].contains(&csr.spec.signer_name.as_str());
    let is_ready = has_condition(&csr, "Approved") && !has_condition(&csr, "Denied");
    if !is_ours || !is_ready || has_condition(&csr, "Failed") || is_issued(&csr) {
        return Ok(());
    }
    let signed = match request::parse(&csr.spec.request.0) {
        Err(error) => Err(error.to_string()),
        Ok(request) => request::validate(&request, &csr.spec).and_then(|()| {
            authority.sign(request, &csr.spec, OffsetDateTime::now_utc()).map_err(|error| error.to_string())
        }),
    };
    let status = csr.status.get_or_insert_default();
    match signed {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(message) => {
            let now = meta::now();
            status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Failed".into(),
                status: "True".into(),
                reason: Some("SignerValidationFailure".into()),
                message: Some(message),
                last_update_time: Some(now.clone()),
                last_transition_time: Some(now),
            });
        }
    }
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let name = meta::name(&csr.metadata).to_owned();
    match api.replace_status(&name, &PostParams::default(), &csr).await {
        Err(error) if !meta::is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The CA can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Key or certificate can't be read, or don't sign.
    #[error("the certificate authority cannot sign: {0}")]
    Rcgen(#[from] rcgen::Error),
    /// The CA's certificate can't be read.
    #[error("the certificate authority's certificate cannot be read: {0}")]
    Certificate(String),
}

/// The cluster's CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    expires: OffsetDateTime,
    max_validity: Duration,
}

impl Authority {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn new(config: &SigningConfig) -> std::result::Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(&config.ca_key)?;
        let unreadable = |error: &dyn std::fmt::Display| AuthorityError::Certificate(error.to_string());
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(config.ca_certificate.as_bytes()).map_err(|e| unreadable(&e))?;
        let expires = pem.parse_x509().map_err(|e| unreadable(&e))?.validity().not_after.to_datetime();
        let issuer = Issuer::from_ca_cert_pem(&config.ca_certificate, key)?;
        Ok(Authority { issuer, expires, max_validity: config.max_validity })
    }

    /// Signs a request that has been validated. Subject, names and key are the request's; everything else is ours.
    ///
    /// # Errors
    /// When a usage is unknown to the library or signing fails.
    pub fn sign(
        &self,
        mut request: Request,
        spec: &CertificateSigningRequestSpec,
        now: OffsetDateTime,
    ) -> std::result::Result<String, rcgen::Error> {
        let validity = validity(spec.expiration_seconds, self.max_validity);
        let params = &mut request.params.params;
        params.not_before = now - BACKDATE;
        let from = if validity < SHORT { now } else { params.not_before };
        params.not_after = (from + validity).min(self.expires);
        params.is_ca = IsCa::ExplicitNoCa;
        params.serial_number = None;
        params.use_authority_key_identifier_extension = true;
        params.key_usages.clear();
        params.extended_key_usages.clear();
        for usage in spec.usages.iter().flatten() {
            match usage.as_str() {
                "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "client auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
                "server auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
                _ => return Err(rcgen::Error::UnsupportedExtension),
            }
        }
        Ok(request.params.signed_by(&self.issuer)?.pem())
    }
}

fn validity(asked: Option<i32>, most: Duration) -> Duration {
    let Some(asked) = asked else { return most };
    Duration::from_secs(u64::try_from(asked).unwrap_or(0)).max(SHORTEST).min(most)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams};
    use x509_parser::prelude::*;

    use super::*;

    fn config() -> SigningConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        SigningConfig {
            ca_certificate: certificate.pem(),
            ca_key: key.serialize_pem(),
            max_validity: Duration::from_secs(365 * 24 * 3600),
        }
    }

    fn check_validity(asked: Option<i32>, expected: u64) {
        assert_eq!(validity(asked, Duration::from_secs(86_400)).as_secs(), expected);
    }

    #[test]
    fn validities() {
        check_validity(None, 86_400);
        check_validity(Some(3600), 3600);
        check_validity(Some(1), 600);
        check_validity(Some(i32::MAX), 86_400);
        check_validity(Some(-5), 600);
    }

    #[test]
    fn a_signed_certificate_holds_what_was_asked_and_no_more() {
        let config = config();
        let authority = Authority::new(&config).unwrap();
        let pem = super::request::tests::csr("system:node:n1", "system:nodes", &[]);
        let spec = CertificateSigningRequestSpec {
            signer_name: KUBELET_CLIENT.into(),
            usages: Some(vec!["digital signature".into(), "client auth".into()]),
            expiration_seconds: Some(3600),
            ..Default::default()
        };
        let now = OffsetDateTime::now_utc();
        let signed = authority.sign(request::parse(&pem).unwrap(), &spec, now).unwrap();
        let (_, block) = parse_x509_pem(signed.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        let (_, ca) = parse_x509_pem(config.ca_certificate.as_bytes()).unwrap();
        certificate.verify_signature(Some(ca.parse_x509().unwrap().public_key())).unwrap();
        let name = certificate.subject().iter_common_name().next().unwrap().as_str().unwrap();
        assert_eq!(name, "system:node:n1");
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        assert!(!certificate.is_ca());
        let left = certificate.validity().not_after.timestamp() - now.unix_timestamp();
        assert!((3590..=3600).contains(&left), "{left}");
    }
}
