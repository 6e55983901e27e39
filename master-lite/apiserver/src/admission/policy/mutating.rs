//! The plug-in MutatingAdmissionPolicy: what policies change (`policy/mutating/dispatcher.go`).

use std::sync::Arc;

use keelson_api::patch::{PatchError, json_patch};
use keelson_api::policy::{Change, Mutating, apply};
use keelson_api::resources::ResourceTable;
use serde_json::{Value, json};

use super::source::{Binding, Policy, Source};
use super::{Broken, Found, Invocation, Server, input};
use crate::admission::matching::{Place, is_exempt};
use crate::admission::seen::Seen;
use crate::authz::rbac::text;
use crate::authz::rule::go_quote;
use crate::core::LateCore;
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Operation, Result, StatusError};
use crate::wire::FieldValidation;

/// Has MutatingAdmissionPolicies change what is written.
pub struct MutatingPolicies {
    server: Server,
    source: Source<Mutating>,
}

/// Why a policy refuses a request.
struct Failure {
    reason: &'static str,
    message: String,
}

/// Why a mutation did not come about.
enum Stop {
    /// The policy's fault.
    Failed(String),
    /// Nobody's: the request can't go on.
    Refused(StatusError),
}

impl MutatingPolicies {
    /// Reads policies, bindings, parameters and namespaces from this cache.
    pub fn new(reader: Arc<dyn ObjectReader>, core: LateCore) -> Self {
        let source =
            Source::new("mutatingadmissionpolicies", "mutatingadmissionpolicybindings", Mutating::read);
        Self { server: Server { reader, core }, source }
    }

    /// Has one policy, with one binding and parameter, change the object.
    fn invoke(
        &self,
        policy: &Policy<Mutating>,
        invocation: &Invocation,
        place: &Place,
        table: &ResourceTable,
        attributes: &mut Attributes,
        failures: &mut Vec<Failure>,
    ) -> Result<()> {
        let compiled = &policy.compiled;
        let fail = |why: String| failure(policy, Some(&invocation.binding), "Invalid", &why);
        let namespace = self.server.namespace_object(attributes)?;
        let seen = Seen::new(table, attributes, place)?;
        match compiled.common.is_met(&input(&seen, &invocation.param, &namespace)) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(why) => {
                failures.extend(fail(why));
                return Ok(());
            }
        }
        let uid = invocation.uid(&policy.name);
        if !attributes.hooks.may_call(&uid) {
            return Ok(());
        }
        for mutation in &compiled.mutations {
            // What the one before has made of it.
            let seen = Seen::new(table, attributes, place)?;
            if seen.object.is_null() {
                continue;
            }
            let change = compiled.change(mutation, &input(&seen, &invocation.param, &namespace));
            let outcome = change.map_err(Stop::Failed).and_then(|change| changed(&seen, attributes, change));
            match outcome {
                Ok(Some(new)) => {
                    attributes.object = Some(new);
                    attributes.hooks.changed();
                }
                Ok(None) => {}
                Err(Stop::Failed(why)) => failures.extend(fail(why)),
                Err(Stop::Refused(error)) => return Err(error),
            }
        }
        if compiled.again {
            attributes.hooks.called(&uid);
        }
        Ok(())
    }
}

impl Invocation {
    /// The policy with its binding and parameter.
    fn uid(&self, policy: &str) -> String {
        let param = |pointer: &str| text(&self.param, pointer);
        let (namespace, name) = (param("/metadata/namespace"), param("/metadata/name"));
        format!("policy/{policy}/{}/{namespace}/{name}", self.binding.name)
    }
}

/// The object after a change, if that changes anything.
fn changed(seen: &Seen, attributes: &Attributes, change: Change) -> Result<Option<Value>, Stop> {
    let (new, validation) = match change {
        Change::Configuration(configuration) => {
            let (types, id) = seen.types().ok_or_else(|| {
                Stop::Refused(StatusError::service_unavailable(format!(
                    "Resource kind {} not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.",
                    seen.kind()
                )))
            })?;
            let new = apply(types, id, &seen.object, configuration);
            (
                new.map_err(|why| Stop::Failed(format!("error applying patch: {why}")))?,
                FieldValidation::Ignore,
            )
        }
        Change::Patch(patch) => match json_patch(&seen.object, &patch) {
            Ok(new) => (new, FieldValidation::Strict),
            // A test that fails says that there is nothing to do.
            Err(PatchError::TestFailed(_)) => return Ok(None),
            Err(error) => return Err(Stop::Failed(format!("JSON Patch: {error}"))),
        },
    };
    let is_connect = attributes.operation == Operation::Connect;
    if is_connect && new != seen.object {
        return Err(Stop::Failed("the options of a connection can't be changed on this server".to_owned()));
    }
    seen.changed(attributes, new, validation).map_err(|error| Stop::Failed(error.message))
}

/// What a policy's failure comes to: nothing where failures are ignored.
fn failure(
    policy: &Policy<Mutating>,
    binding: Option<&Binding>,
    reason: &'static str,
    why: &str,
) -> Option<Failure> {
    let by = match binding {
        Some(binding) => format!("policy '{}' with binding '{}'", policy.name, binding.name),
        None => format!("policy {}", go_quote(&policy.name)),
    };
    let message = format!("{by} denied request: {why}");
    if policy.compiled.common.ignores_failure {
        tracing::warn!(error = %message, "failing open");
        return None;
    }
    Some(Failure { reason, message })
}

/// The answer to a request that policies refuse.
fn refused(attributes: &Attributes, failures: &[Failure]) -> Result<()> {
    let Some(first) = failures.first() else { return Ok(()) };
    let mut error = StatusError::forbidden(&attributes.resource, &attributes.name, "");
    // Upstream's code stays 403, whatever the reason.
    error.message = first.message.clone();
    error.reason = first.reason.into();
    if let Some(details) = &mut error.details {
        let causes: Vec<Value> = failures.iter().map(|failure| json!({"message": failure.message})).collect();
        details["causes"] = causes.into();
    }
    Err(error)
}

#[async_trait::async_trait]
impl MutatingAdmission for MutatingPolicies {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        if is_exempt(attributes) || attributes.operation == Operation::Delete {
            return Ok(());
        }
        let policies = self.source.policies(&*self.server.reader);
        if policies.is_empty() {
            return Ok(());
        }
        let table = self.server.table()?;
        attributes.hooks.begin_round(attributes.object.as_ref());
        let (mut failures, mut todo) = (Vec::new(), Vec::new());
        // All that is about the request as it came; what one changes makes no other fit.
        for policy in policies.iter() {
            let mut broken = Vec::new();
            let found = self.server.find(policy, attributes, &table, &mut broken);
            for broken in broken {
                failures.extend(match broken {
                    Broken::Policy(why) => {
                        failure(policy, None, "Forbidden", &format!("failed to configure policy: {why}"))
                    }
                    Broken::Binding(binding, why) => failure(
                        policy,
                        Some(&binding),
                        "Forbidden",
                        &format!("failed to configure binding: {why}"),
                    ),
                });
            }
            todo.extend(found.map(|found| (policy, found)));
        }
        for (policy, Found { place, invocations }) in &todo {
            for invocation in invocations {
                self.invoke(policy, invocation, place, &table, attributes, &mut failures)?;
            }
        }
        attributes.hooks.end_round(attributes.object.as_ref());
        refused(attributes, &failures)
    }
}
