//! The images of our own tests and of the sample.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::apps;
use super::builder::{Compression, ImageBuilder};
use super::rootfs::{RELEASE, passwd, put_busybox};
use crate::paths;

/// Names of the images that [`ensure`] makes.
pub const ALL: &[&str] = &["busybox", "testapp-v1", "testapp-v2", "nginx", "redis", "postgres", "notes"];

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
    let dir = paths::cache().join("images").join(RELEASE);
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
        "nginx" => apps::nginx(work.path(), &archive),
        "redis" => apps::redis(work.path(), &archive),
        "postgres" => apps::postgres(work.path(), &archive),
        "notes" => apps::notes(work.path(), &archive),
        other => anyhow::bail!("no such image: {other} (there are {ALL:?})"),
    }
    .with_context(|| format!("assemble the image {name}"))?;
    Ok(archive)
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
