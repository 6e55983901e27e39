//! Archives: a tar of an OCI image layout, or what `docker save` writes. Read in place, by offset.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};

use oci_spec::image::{ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::ImageError;
use crate::digest::Digest;
use crate::index::{canonical, parse};
use crate::registry::choose_platform;
use crate::store::{Parts, unpack_verified};
use crate::unpack::{Limits, decompress, is_compressed, unpack_checked};

/// Largest document (index, manifest, config) that is read into memory.
const MAX_DOCUMENT: u64 = 4 << 20;
/// More entries than any image has layers.
const MAX_ENTRIES: usize = 100_000;

/// An image of an archive.
pub(crate) struct Found {
    pub(crate) parts: Parts,
    pub(crate) layers: Vec<Layer>,
}

/// Where a layer's bytes are in the archive.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    offset: u64,
    size: u64,
    /// Digest of the bytes, where the archive states one.
    digest: Option<Digest>,
}

impl Layer {
    pub(crate) fn unpack(
        &self,
        archive: &Path,
        into: &Path,
        limits: Limits,
        diff_id: &Digest,
    ) -> Result<u64, ImageError> {
        let mut file = File::open(archive).map_err(ImageError::io("open", archive))?;
        file.seek(SeekFrom::Start(self.offset)).map_err(ImageError::io("read", archive))?;
        match &self.digest {
            Some(digest) => unpack_verified(file.take(self.size), digest, self.size, into, limits, diff_id),
            None => unpack_checked(file.take(self.size), into, limits, diff_id),
        }
    }
}

/// Finds the images of an archive.
pub(crate) async fn read(path: &Path) -> Result<Vec<Found>, ImageError> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || Archive::open(&path)?.images()).await.unwrap_or_else(|panic| {
        Err(ImageError::Malformed { what: "archive".into(), reason: panic.to_string() })
    })
}

/// A path within the archive, as its entries are known by: without `.`, `..` and what leads out of it.
fn inside(path: &Path) -> String {
    let mut names: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.extend(name.to_str()),
            Component::ParentDir => drop(names.pop()),
            _ => {}
        }
    }
    names.join("/")
}

/// The archive without its compression, in a file of its own; none when it has none.
pub(crate) async fn decompressed(
    path: &Path,
    tmp: &Path,
    limits: Limits,
) -> Result<Option<tempfile::NamedTempFile>, ImageError> {
    let (path, tmp) = (path.to_owned(), tmp.to_owned());
    let work = move || {
        let mut file = File::open(&path).map_err(ImageError::io("open", &path))?;
        let mut magic = [0; 4];
        let short = file.read_exact(&mut magic).is_err();
        if short || !is_compressed(&magic) {
            return Ok(None);
        }
        file.rewind().map_err(ImageError::io("read", &path))?;
        let mut plain = tempfile::NamedTempFile::new_in(&tmp).map_err(ImageError::io("make", &tmp))?;
        let mut bytes = decompress(file)?.take(limits.bytes.saturating_add(1));
        let copied = std::io::copy(&mut bytes, &mut plain).map_err(ImageError::io("decompress", &path))?;
        if copied > limits.bytes {
            return Err(ImageError::TooLarge { limit: limits.bytes, unit: "bytes" });
        }
        Ok(Some(plain))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        Err(ImageError::Malformed { what: "archive".into(), reason: panic.to_string() })
    })
}

