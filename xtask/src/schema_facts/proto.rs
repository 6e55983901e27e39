//! A reader for the subset of proto2 that go-to-protobuf writes.

use anyhow::{Context, Result};
use std::{collections::BTreeMap, path::Path};

/// Field numbers by message name and field name.
#[derive(Debug, Default)]
pub struct Messages(BTreeMap<String, BTreeMap<String, u32>>);

impl Messages {
    /// Reads `generated.proto` of one package.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("generated.proto");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut messages = BTreeMap::<String, BTreeMap<String, u32>>::new();
        let mut current: Option<String> = None;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            if let Some(name) = line.strip_prefix("message ").and_then(|rest| rest.strip_suffix(" {")) {
                messages.entry(name.to_owned()).or_default();
                current = Some(name.to_owned());
            } else if line == "}" {
                current = None;
            } else if let (Some(message), Some((left, right))) = (&current, line.split_once(" = "))
                && let (Some(name), Ok(number)) =
                    (left.split_whitespace().last(), right.trim_end_matches(';').parse())
            {
                messages.entry(message.clone()).or_default().insert(name.to_owned(), number);
            }
        }
        Self(messages)
    }

    /// Whether the package has a message of this name.
    pub fn has(&self, message: &str) -> bool {
        self.0.contains_key(message)
    }

    /// The number of a field.
    pub fn number(&self, message: &str, field: &str) -> Option<u32> {
        self.0.get(message)?.get(field).copied()
    }
}
