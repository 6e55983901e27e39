//! keelson-cni's own configuration, read strictly: an unknown key is refused, never ignored.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::invocation::{Owner, is_identifier};
use super::result::{AddResult, Dns};
use super::version::Version;
use crate::error::{Error, Result};

/// The longest configuration that is read from stdin, in bytes.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;

/// Where address records live unless the configuration says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/keelson/cni";

/// The most that a tunnel may take of each packet, in bytes.
const MOST_OVERHEAD: u32 = 200;

/// How pods are wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// veth pairs on one bridge that carries the gateway address.
    Bridge,
    /// A veth with a /32 and /128 each, a host route per pod, no broadcast domain.
    Routed,
}

/// A host port that is forwarded into the pod (capability `portMappings`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMapping {
    /// Port on the host, 1 to 65535.
    pub host_port: u16,
    /// Port in the pod, 1 to 65535.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Host address to bind to; every local address when absent.
    #[serde(
        default,
        rename = "hostIP",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "opt_ip"
    )]
    pub host_ip: Option<IpAddr>,
}

/// Transport protocols of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[serde(alias = "TCP")]
    Tcp,
    /// UDP.
    #[serde(alias = "UDP")]
    Udp,
    /// SCTP.
    #[serde(alias = "SCTP")]
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

fn opt_ip<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    match text.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
    }
}

/// A checked configuration of keelson-cni.
#[derive(Debug, Clone)]
pub struct Config {
    /// Version to answer in.
    pub version: Version,
    /// Network name; a folder of that name holds its address records.
    pub name: String,
    /// Wiring.
    pub mode: Mode,
    /// Name of the bridge (mode `bridge`).
    pub bridge: String,
    /// MTU in bytes, 0 to derive it from the host's default route.
    pub mtu: u32,
    /// How many bytes of a packet a tunnel between nodes takes: a derived MTU is less by them.
    pub overhead: u32,
    /// Ranges to allocate from, one address each: at most one per family.
    pub ranges: Vec<IpNet>,
    /// Folder of the address records.
    pub data_dir: PathBuf,
    /// Whether traffic that leaves the cluster is masqueraded.
    pub ip_masq: bool,
    /// The cluster's pod ranges, never masqueraded; the own ranges when none is given.
    pub cluster_cidrs: Vec<IpNet>,
    /// Resolver settings, handed on.
    pub dns: Dns,
    /// Result of the previous plugin (ADD) or of the whole ADD (CHECK, DEL).
    pub prev_result: Option<AddResult>,
    /// Host ports to forward.
    pub port_mappings: Vec<PortMapping>,
    /// Attachments that GC must keep; `None` outside GC.
    pub valid_attachments: Option<BTreeSet<Owner>>,
}

