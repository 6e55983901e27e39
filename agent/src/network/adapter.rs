//! [`PodNetwork`] over keelson-cni's driver.

use std::collections::BTreeMap;
use std::net::IpAddr;

use keelson_cni::{Attachment, Bandwidth, Driver, DriverConfig, DriverError, Owner, PortMapping, Protocol};
use keelson_cri::{CriError, PodNetwork, PodNetworkRequest, PodNetworkStatus, Result, chain};
use keelson_quantity::Quantity;

/// Interface that every pod gets.
const INTERFACE: &str = "eth0";
/// Annotation that limits traffic to the pod.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Annotation that limits traffic from the pod.
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bounds of both rates, bits per second, as kubelet has them.
const RATES: std::ops::RangeInclusive<Quantity> =
    Quantity::units(1_000)..=Quantity::units(1_000_000_000_000_000);

/// The pod network that /etc/cni/net.d describes.
pub struct CniNetwork {
    driver: Driver,
}

impl CniNetwork {
    /// Nothing is read or run yet.
    pub fn new(config: DriverConfig) -> Self {
        Self { driver: Driver::new(config) }
    }
}

#[async_trait::async_trait]
impl PodNetwork for CniNetwork {
    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetworkStatus> {
        let attached = self.driver.add(&attachment(request)?).await.map_err(internal)?;
        Ok(PodNetworkStatus { ips: first_of_each_family(attached.ips) })
    }

    async fn teardown(&self, request: &PodNetworkRequest) -> Result<()> {
        let mut attachment = attachment(request)?;
        // The specification: an unset CNI_NETNS at DEL says that the namespace is gone.
        attachment.netns = attachment.netns.filter(|netns| netns.exists());
        self.driver.del(&attachment).await.map_err(internal)
    }

    async fn check(&self, request: &PodNetworkRequest) -> Result<()> {
        self.driver.check(&attachment(request)?).await.map_err(internal)
    }

    async fn gc(&self, valid_sandbox_ids: &[String]) -> Result<()> {
        let valid = valid_sandbox_ids
            .iter()
            .map(|id| Owner::new(id, INTERFACE))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CriError::Invalid(error.to_string()))?;
        self.driver.gc(&valid).await.map_err(internal)
    }

    async fn status(&self) -> std::result::Result<(), String> {
        self.driver.status().await.map_err(|error| chain(&error))
    }
}

/// A pod has no more than one address of each family; what else a network gives its interface is known to nobody.
fn first_of_each_family(mut ips: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut v4, mut v6) = (0, 0);
    ips.retain(|ip| {
        let seen = if ip.is_ipv4() { &mut v4 } else { &mut v6 };
        *seen += 1;
        *seen == 1
    });
    ips
}

fn internal(error: DriverError) -> CriError {
    CriError::Internal(chain(&error))
}

fn attachment(request: &PodNetworkRequest) -> Result<Attachment> {
    let netns = Some(request.netns.clone());
    let mut attachment =
        Attachment::for_pod(&request.sandbox_id, netns, &request.namespace, &request.name, &request.uid);
    attachment.port_mappings = port_mappings(&request.port_mappings)?;
    attachment.bandwidth = bandwidth(&request.annotations)?;
    Ok(attachment)
}

fn port_mappings(mappings: &[keelson_cri::PortMapping]) -> Result<Vec<PortMapping>> {
    let published = mappings.iter().filter(|mapping| mapping.host_port != 0);
    published
        .map(|mapping| {
            let protocol = match mapping.protocol.as_str() {
                "TCP" | "" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                other => return Err(CriError::Invalid(format!("unknown protocol {other:?} of a host port"))),
            };
            let (host_port, container_port) = (mapping.host_port, mapping.container_port);
            Ok(PortMapping { host_port, container_port, protocol, host_ip: mapping.host_ip })
        })
        .collect()
}

fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Bandwidth>> {
    let rate = |annotation: &str| match annotations.get(annotation) {
        Some(text) => bits_per_second(text).map(Some).ok_or_else(|| {
            CriError::Invalid(format!(
                "annotation {annotation}: {text:?} must be a rate between 1k and 1P bits/s"
            ))
        }),
        None => Ok(None),
    };
    let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
    if ingress.is_none() && egress.is_none() {
        return Ok(None);
    }
    // The burst is as upstream's runtimes set it: the largest that the plugin takes.
    let burst = |rate: Option<u64>| if rate.is_some() { u64::from(u32::MAX) } else { 0 };
    Ok(Some(Bandwidth {
        ingress_rate: ingress.unwrap_or(0),
        ingress_burst: burst(ingress),
        egress_rate: egress.unwrap_or(0),
        egress_burst: burst(egress),
    }))
}

/// A rate within [`RATES`], rounded up to whole bits.
fn bits_per_second(text: &str) -> Option<u64> {
    let rate = text.parse::<Quantity>().ok().filter(|rate| RATES.contains(rate))?;
    u64::try_from(rate.value()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_bandwidth(annotations: &[(&str, &str)], expected: Option<(u64, u64)>) {
        let annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let got = bandwidth(&annotations).ok().flatten().map(|rates| (rates.ingress_rate, rates.egress_rate));
        assert_eq!(got, expected, "{annotations:?}");
    }

    #[test]
    fn rates() {
        check_bandwidth(&[], None);
        check_bandwidth(&[(INGRESS, "10M")], Some((10_000_000, 0)));
        check_bandwidth(&[(INGRESS, "1Ki"), (EGRESS, "1000")], Some((1024, 1000)));
        check_bandwidth(&[(INGRESS, "1")], None);
        check_bandwidth(&[(EGRESS, "fast")], None);
    }

    #[test]
    fn one_address_of_each_family() {
        let ips = |text: &str| text.split_whitespace().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        let check = |given: &str, kept: &str| assert_eq!(first_of_each_family(ips(given)), ips(kept));
        check("", "");
        check("10.0.0.1", "10.0.0.1");
        check("fd00::1 10.0.0.1", "fd00::1 10.0.0.1");
        check("10.0.0.1 10.0.0.2 fd00::1 10.0.0.3 fd00::2", "10.0.0.1 fd00::1");
    }

    #[test]
    fn ports_without_a_host_port_are_not_published() {
        let mapping = |protocol: &str, host_port| keelson_cri::PortMapping {
            protocol: protocol.to_owned(),
            container_port: 80,
            host_port,
            host_ip: None,
        };
        assert!(port_mappings(&[mapping("TCP", 0)]).unwrap().is_empty());
        assert_eq!(port_mappings(&[mapping("UDP", 53)]).unwrap()[0].protocol, Protocol::Udp);
        assert!(port_mappings(&[mapping("QUIC", 443)]).is_err());
    }
}
