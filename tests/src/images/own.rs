//! Container images made here: OCI archives assembled from Debian packages and from our own static binaries.
//! Nothing of a package is run while its image is made.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{cmd, debian, paths};

/// Compression of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    Gzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    Zstd,
}

/// An image being put together in memory; written as an OCI archive.
pub struct ImageBuilder {
    reference: String,
    layers: Vec<(Compression, Vec<u8>, String)>,
    config: Value,
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let mut text = String::from("sha256:");
    for byte in hash {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

impl ImageBuilder {
    /// Starts an image; `config` is the OCI image config's `config` object (Entrypoint, Cmd, Env, User, …).
    pub fn new(reference: &str, config: Value) -> Self {
        Self { reference: reference.to_owned(), layers: Vec::new(), config }
    }

    /// Adds a folder's content as one layer, sorted, with owners as given by `owner` (uid, gid) of each path.
    pub fn layer_from_dir(mut self, dir: &Path, compression: Compression) -> Result<Self> {
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
        self.layers.push((compression, packed, diff_id));
        Ok(self)
    }

    /// Writes `<path>`, an OCI archive (a tar of an OCI image layout).
    pub fn write(self, path: &Path) -> Result<()> {
        let config = json!({
            "created": "2026-01-01T00:00:00Z", "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|layer| &layer.2).collect::<Vec<_>>()},
        });
        let config = serde_json::to_vec(&config)?;
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|(compression, bytes, _)| {
                let suffix = if *compression == Compression::Gzip { "gzip" } else { "zstd" };
                json!({"mediaType": format!("application/vnd.oci.image.layer.v1.tar+{suffix}"),
                       "digest": digest(bytes), "size": bytes.len()})
            })
            .collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
            "layers": layers,
        }))?;
        let tag = self.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest),
                "size": manifest.len(), "platform": {"architecture": "amd64", "os": "linux"},
                "annotations": {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": self.reference}}],
        }))?;
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
        let mut written = std::collections::BTreeSet::new();
        let blobs = [&config, &manifest].into_iter().chain(self.layers.iter().map(|layer| &layer.1));
        for blob in blobs {
            let name = digest(blob).replace("sha256:", "blobs/sha256/");
            if written.insert(name.clone()) {
                add(&name, blob)?;
            }
        }
        tar.finish()?;
        fs::rename(&partial, path)?;
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

/// Names of the images that [`ensure`] makes.
pub const ALL: &[&str] = &["busybox", "testapp-v1", "testapp-v2", "nginx", "redis"];

/// Reference under which an image of [`ALL`] is known to the nodes.
pub fn reference(name: &str) -> String {
    match name {
        "testapp-v1" => "keelson.test/testapp:v1".to_owned(),
        "testapp-v2" => "keelson.test/testapp:v2".to_owned(),
        other => format!("keelson.test/{other}:latest"),
    }
}

/// Makes an image if it is not there yet; gives its OCI archive.
pub fn ensure(name: &str) -> Result<PathBuf> {
    let dir = paths::cache().join("images");
    fs::create_dir_all(&dir)?;
    let archive = dir.join(format!("{name}.tar"));
    let testapp = paths::target().join("x86_64-unknown-linux-gnu/podinit/keelson-testapp");
    if archive.exists() {
        let fresh = !name.starts_with("testapp")
            || fs::metadata(&archive)?.modified()? >= fs::metadata(&testapp)?.modified()?;
        if fresh {
            return Ok(archive);
        }
    }
    let work = tempfile::tempdir_in(&dir)?;
    match name {
        "busybox" => busybox(work.path(), &archive),
        "testapp-v1" | "testapp-v2" => test_app(name, &testapp, work.path(), &archive),
        "nginx" => nginx(work.path(), &archive),
        "redis" => redis(work.path(), &archive),
        other => anyhow::bail!("no such image: {other} (there are {ALL:?})"),
    }
    .with_context(|| format!("assemble the image {name}"))?;
    Ok(archive)
}

fn passwd(root: &Path, users: &[(&str, u32, &str)]) -> Result<()> {
    fs::create_dir_all(root.join("etc"))?;
    let mut passwd = String::from(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    );
    let mut group = String::from("root:x:0:\nnogroup:x:65534:\n");
    for (name, id, home) in users {
        passwd.push_str(&format!("{name}:x:{id}:{id}::{home}:/usr/sbin/nologin\n"));
        group.push_str(&format!("{name}:x:{id}:\n"));
    }
    fs::write(root.join("etc/passwd"), passwd)?;
    fs::write(root.join("etc/group"), group)?;
    fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    fs::create_dir_all(root.join("root"))?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    Ok(())
}

