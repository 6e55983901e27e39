//! Every sample object of Kubernetes v1.36 prints: one cell a column, and nothing panics.

use std::path::PathBuf;

use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::columns;
use serde_json::Value;

#[test]
fn every_sample_prints() {
    let root = std::env::var_os("KEELSON_TESTDATA").expect(
        "set KEELSON_TESTDATA to a folder that holds k8s-api-testdata/v1.36.0, the testdata/v1.36.0 of k8s.io/api",
    );
    let folder = PathBuf::from(root).join("k8s-api-testdata/v1.36.0");
    let mut printed = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let object: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let gvk = GroupVersionKind::from_type_meta(
            object["apiVersion"].as_str().unwrap_or_default(),
            object["kind"].as_str().unwrap_or_default(),
        );
        let printer = columns::printer(&gvk.group, &gvk.kind);
        let row = printer.row(&object, 1_800_000_000);
        assert_eq!(row["cells"].as_array().unwrap().len(), printer.definitions().len(), "{gvk}");
        printed += 1;
    }
    assert!(printed > 180, "only {printed} samples in {}", folder.display());
}
