//! The cluster's zone: what Services and EndpointSlices make of it, changed object by object.

mod change;
mod entry;
mod lookup;
pub(crate) mod reverse;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, Record};
use ipnet::IpNet;

use crate::DnsError;
use crate::config::DnsConfig;
pub use change::{Change, ZoneChange};
pub use entry::{EndpointEntry, ObjectKey, Port, ServiceEntry, ServiceKind, SliceEntry};
pub use lookup::{Area, Found};

/// TTL of every answer and of negative ones, in seconds (CoreDNS' default for the kubernetes plugin).
pub const TTL: u32 = 5;

/// The zone and its reverse names.
#[derive(Debug)]
pub struct Zone {
    /// The domain, lower case, fully qualified.
    domain: Name,
    /// Its labels, lower case, as they stand.
    domain_labels: Vec<Vec<u8>>,
    cluster_cidrs: Vec<IpNet>,
    /// Addresses of the name server itself (`ns.dns.<domain>`).
    servers: Vec<IpAddr>,
    /// By namespace, then by name.
    services: HashMap<String, HashMap<String, ServiceEntry>>,
    /// By service, then by slice name.
    slices: HashMap<ObjectKey, BTreeMap<String, SliceEntry>>,
    /// The service that each slice belongs to.
    slice_services: HashMap<ObjectKey, ObjectKey>,
    /// Services by cluster IP.
    service_ips: HashMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Slices by endpoint address.
    endpoint_ips: HashMap<IpAddr, BTreeSet<ObjectKey>>,
    services_synced: bool,
    slices_synced: bool,
    /// Counts changes: the SOA's serial number.
    serial: Arc<AtomicU32>,
}

impl Zone {
    /// An empty zone that is not synced.
    ///
    /// # Errors
    /// [`DnsError::InvalidDomain`].
    pub fn new(config: &DnsConfig) -> Result<Zone, DnsError> {
        let text = config.domain.trim_end_matches('.').to_ascii_lowercase();
        let invalid = || DnsError::InvalidDomain { domain: config.domain.clone() };
        if text.is_empty() {
            return Err(invalid());
        }
        let mut domain = Name::from_ascii(&text).map_err(|_unparsable| invalid())?;
        domain.set_fqdn(true);
        Ok(Zone {
            domain_labels: domain.iter().map(<[u8]>::to_vec).collect(),
            domain,
            cluster_cidrs: config.cluster_cidrs.clone(),
            servers: config.listen.iter().map(std::net::SocketAddr::ip).collect(),
            services: HashMap::new(),
            slices: HashMap::new(),
            slice_services: HashMap::new(),
            service_ips: HashMap::new(),
            endpoint_ips: HashMap::new(),
            services_synced: false,
            slices_synced: false,
            serial: Arc::new(AtomicU32::new(1)),
        })
    }

    /// Whether both kinds of objects were listed once. Before, a missing name may exist.
    pub fn is_synced(&self) -> bool {
        self.services_synced && self.slices_synced
    }

    /// The domain, fully qualified.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    /// The number of changes so far, which can be read while the zone is being changed.
    pub fn serial(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.serial)
    }

    /// Notes a change. Nobody reads the zone meanwhile, so it may come before or after.
    fn changed(&self) {
        self.serial.fetch_add(1, Ordering::Release);
    }

    /// Adds or replaces a service.
    pub fn apply_service(&mut self, key: ObjectKey, entry: ServiceEntry) {
        // Most writes change what the zone does not keep.
        if self.service(&key.namespace, &key.name) == Some(&entry) {
            return;
        }
        self.delete_service(&key);
        if let ServiceKind::ClusterIps(ips) = &entry.kind {
            for ip in ips {
                self.service_ips.entry(*ip).or_default().insert(key.clone());
            }
        }
        self.services.entry(key.namespace).or_default().insert(key.name, entry);
    }

    /// Removes a service.
    pub fn delete_service(&mut self, key: &ObjectKey) {
        self.changed();
        let Some(of_namespace) = self.services.get_mut(&key.namespace) else { return };
        let Some(old) = of_namespace.remove(&key.name) else { return };
        if of_namespace.is_empty() {
            self.services.remove(&key.namespace);
        }
        if let ServiceKind::ClusterIps(ips) = old.kind {
            for ip in ips {
                forget(&mut self.service_ips, ip, key);
            }
        }
    }

    /// Makes these the services there are, and no others.
    pub fn replace_services(&mut self, all: Vec<(ObjectKey, ServiceEntry)>) {
        self.services.clear();
        self.service_ips.clear();
        for (key, entry) in all {
            self.apply_service(key, entry);
        }
        self.services_synced = true;
        self.changed();
    }

    /// Adds or replaces an endpoint slice.
    pub fn apply_slice(&mut self, key: ObjectKey, entry: SliceEntry) {
        let of_service = self.slice_services.get(&key).and_then(|service| self.slices.get(service));
        if of_service.and_then(|slices| slices.get(&key.name)) == Some(&entry) {
            return;
        }
        self.delete_slice(&key);
        for ip in entry.endpoints.iter().flat_map(|endpoint| &endpoint.ips) {
            self.endpoint_ips.entry(*ip).or_default().insert(key.clone());
        }
        let service = ObjectKey { namespace: key.namespace.clone(), name: entry.service.clone() };
        self.slice_services.insert(key.clone(), service.clone());
        self.slices.entry(service).or_default().insert(key.name, entry);
    }

    /// Removes an endpoint slice.
    pub fn delete_slice(&mut self, key: &ObjectKey) {
        self.changed();
        let Some(service) = self.slice_services.remove(key) else { return };
        let Some(of_service) = self.slices.get_mut(&service) else { return };
        let old = of_service.remove(&key.name);
        if of_service.is_empty() {
            self.slices.remove(&service);
        }
        for ip in old.iter().flat_map(|slice| &slice.endpoints).flat_map(|endpoint| &endpoint.ips) {
            forget(&mut self.endpoint_ips, *ip, key);
        }
    }

    /// Makes these the slices there are, and no others.
    pub fn replace_slices(&mut self, all: Vec<(ObjectKey, SliceEntry)>) {
        self.slices.clear();
        self.slice_services.clear();
        self.endpoint_ips.clear();
        for (key, entry) in all {
            self.apply_slice(key, entry);
        }
        self.slices_synced = true;
        self.changed();
    }

    /// The SOA record that negative answers carry, for the zone `owner`.
    pub fn soa(&self, owner: Name) -> Record {
        let mname = self.name_of(&["ns", "dns"]);
        let rname = self.name_of(&["hostmaster"]);
        let data = SOA::new(mname, rname, self.serial.load(Ordering::Relaxed), 7200, 1800, 86_400, TTL);
        Record::from_rdata(owner, TTL, RData::SOA(data))
    }

    /// The name with these labels under the domain. Labels come from Kubernetes names, which are short
    /// enough; one that is not gives the domain itself rather than a panic.
    fn name_of(&self, labels: &[&str]) -> Name {
        let bytes = labels.iter().map(|label| label.as_bytes());
        Name::from_labels(bytes)
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_too_long| self.domain.clone())
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        self.services.get(namespace)?.get(name)
    }
}

fn forget(index: &mut HashMap<IpAddr, BTreeSet<ObjectKey>>, ip: IpAddr, key: &ObjectKey) {
    if let Some(keys) = index.get_mut(&ip) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(&ip);
        }
    }
}
