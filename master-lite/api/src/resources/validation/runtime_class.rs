//! RuntimeClasses.

use serde_json::Value;

use super::errors::{Errors, Path, entries, items, text};
use super::{resources, scheduling, selectors};
use crate::field::FieldError;
use crate::resources::metadata::dns_label;

/// A RuntimeClass, new or changed.
pub(in crate::resources) fn runtime_class(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let root = Path::new("");
    let handler = text(object, "handler");
    errors.need(object, "handler", &root);
    if !handler.is_empty() {
        errors.rule(&root.child("handler"), &handler.into(), dns_label(handler));
    }
    // Upstream checks them as a container's limits, and says so.
    let fixed = root.child("overhead").child("limits");
    for (name, amount) in entries(&object["overhead"], "podFixed") {
        let place = fixed.key(name);
        resources::container_resource_name(&mut errors, name, &place);
        resources::quantity(&mut errors, name, amount, &place);
    }
    let (scheduling, at) = (&object["scheduling"], root.child("scheduling"));
    selectors::labels(&mut errors, scheduling, "nodeSelector", &at);
    scheduling::tolerations(&mut errors, scheduling, &at);
    let key = |t: &Value| ["key", "operator", "value", "effect"].map(|field| text(t, field).to_owned());
    let mut seen = Vec::new();
    for (at, toleration) in items(scheduling, "tolerations", &at) {
        if seen.contains(&key(toleration)) {
            errors.duplicate(&at, toleration);
        }
        seen.push(key(toleration));
    }
    errors.0
}

/// A change of a RuntimeClass.
pub(in crate::resources) fn runtime_class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(runtime_class(new));
    errors.immutable(&Path::new("handler"), &new["handler"], &old["handler"]);
    errors.0
}