struct Archive {
    name: String,
    file: File,
    entries: HashMap<String, (u64, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::io("open", path))?;
        let mut entries = HashMap::new();
        let mut links = Vec::new();
        let mut tar = tar::Archive::new(&file);
        for entry in tar.entries_with_seek().map_err(ImageError::Read)? {
            let entry = entry.map_err(ImageError::Read)?;
            let kind = entry.header().entry_type();
            let name = inside(&entry.path().map_err(ImageError::Read)?);
            if kind.is_file() {
                entries.insert(name, (entry.raw_file_position(), entry.size()));
            } else if let Some(target) = entry.link_name().map_err(ImageError::Read)? {
                // `docker save` has written a layer that comes twice as a link.
                let from = if kind.is_symlink() { Path::new(&name).parent() } else { None };
                let target = inside(&from.unwrap_or(Path::new("")).join(target));
                links.push((name, target));
            }
            if entries.len() + links.len() > MAX_ENTRIES {
                return Err(ImageError::TooLarge { limit: MAX_ENTRIES as u64, unit: "entries" });
            }
        }
        for (name, target) in links {
            if let Some(place) = entries.get(&target).copied() {
                entries.insert(name, place);
            }
        }
        Ok(Self { name: path.display().to_string(), file, entries })
    }

    fn malformed(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Malformed { what: self.name.clone(), reason: reason.into() }
    }

    fn document(&mut self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (offset, size) =
            *self.entries.get(name).ok_or_else(|| self.malformed(format!("{name} is missing")))?;
        if size > MAX_DOCUMENT {
            return Err(ImageError::TooLarge { limit: MAX_DOCUMENT, unit: "bytes of a document" });
        }
        self.file.seek(SeekFrom::Start(offset)).map_err(ImageError::Read)?;
        let mut bytes = Vec::new();
        (&self.file).take(size).read_to_end(&mut bytes).map_err(ImageError::Read)?;
        Ok(bytes)
    }

    fn blob(&mut self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let bytes = self.document(&format!("blobs/sha256/{}", digest.hex()))?;
        let found = Digest::of(&bytes);
        if &found == digest {
            Ok(bytes)
        } else {
            Err(ImageError::Mismatch {
                what: format!("a blob of {}", self.name),
                expected: digest.as_str().into(),
                found: found.as_str().into(),
            })
        }
    }

    fn images(mut self) -> Result<Vec<Found>, ImageError> {
        if self.entries.contains_key("index.json") {
            self.oci()
        } else if self.entries.contains_key("manifest.json") {
            self.docker()
        } else {
            Err(self
                .malformed("neither an OCI image layout (index.json) nor a docker archive (manifest.json)"))
        }
    }

    fn oci(&mut self) -> Result<Vec<Found>, ImageError> {
        let bytes = self.document("index.json")?;
        let index = ImageIndex::from_reader(&bytes[..]).map_err(|e| self.malformed(e.to_string()))?;
        let mut found = Vec::new();
        for descriptor in index.manifests() {
            let named = Digest::parse(descriptor.digest().as_ref())?;
            let mut bytes = self.blob(&named)?;
            if let Some(inner) = choose_platform(&bytes)? {
                bytes = self.blob(&inner)?;
            }
            let manifest =
                ImageManifest::from_reader(&bytes[..]).map_err(|e| self.malformed(e.to_string()))?;
            let config = self.blob(&Digest::parse(manifest.config().digest().as_ref())?)?;
            let mut layers = Vec::new();
            for layer in manifest.layers() {
                let digest = Digest::parse(layer.digest().as_ref())?;
                let name = format!("blobs/sha256/{}", digest.hex());
                let (offset, size) =
                    *self.entries.get(&name).ok_or_else(|| self.malformed(format!("{name} is missing")))?;
                layers.push(Layer { offset, size, digest: Some(digest) });
            }
            let annotations = descriptor.annotations().clone().unwrap_or_default();
            // containerd writes the whole name; others only a tag, which alone names nothing.
            let name = annotations.get("io.containerd.image.name").or_else(|| {
                annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']))
            });
            let (mut tags, mut digests) = (BTreeSet::new(), BTreeSet::new());
            if let Some(name) = name {
                let reference = parse(name)?;
                tags.insert(canonical(&reference));
                digests.insert(format!(
                    "{}/{}@{}",
                    reference.registry(),
                    reference.repository(),
                    named.as_str()
                ));
            }
            found.push(Found { parts: Parts { config, tags, digests }, layers });
        }
        Ok(found)
    }

    fn docker(&mut self) -> Result<Vec<Found>, ImageError> {
        let bytes = self.document("manifest.json")?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&bytes).map_err(|e| self.malformed(e.to_string()))?;
        let mut found = Vec::new();
        for image in images {
            let config = self.document(&image.config)?;
            let mut layers = Vec::new();
            for name in &image.layers {
                let (offset, size) =
                    *self.entries.get(name).ok_or_else(|| self.malformed(format!("{name} is missing")))?;
                layers.push(Layer { offset, size, digest: None });
            }
            let mut tags = BTreeSet::new();
            for tag in image.repo_tags.unwrap_or_default() {
                tags.insert(canonical(&parse(&tag)?));
            }
            found.push(Found { parts: Parts { config, tags, digests: BTreeSet::new() }, layers });
        }
        Ok(found)
    }
}
