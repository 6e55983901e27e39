//! Which fields a request can change at all: strategies put the others back, so nobody comes to own them by sending
//! them (`GetResetFields` and `GetResetFieldsFilter` of the strategies in `pkg/registry`).

use super::Resource;
use crate::smd::{Filter, Pattern, Set, field_path};

/// Resources whose status subresource leaves all metadata alone.
const STATUS_WITHOUT_METADATA: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("apiregistration.k8s.io", "apiservices"),
    ("flowcontrol.apiserver.k8s.io", "flowschemas"),
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations"),
    ("internal.apiserver.k8s.io", "storageversions"),
    ("networking.k8s.io", "servicecidrs"),
    ("resource.k8s.io", "devicetaintrules"),
    ("resource.k8s.io", "resourceclaims"),
    ("resource.k8s.io", "resourcepoolstatusrequests"),
    ("scheduling.k8s.io", "podgroups"),
    ("storage.k8s.io", "volumeattachments"),
    ("storagemigration.k8s.io", "storageversionmigrations"),
];

/// What counts of a request to a resource (`subresource` empty) or a subresource of it; `None`: everything.
pub fn reset_filter(resource: &Resource, subresource: &str) -> Option<Filter> {
    let name = (resource.group.as_str(), resource.plural.as_str());
    let all_but =
        |paths: &[&[&str]]| Some(Filter::Exclude(Set::new(paths.iter().map(|path| field_path(path)))));
    match (name, subresource) {
        (("certificates.k8s.io", "certificatesigningrequests"), "") => all_but(&[&["spec"], &["status"]]),
        (("certificates.k8s.io", "certificatesigningrequests"), "status") => {
            all_but(&[&["spec"], &["status", "conditions"]])
        }
        (("certificates.k8s.io", "certificatesigningrequests"), "approval") => {
            all_but(&[&["spec"], &["status", "certificate"]])
        }
        (("certificates.k8s.io", "podcertificaterequests"), "") => None,
        (("apps", "deployments"), "status") => all_but(&[&["spec"], &["metadata", "labels"]]),
        (("", "pods"), "status") => {
            all_but(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
        }
        (("", "pods"), "ephemeralcontainers") => {
            Some(Filter::Include(Pattern::prefix(&[Some("spec"), Some("ephemeralContainers")])))
        }
        (("", "pods"), "resize") => {
            let mut pattern = Pattern::Elements(Vec::new());
            for list in ["containers", "initContainers"] {
                for field in ["resources", "resizePolicy"] {
                    pattern = pattern.merge(Pattern::prefix(&[Some("spec"), Some(list), None, Some(field)]));
                }
            }
            Some(Filter::Include(pattern))
        }
        (("", "namespaces"), "finalize") => all_but(&[&["status"]]),
        (_, "") if resource.has_status() => all_but(&[&["status"]]),
        (_, "status") if resource.custom.is_some() || STATUS_WITHOUT_METADATA.contains(&name) => {
            all_but(&[&["metadata"], &["spec"]])
        }
        (_, "status") => all_but(&[&["spec"]]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::ResourceTable;
    use crate::smd::PathElement;

    #[test]
    fn what_counts() {
        let table = ResourceTable::builtin();
        let counts = |group: &str, plural: &str, subresource: &str, path: &[&str]| {
            let row = table.find(group, "v1", plural).unwrap();
            let set = Set::new([field_path(path)]);
            reset_filter(row, subresource).is_none_or(|filter| !filter.apply(&set).is_empty())
        };
        assert!(!counts("apps", "deployments", "", &["status", "replicas"]));
        assert!(counts("apps", "deployments", "", &["spec", "replicas"]));
        assert!(!counts("apps", "deployments", "status", &["metadata", "labels", "a"]));
        assert!(counts("apps", "deployments", "status", &["metadata", "annotations", "a"]));
        assert!(!counts("storage.k8s.io", "volumeattachments", "status", &["metadata", "annotations", "a"]));
        assert!(counts("", "configmaps", "", &["data", "a"]));
        let pods = table.find("", "v1", "pods").unwrap();
        let container = PathElement::key([("name", "a".into())]);
        let path = |field: &str| {
            let mut path = field_path(&["spec", "containers"]);
            path.extend([container.clone(), PathElement::field(field), PathElement::field("limits")]);
            Set::new([path])
        };
        let resize = reset_filter(pods, "resize").unwrap();
        assert!(!resize.apply(&path("resources")).is_empty() && resize.apply(&path("env")).is_empty());
    }
}
