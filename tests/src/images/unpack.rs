//! An OCI archive made here, as a plain folder: for runtimes that take a root file system and not an image.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Unpacks the layers of an archive's one image, without whiteouts: the images made here have none.
pub fn unpack(archive: &Path, into: &Path) -> Result<()> {
    let mut blobs = HashMap::new();
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        blobs.insert(name, bytes);
    }
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        blobs.get(&digest.replace("sha256:", "blobs/sha256/")).with_context(|| format!("{digest} is missing"))
    };
    let index: Value = serde_json::from_slice(blobs.get("index.json").context("no index.json")?)?;
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let packed = blob(layer)?.as_slice();
        let plain: Box<dyn Read> = match layer["mediaType"].as_str() {
            Some(kind) if kind.ends_with("+gzip") => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Some(kind) if kind.ends_with("+zstd") => Box::new(zstd::Decoder::new(packed)?),
            _ => Box::new(packed),
        };
        let mut tar = tar::Archive::new(plain);
        tar.set_preserve_ownerships(true);
        tar.set_preserve_permissions(true);
        tar.unpack(into)?;
    }
    Ok(())
}
