//! The store: layers as folders, an index of images, leases of containers.
//!
//! ```text
//! <root>/index.json            images and their names
//! <root>/layers/<hex>/fs       one unpacked layer, named by its diff_id
//! <root>/leases/<container>    image and layers that a container is made from, its volumes' too
//! <root>/tmp/                  what is being unpacked; emptied at start
//! <import>/*.tar               archives, compressed ones too, imported at start and when an image is looked for
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use keelson_cri::{CriError, Image, ImageRootfs, ImageService, RegistryAuth, UnpackedImage};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::digest::Digest;
use crate::index::{Index, Record, canonical, parse, read_config};
use crate::registry::{self, RegistryConfig};
use crate::unpack::{Limits, unpack_checked};
use crate::{ImageError, archive};

/// Where the store is and what it may fetch.
#[derive(Debug, Clone)]
pub struct ImageStoreConfig {
    /// Folder of the store, such as `/var/lib/keelson/images`; its filesystem must be able to carry overlayfs.
    pub root: PathBuf,
    /// Folder whose archives are imported, such as `/var/lib/keelson/import`.
    pub import: PathBuf,
    /// How registries are reached.
    pub registry: RegistryConfig,
    /// What one layer may hold.
    pub limits: Limits,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    /// The container's own image, for people who look.
    image: String,
    /// Layers of that and of the images that are its volumes.
    layers: Vec<String>,
}

/// The image store of a node.
pub struct ImageStore {
    config: ImageStoreConfig,
    index: Mutex<Index>,
    /// One unpack of a layer at a time; the count is of users who want it kept meanwhile.
    layers: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// The archives of the import folder that were looked at, as they were then: time of the last change, and size.
    imported: Mutex<HashMap<PathBuf, (SystemTime, u64)>>,
    next_tmp: AtomicU64,
}

/// What an image is put together from, whether pulled or imported.
pub(crate) struct Parts {
    pub(crate) config: Vec<u8>,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
}

