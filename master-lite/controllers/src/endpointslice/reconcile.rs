//! From the slices that are there to those that should be, with few writes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{Key, meta};

use super::endpoints::{Group, is_headless};

/// The label that names a slice's service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The label that names a slice's manager.
pub const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Endpoints in one slice at most.
const MOST: usize = 100;

/// Who manages the slice.
pub fn managed_by(slice: &EndpointSlice) -> Option<&str> {
    meta::label(&slice.metadata, MANAGED_BY_LABEL)
}

/// The service that the slice belongs to.
pub fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = meta::label(&slice.metadata, SERVICE_LABEL).filter(|n| !n.is_empty())?;
    Some(Key::new(meta::namespace(&slice.metadata), name))
}

/// What all slices of one service have in common.
#[derive(Debug, Clone)]
pub struct SliceOwner {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    reference: OwnerReference,
}

impl SliceOwner {
    /// The slices of a service have its labels, except those that are the slices' own.
    pub fn of_service(service: &Service, manager: &str) -> Self {
        let name = meta::name(&service.metadata).to_owned();
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS_LABEL);
        if is_headless(service) {
            labels.insert(HEADLESS_LABEL.into(), String::new());
        }
        labels.insert(SERVICE_LABEL.into(), name.clone());
        labels.insert(MANAGED_BY_LABEL.into(), manager.into());
        SliceOwner {
            name,
            namespace: meta::namespace(&service.metadata).into(),
            labels,
            annotations: BTreeMap::new(),
            reference: meta::controller_ref(service),
        }
    }

    /// The slices that mirror Endpoints have their labels and annotations.
    pub fn of_endpoints(endpoints: &Endpoints, manager: &str) -> Self {
        let name = meta::name(&endpoints.metadata).to_owned();
        let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_LABEL.into(), name.clone());
        labels.insert(MANAGED_BY_LABEL.into(), manager.into());
        let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
        SliceOwner {
            name,
            namespace: meta::namespace(&endpoints.metadata).into(),
            labels,
            annotations,
            reference: meta::controller_ref(endpoints),
        }
    }

    fn new_slice(&self, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
        EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", self.name)),
                namespace: Some(self.namespace.clone()),
                labels: Some(self.labels.clone()),
                annotations: (!self.annotations.is_empty()).then(|| self.annotations.clone()),
                owner_references: Some(vec![self.reference.clone()]),
                ..Default::default()
            },
            address_type: group.address_type.clone(),
            endpoints: Some(endpoints),
            ports: Some(group.ports.clone()),
        }
    }

    /// Labels that others have put on a slice go; annotations stay.
    fn fix(&self, slice: &mut EndpointSlice) -> bool {
        let labels_differ = slice.metadata.labels.as_ref() != Some(&self.labels);
        if labels_differ {
            slice.metadata.labels = Some(self.labels.clone());
        }
        let annotations = slice.metadata.annotations.clone().unwrap_or_default();
        let missing = self.annotations.iter().any(|(k, v)| annotations.get(k) != Some(v));
        if missing {
            let merged = annotations.into_iter().chain(self.annotations.clone()).collect();
            slice.metadata.annotations = Some(merged);
        }
        labels_differ || missing
    }
}

/// Writes that lead to the wanted slices.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices with new content.
    pub update: Vec<EndpointSlice>,
    /// Names of slices that go.
    pub delete: Vec<String>,
}

/// What tells an endpoint from another; all else of it may change.
fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    let target = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone().or_else(|| t.name.clone()));
    (endpoint.addresses.clone(), target)
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    a.len() == b.len() && a.iter().all(|port| b.contains(port))
}

/// Plans the writes. Endpoints stay in the slice they are in; new ones fill slices that must be written anyway, then
/// the fullest with room for all of them, then new slices.
pub fn plan(owner: &SliceOwner, groups: &[Group], present: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let mut rest: Vec<&Arc<EndpointSlice>> = present.iter().collect();
    // Two slices that were written in one moment always come in one order.
    rest.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    for group in groups {
        let belongs = |slice: &EndpointSlice| {
            slice.address_type == group.address_type
                && same_ports(slice.ports.as_deref().unwrap_or_default(), &group.ports)
        };
        let (mine, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|slice| belongs(slice));
        rest = others;
        plan_group(owner, group, mine, &mut plan);
    }
    plan.delete.extend(rest.iter().map(|slice| meta::name(&slice.metadata).to_owned()));
    plan
}

