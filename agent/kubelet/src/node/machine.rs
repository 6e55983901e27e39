//! Facts of the machine: read once at start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Error;

/// Roots of the files read here; tests give folders of their own.
#[derive(Debug, Clone)]
pub struct MachinePaths {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/etc`.
    pub etc: PathBuf,
    /// `/var/lib/dbus`, the other place of machine-id.
    pub dbus: PathBuf,
}

impl Default for MachinePaths {
    fn default() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into(), etc: "/etc".into(), dbus: "/var/lib/dbus".into() }
    }
}

/// What `status.nodeInfo` and the capacity are made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineInfo {
    /// CPUs that are online.
    pub cpus: u64,
    /// Memory in bytes (MemTotal).
    pub memory: u64,
    /// Huge pages by page size in bytes: number of pages.
    pub hugepages: Vec<(u64, u64)>,
    /// systemd's machine id.
    pub machine_id: String,
    /// DMI product UUID; the machine id where there is none.
    pub system_uuid: String,
    /// New at each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// PRETTY_NAME of os-release.
    pub os_image: String,
}

impl MachineInfo {
    /// Reads all facts.
    pub fn read(paths: &MachinePaths) -> Result<Self, Error> {
        let machine_id = optional(&paths.etc.join("machine-id"))
            .or_else(|| optional(&paths.dbus.join("machine-id")))
            .unwrap_or_default();
        let system_uuid = optional(&paths.sys.join("class/dmi/id/product_uuid"))
            .map(|uuid| uuid.to_lowercase())
            .unwrap_or_else(|| machine_id.clone());
        let meminfo = paths.proc.join("meminfo");
        let memory = required(&meminfo, |text| meminfo_bytes(text, "MemTotal"))?;
        let cpus = required(&paths.sys.join("devices/system/cpu/online"), count_cpu_list)?;
        Ok(Self {
            cpus,
            memory,
            hugepages: hugepages(&paths.sys.join("kernel/mm/hugepages")),
            machine_id,
            system_uuid,
            boot_id: required(&paths.proc.join("sys/kernel/random/boot_id"), |text| Some(text.to_owned()))?,
            kernel_version: required(&paths.proc.join("sys/kernel/osrelease"), |text| Some(text.to_owned()))?,
            os_image: optional(&paths.etc.join("os-release"))
                .and_then(|text| os_release_value(&text, "PRETTY_NAME"))
                .unwrap_or_else(|| "Linux".to_owned()),
        })
    }
}

/// Architecture in Go's spelling, as `kubernetes.io/arch` has it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// A field of /proc/meminfo in bytes.
pub(super) fn meminfo_bytes(text: &str, field: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Number of CPUs in a kernel list such as `0-3,8`.
fn count_cpu_list(text: &str) -> Option<u64> {
    let mut count = 0_u64;
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    (count > 0).then_some(count)
}

fn os_release_value(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    let value = value.trim();
    let unquoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    Some(unquoted.or_else(|| value.strip_prefix('\'')?.strip_suffix('\'')).unwrap_or(value).to_owned())
}

/// Page sizes and counts of /sys/kernel/mm/hugepages; empty when the kernel has none.
fn hugepages(dir: &Path) -> Vec<(u64, u64)> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name
            .to_string_lossy()
            .strip_prefix("hugepages-")
            .and_then(|rest| rest.strip_suffix("kB"))
            .and_then(|kib| kib.parse::<u64>().ok()?.checked_mul(1024));
        let count = optional(&entry.path().join("nr_hugepages")).and_then(|text| text.parse().ok());
        if let (Some(size), Some(count)) = (size, count) {
            sizes.push((size, count));
        }
    }
    sizes.sort_unstable();
    sizes
}

fn optional(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn required<T>(path: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Error> {
    let wrap = |source| Error::Read { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(wrap)?;
    parse(text.trim()).ok_or_else(|| Error::Read {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, "unexpected content"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_cpus(text: &str, expected: Option<u64>) {
        assert_eq!(count_cpu_list(text), expected, "{text}");
    }

    #[test]
    fn cpu_lists() {
        check_cpus("0\n", Some(1));
        check_cpus("0-3", Some(4));
        check_cpus("0-1,4,6-7", Some(5));
        check_cpus("", None);
        check_cpus("3-1", None);
    }

    #[test]
    fn memory() {
        let text = "MemTotal:       24624352 kB\nMemAvailable:    100 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal"), Some(24_624_352 * 1024));
        assert_eq!(meminfo_bytes(text, "MemFree"), None);
    }

    #[test]
    fn os_names() {
        assert_eq!(
            os_release_value("A=1\nPRETTY_NAME=\"Debian 12\"\n", "PRETTY_NAME").as_deref(),
            Some("Debian 12")
        );
        assert_eq!(os_release_value("PRETTY_NAME=plain", "PRETTY_NAME").as_deref(), Some("plain"));
        assert_eq!(os_release_value("NAME=x", "PRETTY_NAME"), None);
    }

    #[test]
    fn this_machine() {
        let info = MachineInfo::read(&MachinePaths::default()).unwrap();
        assert!(
            info.cpus > 0 && info.memory > 0 && !info.kernel_version.is_empty() && info.boot_id.len() == 36
        );
    }
}
