//! Plug-ins around CertificateSigningRequests: who asked is written down by the server, approving and signing need the
//! right for the signer, and nobody gets into `system:masters` this way (`plugin/pkg/admission/certificates`).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::{concerns, forbidden};
use crate::authz::rbac::text;
use crate::authz::rule::go_quote;
use crate::authz::{ClusterAuthorizer, MASTERS};
use crate::extension::{
    Attributes, AuthorizerAttributes, Decision, MutatingAdmission, Operation, Result, UserInfo,
    ValidatingAdmission,
};

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// Subject of a PKCS#10 request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Common name, or empty.
    pub common_name: String,
    /// Organizations.
    pub organizations: Vec<String>,
}

/// Subject of a CertificateSigningRequest's `spec.request` (PEM in base64).
///
/// # Errors
/// What is wrong with the request.
pub fn subject(request: &Value) -> Result<Subject, String> {
    let bytes = STANDARD.decode(text(request, "/spec/request")).map_err(|e| e.to_string())?;
    let pem = match x509_parser::pem::parse_x509_pem(&bytes) {
        Ok((_, pem)) if pem.label == "CERTIFICATE REQUEST" => pem,
        _ => return Err("PEM block type must be CERTIFICATE REQUEST".to_owned()),
    };
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).map_err(|e| e.to_string())?;
    let name = &parsed.certification_request_info.subject;
    let read = |it: &mut dyn Iterator<Item = &x509_parser::x509::AttributeTypeAndValue<'_>>| -> Result<Vec<String>, String> {
        it.map(|a| a.as_str().map(str::to_owned).map_err(|e| e.to_string())).collect()
    };
    Ok(Subject {
        common_name: read(&mut name.iter_common_name())?.pop().unwrap_or_default(),
        organizations: read(&mut name.iter_organization())?,
    })
}

/// Writes the requesting user into a new request, whatever its body claims, and keeps it there: signers and approvers
/// trust `spec.username` and `spec.groups`.
pub struct RequestorOfSigningRequest;

#[async_trait::async_trait]
impl MutatingAdmission for RequestorOfSigningRequest {
    fn name(&self) -> &'static str {
        "RequestorOfSigningRequest"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        if !concerns(attributes, GROUP, REQUESTS, "") {
            return Ok(());
        }
        let requestor = match (attributes.operation, &attributes.old_object) {
            (Operation::Create, _) => spec_of(&attributes.user),
            (Operation::Update, Some(old)) => {
                let field = |key: &str| (key.to_owned(), old["spec"][key].clone());
                ["username", "uid", "groups", "extra"].map(field).into_iter().collect()
            }
            _ => return Ok(()),
        };
        if let Some(spec) = attributes.object.as_mut().and_then(|o| o["spec"].as_object_mut()) {
            for (key, value) in requestor {
                if value.is_null() {
                    spec.remove(&key)
                } else {
                    spec.insert(key, value)
                };
            }
        }
        Ok(())
    }
}

fn spec_of(user: &UserInfo) -> serde_json::Map<String, Value> {
    let or_null = |empty: bool, value: Value| if empty { Value::Null } else { value };
    [
        ("username".to_owned(), json!(user.name)),
        ("uid".to_owned(), or_null(user.uid.is_empty(), json!(user.uid))),
        ("groups".to_owned(), or_null(user.groups.is_empty(), json!(user.groups))),
        ("extra".to_owned(), or_null(user.extra.is_empty(), json!(user.extra))),
    ]
    .into_iter()
    .collect()
}

/// Whether a user may do `verb` for a signer: by its name, or by `domain/*`.
fn may(authorizer: &ClusterAuthorizer, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let ask = AuthorizerAttributes {
            user: user.clone(),
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            resource_request: true,
            ..AuthorizerAttributes::default()
        };
        authorizer.decide(&ask) == Decision::Allow
    })
}

/// Approving needs the verb `approve` on the signer.
pub struct CertificateApproval {
    authorizer: Arc<ClusterAuthorizer>,
}

impl CertificateApproval {
    /// Asks this authorizer.
    pub fn new(authorizer: Arc<ClusterAuthorizer>) -> Self {
        Self { authorizer }
    }
}

#[async_trait::async_trait]
impl ValidatingAdmission for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        if attributes.operation != Operation::Update || !concerns(attributes, GROUP, REQUESTS, "approval") {
            return Ok(());
        }
        // The signer as it is stored: the update might try to change it.
        let signer =
            attributes.old_object.as_deref().map(|o| text(o, "/spec/signerName")).unwrap_or_default();
        if may(&self.authorizer, &attributes.user, "approve", signer) {
            return Ok(());
        }
        Err(forbidden(
            attributes,
            format!("user not permitted to approve requests with signerName {}", go_quote(signer)),
        ))
    }
}

/// Writing a certificate or condition needs the verb `sign` on the signer.
pub struct CertificateSigning {
    authorizer: Arc<ClusterAuthorizer>,
}

impl CertificateSigning {
    /// Asks this authorizer.
    pub fn new(authorizer: Arc<ClusterAuthorizer>) -> Self {
        Self { authorizer }
    }
}

