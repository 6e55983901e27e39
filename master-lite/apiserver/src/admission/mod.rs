//! Built-in admission: plug-ins that complete or refuse writes, in upstream's order
//! (`pkg/kubeapiserver/options/plugins.go`).
//!
//! PodSecurity isn't here yet.

pub mod certificates;
pub mod classes;
pub mod dynamic;
pub mod hooks;
pub mod limit_ranger;
mod matching;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod node_taint;
pub mod pod_resize;
pub mod policy;
pub mod priority;
pub mod resource_quota;
pub mod runtime_class;
mod seen;
pub mod service_account;
#[cfg(test)]
pub(crate) mod testing;
pub mod tolerations;
pub mod webhook;

use std::sync::Arc;

use serde_json::Value;

use crate::authz::ClusterAuthorizer;
use crate::authz::escalation::Escalation;
use crate::extension::{
    Attributes, LateCore, MutatingAdmission, ObjectReader, Operation, Result, StatusError,
    ValidatingAdmission,
};
use dynamic::Dynamic;
use node_restriction::NodeRestriction;

/// Plug-ins that may change objects, in order.
pub fn mutating(
    reader: &Arc<dyn ObjectReader>,
    node_restriction: Arc<NodeRestriction>,
    dynamic: &Dynamic,
) -> Vec<Arc<dyn MutatingAdmission>> {
    vec![
        Arc::new(namespace_lifecycle::NamespaceLifecycle::new(reader.clone())),
        Arc::new(limit_ranger::LimitRanger::new(reader.clone())),
        Arc::new(service_account::ServiceAccount::new(reader.clone())),
        node_restriction,
        Arc::new(node_taint::TaintNodesByCondition),
        Arc::new(priority::Priority::new(reader.clone())),
        Arc::new(tolerations::DefaultTolerationSeconds),
        Arc::new(classes::DefaultClasses::new(reader.clone())),
        Arc::new(runtime_class::RuntimeClass::new(reader.clone())),
        Arc::new(certificates::RequestorOfSigningRequest),
        dynamic.mutating.clone(),
        dynamic.webhooks.clone(),
    ]
}

/// Plug-ins that only refuse, in order.
pub fn validating(
    reader: &Arc<dyn ObjectReader>,
    authorizer: &Arc<ClusterAuthorizer>,
    core: LateCore,
    dynamic: &Dynamic,
) -> Vec<Arc<dyn ValidatingAdmission>> {
    vec![
        Arc::new(limit_ranger::LimitRanger::new(reader.clone())),
        Arc::new(Escalation::new(authorizer.clone())),
        Arc::new(priority::Priority::new(reader.clone())),
        Arc::new(classes::ClaimResize::new(reader.clone())),
        Arc::new(certificates::CertificateApproval::new(authorizer.clone())),
        Arc::new(certificates::CertificateSigning::new(authorizer.clone())),
        Arc::new(certificates::CertificateSubjectRestriction),
        Arc::new(pod_resize::PodResizeValidator::new(reader.clone())),
        dynamic.validating.clone(),
        dynamic.webhooks.clone(),
        // Last: what others refuse must not be charged.
        Arc::new(resource_quota::ResourceQuota::new(reader.clone(), core)),
    ]
}

/// Runs the plug-ins that may change an object; all of them once more if a webhook or policy has changed it.
pub(crate) async fn mutate(
    plugins: &[Arc<dyn MutatingAdmission>],
    attributes: &mut Attributes,
) -> Result<()> {
    for plugin in plugins {
        plugin.admit(attributes).await?;
    }
    if attributes.hooks.begin_again() {
        for plugin in plugins {
            plugin.admit(attributes).await?;
        }
    }
    Ok(())
}

/// A refusal as upstream's `admission.NewForbidden` words it: `pods "x" is forbidden: WHY`.
pub(crate) fn forbidden(attributes: &Attributes, why: impl std::fmt::Display) -> StatusError {
    StatusError::forbidden(&attributes.resource, &attributes.name, why)
}

/// Whether the write concerns this resource and subresource (`""` for the object itself).
pub(crate) fn concerns(attributes: &Attributes, group: &str, resource: &str, subresource: &str) -> bool {
    attributes.resource.group == group
        && attributes.resource.resource == resource
        && attributes.subresource == subresource
}

/// The spec of a Pod that is being created, for the plug-ins that complete it.
pub(crate) fn new_pod_spec(attributes: &mut Attributes) -> Option<&mut serde_json::Map<String, Value>> {
    if attributes.operation != Operation::Create || !concerns(attributes, "", "pods", "") {
        return None;
    }
    attributes.object.as_mut()?.get_mut("spec")?.as_object_mut()
}
