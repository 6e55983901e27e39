//! Environment variables that describe Services. Source: upstream `pkg/kubelet/envvars/envvars.go`.

use k8s_openapi::api::core::v1::Service;

/// The Services whose variables a pod gets: those of its namespace when service links are enabled, and the
/// `kubernetes` Service of the default namespace always (a Service of that name in the pod's own namespace wins).
pub fn visible<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    enable_service_links: bool,
) -> Vec<&'a Service> {
    let mut chosen: std::collections::BTreeMap<&str, &Service> = std::collections::BTreeMap::new();
    for service in services {
        let (Some(name), Some(ns)) =
            (service.metadata.name.as_deref(), service.metadata.namespace.as_deref())
        else {
            continue;
        };
        if cluster_ip(service).is_none() {
            continue;
        }
        let is_master = ns == "default" && name == "kubernetes";
        if ns == namespace && (enable_service_links || is_master) {
            chosen.insert(name, service);
        } else if is_master {
            chosen.entry(name).or_insert(service);
        }
    }
    chosen.into_values().collect()
}

/// Variables of these Services: `X_SERVICE_HOST`, `X_SERVICE_PORT[_NAME]` and the Docker-link style ones.
pub fn variables<'a>(services: impl IntoIterator<Item = &'a Service>) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for service in services {
        let Some(ip) = cluster_ip(service) else { continue };
        let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let name = env_name(service.metadata.name.as_deref().unwrap_or_default());
        out.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        out.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                out.push((format!("{name}_SERVICE_PORT_{}", env_name(port_name)), port.port.to_string()));
            }
        }
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let lower = protocol.to_lowercase();
            let url = format!("{lower}://{host}:{}", port.port);
            if index == 0 {
                out.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
            out.push((prefix.clone(), url));
            out.push((format!("{prefix}_PROTO"), lower));
            out.push((format!("{prefix}_PORT"), port.port.to_string()));
            out.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    out
}

fn cluster_ip(service: &Service) -> Option<&str> {
    let ip = service.spec.as_ref()?.cluster_ip.as_deref()?;
    (!ip.is_empty() && ip != "None").then_some(ip)
}

fn env_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ns: &str, name: &str, ip: &str, ports: serde_json::Value) -> Service {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": ns, "name": name}, "spec": {"clusterIP": ip, "ports": ports}
        }))
        .unwrap()
    }

    #[test]
    fn names_and_values() {
        let s = service(
            "a",
            "abc-123",
            "1.2.3.4",
            serde_json::json!([{"port": 8083, "protocol": "TCP"}, {"port": 8084, "protocol": "UDP", "name": "u-dp-port"}]),
        );
        let got: Vec<String> = variables([&s]).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        let want = [
            "ABC_123_SERVICE_HOST=1.2.3.4",
            "ABC_123_SERVICE_PORT=8083",
            "ABC_123_SERVICE_PORT_U_DP_PORT=8084",
            "ABC_123_PORT=tcp://1.2.3.4:8083",
            "ABC_123_PORT_8083_TCP=tcp://1.2.3.4:8083",
            "ABC_123_PORT_8083_TCP_PROTO=tcp",
            "ABC_123_PORT_8083_TCP_PORT=8083",
            "ABC_123_PORT_8083_TCP_ADDR=1.2.3.4",
            "ABC_123_PORT_8084_UDP=udp://1.2.3.4:8084",
            "ABC_123_PORT_8084_UDP_PROTO=udp",
            "ABC_123_PORT_8084_UDP_PORT=8084",
            "ABC_123_PORT_8084_UDP_ADDR=1.2.3.4",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn who_sees_what() {
        let port = serde_json::json!([{"port": 80}]);
        let all = [
            service("default", "kubernetes", "10.96.0.1", port.clone()),
            service("a", "web", "10.96.0.5", port.clone()),
            service("a", "headless", "None", port.clone()),
            service("b", "other", "10.96.0.6", port),
        ];
        let names = |ns: &str, links: bool| -> Vec<String> {
            visible(&all, ns, links).into_iter().filter_map(|s| s.metadata.name.clone()).collect()
        };
        assert_eq!(names("a", true), ["kubernetes", "web"]);
        assert_eq!(names("a", false), ["kubernetes"]);
        assert_eq!(names("default", false), ["kubernetes"]);
    }
}
