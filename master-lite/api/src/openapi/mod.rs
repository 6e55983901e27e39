//! OpenAPI documents, v3 and v2, made from the schema tree and the table of resources when somebody asks.
//!
//! A document is not kept: clients keep it themselves, under the hash in its URL.

mod components;
mod custom;
mod descriptions;
mod paths;
mod v2;
mod v2_protobuf;

pub use descriptions::Descriptions;

use crate::{resources::ResourceTable, schema::Schema};
use serde_json::{Map, Value, json};
use std::sync::{Arc, LazyLock};

use custom::Dialect;

/// `info.version` of documents.
const VERSION: &str = "v1.36.0+keelson";

/// The one OpenAPI v2 document, of all groups and versions.
pub fn v2_document(table: &ResourceTable) -> Value {
    let mut components = components::Components::new(Schema::builtin(), Descriptions::load(), Dialect::V2);
    let mut all = Map::new();
    for (group, versions) in table.groups() {
        for version in versions {
            if let Value::Object(paths) = paths::of(table, &group, &version, &mut components) {
                all.extend(paths);
            }
        }
    }
    v2::document(&Value::Object(all), &components.finish())
}

/// An OpenAPI v2 document in protobuf (`openapi.v2.Document` of gnostic).
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    v2_protobuf::document(document)
}

