//! The objects that are written.

use serde_json::{Value, json};

/// A pod as people write them, which no scheduler takes.
pub fn pod(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "schedulerName": "nobody",
            "containers": [{
                "name": "main",
                "image": "registry.example/team/application:1.2.3",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "LEVEL", "value": "info"}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}},
            }],
        },
    })
}

/// The patch that makes such a pod look as if it ran.
pub fn running(number: usize) -> Value {
    let began = "2026-01-01T00:00:00Z";
    let address = format!("10.{}.{}.{}", 128 + number / 65_536 % 64, number / 256 % 256, number % 256);
    let conditions: Vec<Value> = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ]
    .iter()
    .map(|kind| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": began}))
    .collect();
    json!({"status": {
        "phase": "Running", "hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}], "podIP": address,
        "podIPs": [{"ip": address}], "startTime": began, "conditions": conditions,
        "containerStatuses": [{
            "name": "main", "ready": true, "started": true, "restartCount": 0,
            "image": "registry.example/team/application:1.2.3",
            "imageID": format!("registry.example/team/application@sha256:{}", "0".repeat(64)),
            "containerID": format!("containerd://{number:064x}"), "state": {"running": {"startedAt": began}},
        }],
    }})
}

/// A ConfigMap of about a kilobyte that carries a number.
pub fn config_map(name: &str, number: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data(number)})
}

/// The same as Kubernetes' protobuf (`runtime.Unknown` around the message, behind the magic number).
pub fn config_map_protobuf(name: &str, number: usize) -> Vec<u8> {
    let mut metadata = Vec::new();
    put(&mut metadata, 1, name.as_bytes());
    let mut object = Vec::new();
    put(&mut object, 1, &metadata);
    for (key, value) in data(number).as_object().into_iter().flatten() {
        let mut entry = Vec::new();
        put(&mut entry, 1, key.as_bytes());
        put(&mut entry, 2, value.as_str().unwrap_or_default().as_bytes());
        put(&mut object, 2, &entry);
    }
    let mut kind = Vec::new();
    put(&mut kind, 1, b"v1");
    put(&mut kind, 2, b"ConfigMap");
    let mut unknown = b"k8s\0".to_vec();
    put(&mut unknown, 1, &kind);
    put(&mut unknown, 2, &object);
    unknown
}

/// What announces the number in a ConfigMap's JSON, and in nothing else of it.
const NUMBER: &[u8] = b"\"number\":\"";

fn data(number: usize) -> Value {
    json!({"number": number.to_string(), "settings": "level = info\nlisten = 0.0.0.0:8080\n".repeat(24)})
}

/// The number in the JSON of a [`config_map`], or of an event about one.
pub fn number_in(text: &[u8]) -> Option<usize> {
    text_after(text, NUMBER)?.parse().ok()
}

/// The version in the JSON of an event about an object: it stands in the metadata alone, of those that are watched here.
pub fn version_in(text: &[u8]) -> Option<String> {
    text_after(text, b"\"resourceVersion\":\"").map(str::to_owned)
}

fn text_after<'a>(text: &'a [u8], marker: &[u8]) -> Option<&'a str> {
    let at = text.windows(marker.len()).position(|window| window == marker)?;
    let rest = text.get(at + marker.len()..)?.split(|&byte| byte == b'"').next()?;
    std::str::from_utf8(rest).ok()
}

/// Appends a field of the wire type "length-delimited".
fn put(to: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    to.push(field << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        to.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    to.push(u8::try_from(length).unwrap_or_default());
    to.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_an_event() {
        let event = json!({"type": "MODIFIED", "object": config_map("a", 17)});
        assert_eq!(number_in(event.to_string().as_bytes()), Some(17));
        assert_eq!(number_in(br#"{"f:data":{"f:number":{}}}"#), None);
        let event = json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "123"}}});
        assert_eq!(version_in(event.to_string().as_bytes()).as_deref(), Some("123"));
    }

    #[test]
    fn lengths_take_seven_bits_a_byte() {
        let mut out = Vec::new();
        put(&mut out, 2, &[7; 300]);
        assert_eq!(out[..4], [0x12, 0xac, 0x02, 7]);
        assert_eq!(out.len(), 303);
    }

    #[test]
    fn protobuf_begins_with_its_envelope() {
        let bytes = config_map_protobuf("a", 1);
        assert_eq!(bytes[..19], *b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigM");
    }

    #[test]
    fn addresses_of_many_pods_are_addresses() {
        for number in [0, 99_999, 1_000_000] {
            let address = running(number)["status"]["podIP"].as_str().unwrap().to_owned();
            assert!(address.parse::<std::net::Ipv4Addr>().is_ok(), "{address}");
        }
    }
}
