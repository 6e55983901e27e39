//! In which order clients see groups and versions: of two that hold the same name, they take the first
//! (`DefaultGenericAPIServicePriorities` of `pkg/controlplane/apiserver/aggregator.go`, and what
//! `cmd/kube-apiserver/app/aggregator.go` adds).

/// Higher comes first, groups before versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priority {
    /// `groupPriorityMinimum` of an APIService.
    pub group: i32,
    /// `versionPriority` of an APIService.
    pub version: i32,
}

/// Of every version of a custom resource (`crdregistration`).
pub const CUSTOM_PRIORITY: Priority = Priority { group: 1000, version: 100 };

/// The group of APIServices themselves: before all others, and without an APIService.
pub const REGISTRATION_GROUP: &str = "apiregistration.k8s.io";

/// Higher than any APIService may ask for.
const REGISTRATION: Priority = Priority { group: 20001, version: 1 };

/// Versions of a group with their priorities.
type Versions = &'static [(&'static str, i32)];

/// Group, its priority, its versions with theirs.
const BUILTIN: &[(&str, i32, Versions)] = &[
    ("", 18000, &[("v1", 1)]),
    ("apps", 17800, &[("v1", 15)]),
    ("events.k8s.io", 17750, &[("v1", 15)]),
    ("authentication.k8s.io", 17700, &[("v1", 15)]),
    ("authorization.k8s.io", 17600, &[("v1", 15)]),
    ("autoscaling", 17500, &[("v2", 30), ("v1", 15)]),
    ("batch", 17400, &[("v1", 15)]),
    ("certificates.k8s.io", 17300, &[("v1", 15)]),
    ("networking.k8s.io", 17200, &[("v1", 15)]),
    ("policy", 17100, &[("v1", 15)]),
    ("rbac.authorization.k8s.io", 17000, &[("v1", 15)]),
    ("storage.k8s.io", 16800, &[("v1", 15)]),
    ("admissionregistration.k8s.io", 16700, &[("v1", 15)]),
    ("apiextensions.k8s.io", 16700, &[("v1", 15)]),
    ("scheduling.k8s.io", 16600, &[("v1", 15)]),
    ("coordination.k8s.io", 16500, &[("v1", 15)]),
    ("node.k8s.io", 16300, &[("v1", 15)]),
    ("discovery.k8s.io", 16200, &[("v1", 15)]),
    ("resource.k8s.io", 16200, &[("v1", 21)]),
    ("flowcontrol.apiserver.k8s.io", 16100, &[("v1", 21)]),
];

/// The priority of a version that is built in.
pub fn priority(group: &str, version: &str) -> Option<Priority> {
    if group == REGISTRATION_GROUP {
        return Some(REGISTRATION);
    }
    let (_, of_group, versions) = BUILTIN.iter().find(|(name, ..)| *name == group)?;
    let (_, of_version) = versions.iter().find(|(name, _)| *name == version)?;
    Some(Priority { group: *of_group, version: *of_version })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::ResourceTable;

    #[test]
    fn every_built_in_version_has_one() {
        for (group, versions) in ResourceTable::builtin().groups() {
            for version in versions {
                assert!(priority(&group, &version).is_some(), "{group}/{version}");
            }
        }
        assert_eq!(priority("apps", "v2"), None);
        assert_eq!(priority("example.com", "v1"), None);
    }
}
