//! The images that upstream's e2e suite asks for, made here.
//!
//! [`recipes`] says what each holds; [`assemble`] makes those of a list as `e2e.test --list-images` prints it.

pub mod busybox;
pub mod coredns;
pub mod recipes;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::recipes::{Base, Busybox, NOT_MADE, Program, RECIPES, Recipe, Top};
use super::builder::{Compression, Image, ImageBuilder, Layer, digest};
use super::rootfs::{RELEASE, link_busybox, passwd, prune, put_busybox};
use crate::{cmd, debian, paths};

/// Where upstream's images are, in the names that the suite prints.
const UPSTREAM: &str = "registry.k8s.io/";

/// Changed when the way in which images are made changes.
const FORMAT: u32 = 1;

/// What images need that is not made here. Asked only for what the images of a list hold.
pub trait Programs: Sync {
    /// Folder of upstream's sources (the Go module `k8s.io/kubernetes`).
    fn source(&self) -> Result<PathBuf>;
    /// A static program built from a Go package of the suite's module.
    fn go(&self, package: &str) -> Result<PathBuf>;
    /// CoreDNS, see [`coredns::build`]; `None` leaves it out of the images that would hold it, which costs the tests that
    /// bring a DNS server of their own.
    fn coredns(&self) -> Result<Option<PathBuf>>;
}

/// For images that hold no program of upstream's.
pub struct NoPrograms;

impl Programs for NoPrograms {
    fn source(&self) -> Result<PathBuf> {
        bail!("upstream's sources are not at hand")
    }

    fn go(&self, package: &str) -> Result<PathBuf> {
        bail!("no Go program can be built here: {package} is needed")
    }

    fn coredns(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}

/// One image that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its name, as in the list.
    pub name: String,
    /// The OCI archive.
    pub archive: PathBuf,
    /// How long it took; next to nothing when it was there already.
    pub took: Duration,
}

/// What came of a list of images.
#[derive(Debug, Default)]
pub struct Assembled {
    /// Those made, in the list's order.
    pub made: Vec<Made>,
    /// Those not made, or what is missing from one that was made, each with the reason.
    pub not_made: Vec<(String, String)>,
}

/// Makes the images of a list (`registry/repository:tag`, each as `e2e.test --list-images` prints it), those that have
/// not changed since they were last made excepted.
pub fn assemble(list: &[String], programs: &dyn Programs) -> Result<Assembled> {
    let mut result = Assembled::default();
    let mut wanted: Vec<(&str, &Recipe)> = Vec::new();
    for name in list {
        match find(name) {
            Ok(recipe) => wanted.push((name, recipe)),
            Err(reason) => result.not_made.push((name.clone(), reason.to_owned())),
        }
    }
    let run = Run::new(programs, wanted.iter().map(|(_, recipe)| *recipe))?;
    for (name, recipe) in &wanted {
        if run.lacks_coredns(recipe) {
            result.not_made.push((format!("{name}, its /coredns"), "CoreDNS was not built".to_owned()));
        }
    }
    let next = AtomicUsize::new(0);
    let made: Mutex<BTreeMap<usize, Result<Made>>> = Mutex::default();
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).min(8);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((at, (name, recipe))) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, wanted.get(at)?)))
                {
                    let one = run.ensure(name, recipe).with_context(|| format!("assemble {name}"));
                    lock(&made).insert(at, one);
                }
            });
        }
    });
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.made = made.into_values().collect::<Result<_>>()?;
    Ok(result)
}

/// Repository and tag of an image's name.
pub fn split(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))
}

/// The recipe of an image, or why there is none.
fn find(name: &str) -> Result<&'static Recipe, &'static str> {
    let below = |prefix: &str| name.starts_with(prefix) && prefix.ends_with('/');
    if let Some((_, reason)) = NOT_MADE.iter().find(|(prefix, _)| below(prefix)) {
        return Err(reason);
    }
    split(name)
        .and_then(|(repository, _)| repository.strip_prefix(UPSTREAM))
        .and_then(|repository| RECIPES.iter().find(|recipe| recipe.name == repository))
        .ok_or("there is no recipe for it")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A layer that several images wait for and one makes.
type Slot = Arc<Mutex<Option<Layer>>>;

/// One call of [`assemble`]: the programs, and the layers that images share.
struct Run<'a> {
    programs: &'a dyn Programs,
    /// Path and digest of each program, by its entry in the recipes.
    built: BTreeMap<String, (PathBuf, String)>,
    layers: Mutex<BTreeMap<String, Slot>>,
    /// apt works for one at a time.
    apt: Mutex<()>,
}

