//! What a test cluster could leave behind on the machine: links, mounts, cgroups, BPF objects, processes, and
//! namespaces.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::host::{cgroup2_mount, ended};

/// The machine at one moment, each entry one line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Takes one.
    pub fn take() -> Result<Self> {
        let mut entries = BTreeSet::new();
        for link in fs::read_dir("/sys/class/net")? {
            entries.insert(format!("link {}", link?.file_name().to_string_lossy()));
        }
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            entries.insert(format!("mount {point}"));
        }
        walk_cgroups(&cgroup2_mount()?, &mut entries)?;
        for (kind, command) in
            [("program", BPF_PROG_GET_NEXT_ID), ("map", BPF_MAP_GET_NEXT_ID), ("link", BPF_LINK_GET_NEXT_ID)]
        {
            for id in bpf_ids(command) {
                entries.insert(format!("bpf {kind} {id}"));
            }
        }
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            if i32::try_from(pid).is_ok_and(ended) {
                // The machine's first process reaps it in its own time.
                continue;
            }
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.starts_with("keelson") || comm.starts_with("testapp") {
                entries.insert(format!("process {pid} {}", comm.trim()));
            }
            for kind in ["net", "mnt", "pid", "ipc", "uts", "cgroup"] {
                if let Ok(to) = fs::read_link(entry.path().join("ns").join(kind)) {
                    entries.insert(format!("namespace {}", to.display()));
                }
            }
        }
        for folder in [
            "/run/netns",
            "/etc/cni",
            "/var/lib/kubelet",
            "/var/lib/keelson",
            "/var/log/pods",
            "/etc/kubernetes",
        ] {
            if let Ok(inside) = fs::read_dir(folder) {
                entries.insert(format!("folder {folder}"));
                for file in inside.flatten() {
                    entries.insert(format!("file {}", file.path().display()));
                }
            }
        }
        Ok(Self(entries))
    }

    /// All that it is made of.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// What is in `self` and was not in `before`.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

fn walk_cgroups(dir: &Path, entries: &mut BTreeSet<String>) -> Result<()> {
    entries.insert(format!("cgroup {}", dir.display()));
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk_cgroups(&entry.path(), entries)?;
        }
    }
    Ok(())
}

// Commands of bpf(2), linux/bpf.h (since 4.13, links since 5.8).
const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;
const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;

fn bpf_ids(command: libc::c_int) -> Vec<u32> {
    // struct { __u32 start_id; __u32 next_id; __u32 open_flags; } of union bpf_attr.
    let mut attr = [0u32; 4];
    let mut ids = Vec::new();
    loop {
        // SAFETY: attr is a live, writable buffer of the size given; the kernel reads start_id and writes next_id.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), std::mem::size_of_val(&attr)) };
        if result < 0 {
            return ids;
        }
        ids.push(attr[1]);
        attr[0] = attr[1];
    }
}