impl ImageStore {
    /// Opens the store, making its folders, and imports what waits in the import folder.
    ///
    /// # Errors
    /// The folders can't be made or the index can't be read. An archive that can't be imported is logged only.
    pub async fn open(config: ImageStoreConfig) -> Result<Arc<Self>, ImageError> {
        let tmp = config.root.join("tmp");
        match std::fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ImageError::io("empty", &tmp)(error));
            }
            _ => {}
        }
        for dir in [&tmp, &config.root.join("layers"), &config.root.join("leases"), &config.import] {
            std::fs::create_dir_all(dir).map_err(ImageError::io("make", dir))?;
        }
        let index = Index::load(&config.root.join("index.json"))?;
        drop_pins(&config.root.join("leases"))?;
        let store = Arc::new(Self {
            config,
            index: Mutex::new(index),
            layers: Mutex::new(HashMap::new()),
            imported: Mutex::default(),
            next_tmp: AtomicU64::new(0),
        });
        // What pulls that did not end left.
        if let Err(error) = store.sweep(&*store.index.lock().await) {
            tracing::warn!(%error, "unused layers not removed");
        }
        store.import_changed().await;
        Ok(store)
    }

    /// Imports one archive (an OCI image layout or `docker save`, as a tar, plain or compressed with gzip or zstd). Gives
    /// the images in it.
    ///
    /// # Errors
    /// The archive is malformed, or one of its images can't be unpacked.
    pub async fn import(&self, path: &Path) -> Result<Vec<Image>, ImageError> {
        let plain = archive::decompressed(path, &self.config.root.join("tmp"), self.config.limits).await?;
        let path = plain.as_ref().map_or(path, |plain| plain.path());
        let mut images = Vec::new();
        for found in archive::read(path).await? {
            let record = self
                .assemble(found.parts, |n, diff_id| {
                    let (store, layer, path) = (self, found.layers.get(n).cloned(), path.to_owned());
                    async move {
                        let layer = layer.ok_or_else(|| ImageError::Malformed {
                            what: path.display().to_string(),
                            reason: "fewer layers than the config says".into(),
                        })?;
                        store
                            .unpack_with(&diff_id, move |into, limits, diff_id| {
                                layer.unpack(&path, into, limits, diff_id)
                            })
                            .await
                    }
                })
                .await?;
            images.push(record.image());
        }
        Ok(images)
    }

    /// Imports the archives of the import folder that changed since the last time: one that was being copied then is
    /// tried again when it is longer.
    async fn import_changed(&self) {
        let mut imported = self.imported.lock().await;
        let Ok(entries) = std::fs::read_dir(&self.config.import) else { return };
        let mut found = BTreeMap::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let known = path.file_name().and_then(|name| name.to_str()).is_some_and(is_archive);
            // Through a link, too.
            let Some(meta) = std::fs::metadata(&path).ok().filter(|_| known) else { continue };
            if let Ok(modified) = meta.modified() {
                found.insert(path, (modified, meta.len()));
            }
        }
        imported.retain(|path, _| found.contains_key(path));
        for (path, state) in found {
            if imported.get(&path) == Some(&state) {
                continue;
            }
            let result = self.import(&path).await;
            // A full disk is no fault of the archive's: it is tried again.
            if !result.as_ref().is_err_and(ImageError::is_of_space) {
                imported.insert(path.clone(), state);
            }
            match result {
                Ok(images) => {
                    for image in images {
                        tracing::info!(image = %image.id, names = ?image.repo_tags, "imported image");
                    }
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "can't import image archive"),
            }
        }
    }

    /// Unpacks all layers that are missing with `fetch(number, diff_id)`, then records the image.
    pub(crate) async fn assemble<F, Fut>(&self, parts: Parts, fetch: F) -> Result<Record, ImageError>
    where
        F: Fn(usize, Digest) -> Fut,
        Fut: Future<Output = Result<u64, ImageError>>,
    {
        use futures::StreamExt;
        let (diff_ids, config) = read_config(&parts.config)?;
        let layers: Vec<String> = diff_ids.iter().map(|id| id.as_str().to_owned()).collect();
        // A removal that runs meanwhile must not take layers that this image is about to use.
        let pin = self.pin(&layers)?;
        let sizes: Vec<Result<u64, ImageError>> =
            futures::stream::iter(diff_ids.into_iter().enumerate().map(|(n, diff_id)| fetch(n, diff_id)))
                .buffered(3)
                .collect()
                .await;
        let mut size = 0u64;
        for one in sizes {
            match one {
                Ok(one) => size = size.saturating_add(one),
                Err(error) => {
                    drop(pin);
                    // Of an image that is not what it says nothing is kept, nor of one that there is no room for; one that
                    // was cut off is asked for again.
                    if error.is_of_content() || error.is_of_space() {
                        self.sweep(&*self.index.lock().await)?;
                    }
                    return Err(error);
                }
            }
        }
        let id = Digest::of(&parts.config).as_str().to_owned();
        let mut index = self.index.lock().await;
        let mut changed = index.clone();
        let record =
            changed.put(Record { id, layers, size, tags: parts.tags, digests: parts.digests, config });
        self.replace(&mut index, changed)?;
        drop(index);
        drop(pin);
        Ok(record)
    }

    /// Makes an index the one that counts: on disk first, so that what is known is what the next agent will know.
    fn replace(&self, index: &mut Index, changed: Index) -> Result<(), ImageError> {
        changed.save(&self.config.root.join("index.json"))?;
        *index = changed;
        Ok(())
    }

    fn pin(&self, layers: &[String]) -> Result<Pin, ImageError> {
        let name = format!("{PIN}{}-{}", std::process::id(), self.next_tmp.fetch_add(1, Ordering::Relaxed));
        let path = self.config.root.join("leases").join(name);
        write_lease(&path, &Lease { image: String::new(), layers: layers.to_vec() })?;
        Ok(Pin(path))
    }

    /// Size of a layer that is there already.
    pub(crate) fn layer_size(&self, diff_id: &Digest) -> Option<u64> {
        std::fs::read_to_string(self.layer_dir(diff_id).join("size")).ok()?.trim().parse().ok()
    }

    fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.config.root.join("layers").join(diff_id.hex())
    }

    /// Unpacks one layer if it is not there: `work` fills a folder, which then takes the layer's name at once.
    /// Gives its size in bytes.
    pub(crate) async fn unpack_with(
        &self,
        diff_id: &Digest,
        work: impl FnOnce(&Path, Limits, &Digest) -> Result<u64, ImageError> + Send + 'static,
    ) -> Result<u64, ImageError> {
        let lock = self.layers.lock().await.entry(diff_id.as_str().to_owned()).or_default().clone();
        let result = {
            let _one_at_a_time = lock.lock().await;
            let done = self.layer_dir(diff_id);
            if let Some(size) = self.layer_size(diff_id) {
                Ok(size)
            } else {
                let tmp = self
                    .config
                    .root
                    .join("tmp")
                    .join(self.next_tmp.fetch_add(1, Ordering::Relaxed).to_string());
                let (limits, diff_id) = (self.config.limits, diff_id.clone());
                tokio::task::spawn_blocking(move || unpack_into(&tmp, &done, limits, &diff_id, work))
                    .await
                    .unwrap_or_else(|panic| {
                        Err(ImageError::Malformed { what: "layer".into(), reason: panic.to_string() })
                    })
            }
        };
        let mut layers = self.layers.lock().await;
        if Arc::strong_count(&lock) <= 2 {
            layers.remove(diff_id.as_str());
        }
        result
    }

    async fn found(&self, reference: &str) -> Result<Option<Record>, ImageError> {
        Ok(self.index.lock().await.find(reference)?.cloned())
    }

    /// Removes layers that no image and no container uses.
    fn sweep(&self, index: &Index) -> Result<(), ImageError> {
        let mut used: BTreeSet<String> =
            index.all().flat_map(|record| record.layers.iter().cloned()).collect();
        let leases = self.config.root.join("leases");
        for entry in std::fs::read_dir(&leases).map_err(ImageError::io("read", &leases))?.flatten() {
            let path = entry.path();
            // One that is being written, under the name that counts only when it is whole.
            if is_partial(&path) {
                continue;
            }
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let lease: Lease = serde_json::from_slice(&bytes).map_err(|e| ImageError::Malformed {
                what: path.display().to_string(),
                reason: e.to_string(),
            })?;
            used.extend(lease.layers);
        }
        let layers = self.config.root.join("layers");
        for entry in std::fs::read_dir(&layers).map_err(ImageError::io("read", &layers))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !used.contains(&format!("sha256:{name}")) {
                // Out of sight first: a half-removed layer must never look whole.
                let tmp = self.config.root.join("tmp").join(format!("removed-{name}"));
                std::fs::rename(entry.path(), &tmp).map_err(ImageError::io("remove", &entry.path()))?;
                std::fs::remove_dir_all(&tmp).map_err(ImageError::io("remove", &tmp))?;
            }
        }
        Ok(())
    }
}