#[async_trait::async_trait]
impl ValidatingAdmission for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        if attributes.operation != Operation::Update || !concerns(attributes, GROUP, REQUESTS, "status") {
            return Ok(());
        }
        let (Some(old), Some(new)) = (attributes.old_object.as_deref(), attributes.object.as_ref()) else {
            return Ok(());
        };
        let same = |field: &str| old["status"][field] == new["status"][field];
        if same("certificate") && same("conditions") {
            return Ok(());
        }
        let signer = text(old, "/spec/signerName");
        if may(&self.authorizer, &attributes.user, "sign", signer) {
            return Ok(());
        }
        Err(forbidden(
            attributes,
            format!("user not permitted to sign requests with signerName {}", go_quote(signer)),
        ))
    }
}

/// No client certificate for `system:masters`.
pub struct CertificateSubjectRestriction;

#[async_trait::async_trait]
impl ValidatingAdmission for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        if attributes.operation != Operation::Create || !concerns(attributes, GROUP, REQUESTS, "") {
            return Ok(());
        }
        let Some(object) =
            attributes.object.as_ref().filter(|o| text(o, "/spec/signerName") == CLIENT_SIGNER)
        else {
            return Ok(());
        };
        let subject =
            subject(object).map_err(|why| forbidden(attributes, format!("failed to parse CSR: {why}")))?;
        if subject.organizations.iter().any(|o| o == MASTERS) {
            return Err(forbidden(
                attributes,
                format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed"),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::testing::{create, update};
    use super::*;
    use crate::authz::RBAC_GROUP;
    use crate::authz::fake::FakeReader;

    /// A CertificateSigningRequest for this subject.
    pub(crate) fn request(signer: &str, common_name: &str, organization: &str) -> Value {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        json!({"metadata": {"name": "r"}, "spec": {"signerName": signer, "request": STANDARD.encode(pem), "username": "forged"}})
    }

    #[tokio::test]
    async fn the_server_says_who_asked() {
        let mut attributes = create(GROUP, REQUESTS, request(CLIENT_SIGNER, "jane", "dev"));
        RequestorOfSigningRequest.admit(&mut attributes).await.unwrap();
        let stored = attributes.object.unwrap();
        assert_eq!(stored["spec"]["username"], "kubernetes-admin");
        assert_eq!(stored["spec"]["groups"], json!(["system:masters"]));
        let mut changed = stored.clone();
        changed["spec"]["username"] = json!("forged");
        let mut attributes = update(GROUP, REQUESTS, stored.clone(), changed);
        RequestorOfSigningRequest.admit(&mut attributes).await.unwrap();
        assert_eq!(attributes.object, Some(stored));
    }

    #[tokio::test]
    async fn masters_are_not_made_by_request() {
        let check = async |signer: &str, organization: &str, want: bool| {
            let attributes = create(GROUP, REQUESTS, request(signer, "jane", organization));
            assert_eq!(
                CertificateSubjectRestriction.validate(&attributes).await.is_ok(),
                want,
                "{signer} {organization}"
            );
        };
        check(CLIENT_SIGNER, "dev", true).await;
        check(CLIENT_SIGNER, "system:masters", false).await;
        check("example.com/other", "system:masters", true).await;
    }

    #[tokio::test]
    async fn signers_are_authorized() {
        let authorizer = Arc::new(ClusterAuthorizer::new(Arc::new(FakeReader::new(vec![
            (
                RBAC_GROUP,
                "clusterroles",
                json!({"metadata": {"name": "s"}, "rules": [
                {"apiGroups": [GROUP], "resources": ["signers"], "verbs": ["approve"], "resourceNames": ["a.io/*"]},
                {"apiGroups": [GROUP], "resources": ["signers"], "verbs": ["sign"], "resourceNames": ["a.io/x"]}]}),
            ),
            (
                RBAC_GROUP,
                "clusterrolebindings",
                json!({"metadata": {"name": "s"}, "roleRef": {"kind": "ClusterRole", "name": "s"},
                "subjects": [{"kind": "User", "name": "bob"}]}),
            ),
        ]))));
        let check = async |subresource: &str, signer: &str, want: &str| {
            let old = request(signer, "jane", "dev");
            let mut new = old.clone();
            new["status"] = json!({"certificate": "x"});
            let mut attributes = update(GROUP, &format!("{REQUESTS}/{subresource}"), old, new);
            attributes.user = UserInfo::new("bob", &[]);
            let approval = CertificateApproval::new(authorizer.clone()).validate(&attributes).await;
            let got = approval.and(CertificateSigning::new(authorizer.clone()).validate(&attributes).await);
            assert_eq!(got.err().map(|e| e.message).unwrap_or_default(), want);
        };
        check("approval", "a.io/y", "").await;
        let prefix =
            "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to";
        check("approval", "b.io/y", &format!("{prefix} approve requests with signerName \"b.io/y\"")).await;
        check("status", "a.io/x", "").await;
        check("status", "a.io/y", &format!("{prefix} sign requests with signerName \"a.io/y\"")).await;
    }
}