fn plan_group(owner: &SliceOwner, group: &Group, mine: Vec<&Arc<EndpointSlice>>, plan: &mut Plan) {
    let mut wanted: BTreeMap<_, Endpoint> =
        group.endpoints.iter().map(|endpoint| (identity(endpoint), endpoint.clone())).collect();
    let mut slices: Vec<(EndpointSlice, bool)> = Vec::new();
    for slice in mine {
        let mut new = (**slice).clone();
        let before = new.endpoints.take().unwrap_or_default();
        let kept: Vec<Endpoint> =
            before.iter().filter_map(|endpoint| wanted.remove(&identity(endpoint))).collect();
        let changed = owner.fix(&mut new) | (kept != before);
        new.endpoints = Some(kept);
        slices.push((new, changed));
    }
    let mut added: VecDeque<Endpoint> = wanted.into_values().collect();
    for (slice, _) in slices.iter_mut().filter(|(_, changed)| *changed) {
        fill(slice, &mut added);
    }
    if !added.is_empty() {
        // The fullest slice that takes them all costs one write and leaves no gap.
        let roomy = slices
            .iter_mut()
            .filter(|(slice, changed)| !changed && count(slice) + added.len() <= MOST)
            .max_by_key(|(slice, _)| count(slice));
        if let Some((slice, changed)) = roomy {
            fill(slice, &mut added);
            *changed = true;
        }
    }
    while !added.is_empty() {
        let batch = added.drain(..added.len().min(MOST)).collect();
        plan.create.push(owner.new_slice(group, batch));
    }
    // Empty slices go, but the group that stands for "no endpoints" keeps one.
    let keep_one = group.endpoints.is_empty();
    let mut kept = 0;
    for (slice, changed) in slices {
        if count(&slice) == 0 && !(keep_one && kept == 0) {
            plan.delete.push(meta::name(&slice.metadata).to_owned());
            continue;
        }
        kept += 1;
        if changed {
            plan.update.push(slice);
        }
    }
    if keep_one && kept == 0 {
        plan.create.push(owner.new_slice(group, Vec::new()));
    }
}

fn count(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

fn fill(slice: &mut EndpointSlice, added: &mut VecDeque<Endpoint>) {
    let endpoints = slice.endpoints.get_or_insert_default();
    while endpoints.len() < MOST
        && let Some(endpoint) = added.pop_front()
    {
        endpoints.push(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::EndpointConditions;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn owner() -> SliceOwner {
        let service = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u"}, "spec": {}});
        SliceOwner::of_service(&serde_json::from_value(service).unwrap(), super::super::MANAGED_BY)
    }

    fn group(addresses: impl IntoIterator<Item = u32>, ready: bool) -> Group {
        Group {
            address_type: "IPv4".into(),
            ports: vec![EndpointPort { port: Some(80), ..Default::default() }],
            endpoints: addresses
                .into_iter()
                .map(|n| Endpoint {
                    addresses: vec![std::net::Ipv4Addr::from(n).to_string()],
                    conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
                    ..Default::default()
                })
                .collect(),
        }
    }

    fn apply(present: &mut BTreeMap<String, Arc<EndpointSlice>>, plan: Plan) {
        for name in plan.delete {
            present.remove(&name);
        }
        for mut slice in plan.create {
            let name = format!("web-{}", present.len() + 1000);
            slice.metadata.name = Some(name.clone());
            present.insert(name, Arc::new(slice));
        }
        for slice in plan.update {
            present.insert(slice.metadata.name.clone().unwrap(), Arc::new(slice));
        }
    }

    fn step(present: &mut BTreeMap<String, Arc<EndpointSlice>>, group: Group) -> (usize, usize, usize) {
        let slices: Vec<_> = present.values().cloned().collect();
        let plan = plan(&owner(), &[group], &slices);
        let writes = (plan.create.len(), plan.update.len(), plan.delete.len());
        apply(present, plan);
        writes
    }

    #[test]
    fn few_writes() {
        let mut present = BTreeMap::new();
        assert_eq!(step(&mut present, group(0..250, true)), (3, 0, 0));
        assert_eq!(step(&mut present, group(0..250, true)), (0, 0, 0));
        // One endpoint more goes into the slice with room.
        assert_eq!(step(&mut present, group(0..251, true)), (0, 1, 0));
        // A change of one endpoint writes one slice.
        let mut changed = group(0..251, true);
        changed.endpoints[0].conditions = None;
        assert_eq!(step(&mut present, changed), (0, 1, 0));
        assert_eq!(step(&mut present, group([], true)), (0, 1, 2));
        assert_eq!(step(&mut present, group(5..6, true)), (0, 1, 0));
    }

    proptest! {
        #[test]
        fn every_endpoint_is_in_one_slice(
            sets in proptest::collection::vec(proptest::collection::btree_set(0u32..400, 0..300), 1..6),
        ) {
            let mut present = BTreeMap::new();
            for set in sets {
                let mut expected = group(set, true).endpoints;
                step(&mut present, group([], false));
                step(&mut present, Group { endpoints: expected.clone(), ..group([], true) });
                let mut found: Vec<Endpoint> = present
                    .values()
                    .flat_map(|slice| {
                        let endpoints = slice.endpoints.clone().unwrap();
                        assert!(endpoints.len() <= MOST);
                        endpoints
                    })
                    .collect();
                found.sort_by(|a, b| a.addresses.cmp(&b.addresses));
                expected.sort_by(|a, b| a.addresses.cmp(&b.addresses));
                prop_assert_eq!(found, expected);
            }
        }
    }
}
