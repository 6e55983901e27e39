//! Device nodes, and the eBPF filter that says which of them a container may use.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::BpfInsn;

/// A node to make below /dev.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Relative to /dev.
    pub path: PathBuf,
    /// Block, else character.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
}

impl DeviceNode {
    /// The nodes that the OCI runtime specification gives every container.
    pub fn defaults() -> Vec<Self> {
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
            .into_iter()
            .map(|(name, major, minor)| Self { path: name.into(), block: false, major, minor, mode: 0o666 })
            .collect()
    }
}

/// All device nodes of the node, for a privileged container: those below /dev, without ptys and shared memory, as
/// runc's `HostDevices`.
pub fn host_devices() -> Vec<DeviceNode> {
    let mut out = Vec::new();
    collect(Path::new("/dev"), Path::new(""), &mut out, 0);
    out
}

fn collect(dir: &Path, relative: &Path, out: &mut Vec<DeviceNode>, depth: u32) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let path = relative.join(&name);
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        let kind = meta.file_type();
        if kind.is_dir() {
            let skipped = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
            if depth < 4 && !skipped.iter().any(|s| name == *s) {
                collect(&entry.path(), &path, out, depth + 1);
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && name != "console" && name != "ptmx" {
            out.push(DeviceNode {
                path,
                block: kind.is_block_device(),
                major: rustix::fs::major(meta.rdev()),
                minor: rustix::fs::minor(meta.rdev()),
                mode: meta.mode() & 0o7777,
            });
        }
    }
}

/// Access kinds of `struct bpf_cgroup_dev_ctx`, in the upper half of `access_type`.
const MKNOD: i32 = 1;
/// Device types in the lower half.
const CHAR: i32 = 2;

/// Devices that any container may read and write: the default nodes, the pty multiplexer and ptys, as in runc's
/// `AllowedDevices`. A minor of -1 means any.
const ALLOWED: [(i32, i32); 9] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, -1)];

/// An eBPF program of type CGROUP_DEVICE: making any node is allowed (using it is not), and the devices above are.
///
/// Without it CAP_MKNOD, which is in the default set, would open the node's disks to every container.
pub fn device_filter() -> Vec<BpfInsn> {
    let insn = |code: u8, dst: u8, src: u8, off: i16, imm: i32| {
        u64::from(code)
            | u64::from(dst | src << 4) << 8
            | u64::from(off.cast_unsigned()) << 16
            | u64::from(imm.cast_unsigned()) << 32
    };
    let load = |dst, off| insn(0x61, dst, 1, off, 0);
    let exit_with = |value| [insn(0xb7, 0, 0, 0, value), insn(0x95, 0, 0, 0, 0)];
    // r2 = type, r3 = access, r4 = major, r5 = minor
    let mut program = vec![
        load(2, 0),
        insn(0xbc, 3, 2, 0, 0),
        insn(0x54, 2, 0, 0, 0xffff),
        insn(0x74, 3, 0, 0, 16),
        load(4, 4),
        load(5, 8),
    ];
    // Nothing but mknod: allowed.
    program.push(insn(0x55, 3, 0, 2, MKNOD));
    program.extend(exit_with(1));
    // Everything else that is allowed is a character device.
    program.push(insn(0x15, 2, 0, 2, CHAR));
    program.extend(exit_with(0));
    for (major, minor) in ALLOWED {
        if minor < 0 {
            program.push(insn(0x55, 4, 0, 2, major));
        } else {
            program.push(insn(0x55, 4, 0, 3, major));
            program.push(insn(0x55, 5, 0, 2, minor));
        }
        program.extend(exit_with(1));
    }
    program.extend(exit_with(0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter with the few instructions that it uses.
    fn allowed(kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let ctx = [access << 16 | kind, major, minor];
        let mut r = [0i32; 11];
        let program = device_filter();
        let mut pc = 0;
        loop {
            let i = program[pc];
            let (code, dst, src) = (i as u8, (i >> 8) as usize & 15, (i >> 12) as usize & 15);
            let (off, imm) = ((i >> 16) as i16, (i >> 32) as i32);
            pc += 1;
            match code {
                0x61 => r[dst] = ctx[usize::try_from(off).unwrap() / 4],
                0xbc => r[dst] = r[src],
                0x54 => r[dst] &= imm,
                0x74 => r[dst] = (r[dst] as u32 >> imm) as i32,
                0xb7 => r[dst] = imm,
                0x55 if r[dst] != imm => pc = pc.checked_add_signed(off.into()).unwrap(),
                0x15 if r[dst] == imm => pc = pc.checked_add_signed(off.into()).unwrap(),
                0x55 | 0x15 => {}
                0x95 => return r[0] != 0,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn filter() {
        let (block, read, write) = (1, 2, 4);
        assert!(
            allowed(CHAR, read | write, 1, 3) && allowed(CHAR, read, 136, 77) && allowed(CHAR, write, 5, 2)
        );
        assert!(allowed(block, MKNOD, 254, 0) && allowed(CHAR, MKNOD, 10, 200));
        assert!(
            !allowed(block, read, 254, 0)
                && !allowed(CHAR, read, 1, 1)
                && !allowed(CHAR, read | MKNOD, 10, 200)
        );
        assert!(!allowed(block, read, 1, 3));
    }
}
