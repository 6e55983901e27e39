//! From what the kernel holds to what it should hold, in an order that no connection can be hurt by:
//!
//! 1. new slots, under the generation after the one in use;
//! 2. frontends: one write each moves all new connections over;
//! 3. frontends that are gone;
//! 4. slots that no frontend names any more, and affinity to endpoints that are gone.
//!
//! A connect that read a frontend just before step 2 and looks its slot up just after step 4 finds none; the program
//! then reads the frontend once more.

use std::collections::{BTreeMap, BTreeSet};

use keelson_ebpf_abi::{Backend, Frontend, FrontendKey, NodePlace, SlotKey};

use crate::compile::{MapImage, Target};
use crate::refresh::Refreshed;

/// What the kernel's maps hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Installed {
    /// FRONTENDS, the claims of whole addresses included.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// SLOTS.
    pub slots: BTreeMap<SlotKey, Backend>,
}

/// One write to a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapOp {
    /// Write a slot that no frontend names yet.
    PutSlot(SlotKey, Backend),
    /// Write a frontend whose slots are all there.
    PutFrontend(FrontendKey, Frontend),
    /// Remove a frontend.
    DeleteFrontend(FrontendKey),
    /// Remove a slot that no frontend names any more.
    DeleteSlot(SlotKey),
    /// Forget which clients were given this endpoint of a Service port.
    ForgetAffinity { service: u32, backend: Backend },
}

impl Installed {
    /// What the maps hold after an operation.
    pub fn apply(&mut self, op: &MapOp) {
        match op {
            MapOp::PutSlot(key, backend) => {
                self.slots.insert(*key, *backend);
            }
            MapOp::PutFrontend(key, frontend) => {
                self.frontends.insert(*key, *frontend);
            }
            MapOp::DeleteFrontend(key) => {
                self.frontends.remove(key);
            }
            MapOp::DeleteSlot(key) => {
                self.slots.remove(key);
            }
            MapOp::ForgetAffinity { .. } => {}
        }
    }

    fn backends(&self, frontend: &Frontend) -> Vec<Backend> {
        let key = |slot| SlotKey { service: frontend.service, generation: frontend.generation, slot };
        (0..frontend.slots).filter_map(|slot| self.slots.get(&key(slot)).copied()).collect()
    }
}

/// The entry that says that an address is a node's.
fn node(place: NodePlace) -> Frontend {
    Frontend { generation: place as u32, ..CLAIM }
}

/// The entry that claims an address.
const CLAIM: Frontend = Frontend { service: 0, generation: 0, slots: 0, affinity_seconds: 0 };

/// The operations that turn `installed` into `image`, in order.
pub fn diff(installed: &Installed, image: &MapImage) -> Vec<MapOp> {
    let mut keys_of: Vec<Vec<FrontendKey>> = vec![Vec::new(); image.targets.len()];
    for (key, target) in &image.frontends {
        keys_of[*target].push(*key);
    }
    let mut numbers = Numbers::new(installed);
    let (mut slots, mut frontends) = (Vec::new(), Vec::new());
    let mut wanted: BTreeMap<FrontendKey, Frontend> =
        image.claimed.iter().map(|address| (FrontendKey::any_port(*address), CLAIM)).collect();
    wanted.extend(image.nodes.iter().map(|(address, place)| (FrontendKey::node(*address), node(*place))));
    let mut forget = Vec::new();
    for (target, keys) in image.targets.iter().zip(&keys_of) {
        let known = keys.iter().find_map(|key| installed.frontends.get(key));
        let service = numbers.claim(known);
        let next = || numbers.next_generation(service);
        let (frontend, puts) = settle(installed, known, service, next, target);
        slots.extend(puts);
        forget.extend(known.into_iter().flat_map(|known| forgotten(installed, known, target)));
        for key in keys {
            wanted.insert(*key, frontend);
        }
    }
    for (key, frontend) in &wanted {
        if installed.frontends.get(key) != Some(frontend) {
            frontends.push(MapOp::PutFrontend(*key, *frontend));
        }
    }
    let gone = installed.frontends.keys().filter(|key| !wanted.contains_key(key));
    frontends.extend(gone.map(|key| MapOp::DeleteFrontend(*key)));

    let used: BTreeSet<(u32, u32)> =
        wanted.values().map(|frontend| (frontend.service, frontend.generation)).collect();
    let stale = installed.slots.keys().filter(|key| !used.contains(&(key.service, key.generation)));
    let stale = stale.map(|key| MapOp::DeleteSlot(*key));
    slots.into_iter().chain(frontends).chain(stale).chain(forget).collect()
}

