//! APIServices (`k8s.io/kube-aggregator/pkg/registry/apiservice`).

use serde_json::{Value, json};

use super::ruled::keep_metadata;
use super::{child, set_default_number};
use crate::field::FieldError;
use crate::resources::{Strategy, StrategyContext, metadata, validation};

/// Port of a service that does not say.
const PORT: i64 = 443;

/// APIServices.
pub struct ApiService;

/// What is said of versions that the server serves itself.
pub fn local_condition(now: &str) -> Value {
    json!({
        "type": "Available", "status": "True", "lastTransitionTime": now, "reason": "Local",
        "message": "Local APIServices are always available",
    })
}

impl Strategy for ApiService {
    fn default(&self, object: &mut Value) {
        // Absence means 443; an explicit zero is refused.
        if let Some(service) = child(object, "spec").and_then(|spec| child(spec, "service"))
            && service["port"].is_null()
        {
            set_default_number(service, "port", PORT);
        }
    }

    fn prepare_for_create(&self, context: &StrategyContext, object: &mut Value) {
        object["status"] = json!({});
        if object["spec"]["service"].is_null() {
            object["status"] = json!({"conditions": [local_condition(&context.now)]});
        }
    }

    fn prepare_for_update(&self, context: &StrategyContext, new: &mut Value, old: &Value) {
        if !context.subresource.is_empty() {
            keep_metadata(new, old);
        }
    }

    fn validate_create(&self, _context: &StrategyContext, object: &Value) -> Vec<FieldError> {
        validation::api_service(object)
    }

    fn validate_update(&self, context: &StrategyContext, new: &Value, _old: &Value) -> Vec<FieldError> {
        match context.subresource.as_str() {
            "" => validation::api_service(new),
            _ => validation::api_service_status(new),
        }
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name(&self, name: &str) -> Result<(), String> {
        metadata::path_segment(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ones_are_available_and_others_get_a_port() {
        let context = StrategyContext { now: "2026-01-01T00:00:00Z".into(), ..Default::default() };
        let mut local =
            json!({"spec": {"group": "a", "version": "v1"}, "status": {"conditions": [{"type": "x"}]}});
        ApiService.default(&mut local);
        ApiService.prepare_for_create(&context, &mut local);
        assert_eq!(local["status"]["conditions"], json!([local_condition("2026-01-01T00:00:00Z")]));
        assert_eq!(local["spec"], json!({"group": "a", "version": "v1"}));
        let mut remote = json!({"spec": {"service": {"name": "s", "namespace": "n"}}});
        ApiService.default(&mut remote);
        ApiService.prepare_for_create(&context, &mut remote);
        assert_eq!(remote["spec"]["service"]["port"], 443);
        assert_eq!(remote["status"], json!({}));
        let mut zero = json!({"spec": {"service": {"port": 0}}});
        ApiService.default(&mut zero);
        assert_eq!(zero["spec"]["service"]["port"], 0);
    }

    #[test]
    fn status_writes_leave_labels_alone() {
        let context = StrategyContext { subresource: "status".into(), ..Default::default() };
        let old = json!({"metadata": {"labels": {"a": "1"}}});
        let mut new = json!({"metadata": {"labels": {"a": "2"}, "annotations": {"b": "c"}}});
        ApiService.prepare_for_update(&context, &mut new, &old);
        assert_eq!(new, old);
    }
}
