//! What the zone keeps of an object: a small part of it.

use std::net::IpAddr;

use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::{Deserialize, Serialize};

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A port with the names that SRV records use, lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// Port name; empty when it has none.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Port number.
    pub number: u16,
}

/// What a service resolves to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Its cluster IPs.
    ClusterIps(Vec<IpAddr>),
    /// Its endpoints.
    Headless,
    /// Another name.
    ExternalName(#[serde(with = "labels")] Name),
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// What it resolves to.
    pub kind: ServiceKind,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Endpoints count though they aren't ready.
    pub publish_not_ready: bool,
}

/// An endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointEntry {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its hostname, lower case.
    pub hostname: Option<String>,
    /// Its condition `ready`; unknown counts as ready (EndpointConditions).
    pub ready: bool,
}

impl EndpointEntry {
    /// The endpoint's label: its hostname, or the address with dashes, as CoreDNS has it.
    pub fn label(&self, ip: IpAddr) -> String {
        self.hostname.clone().unwrap_or_else(|| dashed(ip))
    }
}

/// An endpoint slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceEntry {
    /// Name of the service that it belongs to.
    pub service: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointEntry>,
    /// Its ports, with the numbers that endpoints listen on.
    pub ports: Vec<Port>,
}

impl ObjectKey {
    /// The key of an object with this metadata.
    pub fn of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
        ObjectKey {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl ServiceEntry {
    /// What the zone keeps of a service; `None` when it has no name to give (no cluster IP assigned yet, an
    /// external name that is none).
    pub fn from_object(service: &Service) -> Option<ServiceEntry> {
        let spec = service.spec.as_ref()?;
        let kind = if spec.type_.as_deref() == Some("ExternalName") {
            let mut target = Name::from_ascii(spec.external_name.as_deref()?.trim_end_matches('.')).ok()?;
            target.set_fqdn(true);
            ServiceKind::ExternalName(target)
        } else {
            let mut listed: Vec<&String> = spec.cluster_ips.iter().flatten().collect();
            if listed.is_empty() {
                listed.extend(&spec.cluster_ip);
            }
            if listed.iter().any(|ip| *ip == "None") {
                ServiceKind::Headless
            } else {
                let ips: Vec<IpAddr> = listed.into_iter().filter_map(|ip| ip.parse().ok()).collect();
                if ips.is_empty() {
                    return None;
                }
                ServiceKind::ClusterIps(ips)
            }
        };
        let ports =
            spec.ports.iter().flatten().filter_map(|port| {
                Port::new(port.name.as_deref(), port.protocol.as_deref(), Some(port.port))
            });
        Some(ServiceEntry {
            kind,
            ports: ports.collect(),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        })
    }
}

impl SliceEntry {
    /// What the zone keeps of a slice; `None` when it belongs to no service or has no addresses.
    pub fn from_object(slice: &EndpointSlice) -> Option<SliceEntry> {
        let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
        if slice.address_type == "FQDN" {
            return None;
        }
        let endpoints = slice.endpoints.iter().flatten().map(|endpoint| EndpointEntry {
            ips: endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect(),
            hostname: endpoint.hostname.as_ref().filter(|h| !h.is_empty()).map(|h| h.to_ascii_lowercase()),
            ready: endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true),
        });
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| Port::new(port.name.as_deref(), port.protocol.as_deref(), port.port));
        Some(SliceEntry { service: service.clone(), endpoints: endpoints.collect(), ports: ports.collect() })
    }
}

impl Port {
    fn new(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Port> {
        Some(Port {
            name: name.unwrap_or_default().to_ascii_lowercase(),
            protocol: protocol.unwrap_or("TCP").to_ascii_lowercase(),
            number: u16::try_from(number?).ok()?,
        })
    }
}

/// A name as its labels: nothing needs escaping, and no name that was read once is refused when it is read again.
mod labels {
    use hickory_proto::rr::Name;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(name: &Name, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(name.iter())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
        let labels = Vec::<Vec<u8>>::deserialize(deserializer)?;
        let mut name = Name::from_labels(labels.iter().map(Vec::as_slice)).map_err(D::Error::custom)?;
        name.set_fqdn(true);
        Ok(name)
    }
}

/// `10.0.0.5` as `10-0-0-5`, `fd00::5` as `fd00--5`.
pub(super) fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// The address of a dashed label: four parts without an empty one are IPv4, anything else IPv6 (the rule of
/// CoreDNS).
pub(super) fn undashed(label: &str) -> Option<IpAddr> {
    if !label.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return None;
    }
    if label.matches('-').count() == 3 && !label.contains("--") {
        label.replace('-', ".").parse().ok().map(IpAddr::V4)
    } else {
        label.replace('-', ":").parse().ok().map(IpAddr::V6)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_external_name_travels_unchanged(text in "[ -~]{1,80}") {
            if let Ok(mut name) = Name::from_ascii(&text) {
                name.set_fqdn(true);
                let kind = ServiceKind::ExternalName(name);
                let sent = serde_json::to_vec(&kind).unwrap();
                prop_assert_eq!(serde_json::from_slice::<ServiceKind>(&sent).unwrap(), kind);
            }
        }
    }
}