impl Config {
    /// Reads a request configuration.
    ///
    /// # Errors
    /// Codes 1, 2, 6 and 7 of the specification.
    pub fn parse(bytes: &[u8]) -> Result<Config> {
        let root = parse_object(bytes)?;
        let version = Version::parse(root.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0"))?;
        let mut config = Config {
            version,
            name: String::new(),
            mode: Mode::Bridge,
            bridge: "cni0".into(),
            mtu: 0,
            overhead: 0,
            ranges: Vec::new(),
            data_dir: DEFAULT_DATA_DIR.into(),
            ip_masq: false,
            cluster_cidrs: Vec::new(),
            dns: Dns::default(),
            prev_result: None,
            port_mappings: Vec::new(),
            valid_attachments: None,
        };
        for (key, value) in &root {
            match key.as_str() {
                // The runtime's own keys; `args` may be ignored by convention, `capabilities` is what the
                // runtime has answered with `runtimeConfig`.
                "cniVersion" | "cniVersions" | "type" | "args" | "capabilities" => {}
                "name" => config.name = decode(key, value)?,
                "mode" => config.mode = decode(key, value)?,
                "bridge" => config.bridge = decode(key, value)?,
                "mtu" => config.mtu = decode(key, value)?,
                "overhead" => config.overhead = decode(key, value)?,
                "ipam" => config.read_ipam(value)?,
                "ipMasq" => config.ip_masq = decode(key, value)?,
                "clusterCIDR" => config.cluster_cidrs = read_cidrs(key, value)?,
                "dns" => config.dns = decode(key, value)?,
                "prevResult" if value.is_null() => {}
                "prevResult" => config.prev_result = Some(AddResult::from_json(value)?),
                "runtimeConfig" => config.read_runtime_config(value)?,
                "cni.dev/valid-attachments" => config.read_attachments(value)?,
                other if other.starts_with("cni.dev/") => {}
                _ => return Err(unsupported(key, value)),
            }
        }
        config.validate()?;
        Ok(config)
    }

    fn read_ipam(&mut self, value: &Value) -> Result<()> {
        let Some(ipam) = value.as_object() else {
            return Err(Error::InvalidConfig("ipam must be an object".into()));
        };
        for (key, value) in ipam {
            match key.as_str() {
                "ranges" => self.ranges = read_cidrs("ipam.ranges", value)?,
                "dataDir" => self.data_dir = decode("ipam.dataDir", value)?,
                _ => return Err(unsupported(&format!("ipam.{key}"), value)),
            }
        }
        Ok(())
    }

    fn read_runtime_config(&mut self, value: &Value) -> Result<()> {
        let Some(entries) = value.as_object() else {
            return Err(Error::InvalidConfig("runtimeConfig must be an object".into()));
        };
        for (key, value) in entries {
            match key.as_str() {
                "portMappings" => self.port_mappings = decode("runtimeConfig.portMappings", value)?,
                _ => return Err(unsupported(&format!("runtimeConfig.{key}"), value)),
            }
        }
        Ok(())
    }

    fn read_attachments(&mut self, value: &Value) -> Result<()> {
        #[derive(Deserialize)]
        struct Attachment {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        let list: Option<Vec<Attachment>> = decode("cni.dev/valid-attachments", value)?;
        let owners = list.unwrap_or_default().into_iter();
        let owners = owners.map(|a| Owner { container_id: a.container_id, ifname: a.ifname });
        self.valid_attachments = Some(owners.collect());
        Ok(())
    }

    fn validate(&mut self) -> Result<()> {
        let refuse = |text: String| Err(Error::InvalidConfig(text));
        if !is_identifier(&self.name) || self.name.len() > 200 {
            return refuse(format!("invalid network name {:?}", self.name));
        }
        // The same kernel rules as for the container's interface.
        if Owner::new("x", &self.bridge).is_err() || self.bridge.is_empty() {
            return refuse(format!("invalid bridge name {:?}", self.bridge));
        }
        if self.mtu != 0 && !(68..=65535).contains(&self.mtu) {
            return refuse(format!("mtu {} is outside 68 to 65535", self.mtu));
        }
        if self.overhead > MOST_OVERHEAD {
            return refuse(format!("overhead {} is above {MOST_OVERHEAD}", self.overhead));
        }
        if self.ranges.is_empty() {
            return refuse("ipam.ranges lists no range".into());
        }
        let v4 = self.ranges.iter().filter(|range| range.addr().is_ipv4()).count();
        if v4 > 1 || self.ranges.len() - v4 > 1 {
            return refuse("ipam.ranges lists more than one range of a family".into());
        }
        for range in &self.ranges {
            let bits = range.max_prefix_len() - range.prefix_len();
            if bits < 2 {
                return refuse(format!("range {range} is too small to allocate from"));
            }
            if self.mtu != 0 && self.mtu < 1280 && range.addr().is_ipv6() {
                return refuse(format!("mtu {} is below the 1280 bytes that IPv6 needs", self.mtu));
            }
        }
        if self.cluster_cidrs.is_empty() {
            self.cluster_cidrs.clone_from(&self.ranges);
        }
        if !self.data_dir.is_absolute() {
            return refuse("ipam.dataDir is not an absolute path".into());
        }
        if let Some(mapping) = self.port_mappings.iter().find(|m| m.host_port == 0 || m.container_port == 0) {
            return refuse(format!("port mapping {mapping:?} has port 0"));
        }
        Ok(())
    }
}

/// Parses bytes as one JSON object of bounded size.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>> {
    if bytes.len() > MAX_CONFIG_BYTES {
        return Err(Error::InvalidConfig(format!("configuration is longer than {MAX_CONFIG_BYTES} bytes")));
    }
    serde_json::from_slice(bytes)
        .map_err(|source| Error::Decode { what: "network configuration".into(), source })
}

fn decode<T: serde::de::DeserializeOwned>(key: &str, value: &Value) -> Result<T> {
    T::deserialize(value).map_err(|error| Error::InvalidConfig(format!("{key}: {error}")))
}

/// A list of ranges: a JSON list, or one string with commas as Kubernetes' flags have it.
fn read_cidrs(key: &str, value: &Value) -> Result<Vec<IpNet>> {
    let texts: Vec<String> = match value {
        Value::String(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        _ => decode(key, value)?,
    };
    let parse = |text: &String| match text.parse::<IpNet>() {
        Ok(net) => Ok(net.trunc()),
        Err(error) => Err(Error::InvalidConfig(format!("{key}: {text:?}: {error}"))),
    };
    texts.iter().filter(|text| !text.is_empty()).map(parse).collect()
}

fn unsupported(key: &str, value: &Value) -> Error {
    let mut value = value.to_string();
    if value.len() > 200 {
        let end = (0..=200).rev().find(|i| value.is_char_boundary(*i)).unwrap_or(0);
        value.truncate(end);
        value.push('…');
    }
    Error::UnsupportedField { key: key.to_owned(), value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn base() -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "keelson", "type": "keelson-cni",
            "ipam": {"ranges": ["10.244.1.0/24", "fd00:1::/64"]}
        })
    }

