//! All rows, found by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Resource;
use crate::meta::{GroupResource, GroupVersionKind};

/// The rows that are served. A value: a resource defined at run time makes a new table.
#[derive(Clone, Default)]
pub struct ResourceTable {
    rows: Vec<Arc<Resource>>,
    by_name: BTreeMap<GroupResource, usize>,
}

impl ResourceTable {
    /// The built-in resources.
    pub fn builtin() -> Self {
        Self::new(super::builtin::rows())
    }

    /// A table of these rows; a later row replaces an earlier one of the same group and plural.
    pub fn new(rows: impl IntoIterator<Item = Resource>) -> Self {
        let mut table = Self::default();
        rows.into_iter().for_each(|row| table.insert(row));
        table
    }

    /// Adds or replaces a row.
    pub fn insert(&mut self, row: Resource) {
        let name = row.group_resource();
        match self.by_name.get(&name) {
            Some(at) => self.rows[*at] = Arc::new(row),
            None => {
                self.by_name.insert(name, self.rows.len());
                self.rows.push(Arc::new(row));
            }
        }
    }

    /// All rows, in the order of their definition.
    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    /// By group and plural.
    pub fn get(&self, resource: &GroupResource) -> Option<&Arc<Resource>> {
        self.by_name.get(resource).map(|at| &self.rows[*at])
    }

    /// By group, served version and plural: the row as that version has it.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let row = self.get(&GroupResource::new(group, plural))?;
        row.versions.iter().any(|v| v == version).then(|| row.views.get(version).unwrap_or(row))
    }

    /// By group, served version and kind.
    pub fn find_kind(&self, gvk: &GroupVersionKind) -> Option<&Arc<Resource>> {
        self.rows
            .iter()
            .find(|row| row.group == gvk.group && row.kind == gvk.kind && row.versions.contains(&gvk.version))
    }

    /// Groups with their versions, preferred first; core is the empty group. In the order of definition.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for row in &self.rows {
            let at = groups.iter().position(|(g, _)| *g == row.group).unwrap_or_else(|| {
                groups.push((row.group.clone(), Vec::new()));
                groups.len() - 1
            });
            for version in &row.versions {
                if !groups[at].1.contains(version) {
                    groups[at].1.push(version.clone());
                }
            }
            if row.custom.is_some() {
                groups[at].1.sort_by(|a, b| crate::custom::version_order(a, b));
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_whole() {
        let table = ResourceTable::builtin();
        for row in table.rows() {
            assert!(row.versions.contains(&row.storage_version), "{}", row.plural);
            assert!(row.is_virtual || table.get(&row.storage).is_some(), "{}", row.plural);
            assert_eq!(row.plural, row.plural.to_lowercase());
        }
        assert!(table.find("apps", "v1", "deployments").is_some());
        assert!(table.find("apps", "v1beta1", "deployments").is_none());
        assert_eq!(table.groups()[0], (String::new(), vec!["v1".to_owned()]));
    }

    #[test]
    fn short_names_are_unique() {
        let mut seen = BTreeMap::new();
        for row in ResourceTable::builtin().rows() {
            for short in &row.short_names {
                let name = row.storage.to_string();
                let first = seen.entry(short.clone()).or_insert_with(|| name.clone());
                assert_eq!(*first, name, "short name {short}");
            }
        }
    }
}
