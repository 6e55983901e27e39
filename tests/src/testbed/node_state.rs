//! What a node holds for its pods, and what an agent could leave there: processes, cgroups, mounts, links, addresses,
//! entries of BPF maps, files.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::bpf::bpf;
use super::host::{Host, ended};

/// A node at one moment: lines of text, each with how often it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState(BTreeMap<String, usize>);

/// Folders whose files are looked at, as the host sees them; how deep; and what is left out.
const FOLDERS: &[(&str, usize)] = &[
    ("run/keelson", 3),
    ("run/netns", 1),
    ("var/lib/keelson/containers", 1),
    ("var/lib/keelson/sandboxes", 1),
    ("var/lib/keelson/cni", 4),
    ("var/lib/keelson/images", 2),
    ("var/lib/kubelet/pods", 1),
    ("var/log/pods", 1),
    ("var/log/containers", 1),
];

impl NodeState {
    /// Takes it.
    pub fn take(host: &Host) -> Result<Self> {
        let mut state = Self::default();
        let proc = Path::new("/proc").join(host.pid.to_string());
        let root = proc.join("root");
        state.cgroups(&host.cgroup, &host.cgroup)?;
        for line in fs::read_to_string(proc.join("mountinfo"))?.lines() {
            state.add(format!("mount {}", line.split(' ').nth(4).unwrap_or_default()));
        }
        for line in fs::read_to_string(proc.join("net/dev"))?.lines().skip(2) {
            state.add(format!("link {}", line.split(':').next().unwrap_or_default().trim()));
        }
        for file in ["net/route", "net/ipv6_route"] {
            for line in fs::read_to_string(proc.join(file))?.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                let device = if file == "net/route" { words.first() } else { words.last() };
                state.add(format!("{file} {} {}", words.get(1).unwrap_or(&""), device.unwrap_or(&"")));
            }
        }
        state.maps(&root.join("sys/fs/bpf"), "")?;
        for (folder, depth) in FOLDERS {
            state.files(&root.join(folder), folder, *depth)?;
        }
        Ok(state)
    }

    /// What there is more of than before.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        let more = self.0.iter().filter_map(|(line, count)| {
            let had = before.0.get(line).copied().unwrap_or_default();
            (*count > had).then(|| format!("{line} ({had} -> {count})"))
        });
        more.collect()
    }

    /// All that it is made of: each line, and how often it is there.
    pub fn lines(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(line, count)| (line.as_str(), *count))
    }

    /// How often a line is there.
    pub fn count(&self, line: &str) -> usize {
        self.0.get(line).copied().unwrap_or_default()
    }

    fn add(&mut self, line: String) {
        *self.0.entry(line).or_default() += 1;
    }

    /// The host's cgroups and the processes in them. What is entered by the test is under `system`, and comes and goes.
    fn cgroups(&mut self, root: &Path, dir: &Path) -> Result<()> {
        let name = dir.strip_prefix(root)?.display().to_string();
        if name == "system/client" {
            return Ok(());
        }
        self.add(format!("cgroup {name}"));
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            if pid.parse().is_ok_and(|pid| !ended(pid)) {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                self.add(format!("process {}", comm.trim()));
            }
        }
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.cgroups(root, &entry.path())?;
            }
        }
        Ok(())
    }

    fn files(&mut self, dir: &Path, name: &str, depth: usize) -> Result<()> {
        // What goes while it is looked at is gone.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.files(&entry.path(), &name, depth - 1)?;
            }
            self.add(format!("file {name}"));
        }
        Ok(())
    }

    /// Entries of the pinned maps. Caches that the kernel bounds by itself (LRU) keep what they have.
    fn maps(&mut self, dir: &Path, name: &str) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.maps(&entry.path(), &name)?;
                continue;
            }
            // The kernel's own, in every such file system (bpf_preload): what they list is not the node's alone.
            if matches!(name.as_str(), "/progs.debug" | "/maps.debug") {
                continue;
            }
            self.add(format!("bpf {name}"));
            let entries = Map::open(&entry.path())?.map_or(0, |map| map.entries());
            for _ in 0..entries {
                self.add(format!("entry of bpf {name}"));
            }
        }
        Ok(())
    }
}

// Commands of bpf(2) and map types, linux/bpf.h.
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_TYPE_HASH: u32 = 1;

/// A hash map of the kernel's.
struct Map {
    fd: OwnedFd,
    key_size: usize,
}

impl Map {
    /// Opens what is pinned there; none when it is something else than a plain hash map.
    fn open(path: &Path) -> Result<Option<Self>> {
        let text = CString::new(path.as_os_str().as_bytes())?;
        // struct { __aligned_u64 pathname; … }
        let mut attr = [0u64; 16];
        attr[0] = text.as_ptr() as u64;
        // SAFETY: the path is a string that lives across the call.
        let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }.with_context(|| path.display().to_string())?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let kind = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if !kind.to_string_lossy().contains("bpf-map") {
            return Ok(None);
        }
        // struct bpf_map_info { __u32 type; __u32 id; __u32 key_size; … }
        let mut info = [0u32; 32];
        // struct { __u32 bpf_fd; __u32 info_len; __aligned_u64 info; }, little endian.
        let mut attr = [0u64; 16];
        attr[0] = u64::try_from(fd.as_raw_fd())? | (u64::try_from(std::mem::size_of_val(&info))? << 32);
        attr[1] = info.as_mut_ptr() as u64;
        // SAFETY: info is writable and of the length given.
        unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.with_context(|| path.display().to_string())?;
        Ok((info[0] == BPF_MAP_TYPE_HASH).then_some(Self { fd, key_size: usize::try_from(info[2])? }))
    }

    /// How many entries it has.
    fn entries(&self) -> usize {
        let mut key: Option<Vec<u8>> = None;
        for count in 0.. {
            let mut next = vec![0u8; self.key_size];
            // struct { __u32 map_fd; __aligned_u64 key; __aligned_u64 next_key; }
            let mut attr = [0u64; 16];
            attr[0] = self.fd.as_raw_fd().unsigned_abs().into();
            attr[1] = key.as_ref().map_or(0, |key| key.as_ptr() as u64);
            attr[2] = next.as_mut_ptr() as u64;
            // SAFETY: both keys have the map's key size and live across the call; a null key asks for the first.
            if unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) }.is_err() {
                return count;
            }
            key = Some(next);
        }
        0
    }
}