fn put_busybox(root: &Path) -> Result<()> {
    let unpacked = tempfile::tempdir_in(paths::cache())?;
    debian::unpack(&debian::Apt::suite(&codename()?)?.package("busybox-static")?, unpacked.path())?;
    let program = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|path| unpacked.path().join(path))
        .find(|path| path.exists())
        .context("busybox-static has no busybox")?;
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(&program, bin.join("busybox"))?;
    let applets = cmd::text(Command::new(&program).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", bin.join(applet))?;
    }
    Ok(())
}

fn codename() -> Result<String> {
    fs::read_to_string("/etc/os-release")?
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME=").map(str::to_owned))
        .context("/etc/os-release names no VERSION_CODENAME")
}

fn busybox(work: &Path, archive: &Path) -> Result<()> {
    passwd(work, &[])?;
    put_busybox(work)?;
    ImageBuilder::new(
        &reference("busybox"),
        json!({"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"]}),
    )
    .layer_from_dir(work, Compression::Gzip)?
    .write(archive)
}

fn test_app(name: &str, program: &Path, work: &Path, archive: &Path) -> Result<()> {
    let base = work.join("base");
    passwd(&base, &[("app", 1000, "/")])?;
    put_busybox(&base)?;
    let app = work.join("app");
    fs::create_dir_all(&app)?;
    fs::copy(program, app.join("testapp"))?;
    fs::write(app.join("version"), name.trim_start_matches("testapp-"))?;
    ImageBuilder::new(
        &reference(name),
        json!({"Entrypoint": ["/testapp"], "Cmd": ["serve"], "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"], "User": "app"}),
    )
    .layer_from_dir(&base, Compression::Gzip)?
    .layer_from_dir(&app, Compression::Zstd)?
    .write(archive)
}

/// Layers of a Debian image: what the application depends on, then the application's own packages, then its
/// configuration.
fn debian_layers(work: &Path, package: &str, own: &[&str]) -> Result<(PathBuf, PathBuf)> {
    let base = work.join("base");
    let app = work.join("app");
    fs::create_dir_all(&base)?;
    fs::create_dir_all(&app)?;
    for deb in debian::Apt::suite(&codename()?)?.closure(&[package])? {
        let file = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_own = own.iter().any(|name| file.starts_with(&format!("{name}_")));
        debian::unpack(&deb, if is_own { &app } else { &base })?;
    }
    for folder in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/perl",
        "usr/lib/x86_64-linux-gnu/perl-base",
    ] {
        let _ = fs::remove_dir_all(base.join(folder));
        let _ = fs::remove_dir_all(app.join(folder));
    }
    Ok((base, app))
}

fn nginx(work: &Path, archive: &Path) -> Result<()> {
    let (base, app) = debian_layers(work, "nginx-light", &["nginx", "nginx-common", "nginx-light"])?;
    passwd(&base, &[("www-data", 33, "/var/www")])?;
    let config = work.join("config");
    fs::create_dir_all(config.join("etc/nginx"))?;
    fs::write(
        config.join("etc/nginx/nginx.conf"),
        "worker_processes 1;\npid /tmp/nginx.pid;\nerror_log /dev/stderr;\nevents { worker_connections 256; }\n\
         http {\n access_log /dev/stdout;\n client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; \
         fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;\n \
         server { listen 8080; root /var/www/html; location / { index index.html; } }\n}\n",
    )?;
    fs::create_dir_all(config.join("var/www/html"))?;
    fs::write(config.join("var/www/html/index.html"), "nginx from Debian packages\n")?;
    ImageBuilder::new(
        &reference("nginx"),
        json!({"Entrypoint": ["/usr/sbin/nginx", "-g", "daemon off;"], "User": "www-data", "StopSignal": "SIGQUIT",
               "ExposedPorts": {"8080/tcp": {}}, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}),
    )
    .layer_from_dir(&base, Compression::Gzip)?
    .layer_from_dir(&app, Compression::Zstd)?
    .layer_from_dir(&config, Compression::Gzip)?
    .write(archive)
}

fn redis(work: &Path, archive: &Path) -> Result<()> {
    let (base, app) = debian_layers(work, "redis-server", &["redis-server", "redis-tools"])?;
    passwd(&base, &[("redis", 999, "/data")])?;
    let config = work.join("config");
    fs::create_dir_all(config.join("data"))?;
    std::os::unix::fs::chown(config.join("data"), Some(999), Some(999))?;
    ImageBuilder::new(
        &reference("redis"),
        json!({"Entrypoint": ["/usr/bin/redis-server", "--protected-mode", "no", "--dir", "/data"], "User": "redis",
               "WorkingDir": "/data", "ExposedPorts": {"6379/tcp": {}}, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}),
    )
    .layer_from_dir(&base, Compression::Gzip)?
    .layer_from_dir(&app, Compression::Zstd)?
    .layer_from_dir(&config, Compression::Gzip)?
    .write(archive)
}
