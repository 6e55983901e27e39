//! Hard eviction thresholds, and whether the node is below one of them.

use std::fs;
use std::path::Path;

use keelson_quantity::Quantity;
use nix::sys::statvfs::statvfs;

use super::machine::meminfo_bytes;
use super::{Capacity, Error, FlagError, NodeConfig};

/// A threshold: so many units, or a part of the capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// Bytes, inodes or processes.
    Absolute(u64),
    /// Part of the capacity, 0 to 1.
    Fraction(f64),
}

impl Threshold {
    /// The threshold in units, of that capacity.
    pub(super) fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Absolute(units) => units,
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a threshold needs no more precision than f64 has; f32 rounding is what upstream does"
            )]
            Self::Fraction(part) => (capacity as f64 * part) as u64,
        }
    }
}

/// Hard eviction thresholds. The defaults are kubelet's.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// `memory.available`.
    pub memory_available: Threshold,
    /// `nodefs.available`.
    pub nodefs_available: Threshold,
    /// `nodefs.inodesFree`.
    pub nodefs_inodes_free: Threshold,
    /// `imagefs.available`.
    pub imagefs_available: Threshold,
    /// `imagefs.inodesFree`.
    pub imagefs_inodes_free: Threshold,
    /// `pid.available`.
    pub pid_available: Threshold,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            memory_available: Threshold::Absolute(100 << 20),
            nodefs_available: Threshold::Fraction(0.10),
            nodefs_inodes_free: Threshold::Fraction(0.05),
            imagefs_available: Threshold::Fraction(0.15),
            imagefs_inodes_free: Threshold::Fraction(0.05),
            pid_available: Threshold::Absolute(0),
        }
    }
}

impl Thresholds {
    /// A node that is never under pressure.
    pub fn none() -> Self {
        let none = Threshold::Absolute(0);
        Self {
            memory_available: none,
            nodefs_available: none,
            nodefs_inodes_free: none,
            imagefs_available: none,
            imagefs_inodes_free: none,
            pid_available: none,
        }
    }

    /// Parses kubelet's `memory.available<100Mi,nodefs.available<10%`. As upstream's, a value given replaces all
    /// defaults: signals that it doesn't name have no threshold.
    pub fn parse(text: &str) -> Result<Self, FlagError> {
        let mut thresholds = Self::none();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let bad = || FlagError::Threshold(item.to_owned());
            let (signal, value) = item.split_once('<').ok_or_else(bad)?;
            let value = parse_value(value).ok_or_else(bad)?;
            match signal {
                "memory.available" => thresholds.memory_available = value,
                "nodefs.available" => thresholds.nodefs_available = value,
                "nodefs.inodesFree" => thresholds.nodefs_inodes_free = value,
                "imagefs.available" => thresholds.imagefs_available = value,
                "imagefs.inodesFree" => thresholds.imagefs_inodes_free = value,
                "pid.available" => thresholds.pid_available = value,
                _ => return Err(bad()),
            }
        }
        Ok(thresholds)
    }
}

fn parse_value(text: &str) -> Option<Threshold> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.parse().ok()?;
        return (0.0..=100.0).contains(&percent).then_some(Threshold::Fraction(percent / 100.0));
    }
    // As upstream, an amount must be positive.
    let amount = text.parse::<Quantity>().ok().filter(|amount| amount.sign() > 0)?;
    u64::try_from(amount.value()).ok().map(Threshold::Absolute)
}

/// Which thresholds are crossed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressures {
    /// MemoryPressure.
    pub memory: bool,
    /// DiskPressure.
    pub disk: bool,
    /// PIDPressure.
    pub pid: bool,
}

