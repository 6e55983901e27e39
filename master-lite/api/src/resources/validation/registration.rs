//! APIServices (`k8s.io/kube-aggregator/pkg/apis/apiregistration/validation`).

use serde_json::{Value, json};

use super::errors::{Errors, Path, items, set, text};
use super::rules;
use crate::field::FieldError;
use crate::resources::metadata::{dns_1035_label, dns_subdomain};

const HIGHEST_GROUP_PRIORITY: i64 = 20_000;
const HIGHEST_VERSION_PRIORITY: i64 = 1_000;

/// A new or changed APIService.
pub(in crate::resources) fn api_service(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let (group, version) = (text(spec, "group"), text(spec, "version"));
    let (name, required) = (&object["metadata"]["name"], format!("{version}.{group}"));
    if *name != required {
        let why = format!("must be `spec.version+\".\"+spec.group`: {required:?}");
        errors.invalid(&Path::new("metadata").child("name"), name, why);
    }
    if group.is_empty() && version != "v1" {
        errors.required(&at.child("group"), "only v1 may have an empty group and it better be legacy kube");
    }
    if !group.is_empty() {
        errors.rule(&at.child("group"), &spec["group"], dns_subdomain(group));
    }
    errors.rule(&at.child("version"), &json!(version), dns_1035_label(version));
    for (field, highest) in
        [("groupPriorityMinimum", HIGHEST_GROUP_PRIORITY), ("versionPriority", HIGHEST_VERSION_PRIORITY)]
    {
        let priority = spec[field].as_i64().unwrap_or_default();
        if !(1..=highest).contains(&priority) {
            let why = format!("must be positive and less than {highest}");
            errors.invalid(&at.child(field), &json!(priority), why);
        }
    }
    let (bundle, insecure) = (text(spec, "caBundle"), spec["insecureSkipTLSVerify"] == true);
    let skip = at.child("insecureSkipTLSVerify");
    if !set(spec, "service") {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", decoded_length(bundle));
            errors.invalid(&at.child("caBundle"), &shown.into(), "local APIServices may not have a caBundle");
        }
        if insecure {
            errors.invalid(&skip, &json!(true), "local APIServices may not have insecureSkipTLSVerify");
        }
        return errors.0;
    }
    let (service, place) = (&spec["service"], at.child("service"));
    errors.need(service, "namespace", &place);
    errors.need(service, "name", &place);
    if let Err(why) = rules::port_number(service["port"].as_i64().unwrap_or_default()) {
        errors.invalid(&place.child("port"), &service["port"], format!("port is not valid: {why}"));
    }
    if insecure && !bundle.is_empty() {
        errors.invalid(&skip, &json!(true), "may not be true if caBundle is present");
    }
    errors.0
}

/// Number of bytes that a base64 text stands for.
fn decoded_length(text: &str) -> usize {
    text.trim_end_matches('=').len() * 3 / 4
}

/// A changed status.
pub(in crate::resources) fn api_service_status(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for (place, condition) in items(&object["status"], "conditions", &Path::new("status")) {
        let status = text(condition, "status");
        if !["True", "False", "Unknown"].contains(&status) {
            errors.unsupported(&place.child("status"), &json!(status), &["True", "False", "Unknown"]);
        }
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(object: &Value) -> Vec<String> {
        api_service(object).iter().map(ToString::to_string).collect()
    }

    fn service(change: impl FnOnce(&mut Value)) -> Value {
        let mut object = json!({"metadata": {"name": "v1.example.com"}, "spec": {
            "group": "example.com", "version": "v1", "groupPriorityMinimum": 2000, "versionPriority": 20,
            "service": {"namespace": "n", "name": "s", "port": 443},
        }});
        change(&mut object);
        object
    }

    #[test]
    fn rules_are_upstreams() {
        assert_eq!(told(&service(|_| ())), [""; 0]);
        let local = service(|o| {
            o["spec"]["service"] = Value::Null;
            o["spec"]["caBundle"] = json!("aGVsbG8=");
            o["spec"]["insecureSkipTLSVerify"] = json!(true);
        });
        assert_eq!(
            told(&local),
            [
                "spec.caBundle: Invalid value: \"5 bytes\": local APIServices may not have a caBundle",
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ]
        );
        let wrong = service(|o| {
            o["metadata"]["name"] = json!("v1");
            o["spec"]["groupPriorityMinimum"] = json!(20001);
            o["spec"]["versionPriority"] = json!(0);
            o["spec"]["service"] = json!({"port": 0});
            o["spec"]["caBundle"] = json!("aGVsbG8=");
            o["spec"]["insecureSkipTLSVerify"] = json!(true);
        });
        assert_eq!(
            told(&wrong),
            [
                "metadata.name: Invalid value: \"v1\": must be `spec.version+\".\"+spec.group`: \"v1.example.com\"",
                "spec.groupPriorityMinimum: Invalid value: 20001: must be positive and less than 20000",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
                "spec.service.namespace: Required value",
                "spec.service.name: Required value",
                "spec.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
            ]
        );
        let legacy = service(|o| {
            o["metadata"]["name"] = json!("v1.");
            o["spec"]["group"] = Value::Null;
        });
        assert_eq!(told(&legacy), [""; 0]);
        let none = service(|o| {
            o["metadata"]["name"] = json!("v2.");
            o["spec"]["group"] = json!("");
            o["spec"]["version"] = json!("v2");
        });
        assert_eq!(
            told(&none),
            ["spec.group: Required value: only v1 may have an empty group and it better be legacy kube"]
        );
        let status = json!({"status": {"conditions": [{"type": "a", "status": "Maybe"}]}});
        assert_eq!(
            api_service_status(&status)[0].to_string(),
            "status.conditions[0].status: Unsupported value: \"Maybe\": supported values: \"True\", \"False\", \"Unknown\""
        );
    }
}
