//! Cluster addresses and node ports of Services: handed out before the commit, given back on deletion.
//!
//! What is taken is what the stored Services hold; it is read again at start.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_api::field::FieldError;
use keelson_api::meta::{GroupResource, GroupVersionKind};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::status::{Result, StatusError};

/// First and last node port, upstream's `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

#[derive(Debug, Default)]
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    /// Protocol and port: TCP and UDP may share a number.
    ports: BTreeSet<(String, u16)>,
}

/// The pools.
#[derive(Debug)]
pub struct Allocators {
    range: Ipv4Net,
    taken: Mutex<Taken>,
}

/// What a write took and what it will give back. Dropped without [`Reservation::keep`], it undoes the taking.
#[must_use]
pub struct Reservation<'a> {
    allocators: &'a Allocators,
    took: Taken,
    gives_back: Taken,
}

impl Reservation<'_> {
    /// The write is committed: what was taken stays taken, what the old object held and the new one doesn't is free.
    pub fn keep(mut self) {
        self.took = std::mem::take(&mut self.gives_back);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut taken = self.allocators.taken.lock();
        taken.addresses.retain(|ip| !self.took.addresses.contains(ip));
        taken.ports.retain(|port| !self.took.ports.contains(port));
    }
}

fn is_service(resource: &GroupResource) -> bool {
    resource.group.is_empty() && resource.resource == "services"
}

