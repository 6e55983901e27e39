//! The two bpf(2) commands that a device filter takes. aya is for programs with maps and relocations; these few
//! instructions have neither.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// One eBPF instruction as the kernel reads it.
pub type Insn = u64;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Head of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a CGROUP_DEVICE program and attaches it to a cgroup, where it stays for the cgroup's life.
pub fn attach_device_filter(cgroup: impl AsFd, program: &[Insn]) -> io::Result<()> {
    let mut name = [0; 16];
    name[..12].copy_from_slice(b"keelson_devs");
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).or(Err(io::ErrorKind::InvalidInput))?,
        insns: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        prog_name: name,
        ..Load::default()
    };
    // SAFETY: `load` is a prefix of union bpf_attr of the size given; its pointers live across the call. A good result
    // is a new descriptor that nobody else owns.
    let fd = unsafe {
        let fd =
            super::check(libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()))?;
        OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1))
    };
    let attach = Attach {
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_bpf_fd: fd.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: as above; the kernel takes its own reference to the program.
    super::check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>())
    })
    .map(drop)
}
