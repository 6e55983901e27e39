//! `status` of the Node: what it should be, whether that is news, and the patch that says it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_cri::Image;
use serde_json::{Map, Value, json};

use super::machine::architecture;
use super::{
    CONTAINER_RUNTIME_VERSION, Capacity, KUBELET_VERSION, MachineInfo, NodeConfig, Observation, conditions,
    is_extended,
};

/// Most images in the status: kubelet's nodeStatusMaxImages.
const MAX_IMAGES: usize = 50;
/// Most names of one image: kubelet's MaxNamesPerImageInNodeStatus.
const MAX_NAMES: usize = 5;

/// What doesn't change while the agent runs.
pub(super) struct Facts<'a> {
    pub config: &'a NodeConfig,
    pub machine: &'a MachineInfo,
    pub capacity: &'a Capacity,
}

/// The extended resources of a list: others write them, and we leave them.
pub(super) fn extended(list: Option<&BTreeMap<String, Quantity>>) -> BTreeMap<String, Quantity> {
    let all = list.into_iter().flatten();
    all.filter(|(name, _)| is_extended(name)).map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

/// The status as it should be. Extended resources in the capacity are allocatable whole.
pub(super) fn compute(
    facts: &Facts<'_>,
    observation: &Observation,
    before: Option<&NodeStatus>,
) -> NodeStatus {
    let extended = extended(before.and_then(|before| before.capacity.as_ref()));
    let with_extended = |mut own: BTreeMap<String, Quantity>| {
        own.extend(extended.clone());
        Some(own)
    };
    NodeStatus {
        addresses: Some(addresses(facts.config)),
        capacity: with_extended(facts.capacity.capacity()),
        allocatable: with_extended(facts.capacity.allocatable()),
        conditions: Some(conditions::compute(observation, before)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(facts.config.kubelet_port) }),
        }),
        images: Some(images(&observation.images)),
        node_info: Some(node_info(facts.machine)),
        ..NodeStatus::default()
    }
}

fn addresses(config: &NodeConfig) -> Vec<NodeAddress> {
    let ips = config.addresses.iter().map(|ip| ("InternalIP", ip.to_string()));
    ips.chain([("Hostname", config.hostname.clone())])
        .map(|(kind, address)| NodeAddress { address, type_: kind.to_owned() })
        .collect()
}

fn node_info(machine: &MachineInfo) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: CONTAINER_RUNTIME_VERSION.to_owned(),
        kernel_version: machine.kernel_version.clone(),
        // Deprecated, and empty since v1.33.
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.system_uuid.clone(),
        swap: None,
    }
}

/// The largest images, digests before tags.
fn images(images: &[Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.iter().chain(&image.repo_tags).take(MAX_NAMES).cloned().collect()),
            size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)),
        })
        .collect()
}

/// Whether `wanted` says something new. Heartbeat times alone are no news.
pub(super) fn changed(before: Option<&NodeStatus>, wanted: &NodeStatus) -> bool {
    let Some(before) = before else { return true };
    let conditions_changed = wanted.conditions.iter().flatten().any(|condition| {
        let known = before.conditions.iter().flatten().find(|known| known.type_ == condition.type_);
        known.is_none_or(|known| {
            known.status != condition.status
                || known.reason != condition.reason
                || known.message != condition.message
        })
    });
    conditions_changed
        || !same_list(&before.addresses, &wanted.addresses)
        || !same_amounts(&before.capacity, &wanted.capacity)
        || !same_amounts(&before.allocatable, &wanted.allocatable)
        || before.daemon_endpoints != wanted.daemon_endpoints
        || !same_list(&before.images, &wanted.images)
        || before.node_info != wanted.node_info
}

/// An empty list and no list are the same on the wire.
fn same_list<T: PartialEq>(a: &Option<Vec<T>>, b: &Option<Vec<T>>) -> bool {
    a.as_deref().unwrap_or_default() == b.as_deref().unwrap_or_default()
}

/// The API server writes amounts in their shortest form: what is sent as 268435456Ki comes back as 256Gi.
fn same_amounts(a: &Option<BTreeMap<String, Quantity>>, b: &Option<BTreeMap<String, Quantity>>) -> bool {
    let (a, b) = (a.iter().flatten(), b.iter().flatten());
    a.map(|(name, amount)| (name, keelson_quantity::of(amount)))
        .eq(b.map(|(name, amount)| (name, keelson_quantity::of(amount))))
}

