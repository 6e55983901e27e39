//! Capacity of the node, and what of it pods may have.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_quantity::{self as quantity, Format};

use super::MachineInfo;
use super::pressure::Thresholds;

/// `status.capacity` and `status.allocatable`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    cpus: u64,
    /// Bytes.
    pub(super) memory: u64,
    /// Bytes of the filesystem of the kubelet's root folder.
    ephemeral_storage: u64,
    pods: u32,
    hugepages: Vec<(u64, u64)>,
    /// Bytes held back by the hard eviction threshold `memory.available`.
    memory_reserved: u64,
    /// Bytes held back by the hard eviction threshold `nodefs.available`.
    storage_reserved: u64,
}

impl Capacity {
    /// Capacity of `machine`, with `ephemeral_storage` bytes of disk; thresholds are held back from allocatable
    /// (upstream's node allocatable: capacity less reservations less hard eviction thresholds).
    pub fn new(machine: &MachineInfo, ephemeral_storage: u64, pods: u32, thresholds: &Thresholds) -> Self {
        Self {
            cpus: machine.cpus,
            memory: machine.memory,
            ephemeral_storage,
            pods,
            hugepages: machine.hugepages.clone(),
            memory_reserved: thresholds.memory_available.of(machine.memory),
            storage_reserved: thresholds.nodefs_available.of(ephemeral_storage),
        }
    }

    /// `status.capacity`.
    pub fn capacity(&self) -> BTreeMap<String, Quantity> {
        let memory = format!("{}Ki", self.memory / 1024);
        self.list(memory, format!("{}Ki", self.ephemeral_storage / 1024))
    }

    /// `status.allocatable`. Memory set aside for huge pages is not there for anything else.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        let huge: u64 = self.hugepages.iter().map(|(size, count)| size.saturating_mul(*count)).sum();
        let memory = self.memory.saturating_sub(self.memory_reserved).saturating_sub(huge);
        let storage = self.ephemeral_storage.saturating_sub(self.storage_reserved);
        self.list(format!("{}Ki", memory / 1024), storage.to_string())
    }

    fn list(&self, memory: String, ephemeral_storage: String) -> BTreeMap<String, Quantity> {
        let mut list = BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            ("memory".to_owned(), Quantity(memory)),
            ("ephemeral-storage".to_owned(), Quantity(ephemeral_storage)),
            ("pods".to_owned(), Quantity(self.pods.to_string())),
        ]);
        for (size, count) in &self.hugepages {
            let name = format!("hugepages-{}", binary(*size));
            list.insert(name, Quantity(binary(size.saturating_mul(*count))));
        }
        list
    }
}

/// Whether a resource is one that others write into the node's status, as for a device (`IsExtendedResourceName`).
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// Bytes in canonical form.
fn binary(bytes: u64) -> String {
    quantity::Quantity::with_format(i64::try_from(bytes).unwrap_or(i64::MAX), Format::BinarySi).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &BTreeMap<String, Quantity>, expected: &[(&str, &str)]) {
        for (name, value) in expected {
            assert_eq!(list.get(*name).map(|q| q.0.as_str()), Some(*value), "{name}");
        }
        assert_eq!(list.len(), expected.len());
    }

    #[test]
    fn allocatable_holds_back_thresholds_and_huge_pages() {
        let machine = MachineInfo {
            cpus: 4,
            memory: 8 << 30,
            hugepages: vec![(2 << 20, 512), (1 << 30, 0)],
            ..MachineInfo::default()
        };
        let capacity = Capacity::new(&machine, 100 << 30, 110, &Thresholds::default());
        check(
            &capacity.capacity(),
            &[
                ("cpu", "4"),
                ("memory", "8388608Ki"),
                ("ephemeral-storage", "104857600Ki"),
                ("pods", "110"),
                ("hugepages-2Mi", "1Gi"),
                ("hugepages-1Gi", "0"),
            ],
        );
        check(
            &capacity.allocatable(),
            &[
                ("cpu", "4"),
                ("memory", "7237632Ki"),
                ("ephemeral-storage", "96636764160"),
                ("pods", "110"),
                ("hugepages-2Mi", "1Gi"),
                ("hugepages-1Gi", "0"),
            ],
        );
    }
}
