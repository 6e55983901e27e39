//! Debian packages of any suite, fetched with the machine's own apt settings (its mirror and keys), without
//! installing anything and without touching the machine's package lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cmd, paths};

/// A private apt for one suite, with an empty package state: every dependency counts as missing.
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Sets up (or re-uses) the private apt of a suite such as `bookworm` or `trixie-backports`.
    pub fn suite(suite: &str) -> Result<Self> {
        Self::set_up(suite, "deb", suite)
    }

    /// The same for the sources of a suite's packages.
    pub fn sources(suite: &str) -> Result<Self> {
        Self::set_up(&format!("{suite}-sources"), "deb-src", suite)
    }

    fn set_up(folder: &str, kind: &str, suite: &str) -> Result<Self> {
        let dir = paths::cache().join("apt").join(folder);
        let apt = Self { dir: dir.clone() };
        if dir.join("ready").exists() {
            return Ok(apt);
        }
        for sub in ["lists/partial", "cache/archives/partial", "parts"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("make {}", dir.join(sub).display()))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("empty.conf"), "")?;
        let (uri, keyring) = debian_mirror()?;
        fs::write(dir.join("sources.list"), format!("{kind} [signed-by={keyring}] {uri} {suite} main\n"))?;
        cmd::run(apt.tool("apt-get").arg("update")).context("fetch the package lists of a Debian suite")?;
        fs::write(dir.join("ready"), "")?;
        Ok(apt)
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            format!("Dir::Etc::sourceparts={dir}/parts"),
            format!("Dir::Etc::preferencesparts={dir}/parts"),
            format!("Dir::State={dir}"),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}/cache"),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Debug::NoLocking=true".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command
    }

    /// Fetches one package, without its dependencies; gives the path of the .deb.
    pub fn package(&self, name: &str) -> Result<PathBuf> {
        let into = self.dir.join("single");
        fs::create_dir_all(&into)?;
        let deb = |file: &str| file.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'));
        if let Some(found) = find_file(&into, deb)? {
            return Ok(found);
        }
        cmd::run(self.tool("apt-get").args(["download", name]).current_dir(&into))?;
        find_file(&into, deb)?.with_context(|| format!("apt-get download {name} left no package"))
    }

    /// Fetches a package's source (this must be of [`Apt::sources`]); gives the path of the archive as upstream released
    /// it, without Debian's changes.
    pub fn original(&self, name: &str) -> Result<PathBuf> {
        let into = self.dir.join("originals").join(name);
        let original = |file: &str| file.contains(".orig.tar.") && !file.ends_with(".asc");
        if let Some(found) = find_file(&into, original)? {
            return Ok(found);
        }
        let partial = tempfile::tempdir_in(&self.dir)?;
        let mut fetch = self.tool("apt-get");
        cmd::run(fetch.args(["source", "--download-only", name]).current_dir(partial.path()))?;
        fs::create_dir_all(self.dir.join("originals"))?;
        fs::rename(partial.path(), &into)?;
        find_file(&into, original)?.with_context(|| format!("the source of {name} has no original archive"))
    }

    /// Fetches packages with all that they depend on; gives the paths of the .deb files, sorted by name.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        // What is in the cache already would not be printed, so the plan is made beside an empty one.
        let empty = tempfile::tempdir_in(&self.dir)?;
        fs::create_dir_all(empty.path().join("archives/partial"))?;
        let mut plan = self.tool("apt-get");
        plan.arg("-o").arg(format!("Dir::Cache={}", empty.path().display()));
        let plan = cmd::text(plan.args(["install", "--yes", "--print-uris", "-qq"]).args(names))?;
        let mut files: Vec<String> =
            plan.lines().filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect();
        files.sort();
        let archives = self.dir.join("cache/archives");
        if !files.iter().all(|file| archives.join(file).exists()) {
            cmd::run(self.tool("apt-get").args(["install", "--yes", "--download-only"]).args(names))?;
        }
        Ok(files.into_iter().map(|file| archives.join(file)).collect())
    }
}

/// Unpacks the files of a .deb into a folder; no maintainer script runs.
pub fn unpack(deb: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("make {}", into.display()))?;
    cmd::run(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(into))?;
    Ok(())
}

/// The release that this machine runs, such as `bookworm`.
pub fn codename() -> Result<String> {
    fs::read_to_string("/etc/os-release")?
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME=").map(str::to_owned))
        .context("/etc/os-release names no VERSION_CODENAME: a Debian system is needed")
}

/// A file of a folder by its name; none in a folder that is not there.
fn find_file(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    if !dir.exists() {
        return Ok(None);
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|file| wanted(&file.to_string_lossy())) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The archive's address and key ring, from the machine's own deb822 or one-line sources.
fn debian_mirror() -> Result<(String, String)> {
    const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let codename = codename()?;
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "sources" || e == "list") {
                texts.push(fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
    for text in &texts {
        for stanza in text.split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
            };
            if let (Some(uris), Some(suites)) = (field("URIs:"), field("Suites:"))
                && suites.split_whitespace().any(|suite| suite == codename)
                && let Some(uri) = uris.split_whitespace().next()
            {
                return Ok((uri.to_owned(), KEYRING.to_owned()));
            }
        }
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().filter(|word| !word.starts_with('[')).collect();
            if let ["deb", uri, suite, ..] = words[..]
                && suite == codename
            {
                return Ok((uri.to_owned(), KEYRING.to_owned()));
            }
        }
    }
    bail!("no apt source for {codename} in /etc/apt: add the Debian archive there")
}