    fn check(change: impl FnOnce(&mut Value), expected: Result<(), u32>) {
        let mut value = base();
        change(&mut value);
        let found = Config::parse(value.to_string().as_bytes());
        assert_eq!(found.as_ref().map(|_| ()).map_err(Error::code), expected, "{value}: {found:?}");
    }

    #[test]
    fn strictness() {
        check(|_| (), Ok(()));
        check(|v| v["cniVersion"] = json!("0.2.0"), Err(1));
        check(|v| v["cniVersion"] = json!(null), Err(1));
        check(|v| v["isGateway"] = json!(true), Err(2));
        check(|v| v["ipam"]["type"] = json!("host-local"), Err(2));
        check(|v| v["runtimeConfig"] = json!({"bandwidth": {"ingressRate": 1}}), Err(2));
        check(|v| v["runtimeConfig"] = json!({"portMappings": []}), Ok(()));
        check(
            |v| {
                v["runtimeConfig"] = json!({"portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]});
            },
            Ok(()),
        );
        check(
            |v| {
                v["runtimeConfig"] =
                    json!({"portMappings": [{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]});
            },
            Err(7),
        );
        check(|v| v["mode"] = json!("macvlan"), Err(7));
        check(|v| v["mtu"] = json!(20), Err(7));
        check(|v| v["overhead"] = json!(201), Err(7));
        check(|v| v["mtu"] = json!(1000), Err(7));
        check(|v| v["name"] = json!("../up"), Err(7));
        check(|v| v["ipam"]["ranges"] = json!([]), Err(7));
        check(|v| v["ipam"]["ranges"] = json!(["10.0.0.0/31"]), Err(7));
        check(|v| v["ipam"]["ranges"] = json!(["10.0.0.0/24", "10.0.1.0/24"]), Err(7));
        check(|v| v["clusterCIDR"] = json!("10.244.0.0/16,fd00::/48"), Ok(()));
        check(|v| v["args"] = json!({"cni": {"labels": []}}), Ok(()));
        check(|v| v["cni.dev/future"] = json!(1), Ok(()));
        check(|v| v["prevResult"] = json!({"cniVersion": "1.1.0", "ips": "x"}), Err(6));
    }

    #[test]
    fn unsupported_field_names_key_and_value() {
        let mut value = base();
        value["vlan"] = json!(42);
        let text = Config::parse(value.to_string().as_bytes()).unwrap_err().to_string();
        assert!(text.contains("vlan") && text.contains("42"), "{text}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Config::parse(&bytes);
        }

        #[test]
        fn arbitrary_values_never_panic(key in "[a-zA-Z./]{0,12}", text in ".{0,40}", number in any::<i64>()) {
            for value in [json!(text), json!(number), json!([text]), json!({ key.as_str(): number })] {
                for path in ["ipam", "mtu", "overhead", "mode", "prevResult", "runtimeConfig", "dns", "name", key.as_str(),
                             "cni.dev/valid-attachments", "clusterCIDR"] {
                    let mut root = base();
                    root[path] = value.clone();
                    let _ = Config::parse(root.to_string().as_bytes());
                }
            }
        }
    }
}
