//! An image registry inside a cluster: Debian's docker-registry on the master's host, plain HTTP, read-only, serving what
//! [`fill`] laid out in its storage, to everybody or to who knows a password. It ends with the cluster; the storage is
//! kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cluster::Cluster;
use super::host::ended;
use crate::images::builder::digest;
use crate::images::rootfs::RELEASE;
use crate::images::suite;
use crate::{cmd, debian, paths};

/// Where it answers, on the wire between the hosts.
pub const ADDRESS: &str = "10.89.0.2:5000";

/// The argument with which an agent speaks HTTP to it.
pub fn agent_arg() -> String {
    format!("--insecure-registry={ADDRESS}")
}

/// Name of an upstream image in this registry: what follows the host stays.
pub fn reference(image: &str) -> String {
    format!("{ADDRESS}/{}", path(image))
}

fn path(image: &str) -> &str {
    image.split_once('/').map_or(image, |(_, path)| path)
}

/// The file for the suite's `--kube-test-repo-list`: every registry is this one, but for the two from which nothing may
/// be pulled, one that is nowhere and one that asks for a password upstream: here it is an empty corner.
pub fn repo_list() -> String {
    [
        ("promoterE2eRegistry", "e2e-test-images"),
        ("buildImageRegistry", "build-image"),
        ("gcEtcdRegistry", ""),
        ("gcRegistry", ""),
        ("sigStorageRegistry", "sig-storage"),
        ("privateRegistry", "k8s-authenticated-test"),
        ("dockerLibraryRegistry", "library"),
        ("cloudProviderGcpRegistry", "cloud-provider-gcp"),
    ]
    .iter()
    .map(|(key, at)| format!("{key}: {}\n", format!("{ADDRESS}/{at}").trim_end_matches('/')))
    .chain(["invalidRegistry: invalid.registry.k8s.io/invalid\n".to_owned()])
    .collect()
}

fn storage() -> PathBuf {
    paths::cache().join("registry")
}

/// Puts images (name and OCI archive) into the storage, those that are there already excepted.
pub fn fill<'a>(images: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<()> {
    for (name, archive) in images {
        put(&storage().join("docker/registry/v2"), path(name), archive)
            .with_context(|| format!("put {name} into the registry"))?;
    }
    Ok(())
}

/// Lays one image out as distribution's file system driver does (`registry/storage/paths.go`): blobs by digest, and per
/// repository a link to each of them, to each manifest and from each tag.
fn put(root: &Path, name: &str, archive: &Path) -> Result<()> {
    let (repository, tag) = suite::split(name).context("the name has no tag")?;
    let repository = root.join("repositories").join(repository);
    let blobs = root.join("blobs/sha256");
    let mut tag_link = None;
    let mut small: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        let file = entry.path()?.to_string_lossy().into_owned();
        if file == "index.json" {
            let mut text = Vec::new();
            entry.read_to_end(&mut text)?;
            let manifest = hex(&serde_json::from_slice::<Value>(&text)?["manifests"][0])?;
            let current = repository.join("_manifests/tags").join(tag).join("current/link");
            // Written last, so all else is there.
            if fs::read_to_string(&current).is_ok_and(|link| link == format!("sha256:{manifest}")) {
                return Ok(());
            }
            tag_link = Some((current, manifest));
        } else if let Some(hex) = file.strip_prefix("blobs/sha256/") {
            let data =
                blobs.join(hex.get(..2).context("a blob has no digest for a name")?).join(hex).join("data");
            let mut bytes = Vec::new();
            // A manifest or config is small, and is looked into below.
            let peek = entry.size() < 1 << 20;
            if peek {
                entry.read_to_end(&mut bytes)?;
            }
            if !data.exists() {
                write(&data, &mut bytes.as_slice().chain(&mut entry))?;
            }
            if peek {
                small.insert(hex.to_owned(), bytes);
            }
        }
    }
    let (current, manifest) = tag_link.context("the archive has no index.json before its blobs")?;
    let text = small.get(&manifest).context("the archive lacks its manifest")?;
    let parsed: Value = serde_json::from_slice(text)?;
    let layers = parsed["layers"].as_array().into_iter().flatten();
    for blob in layers.chain([&parsed["config"]]) {
        let hex = hex(blob)?;
        link(&repository.join("_layers/sha256").join(&hex).join("link"), &hex)?;
    }
    link(&repository.join("_manifests/revisions/sha256").join(&manifest).join("link"), &manifest)?;
    let index = repository.join("_manifests/tags").join(tag).join("index/sha256");
    link(&index.join(&manifest).join("link"), &manifest)?;
    link(&current, &manifest)
}

/// The digest in a descriptor, without its `sha256:`.
fn hex(descriptor: &Value) -> Result<String> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    digest.map(str::to_owned).context("a descriptor has no SHA-256 digest")
}

fn link(at: &Path, hex: &str) -> Result<()> {
    write(at, &mut format!("sha256:{hex}").as_bytes())
}

fn write(at: &Path, from: &mut dyn Read) -> Result<()> {
    let folder = at.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::copy(from, &mut file)?;
    file.persist(at)?;
    Ok(())
}

/// Debian's docker-registry, unpacked in the cache.
fn program() -> Result<PathBuf> {
    let dir = paths::cache().join("docker-registry").join(RELEASE);
    let program = dir.join("usr/bin/docker-registry");
    if !program.exists() {
        fs::create_dir_all(&dir)?;
        debian::unpack(&debian::Apt::suite(RELEASE)?.package("docker-registry")?, &dir)?;
    }
    Ok(program)
}

