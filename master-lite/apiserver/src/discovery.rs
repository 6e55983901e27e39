//! What the server serves, as clients ask for it: `/api`, `/apis`, aggregated (apidiscovery.k8s.io/v2) or not.

use http::HeaderMap;
use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::{Resource, ResourceTable};
use serde_json::{Value, json};

use crate::aggregator::{ServedGroup, ServedVersion};
use crate::negotiate;

/// Content type of aggregated answers.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// True if the client takes the aggregated form.
pub fn wants_aggregated(headers: &HeaderMap) -> bool {
    negotiate::accepted(headers)
        .iter()
        .filter(|e| e.takes("application/json"))
        .map(|entry| {
            entry.param("g") == Some("apidiscovery.k8s.io")
                && entry.param("v") == Some("v2")
                && entry.param("as") == Some("APIGroupDiscoveryList")
        })
        .find(|aggregated| *aggregated)
        .is_some()
}

fn group_version(group: &str, version: &str) -> String {
    GroupVersionKind::new(group, version, "").api_version()
}

fn rows<'t>(
    table: &'t ResourceTable,
    group: &'t str,
    version: &'t str,
) -> impl Iterator<Item = &'t Resource> {
    table
        .rows()
        .iter()
        .filter(move |row| row.group == group && row.versions.iter().any(|v| v == version))
        .map(move |row| row.view(version))
}

/// `/api`.
pub fn api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

fn api_group(group: &ServedGroup) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| json!({"groupVersion": group_version(&group.name, &v.name), "version": v.name}))
        .collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}

/// `/apis`.
pub fn api_group_list(groups: &[ServedGroup]) -> Value {
    let groups: Vec<Value> = groups.iter().filter(|group| !group.name.is_empty()).map(api_group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn api_group_at(groups: &[ServedGroup], name: &str) -> Option<Value> {
    let mut value = api_group(groups.iter().find(|group| group.name == name && !name.is_empty())?);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Some(value)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn api_resource_list(table: &ResourceTable, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in rows(table, group, version) {
        let mut entry = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
            "kind": row.kind, "verbs": row.verbs,
        });
        if !row.short_names.is_empty() {
            entry["shortNames"] = json!(row.short_names);
        }
        if !row.categories.is_empty() {
            entry["categories"] = json!(row.categories);
        }
        // What is not stored cannot be watched.
        if row.has_verb("watch") {
            entry["storageVersionHash"] =
                hash(&format!("{}/{}/{}", row.storage.group, row.storage_version, row.kind)).into();
        }
        resources.push(entry);
        for sub in &row.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", row.plural, sub.name), "singularName": "",
                "namespaced": row.namespaced, "kind": sub.kind.kind, "verbs": sub.verbs,
            });
            if sub.kind.group != group || sub.kind.version != version {
                entry["group"] = sub.kind.group.as_str().into();
                entry["version"] = sub.kind.version.as_str().into();
            }
            resources.push(entry);
        }
    }
    if resources.is_empty() {
        return None;
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": group_version(group, version), "resources": resources,
    }))
}

/// `/api` (`core`) or `/apis` in the aggregated form.
pub fn aggregated(table: &ResourceTable, groups: &[ServedGroup], core: bool) -> Value {
    let version = |group: &str, version: &ServedVersion| {
        if let Some(shown) = version.of_other_server() {
            return shown;
        }
        let name = &version.name;
        let resources: Vec<Value> =
            rows(table, group, name).map(|row| resource_discovery(row, name)).collect();
        json!({"version": name, "resources": resources, "freshness": "Current"})
    };
    let items: Vec<Value> = groups
        .iter()
        .filter(|group| group.name.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = group.versions.iter().map(|v| version(&group.name, v)).collect();
            let metadata = if core { json!({}) } else { json!({"name": group.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items,
    })
}

/// Group and version are left empty where they are those of the resource, as upstream does.
fn response_kind(gvk: &GroupVersionKind, group: &str, version: &str) -> Value {
    if gvk.group == group && gvk.version == version {
        return json!({"group": "", "version": "", "kind": gvk.kind});
    }
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn resource_discovery(row: &Resource, version: &str) -> Value {
    let kind = |gvk: &GroupVersionKind| response_kind(gvk, &row.group, version);
    let mut entry = json!({
        "resource": row.plural, "responseKind": kind(&row.gvk(version)),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular, "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        entry["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        entry["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        entry["subresources"] = row
            .subresources
            .iter()
            .map(|sub| json!({"subresource": sub.name, "responseKind": kind(&sub.kind), "verbs": sub.verbs}))
            .collect();
    }
    entry
}

/// A short stable hash, as upstream's storageVersionHash: 8 bytes of SHA-256 in base64.
fn hash(text: &str) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    base64::engine::general_purpose::STANDARD.encode(&sha2::Sha256::digest(text.as_bytes())[..8])
}

/// A strong ETag of a body.
pub fn etag(body: &[u8]) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha512::digest(body);
    let hex: String = digest.iter().map(|b| format!("{b:02X}")).collect();
    format!("\"{hex}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_know_deployments() {
        let table = ResourceTable::builtin();
        let list = api_resource_list(&table, "apps", "v1").unwrap();
        let names: Vec<_> =
            list["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
        assert!(names.contains(&"deployments") && names.contains(&"deployments/scale"));
        assert!(api_resource_list(&table, "apps", "v2").is_none());
    }
}
