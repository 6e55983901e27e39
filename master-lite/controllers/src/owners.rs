//! Finding those whom the change of an object concerns: the owner that manages it, the one that did, and those
//! whose selectors would have it.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Delta, Informer, Key, Selector, meta};
use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Result;

/// An object that manages others, which it finds by a selector.
pub trait Owner:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// Which objects are its.
    ///
    /// # Errors
    /// An operator that is not known.
    fn selector(&self) -> Result<Selector>;
}

impl Owner for Deployment {
    fn selector(&self) -> Result<Selector> {
        Ok(Selector::compile(self.spec.as_ref().map(|s| &s.selector))?)
    }
}

impl Owner for DaemonSet {
    fn selector(&self) -> Result<Selector> {
        Ok(Selector::compile(self.spec.as_ref().map(|s| &s.selector))?)
    }
}

impl Owner for StatefulSet {
    fn selector(&self) -> Result<Selector> {
        Ok(Selector::compile(self.spec.as_ref().map(|s| &s.selector))?)
    }
}

impl Owner for Job {
    fn selector(&self) -> Result<Selector> {
        Ok(Selector::compile(self.spec.as_ref().and_then(|s| s.selector.as_ref()))?)
    }
}

/// The owner that manages an object, if it is of kind `K` and is still the same.
pub fn owner_of<K: Owner>(owners: &Informer<K>, object: &ObjectMeta) -> Option<Arc<K>> {
    let reference = meta::controller_of(object).filter(|owner| owner.kind == K::kind(&()))?;
    let owner = owners.get(&Key::new(meta::namespace(object), &reference.name))?;
    (meta::uid(owner.meta()) == reference.uid).then_some(owner)
}

/// The owners that shall look at what has changed: the one that manages the object, the one that did before, or,
/// for an object that no one manages, those that may adopt it.
pub fn concerned<K: Owner, O: Resource>(owners: &Informer<K>, delta: &Delta<O>) -> Vec<Key> {
    let object = delta.object().meta();
    let mut keys = Vec::new();
    let changed_hands =
        delta.old().filter(|old| meta::controller_of(old.meta()) != meta::controller_of(object));
    if let Some(former) = changed_hands.and_then(|old| owner_of(owners, old.meta())) {
        keys.push(Key::of(&*former));
    }
    if let Some(owner) = owner_of(owners, object) {
        keys.push(Key::of(&*owner));
        return keys;
    }
    let going = object.deletion_timestamp.is_some() || matches!(delta, Delta::Deleted(_));
    let relevant =
        delta.old().is_none_or(|old| changed_hands.is_some() || old.meta().labels != object.labels);
    if !going && relevant && meta::controller_of(object).is_none() {
        let candidates = owners.list_in(meta::namespace(object));
        let adopters = candidates
            .iter()
            .filter(|owner| owner.selector().is_ok_and(|selector| selector.matches(object.labels.as_ref())));
        keys.extend(adopters.map(|owner| Key::of(&**owner)));
    }
    keys
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn pod(labels: Value, owner: Option<&str>) -> Arc<Pod> {
        let owners = owner.map(|uid| {
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": uid, "uid": uid, "controller": true}])
        });
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "labels": labels, "ownerReferences": owners}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[track_caller]
    fn check(delta: &Delta<Pod>, expected: &[&str]) {
        let sets = Informer::<DaemonSet>::new();
        for name in ["a", "b"] {
            let set = json!({
                "metadata": {"name": name, "namespace": "ns", "uid": name},
                "spec": {"selector": {"matchLabels": {"app": name}}, "template": {}},
            });
            sets.apply(serde_json::from_value(set).unwrap());
        }
        let names: Vec<String> = concerned(&sets, delta).into_iter().map(|key| key.name).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn who_is_concerned() {
        let app = |name: &str| json!({"app": name});
        check(&Delta::Added(pod(app("b"), Some("a"))), &["a"]);
        check(&Delta::Added(pod(app("b"), None)), &["b"]);
        check(&Delta::Added(pod(app("b"), Some("other"))), &[]);
        check(&Delta::Deleted(pod(app("b"), Some("a"))), &["a"]);
        check(&Delta::Deleted(pod(app("b"), None)), &[]);
        let updated = |old, new| Delta::Updated { old, new };
        check(&updated(pod(app("a"), Some("a")), pod(app("b"), None)), &["a", "b"]);
        check(&updated(pod(app("a"), None), pod(app("b"), None)), &["b"]);
        check(&updated(pod(app("b"), None), pod(app("b"), None)), &[]);
        check(&updated(pod(app("a"), Some("a")), pod(app("a"), Some("b"))), &["a", "b"]);
    }
}
