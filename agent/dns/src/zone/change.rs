//! What a watch says of the objects behind the zone.

use serde::{Deserialize, Serialize};

use super::{ObjectKey, ServiceEntry, SliceEntry, Zone};

/// A change of one kind of object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change<E> {
    /// An object was added or replaced.
    Apply(ObjectKey, E),
    /// An object is gone, or has nothing to say any more.
    Delete(ObjectKey),
    /// These are all.
    Replace(Vec<(ObjectKey, E)>),
}

/// A change of the zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZoneChange {
    /// Of its services.
    Services(Change<ServiceEntry>),
    /// Of its endpoint slices.
    Slices(Change<SliceEntry>),
}

impl Zone {
    /// Does what a change says.
    pub fn apply(&mut self, change: ZoneChange) {
        match change {
            ZoneChange::Services(Change::Apply(key, entry)) => self.apply_service(key, entry),
            ZoneChange::Services(Change::Delete(key)) => self.delete_service(&key),
            ZoneChange::Services(Change::Replace(all)) => self.replace_services(all),
            ZoneChange::Slices(Change::Apply(key, entry)) => self.apply_slice(key, entry),
            ZoneChange::Slices(Change::Delete(key)) => self.delete_slice(&key),
            ZoneChange::Slices(Change::Replace(all)) => self.replace_slices(all),
        }
    }
}
