//! Events, in the stored (core) form.

use serde_json::{Value, json};

use super::errors::{Errors, Path, set, text};
use crate::field::FieldError;
use crate::resources::metadata::{dns_subdomain, qualified_name};

/// An Event, new or changed.
pub(in crate::resources) fn event(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let namespace = text(&object["metadata"], "namespace");
    let about = text(&object["involvedObject"], "namespace");
    let place = Path::new("involvedObject").child("namespace");
    let at_home = match (set(object, "eventTime"), about.is_empty()) {
        (false, true) => matches!(namespace, "" | "default"),
        (true, true) => matches!(namespace, "default" | "kube-system"),
        // An event of the newer form may speak of another namespace.
        (true, false) => true,
        (false, false) => namespace == about,
    };
    if !at_home {
        errors.invalid(&place, &about.into(), "does not match event.namespace");
    }
    if set(object, "eventTime") {
        newer_form(&mut errors, object);
    }
    errors.rule(&Path::new("namespace"), &namespace.into(), dns_subdomain(namespace));
    errors.0
}

fn newer_form(errors: &mut Errors, object: &Value) {
    let root = Path::new("");
    let controller = text(object, "reportingComponent");
    let place = root.child("reportingComponent");
    if controller.is_empty() {
        errors.required(&place, "");
    }
    errors.rule(&place, &controller.into(), qualified_name(controller));
    for (field, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)] {
        let value = text(object, field);
        if value.is_empty() && field != "message" {
            errors.required(&root.child(field), "");
        }
        if value.len() > max {
            errors.invalid(&root.child(field), &json!(""), format!("can have at most {max} characters"));
        }
    }
}
