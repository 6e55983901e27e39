//! Real applications out of Debian's packages, each as its own user: nginx, redis, PostgreSQL, and an application in
//! Python that keeps notes in PostgreSQL.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use super::builder::{Compression, ImageBuilder};
use super::own::reference;
use super::rootfs::{RELEASE, merge_usr, passwd, prune, put_busybox};
use crate::debian;

/// Layers of a Debian image: what the application depends on, then the application's own packages; `without` names
/// packages that it runs without.
fn debian_layers(
    work: &Path,
    packages: &[&str],
    own: &[&str],
    without: &[&str],
) -> Result<(PathBuf, PathBuf)> {
    let base = work.join("base");
    let app = work.join("app");
    fs::create_dir_all(&base)?;
    fs::create_dir_all(&app)?;
    for deb in debian::Apt::suite(RELEASE)?.closure(packages)? {
        let file = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_of = |names: &[&str]| names.iter().any(|name| file.starts_with(&format!("{name}_")));
        if !is_of(without) {
            debian::unpack(&deb, if is_of(own) { &app } else { &base })?;
        }
    }
    merge_usr(&base)?;
    prune(&base, false);
    prune(&app, false);
    Ok((base, app))
}

pub(super) fn nginx(work: &Path, archive: &Path) -> Result<()> {
    let (base, app) = debian_layers(work, &["nginx"], &["nginx", "nginx-common"], &[])?;
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

pub(super) fn redis(work: &Path, archive: &Path) -> Result<()> {
    let (base, app) = debian_layers(work, &["redis-server"], &["redis-server", "redis-tools"], &[])?;
    passwd(&base, &[("redis", 999, "/data")])?;
    let config = work.join("config");
    fs::create_dir_all(config.join("data"))?;
    chown(config.join("data"), Some(999), Some(999))?;
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

/// User and group of PostgreSQL, as in the image that the project itself publishes.
const POSTGRES: u32 = 999;

/// What its set-up does when the data folder is empty, by the variables of the project's own image.
const POSTGRES_ENTRYPOINT: &str = r#"#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  mkdir -p "$PGDATA"
  printf %s "${POSTGRES_PASSWORD:?must be set}" > /tmp/password
  initdb -D "$PGDATA" --username="${POSTGRES_USER:=postgres}" --pwfile=/tmp/password --encoding=UTF8 --no-locale \
    --auth-local=trust --auth-host=scram-sha-256
  rm /tmp/password
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
  if [ -n "$POSTGRES_DB" ]; then
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA" postgres
  fi
fi
exec "$@"
"#;

pub(super) fn postgres(work: &Path, archive: &Path) -> Result<()> {
    // Only its just-in-time compiler needs LLVM, only Debian's wrappers Perl, only other locales theirs.
    let without =
        ["libllvm19", "libz3-4", "locales", "libc-l10n", "perl-modules-5.40", "libperl5.40", "perl"];
    let own = ["postgresql-17", "postgresql-client-17"];
    let (base, app) = debian_layers(work, &["postgresql-17"], &own, &without)?;
    // The same for the code of its functions in LLVM's form.
    for folder in ["bitcode", "llvmjit.so"] {
        let path = app.join("usr/lib/postgresql/17/lib").join(folder);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    passwd(&base, &[("postgres", POSTGRES, "/var/lib/postgresql")])?;
    put_busybox(&base)?;
    let config = work.join("config");
    let data = config.join("var/lib/postgresql/data");
    fs::create_dir_all(&data)?;
    for folder in [data.as_path(), &config.join("var/lib/postgresql")] {
        chown(folder, Some(POSTGRES), Some(POSTGRES))?;
    }
    program(&config.join("usr/local/bin/docker-entrypoint.sh"), POSTGRES_ENTRYPOINT)?;
    let path = "PATH=/usr/local/bin:/usr/lib/postgresql/17/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    ImageBuilder::new(
        &reference("postgres"),
        json!({"Entrypoint": ["docker-entrypoint.sh"],
               "Cmd": ["postgres", "-c", "listen_addresses=*", "-c", "unix_socket_directories=/tmp", "-c", "jit=off"],
               "User": "postgres", "StopSignal": "SIGINT", "ExposedPorts": {"5432/tcp": {}},
               "Volumes": {"/var/lib/postgresql/data": {}},
               "Env": [path, "PGDATA=/var/lib/postgresql/data/pgdata", "PGHOST=/tmp", "LANG=C.UTF-8"]}),
    )
    .layer_from_dir(&base, Compression::Zstd)?
    .layer_from_dir(&app, Compression::Zstd)?
    .layer_from_dir(&config, Compression::Gzip)?
    .write(archive)
}

/// `GET /notes` lists them, `POST /notes` adds the body, `GET /readyz` asks the database.
const NOTES: &str = r#"import os

import psycopg2
from bottle import Bottle, request, response

app = Bottle()


def database():
    return psycopg2.connect(
        host=os.environ["DB_HOST"],
        dbname=os.environ["DB_NAME"],
        user=os.environ["DB_USER"],
        password=os.environ["DB_PASSWORD"],
        connect_timeout=3,
    )


def run(statement, *values):
    connection = database()
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text NOT NULL)")
            cursor.execute(statement, values)
            return cursor.fetchall()
    finally:
        connection.close()


@app.get("/readyz")
def ready():
    connection = database()
    connection.close()
    return "ok\n"


@app.get("/notes")
def notes():
    response.content_type = "text/plain"
    return "".join(text + "\n" for (text,) in run("SELECT text FROM notes ORDER BY id"))


@app.post("/notes")
def add():
    text = request.body.read().decode()
    response.status = 201
    return "%d\n" % run("INSERT INTO notes (text) VALUES (%s) RETURNING id", text)[0]
"#;

pub(super) fn notes(work: &Path, archive: &Path) -> Result<()> {
    let packages = ["python3-bottle", "gunicorn", "python3-psycopg2"];
    let own = ["python3-bottle", "gunicorn", "python3-gunicorn", "python3-psycopg2", "python3-packaging"];
    let (base, libraries) = debian_layers(work, &packages, &own, &[])?;
    passwd(&base, &[("notes", 1000, "/srv/notes")])?;
    let app = work.join("notes");
    fs::create_dir_all(app.join("srv/notes"))?;
    fs::write(app.join("srv/notes/notes.py"), NOTES)?;
    let command =
        ["gunicorn", "--bind=0.0.0.0:8000", "--workers=2", "--worker-tmp-dir=/dev/shm", "--access-logfile=-"];
    ImageBuilder::new(
        &reference("notes"),
        json!({"Entrypoint": command, "Cmd": ["notes:app"], "User": "notes", "WorkingDir": "/srv/notes",
               "ExposedPorts": {"8000/tcp": {}},
               "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"]}),
    )
    .layer_from_dir(&base, Compression::Gzip)?
    .layer_from_dir(&libraries, Compression::Zstd)?
    .layer_from_dir(&app, Compression::Gzip)?
    .write(archive)
}

fn program(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
