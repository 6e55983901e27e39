//! What images there are: one JSON file, replaced atomically, and the names that find them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use keelson_cri::{Image, ImageConfig};
use oci_spec::distribution::Reference;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::ImageError;
use crate::digest::Digest;

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// `sha256:…` of the config.
    pub(crate) id: String,
    /// diff_ids, the lowest layer first.
    pub(crate) layers: Vec<String>,
    /// Bytes of file content in all layers.
    pub(crate) size: u64,
    /// `registry/repository:tag`.
    pub(crate) tags: BTreeSet<String>,
    /// `registry/repository@sha256:…`.
    pub(crate) digests: BTreeSet<String>,
    /// What containers are made from.
    pub(crate) config: ImageConfig,
}

impl Record {
    /// As the kubelet sees it.
    pub(crate) fn image(&self) -> Image {
        let user = self.config.user.split(':').next().unwrap_or_default();
        let uid = user.parse().ok();
        Image {
            id: self.id.clone(),
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: self.digests.iter().cloned().collect(),
            size: self.size,
            uid,
            username: if uid.is_none() { user.to_owned() } else { String::new() },
        }
    }
}

/// All images by id.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Index {
    images: BTreeMap<String, Record>,
}

impl Index {
    /// Reads the file; a missing one is an empty index.
    pub(crate) fn load(path: &Path) -> Result<Self, ImageError> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| ImageError::Malformed {
                what: path.display().to_string(),
                reason: e.to_string(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(ImageError::io("read", path)(error)),
        }
    }

    /// Replaces the file; after a crash it is the old one or the new one.
    pub(crate) fn save(&self, path: &Path) -> Result<(), ImageError> {
        let partial = path.with_extension("partial");
        let bytes = serde_json::to_vec(self)
            .map_err(|e| ImageError::Malformed { what: "image index".into(), reason: e.to_string() })?;
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&partial, path)
        };
        write().map_err(ImageError::io("write", path))
    }

    /// Adds an image or its new names. A tag moves away from the image that had it.
    pub(crate) fn put(&mut self, record: Record) -> Record {
        for other in self.images.values_mut() {
            if other.id != record.id {
                other.tags.retain(|tag| !record.tags.contains(tag));
            }
        }
        let kept = self.images.entry(record.id.clone()).or_insert_with(|| record.clone());
        kept.tags.extend(record.tags);
        kept.digests.extend(record.digests);
        kept.clone()
    }

    /// The image that an id, tag or digest reference names.
    pub(crate) fn find(&self, reference: &str) -> Result<Option<&Record>, ImageError> {
        if let Some(record) = self.images.get(reference) {
            return Ok(Some(record));
        }
        if reference.starts_with("sha256:") {
            return Ok(None);
        }
        let name = canonical(&parse(reference)?);
        Ok(self.images.values().find(|record| record.tags.contains(&name) || record.digests.contains(&name)))
    }

    /// Takes an image away.
    pub(crate) fn remove(&mut self, id: &str) -> Option<Record> {
        self.images.remove(id)
    }

    /// All images.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Record> {
        self.images.values()
    }
}

/// Parses a reference as users write it: `nginx` is `docker.io/library/nginx:latest`.
pub(crate) fn parse(reference: &str) -> Result<Reference, ImageError> {
    Reference::try_from(reference)
        .map_err(|e| ImageError::Reference { reference: reference.to_owned(), reason: e.to_string() })
}

/// `registry/repository@digest` when there is a digest, else `registry/repository:tag`.
pub(crate) fn canonical(reference: &Reference) -> String {
    let name = format!("{}/{}", reference.registry(), reference.repository());
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, Some(tag)) => format!("{name}:{tag}"),
        (None, None) => format!("{name}:latest"),
    }
}

/// Reads an image config; gives its diff_ids and what a container needs of it.
pub(crate) fn read_config(bytes: &[u8]) -> Result<(Vec<Digest>, ImageConfig), ImageError> {
    let malformed = |reason: String| ImageError::Malformed { what: "image config".into(), reason };
    let parsed = ImageConfiguration::from_reader(bytes).map_err(|e| malformed(e.to_string()))?;
    let ours = std::env::consts::ARCH;
    let theirs = match parsed.architecture().to_string().as_str() {
        "amd64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        other => other.to_owned(),
    };
    if theirs != ours {
        return Err(malformed(format!("it is for {theirs}, this machine is {ours}")));
    }
    let diff_ids = parsed.rootfs().diff_ids().iter().map(|id| Digest::parse(id)).collect::<Result<_, _>>()?;
    let config = parsed.config().clone().unwrap_or_default();
    Ok((
        diff_ids,
        ImageConfig {
            user: config.user().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            working_dir: config.working_dir().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().filter(|signal| !signal.is_empty()),
            volumes: config.volumes().clone().unwrap_or_default(),
            labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_canonical() {
        let check = |given: &str, expected: &str| assert_eq!(canonical(&parse(given).unwrap()), expected);
        check("nginx", "docker.io/library/nginx:latest");
        check("keelson.test/app:v1", "keelson.test/app:v1");
        check("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest");
        let digest = format!("sha256:{}", "0".repeat(64));
        check(&format!("nginx:1@{digest}"), &format!("docker.io/library/nginx@{digest}"));
        assert!(parse("Bad Name").is_err());
    }

    #[test]
    fn a_tag_moves_to_the_newer_image() {
        let record = |id: &str, tag: &str| Record {
            id: id.into(),
            layers: vec![],
            size: 0,
            tags: [tag.to_owned()].into(),
            digests: BTreeSet::new(),
            config: ImageConfig::default(),
        };
        let mut index = Index::default();
        index.put(record("sha256:1", "docker.io/library/a:latest"));
        index.put(record("sha256:2", "docker.io/library/a:latest"));
        assert_eq!(index.find("a").unwrap().unwrap().id, "sha256:2");
        assert!(index.find("sha256:1").unwrap().unwrap().tags.is_empty());
    }
}
