//! What limits workloads: quotas, ranges, priority and fairness; and RuntimeClasses.

use serde_json::{Map, Value};

use super::ruled::Ruled;
use super::{child, items, set_default, set_default_number};
use crate::resources::validation as v;

/// LimitRanges.
pub const LIMIT_RANGE: Ruled =
    Ruled::new(v::limit_range, |new, _| v::limit_range(new)).defaults(limit_range).create_on_update();

/// ResourceQuotas.
pub const RESOURCE_QUOTA: Ruled = Ruled::new(v::resource_quota, v::resource_quota_update)
    .status(v::resource_quota_status)
    .warnings(v::resource_quota_warnings);

/// RuntimeClasses.
pub const RUNTIME_CLASS: Ruled =
    Ruled::new(v::runtime_class, v::runtime_class_update).create_on_update().conditional();

/// FlowSchemas.
pub const FLOW_SCHEMA: Ruled = Ruled::new(v::flow_schema, |new, _| v::flow_schema(new))
    .defaults(|object| {
        if let Some(spec) = child(object, "spec") {
            set_default_number(spec, "matchingPrecedence", 1000);
        }
    })
    .status(v::flow_status)
    .status_alone();

/// PriorityLevelConfigurations.
pub const PRIORITY_LEVEL: Ruled = Ruled::new(v::priority_level, |new, _| v::priority_level(new))
    .defaults(priority_level)
    .status(v::flow_status)
    .status_alone();

/// What a container may use at most, it uses by default; what it uses by default, it requests by default.
fn limit_range(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    for limit in items(spec, "limits").filter(|limit| limit["type"] == "Container") {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let given = limit[from].as_object().cloned().unwrap_or_default();
            let mut filled: Map<String, Value> = limit[to].as_object().cloned().unwrap_or_default();
            for (name, amount) in given {
                filled.entry(name).or_insert(amount);
            }
            if !filled.is_empty() {
                limit[to] = filled.into();
            }
        }
    }
}

fn priority_level(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    for (field, shares) in [("exempt", 0), ("limited", 30)] {
        if let Some(level) = child(spec, field) {
            set_default(level, "nominalConcurrencyShares", shares);
            set_default(level, "lendablePercent", 0);
        }
    }
    if let Some(queuing) = child(spec, "limited")
        .and_then(|limited| child(limited, "limitResponse"))
        .and_then(|response| child(response, "queuing"))
    {
        for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            set_default_number(queuing, field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Strategy as _;
    use serde_json::json;

    #[test]
    fn limits_default_from_each_other() {
        let mut range = json!({"spec": {"limits": [
            {"type": "Container", "min": {"cpu": "50m", "memory": "100Mi"}, "max": {"cpu": "500m"}},
            {"type": "Pod", "max": {"cpu": "1"}},
        ]}});
        LIMIT_RANGE.default(&mut range);
        let limits = &range["spec"]["limits"];
        assert_eq!(limits[0]["default"], json!({"cpu": "500m"}));
        assert_eq!(limits[0]["defaultRequest"], json!({"cpu": "500m", "memory": "100Mi"}));
        assert!(limits[1]["default"].is_null());
    }
}