/// The frontend that a target has from now on, and the slots that must be there first.
fn settle(
    installed: &Installed,
    known: Option<&Frontend>,
    service: u32,
    next_generation: impl FnOnce() -> u32,
    target: &Target,
) -> (Frontend, Vec<MapOp>) {
    let count = u32::try_from(target.backends.len()).unwrap_or(u32::MAX);
    match known {
        // The same endpoints: their slots stay.
        Some(known)
            if known.service == service
                && installed.backends(known) == target.backends
                && known.slots == count =>
        {
            (Frontend { affinity_seconds: target.affinity_seconds, ..*known }, Vec::new())
        }
        _ => {
            let generation = next_generation();
            let key = |slot| SlotKey { service, generation, slot };
            let puts = (0..).zip(&target.backends).map(|(slot, backend)| MapOp::PutSlot(key(slot), *backend));
            let affinity_seconds = target.affinity_seconds;
            (Frontend { service, generation, slots: count, affinity_seconds }, puts.collect())
        }
    }
}

/// Endpoints that clients with affinity were given and that are gone.
fn forgotten(installed: &Installed, known: &Frontend, target: &Target) -> Vec<MapOp> {
    if known.affinity_seconds == 0 {
        return Vec::new();
    }
    let stay: BTreeSet<&Backend> = target.backends.iter().collect();
    let gone = installed.backends(known).into_iter().filter(|backend| !stay.contains(backend));
    gone.map(|backend| MapOp::ForgetAffinity { service: known.service, backend }).collect()
}

/// As [`diff`], where only these targets have changed since all of the image was installed; it takes as long as they do,
/// however many others there are. None where something is not there that should be.
pub(crate) fn diff_refreshed(
    installed: &Installed,
    image: &MapImage,
    refreshed: &[Refreshed],
) -> Option<Vec<MapOp>> {
    let (mut slots, mut frontends, mut stale, mut forget) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for Refreshed { target, keys } in refreshed {
        let target = image.targets.get(*target)?;
        let known = installed.frontends.get(keys.first()?)?;
        if keys.iter().any(|key| installed.frontends.get(key) != Some(known)) {
            return None;
        }
        let all = |slot, generation| SlotKey { service: known.service, generation, slot };
        let held = || installed.slots.range(all(0, 0)..=all(u32::MAX, u32::MAX)).map(|(key, _)| key);
        let highest = held().map(|key| key.generation).fold(known.generation, u32::max);
        let (frontend, puts) =
            settle(installed, Some(known), known.service, || highest.wrapping_add(1), target);
        slots.extend(puts);
        if frontend != *known {
            frontends.extend(keys.iter().map(|key| MapOp::PutFrontend(*key, frontend)));
        }
        let unused = held().filter(|key| key.generation != frontend.generation);
        stale.extend(unused.map(|key| MapOp::DeleteSlot(*key)));
        forget.extend(forgotten(installed, known, target));
    }
    Some(slots.into_iter().chain(frontends).chain(stale).chain(forget).collect())
}

/// Numbers of Service ports, and the highest generation that each has in the kernel.
struct Numbers {
    used: BTreeMap<u32, u32>,
    claimed: BTreeSet<u32>,
    next: u32,
}

