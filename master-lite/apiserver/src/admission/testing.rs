//! Attributes of writes, for unit tests.

use std::sync::Arc;

use keelson_api::meta::{GroupResource, GroupVersionKind};
use serde_json::Value;

use crate::authz::rbac::text;
use crate::extension::{Attributes, Hooks, Operation, UserInfo};

/// A create by an administrator; `resource` may have a subresource.
pub(crate) fn create(group: &str, resource: &str, object: Value) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        operation: Operation::Create,
        kind: GroupVersionKind::new(group, "v1", text(&object, "/kind")),
        resource: GroupResource::new(group, resource),
        version: "v1".into(),
        subresource: subresource.into(),
        namespace: text(&object, "/metadata/namespace").into(),
        name: text(&object, "/metadata/name").into(),
        user: UserInfo::new("kubernetes-admin", &["system:masters"]),
        object: Some(object),
        old_object: None,
        dry_run: false,
        options: Value::Null,
        hooks: Hooks::default(),
    }
}

/// An update of `old` to `new`.
pub(crate) fn update(group: &str, resource: &str, old: Value, new: Value) -> Attributes {
    Attributes {
        operation: Operation::Update,
        old_object: Some(Arc::new(old)),
        ..create(group, resource, new)
    }
}

/// The same write by a node.
pub(crate) fn by_node(attributes: Attributes, node: &str) -> Attributes {
    Attributes { user: UserInfo::new(&format!("system:node:{node}"), &["system:nodes"]), ..attributes }
}