/// Changes with the OpenAPI v2 document; fit for an ETag.
pub fn v2_hash(table: &ResourceTable) -> String {
    let groups = table.groups();
    let versions = groups.iter().flat_map(|(group, versions)| versions.iter().map(move |v| (group, v)));
    let hashes: Vec<String> = versions.map(|(group, version)| document_hash(table, group, version)).collect();
    format!("{:016X}", fnv(FNV_BASIS, hashes.iter().map(String::as_str)))
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a of texts, after what gave `start`.
fn fnv<'t>(start: u64, texts: impl Iterator<Item = &'t str>) -> u64 {
    let bytes = texts.flat_map(|text| text.bytes().chain([0]));
    bytes.fold(start, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The answer to `GET /openapi/v3`: where the document of each group and version is.
///
/// The `hash` parameter in a URL changes with the document, so that a client may keep it for ever.
pub fn v3_index(table: &ResourceTable) -> Value {
    let mut paths = Map::new();
    for (group, versions) in table.groups() {
        for version in versions {
            let path = document_path(&group, &version);
            let hash = document_hash(table, &group, &version);
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// The document of a group and version as JSON. `path` is what follows `/openapi/v3/`: `api/v1`, `apis/apps/v1`.
/// `None` when the table serves no such version.
pub fn v3_document(table: &ResourceTable, path: &str) -> Option<Arc<[u8]>> {
    let (group, version) = group_version(path)?;
    if !table.groups().iter().any(|(g, versions)| *g == group && versions.contains(&version)) {
        return None;
    }
    let schema = Schema::builtin();
    let mut components = components::Components::new(schema, Descriptions::load(), Dialect::V3);
    let paths = paths::of(table, &group, &version, &mut components);
    let document = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": VERSION },
        "paths": paths,
        "components": {
            "schemas": components.finish(),
            "securitySchemes": { "BearerToken": {
                "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization",
                "in": "header",
            } },
        },
    });
    // Serializing a tree of strings and numbers can't fail.
    Some(serde_json::to_vec(&document).unwrap_or_default().into())
}

/// The `hash` that [`v3_index`] shows for a document; also fit for an ETag.
pub fn document_hash(table: &ResourceTable, group: &str, version: &str) -> String {
    // All that a document is made of. A version of this crate has one schema and one set of texts.
    static BUILD: LazyLock<u64> =
        LazyLock::new(|| fnv(FNV_BASIS, [env!("CARGO_PKG_VERSION"), Schema::builtin_facts()].into_iter()));
    let mut texts = vec![group, version];
    let mut epochs = String::new();
    for row in
        table.rows().iter().filter(|row| row.group == group && row.versions.iter().any(|v| v == version))
    {
        let row = row.view(version);
        if let Some(custom) = &row.custom {
            epochs.push_str(&format!("{:x},", custom.epoch));
        }
        texts.extend([row.plural.as_str(), &row.kind]);
        texts.extend(row.verbs.iter().map(String::as_str));
        for sub in &row.subresources {
            texts.push(&sub.name);
            texts.extend(sub.verbs.iter().map(String::as_str));
        }
    }
    format!("{:016X}", fnv(*BUILD, texts.into_iter().chain([epochs.as_str()])))
}

/// What follows `/openapi/v3/` in the path of a document.
pub fn document_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn group_version(path: &str) -> Option<(String, String)> {
    let mut parts = path.trim_matches('/').split('/');
    let (group, version) = match (parts.next()?, parts.next()?, parts.next()) {
        ("api", version, None) => (String::new(), version),
        ("apis", group, Some(version)) => (group.to_owned(), version),
        _ => return None,
    };
    parts.next().is_none().then(|| (group, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(path: &str) -> Value {
        let started = std::time::Instant::now();
        let bytes = v3_document(&ResourceTable::builtin(), path).unwrap();
        println!("{path}: {} bytes in {:?}", bytes.len(), started.elapsed());
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn every_reference_is_defined() {
        let table = ResourceTable::builtin();
        let index = v3_index(&table);
        for path in index["paths"].as_object().unwrap().keys() {
            let document = document(path);
            let schemas = document["components"]["schemas"].as_object().unwrap();
            check_references(&document, schemas);
            assert!(!document["paths"].as_object().unwrap().is_empty(), "{path}");
        }
        assert!(v3_document(&table, "apis/nope/v1").is_none());
        assert!(v3_document(&table, "nope").is_none());
    }

    fn check_references(value: &Value, schemas: &Map<String, Value>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(target)) = fields.get("$ref") {
                    let name = target.strip_prefix("#/components/schemas/").unwrap();
                    assert!(schemas.contains_key(name), "{name}");
                }
                fields.values().for_each(|value| check_references(value, schemas));
            }
            Value::Array(items) => items.iter().for_each(|value| check_references(value, schemas)),
            _ => {}
        }
    }

    #[test]
    fn custom_resources_are_published() {
        let mut table = ResourceTable::builtin();
        let definition = |schema: Value| {
            let names = json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"});
            json!({
                "metadata": {"name": "foos.example.com", "uid": "u"},
                "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [
                    {"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                     "schema": {"openAPIV3Schema": schema}},
                ]},
                "status": {"acceptedNames": names},
            })
        };
        let row = |schema: Value| crate::custom::resource(&definition(schema)).unwrap();
        let spec = json!({"type": "object", "description": "Specification of Foo"});
        table.insert(row(
            json!({"type": "object", "description": "Foo for tests", "properties": {"spec": spec}}),
        ));
        let bytes = v3_document(&table, "apis/example.com/v1").unwrap();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        check_references(&document, document["components"]["schemas"].as_object().unwrap());
        let foo = &document["components"]["schemas"]["com.example.v1.Foo"];
        assert_eq!((&foo["description"], &foo["properties"]["spec"]), (&json!("Foo for tests"), &spec));
        assert_eq!(foo["x-kubernetes-group-version-kind"][0]["kind"], "Foo");
        let path = "/apis/example.com/v1/namespaces/{namespace}/foos/{name}/status";
        assert_eq!(document["paths"][path]["put"]["x-kubernetes-action"], "put");
        let old = v2_document(&table);
        assert_eq!(old["definitions"]["com.example.v1.Foo"]["properties"]["spec"], spec);
        assert!(old["definitions"]["com.example.v1.FooList"].is_object());
        assert!(!v2_protobuf(&old).is_empty());

        let before = (v2_hash(&table), document_hash(&table, "example.com", "v1"));
        let mut changed = ResourceTable::builtin();
        changed.insert(row(json!({"type": "object"})));
        assert_ne!(before, (v2_hash(&changed), document_hash(&changed, "example.com", "v1")));
        assert_ne!(before.0, v2_hash(&ResourceTable::builtin()));
    }

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let document = document("api/v1");
        let item = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"];
        assert_eq!(item["get"]["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let parameters = item["patch"]["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
        let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(
            pod["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "Pod"}])
        );
        let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
        assert_eq!(spec["description"], "PodSpec is a description of a pod.");
        assert_eq!(spec["properties"]["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(spec["required"], json!(["containers"]));
        let port =
            &document["components"]["schemas"]["io.k8s.api.core.v1.ServicePort"]["properties"]["protocol"];
        assert_eq!((&port["default"], &port["enum"]), (&json!("TCP"), &json!(["SCTP", "TCP", "UDP"])));
    }
}
