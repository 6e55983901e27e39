//! The strategy of custom resources (`apiextensions-apiserver/pkg/registry/customresource/strategy.go`).

use std::sync::Arc;

use serde_json::Value;

use super::{Custom, Structural, rules, validate, validate_lists};
use crate::field::FieldError;
use crate::resources::{ScalePaths, Strategy, StrategyContext};

/// Objects of one version of a custom resource.
#[derive(Default)]
pub(super) struct CustomStrategy {
    /// `None` for the row that no request reaches: each names a version.
    pub custom: Option<Arc<Custom>>,
    /// The version has a status subresource.
    pub has_status: bool,
    /// Where the scale subresource finds its numbers, if there is one.
    pub scale: Option<ScalePaths>,
}

/// A number of replicas that a Scale could not carry.
fn replicas(object: &Value, path: &str) -> Option<FieldError> {
    let value = at(object, path)?;
    let field = format!(".{path}");
    let Some(count) = value.as_i64() else {
        let why = format!(".{path} accessor error: {value} is not an integer");
        return Some(FieldError::invalid(field, value, why));
    };
    if count < 0 {
        return Some(FieldError::invalid(field, value, "should be a non-negative integer"));
    }
    let most = i32::MAX;
    (count > i64::from(most))
        .then(|| FieldError::invalid(field, value, format!("should be less than or equal to {most}")))
}

fn at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(object, |value, key| value.get(key)).filter(|value| !value.is_null())
}

fn scale_status(object: &Value, scale: &ScalePaths) -> Vec<FieldError> {
    let mut errors = Vec::from_iter(replicas(object, &scale.status_replicas));
    if let Some(selector) = at(object, &scale.selector).filter(|value| !value.is_string()) {
        let why = format!(".{} accessor error: {selector} is not a string", scale.selector);
        errors.push(FieldError::invalid(format!(".{}", scale.selector), selector, why));
    }
    errors
}

impl CustomStrategy {
    fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let Some(schema) = self.custom.as_ref().and_then(|custom| custom.structural()) else {
            return Vec::new();
        };
        let mut errors = validate("", object, old, schema);
        // Who only carries on what was wrong already may go on.
        if old.is_none_or(|old| validate_lists("", old, schema).is_empty()) {
            errors.extend(validate_lists("", object, schema));
        }
        if let Some(scale) = &self.scale {
            errors.extend(replicas(object, &scale.spec_replicas));
            errors.extend(scale_status(object, scale));
        }
        Self::hold_rules(object, old, schema, &mut errors);
        errors
    }

    /// Rules see the whole object, whichever part of it is written.
    fn hold_rules(object: &Value, old: Option<&Value>, schema: &Structural, errors: &mut Vec<FieldError>) {
        if !schema.is_ruled {
            return;
        }
        if rules::is_blocked(errors) {
            errors.push(rules::blocked());
        } else {
            errors.extend(rules::evaluate("", object, old, schema));
        }
    }
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Value) {
        if let Some(custom) = &self.custom {
            custom.default(object);
        }
    }

    fn prepare_for_create(&self, _context: &StrategyContext, object: &mut Value) {
        if let Some(map) = object.as_object_mut().filter(|_| self.has_status) {
            map.remove("status");
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        self.check(object, None)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, old: &Value) -> Vec<FieldError> {
        if context.subresource != "status" {
            return self.check(new, Some(old));
        }
        let Some(custom) = &self.custom else { return Vec::new() };
        let Some(whole) = custom.structural() else { return Vec::new() };
        let mut errors = Vec::new();
        if let (Some(schema), Some(status)) = (whole.properties.get("status"), new.get("status")) {
            errors.extend(validate("status", status, old.get("status"), schema));
            if old.get("status").is_none_or(|old| validate_lists("status", old, schema).is_empty()) {
                errors.extend(validate_lists("status", status, schema));
            }
        }
        if let Some(scale) = &self.scale {
            errors.extend(scale_status(new, scale));
        }
        Self::hold_rules(new, Some(old), whole, &mut errors);
        errors
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replicas_are_counts() {
        for (value, fine) in
            [(json!(3), true), (json!(-1), false), (json!(4_000_000_000_i64), false), (json!("3"), false)]
        {
            assert_eq!(replicas(&json!({"spec": {"n": value}}), "spec.n").is_none(), fine, "{value}");
        }
        assert!(replicas(&json!({}), "spec.n").is_none());
    }
}
