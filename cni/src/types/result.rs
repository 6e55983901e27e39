//! The result of ADD (specification section 5), read and written in every supported version.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::IpAddr;

use super::version::Version;
use crate::error::{Error, Result};

/// The result of ADD in the newest form; older forms are derived by [`AddResult::to_json`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddResult {
    /// Every interface of the attachment, those on the host included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses assigned by the attachment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes made by the attachment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Resolver settings.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// One interface in a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Interface name.
    pub name: String,
    /// Hardware address, colon-separated lower-case hex.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace, empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Socket of a user-space interface (since 1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// PCI device behind the interface (since 1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// One address in a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address with its prefix length.
    pub address: IpNet,
    /// Default gateway of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u32>,
}

/// One route in a result. Everything but `dst` and `gw` exists since 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; the address's gateway when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP segment size to advertise, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric, lower wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope: global 0, link 253, host 254.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

impl Route {
    /// A route with a destination and a next hop, everything else unset.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Route {
        Route { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

/// Resolver settings in a result or configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers by priority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains by priority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

impl AddResult {
    /// Reads a result that a plugin gave in any supported version. Unknown keys are let through: a newer
    /// plugin may say more than is known here.
    ///
    /// # Errors
    /// [`Error::Decode`] when it isn't a result, [`Error::IncompatibleVersion`] when it names a version
    /// that isn't spoken here, [`Error::InvalidConfig`] when an interface index points nowhere.
    pub fn from_json(value: &Value) -> Result<AddResult> {
        if let Some(version) = value.get("cniVersion").and_then(Value::as_str) {
            Version::parse(version)?;
        }
        let result: AddResult = serde::Deserialize::deserialize(value)
            .map_err(|source| Error::Decode { what: "CNI result".into(), source })?;
        for ip in &result.ips {
            if ip.interface.is_some_and(|index| index as usize >= result.interfaces.len()) {
                return Err(Error::InvalidConfig(format!(
                    "result gives address {} an interface that is not listed",
                    ip.address
                )));
            }
        }
        Ok(result)
    }

    /// Writes the result in the form of `version`: older ones carry a `version` per address and lack what
    /// came later.
    pub fn to_json(&self, version: Version) -> Value {
        let mut shown = self.clone();
        if version < Version::V1_1_0 {
            for interface in &mut shown.interfaces {
                interface.mtu = None;
                interface.socket_path = None;
                interface.pci_id = None;
            }
            for route in &mut shown.routes {
                *route = Route::new(route.dst, route.gw);
            }
        }
        let mut value = serde_json::to_value(&shown).unwrap_or_else(|_| Value::Object(Default::default()));
        if version < Version::V1_0_0
            && let Some(ips) = value.get_mut("ips").and_then(Value::as_array_mut)
        {
            for (ip, config) in ips.iter_mut().zip(&self.ips) {
                ip["version"] = Value::from(if config.address.addr().is_ipv4() { "4" } else { "6" });
            }
        }
        value["cniVersion"] = Value::from(version.as_str());
        if value.get("dns").is_none() {
            // Consumers written in Go always send and expect the key.
            value["dns"] = Value::Object(Default::default());
        }
        value
    }

    /// The addresses of the interface `ifname` inside a container, IPv4 and IPv6 in the order given.
    /// Addresses that name no interface count too, as libcni's callers treat them.
    pub fn container_ips(&self, ifname: &str) -> Vec<IpAddr> {
        self.ips
            .iter()
            .filter(|ip| match ip.interface.and_then(|index| self.interfaces.get(index as usize)) {
                Some(interface) => !interface.sandbox.is_empty() && interface.name == ifname,
                None => true,
            })
            .map(|ip| ip.address.addr())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> AddResult {
        let mut route = Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.0.1".parse().unwrap()));
        route.scope = Some(0);
        AddResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/blue".into(),
                ..Interface::default()
            }],
            ips: vec![IpConfig {
                address: "10.1.0.5/16".parse().unwrap(),
                gateway: Some("10.1.0.1".parse().unwrap()),
                interface: Some(0),
            }],
            routes: vec![route],
            dns: Dns::default(),
        }
    }

    fn check(version: Version, expected: Value) {
        assert_eq!(sample().to_json(version), expected);
    }

    #[test]
    fn golden_1_1_0() {
        check(
            Version::V1_1_0,
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450, "sandbox": "/run/netns/blue"}],
                "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "scope": 0}],
                "dns": {}
            }),
        );
    }

    #[test]
    fn golden_1_0_0() {
        check(
            Version::V1_0_0,
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/blue"}],
                "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
                "dns": {}
            }),
        );
    }

    #[test]
    fn golden_0_3_1_names_the_family() {
        let value = sample().to_json(Version::V0_3_1);
        assert_eq!(value["ips"][0]["version"], "4");
        assert_eq!(AddResult::from_json(&value).unwrap().ips, sample().ips);
    }

    #[test]
    fn hostile_results_are_errors() {
        assert_eq!(AddResult::from_json(&json!({"cniVersion": "0.2.0", "ip4": {}})).unwrap_err().code(), 1);
        assert_eq!(AddResult::from_json(&json!({"ips": [{"address": "nonsense"}]})).unwrap_err().code(), 6);
        let dangling = json!({"ips": [{"address": "10.0.0.1/8", "interface": 7}]});
        assert_eq!(AddResult::from_json(&dangling).unwrap_err().code(), 7);
    }
}
