//! MutatingAdmissionPolicy and ValidatingAdmissionPolicy: expressions that change or refuse writes
//! (`k8s.io/apiserver/pkg/admission/plugin/policy`).
//!
//! Policies and bindings are read out of the watch cache. A policy is compiled when it is first seen, and kept until its
//! spec changes; a write costs a look at two numbers where there are none. There is no audit log: what the action `Audit`
//! and audit annotations are to put into it goes into the server's own log, and nowhere, respectively.

mod mutating;
mod params;
mod source;
mod validating;

use std::sync::Arc;

use keelson_api::expressions::condition::Variables;
use keelson_api::meta::GroupResource;
use keelson_api::policy::Input;
use keelson_api::resources::ResourceTable;
use serde_json::{Value, json};

pub use mutating::MutatingPolicies;
pub use validating::ValidatingPolicies;

use super::matching::{Place, namespace};
use super::seen::Seen;
use crate::core::LateCore;
use crate::extension::{Attributes, ObjectReader, Result, StatusError};
use source::{Binding, Policy};

/// What plug-ins of both kinds need of the server.
struct Server {
    reader: Arc<dyn ObjectReader>,
    core: LateCore,
}

/// Why a policy or binding can't be applied.
enum Broken {
    /// The policy itself.
    Policy(String),
    /// One of its bindings.
    Binding(Arc<Binding>, String),
}

/// One evaluation: a binding with one of its parameters (null if it has none).
struct Invocation {
    binding: Arc<Binding>,
    param: Arc<Value>,
}

/// What a policy has to do with a request.
struct Found {
    place: Place,
    invocations: Vec<Invocation>,
}

impl Server {
    fn table(&self) -> Result<Arc<ResourceTable>> {
        let core = self.core.get().ok_or_else(|| StatusError::internal("the server is going down"))?;
        Ok(core.table())
    }

    /// The bindings of a policy that are about a request, with their parameters. Adds what can't be applied to `broken`.
    fn find<C>(
        &self,
        policy: &Policy<C>,
        attributes: &Attributes,
        table: &ResourceTable,
        broken: &mut Vec<Broken>,
    ) -> Option<Found> {
        let place = match policy.matching.find(attributes, table, &*self.reader) {
            Ok(place) => place?,
            Err(error) => {
                broken.push(Broken::Policy(error.message));
                return None;
            }
        };
        let mut invocations = Vec::new();
        for binding in &policy.bindings {
            let found = match &binding.matching {
                None => Ok(true),
                Some(matching) => matching
                    .find(attributes, table, &*self.reader)
                    .map(|place| place.is_some())
                    .map_err(|error| error.message),
            };
            let params = found.and_then(|is_about| match is_about {
                true => params::collect(
                    policy.param_kind.as_ref(),
                    binding.param_ref.as_ref(),
                    namespace(attributes),
                    table,
                    &*self.reader,
                ),
                false => Ok(Vec::new()),
            });
            match params {
                Ok(params) => invocations
                    .extend(params.into_iter().map(|param| Invocation { binding: binding.clone(), param })),
                Err(why) => broken.push(Broken::Binding(binding.clone(), why)),
            }
        }
        Some(Found { place, invocations })
    }

    /// The namespace that an object is in, as expressions see it; null for an object of the cluster.
    fn namespace_object(&self, attributes: &Attributes) -> Result<Value> {
        let is_namespace = attributes.kind.group.is_empty() && attributes.kind.kind == "Namespace";
        if attributes.namespace.is_empty() || is_namespace {
            return Ok(Value::Null);
        }
        let namespaces = GroupResource::new("", "namespaces");
        let found = self.reader.get(&namespaces, None, &attributes.namespace);
        let found = found.ok_or_else(|| StatusError::not_found(&namespaces, &attributes.namespace))?;
        let mut metadata = found["metadata"].clone();
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.remove("managedFields");
            metadata.remove("ownerReferences");
        }
        Ok(json!({"metadata": metadata, "spec": found["spec"], "status": found["status"]}))
    }
}

/// What expressions see of a request.
fn input<'v>(seen: &'v Seen, param: &'v Value, namespace: &'v Value) -> Input<'v> {
    let variables =
        Variables { object: &seen.object, old_object: &seen.old, request: &seen.request, params: param };
    Input { variables, namespace }
}
