//! Deriving a plugin's request from the network's configuration (specification section 3). Pure.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::Attachment;
use crate::netconf::{NetworkConfig, PluginConfig};
use crate::types::invocation::{Command, Owner};

/// The request for ADD, DEL and CHECK.
pub(super) fn derive(
    network: &NetworkConfig,
    plugin: &PluginConfig,
    attachment: &Attachment,
    previous: Option<&Value>,
) -> Value {
    let mut request = base(network, plugin);
    let granted: Map<String, Value> = capabilities(attachment)
        .into_iter()
        .filter(|(capability, _)| plugin.has_capability(capability))
        .map(|(capability, value)| (capability.to_owned(), value))
        .collect();
    if !granted.is_empty() {
        request.insert("runtimeConfig".into(), Value::Object(granted));
    }
    if let Some(previous) = previous {
        request.insert("prevResult".into(), previous.clone());
    }
    Value::Object(request)
}

/// The request for GC.
pub(super) fn derive_gc(network: &NetworkConfig, plugin: &PluginConfig, valid: &[Owner]) -> Value {
    let mut request = base(network, plugin);
    let valid: Vec<Value> = valid
        .iter()
        .map(|owner| json!({"containerID": owner.container_id, "ifname": owner.ifname}))
        .collect();
    request.insert("cni.dev/valid-attachments".into(), Value::Array(valid));
    Value::Object(request)
}

/// The request for STATUS.
pub(super) fn derive_plain(network: &NetworkConfig, plugin: &PluginConfig) -> Value {
    Value::Object(base(network, plugin))
}

/// The plugin's object with name and version, without the keys that belong to the runtime.
fn base(network: &NetworkConfig, plugin: &PluginConfig) -> Map<String, Value> {
    let mut request = plugin.object.clone();
    request.retain(|key, _| {
        !matches!(key.as_str(), "capabilities" | "runtimeConfig" | "prevResult" | "cniVersions")
            && !key.starts_with("cni.dev/")
    });
    request.insert("cniVersion".into(), json!(network.version.as_str()));
    request.insert("name".into(), json!(network.name));
    request
}

fn capabilities(attachment: &Attachment) -> Vec<(&'static str, Value)> {
    let mut list = Vec::new();
    if !attachment.port_mappings.is_empty() {
        list.push(("portMappings", json!(attachment.port_mappings)));
    }
    if let Some(bandwidth) = attachment.bandwidth {
        list.push(("bandwidth", json!(bandwidth)));
    }
    if let Some(dns) = &attachment.dns {
        // The convention's names differ from those of results.
        list.push((
            "dns",
            json!({"servers": dns.nameservers, "searches": dns.search, "options": dns.options}),
        ));
    }
    if let Some(path) = &attachment.cgroup_path {
        list.push(("cgroupPath", json!(path)));
    }
    list
}

/// The CNI_* variables.
pub(super) fn environment(
    command: Command,
    attachment: Option<&Attachment>,
    bin_dirs: &[PathBuf],
) -> Vec<(&'static str, String)> {
    let path = bin_dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
    let mut env = vec![("CNI_COMMAND", command.as_str().to_owned()), ("CNI_PATH", path)];
    if let Some(attachment) = attachment {
        let args: Vec<String> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        env.push(("CNI_CONTAINERID", attachment.container_id.clone()));
        env.push((
            "CNI_NETNS",
            attachment.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        ));
        env.push(("CNI_IFNAME", attachment.ifname.clone()));
        env.push(("CNI_ARGS", args.join(";")));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::config::{PortMapping, Protocol};

    #[test]
    fn capabilities_reach_only_those_who_declare_them() {
        let text = r#"{"cniVersion":"1.1.0","cniVersions":["1.0.0"],"name":"dbnet","plugins":[
            {"type":"bridge","keyA":["x"],"cni.dev/secret":1},
            {"type":"portmap","capabilities":{"portMappings":true,"bandwidth":false}}]}"#;
        let network = NetworkConfig::parse(text.as_bytes()).unwrap();
        let mapping =
            PortMapping { host_port: 8080, container_port: 80, protocol: Protocol::Tcp, host_ip: None };
        let attachment = Attachment {
            port_mappings: vec![mapping],
            bandwidth: Some(super::super::Bandwidth::default()),
            ..Attachment::default()
        };
        let check = |n: usize, previous: Option<&Value>, expected: Value| {
            assert_eq!(derive(&network, &network.plugins[n], &attachment, previous), expected);
        };
        check(0, None, json!({"cniVersion": "1.1.0", "name": "dbnet", "type": "bridge", "keyA": ["x"]}));
        let previous = json!({"ips": []});
        check(
            1,
            Some(&previous),
            json!({"cniVersion": "1.1.0", "name": "dbnet", "type": "portmap", "prevResult": {"ips": []},
                "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}),
        );
    }
}