impl Numbers {
    fn new(installed: &Installed) -> Self {
        let mut used: BTreeMap<u32, u32> = BTreeMap::new();
        let both = installed
            .slots
            .keys()
            .map(|key| (key.service, key.generation))
            .chain(installed.frontends.values().map(|frontend| (frontend.service, frontend.generation)));
        for (service, generation) in both {
            let highest = used.entry(service).or_default();
            *highest = generation.max(*highest);
        }
        Self { used, claimed: BTreeSet::from([0]), next: 1 }
    }

    /// The number of a known frontend unless another target took it (a port that moved between Services), else a
    /// free one. 0 stands for claims.
    fn claim(&mut self, known: Option<&Frontend>) -> u32 {
        if let Some(known) = known
            && self.claimed.insert(known.service)
        {
            return known.service;
        }
        while self.used.contains_key(&self.next) || self.claimed.contains(&self.next) {
            self.next += 1;
        }
        self.claimed.insert(self.next);
        self.next
    }

    fn next_generation(&self, service: u32) -> u32 {
        self.used.get(&service).map_or(1, |highest| highest.wrapping_add(1))
    }
}

#[cfg(test)]
mod tests {
    use keelson_ebpf_abi::{Be16, Be32};
    use proptest::prelude::*;

    use super::*;
    use crate::compile::Target;

    fn key(address: u8, port: u16) -> FrontendKey {
        FrontendKey {
            address: Be32::from_octets([10, 96, 0, address]),
            port: Be16::new(port),
            protocol: 6,
            pad: 0,
        }
    }

    fn backend(last: u8) -> Backend {
        Backend { address: Be32::from_octets([10, 244, 0, last]), port: Be16::new(80), pad: 0 }
    }

    prop_compose! {
        fn any_image()(
            nodes in proptest::collection::btree_map(1u8..4, proptest::bool::ANY, 0..3),
            node_ports in proptest::collection::btree_map(1u16..4, (proptest::collection::btree_set(1u8..8, 0..5), proptest::bool::ANY), 0..3),
            ports in proptest::collection::btree_map((1u8..6, 1u16..4), (proptest::collection::btree_set(1u8..8, 0..5), 0u32..2), 0..8)
        ) -> MapImage {
            let mut image = MapImage::default();
            for ((address, port), (backends, affinity)) in ports {
                image.claimed.insert(key(address, port).address);
                image.frontends.insert(key(address, port), image.targets.len());
                image.targets.push(Target { backends: backends.into_iter().map(backend).collect(), affinity_seconds: affinity * 100 });
            }
            for (last, here) in nodes {
                let place = if here { NodePlace::Here } else { NodePlace::Elsewhere };
                image.nodes.insert(Be32::from_octets([192, 0, 2, last]), place);
            }
            for (port, (backends, everywhere)) in node_ports {
                let target = image.targets.len();
                image.targets.push(Target { backends: backends.into_iter().map(backend).collect(), affinity_seconds: 0 });
                for place in [NodePlace::Here, NodePlace::Elsewhere].into_iter().take(1 + usize::from(everywhere)) {
                    image.frontends.insert(FrontendKey::node_port(place as u32, Be16::new(port), 6), target);
                }
            }
            image
        }
    }

    /// What a client that connects now may get: each frontend with its endpoints, read through the maps.
    fn seen(installed: &Installed) -> BTreeMap<FrontendKey, Vec<Backend>> {
        installed
            .frontends
            .iter()
            .filter(|(key, _)| key.port.0 != 0)
            .map(|(key, f)| (*key, installed.backends(f)))
            .collect()
    }

