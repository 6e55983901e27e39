//! Webhook configurations and admission policies.

use serde_json::{Value, json};

use super::ruled::Ruled;
use super::{child, items, set_default};
use crate::resources::validation as v;

/// ValidatingWebhookConfigurations.
pub const VALIDATING_WEBHOOKS: Ruled =
    Ruled::new(v::webhooks, v::webhooks_update).defaults(|object| webhooks(object, false)).conditional();

/// MutatingWebhookConfigurations.
pub const MUTATING_WEBHOOKS: Ruled =
    Ruled::new(v::webhooks, v::webhooks_update).defaults(|object| webhooks(object, true)).conditional();

/// ValidatingAdmissionPolicies.
pub const VALIDATING_POLICY: Ruled = Ruled::new(v::validating_policy, |new, _| v::validating_policy(new))
    .defaults(policy)
    .status(v::validating_policy_status)
    .status_alone()
    .conditional();

/// MutatingAdmissionPolicies.
pub const MUTATING_POLICY: Ruled =
    Ruled::new(v::mutating_policy, |new, _| v::mutating_policy(new)).defaults(policy).conditional();

/// ValidatingAdmissionPolicyBindings.
pub const VALIDATING_BINDING: Ruled =
    Ruled::new(v::validating_binding, |new, _| v::validating_binding(new)).defaults(binding).conditional();

/// MutatingAdmissionPolicyBindings.
pub const MUTATING_BINDING: Ruled =
    Ruled::new(v::mutating_binding, |new, _| v::mutating_binding(new)).defaults(binding).conditional();

fn webhooks(object: &mut Value, mutating: bool) {
    for hook in items(object, "webhooks") {
        set_default(hook, "failurePolicy", "Fail");
        matching(hook);
        set_default(hook, "timeoutSeconds", 10);
        if mutating {
            set_default(hook, "reinvocationPolicy", "Never");
        }
        items(hook, "rules").for_each(scope);
        if let Some(service) = child(hook, "clientConfig").and_then(|config| child(config, "service")) {
            set_default(service, "port", 443);
        }
    }
}

fn matching(parent: &mut Value) {
    set_default(parent, "matchPolicy", "Equivalent");
    set_default(parent, "namespaceSelector", json!({}));
    set_default(parent, "objectSelector", json!({}));
}

fn scope(rule: &mut Value) {
    set_default(rule, "scope", "*");
}

fn resources(parent: &mut Value, field: &str) {
    if let Some(resources) = child(parent, field) {
        matching(resources);
        items(resources, "resourceRules").for_each(scope);
        items(resources, "excludeResourceRules").for_each(scope);
    }
}

fn policy(object: &mut Value) {
    if let Some(spec) = child(object, "spec") {
        set_default(spec, "failurePolicy", "Fail");
        resources(spec, "matchConstraints");
    }
}

fn binding(object: &mut Value) {
    if let Some(spec) = child(object, "spec") {
        resources(spec, "matchResources");
    }
}
