//! Certificate signing requests: approved by rule, signed with the cluster's CA, cleared away when old.

pub mod approver;
pub mod cleaner;
pub mod request;
pub mod signer;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

/// Client certificates of kubelets.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Serving certificates of kubelets.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Client certificates of anyone else.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

const ACCOUNT: &str = "certificate-controller";

/// Whether the request has a condition of this type that is true.
pub fn has_condition(csr: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    // An absent status means true: the API has it so for requests of old.
    conditions.iter().any(|c| c.type_ == kind && (c.status == "True" || c.status.is_empty()))
}

/// Whether the certificate is there.
pub fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}
