//! A tree of files as a Debian package or a tarball. The same files at the same epoch give the same bytes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use keelson_tests::cmd;

/// A file to be installed.
#[derive(Debug, Clone)]
pub struct File {
    /// Path below the root, without the first slash.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// What it holds.
    pub content: Vec<u8>,
}

impl File {
    /// A file.
    pub fn new(path: impl Into<String>, mode: u32, content: Vec<u8>) -> Self {
        Self { path: path.into(), mode, content }
    }
}

/// A package to be. Files below /etc are conffiles.
#[derive(Debug)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// One line of description.
    pub summary: &'static str,
    /// More lines, in the form of the control file.
    pub description: &'static str,
    /// What is of use beside it.
    pub recommends: &'static str,
    /// Maintainer scripts by name.
    pub scripts: Vec<(&'static str, String)>,
    /// Symbolic links, by path below the root and target, that the scripts make and remove. The tarball has them as such.
    pub links: Vec<(&'static str, &'static str)>,
    /// Folders that are there even if empty.
    pub folders: Vec<&'static str>,
    /// Its files.
    pub files: Vec<File>,
}

/// How much time compression may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None, for what is installed once, in a test.
    None,
    /// The best, for what is given away.
    Best,
}

/// Makes a .deb in a folder.
pub fn deb(
    package: &Package,
    version: &str,
    epoch: u64,
    compression: Compression,
    out: &Path,
) -> Result<PathBuf> {
    let staged = tempfile::tempdir_in(out)?;
    let root = staged.path().join("root");
    lay_out(package, &root)?;
    let control = root.join("DEBIAN");
    folder(&control)?;
    write(&control.join("control"), 0o644, self::control(package, version).as_bytes())?;
    let conffiles: String = package
        .files
        .iter()
        .filter(|file| file.path.starts_with("etc/"))
        .map(|file| format!("/{}\n", file.path))
        .collect();
    write(&control.join("conffiles"), 0o644, conffiles.as_bytes())?;
    for (name, script) in &package.scripts {
        write(&control.join(name), 0o755, script.as_bytes())?;
    }
    let path = out.join(format!("{}_{version}_amd64.deb", package.name));
    // Debian's dpkg reads zstd from bookworm on, the oldest release whose kernel is new enough.
    let kind: &[&str] = if compression == Compression::Best { &["-Zzstd", "-z19"] } else { &["-Znone"] };
    cmd::run(
        Command::new("dpkg-deb")
            .arg("--root-owner-group")
            .args(kind)
            .arg("--build")
            .arg(&root)
            .arg(&path)
            .env("SOURCE_DATE_EPOCH", epoch.to_string()),
    )?;
    Ok(path)
}

/// Makes one tarball of all packages' files in a folder.
pub fn tarball(packages: &[Package], version: &str, epoch: u64, out: &Path) -> Result<PathBuf> {
    let staged = tempfile::tempdir_in(out)?;
    let name = format!("keelson-{version}");
    for package in packages {
        let root = staged.path().join(&name);
        for (path, target) in &package.links {
            let path = root.join(path);
            folder(path.parent().context("a link has a folder")?)?;
            std::os::unix::fs::symlink(target, &path).with_context(|| format!("link {}", path.display()))?;
        }
        lay_out(package, &root)?;
    }
    let path = out.join(format!("{name}-linux-amd64.tar.gz"));
    cmd::run(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"])
            .arg(format!("--mtime=@{epoch}"))
            .args(["--use-compress-program", "gzip -n9", "-C"])
            .arg(staged.path())
            .arg("-cf")
            .arg(&path)
            .arg(&name),
    )?;
    Ok(path)
}

fn control(package: &Package, version: &str) -> String {
    let Package { name, summary, description, recommends, files, .. } = package;
    // In KiB, each file rounded up.
    let size: usize = files.iter().map(|file| file.content.len().div_ceil(1024)).sum();
    format!(
        "Package: {name}\nVersion: {version}\nArchitecture: amd64\nSection: admin\nPriority: optional\n\
         Maintainer: Keelson developers <keelson@localhost>\nInstalled-Size: {size}\nRecommends: {recommends}\n\
         Description: {summary}\n {description}\n"
    )
}

fn lay_out(package: &Package, root: &Path) -> Result<()> {
    for path in &package.folders {
        folder(&root.join(path))?;
    }
    for file in &package.files {
        let path = root.join(&file.path);
        folder(path.parent().context("a file has a folder")?)?;
        write(&path, file.mode, &file.content)?;
    }
    // Whatever the umask is.
    let mut folders = vec![root.to_owned()];
    while let Some(dir) = folders.pop() {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn write(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package() -> Package {
        Package {
            name: "thing",
            summary: "a thing",
            description: "It does things.",
            recommends: "ca-certificates",
            scripts: vec![("postinst", "#!/bin/sh\nexit 0\n".to_owned())],
            links: vec![("opt/thing", "/usr/bin/thing")],
            folders: vec!["etc/thing.d"],
            files: vec![
                File::new("usr/bin/thing", 0o755, vec![7; 5000]),
                File::new("etc/default/thing", 0o644, b"X=1\n".to_vec()),
            ],
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let make = |dir: &Path| {
            let deb = deb(&package(), "1.2", 1_700_000_000, Compression::None, dir).unwrap();
            let tar = tarball(&[package()], "1.2", 1_700_000_000, dir).unwrap();
            (fs::read(deb).unwrap(), fs::read(tar).unwrap())
        };
        let one = make(first.path());
        // The second's files are younger by more than what tar keeps of a time.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(one == make(second.path()), "the packages differ");
    }

    #[test]
    fn dpkg_reads_what_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let deb = deb(&package(), "1.2", 1_700_000_000, Compression::None, dir.path()).unwrap();
        let ask = |args: &[&str]| cmd::text(Command::new("dpkg-deb").args(args).arg(&deb)).unwrap();
        assert_eq!(ask(&["--show"]), "thing\t1.2");
        let contents = ask(&["--contents"]);
        assert!(contents.contains("-rwxr-xr-x root/root      5000 2023-11-14"), "{contents}");
        assert!(contents.contains("./etc/thing.d/"), "{contents}");
        assert!(!contents.contains("./opt"), "{contents}");
        let tar = tarball(&[package()], "1.2", 1_700_000_000, dir.path()).unwrap();
        let listed = cmd::text(Command::new("tar").arg("-tvf").arg(tar)).unwrap();
        assert!(listed.contains("keelson-1.2/opt/thing -> /usr/bin/thing"), "{listed}");
        let conffiles = cmd::text(Command::new("dpkg-deb").args(["--info"]).arg(&deb).arg("conffiles"));
        assert_eq!(conffiles.unwrap(), "/etc/default/thing");
    }
}
