//! A resource's objects, in the order of their keys.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use keelson_api::resources::Resource;

use super::CachedObject;
use crate::filter::{Filter, Place};

/// Fields by whose value objects are found without a look at all the others: group, resource, field. As upstream's cacher
/// has it (`Indexers` of `pkg/registry/core/pod/strategy.go`): each of a thousand nodes asks for its own pods, and for
/// everything that a node reads the authorizer does.
const INDEXED: [(&str, &str, &str); 1] = [("", "pods", "spec.nodeName")];

type ByKey = BTreeMap<Arc<str>, Arc<CachedObject>>;

/// Objects by key, and by the values of indexed fields.
pub struct Objects {
    all: ByKey,
    /// By place in [`CachedObject::fields`].
    indexes: Vec<(usize, HashMap<Box<str>, ByKey>)>,
}

/// Key inside of a resource.
fn local_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

impl Objects {
    /// None yet, of the resource that is stored as this row.
    pub fn new(storage: &Resource) -> Self {
        let group_resource = storage.group_resource();
        let fields = storage.selectable_fields.iter().enumerate();
        let indexed = fields.filter(|(_, field)| {
            INDEXED.contains(&(&group_resource.group, &group_resource.resource, &field.name))
        });
        Self { all: BTreeMap::new(), indexes: indexed.map(|(place, _)| (place, HashMap::new())).collect() }
    }

    /// Adds an object or replaces it; what was there before.
    pub fn insert(&mut self, key: &str, object: Arc<CachedObject>) -> Option<Arc<CachedObject>> {
        let key: Arc<str> = key.into();
        let prev = self.all.insert(key.clone(), object.clone());
        for (place, index) in &mut self.indexes {
            let value = Place::Field(*place).of(&object);
            if let Some(prev) = &prev
                && Place::Field(*place).of(prev) != value
            {
                forget(index, Place::Field(*place).of(prev), &key);
            }
            if !index.contains_key(value) {
                index.insert(value.into(), ByKey::new());
            }
            index.get_mut(value).map(|of_value| of_value.insert(key.clone(), object.clone()));
        }
        prev
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &str) -> Option<Arc<CachedObject>> {
        let prev = self.all.remove(key)?;
        for (place, index) in &mut self.indexes {
            forget(index, Place::Field(*place).of(&prev), key);
        }
        Some(prev)
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<CachedObject>> {
        self.all.get(local_key(namespace, name).as_str())
    }

    /// Objects of a namespace or of all.
    pub fn of(&self, namespace: Option<&str>) -> Vec<Arc<CachedObject>> {
        let Some(namespace) = namespace else { return self.all.values().cloned().collect() };
        let prefix = format!("{namespace}/");
        let from_first = self.all.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        from_first.take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, object)| object.clone()).collect()
    }

    /// Those that a filter selects.
    pub fn select(&self, filter: &Filter) -> Vec<Arc<CachedObject>> {
        let mut found = match (filter.key(), &filter.namespace) {
            (Some((Place::Name, name)), Some(namespace)) => {
                self.get(namespace, name).cloned().into_iter().collect()
            }
            (Some((Place::Field(place), value)), namespace) => {
                match self.indexes.iter().find(|(indexed, _)| *indexed == place) {
                    Some((_, index)) => {
                        index.get(value).into_iter().flat_map(BTreeMap::values).cloned().collect()
                    }
                    None => self.of(namespace.as_deref()),
                }
            }
            (_, namespace) => self.of(namespace.as_deref()),
        };
        if !filter.is_everything() || filter.namespace.is_some() {
            found.retain(|object| filter.matches(object));
        }
        found
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.all.len()
    }
}

fn forget(index: &mut HashMap<Box<str>, ByKey>, value: &str, key: &str) {
    if let Some(of_value) = index.get_mut(value) {
        of_value.remove(key);
        if of_value.is_empty() {
            index.remove(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use keelson_api::meta::GroupResource;
    use keelson_api::resources::ResourceTable;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    static TABLE: LazyLock<ResourceTable> = LazyLock::new(ResourceTable::builtin);

    fn pod(key: &str, node: u8, revision: u64) -> Arc<CachedObject> {
        let row = TABLE.get(&GroupResource::new("", "pods")).unwrap();
        let (namespace, name) = key.split_once('/').unwrap();
        let json = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": if node == 0 { String::new() } else { format!("n{node}") }},
        });
        let stored = crate::stored::encode(&json).unwrap();
        Arc::new(CachedObject::read(row, key, &stored, revision).unwrap())
    }

    proptest! {
        /// However it is found, it is what a look at all would find, in the same order.
        #[test]
        fn an_index_finds_what_a_look_at_all_finds(
            changes in prop::collection::vec((0..2u8, 0..4u8, prop::option::of(0..3u8)), 0..40),
            namespace in prop::option::of(0..2u8),
            selector in prop::sample::select(vec![
                "", "spec.nodeName=n1", "spec.nodeName=", "metadata.name=p1", "spec.nodeName!=n1",
                "spec.nodeName=n1,metadata.name=p1", "status.phase=,spec.nodeName=n2", "spec.nodeName=n1,spec.nodeName=n2",
            ]),
        ) {
            let row = TABLE.get(&GroupResource::new("", "pods")).unwrap();
            let mut objects = Objects::new(row);
            prop_assert_eq!(objects.indexes.len(), 1);
            let mut all = BTreeMap::new();
            for (revision, (space, name, node)) in (1..).zip(changes) {
                let key = format!("ns{space}/p{name}");
                let (was, is) = match node {
                    Some(node) => {
                        let pod = pod(&key, node, revision);
                        (all.insert(key.clone(), pod.clone()), objects.insert(&key, pod))
                    }
                    None => (all.remove(&key), objects.remove(&key)),
                };
                prop_assert_eq!(was.map(|pod| pod.revision), is.map(|pod| pod.revision));
            }
            let namespace = namespace.map(|namespace| format!("ns{namespace}"));
            let filter = Filter::new(row, row, namespace, "", selector).unwrap();
            let expected: Vec<_> = all.values().filter(|pod| filter.matches(pod)).map(|pod| pod.revision).collect();
            let found: Vec<_> = objects.select(&filter).iter().map(|pod| pod.revision).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(objects.len(), all.len());
            let indexed: usize = objects.indexes[0].1.values().map(BTreeMap::len).sum();
            prop_assert_eq!(indexed, all.len());
        }
    }
}
