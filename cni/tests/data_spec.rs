//! The examples of the CNI specification, read from the folder that KEELSON_TESTDATA names.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keelson_cni::AddResult;
use keelson_cni::netconf::NetworkConfig;
use keelson_cni::types::report::ErrorReport;
use keelson_cni::types::version::Version;
use serde_json::Value;

fn examples() -> Vec<Value> {
    let root = std::env::var("KEELSON_TESTDATA").expect("KEELSON_TESTDATA names the folder of test data");
    let text = std::fs::read_to_string(format!("{root}/cni/SPEC.md")).expect("cni/SPEC.md in the test data");
    let blocks = text.split("```").skip(1).step_by(2);
    let json = blocks.filter_map(|block| {
        let body = block.strip_prefix("jsonc").or_else(|| block.strip_prefix("json"))?;
        let plain: String = body.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        serde_json::from_str(&plain).ok()
    });
    json.collect()
}

#[test]
fn network_configuration() {
    let lists: Vec<Value> = examples().into_iter().filter(|e| e.get("plugins").is_some()).collect();
    assert!(!lists.is_empty());
    for list in lists {
        let network = NetworkConfig::parse(list.to_string().as_bytes()).unwrap();
        assert_eq!((network.name.as_str(), network.version), ("dbnet", Version::V1_1_0));
        let kinds: Vec<&str> = network.plugins.iter().map(|p| p.kind.as_str()).collect();
        assert_eq!(kinds, ["bridge", "tuning", "portmap"]);
        assert!(network.plugins[2].has_capability("portMappings"));
    }
}

#[test]
fn results_survive_a_round_trip() {
    let previous = examples().into_iter().filter_map(|mut e| e.get_mut("prevResult").map(Value::take));
    let plain = examples().into_iter().filter(|e| e.get("ips").is_some());
    let results: Vec<Value> = previous.chain(plain).collect();
    assert!(results.len() > 8, "{}", results.len());
    for mut value in results {
        let result = AddResult::from_json(&value).unwrap();
        value["cniVersion"] = Value::from("1.1.0");
        assert_eq!(result.to_json(Version::V1_1_0), value);
    }
}

#[test]
fn errors() {
    let errors: Vec<Value> = examples().into_iter().filter(|e| e.get("code").is_some()).collect();
    assert!(!errors.is_empty());
    for value in errors {
        let report: ErrorReport = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(report).unwrap(), value);
    }
}
