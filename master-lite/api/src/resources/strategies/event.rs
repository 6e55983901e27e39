//! Events: stored in the core form, also served as `events.k8s.io/v1`.

use serde_json::Value;

use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, validation};

/// Events.
pub struct Event;

impl Strategy for Event {
    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::event(object)
    }

    fn validate_update(&self, _context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        validation::event(new)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

/// Core name and events.k8s.io name of each field that differs.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// Core form to `events.k8s.io/v1`.
pub fn event_from_core(mut event: Value) -> Value {
    if let Some(map) = event.as_object_mut() {
        for (core, new) in NAMES {
            if let Some(value) = map.remove(*core) {
                map.insert((*new).to_owned(), value);
            }
        }
        map.insert("apiVersion".to_owned(), "events.k8s.io/v1".into());
    }
    event
}

/// `events.k8s.io/v1` to the core form.
pub fn event_to_core(mut event: Value) -> Value {
    if let Some(map) = event.as_object_mut() {
        for (core, new) in NAMES {
            if let Some(value) = map.remove(*new) {
                map.insert((*core).to_owned(), value);
            }
        }
        map.insert("apiVersion".to_owned(), "v1".into());
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_and_back() {
        let core = json!({"apiVersion": "v1", "involvedObject": {"name": "x"}, "message": "m", "count": 2});
        let view = event_from_core(core.clone());
        assert_eq!(view["regarding"]["name"], "x");
        assert_eq!(event_to_core(view), core);
    }
}
