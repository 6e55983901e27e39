//! The plug-in ValidatingAdmissionPolicy: what policies say, and what bindings make of it
//! (`policy/validating/dispatcher.go`).

use std::sync::Arc;

use keelson_api::policy::{Denial, Validating};
use serde_json::json;

use super::source::{Binding, Policy, Source};
use super::{Broken, Server, input};
use crate::admission::matching::is_exempt;
use crate::admission::seen::Seen;
use crate::core::LateCore;
use crate::extension::{Attributes, ObjectReader, Result, StatusError, ValidatingAdmission};

/// Holds ValidatingAdmissionPolicies against writes.
pub struct ValidatingPolicies {
    server: Server,
    source: Source<Validating>,
}

impl ValidatingPolicies {
    /// Reads policies, bindings, parameters and namespaces from this cache.
    pub fn new(reader: Arc<dyn ObjectReader>, core: LateCore) -> Self {
        let source =
            Source::new("validatingadmissionpolicies", "validatingadmissionpolicybindings", Validating::read);
        Self { server: Server { reader, core }, source }
    }

    /// What one policy has against a write, in the words of the answer. All bindings are asked, for some only warn.
    fn ask(&self, policy: &Policy<Validating>, attributes: &Attributes) -> Result<Vec<Denial>> {
        let table = self.server.table()?;
        let mut broken = Vec::new();
        let found = self.server.find(policy, attributes, &table, &mut broken);
        let mut denials: Vec<Denial> = if policy.compiled.common.ignores_failure {
            Vec::new()
        } else {
            broken.into_iter().map(|broken| misconfigured(policy, broken)).collect()
        };
        let Some(found) = found.filter(|found| !found.invocations.is_empty()) else { return Ok(denials) };
        let seen = Seen::new(&table, attributes, &found.place)?;
        let namespace = self.server.namespace_object(attributes)?;
        for invocation in found.invocations {
            let binding = &invocation.binding;
            let verdict = policy.compiled.validate(&input(&seen, &invocation.param, &namespace));
            for denial in verdict.denials {
                denials.extend(act(policy, binding, denial, attributes));
            }
            denials.extend(
                verdict
                    .failed_annotations
                    .into_iter()
                    .map(|why| refusal(policy, Some(binding), "Invalid", &why)),
            );
        }
        Ok(denials)
    }
}

fn misconfigured(policy: &Policy<Validating>, broken: Broken) -> Denial {
    match broken {
        Broken::Policy(why) => {
            refusal(policy, None, "Invalid", &format!("failed to configure policy: {why}"))
        }
        Broken::Binding(binding, why) => {
            refusal(policy, Some(&binding), "Invalid", &format!("failed to configure binding: {why}"))
        }
    }
}

/// Does what a binding wants done with a denial; returns it where it is to refuse the request.
fn act(
    policy: &Policy<Validating>,
    binding: &Binding,
    denial: Denial,
    attributes: &Attributes,
) -> Option<Denial> {
    let mut refused = None;
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => refused = Some(refusal(policy, Some(binding), &denial.reason, &denial.message)),
            "Warn" => attributes.hooks.warnings.lock().push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                policy.name, binding.name, denial.message
            )),
            _ => tracing::info!(
                policy = %policy.name, binding = %binding.name, message = %denial.message, user = %attributes.user.name,
                resource = %attributes.resource, namespace = %attributes.namespace, name = %attributes.name,
                "validation of an admission policy failed"
            ),
        }
    }
    refused
}

fn refusal(policy: &Policy<Validating>, binding: Option<&Binding>, reason: &str, why: &str) -> Denial {
    let with = binding.map(|binding| format!(" with binding '{}'", binding.name)).unwrap_or_default();
    let message = format!("ValidatingAdmissionPolicy '{}'{with} denied request: {why}", policy.name);
    Denial { reason: reason.to_owned(), message }
}

/// The answer to a request that is refused.
fn status(attributes: &Attributes, denial: Denial) -> StatusError {
    let mut error = StatusError::forbidden(&attributes.resource, &attributes.name, &denial.message);
    error.code = match denial.reason.as_str() {
        "Unauthorized" => 401,
        "Forbidden" => 403,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    error.reason = denial.reason.into();
    if let Some(details) = &mut error.details {
        details["causes"] = json!([{"message": denial.message}]);
    }
    error
}

#[async_trait::async_trait]
impl ValidatingAdmission for ValidatingPolicies {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        if is_exempt(attributes) {
            return Ok(());
        }
        let policies = self.source.policies(&*self.server.reader);
        let mut denials = Vec::new();
        for policy in policies.iter() {
            denials.extend(self.ask(policy, attributes)?);
        }
        match denials.into_iter().next() {
            Some(denial) => Err(status(attributes, denial)),
            None => Ok(()),
        }
    }
}
