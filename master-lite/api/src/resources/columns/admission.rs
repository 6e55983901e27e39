//! Admission policies and what binds them.

use serde_json::Value;

use super::tree::{at, count_at, get, selector, str_at};
use super::{AGE, NAME, Spec, integer, text};

const PARAM_KIND: Spec = text("ParamKind", "Kind of the objects that parameterize it.", |o, _| {
    let kind = at(o, "spec.paramKind");
    if !kind.is_object() {
        return "<unset>".into();
    }
    format!("{}/{}", str_at(kind, "apiVersion"), str_at(kind, "kind")).into()
});

pub(super) const VALIDATING_POLICY: &[Spec] = &[
    NAME,
    integer("Validations", "Number of its rules.", |o, _| count_at(o, "spec.validations").into()),
    PARAM_KIND,
    AGE,
];

pub(super) const MUTATING_POLICY: &[Spec] = &[
    NAME,
    integer("Mutations", "Number of its changes.", |o, _| count_at(o, "spec.mutations").into()),
    PARAM_KIND,
    AGE,
];

pub(super) const POLICY_BINDING: &[Spec] = &[
    NAME,
    text("PolicyName", "The policy it binds.", |o, _| get(o, "spec.policyName")),
    text("ParamRef", "Objects that parameterize the policy.", |o, _| {
        param_ref(at(o, "spec.paramRef")).into()
    }),
    AGE,
];

fn param_ref(reference: &Value) -> String {
    match (str_at(reference, "name"), str_at(reference, "namespace")) {
        ("", _) => selector(at(reference, "selector")).unwrap_or_else(|| "<unset>".to_owned()),
        (name, "") => format!("*/{name}"),
        (name, namespace) => format!("{namespace}/{name}"),
    }
}
