//! `cargo xtask schema-facts`: writes `master-lite/api/schema/facts.txt`, the facts about every API type that the
//! schema tree of keelson-api is built from.
//!
//! Three sources of the published Go modules are read: the Go structs (JSON names, pointers, `omitempty`,
//! protobuf numbers), the OpenAPI v3 documents (defaults, required, list and map types, merge keys) and the
//! generated.proto files (which the protobuf numbers are checked against). Facts only: no prose is copied.

mod emit;
mod go;
mod openapi;
mod proto;

use anyhow::{Context, Result, bail, ensure};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Version of k8s.io/kubernetes that the facts are of.
const KUBERNETES: &str = "v1.36.3";
/// Version of the staging modules that belongs to [`KUBERNETES`].
const STAGING: &str = "v0.36.3";
/// Where the facts are committed, from the workspace root.
const OUTPUT: &str = "master-lite/api/schema/facts.txt";

/// Writes the facts, or with `check` fails when the committed file differs from what the modules say.
pub fn run(check: bool) -> Result<()> {
    let modules = Modules::download()?;
    let packages = go::Packages::load(&modules.packages()?)?;
    let openapi = openapi::Documents::load(&modules.kubernetes.join("api/openapi-spec/v3"))?;
    let text = emit::emit(&packages, &openapi, KUBERNETES)?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(OUTPUT);
    if check {
        let committed = std::fs::read_to_string(&path).with_context(|| format!("cannot read {OUTPUT}"))?;
        ensure!(committed == text, "{OUTPUT} is stale: run `cargo xtask schema-facts` and commit the result");
        println!("{OUTPUT} is what Kubernetes {KUBERNETES} says");
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&path, &text).with_context(|| format!("cannot write {OUTPUT}"))?;
    println!("{OUTPUT}: {} lines, {} bytes", text.lines().count(), text.len());
    Ok(())
}

/// Folders of the downloaded Go modules.
struct Modules {
    kubernetes: PathBuf,
    api: PathBuf,
    apimachinery: PathBuf,
    apiextensions: PathBuf,
    aggregator: PathBuf,
}

impl Modules {
    fn download() -> Result<Self> {
        Ok(Self {
            kubernetes: download("k8s.io/kubernetes", KUBERNETES)?,
            api: download("k8s.io/api", STAGING)?,
            apimachinery: download("k8s.io/apimachinery", STAGING)?,
            apiextensions: download("k8s.io/apiextensions-apiserver", STAGING)?,
            aggregator: download("k8s.io/kube-aggregator", STAGING)?,
        })
    }

    /// Import path and folder of every package that holds wire types, in a fixed order.
    fn packages(&self) -> Result<Vec<(String, PathBuf)>> {
        let mut found = vec![
            ("k8s.io/apimachinery/pkg/apis/meta/v1".to_owned(), self.apimachinery.join("pkg/apis/meta/v1")),
            (
                "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1".to_owned(),
                self.apiextensions.join("pkg/apis/apiextensions/v1"),
            ),
            (
                "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1".to_owned(),
                self.aggregator.join("pkg/apis/apiregistration/v1"),
            ),
        ];
        for group in subfolders(&self.api)? {
            for version in subfolders(&self.api.join(&group))? {
                let folder = self.api.join(&group).join(&version);
                // testdata and documentation folders hold no scheme registration.
                if folder.join("register.go").exists() && folder.join("generated.proto").exists() {
                    found.push((format!("k8s.io/api/{group}/{version}"), folder));
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

fn subfolders(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Fetches one module through Go's own client, which checks it against the checksum database.
fn download(module: &str, version: &str) -> Result<PathBuf> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{module}@{version}")])
        .current_dir(std::env::temp_dir())
        .output()
        .context("cannot run `go`: schema-facts needs the Go toolchain to download the Kubernetes modules")?;
    if !output.status.success() {
        bail!(
            "go mod download {module}@{version} failed: {}",
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let folder = answer["Dir"].as_str().with_context(|| format!("go named no folder for {module}"))?;
    Ok(PathBuf::from(folder))
}
