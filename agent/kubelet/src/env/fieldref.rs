//! The downward API: `fieldRef` and `resourceFieldRef`.
//!
//! Source: upstream `pkg/fieldpath` and `pkg/api/v1/resource/helpers.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use keelson_quantity as quantity;

use crate::pods::podext::PodExt;
use crate::pods::qos;

/// Addresses that `status.*` paths give; the pod's status in the API may lag behind them.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// Pod addresses, the primary first.
    pub pod_ips: Vec<IpAddr>,
    /// Node addresses, the primary first.
    pub host_ips: Vec<IpAddr>,
}

/// Value of a field path. The error is upstream's text.
pub fn field_value(
    pod: &Pod,
    selector: &ObjectFieldSelector,
    addresses: &Addresses,
) -> Result<String, String> {
    let path = selector.field_path.as_str();
    if let Some((field, key)) = subscript(path) {
        let map = match field {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    Ok(match path {
        "metadata.name" => PodExt::name(pod).to_owned(),
        "metadata.namespace" => PodExt::namespace(pod).to_owned(),
        "metadata.uid" => PodExt::uid(pod).to_owned(),
        "metadata.labels" => format_map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => format_map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => PodExt::spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => PodExt::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&addresses.host_ips),
        "status.hostIPs" => join(&addresses.host_ips),
        "status.podIP" => first(&addresses.pod_ips),
        "status.podIPs" => join(&addresses.pod_ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// Splits `metadata.labels['key']` into field and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let inner = path.strip_suffix("']")?;
    inner.split_once("['")
}

/// A map as downward API files show it: one `key="value"` a line, sorted, without a newline at the end.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
    lines.join("\n")
}

/// Go's `%q` of a string.
fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Value of a `resourceFieldRef`. A limit that is not set reads as what the node can give.
pub fn resource_value(
    pod: &Pod,
    own: &Container,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty() && *n != own.name);
    let container = match named {
        Some(name) => {
            pod.find_container(name).map(|(_, c)| c).ok_or_else(|| format!("container {name} not found"))?
        }
        None => own.clone(),
    };
    let resources = container.resources.unwrap_or_default();
    let (map, name) = match selector.resource.split_once('.') {
        Some(("limits", name)) => (resources.limits, name),
        Some(("requests", name)) => (resources.requests, name),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let is_limit = selector.resource.starts_with("limits.");
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !known {
        return Err(format!("unsupported container resource : {}", selector.resource));
    }
    let own_value = map.as_ref().and_then(|m| m.get(name)).filter(|q| !quantity::of(q).is_zero());
    let found = own_value.or_else(|| allocatable.get(name).filter(|_| is_limit));
    let value = found.map_or(0, |q| qos::amount(name, q));
    let unit = selector.divisor.as_ref().map_or(0, |q| qos::amount(name, q));
    // No divisor, or "0", means 1.
    let unit = match (unit, name) {
        (0, "cpu") => 1000,
        (0, _) => 1,
        (unit, _) => unit,
    };
    Ok((value.div_euclid(unit) + i64::from(value.rem_euclid(unit) != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a": "say \"hi\"\n"},
                         "annotations": {"x/y": "z"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}}]}
        }))
        .unwrap()
    }

    fn check(path: &str, want: Result<&str, &str>) {
        let addresses = Addresses {
            pod_ips: vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ips: vec!["10.89.0.11".parse().unwrap()],
        };
        let selector = ObjectFieldSelector { api_version: None, field_path: path.into() };
        let got = field_value(&pod(), &selector, &addresses);
        assert_eq!(got.as_deref().map_err(String::as_str), want, "{path}");
    }

    #[test]
    fn fields() {
        check("metadata.name", Ok("p"));
        check("metadata.labels['b']", Ok("2"));
        check("metadata.labels['none']", Ok(""));
        check("metadata.annotations['x/y']", Ok("z"));
        check("metadata.labels", Ok("a=\"say \\\"hi\\\"\\n\"\nb=\"2\""));
        check("spec.nodeName", Ok("n1"));
        check("spec.serviceAccountName", Ok("sa"));
        check("status.podIP", Ok("10.1.0.2"));
        check("status.podIPs", Ok("10.1.0.2,fd00::2"));
        check("status.hostIP", Ok("10.89.0.11"));
        check("status.hostIPs", Ok("10.89.0.11"));
        check("spec.x", Err("unsupported fieldPath: spec.x"));
    }

    fn check_resource(resource: &str, divisor: Option<&str>, want: &str) {
        let pod = pod();
        let own = pod.find_container("c").unwrap().1;
        let allocatable =
            BTreeMap::from([("memory".into(), Quantity("1Gi".into())), ("cpu".into(), Quantity("4".into()))]);
        let selector = ResourceFieldSelector {
            container_name: None,
            divisor: divisor.map(|d| Quantity(d.into())),
            resource: resource.into(),
        };
        assert_eq!(resource_value(&pod, &own, &selector, &allocatable).unwrap(), want, "{resource}");
    }

    #[test]
    fn resources() {
        check_resource("limits.cpu", None, "2");
        check_resource("limits.cpu", Some("1m"), "1500");
        check_resource("requests.memory", Some("1Mi"), "100");
        check_resource("limits.memory", None, "1073741824");
        check_resource("requests.cpu", None, "0");
    }
}
