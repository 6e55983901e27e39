//! Reading certificate requests, and the rules of each signer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::{CertificateSigningRequestParams, SanType};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{CLIENT, KUBELET_CLIENT, KUBELET_SERVING};

/// The prefix of the names of nodes' users.
pub const NODE_USER: &str = "system:node:";
/// The group of all nodes.
pub const NODE_GROUP: &str = "system:nodes";

/// A request that has been read; its signature is good.
pub struct Request {
    /// What is to be signed.
    pub params: CertificateSigningRequestParams,
    /// The common name, if there is exactly one.
    pub common_name: Option<String>,
    /// The organizations: the groups of the user.
    pub organizations: Vec<String>,
    /// Whether the subject holds anything that the signer could not carry over.
    pub has_odd_subject: bool,
    /// DNS names asked for.
    pub dns_names: BTreeSet<String>,
    /// Addresses asked for.
    pub ips: BTreeSet<IpAddr>,
    /// Whether other kinds of names are asked for.
    pub has_other_names: bool,
}

/// The request can't be read.
#[derive(Debug, thiserror::Error)]
#[error("unable to parse csr: {0}")]
pub struct ParseError(String);

/// Reads a PEM request and verifies its signature.
pub fn parse(pem: &[u8]) -> Result<Request, ParseError> {
    let fail = |error: &dyn std::fmt::Display| ParseError(error.to_string());
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| fail(&e))?;
    if block.label != "CERTIFICATE REQUEST" && block.label != "NEW CERTIFICATE REQUEST" {
        return Err(ParseError("PEM block type must be CERTIFICATE REQUEST".into()));
    }
    let der = rustls_pki_types::CertificateSigningRequestDer::from(block.contents.clone());
    let params = CertificateSigningRequestParams::from_der(&der).map_err(|e| fail(&e))?;
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents).map_err(|e| fail(&e))?;
    let subject = &parsed.certification_request_info.subject;
    let texts = |attributes: Vec<&str>| attributes.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let names = texts(subject.iter_common_name().filter_map(|a| a.as_str().ok()).collect());
    let organizations = texts(subject.iter_organization().filter_map(|a| a.as_str().ok()).collect());
    let attributes = subject.iter_attributes().count();
    let mut request = Request {
        common_name: if let [name] = &names[..] { Some(name.clone()) } else { None },
        // What was not read as a name or an organization, or is there twice, would be lost.
        has_odd_subject: attributes != names.len() + organizations.len()
            || names.len() > 1
            || organizations.len() > 1,
        organizations,
        dns_names: BTreeSet::new(),
        ips: BTreeSet::new(),
        has_other_names: false,
        params,
    };
    for name in &request.params.params.subject_alt_names {
        match name {
            SanType::DnsName(name) => {
                request.dns_names.insert(name.as_str().to_owned());
            }
            SanType::IpAddress(ip) => {
                request.ips.insert(*ip);
            }
            _ => request.has_other_names = true,
        }
    }
    Ok(request)
}

/// Whether `signer` may sign the request (`isKubeletClient` and its like). An error becomes the `Failed` condition.
pub fn validate(request: &Request, spec: &CertificateSigningRequestSpec) -> Result<(), String> {
    let usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    if request.has_odd_subject {
        return Err("subject must hold one common name and at most one organization, and nothing else".into());
    }
    match spec.signer_name.as_str() {
        KUBELET_CLIENT => {
            is_node(request)?;
            if !request.dns_names.is_empty() {
                return Err("DNS subjectAltNames are not allowed".into());
            }
            if !request.ips.is_empty() {
                return Err("IP subjectAltNames are not allowed".into());
            }
            exact_usages(&usages, "client auth")
        }
        KUBELET_SERVING => {
            is_node(request)?;
            if request.dns_names.is_empty() && request.ips.is_empty() {
                return Err("DNS or IP subjectAltName is required".into());
            }
            exact_usages(&usages, "server auth")
        }
        CLIENT => {
            let allowed = ["digital signature", "key encipherment", "client auth"];
            if !usages.contains("client auth") {
                return Err("usages did not include client auth".into());
            }
            match usages.iter().find(|usage| !allowed.contains(usage)) {
                Some(usage) => Err(format!("usage {usage:?} is not allowed")),
                None => Ok(()),
            }
        }
        other => Err(format!("unrecognized signerName: {other:?}")),
    }
}

fn is_node(request: &Request) -> Result<(), String> {
    if request.organizations != [NODE_GROUP] {
        return Err("subject organization is not system:nodes".into());
    }
    if request.has_other_names {
        return Err("email and URI subjectAltNames are not allowed".into());
    }
    if !request.common_name.as_deref().unwrap_or_default().starts_with(NODE_USER) {
        return Err("subject common name does not begin with system:node:".into());
    }
    Ok(())
}

fn exact_usages(usages: &BTreeSet<&str>, purpose: &str) -> Result<(), String> {
    let without_rsa = BTreeSet::from(["digital signature", purpose]);
    let with_rsa = BTreeSet::from(["digital signature", "key encipherment", purpose]);
    if *usages == without_rsa || *usages == with_rsa {
        return Ok(());
    }
    Err(format!("usages did not match [{purpose} digital signature key encipherment]"))
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    /// A request with this subject and these names.
    pub fn csr(name: &str, organization: &str, names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let key = KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap().into_bytes()
    }

    fn spec(signer: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            usages: Some(usages.iter().map(|u| u.to_string()).collect()),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(request: &[u8], signer: &str, usages: &[&str], expected: Result<(), &str>) {
        let request = parse(request).unwrap();
        let outcome = validate(&request, &spec(signer, usages));
        assert_eq!(outcome.as_ref().map_err(String::as_str).map(|_| ()), expected);
    }

    const NODE: &str = "system:node:n1";

    #[test]
    fn rules_of_the_signers() {
        let client = ["digital signature", "client auth"];
        let server = ["digital signature", "server auth", "key encipherment"];
        check(&csr(NODE, NODE_GROUP, &[]), KUBELET_CLIENT, &client, Ok(()));
        check(
            &csr(NODE, "system:masters", &[]),
            KUBELET_CLIENT,
            &client,
            Err("subject organization is not system:nodes"),
        );
        check(
            &csr("admin", NODE_GROUP, &[]),
            KUBELET_CLIENT,
            &client,
            Err("subject common name does not begin with system:node:"),
        );
        check(
            &csr(NODE, NODE_GROUP, &["x"]),
            KUBELET_CLIENT,
            &client,
            Err("DNS subjectAltNames are not allowed"),
        );
        check(
            &csr(NODE, NODE_GROUP, &[]),
            KUBELET_CLIENT,
            &server,
            Err("usages did not match [client auth digital signature key encipherment]"),
        );
        check(&csr(NODE, NODE_GROUP, &["n1", "10.0.0.1"]), KUBELET_SERVING, &server, Ok(()));
        check(
            &csr(NODE, NODE_GROUP, &[]),
            KUBELET_SERVING,
            &server,
            Err("DNS or IP subjectAltName is required"),
        );
        check(&csr("ann", "dev", &[]), CLIENT, &client, Ok(()));
        check(&csr("ann", "dev", &[]), CLIENT, &server, Err("usages did not include client auth"));
        check(
            &csr("ann", "dev", &[]),
            "example.com/x",
            &client,
            Err("unrecognized signerName: \"example.com/x\""),
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(b"").is_err());
        assert!(
            parse(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n").is_err()
        );
    }
}