/// A strategic merge patch of `status`. Conditions merge by type, so those of others stay; addresses would merge by
/// type too, which loses one of two InternalIPs, so they are replaced when they change (upstream does the same).
pub(super) fn patch(before: Option<&NodeStatus>, wanted: &NodeStatus) -> Value {
    let mut status = Map::new();
    let mut put = |field: &str, value: Value| status.insert(field.to_owned(), value);
    put("conditions", json!(wanted.conditions));
    let lists = |status: &NodeStatus| [status.capacity.clone(), status.allocatable.clone()];
    let (was, will) = (before.map(lists).unwrap_or_default(), lists(wanted));
    for ((field, was), will) in ["capacity", "allocatable"].into_iter().zip(&was).zip(&will) {
        if !same_amounts(was, will) {
            // What goes must be named: the lists are merged.
            let gone = was.iter().flatten().filter(|(name, _)| will.iter().all(|w| !w.contains_key(*name)));
            let mut list: Map<String, Value> = gone.map(|(name, _)| (name.clone(), Value::Null)).collect();
            list.extend(will.iter().flatten().map(|(name, amount)| (name.clone(), json!(amount))));
            put(field, list.into());
        }
    }
    if before.is_none_or(|before| before.daemon_endpoints != wanted.daemon_endpoints) {
        put("daemonEndpoints", json!(wanted.daemon_endpoints));
    }
    if before.is_none_or(|before| !same_list(&before.images, &wanted.images)) {
        put("images", json!(wanted.images));
    }
    if before.is_none_or(|before| before.node_info != wanted.node_info) {
        put("nodeInfo", json!(wanted.node_info));
    }
    if before.is_none_or(|before| !same_list(&before.addresses, &wanted.addresses)) {
        let mut addresses: Vec<Value> =
            wanted.addresses.iter().flatten().map(|address| json!(address)).collect();
        addresses.push(json!({ "$patch": "replace" }));
        put("addresses", Value::Array(addresses));
    }
    json!({ "status": status })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use keelson_cri::RuntimeStatus;

    use super::*;
    use crate::node::{Pressures, Thresholds};

    fn wanted(ips: &[&str], now: i64, before: Option<&NodeStatus>) -> NodeStatus {
        let config = NodeConfig::new("n1", ips.iter().map(|ip| ip.parse().unwrap()).collect());
        let machine = MachineInfo { cpus: 2, memory: 1 << 30, ..MachineInfo::default() };
        let capacity = Capacity::new(&machine, 1 << 40, 110, &Thresholds::default());
        let runtime = RuntimeStatus { runtime: Ok(()), network: Ok(()), missing_controllers: Vec::new() };
        let observation = Observation {
            runtime,
            pressures: Pressures::default(),
            images: Vec::new(),
            now: Timestamp::from_second(now).unwrap(),
        };
        compute(&Facts { config: &config, machine: &machine, capacity: &capacity }, &observation, before)
    }

    #[test]
    fn heartbeats_are_no_news() {
        let first = wanted(&["10.0.0.1"], 0, None);
        assert!(!changed(Some(&first), &wanted(&["10.0.0.1"], 10, Some(&first))));
        assert!(changed(Some(&first), &wanted(&["10.0.0.2"], 10, Some(&first))));
        assert!(changed(None, &first));
    }

    #[test]
    fn amounts_in_other_words_are_no_news() {
        let first = wanted(&["10.0.0.1"], 0, None);
        let mut answer = first.clone();
        for list in [&mut answer.capacity, &mut answer.allocatable] {
            let memory = list.as_mut().and_then(|list| list.get_mut("memory")).unwrap();
            *memory = Quantity(keelson_quantity::of(memory).value().to_string());
        }
        assert_ne!(answer.capacity, first.capacity);
        let again = wanted(&["10.0.0.1"], 10, Some(&answer));
        assert!(!changed(Some(&answer), &again));
        assert_eq!(patch(Some(&answer), &again)["status"].as_object().unwrap().len(), 1);
        answer
            .allocatable
            .as_mut()
            .and_then(|list| list.insert("memory".to_owned(), Quantity("1".to_owned())));
        assert!(changed(Some(&answer), &again));
    }

    #[test]
    fn patch_holds_what_changed_and_all_conditions() {
        let first = wanted(&["10.0.0.1"], 0, None);
        let same = patch(Some(&first), &wanted(&["10.0.0.1"], 10, Some(&first)));
        assert_eq!(same["status"].as_object().unwrap().keys().collect::<Vec<_>>(), ["conditions"]);
        let moved = patch(Some(&first), &wanted(&["10.0.0.1", "fd00::1"], 10, Some(&first)));
        let addresses = moved["status"]["addresses"].as_array().unwrap();
        assert_eq!(addresses.len(), 4);
        assert_eq!(addresses[3]["$patch"], "replace");
    }

    #[test]
    fn extended_resources_of_others_stay() {
        let amount = |n: u32| Quantity(n.to_string());
        let mut first = wanted(&["10.0.0.1"], 0, None);
        first.capacity.as_mut().unwrap().insert("example.com/foo".into(), amount(5));
        let second = wanted(&["10.0.0.1"], 10, Some(&first));
        assert_eq!(second.allocatable.as_ref().unwrap()["example.com/foo"], amount(5));
        let patched = patch(Some(&first), &second);
        assert_eq!(patched["status"]["allocatable"]["example.com/foo"], "5");
        assert_eq!(patched["status"]["capacity"], Value::Null);
        assert!(!changed(Some(&second), &wanted(&["10.0.0.1"], 20, Some(&second))));
        // What has no capacity any more is not allocatable either; what is not extended is ours to say.
        first = second;
        let capacity = first.capacity.as_mut().unwrap();
        capacity.remove("example.com/foo");
        capacity.insert("kubernetes.io/bar".into(), amount(1));
        let patched = patch(Some(&first), &wanted(&["10.0.0.1"], 20, Some(&first)));
        let lists = [&patched["status"]["allocatable"], &patched["status"]["capacity"]];
        assert_eq!(lists.map(|list| list.as_object().unwrap().len()), [5, 5]);
        assert_eq!(lists[0].get("example.com/foo"), Some(&Value::Null));
        assert_eq!(lists[1].get("kubernetes.io/bar"), Some(&Value::Null));
    }

    #[test]
    fn largest_images_first() {
        let image = |id: &str, size| Image {
            id: id.to_owned(),
            repo_tags: vec![format!("{id}:latest")],
            repo_digests: vec![format!("{id}@sha256:0")],
            size,
            uid: None,
            username: String::new(),
        };
        let list = images(&[image("small", 1), image("large", 9)]);
        assert_eq!(list[0].names.as_ref().unwrap(), &["large@sha256:0", "large:latest"]);
        let many: Vec<Image> = (0..60).map(|n| image(&n.to_string(), n)).collect();
        assert_eq!(images(&many).len(), MAX_IMAGES);
    }
}
