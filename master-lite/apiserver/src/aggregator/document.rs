//! What another server says it serves (`pkg/apiserver/handler_discovery.go`).

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};

use super::remote::{Remote, Spec};
use crate::core::Core;

/// Both versions of the aggregated form have the same fields.
const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                      application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
/// Time for all of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Document {
    /// Its resources in the aggregated form; `None` if the server does not say.
    pub(super) resources: Option<Vec<Value>>,
    /// Where its OpenAPI v3 document is, with a hash of it; `None` if it has none.
    pub(super) openapi: Option<String>,
}

/// Asks the server.
///
/// # Errors
/// When it does not say, in time.
pub(super) async fn fetch(core: &Core, remote: &Remote) -> Result<Document, String> {
    let asked = async {
        let resources = Some(resources(core, remote).await?);
        Ok(Document { resources, openapi: openapi(core, remote).await })
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_elapsed| Err("the server did not say in time what it serves".to_owned()))
}

async fn resources(core: &Core, remote: &Remote) -> Result<Vec<Value>, String> {
    let (status, headers, body) = remote.get(core, "/apis", ACCEPT).await?;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Err(format!("non-success response code: {status}"));
    }
    if status == StatusCode::OK && is_aggregated(&headers) {
        let list: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        return Ok(of_aggregated(&list, &remote.spec));
    }
    let path = remote.spec.path();
    let (status, _, body) = remote.get(core, &path, "application/json").await?;
    if status != StatusCode::OK {
        return Err(format!("failed to download legacy discovery for {path}: {status}"));
    }
    let list: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    of_resource_list(&list)
}

/// Where the document of the version is. A server without one is no failure.
async fn openapi(core: &Core, remote: &Remote) -> Option<String> {
    let (status, _, body) = remote.get(core, "/openapi/v3", "application/json").await.ok()?;
    if status != StatusCode::OK {
        return None;
    }
    let index: Value = serde_json::from_slice(&body).ok()?;
    let place = &index["paths"][remote.spec.path().trim_start_matches('/')];
    place["serverRelativeURL"].as_str().map(str::to_owned)
}

fn is_aggregated(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = kind.split(';').map(str::trim);
    parts.next() == Some("application/json") && {
        let parts: Vec<&str> = parts.collect();
        parts.contains(&"g=apidiscovery.k8s.io") && parts.contains(&"as=APIGroupDiscoveryList")
    }
}

/// The resources of the version in an APIGroupDiscoveryList. A server that does not know the version has none of it.
fn of_aggregated(list: &Value, spec: &Spec) -> Vec<Value> {
    let items = |value: &'_ Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let group = items(list, "items")
        .into_iter()
        .find(|group| group["metadata"]["name"].as_str().unwrap_or_default() == spec.group);
    let version = group.and_then(|group| {
        items(&group, "versions").into_iter().find(|v| v["version"] == spec.version.as_str())
    });
    let mut resources = version.map(|version| items(&version, "resources")).unwrap_or_default();
    for resource in resources.iter_mut().filter_map(Value::as_object_mut) {
        add_kind(resource);
        let subresources = resource.get_mut("subresources").and_then(Value::as_array_mut);
        subresources.into_iter().flatten().filter_map(Value::as_object_mut).for_each(add_kind);
    }
    resources
}

/// Older clients can't do without one.
fn add_kind(entry: &mut Map<String, Value>) {
    let kind = entry.entry("responseKind").or_insert(Value::Null);
    if kind.is_null() {
        *kind = json!({"group": "", "version": "", "kind": ""});
    }
}

