//! Owners of replicas, between a resource and its scale (`managedfields/scalehandler.go`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::entries::{EntriesError, Managed, ManagerId};
use crate::smd::update::VersionedSet;
use crate::smd::{Path, Set, field_path};

/// `apiVersion` of every scale.
pub const SCALE_VERSION: &str = "autoscaling/v1";

/// Translates between the owners of a resource and those of its scale.
pub struct ScaleOwners<'a> {
    /// `managedFields` of the resource.
    pub parent: Option<&'a Value>,
    /// `apiVersion` of the resource in the request.
    pub version: &'a str,
    /// Where the replicas are, by `apiVersion` of the resource.
    pub paths: BTreeMap<String, Path>,
}

fn replicas() -> Path {
    field_path(&["spec", "replicas"])
}

impl ScaleOwners<'_> {
    /// `managedFields` of the scale: whoever owns the replicas.
    pub fn to_scale(&self) -> Result<Option<Value>, EntriesError> {
        let mut managed = Managed::decode(self.parent)?;
        managed.fields.retain(|_, owned| self.paths.get(&owned.version).is_some_and(|p| owned.set.has(p)));
        for owned in managed.fields.values_mut() {
            owned.set = Set::new([replicas()]);
            owned.version = SCALE_VERSION.to_owned();
        }
        Ok(managed.encode())
    }

    /// `managedFields` of the resource after those of the scale have become these.
    ///
    /// Upstream matches owners by identifiers that hold the version, which differs between the two, so that a scale
    /// that changes nothing there takes an updater's other fields away. Here owners are matched without it.
    pub fn to_parent(&self, scale: Option<&Value>) -> Result<Option<Value>, EntriesError> {
        let mut managed = Managed::decode(self.parent)?;
        let scale = Managed::decode(scale)?.fields;
        let mut scale: BTreeMap<String, VersionedSet> =
            scale.into_iter().map(|(name, owned)| (at_version(&name, ""), owned)).collect();
        managed.fields.retain(|name, owned| {
            let Some(path) = self.paths.get(&owned.version) else { return false };
            // Who owned the replicas and does no more has lost them to somebody.
            if owned.set.has(path) && scale.remove(&at_version(name, "")).is_none() {
                owned.set = owned.set.difference(&Set::new([path.clone()]));
                return !owned.set.is_empty();
            }
            true
        });
        if let Some(path) = self.paths.get(self.version) {
            for (name, owned) in scale.into_iter().filter(|(_, owned)| owned.set.has(&replicas())) {
                let set = Set::new([path.clone()]);
                let owned = VersionedSet { set, version: self.version.to_owned(), applied: owned.applied };
                let version = if owned.applied { "" } else { self.version };
                managed.fields.insert(at_version(&name, version), owned);
            }
        }
        Ok(managed.encode())
    }
}

/// An owner's identifier with another version.
fn at_version(name: &str, version: &str) -> String {
    let id = ManagerId::decode(name).unwrap_or_default();
    ManagerId { api_version: version.to_owned(), ..id }.encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(manager: &str, version: &str, subresource: &str, fields: Value) -> Value {
        let mut entry = json!({
            "manager": manager, "operation": "Update", "apiVersion": version, "time": "2020-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": fields,
        });
        if !subresource.is_empty() {
            entry["subresource"] = subresource.into();
        }
        entry
    }

    #[test]
    fn replicas_change_hands() {
        let both = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        let parent = json!([entry("a", "apps/v1", "", both), entry("gone", "apps/v0", "", replicas.clone())]);
        let owners = ScaleOwners {
            parent: Some(&parent),
            version: "apps/v1",
            paths: BTreeMap::from([("apps/v1".to_owned(), field_path(&["spec", "replicas"]))]),
        };
        let scale = owners.to_scale().unwrap().unwrap();
        let mut expected = entry("a", SCALE_VERSION, "", replicas.clone());
        assert_eq!(scale, json!([expected]));
        let kept = owners.to_parent(Some(&scale)).unwrap();
        assert_eq!(kept, Some(json!([parent[0]])));
        // Taken by another, who has no time yet.
        let taken = json!([entry("b", SCALE_VERSION, "scale", replicas.clone())]);
        let taken = owners.to_parent(Some(&taken)).unwrap().unwrap();
        expected = entry("b", "apps/v1", "scale", replicas);
        expected.as_object_mut().unwrap().remove("time");
        let left = entry("a", "apps/v1", "", json!({"f:spec": {"f:paused": {}}}));
        assert_eq!(taken, json!([expected, left]));
    }
}
