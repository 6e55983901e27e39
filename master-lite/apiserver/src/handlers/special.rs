//! Which handler a resource request goes to, and the subresources that are no plain reads or writes.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use keelson_api::meta::{GroupResource, GroupVersionKind};
use keelson_api::resources::{Resource, ScalePaths};
use serde_json::{Value, json};

use super::{Call, add_warnings, read_body};
use crate::extension::HookView;
use crate::extension::{Body, Connector};
use crate::options::{OptionsKind, WriteOptions};
use crate::owners::ScaleManager;
use crate::status::{Result, StatusError};
use crate::wire::{self, FieldValidation, PatchKind, PatchType};
use crate::write::{Ownership, Write, now};

/// The connector of a request, if its subresource has one.
pub(super) fn connector(call: &Call) -> Option<Arc<dyn Connector>> {
    let info = &call.info;
    if info.subresource.is_empty() {
        return None;
    }
    let key = (GroupResource::new(&info.group, &info.resource), info.subresource.clone());
    call.core.extensions.connectors.get(&key).cloned()
}

pub(super) async fn route(
    call: &Call,
    row: &Arc<Resource>,
    request: Request<Body>,
) -> Result<Response<Body>> {
    let info = &call.info;
    let verb = info.verb.as_str();
    let resource = row.group_resource();
    if let Some(connector) = connector(call) {
        if !connector.verbs().contains(&verb) {
            return Err(StatusError::method_not_supported(&resource, verb));
        }
        let warnings = call.ask_to_connect(row).await?;
        let mut answer = connector.connect(&call.context(false), request).await?;
        add_warnings(&mut answer, &warnings);
        return Ok(answer);
    }
    let known = match info.subresource.as_str() {
        "" => row.has_verb(verb),
        sub => match row.subresource(sub) {
            Some(sub) => sub.verbs.iter().any(|v| v == verb),
            None => return Ok(super::nonresource::no_such_page()),
        },
    };
    if !known {
        return Err(StatusError::method_not_supported(&resource, verb));
    }
    if verb == "watch" {
        return call.clone().watch(row).await;
    }
    let key = (resource.clone(), info.subresource.clone());
    let body = read_body(request.into_body()).await?;
    if let Some(handler) = call.core.extensions.virtual_resources.get(&key) {
        let options = WriteOptions::parse(&call.query, OptionsKind::Create)?;
        let (mut object, mut warnings) =
            wire::decode(call.content_type(), &body, &handler.kind(), options.validation)?;
        wire::apply_defaults(&handler.kind(), &mut object);
        warnings.extend(call.ask_dynamic(row, &handler.kind(), &mut object, &options).await?);
        // What the client has just made must be seen: an account's token, a role's effect.
        call.core.cache.wait_newest().await?;
        let value = handler.create(&call.context(options.dry_run), object).await?;
        let mut response = call.respond(StatusCode::CREATED, &value)?;
        add_warnings(&mut response, &warnings);
        return Ok(response);
    }
    match (info.subresource.as_str(), verb) {
        ("" | "status" | "approval" | "ephemeralcontainers" | "resize" | "finalize", "get")
            if row.plural != "componentstatuses" =>
        {
            call.get(row).await
        }
        ("", "get") => Err(StatusError::not_found(&resource, &info.name)),
        ("", "list") => call.list(row).await,
        ("", "create") if row.plural == "bindings" => bind(call, body).await,
        ("", "create") if !row.is_virtual => call.create(row, body).await,
        ("", "delete") => call.delete(row, body).await,
        ("", "deletecollection") => call.delete_collection(row, body).await,
        ("scale", _) => {
            let paths = row.subresource("scale").and_then(|s| s.scale.as_ref());
            scale(call, row, paths.ok_or_else(StatusError::no_such_path)?, body).await
        }
        ("binding", "create") => bind(call, body).await,
        ("eviction", "create") => super::eviction::evict(call, row, body).await,
        ("" | "status" | "approval" | "ephemeralcontainers" | "resize" | "finalize", "update") => {
            call.update(row, body).await
        }
        ("" | "status" | "approval" | "ephemeralcontainers" | "resize", "patch") => {
            call.patch(row, body).await
        }
        _ => Err(StatusError::method_not_supported(&resource, verb)),
    }
}