impl<'a> Run<'a> {
    /// Has all programs built that the recipes name, one after the other: the Go tool uses every core by itself.
    fn new<'r>(programs: &'a dyn Programs, recipes: impl Iterator<Item = &'r Recipe>) -> Result<Self> {
        let mut built = BTreeMap::new();
        fs::create_dir_all(cache())?;
        for (program, _, _) in recipes.flat_map(closure).flat_map(|top| top.programs) {
            let key = format!("{program:?}");
            if built.contains_key(&key) {
                continue;
            }
            let path = match program {
                Program::Go(package) => Some(programs.go(package)?),
                Program::C(file) => Some(compile(&programs.source()?.join(file))?),
                Program::CoreDns => programs.coredns()?,
            };
            if let Some(path) = path {
                let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
                built.insert(key, (path, digest(&bytes)));
            }
        }
        Ok(Self { programs, built, layers: Mutex::default(), apt: Mutex::default() })
    }

    fn lacks_coredns(&self, recipe: &Recipe) -> bool {
        let wants = |top: &&Top| top.programs.iter().any(|(program, ..)| matches!(program, Program::CoreDns));
        recipe.tops.iter().any(wants) && !self.built.contains_key(&format!("{:?}", Program::CoreDns))
    }

    /// All that the image depends on, as a digest.
    fn key(&self, name: &str, recipe: &Recipe) -> Result<String> {
        let mut text = format!("{FORMAT} {RELEASE} {name} {recipe:?}");
        if recipe.base.is_some_and(|base| base.busybox == Busybox::Upstream) {
            text.push_str(&format!("\n{:?}", busybox::CHANGES));
        }
        for top in closure(recipe) {
            for (program, ..) in top.programs {
                text.push_str(&format!(
                    "\n{:?}",
                    self.built.get(&format!("{program:?}")).map(|found| &found.1)
                ));
            }
            for (from, _) in top.copies {
                text.push_str(&format!("\n{}", digest(&self.upstream(from)?)));
            }
        }
        Ok(digest(text.as_bytes()))
    }

    fn upstream(&self, file: &str) -> Result<Vec<u8>> {
        let path = self.programs.source()?.join(file);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    }

    fn ensure(&self, name: &str, recipe: &Recipe) -> Result<Made> {
        let start = Instant::now();
        let file = name.replace(['/', ':'], "_");
        let (archive, note) = (cache().join(format!("{file}.tar")), cache().join(format!("{file}.key")));
        let key = self.key(name, recipe)?;
        let fresh = archive.exists() && fs::read_to_string(&note).is_ok_and(|old| old == key);
        if !fresh {
            let _ = fs::remove_file(&note);
            self.image(name, recipe)?.write(&archive)?;
            fs::write(&note, key)?;
        }
        Ok(Made { name: name.to_owned(), archive, took: start.elapsed() })
    }

    fn image(&self, name: &str, recipe: &Recipe) -> Result<Image> {
        let mut image = ImageBuilder::new(name, config(name, recipe));
        if let Some(base) = recipe.base {
            image = image.layer(self.layer(&format!("{base:?}"), |root| self.base(base, root))?);
        }
        for top in recipe.tops {
            image = image.layer(self.layer(&format!("{top:?}"), |root| self.top(top, root))?);
        }
        image.seal()
    }

    fn layer(&self, key: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Layer> {
        let slot = Arc::clone(lock(&self.layers).entry(key.to_owned()).or_default());
        let mut slot = lock(&slot);
        if let Some(layer) = &*slot {
            return Ok(layer.clone());
        }
        let root = tempfile::tempdir_in(cache())?;
        fill(root.path())?;
        let layer = Layer::from_dir(root.path(), Compression::Zstd)?;
        *slot = Some(layer.clone());
        Ok(layer)
    }

    fn base(&self, base: &Base, root: &Path) -> Result<()> {
        if !base.debian.is_empty() {
            let packages = {
                let _alone = lock(&self.apt);
                debian::Apt::suite(RELEASE)?.closure(base.debian)?
            };
            for package in packages {
                debian::unpack(&package, root)?;
            }
            prune(root, base.debian.contains(&"perl"));
        }
        {
            let _alone = lock(&self.apt);
            match base.busybox {
                Busybox::Debian => put_busybox(root)?,
                Busybox::Upstream => link_busybox(root, &busybox::build()?)?,
            }
        }
        passwd(root, base.users)?;
        for (_, id, home) in base.users {
            let home = root.join(home.trim_start_matches('/'));
            fs::create_dir_all(&home)?;
            std::os::unix::fs::chown(home, Some(*id), Some(*id))?;
        }
        let mut groups = fs::read_to_string(root.join("etc/group"))?;
        for (name, id, members) in base.groups {
            groups.push_str(&format!("{name}:x:{id}:{members}\n"));
        }
        fs::write(root.join("etc/group"), groups)?;
        Ok(())
    }

    fn top(&self, top: &Top, root: &Path) -> Result<()> {
        let put = |at: &str, bytes: &[u8], mode: u32| -> Result<()> {
            let at = place(root, at)?;
            fs::write(&at, bytes)?;
            Ok(fs::set_permissions(&at, fs::Permissions::from_mode(mode))?)
        };
        for (program, at, mode) in top.programs {
            if let Some((path, _)) = self.built.get(&format!("{program:?}")) {
                put(at, &fs::read(path)?, *mode)?;
            }
        }
        for (from, at) in top.copies {
            put(at, &self.upstream(from)?, 0o644)?;
        }
        for (at, mode, text) in top.texts {
            put(at, text.as_bytes(), *mode)?;
        }
        for (at, to) in top.links {
            symlink(to, place(root, at)?)?;
        }
        for (at, mode) in top.folders {
            fs::create_dir_all(root.join(at))?;
            fs::set_permissions(root.join(at), fs::Permissions::from_mode(*mode))?;
        }
        for (served, tag) in top.serves {
            let recipe = recipe(served).with_context(|| format!("no recipe {served}"))?;
            let image = self.image(&format!("{served}:{tag}"), recipe)?;
            fake_registry(&image, &root.join("var/registry").join(served), tag)?;
        }
        Ok(())
    }
}

