//! What a write makes of the owners of fields (`merge/update.go`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::element::{Path, print_path};
use super::set::{Filter, Set};
use super::typed::{Comparison, Typed, ValidationErrors, reconcile};
use super::types::{TypeId, Types};
use super::value::equals;

/// What a manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionedSet {
    /// The fields.
    pub set: Set,
    /// `apiVersion` whose types the paths are of.
    pub version: String,
    /// By an apply, rather than by other writes.
    pub applied: bool,
}

/// What each manager owns.
pub type Managers = BTreeMap<String, VersionedSet>;

/// The versions of a kind.
pub trait Versions {
    /// The type of the kind in an `apiVersion`; `None` if that is not (or no more) served.
    fn type_of(&self, version: &str) -> Option<(&Types, TypeId)>;

    /// An object in another of the served versions.
    fn convert(&self, object: &Value, version: &str) -> Result<Value, String>;
}

/// A field that somebody else owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The owner.
    pub manager: String,
    /// The field.
    pub path: Path,
}

/// All fields that somebody else owns; prints as upstream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl Conflicts {
    /// The fields.
    pub fn set(&self) -> Set {
        Set::new(self.0.iter().map(|conflict| conflict.path.clone()))
    }

    fn of(managers: &Managers) -> Self {
        let all = managers.iter().flat_map(|(manager, owned)| {
            owned.set.paths().into_iter().map(|path| Conflict { manager: manager.clone(), path })
        });
        Self(all.collect())
    }
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0.as_slice() {
            return write!(f, "conflict with {:?}: {}", one.manager, print_path(&one.path));
        }
        let mut by_manager: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
        for conflict in &self.0 {
            by_manager.entry(&conflict.manager).or_default().push(&conflict.path);
        }
        let mut lines = Vec::new();
        for (manager, paths) in by_manager {
            lines.push(format!("conflicts with {manager:?}:"));
            lines.extend(paths.iter().map(|path| format!("- {}", print_path(path))));
        }
        f.write_str(&lines.join("\n"))
    }
}

/// Why owners can't be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// Others own what the configuration sets.
    #[error("{0}")]
    Conflicts(Conflicts),
    /// A value does not fit its type.
    #[error("{doing}: {errors}")]
    Invalid {
        /// What was being done.
        doing: Cow<'static, str>,
        /// What is wrong.
        errors: ValidationErrors,
    },
    /// An object has no form in another version.
    #[error("{doing}: {why}")]
    Convert {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        why: String,
    },
}

/// Computes owners. `filters` says, by version, which fields a request can't change whatever it sends.
pub struct Updater<'a> {
    /// The kind's versions.
    pub versions: &'a dyn Versions,
    /// By `apiVersion`.
    pub filters: &'a BTreeMap<String, Filter>,
}

impl<'a> Updater<'a> {
    /// Owners after `manager` has changed `live` into `new`, both of `version`: changed fields are its own from now
    /// on, and nobody else's.
    pub fn update(
        &self,
        live: &Typed<'_>,
        new: &Typed<'_>,
        version: &str,
        managers: Managers,
        manager: &str,
    ) -> Result<Managers, UpdateError> {
        let managers = self.reconciled(managers);
        let (mut managers, changes) = self.take(live, new, version, managers, manager, true)?;
        let own = managers.remove(manager).map(|owned| owned.set).unwrap_or_default();
        let set = own.difference(&changes.removed).union(changes.modified).union(changes.added);
        let set = match self.filters.get(version) {
            Some(filter) => filter.apply(&set),
            None => set,
        };
        if !set.is_empty() {
            let owned = VersionedSet { set, version: version.to_owned(), applied: false };
            managers.insert(manager.to_owned(), owned);
        }
        Ok(managers)
    }

    /// The object and its owners after `manager` has applied `config`, all of `version`. The object is `None` if it
    /// stays as it is.
    pub fn apply(
        &self,
        live: &Typed<'a>,
        config: &Typed<'a>,
        version: &str,
        managers: Managers,
        manager: &str,
        force: bool,
    ) -> Result<(Option<Typed<'a>>, Managers), UpdateError> {
        let mut managers = self.reconciled(managers);
        let merged = live
            .merge(config)
            .map_err(|errors| UpdateError::Invalid { doing: "failed to merge config".into(), errors })?;
        let set = config.field_set();
        let set = match self.filters.get(version) {
            Some(filter) => filter.apply(&set),
            None => set,
        };
        let owned = VersionedSet { set, version: version.to_owned(), applied: true };
        let last = managers.insert(manager.to_owned(), owned);
        let new = self.prune(merged, &managers, version, last.as_ref())?;
        let (managers, _) = self.take(live, &new, version, managers, manager, force)?;
        let changed = !equals(live.value(), new.value());
        Ok((changed.then_some(new), managers))
    }