fn at<'v>(object: &'v Value, path: &str) -> &'v Value {
    path.split('.').fold(object, |value, key| &value[key])
}

/// `autoscaling/v1 Scale` of an object.
pub(crate) fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let meta = &object["metadata"];
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta.get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": at(object, &paths.spec_replicas).as_i64().unwrap_or(0)},
        "status": {
            "replicas": at(object, &paths.status_replicas).as_i64().unwrap_or(0),
            "selector": selector_text(at(object, &paths.selector)),
        },
    })
}

/// A label selector as query parameters carry it.
pub(crate) fn selector_text(selector: &Value) -> String {
    // Custom resources hold it as a text.
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let is_selector = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let labels = if is_selector { &selector["matchLabels"] } else { selector };
    let mut terms: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

async fn scale(call: &Call, row: &Arc<Resource>, paths: &ScalePaths, body: Bytes) -> Result<Response<Body>> {
    let gvk = GroupVersionKind::new("autoscaling", "v1", "Scale");
    let name = &call.info.name;
    if call.info.verb == "get" {
        call.wait_for_version().await?;
        let cache = call.core.cache.resource(&row.storage);
        let object = cache
            .as_ref()
            .and_then(|cache| cache.get(call.namespace(row), name))
            .ok_or_else(|| StatusError::not_found(&row.group_resource(), name))?;
        return call.respond(StatusCode::OK, &scale_of(&object.parse(), paths));
    }
    // The object is written as itself: what the main path may change, a scale may.
    let change = ScaleChange::read(call, &gvk, &body)?;
    let view = HookView::Scale(paths.clone());
    let write = Write { subresource: "", view, ..call.write(row, change.options())? };
    let validation = write.options.validation;
    let owners = ScaleManager::new(row, &call.info.version, paths, now());
    let make = |current: &Value| {
        let mut before = scale_of(current, paths);
        owners.read(current, &mut before)?;
        let (mut scale, mut warnings) = match &change {
            ScaleChange::Replace(wanted, warnings) => (wanted.clone(), warnings.clone()),
            ScaleChange::Patch(kind, patch) => (wire::patch(*kind, &gvk, &before, patch)?, Vec::new()),
            ScaleChange::Apply(config, duplicates) => {
                let scale = owners.apply(&before, config, &write.manager, write.options.force)?;
                (scale, wire::check_duplicates(duplicates.as_deref(), validation)?)
            }
        };
        match change {
            ScaleChange::Apply(..) => {
                wire::normalize(&gvk, &mut scale, FieldValidation::Ignore)?;
            }
            ScaleChange::Replace(..) | ScaleChange::Patch(..) => {
                warnings.extend(wire::normalize(&gvk, &mut scale, validation)?);
                owners.update(&before, &mut scale, &write.manager);
            }
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error = keelson_api::field::FieldError::invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            return Err(StatusError::invalid(&gvk, name, &[error]));
        }
        let mut object = current.clone();
        for field in ["resourceVersion", "uid"] {
            let given = &scale["metadata"][field];
            if given.as_str().is_some_and(|v| !v.is_empty()) {
                object["metadata"][field] = given.clone();
            }
        }
        set_at(&mut object, &paths.spec_replicas, replicas.into());
        owners.write(&scale, &mut object)?;
        Ok((object, warnings))
    };
    let written = write.update(name, Ownership::Given, &make).await?;
    let mut response = call.respond(StatusCode::OK, &scale_of(&written.object, paths))?;
    add_warnings(&mut response, &written.warnings);
    Ok(response)
}

/// What a request does to a scale.
enum ScaleChange {
    /// PUT, with warnings.
    Replace(Value, Vec<String>),
    /// PATCH of what is there.
    Patch(PatchType, Value),
    /// Server-side apply, with what is said of duplicate keys.
    Apply(Value, Option<String>),
}

impl ScaleChange {
    fn read(call: &Call, gvk: &GroupVersionKind, body: &[u8]) -> Result<Self> {
        if call.info.verb != "patch" {
            let validation = WriteOptions::parse(&call.query, OptionsKind::Update)?.validation;
            let (scale, warnings) = wire::decode(call.content_type(), body, gvk, validation)?;
            return Ok(Self::Replace(scale, warnings));
        }
        let kind = PatchKind::from_content_type(call.content_type())?;
        WriteOptions::parse(&call.query, kind.options())?;
        match kind {
            PatchKind::Change(kind) => Ok(Self::Patch(kind, wire::parse_patch(body)?)),
            PatchKind::Apply => {
                let (config, duplicates) = wire::parse_configuration(body)?;
                Ok(Self::Apply(config, duplicates))
            }
        }
    }

    fn options(&self) -> OptionsKind {
        match self {
            Self::Replace(..) => OptionsKind::Update,
            Self::Patch(..) => OptionsKind::Patch,
            Self::Apply(..) => OptionsKind::Apply,
        }
    }
}

/// Writes a field at a dotted path; what is no object on the way there gives way to one.
pub(crate) fn set_at(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for key in path.split('.') {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[key];
    }
    *place = value;
}

pub(super) fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

/// POST to `pods/binding` or `bindings`.
async fn bind(call: &Call, body: Bytes) -> Result<Response<Body>> {
    let pods = GroupResource::new("", "pods");
    let row = call.core.table().get(&pods).ok_or_else(StatusError::no_such_path)?.clone();
    let options = WriteOptions::parse(&call.query, OptionsKind::Create)?;
    let kind = GroupVersionKind::new("", "v1", "Binding");
    let (mut binding, _) = wire::decode(call.content_type(), &body, &kind, options.validation)?;
    let of = call.core.table().find(&call.info.group, &call.info.version, &call.info.resource).cloned();
    let of = of.ok_or_else(StatusError::no_such_path)?;
    let warnings = call.ask_dynamic(&of, &kind, &mut binding, &options).await?;
    let name = binding["metadata"]["name"].as_str().unwrap_or_default();
    let name = if call.info.name.is_empty() { name } else { call.info.name.as_str() };
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    if !matches!(target["kind"].as_str(), None | Some("" | "Node")) || node.is_empty() {
        return Err(StatusError::bad_request("a binding's target must be a Node with a name"));
    }
    // The part written is neither spec nor status alone, so it goes past the pod's own update rules.
    let view = HookView::Hidden;
    let write = Write { subresource: "binding", view, ..call.write(&row, OptionsKind::Create)? };
    let conflict = |why: String| StatusError::conflict(&GroupResource::new("", "pods/binding"), name, why);
    let make = |pod: &Value| {
        let mut pod = pod.clone();
        if let Some(uid) = binding["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty())
            && pod["metadata"]["uid"] != uid
        {
            return Err(conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                pod["metadata"]["uid"].as_str().unwrap_or_default()
            )));
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let bound = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if !bound.is_empty() {
            return Err(conflict(format!("pod {name} is already assigned to node {bound:?}")));
        }
        if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        pod["spec"]["nodeName"] = node.into();
        // It has come where it was to come, or elsewhere: either way the hint is of no use any more.
        if let Some(status) = pod["status"].as_object_mut() {
            status.remove("nominatedNodeName");
        }
        for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            pod["metadata"]["annotations"][key] = value.clone();
        }
        let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now()});
        let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|c| c["type"] != "PodScheduled");
        conditions.push(condition);
        pod["status"]["conditions"] = conditions.into();
        Ok((pod, Vec::new()))
    };
    write.update(name, Ownership::Given, &make).await?;
    let mut response = call.respond(StatusCode::CREATED, &success(201))?;
    add_warnings(&mut response, &warnings);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_written_whatever_was_there() {
        let mut object = json!({"spec": "odd", "kind": "K"});
        set_at(&mut object, "spec.size.replicas", 3.into());
        assert_eq!(object, json!({"spec": {"size": {"replicas": 3}}, "kind": "K"}));
    }

    #[test]
    fn selectors_as_text() {
        assert_eq!(selector_text(&json!({"a": "b"})), "a=b");
        assert_eq!(selector_text(&json!("a in (b,c)")), "a in (b,c)");
        let selector = json!({
            "matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}],
        });
        assert_eq!(selector_text(&selector), "a=b,c in (d,e),!f");
    }
}