/// Size of one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filesystem {
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes free for users other than root.
    pub available: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Filesystem {
    /// The filesystem that holds `path`, or its nearest parent that is there.
    pub(super) fn of(path: &Path) -> Result<Self, Error> {
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
        let stat = statvfs(there).map_err(|source| Error::Filesystem { path: there.to_owned(), source })?;
        Ok(Self {
            capacity: stat.blocks().saturating_mul(stat.fragment_size()),
            available: stat.blocks_available().saturating_mul(stat.fragment_size()),
            inodes: stat.files(),
            inodes_free: stat.files_free(),
        })
    }

    /// Filesystems that count no inodes (btrfs) have 0 of 0, which is no shortage.
    fn short(self, available: Threshold, inodes_free: Threshold) -> bool {
        self.available < available.of(self.capacity)
            || (self.inodes > 0 && self.inodes_free < inodes_free.of(self.inodes))
    }
}

/// Looks at memory, disks and process ids. What can't be read counts as no pressure, and is logged.
pub(super) fn measure(config: &NodeConfig, capacity: &Capacity, imagefs: Option<&Path>) -> Pressures {
    let thresholds = &config.eviction_hard;
    let proc = &config.machine.proc;
    let available = fs::read_to_string(proc.join("meminfo"))
        .ok()
        .and_then(|text| meminfo_bytes(&text, "MemAvailable"))
        .unwrap_or(u64::MAX);
    let short = |path: &Path, available, inodes| match Filesystem::of(path) {
        Ok(filesystem) => filesystem.short(available, inodes),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "can't measure a filesystem");
            false
        }
    };
    let nodefs = short(&config.root_dir, thresholds.nodefs_available, thresholds.nodefs_inodes_free);
    let imagefs =
        imagefs.is_some_and(|path| short(path, thresholds.imagefs_available, thresholds.imagefs_inodes_free));
    Pressures {
        memory: available < thresholds.memory_available.of(capacity.memory),
        disk: nodefs || imagefs,
        pid: pids_left(proc).is_some_and(|(left, max)| left < thresholds.pid_available.of(max)),
    }
}

/// Most process ids that this machine has.
pub fn pid_capacity() -> Option<u64> {
    most_pids(Path::new("/proc"))
}

fn most_pids(proc: &Path) -> Option<u64> {
    let number = |path: &str| fs::read_to_string(proc.join(path)).ok()?.trim().parse::<u64>().ok();
    Some(number("sys/kernel/pid_max")?.min(number("sys/kernel/threads-max")?))
}

/// Process ids left, and the most there may be.
fn pids_left(proc: &Path) -> Option<(u64, u64)> {
    let max = most_pids(proc)?;
    // Fourth field of loadavg: running/all tasks.
    let loadavg = fs::read_to_string(proc.join("loadavg")).ok()?;
    let tasks: u64 = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((max.saturating_sub(tasks), max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Option<Threshold>) {
        assert_eq!(parse_value(text), expected, "{text}");
    }

    #[test]
    fn values() {
        check("100Mi", Some(Threshold::Absolute(100 << 20)));
        check("10%", Some(Threshold::Fraction(0.1)));
        check("5", Some(Threshold::Absolute(5)));
        check("101%", None);
        check("x", None);
        check("1Xi", None);
        check("1.5Gi", Some(Threshold::Absolute(3 << 29)));
        check("1e3", Some(Threshold::Absolute(1000)));
        check("0", None);
        check("-1Gi", None);
    }

    #[test]
    fn flag_replaces_defaults() {
        let thresholds = Thresholds::parse("memory.available<1Gi").unwrap();
        assert_eq!(thresholds.memory_available, Threshold::Absolute(1 << 30));
        assert_eq!(thresholds.nodefs_available, Threshold::Absolute(0));
        assert!(Thresholds::parse("cpu.available<1").is_err());
        assert!(Thresholds::parse("memory.available=1").is_err());
    }

    #[test]
    fn shortages() {
        let filesystem =
            |available, inodes, inodes_free| Filesystem { capacity: 1000, available, inodes, inodes_free };
        let short = |f: Filesystem| f.short(Threshold::Fraction(0.1), Threshold::Fraction(0.05));
        assert!(short(filesystem(99, 100, 100)));
        assert!(short(filesystem(500, 100, 4)));
        assert!(!short(filesystem(500, 0, 0)));
        assert!(!short(filesystem(100, 100, 5)));
    }
}
