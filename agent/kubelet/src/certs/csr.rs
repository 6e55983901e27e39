//! One CertificateSigningRequest, from template to issued certificate.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use sha2::{Digest, Sha256};

use super::{Error, Result};

/// How long a request may wait for approval and signature: upstream's certificateWaitTimeout.
const WAIT: Duration = Duration::from_secs(15 * 60);
/// Deadline of one API call.
const CALL: Duration = Duration::from_secs(30);

/// What a certificate is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// `spec.signerName`.
    pub signer: &'static str,
    /// `spec.usages`.
    pub usages: &'static [&'static str],
    /// Subject common name: `system:node:<name>`.
    pub common_name: String,
    /// Subject alternative names: DNS.
    pub dns_names: Vec<String>,
    /// Subject alternative names: addresses.
    pub ip_addresses: Vec<IpAddr>,
}

impl Template {
    /// The node's client certificate.
    pub fn client(node_name: &str) -> Self {
        Self {
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            // Without "key encipherment": that is for RSA keys, and ours are P-256 (KEP-3107's signer rules allow both).
            usages: &["digital signature", "client auth"],
            common_name: format!("system:node:{node_name}"),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
        }
    }

    /// The certificate of the kubelet's HTTPS server.
    pub fn serving(node_name: &str, hostname: &str, mut ip_addresses: Vec<IpAddr>) -> Self {
        ip_addresses.sort_unstable();
        ip_addresses.dedup();
        Self {
            signer: "kubernetes.io/kubelet-serving",
            usages: &["digital signature", "server auth"],
            common_name: format!("system:node:{node_name}"),
            dns_names: vec![hostname.to_owned()],
            ip_addresses,
        }
    }

    /// The PKCS #10 request, as PEM.
    fn pem(&self, key: &KeyPair) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        for name in &self.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(self.ip_addresses.iter().copied().map(SanType::IpAddress));
        Ok(params.serialize_request(key)?.pem()?)
    }

    /// Name of the request: the same for the same key and template, so that a restarted agent finds its own again.
    fn request_name(&self, key: &KeyPair) -> String {
        let mut digest = Sha256::new();
        digest.update(key.public_key_raw());
        digest.update(format!("{self:?}"));
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("node-csr-{digest}")
    }
}

/// What a request's status says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Pending,
    Issued(String),
    Refused { condition: &'static str, reason: String, message: String },
}

fn verdict(request: &CertificateSigningRequest) -> Verdict {
    let Some(status) = &request.status else { return Verdict::Pending };
    for condition in status.conditions.iter().flatten() {
        let kind = match condition.type_.as_str() {
            "Denied" => "denied",
            "Failed" => "failed",
            _ => continue,
        };
        return Verdict::Refused {
            condition: kind,
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
        };
    }
    match &status.certificate {
        Some(ByteString(pem)) if !pem.is_empty() => {
            Verdict::Issued(String::from_utf8_lossy(pem).into_owned())
        }
        _ => Verdict::Pending,
    }
}

/// Submits the request (or finds it submitted already) and waits until it is issued. Gives the chain as PEM.
pub(super) async fn request(client: &Client, template: &Template, key: &KeyPair) -> Result<String> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = template.request_name(key);
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(template.pem(key)?.into_bytes()),
            signer_name: template.signer.to_owned(),
            usages: Some(template.usages.iter().map(|usage| (*usage).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let created = tokio::time::timeout(CALL, api.create(&PostParams::default(), &object))
        .await
        .map_err(|_elapsed| Error::NotIssued(name.clone()))?;
    match created {
        Ok(created) => {
            tracing::info!(name = %created.name_any(), signer = template.signer, "certificate requested")
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            tracing::info!(%name, signer = template.signer, "certificate was requested before, waiting for it");
        }
        Err(error) => return Err(Error::api(format!("create certificate signing request {name}"))(error)),
    }
    tokio::time::timeout(WAIT, issued(&api, &name))
        .await
        .map_err(|_elapsed| Error::NotIssued(name.clone()))?
}

async fn issued(api: &Api<CertificateSigningRequest>, name: &str) -> Result<String> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = Box::pin(watcher(api.clone(), config).default_backoff());
    while let Some(event) = events.next().await {
        let request = match event {
            Ok(watcher::Event::Apply(request) | watcher::Event::InitApply(request)) => request,
            // Cleaned up by the controller before it was issued: the caller asks again.
            Ok(watcher::Event::Delete(_)) => return Err(Error::NotIssued(name.to_owned())),
            Ok(_) => continue,
            Err(error) => {
                tracing::debug!(%name, %error, "watch of the certificate signing request failed, retrying");
                continue;
            }
        };
        match verdict(&request) {
            Verdict::Pending => {}
            Verdict::Issued(pem) => return Ok(pem),
            Verdict::Refused { condition, reason, message } => {
                return Err(Error::Refused { name: name.to_owned(), condition, reason, message });
            }
        }
    }
    Err(Error::NotIssued(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };
    use rcgen::CertificateSigningRequestParams;

    use super::*;

    #[test]
    fn request_carries_subject_and_names() {
        let key = KeyPair::generate().unwrap();
        let template = Template::serving("n1", "n1.example", vec!["10.0.0.1".parse().unwrap()]);
        let parsed = CertificateSigningRequestParams::from_pem(&template.pem(&key).unwrap()).unwrap();
        let subject = &parsed.params.distinguished_name;
        assert_eq!(subject.get(&DnType::CommonName), Some(&"system:node:n1".into()));
        assert_eq!(subject.get(&DnType::OrganizationName), Some(&"system:nodes".into()));
        assert_eq!(parsed.params.subject_alt_names.len(), 2);
    }

    #[test]
    fn name_depends_on_key_and_template() {
        let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let client = Template::client("n1");
        assert_eq!(client.request_name(&one), client.request_name(&one));
        assert_ne!(client.request_name(&one), client.request_name(&two));
        assert_ne!(client.request_name(&one), Template::client("n2").request_name(&one));
    }

    fn check(conditions: &[&str], certificate: Option<&str>, expected: &Verdict) {
        let conditions = conditions
            .iter()
            .map(|kind| CertificateSigningRequestCondition {
                type_: (*kind).to_owned(),
                ..Default::default()
            })
            .collect();
        let certificate = certificate.map(|pem| ByteString(pem.as_bytes().to_vec()));
        let status = CertificateSigningRequestStatus { conditions: Some(conditions), certificate };
        let request = CertificateSigningRequest { status: Some(status), ..Default::default() };
        assert_eq!(&verdict(&request), expected);
    }

    #[test]
    fn verdicts() {
        let refused =
            |condition| Verdict::Refused { condition, reason: String::new(), message: String::new() };
        check(&[], None, &Verdict::Pending);
        check(&["Approved"], None, &Verdict::Pending);
        check(&["Approved"], Some("pem"), &Verdict::Issued("pem".to_owned()));
        check(&["Denied"], None, &refused("denied"));
        check(&["Approved", "Failed"], None, &refused("failed"));
        assert_eq!(verdict(&CertificateSigningRequest::default()), Verdict::Pending);
    }
}
