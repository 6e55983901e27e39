//! All groups and versions in the order in which clients prefer them: those of this server and those of others
//! (`apiregistration/v1/helper.SortedByGroupAndVersion`).

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_api::custom::version_order;
use keelson_api::resources::{CUSTOM_PRIORITY, Priority, ResourceTable, priority};
use serde_json::{Value, json};

use super::{Remote, Remotes};

/// A group as clients see it.
pub struct ServedGroup {
    /// Its name; empty for core.
    pub name: String,
    /// Its versions, the preferred one first.
    pub versions: Vec<ServedVersion>,
}

/// A version of it.
pub struct ServedVersion {
    /// Its name.
    pub name: String,
    remote: Option<Arc<Remote>>,
}

impl ServedVersion {
    /// What a server other than this one serves of it, as aggregated discovery shows it.
    pub fn of_other_server(&self) -> Option<Value> {
        let document = self.remote.as_ref()?.document.read();
        Some(match &document.resources {
            Some(resources) => json!({"version": self.name, "resources": resources, "freshness": "Current"}),
            None => json!({"version": self.name, "freshness": "Stale"}),
        })
    }

    /// Where that server's OpenAPI v3 document is, with a hash of it.
    pub(crate) fn openapi_of_other_server(&self) -> Option<String> {
        self.remote.as_ref()?.document.read().openapi.clone()
    }
}

/// What this server serves, and what others do. An APIService says where a version stands.
pub(super) fn groups(table: &ResourceTable, services: &[Arc<Value>], remotes: &Remotes) -> Vec<ServedGroup> {
    let mut all: BTreeMap<(String, String), Priority> = BTreeMap::new();
    for (group, versions) in table.groups() {
        for version in versions {
            let place = priority(&group, &version).unwrap_or(CUSTOM_PRIORITY);
            all.insert((group.clone(), version), place);
        }
    }
    for service in services {
        let spec = &service["spec"];
        let text = |key: &str| spec[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| spec[key].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or_default();
        let key = (text("group"), text("version"));
        if all.contains_key(&key) || remotes.contains_key(&key) {
            let (group, version) = (number("groupPriorityMinimum"), number("versionPriority"));
            all.insert(key, Priority { group, version });
        }
    }
    let mut sorted: Vec<_> = all.into_iter().collect();
    sorted.sort_by_key(|((group, version), place)| (Reverse(place.group), format!("{version}.{group}")));
    let mut found: Vec<(String, Vec<(String, i32)>)> = Vec::new();
    for ((group, version), place) in sorted {
        match found.iter_mut().find(|(name, _)| *name == group) {
            Some((_, versions)) => versions.push((version, place.version)),
            None => found.push((group, vec![(version, place.version)])),
        }
    }
    let served = |(name, mut versions): (String, Vec<(String, i32)>)| {
        versions.sort_by(|(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| version_order(a, b)));
        let versions = versions
            .into_iter()
            .map(|(version, _)| {
                let remote = remotes.get(&(name.clone(), version.clone())).cloned();
                ServedVersion { name: version, remote }
            })
            .collect();
        ServedGroup { name, versions }
    };
    found.into_iter().map(served).collect()
}

#[cfg(test)]
mod tests {
    use super::super::document::Document;
    use super::super::remote::Spec;
    use super::*;

    fn service(group: &str, version: &str, of_group: i32, of_version: i32, remote: bool) -> Arc<Value> {
        let mut object = json!({"metadata": {"name": format!("{version}.{group}")}, "spec": {
            "group": group, "version": version, "groupPriorityMinimum": of_group, "versionPriority": of_version,
        }});
        if remote {
            object["spec"]["service"] = json!({"namespace": "n", "name": "s"});
        }
        Arc::new(object)
    }

    fn shown(services: &[Arc<Value>]) -> Vec<ServedGroup> {
        let remotes: Remotes = services
            .iter()
            .filter_map(|service| Spec::read(service))
            .map(|spec| ((spec.group.clone(), spec.version.clone()), Arc::new(Remote::new(spec, None))))
            .collect();
        groups(&ResourceTable::builtin(), services, &remotes)
    }

    fn names(groups: &[ServedGroup]) -> Vec<String> {
        let of = |group: &ServedGroup| {
            let versions: Vec<&str> = group.versions.iter().map(|v| v.name.as_str()).collect();
            format!("{}:{}", group.name, versions.join(","))
        };
        groups.iter().map(of).collect()
    }

    #[test]
    fn priorities_order_them() {
        let plain = names(&shown(&[]));
        assert_eq!(plain[..4], ["apiregistration.k8s.io:v1", ":v1", "apps:v1", "events.k8s.io:v1"]);
        assert!(plain.contains(&"autoscaling:v2,v1".to_owned()));
        let merged = names(&shown(&[
            service("low.example.com", "v1", 100, 5, true),
            service("low.example.com", "v2", 10, 50, true),
            service("b.example.com", "v1beta1", 17_900, 10, true),
            service("b.example.com", "v1", 17_900, 10, true),
            service("a.example.com", "v1", 17_900, 10, true),
            // Nobody serves it.
            service("nobody.example.com", "v1", 17_900, 10, false),
            service("apps", "v1", 1, 1, false),
        ]));
        let place = |name: &str| merged.iter().position(|found| found == name).unwrap();
        assert_eq!(merged[1], ":v1");
        assert_eq!(merged[2..4], ["a.example.com:v1", "b.example.com:v1,v1beta1"]);
        // The better of its versions places a group, and versions go by their own numbers.
        assert!(place("low.example.com:v2,v1") < place("apps:v1"));
        assert_eq!(merged.last().unwrap(), "apps:v1");
        assert!(!merged.iter().any(|found| found.contains("nobody")));
    }

    #[test]
    fn what_does_not_answer_is_stale() {
        let found = shown(&[service("example.com", "v1", 100, 5, true)]);
        let version = &found.iter().find(|group| group.name == "example.com").unwrap().versions[0];
        assert_eq!(version.of_other_server().unwrap(), json!({"version": "v1", "freshness": "Stale"}));
        let resources = Some(vec![json!({"resource": "things"})]);
        *version.remote.as_ref().unwrap().document.write() = Document { resources, openapi: None };
        assert_eq!(
            version.of_other_server().unwrap(),
            json!({"version": "v1", "resources": [{"resource": "things"}], "freshness": "Current"})
        );
        assert!(found[0].versions[0].of_other_server().is_none());
    }
}