    proptest! {
        /// Through any sequence of images, at each single step, every frontend shows exactly its old or its new
        /// endpoints, whole; and in the end the maps hold what was wanted and nothing else.
        #[test]
        fn no_step_shows_half_a_service(images in proptest::collection::vec(any_image(), 1..6)) {
            let mut installed = Installed::default();
            for image in images {
                let before = seen(&installed);
                let wanted: BTreeMap<FrontendKey, Vec<Backend>> =
                    image.frontends.iter().map(|(key, target)| (*key, image.targets[*target].backends.clone())).collect();
                for op in diff(&installed, &image) {
                    installed.apply(&op);
                    for (key, frontend) in installed.frontends.iter().filter(|(key, _)| key.port.0 != 0) {
                        let now = installed.backends(frontend);
                        prop_assert_eq!(now.len(), frontend.slots as usize);
                        prop_assert!(Some(&now) == before.get(key) || Some(&now) == wanted.get(key));
                    }
                }
                prop_assert_eq!(seen(&installed), wanted);
                for (address, place) in &image.nodes {
                    let entry = installed.frontends.get(&FrontendKey::node(*address));
                    prop_assert_eq!(entry.map(|entry| entry.generation), Some(*place as u32));
                }
                let entries = image.frontends.len() + image.claimed.len() + image.nodes.len();
                prop_assert_eq!(installed.frontends.len(), entries);
                let slots: usize = image.targets.iter().map(|target| target.backends.len()).sum();
                prop_assert_eq!(installed.slots.len(), slots);
                prop_assert!(diff(&installed, &image).is_empty());
            }
        }
    }

    proptest! {
        /// The short way comes to where the long one does, and shows no half Service on the way either.
        #[test]
        fn refreshed_targets_end_where_a_whole_comparison_does(
            image in any_image(),
            others in proptest::collection::vec(proptest::collection::btree_set(1u8..8, 0..5), 0..11),
        ) {
            let mut installed = Installed::default();
            for op in diff(&installed, &image) {
                installed.apply(&op);
            }
            let before = seen(&installed);
            let mut next = image.clone();
            let mut refreshed = Vec::new();
            for (target, backends) in others.iter().enumerate().take(image.targets.len()) {
                next.targets[target].backends = backends.iter().copied().map(backend).collect();
                let keys: Vec<FrontendKey> =
                    image.frontends.iter().filter(|(_, of)| **of == target).map(|(key, _)| *key).collect();
                refreshed.push(Refreshed { target, keys });
            }
            let wanted: BTreeMap<FrontendKey, Vec<Backend>> =
                next.frontends.iter().map(|(key, target)| (*key, next.targets[*target].backends.clone())).collect();
            let ops = diff_refreshed(&installed, &next, &refreshed).unwrap();
            for op in ops {
                installed.apply(&op);
                for (key, now) in seen(&installed) {
                    prop_assert!(Some(&now) == before.get(&key) || Some(&now) == wanted.get(&key));
                }
            }
            prop_assert_eq!(seen(&installed), wanted);
            prop_assert!(diff(&installed, &next).is_empty());
        }
    }

    #[test]
    fn what_is_not_installed_is_not_refreshed() {
        let image = MapImage { targets: vec![Target::default()], ..MapImage::default() };
        let refreshed = [Refreshed { target: 0, keys: vec![key(1, 80)] }];
        assert_eq!(diff_refreshed(&Installed::default(), &image, &refreshed), None);
    }

    #[test]
    fn one_endpoint_more_is_one_frontend_write() {
        let image = |backends: &[u8]| MapImage {
            targets: vec![Target {
                backends: backends.iter().copied().map(backend).collect(),
                affinity_seconds: 0,
            }],
            frontends: [(key(1, 80), 0)].into(),
            claimed: [key(1, 80).address].into(),
            nodes: [(key(9, 0).address, NodePlace::Here)].into(),
            ..MapImage::default()
        };
        let mut installed = Installed::default();
        for op in diff(&installed, &image(&[1, 2])) {
            installed.apply(&op);
        }
        let ops = diff(&installed, &image(&[1, 2, 3]));
        let kinds: Vec<&str> = ops
            .iter()
            .map(|op| match op {
                MapOp::PutSlot(..) => "put",
                MapOp::PutFrontend(..) => "move",
                MapOp::DeleteSlot(..) => "delete",
                _ => "other",
            })
            .collect();
        assert_eq!(kinds, ["put", "put", "put", "move", "delete", "delete"]);
    }
}
