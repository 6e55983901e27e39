//! The one narrow door to the kernel: the only module of this crate that holds `unsafe` or raw system calls. What
//! rustix and nix offer safely is used directly where it is needed.

mod async_fd;
mod bpf;
mod clone;
mod fdpass;
mod mount;
mod process;

pub use async_fd::async_fd;
pub use bpf::{Insn as BpfInsn, attach_device_filter};
pub use clone::{Born, CloneFlags, clone3};
pub use fdpass::{recv_fds, send_fds, socketpair, take_inherited};
pub use mount::{MountAttr, mount_setattr};
pub use process::{
    chown_fd, close_on_exec_from, exec_fd, exit_now, ignore_no_signals, inherit_at, install_seccomp,
    loopback_up, pidfd_signal, place_at, set_not_dumpable, unshare_cgroup, wait_any, wait_pid,
};

use std::io;

/// Gives a libc result or the error that errno holds.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
