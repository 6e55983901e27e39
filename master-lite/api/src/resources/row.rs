//! One row of the table.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{Printer, Strategy};
use crate::custom::Custom;
use crate::meta::{GroupResource, GroupVersionKind};

/// All verbs of a stored resource.
pub(super) const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A resource that the API serves.
#[derive(Clone)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// Served versions, the preferred one first.
    pub versions: Vec<String>,
    /// Version that is stored; all conversion goes through it.
    pub storage_version: String,
    /// Kind of an object.
    pub kind: String,
    /// Lower-case plural, the name in URLs.
    pub plural: String,
    /// Lower-case singular.
    pub singular: String,
    /// What `kubectl get` accepts besides the names above.
    pub short_names: Vec<String>,
    /// Groups of resources such as `all`.
    pub categories: Vec<String>,
    /// Objects live in namespaces.
    pub namespaced: bool,
    /// Verbs of the resource itself.
    pub verbs: Vec<String>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Fields that field selectors may name, besides `metadata.name` and `metadata.namespace`.
    pub selectable_fields: Vec<SelectableField>,
    /// Where the objects rest; the resource itself, unless it is another view of one (`events.k8s.io`).
    pub storage: GroupResource,
    /// Turns objects of this view into the stored form and back.
    pub converter: Option<Converter>,
    /// Objects vanish by themselves after this time from their last write.
    pub ttl: Option<Duration>,
    /// `metadata.generation` starts at 1 and grows with each change outside of metadata and status.
    pub tracks_generation: bool,
    /// A status that a client sends on create is dropped (false for Nodes).
    pub reset_status_on_create: bool,
    /// A resource that is computed, not stored: `TokenReview` and its like.
    pub is_virtual: bool,
    /// How objects become rows of a Table.
    pub printer: Printer,
    /// What the kind does beyond data.
    pub strategy: Arc<dyn Strategy>,
    /// Set for custom resources.
    pub custom: Option<Arc<Custom>>,
    /// The row as each of its versions has it, where versions differ.
    pub views: BTreeMap<String, Arc<Resource>>,
}

impl Resource {
    /// The row as a version has it.
    pub fn view(&self, version: &str) -> &Self {
        self.views.get(version).map_or(self, AsRef::as_ref)
    }

    /// Kind of lists of this resource.
    pub fn list_kind(&self) -> String {
        match &self.custom {
            Some(custom) if !custom.list_kind.is_empty() => custom.list_kind.clone(),
            _ => format!("{}List", self.kind),
        }
    }

    /// Group and plural.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(&self.group, &self.plural)
    }

    /// The kind in one of the served versions.
    pub fn gvk(&self, version: &str) -> GroupVersionKind {
        GroupVersionKind::new(&self.group, version, &self.kind)
    }

    /// The kind as it is stored (before the converter of a view).
    pub fn storage_gvk(&self) -> GroupVersionKind {
        self.gvk(&self.storage_version)
    }

    /// Finds a subresource.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// True if the resource itself has the verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// True if status is written only through the subresource.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

/// A subresource, as discovery shows it.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// Last path segment: `status`.
    pub name: String,
    /// Kind of what is read or written there.
    pub kind: GroupVersionKind,
    /// Verbs.
    pub verbs: Vec<String>,
    /// Set for `scale`.
    pub scale: Option<ScalePaths>,
}

/// Where a resource keeps what `autoscaling/v1 Scale` shows; dotted paths.
#[derive(Debug, Clone)]
pub struct ScalePaths {
    /// Desired number.
    pub spec_replicas: String,
    /// Observed number.
    pub status_replicas: String,
    /// Label selector (an object or, for replication controllers, a map).
    pub selector: String,
}

/// A field that a selector may name.
#[derive(Debug, Clone)]
pub struct SelectableField {
    /// Name in selectors: `spec.nodeName`.
    pub name: String,
    /// Dotted path in the stored form; mostly the same. Of several between bars the first that is not empty counts.
    pub path: String,
    /// Value of an absent field: empty for strings, `false`, `0`.
    pub absent: &'static str,
}

/// A view's conversion, both ways. Of `metadata` neither touches more than annotations.
#[derive(Clone, Copy)]
pub struct Converter {
    /// From the stored form (in the storage's own `apiVersion` and `kind`).
    pub from_storage: fn(Value) -> Value,
    /// To the stored form.
    pub to_storage: fn(Value) -> Value,
}
