//! What a process does to itself on its way to becoming a container's.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::check;

/// Nobody in the container may look into this process before it has become the container's own
/// (CVE-2016-9962).
pub fn set_not_dumpable() -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into()).map(drop)
}

/// Sets every signal to its default and unblocks all: Rust's start-up ignores SIGPIPE, and a container must not
/// inherit that.
pub fn ignore_no_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition for every signal; KILL and STOP refuse it harmlessly. The empty mask is
    // initialised by sigemptyset before it is used.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut()).into()).map(drop)
    }
}

/// Marks all descriptors from `first` on close-on-exec.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: integers only; nothing is closed, so no owned descriptor becomes invalid.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// A cgroup namespace whose root is the cgroup that this process is in. Not a clone flag: clone takes the parent's
/// cgroup for the root, even with CLONE_INTO_CGROUP.
pub fn unshare_cgroup() -> io::Result<()> {
    // SAFETY: CLONE_NEWCGROUP changes nothing that memory safety rests on.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }.into()).map(drop)
}

/// Installs a classic BPF program as seccomp filter.
pub fn install_seccomp(program: &[u64]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|insn| {
            let b = insn.to_le_bytes();
            libc::sock_filter {
                code: u16::from_le_bytes([b[0], b[1]]),
                jt: b[2],
                jf: b[3],
                k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
            }
        })
        .collect();
    let len = u16::try_from(filter.len()).or(Err(io::ErrorKind::InvalidInput))?;
    let prog = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: `prog` points at `len` instructions that live across the call; the kernel copies and checks them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog) })
        .map(drop)
}

/// Changes the owner of an open file.
pub fn chown_fd(fd: impl AsFd, uid: u32, gid: Option<u32>) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::fchown(fd.as_fd().as_raw_fd(), uid, gid.unwrap_or(u32::MAX)) }.into()).map(drop)
}

/// Becomes the program behind a descriptor. Only returns on failure.
pub fn exec_fd(fd: impl AsFd, name: &CString) -> io::Error {
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays are null-terminated and their strings live across the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Ends this process at once: no destructor, no buffer flush, nothing shared with the parent is touched.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Waits for one child; gives its wait status.
pub fn wait_pid(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one int.
        match check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into()) {
            Ok(_) => return Ok(status),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// Reaps whatever children are dead.
pub fn wait_any() {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    while unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } > 0 {}
}

/// Sets `lo` up in the network namespace of this process.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain data; the name is shorter than IFNAMSIZ and zero-terminated; both ioctls read and write
    // one ifreq, of which the flags member is the one in use.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l'.cast_signed();
        request.ifr_name[1] = b'o'.cast_signed();
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request).into())?;
        request.ifr_ifru.ifru_flags |= i16::try_from(libc::IFF_UP).unwrap_or(1);
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request).into()).map(drop)
    }
}

/// Has a command started with a descriptor at a fixed number.
pub fn inherit_at(command: &mut std::process::Command, fd: std::os::fd::OwnedFd, number: i32) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec the closure only calls dup2 and fcntl, which are async-signal-safe, on a descriptor
    // that it owns. dup2 to the same number leaves close-on-exec set, so that case clears the flag.
    unsafe {
        command.pre_exec(move || {
            if fd.as_raw_fd() == number {
                check(libc::fcntl(number, libc::F_SETFD, 0).into()).map(drop)
            } else {
                check(libc::dup2(fd.as_raw_fd(), number).into()).map(drop)
            }
        });
    }
}

/// Makes descriptor `number` a copy of `fd` that survives exec. The caller is a child that is about to call exec and
/// owns nothing else at that number.
pub fn place_at(fd: impl AsFd, number: i32) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: integers only; see above for what may be at `number`.
    unsafe {
        if raw == number {
            check(libc::fcntl(number, libc::F_SETFD, 0).into()).map(drop)
        } else {
            check(libc::dup2(raw, number).into()).map(drop)
        }
    }
}

/// Sends a signal by number (real-time ones too) to the process behind a pidfd. That it is gone is no error.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed; the rest are integers.
    let result = check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0)
    });
    match result {
        Err(err) if err.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}
