//! Every sample object of Kubernetes v1.36: its JSON, YAML and protobuf forms are one tree, and encoding the tree
//! gives back the protobuf byte for byte.

use keelson_api::{
    codec::{self, FieldValidation, MediaType},
    meta::GroupVersionKind,
};
use serde_json::Value;
use std::{collections::BTreeSet, path::PathBuf};

fn samples() -> PathBuf {
    let root = std::env::var_os("KEELSON_TESTDATA").expect(
        "set KEELSON_TESTDATA to a folder that holds k8s-api-testdata/v1.36.0, the testdata/v1.36.0 of k8s.io/api",
    );
    PathBuf::from(root).join("k8s-api-testdata/v1.36.0")
}

#[test]
fn json_yaml_and_protobuf_agree() {
    let folder = samples();
    let mut stems = BTreeSet::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        // The *.after_roundtrip.* samples are what types newer than v1.36 make of them.
        if path.extension().is_some_and(|e| e == "json")
            && !path.to_string_lossy().contains("after_roundtrip")
        {
            stems.insert(path.with_extension(""));
        }
    }
    assert!(stems.len() > 180, "only {} samples in {}", stems.len(), folder.display());
    let mut failures = Vec::new();
    let mut checked = 0;
    for stem in &stems {
        match check(stem) {
            Ok(()) => checked += 1,
            Err(why) => failures.push(format!("{}: {why}", stem.file_name().unwrap().to_string_lossy())),
        }
    }
    assert!(failures.is_empty(), "{checked} fine, {} not:\n{}", failures.len(), failures.join("\n"));
}

fn check(stem: &std::path::Path) -> Result<(), String> {
    let read = |extension: &str| {
        let mut name = stem.as_os_str().to_owned();
        name.push(extension);
        std::fs::read(PathBuf::from(name)).map_err(|error| format!("{extension}: {error}"))
    };
    let json = read(".json")?;
    let plain: Value = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    // A watch event says nothing about its own kind.
    let gvk = GroupVersionKind::from_type_meta(
        plain["apiVersion"].as_str().unwrap_or("v1"),
        plain["kind"].as_str().unwrap_or("WatchEvent"),
    );
    let decode = |media, body: &[u8]| {
        codec::decode(media, body, &gvk, FieldValidation::Strict)
            .map(|decoded| decoded.object)
            .map_err(|error| format!("{media:?}: {error}"))
    };
    let from_json = decode(MediaType::Json, &json)?;
    if from_json != plain {
        return Err(format!("normalizing changed it: {}", difference(&plain, &from_json, String::new())));
    }
    let from_yaml = decode(MediaType::Yaml, &read(".yaml")?)?;
    if from_yaml != from_json {
        return Err(format!("yaml: {}", difference(&from_json, &from_yaml, String::new())));
    }
    let bytes = read(".pb")?;
    let from_protobuf = decode(MediaType::Protobuf, &bytes)?;
    if from_protobuf != from_json {
        return Err(format!("protobuf: {}", difference(&from_json, &from_protobuf, String::new())));
    }
    let again = codec::encode_protobuf(&gvk, &from_json).map_err(|error| error.to_string())?;
    if again != bytes {
        let at = again.iter().zip(&bytes).position(|(a, b)| a != b);
        return Err(format!("encoded bytes differ at {at:?} ({} and {} bytes)", again.len(), bytes.len()));
    }
    Ok(())
}

/// The first place where two trees differ.
fn difference(want: &Value, got: &Value, path: String) -> String {
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => {
            for key in want.keys().chain(got.keys()) {
                let (a, b) = (want.get(key).unwrap_or(&Value::Null), got.get(key).unwrap_or(&Value::Null));
                if a != b || want.contains_key(key) != got.contains_key(key) {
                    return difference(a, b, format!("{path}.{key}"));
                }
            }
            path
        }
        (Value::Array(want), Value::Array(got)) if want.len() == got.len() => {
            let at = want.iter().zip(got).position(|(a, b)| a != b).unwrap_or(0);
            difference(&want[at], &got[at], format!("{path}[{at}]"))
        }
        _ => format!("{path}: want {want}, got {got}"),
    }
}
