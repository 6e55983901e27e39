//! The images of our own tests and of the sample.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::builder::{Compression, ImageBuilder};
use super::rootfs::{RELEASE, merge_usr, passwd, prune, put_busybox};
use crate::{debian, paths};

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
        "nginx" => nginx(work.path(), &archive),
        "redis" => redis(work.path(), &archive),
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

/// Layers of a Debian image: what the application depends on, then the application's own packages, then its
/// configuration.
fn debian_layers(work: &Path, package: &str, own: &[&str]) -> Result<(PathBuf, PathBuf)> {
    let base = work.join("base");
    let app = work.join("app");
    fs::create_dir_all(&base)?;
    fs::create_dir_all(&app)?;
    for deb in debian::Apt::suite(RELEASE)?.closure(&[package])? {
        let file = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_own = own.iter().any(|name| file.starts_with(&format!("{name}_")));
        debian::unpack(&deb, if is_own { &app } else { &base })?;
    }
    merge_usr(&base)?;
    prune(&base, false);
    prune(&app, false);
    Ok((base, app))
}

fn nginx(work: &Path, archive: &Path) -> Result<()> {
    let (base, app) = debian_layers(work, "nginx", &["nginx", "nginx-common"])?;
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
