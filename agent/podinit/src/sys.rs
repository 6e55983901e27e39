//! The system calls that podinit makes: nothing else in the binary is `unsafe`.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use keelson_podinit::protocol::MAX_FDS;

/// Gives a libc result or the error that errno holds.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_negative| io::Error::last_os_error())
}

/// Drops every right that PID 1 of a pod has no use for.
pub fn harden() -> io::Result<()> {
    // SAFETY: prctl with these options takes integers only.
    unsafe {
        // Not dumpable: no process of the pod may read /proc/1/fd, /proc/1/exe or its memory.
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        let mut cap = 0;
        while libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) == 0 {
            cap += 1;
        }
    }
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [[0u32; 3]; 2];
    // SAFETY: capset reads a version 3 header and two sets of three words, which both live across the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes this process the one that orphans of its descendants are given to; PID 1 is that anyway.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Blocks all signals and gives a descriptor that reads SIGCHLD and SIGTERM.
pub fn signalfd() -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data that sigfillset initialises; the mask lives across the calls; the new descriptor
    // is owned by nobody else.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut mask);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut()))?;
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, libc::SIGCHLD);
        libc::sigaddset(&raw mut mask, libc::SIGTERM);
        let fd = check(libc::signalfd(-1, &raw const mask, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes all signals that wait on a descriptor of [`signalfd`]; tells whether SIGTERM was among them.
pub fn take_signals(fd: &impl AsRawFd) -> bool {
    /// Size of `struct signalfd_siginfo`, whose first field is the signal's number (signalfd(2)).
    const RECORD: usize = 128;
    let mut term = false;
    let mut buf = [0u8; 4 * RECORD];
    while let Ok(n) = read(fd, &mut buf) {
        if n == 0 {
            break;
        }
        for record in buf[..n].chunks_exact(RECORD) {
            term |= record[..4] == libc::SIGTERM.to_ne_bytes();
        }
    }
    term
}

/// A new epoll instance.
pub fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?)) }
}

/// Adds (`add`) or changes what is waited for on a descriptor. `events` 0 keeps it registered but silent.
pub fn epoll_set(epoll: RawFd, fd: RawFd, add: bool, events: u32, token: u64) -> io::Result<()> {
    let op = if add { libc::EPOLL_CTL_ADD } else { libc::EPOLL_CTL_MOD };
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: `event` lives across the call; the kernel checks the descriptors.
    check(unsafe { libc::epoll_ctl(epoll, op, fd, &raw mut event) }).map(drop)
}

/// Waits; fills `out` and gives how many events there are. -1 waits without end.
pub fn epoll_wait(epoll: RawFd, out: &mut [libc::epoll_event], timeout_ms: i32) -> io::Result<usize> {
    let len = libc::c_int::try_from(out.len()).unwrap_or(1);
    // SAFETY: the kernel writes at most `len` events into `out`.
    let n = check(unsafe { libc::epoll_wait(epoll, out.as_mut_ptr(), len, timeout_ms) })?;
    Ok(usize::try_from(n).unwrap_or(0))
}

/// read(2).
pub fn read(fd: &impl AsRawFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
    check_len(unsafe { libc::read(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) })
}

/// write(2).
pub fn write(fd: &impl AsRawFd, buf: &[u8]) -> io::Result<usize> {
    // SAFETY: the kernel reads at most `buf.len()` bytes of `buf`.
    check_len(unsafe { libc::write(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len()) })
}

/// Takes the last bytes of a file away.
pub fn shorten(fd: &impl AsRawFd, by: usize) -> io::Result<()> {
    // SAFETY: stat is plain data for which zero is valid; the kernel fills it in.
    let size = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::fstat(fd.as_raw_fd(), &raw mut stat))?;
        stat.st_size
    };
    let left = libc::off_t::try_from(by).ok().and_then(|by| size.checked_sub(by)).filter(|left| *left >= 0);
    let left = left.ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: integers only.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), left) }).map(drop)
}

/// Sends one packet without blocking and without SIGPIPE.
pub fn send(fd: &impl AsRawFd, buf: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: as for `write`.
    check_len(unsafe { libc::send(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len(), flags) })
}

/// Receives one packet with its descriptors. Length 0 means that the peer is gone.
pub fn recv(fd: &impl AsRawFd, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    const CONTROL: usize = 128;
    #[repr(align(8))]
    struct Control([u8; CONTROL]);
    let mut control = Control([0; CONTROL]);
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut fds = Vec::new();
    // SAFETY: msghdr points at buffers that outlive the call, with their true lengths. The CMSG macros walk the control
    // buffer that the kernel filled; descriptors in it are new and owned by nobody else. MAX_FDS (8) descriptors take
    // 48 bytes, so CONTROL can't cut them.
    unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.0.as_mut_ptr().cast();
        msg.msg_controllen = libc::CMSG_SPACE(u32::try_from(MAX_FDS * 4).unwrap_or(32)) as _;
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        let len = check_len(libc::recvmsg(fd.as_raw_fd(), &raw mut msg, flags))?;
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const msg);
        while !cmsg.is_null() {
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                // cmsg_len is socklen_t with other C libraries.
                let bytes = (*cmsg).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                for i in 0..bytes / 4 {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            cmsg = libc::CMSG_NXTHDR(&raw const msg, cmsg);
        }
        Ok((len, fds))
    }
}

/// Marks a socket as listening; podinit does it itself so that SO_PEERCRED on the agent's side names podinit.
pub fn listen(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::listen(fd.as_raw_fd(), 8) }).map(drop)
}

/// Takes a connection if there is one; gives it with the user id of its peer.
pub fn accept(fd: &impl AsRawFd) -> io::Result<(OwnedFd, u32)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the address is not asked for; the new descriptor is owned by nobody else.
    let conn = unsafe {
        OwnedFd::from_raw_fd(check(libc::accept4(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            flags,
        ))?)
    };
    let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: SO_PEERCRED writes one ucred; `len` says so.
    check(unsafe {
        libc::getsockopt(
            conn.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    })?;
    Ok((conn, cred.uid))
}

/// Reaps one dead child: its pid and wait status; none when no child is dead.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: waitpid writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take integers only.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// Sets the size of a pty.
pub fn resize(fd: &impl AsRawFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Moves a descriptor to the given number, replacing what was there.
pub fn move_to(fd: OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: dup3 takes integers; `number` is 0, 1 or 2, which no value in this process owns; the old number is closed
    // when `fd` is dropped.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC))?)) }
}

/// Takes ownership of the listener that the spawner left at this number.
pub fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the spawner starts podinit with the listener at this number and podinit calls this once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// Takes a descriptor out of an epoll set; that it was not in it is no error.
pub fn epoll_del(epoll: RawFd, fd: RawFd) {
    // SAFETY: the event pointer is ignored for EPOLL_CTL_DEL since Linux 2.6.9.
    let _ = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut()) };
}