/// Makes the first layer of an image something else than its digest says, as a registry with a bad disk has it.
pub fn spoil(image: &str) -> Result<()> {
    let root = storage().join("docker/registry/v2");
    let (repository, tag) = suite::split(path(image)).context("the name has no tag")?;
    let link =
        root.join("repositories").join(repository).join("_manifests/tags").join(tag).join("current/link");
    let data = |hex: &str| root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data");
    let manifest = fs::read_to_string(link)?.trim_start_matches("sha256:").to_owned();
    let manifest: Value = serde_json::from_slice(&fs::read(data(&manifest))?)?;
    let layer = hex(&manifest["layers"][0])?;
    let mut bytes = fs::read(data(&layer))?;
    // Spoilt already, by an earlier run.
    if digest(&bytes) == format!("sha256:{layer}") {
        *bytes.last_mut().context("the layer is empty")? ^= 1;
        write(&data(&layer), &mut bytes.as_slice())?;
    }
    Ok(())
}

/// User and password of a registry that [`start_with_password`] starts.
pub const USER: (&str, &str) = ("puller", "let-me-pull");

/// The same for its htpasswd file: bcrypt of the least cost, since it is computed for each request.
const HTPASSWD: &str = "puller:$2b$04$MJCE5SY/k6NWj6Utmf8PHeUKgKFO1ftR/9.CLJGOTt/urZwFPPy.y\n";

/// Starts it in a cluster and waits until it answers; gives its pid.
pub fn start(cluster: &Cluster) -> Result<i32> {
    launch(cluster, None)
}

/// As [`start`], but it lets in only [`USER`].
pub fn start_with_password(cluster: &Cluster) -> Result<i32> {
    fs::write(cluster.host("master")?.dir.join("etc/htpasswd"), HTPASSWD)?;
    let auth = serde_json::json!({"htpasswd": {"realm": "test", "path": "/etc/htpasswd"}});
    launch(cluster, Some(auth))
}

fn launch(cluster: &Cluster, auth: Option<Value>) -> Result<i32> {
    let program = program()?;
    fs::create_dir_all(storage())?;
    let master = cluster.host("master")?;
    let credentials = auth.as_ref().map(|_| format!("{}:{}@", USER.0, USER.1)).unwrap_or_default();
    let mut config = serde_json::json!({
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": storage()},
            "cache": {"blobdescriptor": "inmemory"},
            // Hosts see the cache read-only.
            "maintenance": {"readonly": {"enabled": true}, "uploadpurging": {"enabled": false}},
        },
        // Never asked for: nothing is uploaded.
        "http": {"addr": ADDRESS, "secret": "unused"},
    });
    if let Some(auth) = auth {
        config["auth"] = auth;
    }
    // JSON is YAML.
    fs::write(master.dir.join("etc/docker-registry.yml"), serde_json::to_vec_pretty(&config)?)?;
    let args = ["serve", "/etc/docker-registry.yml"].map(str::to_owned);
    let pid = master.spawn_daemon("registry", &program, &args, None)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let ask = format!("http://{credentials}{ADDRESS}/v2/");
        match cmd::run(master.command("client", "busybox").args(["wget", "-q", "-O", "-", &ask])) {
            Ok(_) => return Ok(pid),
            Err(error) if ended(pid) || Instant::now() > deadline => {
                let log = fs::read_to_string(master.dir.join("log/registry.log")).unwrap_or_default();
                bail!("the registry does not answer: {error:#}\n{log}");
            }
            Err(_not_yet) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;
    use crate::images::builder::{Compression, ImageBuilder};

    #[test]
    fn every_registry_is_ours_but_the_one_that_must_not_be_found() {
        for line in repo_list().lines() {
            let (key, value) = line.split_once(": ").unwrap();
            assert_eq!(value.starts_with(ADDRESS), key != "invalidRegistry", "{line}");
            assert!(!value.ends_with('/'), "{line}");
        }
        assert_eq!(reference("registry.k8s.io/pause:3.10.2"), "10.89.0.2:5000/pause:3.10.2");
    }

    #[test]
    fn an_image_is_laid_out_and_its_tag_moves() {
        let dir = tempfile::tempdir().unwrap();
        let (files, archive) = (dir.path().join("files"), dir.path().join("a.tar"));
        let root = dir.path().join("v2");
        let mut links = Vec::new();
        for content in ["one", "two"] {
            fs::create_dir_all(&files).unwrap();
            fs::write(files.join("f"), content).unwrap();
            let image = ImageBuilder::new("r/a/b:c", json!({}));
            image.layer_from_dir(&files, Compression::Zstd).unwrap().write(&archive).unwrap();
            put(&root, "a/b:c", &archive).unwrap();
            put(&root, "a/b:c", &archive).unwrap();
            links.push(
                fs::read_to_string(root.join("repositories/a/b/_manifests/tags/c/current/link")).unwrap(),
            );
        }
        assert_ne!(links[0], links[1]);
        for link in links {
            let hex = link.strip_prefix("sha256:").unwrap();
            let data = root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data");
            let manifest: Value = serde_json::from_slice(&fs::read(data).unwrap()).unwrap();
            let layer = super::hex(&manifest["layers"][0]).unwrap();
            assert!(root.join("blobs/sha256").join(&layer[..2]).join(&layer).join("data").exists());
            assert!(root.join("repositories/a/b/_layers/sha256").join(&layer).join("link").exists());
        }
    }
}
