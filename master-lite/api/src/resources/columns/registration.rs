//! APIServices (`k8s.io/kube-aggregator/pkg/registry/apiservice/etcd`).

use serde_json::Value;

use super::tree::{at, list_at, str_at};
use super::{AGE, NAME, Spec, text};

pub(super) const API_SERVICE: &[Spec] = &[
    NAME,
    text("Service", "The service behind which its server is.", |o, _| {
        let service = at(o, "spec.service");
        if service.is_null() {
            return "Local".into();
        }
        format!("{}/{}", str_at(service, "namespace"), str_at(service, "name")).into()
    }),
    text("Available", "Whether its server answers.", |o, _| available(o).into()),
    AGE,
];

fn available(object: &Value) -> String {
    let found = list_at(object, "status.conditions").iter().find(|c| c["type"] == "Available");
    let Some(condition) = found else { return "Unknown".to_owned() };
    match (str_at(condition, "status"), str_at(condition, "reason")) {
        ("True", _) => "True".to_owned(),
        (status, "") => status.to_owned(),
        (status, reason) => format!("{status} ({reason})"),
    }
}