    /// Takes what changed from everybody but `manager`.
    fn take(
        &self,
        live: &Typed<'_>,
        new: &Typed<'_>,
        version: &str,
        mut managers: Managers,
        manager: &str,
        force: bool,
    ) -> Result<(Managers, Comparison), UpdateError> {
        let compare = |live: &Typed<'_>, new: &Typed<'_>, version: &str| {
            live.compare(new)
                .map(|changes| changes.filtered(self.filters.get(version)))
                .map_err(|errors| UpdateError::Invalid { doing: "failed to compare objects".into(), errors })
        };
        let mut changes = BTreeMap::from([(version.to_owned(), compare(live, new, version)?)]);
        let others: Vec<String> = managers.values().map(|owned| owned.version.clone()).collect();
        for other in others {
            if changes.contains_key(&other) || self.versions.type_of(&other).is_none() {
                continue;
            }
            let live = self.convert(live, &other, "failed to convert old object")?;
            let new = self.convert(new, &other, "failed to convert new object")?;
            let changed = compare(&live, &new, &other)?;
            changes.insert(other, changed);
        }
        // Fields of a version that is served no more belong to nobody.
        managers.retain(|name, owned| name == manager || changes.contains_key(&owned.version));

        let mut conflicts = Managers::new();
        for (name, owned) in managers.iter().filter(|(name, _)| *name != manager) {
            let changed = &changes[&owned.version];
            let set = owned.set.intersection(&changed.modified).union(owned.set.intersection(&changed.added));
            if !set.is_empty() {
                let conflict = VersionedSet { set, version: owned.version.clone(), applied: false };
                conflicts.insert(name.clone(), conflict);
            }
        }
        if !force && !conflicts.is_empty() {
            return Err(UpdateError::Conflicts(Conflicts::of(&conflicts)));
        }
        for (name, owned) in managers.iter_mut().filter(|(name, _)| *name != manager) {
            if let Some(conflict) = conflicts.get(name) {
                owned.set = owned.set.difference(&conflict.set);
            }
            let removed = &changes[&owned.version].removed;
            if !removed.is_empty() {
                owned.set = owned.set.difference(removed);
            }
        }
        managers.retain(|_, owned| !owned.set.is_empty());
        let changes = changes.remove(version).unwrap_or_default();
        Ok((managers, changes))
    }

    /// Removes what the manager applied the last time, does not apply now, and nobody else owns.
    fn prune(
        &self,
        merged: Typed<'a>,
        managers: &Managers,
        version: &str,
        last: Option<&VersionedSet>,
    ) -> Result<Typed<'a>, UpdateError> {
        let Some(last) = last.filter(|last| !last.set.is_empty()) else { return Ok(merged) };
        if self.versions.type_of(&last.version).is_none() {
            return Ok(merged);
        }
        let merged = self
            .convert(&merged, &last.version, "failed to convert merged object to last applied version")?
            .into_owned();
        let last_set = last.set.with_named_fields(merged.types(), merged.id());
        let pruned = merged.without(&last_set);
        let pruned = self.add_back_owned(&merged, pruned, managers, &last.version)?;
        // What the manager did not own before is not its to remove.
        let pruned =
            self.convert(&pruned, &last.version, "failed to convert pruned object to last applied version")?;
        let named = |typed: &Typed<'_>| typed.field_set().with_named_fields(merged.types(), merged.id());
        let lost = named(&merged).difference(&named(&pruned)).intersection(&last_set);
        let pruned = merged.without(&lost);
        Ok(self.convert(&pruned, version, "failed to convert pruned object")?.into_owned())
    }

    /// Puts back what pruning removed and anybody (the manager with its new configuration, too) owns.
    fn add_back_owned(
        &self,
        merged: &Typed<'a>,
        mut pruned: Typed<'a>,
        managers: &Managers,
        pruned_version: &str,
    ) -> Result<Typed<'a>, UpdateError> {
        let mut by_version: BTreeMap<&str, Set> = BTreeMap::new();
        for owned in managers.values() {
            let all = by_version.entry(&owned.version).or_default();
            *all = std::mem::take(all).union(owned.set.clone());
        }
        // The pruned version goes first: conversion may need what was pruned.
        let first = by_version.remove_entry(pruned_version);
        let mut merged = merged.clone();
        for (version, owned) in first.into_iter().chain(by_version) {
            if self.versions.type_of(version).is_none() {
                continue;
            }
            merged = self.convert(&merged, version, "failed to convert merged object")?.into_owned();
            pruned = self.convert(&pruned, version, "failed to convert pruned object")?.into_owned();
            let (types, id) = (merged.types(), merged.id());
            let all = merged.field_set().with_named_fields(types, id);
            let kept = pruned.field_set().with_named_fields(types, id);
            pruned = merged.without(&all.difference(&kept.union(owned.with_named_fields(types, id))));
        }
        Ok(pruned)
    }

    /// The object in a version, which must be served.
    fn convert<'o, 't>(
        &self,
        object: &'o Typed<'t>,
        version: &str,
        doing: &'static str,
    ) -> Result<Cow<'o, Typed<'t>>, UpdateError>
    where
        'a: 't,
    {
        if object.value()["apiVersion"] == version {
            return Ok(Cow::Borrowed(object));
        }
        let convert = |why: String| UpdateError::Convert { doing, why };
        let (types, id) =
            self.versions.type_of(version).ok_or_else(|| convert(format!("no version {version}")))?;
        let value = self.versions.convert(object.value(), version).map_err(convert)?;
        Typed::new(types, id, Cow::Owned(value), false)
            .map(Cow::Owned)
            .map_err(|errors| UpdateError::Invalid { doing: doing.into(), errors })
    }

    /// Owners by today's types.
    fn reconciled(&self, mut managers: Managers) -> Managers {
        managers.retain(|_, owned| {
            let Some((types, id)) = self.versions.type_of(&owned.version) else { return false };
            if let Some(set) = reconcile(types, id, &owned.set) {
                owned.set = set;
            }
            true
        });
        managers
    }
}