fn cache() -> PathBuf {
    paths::cache().join("suite-images")
}

fn recipe(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

/// The layers of a recipe and of the images that it serves.
fn closure(recipe_of: &Recipe) -> Vec<&'static Top> {
    let mut tops = recipe_of.tops.to_vec();
    for (served, _) in recipe_of.tops.iter().flat_map(|top| top.serves) {
        tops.extend(recipe(served).into_iter().flat_map(|recipe| recipe.tops));
    }
    tops
}

fn config(name: &str, recipe: &Recipe) -> Value {
    let mut config = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        // Two versions of one image are two images.
        "Labels": {"org.opencontainers.image.version": split(name).map_or("", |(_, tag)| tag)},
    });
    if !recipe.entrypoint.is_empty() {
        config["Entrypoint"] = json!(recipe.entrypoint);
    }
    if !recipe.cmd.is_empty() {
        config["Cmd"] = json!(recipe.cmd);
    }
    if !recipe.user.is_empty() {
        config["User"] = json!(recipe.user);
    }
    if !recipe.stop_signal.is_empty() {
        config["StopSignal"] = json!(recipe.stop_signal);
    }
    for port in recipe.ports {
        config["ExposedPorts"][format!("{port}/tcp")] = json!({});
    }
    config
}

/// Path of a file in a root file system, its folder made.
fn place(root: &Path, at: &str) -> Result<PathBuf> {
    let path = root.join(at);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(path)
}

/// A static program out of one C file.
fn compile(source: &Path) -> Result<PathBuf> {
    let name = source.file_stem().context("a source file has a name")?;
    let program = cache().join(name);
    cmd::run(Command::new("cc").args(["-Os", "-static", "-s", "-o"]).arg(&program).arg(source))
        .with_context(|| format!("compile {}", source.display()))?;
    Ok(program)
}

/// Lays an image out as agnhost's `fake-registry-server` reads it (`test/images/agnhost/fakeregistryserver`).
fn fake_registry(image: &Image, dir: &Path, tag: &str) -> Result<()> {
    let put = |kind: &str, digest: &str, bytes: &[u8]| -> Result<()> {
        let hex = digest.trim_start_matches("sha256:");
        Ok(fs::write(place(dir, &format!("{kind}/sha256/{}/{hex}/data", &hex[..2]))?, bytes)?)
    };
    let index = image.index(&json!({}))?;
    put("manifests", &digest(&index), &index)?;
    put("manifests", &digest(&image.manifest), &image.manifest)?;
    for (digest, blob) in image.blobs() {
        put("blobs", &digest, blob)?;
    }
    Ok(fs::write(dir.join("manifests").join(tag), format!("{}\n", digest(&index)))?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn names_lead_to_recipes_or_to_reasons() {
        for name in ["registry.k8s.io/pause:3.10.2", "registry.k8s.io/e2e-test-images/agnhost:2.55"] {
            assert!(find(name).is_ok(), "{name}");
        }
        for name in [
            "invalid.registry.k8s.io/invalid/alpine:3.1",
            "gcr.io/k8s-authenticated-test/agnhost:2.6",
            "registry.k8s.io/e2e-test-images/volume/nfs:1.6.0",
            "registry.k8s.io/sig-storage/csi-attacher:v4.8.0",
            "docker.io/library/redis:7",
            "registry.k8s.io/e2e-test-images/agnhost",
            "",
        ] {
            assert!(find(name).is_err(), "{name}");
        }
    }

    #[test]
    fn two_versions_of_an_image_differ() {
        let agnhost = recipe("e2e-test-images/agnhost").unwrap();
        assert_ne!(config("a/agnhost:2.55", agnhost), config("a/agnhost:2.63.0", agnhost));
        assert_eq!(config("a/agnhost:2.55", agnhost)["ExposedPorts"]["9376/tcp"], json!({}));
        let served = closure(agnhost).into_iter().flat_map(|top| top.programs);
        assert!(served.into_iter().any(|(program, ..)| matches!(program, Program::C(_))));
    }
}
