//! A cache of given objects, for unit tests of this crate's plug-ins.

use std::sync::Arc;

use keelson_api::meta::GroupResource;
use parking_lot::Mutex;
use serde_json::Value;

use super::rbac::text;
use crate::extension::ObjectReader;

/// Objects by resource.
#[derive(Default)]
pub(crate) struct FakeReader {
    objects: Mutex<Vec<(GroupResource, Arc<Value>)>>,
}

impl FakeReader {
    /// A cache that holds these: (group, resource, object).
    pub(crate) fn new(objects: Vec<(&str, &str, Value)>) -> Self {
        let objects = objects.into_iter().map(|(g, r, o)| (GroupResource::new(g, r), Arc::new(o))).collect();
        Self { objects: Mutex::new(objects) }
    }

    /// Adds one object.
    pub(crate) fn add(&self, group: &str, resource: &str, object: Value) {
        self.objects.lock().push((GroupResource::new(group, resource), Arc::new(object)));
    }

    /// Takes out all objects of a name.
    pub(crate) fn remove(&self, name: &str) {
        self.objects.lock().retain(|(_, o)| text(o, "/metadata/name") != name);
    }
}

impl ObjectReader for FakeReader {
    fn get(&self, resource: &GroupResource, namespace: Option<&str>, name: &str) -> Option<Arc<Value>> {
        self.list(resource, namespace).into_iter().find(|o| text(o, "/metadata/name") == name)
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let objects = self.objects.lock();
        let of_kind = objects.iter().filter(|(r, _)| r == resource).map(|(_, o)| o);
        of_kind.filter(|o| namespace.is_none_or(|ns| text(o, "/metadata/namespace") == ns)).cloned().collect()
    }

    fn resource_version(&self, resource: &GroupResource) -> u64 {
        self.list(resource, None).len() as u64
    }
}
