//! Defaults of a pod's spec, wherever one stands (`pkg/apis/core/v1/defaults.go`).

use serde_json::{Value, json};

use super::{child, items, object_at, set_default, set_default_number};

/// Defaults that hold in pods and templates alike.
pub(super) fn default_pod_spec(spec: &mut Value) {
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "securityContext", json!({}));
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "schedulerName", "default-scheduler");
    // The deprecated name and the new one always say the same.
    if let Some(account) = spec.get("serviceAccountName").cloned() {
        set_default(spec, "serviceAccount", account);
    } else if let Some(account) = spec.get("serviceAccount").cloned() {
        set_default(spec, "serviceAccountName", account);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        items(spec, list).for_each(default_container);
    }
    items(spec, "volumes").for_each(default_volume);
}

fn default_container(container: &mut Value) {
    let latest = tag_of(container["image"].as_str().unwrap_or_default()) == "latest";
    set_default(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    set_default(container, "resources", json!({}));
    for port in items(container, "ports") {
        set_default(port, "protocol", "TCP");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = child(container, probe) {
            default_probe(probe);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(http) = child(lifecycle, hook).and_then(|h| child(h, "httpGet")) {
                default_http_get(http);
            }
        }
    }
    for env in items(container, "env") {
        if let Some(field) = child(env, "valueFrom").and_then(|v| child(v, "fieldRef")) {
            set_default(field, "apiVersion", "v1");
        }
    }
}

fn default_probe(probe: &mut Value) {
    set_default_number(probe, "timeoutSeconds", 1);
    set_default_number(probe, "periodSeconds", 10);
    set_default_number(probe, "successThreshold", 1);
    set_default_number(probe, "failureThreshold", 3);
    if let Some(http) = child(probe, "httpGet") {
        default_http_get(http);
    }
    if let Some(grpc) = child(probe, "grpc") {
        set_default(grpc, "service", "");
    }
}

fn default_http_get(http: &mut Value) {
    set_default(http, "path", "/");
    set_default(http, "scheme", "HTTP");
}

fn default_volume(volume: &mut Value) {
    let sources =
        volume.as_object().map_or(0, |v| v.iter().filter(|(k, v)| *k != "name" && !v.is_null()).count());
    if sources == 0 {
        set_default(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = child(volume, source) {
            set_default(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = child(volume, "hostPath")
        && path.get("type").is_none_or(Value::is_null)
    {
        path["type"] = "".into();
    }
    if let Some(image) = child(volume, "image") {
        let latest = tag_of(image["reference"].as_str().unwrap_or_default()) == "latest";
        set_default(image, "pullPolicy", if latest { "Always" } else { "IfNotPresent" });
    }
    if let Some(source) = child(volume, "downwardAPI") {
        default_field_refs(source);
    }
    if let Some(projected) = child(volume, "projected") {
        for source in items(projected, "sources") {
            if let Some(token) = child(source, "serviceAccountToken") {
                set_default(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = child(source, "downwardAPI") {
                default_field_refs(downward);
            }
        }
    }
    if let Some(claim) = child(volume, "ephemeral")
        .and_then(|e| child(e, "volumeClaimTemplate"))
        .and_then(|t| object_at(t, "spec"))
    {
        set_default(claim, "volumeMode", "Filesystem");
    }
}

fn default_field_refs(source: &mut Value) {
    for item in items(source, "items") {
        if let Some(field) = child(item, "fieldRef") {
            set_default(field, "apiVersion", "v1");
        }
    }
}

/// Defaults of pods only: they must not show up in templates.
pub(super) fn default_pod_only(spec: &mut Value) {
    set_default(spec, "enableServiceLinks", true);
    let host_network = spec["hostNetwork"].as_bool().unwrap_or(false);
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            default_requests(container);
            if host_network {
                for port in items(container, "ports") {
                    let number = port["containerPort"].as_i64().unwrap_or(0);
                    set_default_number(port, "hostPort", number);
                }
            }
        }
    }
}

/// What is limited but not requested is requested up to its limit.
fn default_requests(container: &mut Value) {
    let Some(resources) = child(container, "resources") else { return };
    let Some(limits) = resources["limits"].as_object().cloned() else { return };
    if let Some(requests) = object_at(resources, "requests") {
        for (name, limit) in limits {
            set_default(requests, &name, limit);
        }
    }
}

/// Tag of an image reference: `latest` if it has neither tag nor digest; empty with a digest alone.
fn tag_of(image: &str) -> &str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag,
        None if digest.is_some() => "",
        None => "latest",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        let cases = [
            ("nginx", "latest"),
            ("nginx:1.27", "1.27"),
            ("localhost:5000/nginx", "latest"),
            ("localhost:5000/nginx:latest", "latest"),
            ("nginx@sha256:00", ""),
        ];
        for (image, tag) in cases {
            assert_eq!(tag_of(image), tag, "{image}");
        }
    }

    #[test]
    fn a_small_pod_gets_what_upstream_gives() {
        let mut spec = json!({
            "containers": [{
                "name": "c", "image": "nginx:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80}},
            }],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
        });
        default_pod_spec(&mut spec);
        default_pod_only(&mut spec);
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(spec["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["containers"][0]["livenessProbe"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(spec["containers"][0]["livenessProbe"]["periodSeconds"], 10);
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(spec["enableServiceLinks"], true);
        let once = spec.clone();
        default_pod_spec(&mut spec);
        assert_eq!(spec, once, "defaulting twice changes nothing");
    }
}
