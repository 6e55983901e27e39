//! Where a request goes: pure functions over pods, nodes and services.

use std::net::IpAddr;

use serde_json::Value;

use super::service::port_name;
use crate::authz::rbac::text;
use crate::authz::relations::containers;
use crate::extension::{Result, StatusError};

/// Port of a kubelet that doesn't say.
const KUBELET_PORT: u16 = 10250;

/// The container a request is for: the one named, or the only one.
pub(super) fn container(pod: &Value, wanted: &str) -> Result<String> {
    let name = text(pod, "/metadata/name");
    if !wanted.is_empty() {
        if containers(pod).any(|c| c["name"] == wanted) {
            return Ok(wanted.to_owned());
        }
        return Err(StatusError::bad_request(format!("container {wanted} is not valid for pod {name}")));
    }
    match pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default() {
        [one] => Ok(text(one, "/name").to_owned()),
        [] => Err(StatusError::bad_request(format!("a container name must be specified for pod {name}"))),
        _ => {
            let names: Vec<&str> = containers(pod).map(|c| text(c, "/name")).collect();
            let names = names.join(" ");
            Err(StatusError::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{names}]"
            )))
        }
    }
}

/// Host and port of a node's kubelet, addresses in kubeadm's order of preference.
pub(super) fn kubelet(node: &Value) -> Result<(String, u16)> {
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |kind: &str| {
        addresses.iter().find(|a| a["type"] == kind).map(|a| text(a, "/address")).filter(|a| !a.is_empty())
    };
    let host = ["InternalIP", "ExternalIP", "Hostname"].into_iter().find_map(of).ok_or_else(|| {
        StatusError::internal(format!(
            "no preferred addresses found for node {:?}",
            text(node, "/metadata/name")
        ))
    })?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .and_then(|p| u16::try_from(p).ok());
    Ok((host.to_owned(), port.filter(|p| *p > 0).unwrap_or(KUBELET_PORT)))
}

/// `name`, `name:port` or `scheme:name:port`, as the proxy subresources take it.
pub(super) fn split_name(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return None,
    };
    (!name.is_empty() && matches!(scheme, "" | "http" | "https")).then_some((scheme, name, port))
}

/// Whether the proxy may go to an address: never to the master itself or what is only local to it.
pub(super) fn is_global_unicast(address: &IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => {
            // A mapped address is the IPv4 address it maps.
            if let Some(v4) = v6.to_ipv4_mapped() {
                return is_global_unicast(&IpAddr::V4(v4));
            }
            v6.is_unicast_link_local()
        }
    };
    !(local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// Address and port of a pod; without a port given, the first that a container declares, else the scheme's.
pub(super) fn pod_address(pod: &Value, scheme: &str, port: &str) -> Result<(IpAddr, u16)> {
    let ip = text(pod, "/status/podIPs/0/ip");
    let ip: Option<IpAddr> = ip.parse().ok();
    let ip = ip.filter(is_global_unicast).ok_or_else(|| StatusError::bad_request("address not allowed"))?;
    if port.is_empty() {
        let ports = pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|c| c["ports"][0]["containerPort"].as_u64());
        let default = if scheme == "https" { 443 } else { 80 };
        return Ok((ip, ports.and_then(|p| u16::try_from(p).ok()).unwrap_or(default)));
    }
    let number =
        port.parse().map_err(|_not_a_port| StatusError::bad_request(format!("invalid port {port:?}")))?;
    Ok((ip, number))
}

/// The name of a service's port, given its name or number.
pub(super) fn service_port(service: &Value, port: &str) -> Result<String> {
    let Ok(number) = port.parse::<u64>() else { return Ok(port.to_owned()) };
    port_name(service, number).map(str::to_owned).ok_or_else(|| {
        let name = text(service, "/metadata/name");
        StatusError::service_unavailable(format!("no service port {number} found for service {name:?}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_chosen() {
        let pod = |names: &[&str]| {
            let list: Vec<Value> = names.iter().map(|n| json!({"name": n})).collect();
            json!({"metadata": {"name": "p"}, "spec": {"initContainers": [{"name": "init"}], "containers": list}})
        };
        let check = |names: &[&str], wanted: &str, want: Result<&str, &str>| {
            let got = container(&pod(names), wanted).map_err(|e| e.message);
            assert_eq!(got.as_deref().map_err(String::as_str), want);
        };
        check(&["a"], "", Ok("a"));
        check(&["a", "b"], "b", Ok("b"));
        check(&["a"], "init", Ok("init"));
        check(
            &["a", "b"],
            "",
            Err("a container name must be specified for pod p, choose one of: [init a b]"),
        );
        check(&["a"], "x", Err("container x is not valid for pod p"));
        check(&[], "", Err("a container name must be specified for pod p"));
    }

    #[test]
    fn kubelets_are_found() {
        let node = |addresses: Value, port: Value| {
            json!({"metadata": {"name": "n"}, "status": {"addresses": addresses,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}})
        };
        let both =
            json!([{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}]);
        assert_eq!(kubelet(&node(both.clone(), json!(10250))), Ok(("10.0.0.1".to_owned(), 10250)));
        assert_eq!(kubelet(&node(both, json!(0))), Ok(("10.0.0.1".to_owned(), 10250)));
        assert!(
            kubelet(&node(json!([]), json!(1)))
                .unwrap_err()
                .message
                .contains("no preferred addresses found for node \"n\"")
        );
    }

    #[test]
    fn names_split() {
        for (id, want) in [
            ("a", Some(("", "a", ""))),
            ("a:80", Some(("", "a", "80"))),
            ("https:a:web", Some(("https", "a", "web"))),
            ("ftp:a:80", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(split_name(id), want);
        }
    }

    #[test]
    fn the_server_is_not_led_to_itself() {
        for (ip, want) in [
            ("10.0.0.1", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("fe80::1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(is_global_unicast(&ip.parse().unwrap()), want, "{ip}");
        }
    }
}
