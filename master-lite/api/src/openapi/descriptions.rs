//! Descriptions of types and fields, packed at build time out of k8s-openapi's schemas.

use flate2::read::DeflateDecoder;
use std::{collections::HashMap, io::Read};

const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.deflate"));

/// Unpacked descriptions. About two megabytes: keep one only as long as a document is made.
#[derive(Debug, Default)]
pub struct Descriptions {
    text: String,
    /// Byte ranges of `text` by type and field.
    places: HashMap<(usize, usize), (usize, usize)>,
    /// Number of each type name and field name in `places`.
    names: HashMap<String, usize>,
}

impl Descriptions {
    /// Unpacks them.
    pub fn load() -> Self {
        let mut text = String::new();
        // The bytes are part of the binary; were they damaged, documents would lack descriptions and no more.
        if DeflateDecoder::new(PACKED).read_to_string(&mut text).is_err() {
            return Self::default();
        }
        let mut places = HashMap::new();
        let mut names = HashMap::new();
        let mut number = |name: &str| {
            let next = names.len();
            *names.entry(name.to_owned()).or_insert(next)
        };
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let mut parts = line.trim_end_matches('\n').splitn(3, '\t');
            if let (Some(name), Some(field), Some(_)) = (parts.next(), parts.next(), parts.next()) {
                let from = start + name.len() + field.len() + 2;
                places.insert((number(name), number(field)), (from, start + line.len() - 1));
            }
            start += line.len();
        }
        Self { text, places, names }
    }

    /// Description of a type.
    pub fn of_type(&self, name: &str) -> Option<String> {
        self.of_field(name, "")
    }

    /// Description of a field of a type.
    pub fn of_field(&self, name: &str, field: &str) -> Option<String> {
        let key = (*self.names.get(name)?, *self.names.get(field)?);
        let (from, to) = *self.places.get(&key)?;
        let packed = self.text.get(from..to)?;
        Some(packed.replace("\\n", "\n").replace("\\\\", "\\"))
    }
}
