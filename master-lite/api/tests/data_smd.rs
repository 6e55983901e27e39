//! structured-merge-diff's own schemas, objects and field sets.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod smd_schema;

use std::borrow::Cow;
use std::path::PathBuf;

use keelson_api::codec::{self, MediaType};
use keelson_api::meta::GroupVersionKind;
use keelson_api::smd::{PathElement, Set, TypeId, Typed, Types, ValidationErrors, equals, print_path};
use serde_json::Value;
use smd_schema::SmdSchema;

fn read(name: &str) -> Vec<u8> {
    let root = std::env::var_os("KEELSON_TESTDATA").expect(
        "set KEELSON_TESTDATA to a folder that holds smd-testdata, the internal/testdata of structured-merge-diff",
    );
    let path = PathBuf::from(root).join("smd-testdata").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn object(name: &str) -> Value {
    codec::parse(MediaType::Yaml, &read(name)).unwrap().0
}

fn typed<'t>(types: &'t Types, id: TypeId, value: Value) -> Result<Typed<'t>, ValidationErrors> {
    Typed::new(types, id, Cow::Owned(value), false)
}

#[test]
fn a_schema_describes_itself() {
    let schema = SmdSchema::parse(&read("schema.yaml"));
    let load = |name: &str| typed(&schema.types, schema.first(), object(name));
    load("schema.yaml").unwrap();
    assert!(load("bad-schema.yaml").is_err());
    let merge =
        |left: &str, right: &str| load(left).unwrap().merge(&load(right).unwrap()).unwrap().into_value();
    merge("struct.yaml", "list.yaml");
    assert_eq!(merge("bad-scalar.yaml", "scalar.yaml"), object("scalar.yaml"));
    assert_eq!(merge("scalar.yaml", "bad-scalar.yaml"), object("bad-scalar.yaml"));
    let changes = load("scalar.yaml").unwrap().compare(&load("bad-scalar.yaml").unwrap()).unwrap();
    assert!(changes.added.is_empty() && changes.removed.is_empty());
    let printed = format!("- Modified Fields:\n{}\n\n", changes.modified);
    assert_eq!(printed.trim_end(), String::from_utf8(read("scalar-compare-output.txt")).unwrap().trim_end());
}

#[test]
fn field_sets_are_written_as_they_were_read() {
    for name in ["endpointsset.json", "nodeset.json", "podset.json", "prometheus-crdset.json"] {
        let text = String::from_utf8(read(name)).unwrap();
        let set = Set::from_fields_v1(&serde_json::from_str(&text).unwrap()).unwrap();
        assert!(set.len() > 10, "{name}");
        assert_eq!(set.to_fields_v1_text(), text.trim_end(), "{name}");
    }
}

/// Theirs is of an older API: what is atomic today (owner references, selectors) had its parts owned one by one.
fn same_but_for_atoms(theirs: &Set, ours: &Set, name: &str) {
    let prefix_in = |set: &Set, path: &[PathElement]| (1..=path.len()).any(|n| set.has(&path[..n]));
    let (all, today) = (theirs.paths(), ours.paths());
    assert!(today.len() > all.len() / 2, "{name}");
    for path in &all {
        assert!(prefix_in(ours, path), "{name}: nobody would own {}", print_path(path));
    }
    for path in &today {
        let parts = all.iter().any(|part| part.starts_with(path));
        assert!(parts, "{name}: {} is nowhere", print_path(path));
    }
}

#[test]
fn upstreams_schema_and_ours_agree() {
    let theirs = SmdSchema::parse(&read("k8s-schema.yaml"));
    for (name, kind, group, version) in [
        ("pod.yaml", "Pod", "core", "v1"),
        ("node.yaml", "Node", "core", "v1"),
        ("k8s-deployment.yaml", "Deployment", "apps", "v1"),
    ] {
        let value = object(name);
        let id = theirs.named(&format!("io.k8s.api.{group}.{version}.{kind}"));
        let one = typed(&theirs.types, id, value.clone()).unwrap();
        let group = if group == "core" { "" } else { group };
        let ours = Types::builtin_kind(&GroupVersionKind::new(group, version, kind)).unwrap();
        let two = typed(Types::builtin(), ours, value.clone()).unwrap();
        let set = one.field_set();
        same_but_for_atoms(&set, &two.field_set(), name);
        assert!(one.compare(&one).unwrap().is_same());
        assert!(equals(two.merge(&two).unwrap().value(), &value), "{name}");
        let read = Set::from_fields_v1(&set.to_fields_v1()).unwrap();
        assert_eq!(read, set, "{name}");
        // All of it taken out leaves nothing, and nothing taken out leaves all.
        let named = set.with_named_fields(&theirs.types, id);
        assert_eq!(one.without(&named).value(), &Value::Null, "{name}");
        assert!(equals(one.without(&Set::default()).value(), &value), "{name}");
    }
}