/// An APIResourceList in the aggregated form (`ConvertGroupVersionIntoToDiscovery`).
fn of_resource_list(list: &Value) -> Result<Vec<Value>, String> {
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let kind = |entry: &Value| json!({"group": text(entry, "group"), "version": text(entry, "version"), "kind": text(entry, "kind")});
    let scope = |entry: &Value| if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
    let all = list["resources"].as_array().map_or(&[][..], Vec::as_slice);
    let mut out: Vec<Value> = Vec::new();
    for entry in all.iter().filter(|entry| !text(entry, "name").contains('/')) {
        let mut resource = json!({
            "resource": entry["name"], "responseKind": kind(entry), "scope": scope(entry),
            "singularResource": text(entry, "singularName"), "verbs": entry["verbs"],
        });
        for key in ["shortNames", "categories"] {
            if !entry[key].is_null() {
                resource[key] = entry[key].clone();
            }
        }
        out.push(resource);
    }
    for entry in all {
        let name = text(entry, "name");
        let Some((parent, subresource)) = name.split_once('/') else { continue };
        let at = match out.iter().position(|resource| resource["resource"] == parent) {
            Some(at) => at,
            None => {
                let kind = json!({"group": "", "version": "", "kind": ""});
                out.push(json!({"resource": parent, "responseKind": kind, "scope": scope(entry)}));
                out.len() - 1
            }
        };
        if out[at]["scope"] != scope(entry) {
            let (of_parent, own) = (text(&out[at], "scope"), scope(entry));
            return Err(format!(
                "Error: Parent {parent} (scope: {of_parent}) and subresource {subresource} (scope: {own}) scope do not match"
            ));
        }
        let made = json!({"subresource": subresource, "responseKind": kind(entry), "verbs": entry["verbs"]});
        match out[at]["subresources"].as_array_mut() {
            Some(list) => list.push(made),
            None => out[at]["subresources"] = json!([made]),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_lists_are_converted() {
        let list = json!({"resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"],
             "shortNames": ["th"], "group": "example.com", "version": "v1"},
            {"name": "things/status", "singularName": "", "namespaced": true, "kind": "Thing", "verbs": ["get", "patch"]},
            {"name": "lonely/scale", "namespaced": false, "kind": "Scale", "verbs": ["get"]},
        ]});
        assert_eq!(
            of_resource_list(&list).unwrap(),
            [
                json!({
                    "resource": "things", "singularResource": "thing", "scope": "Namespaced", "verbs": ["get"],
                    "shortNames": ["th"], "responseKind": {"group": "example.com", "version": "v1", "kind": "Thing"},
                    "subresources": [{"subresource": "status", "verbs": ["get", "patch"],
                                      "responseKind": {"group": "", "version": "", "kind": "Thing"}}],
                }),
                json!({
                    "resource": "lonely", "scope": "Cluster", "responseKind": {"group": "", "version": "", "kind": ""},
                    "subresources": [{"subresource": "scale", "verbs": ["get"],
                                      "responseKind": {"group": "", "version": "", "kind": "Scale"}}],
                }),
            ]
        );
        let mixed = json!({"resources": [
            {"name": "things", "namespaced": true}, {"name": "things/status", "namespaced": false},
        ]});
        assert!(of_resource_list(&mixed).unwrap_err().contains("scope do not match"));
        assert_eq!(of_resource_list(&json!({})).unwrap(), [Value::Null; 0]);
    }

    #[test]
    fn the_version_is_found_among_all() {
        let object = json!({"metadata": {"name": "v1.example.com"}, "spec": {"group": "example.com", "version": "v1", "service": {}}});
        let spec = Spec::read(&object).unwrap();
        let list = json!({"items": [
            {"metadata": {"name": "other"}, "versions": [{"version": "v1", "resources": [{"resource": "no"}]}]},
            {"metadata": {"name": "example.com"}, "versions": [
                {"version": "v2", "resources": [{"resource": "no"}]},
                {"version": "v1", "resources": [{"resource": "yes", "subresources": [{"subresource": "status"}]}]},
            ]},
        ]});
        let none = json!({"group": "", "version": "", "kind": ""});
        assert_eq!(
            of_aggregated(&list, &spec),
            [
                json!({"resource": "yes", "responseKind": none, "subresources": [{"subresource": "status", "responseKind": none}]})
            ]
        );
        assert_eq!(of_aggregated(&json!({}), &spec), [Value::Null; 0]);
        let aggregated = |kind: &str| {
            is_aggregated(&HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]))
        };
        assert!(aggregated("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"));
        assert!(aggregated("application/json; v=v2beta1; g=apidiscovery.k8s.io; as=APIGroupDiscoveryList"));
        assert!(!aggregated("application/json"));
    }
}
