//! How webhooks and admission policies see a request, and what becomes of what they make of it.

use std::sync::Arc;

use keelson_api::custom::VersionSchema;
use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::{Resource, ResourceTable};
use keelson_api::smd::{TypeId, Types};
use serde_json::{Value, json};

use super::matching::{Place, namespace};
use crate::extension::{Attributes, HookView, Operation, Result, StatusError};
use crate::handlers::{scale_of, set_at};
use crate::negotiate::Form;
use crate::present::{IncludeObject, Presenter};
use crate::wire::{self, FieldValidation};
use crate::write::to_storage;

/// A request in the version that a webhook or policy wants.
#[derive(Clone)]
pub(super) struct Seen {
    /// The row of that version's resource, which holds the same objects.
    row: Arc<Resource>,
    version: String,
    /// Kind of what is seen.
    kind: GroupVersionKind,
    /// The request without the objects (an AdmissionRequest).
    pub(super) request: Value,
    pub(super) object: Value,
    pub(super) old: Value,
}

impl Seen {
    /// The request as it is seen at a place.
    pub(super) fn new(table: &ResourceTable, attributes: &Attributes, place: &Place) -> Result<Self> {
        let Place { group, version, resource } = place;
        let row = table.find(group, version, resource).cloned().ok_or_else(|| {
            StatusError::internal(format!(
                "unable to convert to {group}/{version}, Resource={resource}: unknown kind"
            ))
        })?;
        let shown = |object: Option<&Value>| match (object, &attributes.hooks.view) {
            (None, _) => Value::Null,
            (Some(object), HookView::Plain | HookView::Hidden) => object.clone(),
            (Some(object), HookView::Row) => view(&row, version, object.clone()),
            (Some(object), HookView::Scale(paths)) => scale_of(&view(&row, version, object.clone()), paths),
        };
        let (object, old) = (shown(attributes.object.as_ref()), shown(attributes.old_object.as_deref()));
        let kind = match attributes.hooks.view {
            HookView::Row => row.gvk(version),
            HookView::Scale(_) | HookView::Plain | HookView::Hidden => attributes.kind.clone(),
        };
        let request = request(attributes, namespace(attributes), place, &kind);
        Ok(Self { version: version.clone(), kind, request, object, old, row })
    }

    /// Kind of what is seen.
    pub(super) fn kind(&self) -> &GroupVersionKind {
        &self.kind
    }

    /// The type of what is seen, as merging sees it.
    pub(super) fn types(&self) -> Option<(&Types, TypeId)> {
        match &self.row.custom {
            // A scale is no custom resource.
            Some(custom) if self.kind.group == self.row.group && self.kind.kind == self.row.kind => {
                custom.schemas.get(&self.version).map(VersionSchema::types)
            }
            _ => Some((Types::builtin(), Types::builtin_kind(&self.kind)?)),
        }
    }

    /// Whether there is an object that may be changed.
    pub(super) fn is_mutable(&self, attributes: &Attributes) -> bool {
        !self.object.is_null() && attributes.operation != Operation::Connect
    }

    /// What has been made of the seen object, in the form in which it was given to admission. `None` if nothing has
    /// changed.
    pub(super) fn changed(
        &self,
        attributes: &Attributes,
        mut new: Value,
        validation: FieldValidation,
    ) -> Result<Option<Value>> {
        let Self { row, version, kind, object, .. } = self;
        match &attributes.hooks.view {
            HookView::Row => {
                wire::normalize_object(row, version, &mut new, validation)?;
                wire::apply_defaults(kind, &mut new);
                let mut stored = to_storage(row, version, new);
                row.strategy.default(&mut stored);
                Ok((view(row, version, stored.clone()) != *object).then_some(stored))
            }
            HookView::Scale(paths) => {
                wire::normalize(kind, &mut new, validation)?;
                let replicas = new["spec"]["replicas"].as_i64().unwrap_or(0);
                if replicas == object["spec"]["replicas"] {
                    return Ok(None);
                }
                let mut whole = view(row, version, attributes.object.clone().unwrap_or_default());
                set_at(&mut whole, &paths.spec_replicas, replicas.into());
                Ok(Some(to_storage(row, version, whole)))
            }
            HookView::Plain | HookView::Hidden => {
                wire::normalize(kind, &mut new, validation)?;
                wire::apply_defaults(kind, &mut new);
                Ok((new != *object).then_some(new))
            }
        }
    }
}

/// A stored object in a version.
pub(super) fn view(row: &Resource, version: &str, object: Value) -> Value {
    Presenter { row, version, form: Form::JSON, include: IncludeObject::Metadata }.convert(object)
}

/// An AdmissionRequest without the objects: what expressions know as `request`.
pub(super) fn request(
    attributes: &Attributes,
    namespace: &str,
    place: &Place,
    kind: &GroupVersionKind,
) -> Value {
    let user = &attributes.user;
    let mut user_info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        user_info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        user_info["extra"] = json!(user.extra);
    }
    let own = &attributes.kind;
    let mut request = json!({
        "kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "resource": {"group": place.group, "version": place.version, "resource": place.resource},
        "requestKind": {"group": own.group, "version": own.version, "kind": own.kind},
        "requestResource": {
            "group": attributes.resource.group, "version": attributes.version, "resource": attributes.resource.resource,
        },
        "operation": attributes.operation.as_str(),
        "userInfo": user_info,
        "dryRun": attributes.dry_run,
        "options": attributes.options,
    });
    let subresource = attributes.hooks.subresource(&attributes.subresource);
    for (field, value) in [
        ("subResource", subresource),
        ("requestSubResource", subresource),
        ("name", &attributes.name),
        ("namespace", namespace),
    ] {
        if !value.is_empty() {
            request[field] = value.into();
        }
    }
    request
}
