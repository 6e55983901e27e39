//! The parts of the published OpenAPI v3 documents that are facts: no descriptions, no paths.

use anyhow::{Context, Result};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// Every component schema of every document, by name.
#[derive(Debug)]
pub struct Documents(BTreeMap<String, Value>);

impl Documents {
    /// Reads all documents of a folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut schemas = BTreeMap::new();
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .with_context(|| format!("cannot list {}", folder.display()))?
            .collect::<Result<_, _>>()?;
        files.sort_by_key(std::fs::DirEntry::file_name);
        for file in files {
            let mut document: Value = serde_json::from_slice(&std::fs::read(file.path())?)
                .with_context(|| format!("{} is not JSON", file.path().display()))?;
            if let Value::Object(found) = document["components"]["schemas"].take() {
                schemas.extend(found);
            }
        }
        Ok(Self(schemas))
    }

    /// The schema of a type such as `io.k8s.api.core.v1.Pod`; `None` for types that are not served.
    pub fn schema(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }
}
