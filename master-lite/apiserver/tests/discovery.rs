//! Discovery against upstream's own documents.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeSet;

use keelson_api::resources::ResourceTable;
use keelson_apiserver::discovery;
use serde_json::Value;

/// Kinds that upstream still stores as v1beta1; a hash of the storage version only has to change with it.
const STORED_AS_BETA: &[&str] =
    &["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "CustomResourceDefinition"];

fn joined(list: &Value) -> String {
    let items: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}

fn or_dash(text: &Value) -> &str {
    text.as_str().filter(|text| !text.is_empty()).unwrap_or("-")
}

/// An entry of an APIResourceList in the notation of the committed list.
fn line(group_version: &str, entry: &Value) -> String {
    let kind = match (entry["group"].as_str(), entry["version"].as_str()) {
        (Some(group), Some(version)) => format!("{group}/{version}.{}", entry["kind"].as_str().unwrap()),
        _ => entry["kind"].as_str().unwrap().to_owned(),
    };
    [
        group_version,
        entry["name"].as_str().unwrap(),
        or_dash(&entry["singularName"]),
        if entry["namespaced"] == true { "Namespaced" } else { "Cluster" },
        &kind,
        &joined(&entry["verbs"]),
        &joined(&entry["shortNames"]),
        &joined(&entry["categories"]),
        if STORED_AS_BETA.contains(&kind.as_str()) { "-" } else { or_dash(&entry["storageVersionHash"]) },
    ]
    .join(" ")
}

#[test]
fn the_same_resources_as_upstream() {
    let table = ResourceTable::builtin();
    let mut ours = BTreeSet::new();
    for (group, versions) in table.groups() {
        for version in versions {
            let list = discovery::api_resource_list(&table, &group, &version).unwrap();
            let group_version = list["groupVersion"].as_str().unwrap();
            ours.extend(list["resources"].as_array().unwrap().iter().map(|entry| line(group_version, entry)));
        }
    }
    let theirs: BTreeSet<String> = include_str!("discovery-v1.36.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| match line.rsplit_once(' ') {
            Some((rest, _)) if STORED_AS_BETA.iter().any(|kind| line.contains(&format!(" {kind} "))) => {
                format!("{rest} -")
            }
            _ => line.to_owned(),
        })
        .collect();
    let only_ours: Vec<_> = ours.difference(&theirs).collect();
    let only_theirs: Vec<_> = theirs.difference(&ours).collect();
    assert!(
        only_ours.is_empty() && only_theirs.is_empty(),
        "ours: {only_ours:#?}\nupstream's: {only_theirs:#?}"
    );
}
