//! Kernels of guests: Debian's cloud kernels, fetched as packages and unpacked, never installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::disk;
use crate::{cmd, debian, paths};

/// A kernel that guests boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// 6.1, the oldest supported: no TCX.
    V6_1,
    /// 6.12.
    V6_12,
    /// The newest that Debian's backports have.
    Newest,
}

impl Kernel {
    /// Every kernel, oldest first.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::Newest];

    /// What the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "trixie-backports",
        }
    }

    /// Fetches and unpacks the kernel, unless an earlier run did.
    pub(super) fn fetch(self) -> Result<KernelFiles> {
        let dir = paths::cache().join("vm").join(format!("kernel-{}", self.name()));
        let files = KernelFiles {
            image: dir.join("vmlinuz"),
            modules: dir.join("modules.ext4"),
            boot_modules: dir.join("boot"),
        };
        if dir.exists() {
            return Ok(files);
        }
        let parent = paths::cache().join("vm");
        fs::create_dir_all(&parent)?;
        let work = tempfile::tempdir_in(&parent)?;
        prepare(self.suite(), work.path())
            .with_context(|| format!("prepare the guest kernel {}", self.name()))?;
        fs::rename(work.keep(), &dir)?;
        Ok(files)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.name() == text)
            .ok_or_else(|| format!("no such kernel: there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(super) struct KernelFiles {
    /// The bzImage.
    pub image: PathBuf,
    /// ext4 image with the content of /lib/modules.
    pub modules: PathBuf,
    /// Folder with the modules that reach the root disk: `NN-name.ko`, to be loaded in the order of their names.
    pub boot_modules: PathBuf,
}

/// Modules that a guest needs before its root disk is there, where they are not built in.
const BOOT_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_console"];

fn prepare(suite: &str, dir: &Path) -> Result<()> {
    let unpacked = dir.join("unpacked");
    for deb in packages(&debian::Apt::suite(suite)?)? {
        debian::unpack(&deb, &unpacked)?;
    }
    // Debian's older packages have /lib/modules and /boot/vmlinuz-*, the newer /usr/lib/modules/*/vmlinuz.
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .map(|path| unpacked.join(path))
        .find(|path| path.exists())
        .context("the kernel's packages hold no modules")?;
    let version = only_entry(&modules)?;
    let inside = modules.join(&version).join("vmlinuz");
    let image =
        if inside.exists() { inside } else { unpacked.join("boot").join(format!("vmlinuz-{version}")) };
    fs::rename(&image, dir.join("vmlinuz")).with_context(|| format!("find {}", image.display()))?;

    let staged = dir.join("staged/lib/modules");
    fs::create_dir_all(&staged)?;
    fs::rename(modules.join(&version), staged.join(&version))?;
    // Emulated guests unpack slowly; once here is enough.
    cmd::run(Command::new("find").arg(&staged).args([
        "-name",
        "*.ko.xz",
        "-exec",
        "xz",
        "--decompress",
        "--threads=0",
        "{}",
        "+",
    ]))?;
    cmd::run(Command::new("depmod").arg("-b").arg(dir.join("staged")).arg(&version))?;

    let dep = fs::read_to_string(staged.join(&version).join("modules.dep"))?;
    let boot = dir.join("boot");
    fs::create_dir(&boot)?;
    for (number, module) in load_order(&dep, BOOT_MODULES).iter().enumerate() {
        let name = Path::new(module).file_name().unwrap_or_default().to_string_lossy();
        fs::copy(staged.join(&version).join(module), boot.join(format!("{number:02}-{name}")))?;
    }
    disk::ext4(&staged, &dir.join("modules.ext4"), disk::Spare(16 << 20))?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_dir_all(dir.join("staged"))?;
    Ok(())
}

/// The packages of a suite's cloud kernel: what the metapackage depends on, as far as it holds the kernel itself.
fn packages(apt: &debian::Apt) -> Result<Vec<PathBuf>> {
    let mut wanted = vec!["linux-image-cloud-amd64".to_owned()];
    let mut debs = Vec::new();
    while let Some(name) = wanted.pop() {
        let deb = apt.package(&name)?;
        let depends = cmd::text(Command::new("dpkg-deb").arg("--field").arg(&deb).arg("Depends"))?;
        wanted.extend(kernel_packages(&depends));
        debs.push(deb);
    }
    Ok(debs)
}

/// Names in a Depends field that hold parts of the kernel.
fn kernel_packages(depends: &str) -> Vec<String> {
    depends
        .split(',')
        .filter_map(|part| part.split_whitespace().next())
        .filter(|name| {
            ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|part| name.starts_with(part))
        })
        .map(str::to_owned)
        .collect()
}

/// Files of the named modules and of all that they need, each after what it needs. Names that modules.dep does not have
/// are built in. See modules.dep(5).
fn load_order(modules_dep: &str, names: &[&str]) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for name in names {
        let line = modules_dep.lines().filter_map(|line| line.split_once(':')).find(|(path, _)| {
            let stem = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
            stem.replace('-', "_") == *name
        });
        let Some((path, needs)) = line else { continue };
        // The nearest need is listed first, the deepest last.
        for file in needs.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    order
}

fn only_entry(dir: &Path) -> Result<String> {
    let names: Vec<String> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    match &names[..] {
        [name] => Ok(name.clone()),
        other => bail!("{} holds {other:?} instead of one version", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_first_and_once() {
        let dep = "kernel/drivers/virtio/virtio.ko:\n\
                   kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko\n\
                   kernel/drivers/virtio/virtio-pci.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
                   kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n";
        let order = load_order(dep, &["virtio_pci", "virtio_blk", "ext4"]);
        let names: Vec<&str> = order.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["virtio.ko", "virtio_ring.ko", "virtio-pci.ko", "virtio_blk.ko"]);
    }

    #[test]
    fn parts_of_a_kernel() {
        let depends = "kmod, linux-base (>= 4.3~), linux-binary-7.2 (= 1), linux-modules-7.2 (= 1), a | b";
        assert_eq!(kernel_packages(depends), ["linux-binary-7.2", "linux-modules-7.2"]);
    }

    #[test]
    fn names_round_trip() {
        for kernel in Kernel::ALL {
            assert_eq!(kernel.name().parse(), Ok(kernel));
        }
        assert!("5.10".parse::<Kernel>().is_err());
    }
}