/// Address and ports that a Service holds.
fn holdings(service: &Value) -> Taken {
    let spec = &service["spec"];
    let addresses =
        spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok()).into_iter().collect::<BTreeSet<_>>();
    let mut ports = BTreeSet::new();
    for port in spec["ports"].as_array().into_iter().flatten() {
        if let Some(number) = port["nodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
        {
            ports.insert((port["protocol"].as_str().unwrap_or("TCP").to_owned(), number));
        }
    }
    let health = spec["healthCheckNodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
    ports.extend(health.map(|number| ("TCP".to_owned(), number)));
    Taken { addresses, ports }
}

impl Allocators {
    /// Empty pools over the service network.
    pub fn new(range: Ipv4Net) -> Self {
        Self { range, taken: Mutex::new(Taken::default()) }
    }

    /// Marks what stored Services hold.
    pub fn restore<'v>(&self, services: impl Iterator<Item = &'v Value>) {
        let mut taken = self.taken.lock();
        for service in services {
            let held = holdings(service);
            taken.addresses.extend(held.addresses);
            taken.ports.extend(held.ports);
        }
    }

    /// Gives back what a deleted Service held.
    pub fn release(&self, resource: &GroupResource, object: &Value) {
        if is_service(resource) {
            let held = holdings(object);
            drop(Reservation { allocators: self, took: held, gives_back: Taken::default() });
        }
    }

    /// Fills the addresses and ports of a Service that is about to be stored; nothing for other kinds.
    pub fn assign(
        &self,
        resource: &GroupResource,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reservation<'_>> {
        let mut reservation =
            Reservation { allocators: self, took: Taken::default(), gives_back: Taken::default() };
        if !is_service(resource) {
            return Ok(reservation);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let before = old.map(holdings).unwrap_or_default();
        let filled = self.fill(object, &before, &mut reservation.took);
        if let Err(error) = filled {
            return Err(StatusError::invalid(&GroupVersionKind::new("", "v1", "Service"), &name, &[error]));
        }
        self.fill_health_check(&mut object["spec"], &before, &mut reservation.took)?;
        let after = holdings(object);
        reservation.gives_back = Taken {
            addresses: before.addresses.difference(&after.addresses).copied().collect(),
            ports: before.ports.difference(&after.ports).cloned().collect(),
        };
        Ok(reservation)
    }

    fn fill(&self, object: &mut Value, before: &Taken, took: &mut Taken) -> Result<(), FieldError> {
        let spec = &mut object["spec"];
        let kind = spec["type"].as_str().unwrap_or("ClusterIP").to_owned();
        if kind == "ExternalName" {
            return Ok(());
        }
        let mut taken = self.taken.lock();
        let wanted = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
        let address = match wanted.as_str() {
            "None" => "None".to_owned(),
            "" => {
                let free = self.free_address(&taken).ok_or_else(|| {
                    FieldError::invalid(
                        "spec.clusterIPs",
                        &json!(null),
                        "failed to allocate IP: range is full",
                    )
                })?;
                taken.addresses.insert(free);
                took.addresses.insert(free);
                free.to_string()
            }
            text => {
                let ip: Ipv4Addr = text.parse().map_err(|_e| {
                    FieldError::invalid(
                        "spec.clusterIPs",
                        &json!([text]),
                        "only IPv4 service addresses are configured on this cluster",
                    )
                })?;
                if !before.addresses.contains(&ip) {
                    if !self.range.contains(&ip) || ip == self.range.network() || ip == self.range.broadcast()
                    {
                        return Err(FieldError::invalid(
                            "spec.clusterIPs",
                            &json!([text]),
                            format!(
                                "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                                self.range
                            ),
                        ));
                    }
                    if !taken.addresses.insert(ip) {
                        return Err(FieldError::invalid(
                            "spec.clusterIPs",
                            &json!([text]),
                            format!("failed to allocate IP {ip}: provided IP is already allocated"),
                        ));
                    }
                    took.addresses.insert(ip);
                }
                ip.to_string()
            }
        };
        spec["clusterIP"] = address.as_str().into();
        spec["clusterIPs"] = json!([address]);
        let families = spec["ipFamilies"].as_array().cloned().unwrap_or_default();
        if families.iter().any(|f| f == "IPv6") {
            return Err(FieldError::invalid(
                "spec.ipFamilies[0]",
                &families[0],
                "not configured on this cluster",
            ));
        }
        spec["ipFamilies"] = json!(["IPv4"]);
        match spec["ipFamilyPolicy"].as_str() {
            None | Some("") => spec["ipFamilyPolicy"] = "SingleStack".into(),
            Some("RequireDualStack") => {
                return Err(FieldError::invalid(
                    "spec.ipFamilyPolicy",
                    &spec["ipFamilyPolicy"],
                    "this cluster is not configured for dual-stack services",
                ));
            }
            Some(_) => {}
        }
        let node_ports = kind == "NodePort"
            || (kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"].as_bool() != Some(false));
        for (i, port) in spec["ports"].as_array_mut().into_iter().flatten().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let at = format!("spec.ports[{i}].nodePort");
            match port["nodePort"].as_u64().filter(|n| *n > 0) {
                Some(number) => {
                    let number = u16::try_from(number).ok().filter(|n| NODE_PORTS.contains(n)).ok_or_else(|| {
                        FieldError::invalid(at.clone(), &port["nodePort"], "provided port is not in the valid range. The range of valid ports is 30000-32767")
                    })?;
                    if !matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
                        return Err(FieldError::forbidden(at, "may not be used when `type` is 'ClusterIP'"));
                    }
                    let entry = (protocol, number);
                    if !before.ports.contains(&entry) {
                        if !taken.ports.insert(entry.clone()) {
                            return Err(FieldError::invalid(
                                at,
                                &port["nodePort"],
                                "provided port is already allocated",
                            ));
                        }
                        took.ports.insert(entry);
                    }
                }
                None if node_ports => {
                    let number = free_port(&taken, &protocol).ok_or_else(|| {
                        FieldError::invalid(at, &json!(null), "failed to allocate a nodePort: range is full")
                    })?;
                    taken.ports.insert((protocol.clone(), number));
                    took.ports.insert((protocol, number));
                    port["nodePort"] = number.into();
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The port on which balancers ask a node whether it has endpoints. That it can't be had is an error of the server's
    /// own, as upstream has it.
    fn fill_health_check(&self, spec: &mut Value, before: &Taken, took: &mut Taken) -> Result<()> {
        if spec["type"] != "LoadBalancer" || spec["externalTrafficPolicy"] != "Local" {
            return Ok(());
        }
        let mut taken = self.taken.lock();
        let number = match spec["healthCheckNodePort"].as_u64().filter(|n| *n > 0) {
            Some(number) => {
                let refused = |why: &str| {
                    let what = "failed to allocate requested HealthCheck NodePort";
                    StatusError::internal(format!("{what} {number}: {why}"))
                };
                let number = u16::try_from(number).ok().filter(|n| NODE_PORTS.contains(n)).ok_or_else(|| {
                    refused("provided port is not in the valid range. The range of valid ports is 30000-32767")
                })?;
                let entry = ("TCP".to_owned(), number);
                if before.ports.contains(&entry) {
                    return Ok(());
                }
                if taken.ports.contains(&entry) {
                    return Err(refused("provided port is already allocated"));
                }
                number
            }
            None => free_port(&taken, "TCP").ok_or_else(|| {
                StatusError::internal("failed to allocate a HealthCheck NodePort 0: range is full")
            })?,
        };
        taken.ports.insert(("TCP".to_owned(), number));
        took.ports.insert(("TCP".to_owned(), number));
        spec["healthCheckNodePort"] = number.into();
        Ok(())
    }

    /// A free address: random from the upper part of the range, so that addresses chosen by hand from the lower
    /// part rarely collide (KEP-3070); the lower part when the upper is full.
    fn free_address(&self, taken: &Taken) -> Option<Ipv4Addr> {
        let first = u32::from(self.range.network()) + 1;
        let last = u32::from(self.range.broadcast()).checked_sub(1)?;
        if last < first {
            return None;
        }
        let size = last - first + 1;
        let reserved = (size / 16).clamp(16.min(size - 1), 256);
        let pick = |low: u32, high: u32| {
            let count = high - low + 1;
            let start = rand::random_range(0..count);
            (0..count)
                .map(|i| Ipv4Addr::from(low + (start + i) % count))
                .find(|ip| !taken.addresses.contains(ip))
        };
        pick(first + reserved, last).or_else(|| pick(first, first + reserved - 1))
    }
}

fn free_port(taken: &Taken, protocol: &str) -> Option<u16> {
    let (low, high) = (*NODE_PORTS.start(), *NODE_PORTS.end());
    let count = high - low + 1;
    let start = rand::random_range(0..count);
    // A number is used for one protocol only unless someone asks otherwise.
    (0..count).map(|i| low + (start + i) % count).find(|port| {
        !taken.ports.iter().any(|(p, number)| number == port && (p == protocol || !p.is_empty()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        json!({"metadata": {"name": "s"}, "spec": spec})
    }

    fn services() -> GroupResource {
        GroupResource::new("", "services")
    }

    #[test]
    fn addresses_are_taken_undone_and_released() {
        let pool = Allocators::new("10.0.0.0/29".parse().unwrap());
        let mut first = service(json!({"clusterIP": "10.0.0.1"}));
        drop(pool.assign(&services(), &mut first, None).unwrap());
        pool.assign(&services(), &mut first, None).unwrap().keep();
        let mut twice = service(json!({"clusterIP": "10.0.0.1"}));
        assert!(pool.assign(&services(), &mut twice, None).is_err());
        for _ in 0..5 {
            pool.assign(&services(), &mut service(json!({})), None).unwrap().keep();
        }
        assert!(pool.assign(&services(), &mut service(json!({})), None).is_err(), "full");
        pool.release(&services(), &first);
        pool.assign(&services(), &mut service(json!({})), None).unwrap().keep();
    }

    #[test]
    fn node_ports() {
        let pool = Allocators::new("10.0.0.0/24".parse().unwrap());
        let mut old = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
        pool.assign(&services(), &mut old, None).unwrap().keep();
        let port = old["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        assert!((30000..=32767).contains(&port));
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        new["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
        pool.assign(&services(), &mut new, Some(&old)).unwrap().keep();
        let mut other =
            service(json!({"type": "NodePort", "ports": [{"port": 1, "protocol": "TCP", "nodePort": port}]}));
        pool.assign(&services(), &mut other, None).unwrap().keep();
        let mut headless = service(json!({"clusterIP": "None"}));
        pool.assign(&services(), &mut headless, None).unwrap().keep();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    }

    #[test]
    fn ports_of_health_checks() {
        let pool = Allocators::new("10.0.0.0/24".parse().unwrap());
        let local = |more: Value| {
            let mut spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            service(spec)
        };
        let mut old = local(json!({}));
        pool.assign(&services(), &mut old, None).unwrap().keep();
        let port = old["spec"]["healthCheckNodePort"].as_u64().unwrap();
        assert!((30000..=32767).contains(&port));
        pool.assign(&services(), &mut old.clone(), Some(&old)).unwrap().keep();
        for (number, why) in [(port, "already allocated"), (80, "not in the valid range")] {
            let error = pool
                .assign(&services(), &mut local(json!({"healthCheckNodePort": number})), None)
                .err()
                .unwrap();
            assert!(error.code == 500 && error.message.contains(why), "{}", error.message);
        }
        let mut new = old.clone();
        new["spec"]["externalTrafficPolicy"] = "Cluster".into();
        new["spec"].as_object_mut().unwrap().remove("healthCheckNodePort");
        pool.assign(&services(), &mut new, Some(&old)).unwrap().keep();
        assert!(new["spec"].get("healthCheckNodePort").is_none());
        pool.assign(&services(), &mut local(json!({"healthCheckNodePort": port})), None).unwrap().keep();
    }
}