/// How the leases of pulls begin: no container's does, whose ids are hexadecimal.
const PIN: &str = "pull-";

/// Whether a file of the import folder is one to import, by its name.
fn is_archive(name: &str) -> bool {
    [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| name.ends_with(end))
}

struct Pin(PathBuf);

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes the pins of an earlier process, and what it had half written.
fn drop_pins(leases: &Path) -> Result<(), ImageError> {
    for entry in std::fs::read_dir(leases).map_err(ImageError::io("read", leases))?.flatten() {
        if is_partial(&entry.path()) || entry.file_name().to_string_lossy().starts_with(PIN) {
            std::fs::remove_file(entry.path()).map_err(ImageError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn unpack_into(
    tmp: &Path,
    done: &Path,
    limits: Limits,
    diff_id: &Digest,
    work: impl FnOnce(&Path, Limits, &Digest) -> Result<u64, ImageError>,
) -> Result<u64, ImageError> {
    let fs = tmp.join("fs");
    std::fs::create_dir_all(&fs).map_err(ImageError::io("make", &fs))?;
    // As containerd's snapshots: the root of a layer is world-readable unless the layer says otherwise.
    std::fs::set_permissions(&fs, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(ImageError::io("chmod", &fs))?;
    let result = work(&fs, limits, diff_id).and_then(|size| {
        let path = tmp.join("size");
        std::fs::write(&path, size.to_string()).map_err(ImageError::io("write", &path))?;
        // The layer's name is a promise that its content is whole, after a power loss too.
        let dir = std::fs::File::open(tmp).map_err(ImageError::io("open", tmp))?;
        rustix::fs::syncfs(&dir).map_err(|e| ImageError::io("sync", tmp)(e.into()))?;
        std::fs::rename(tmp, done).map_err(ImageError::io("name", done))?;
        Ok(size)
    });
    if result.is_err() {
        let _ = std::fs::remove_dir_all(tmp);
    }
    result
}

fn write_lease(path: &Path, lease: &Lease) -> Result<(), ImageError> {
    let bytes = serde_json::to_vec(lease)
        .map_err(|e| ImageError::Malformed { what: "lease".into(), reason: e.to_string() })?;
    let partial = path.with_extension("partial");
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // Nobody would do it later.
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(ImageError::io("write", path))
}

fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "partial")
}

fn lease_name(container_id: &str) -> Result<&str, CriError> {
    let fine = !container_id.is_empty()
        && container_id.len() <= 128
        && container_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fine {
        Ok(container_id)
    } else {
        Err(CriError::Invalid(format!("container id \"{container_id}\" is malformed")))
    }
}

#[async_trait::async_trait]
impl ImageService for ImageStore {
    async fn pull_image(&self, reference: &str, auths: &[RegistryAuth]) -> Result<Image, CriError> {
        self.import_changed().await;
        let parsed = parse(reference)?;
        let record = registry::pull(self, &parsed, auths, &self.config.registry).await?;
        tracing::info!(image = %record.id, reference = %canonical(&parsed), "pulled image");
        Ok(record.image())
    }

    async fn image_status(&self, reference: &str) -> Result<Option<Image>, CriError> {
        if let Some(record) = self.found(reference).await? {
            return Ok(Some(record.image()));
        }
        self.import_changed().await;
        Ok(self.found(reference).await?.map(|record| record.image()))
    }

    async fn list_images(&self) -> Result<Vec<Image>, CriError> {
        Ok(self.index.lock().await.all().map(Record::image).collect())
    }

    async fn remove_image(&self, reference: &str) -> Result<(), CriError> {
        let mut index = self.index.lock().await;
        let Some(id) = index.find(reference)?.map(|record| record.id.clone()) else { return Ok(()) };
        let mut changed = index.clone();
        changed.remove(&id);
        self.replace(&mut index, changed)?;
        self.sweep(&index)?;
        Ok(())
    }

    async fn fs_info(&self) -> Result<(PathBuf, u64), CriError> {
        let index = self.index.lock().await;
        let mut seen = BTreeSet::new();
        let mut used = 0u64;
        for layer in index.all().flat_map(|record| &record.layers) {
            if seen.insert(layer.clone()) {
                let size = self.layer_dir(&Digest::parse(layer)?).join("size");
                used += std::fs::read_to_string(size)
                    .ok()
                    .and_then(|text| text.trim().parse::<u64>().ok())
                    .unwrap_or(0);
            }
        }
        Ok((self.config.root.clone(), used))
    }
}

#[async_trait::async_trait]
impl ImageRootfs for ImageStore {
    async fn lease(&self, images: &[&str], container_id: &str) -> Result<Vec<UnpackedImage>, CriError> {
        let path = self.config.root.join("leases").join(lease_name(container_id)?);
        // Under the lock, so that no removal comes between finding an image and leasing it.
        let index = self.index.lock().await;
        let mut lease = Lease { image: String::new(), layers: Vec::new() };
        let mut unpacked = Vec::with_capacity(images.len());
        for &image in images {
            let record = index.find(image)?.ok_or_else(|| ImageError::NotFound(image.to_owned()))?;
            if lease.image.is_empty() {
                lease.image.clone_from(&record.id);
            }
            lease.layers.extend(record.layers.iter().cloned());
            let mut lowerdirs = Vec::with_capacity(record.layers.len());
            for layer in record.layers.iter().rev() {
                lowerdirs.push(self.layer_dir(&Digest::parse(layer)?).join("fs"));
            }
            unpacked.push(UnpackedImage { id: record.id.clone(), lowerdirs, config: record.config.clone() });
        }
        write_lease(&path, &lease)?;
        Ok(unpacked)
    }

    async fn release(&self, container_id: &str) -> Result<(), CriError> {
        let lease = self.config.root.join("leases").join(lease_name(container_id)?);
        match std::fs::remove_file(&lease) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ImageError::io("remove", &lease)(error).into())
            }
            _ => Ok(()),
        }
    }
}

/// Checks a compressed layer's digest and size while it is unpacked.
pub(crate) fn unpack_verified(
    stream: impl std::io::Read,
    expected: &Digest,
    size: u64,
    into: &Path,
    limits: Limits,
    diff_id: &Digest,
) -> Result<u64, ImageError> {
    let mut hashing = crate::digest::HashingReader::new(stream.take(size.saturating_add(1)));
    let unpacked = unpack_checked(&mut hashing, into, limits, diff_id);
    // A wrong byte usually breaks decompression first; the digest says why.
    let (found, read) = hashing.finish().map_err(ImageError::Read)?;
    if &found != expected || read != size {
        return Err(ImageError::Mismatch {
            what: "digest of a layer".into(),
            expected: format!("{} ({size} bytes)", expected.as_str()),
            found: format!("{} ({read} bytes)", found.as_str()),
        });
    }
    unpacked
}
