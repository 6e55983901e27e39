//! An image being put together in memory, and the OCI archive it is written as.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Compression of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    Gzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    Zstd,
}

/// Media type of an image's manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index of manifests.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `sha256:` and 64 hex digits.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let mut text = String::from("sha256:");
    for byte in hash {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// One layer, packed; copies share the bytes.
#[derive(Clone)]
pub struct Layer {
    compression: Compression,
    packed: Arc<Vec<u8>>,
    digest: String,
    diff_id: String,
}

impl Layer {
    /// A folder's content, sorted, with the owners and modes that it has.
    pub fn from_dir(dir: &Path, compression: Compression) -> Result<Self> {
        let mut tar = tar::Builder::new(Vec::new());
        tar.follow_symlinks(false);
        append_sorted(&mut tar, dir, Path::new(""))?;
        let bytes = tar.into_inner()?;
        let diff_id = digest(&bytes);
        let packed = match compression {
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&bytes)?;
                gzip.finish()?
            }
            Compression::Zstd => zstd::encode_all(&bytes[..], 3)?,
        };
        Ok(Self { compression, digest: digest(&packed), packed: Arc::new(packed), diff_id })
    }

    fn plain(&self) -> Result<Vec<u8>> {
        let mut plain = Vec::new();
        match self.compression {
            Compression::Gzip => {
                flate2::read::MultiGzDecoder::new(self.packed.as_slice()).read_to_end(&mut plain)?;
            }
            Compression::Zstd => plain = zstd::decode_all(self.packed.as_slice())?,
        }
        Ok(plain)
    }

    fn descriptor(&self) -> Value {
        let suffix = if self.compression == Compression::Gzip { "gzip" } else { "zstd" };
        json!({"mediaType": format!("application/vnd.oci.image.layer.v1.tar+{suffix}"),
               "digest": self.digest, "size": self.packed.len()})
    }
}

/// An image being put together in memory.
pub struct ImageBuilder {
    reference: String,
    layers: Vec<Layer>,
    config: Value,
}

impl ImageBuilder {
    /// Starts an image; `config` is the OCI image config's `config` object (Entrypoint, Cmd, Env, User, …).
    pub fn new(reference: &str, config: Value) -> Self {
        Self { reference: reference.to_owned(), layers: Vec::new(), config }
    }

    /// Adds a layer.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Adds a folder's content as one layer, as [`Layer::from_dir`].
    pub fn layer_from_dir(self, dir: &Path, compression: Compression) -> Result<Self> {
        Ok(self.layer(Layer::from_dir(dir, compression)?))
    }

    /// Fixes the image's config and manifest.
    pub fn seal(self) -> Result<Image> {
        let config = serde_json::to_vec(&json!({
            "created": "2026-01-01T00:00:00Z", "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": self.layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        }))?;
        Ok(Image { reference: self.reference, config, manifest, layers: self.layers })
    }

    /// Writes `<path>`, an OCI archive (a tar of an OCI image layout).
    pub fn write(self, path: &Path) -> Result<()> {
        self.seal()?.write(path)
    }
}

/// A finished image.
pub struct Image {
    reference: String,
    config: Vec<u8>,
    /// The manifest's JSON text.
    pub manifest: Vec<u8>,
    layers: Vec<Layer>,
}

impl Image {
    /// Config and layers with their digests, each once.
    pub fn blobs(&self) -> Vec<(String, &[u8])> {
        let mut seen = BTreeSet::new();
        let layers = self.layers.iter().map(|layer| (layer.digest.clone(), layer.packed.as_slice()));
        std::iter::once((digest(&self.config), self.config.as_slice()))
            .chain(layers)
            .filter(|(digest, _)| seen.insert(digest.clone()))
            .collect()
    }

    /// An index of this one manifest, with these annotations (a JSON object).
    pub fn index(&self, annotations: &Value) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [{"mediaType": MANIFEST, "digest": digest(&self.manifest), "size": self.manifest.len(),
                "platform": {"architecture": "amd64", "os": "linux"}, "annotations": annotations}],
        }))?)
    }

    /// Writes `<path>`, an OCI archive (a tar of an OCI image layout).
    pub fn write(&self, path: &Path) -> Result<()> {
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let index = self.index(&json!({
            "org.opencontainers.image.ref.name": tag, "io.containerd.image.name": self.reference}))?;
        let partial = path.with_extension("partial");
        let mut tar = tar::Builder::new(File::create(&partial)?);
        let mut add = |name: &str, bytes: &[u8]| -> Result<()> {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            tar.append_data(&mut header, name, bytes)?;
            Ok(())
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", &index)?;
        let manifest = (digest(&self.manifest), self.manifest.as_slice());
        for (digest, blob) in self.blobs().into_iter().chain([manifest]) {
            add(&digest.replace("sha256:", "blobs/sha256/"), blob)?;
        }
        tar.finish()?;
        fs::rename(&partial, path)?;
        Ok(())
    }
}

impl Image {
    /// Writes `<path>` as `docker save` did before it wrote OCI layouts: layers uncompressed.
    pub fn write_docker(&self, path: &Path) -> Result<()> {
        let mut tar = tar::Builder::new(File::create(path)?);
        let mut add = |name: &str, bytes: &[u8]| -> Result<()> {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes)?;
            Ok(())
        };
        let config = format!("{}.json", digest(&self.config).trim_start_matches("sha256:"));
        let mut names = Vec::new();
        for (n, layer) in self.layers.iter().enumerate() {
            let name = format!("{n}/layer.tar");
            add(&name, &layer.plain()?)?;
            names.push(name);
        }
        add(&config, &self.config)?;
        let manifest = json!([{"Config": config, "RepoTags": [self.reference], "Layers": names}]);
        add("manifest.json", &serde_json::to_vec(&manifest)?)?;
        tar.finish()?;
        Ok(())
    }
}

fn append_sorted(tar: &mut tar::Builder<Vec<u8>>, root: &Path, at: &Path) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(root.join(at))?.collect::<std::io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let inner = at.join(entry.file_name());
        let path = root.join(&inner);
        let meta = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
        header.set_mtime(0);
        header.set_uid(u64::from(meta.uid()));
        header.set_gid(u64::from(meta.gid()));
        if meta.is_dir() {
            tar.append_data(&mut header, &inner, std::io::empty())?;
            append_sorted(tar, root, &inner)?;
        } else if meta.is_symlink() {
            tar.append_link(&mut header, &inner, fs::read_link(&path)?)?;
        } else if meta.is_file() {
            tar.append_data(&mut header, &inner, File::open(&path)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_setuid_program_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("program"), "x").unwrap();
        fs::set_permissions(dir.path().join("program"), fs::Permissions::from_mode(0o6755)).unwrap();
        let layer = Layer::from_dir(dir.path(), Compression::Zstd).unwrap();
        let bytes = zstd::decode_all(layer.packed.as_slice()).unwrap();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let entry = tar.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(entry.header().mode().unwrap() & 0o7777, 0o6755);
        assert_eq!(digest(&bytes), layer.diff_id);
    }

    #[test]
    fn a_layer_used_twice_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let layer = Layer::from_dir(dir.path(), Compression::Gzip).unwrap();
        let image = ImageBuilder::new("a/b:c", json!({})).layer(layer.clone()).layer(layer).seal().unwrap();
        assert_eq!(image.blobs().len(), 2);
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(manifest["layers"].as_array().unwrap().len(), 2);
    }
}
