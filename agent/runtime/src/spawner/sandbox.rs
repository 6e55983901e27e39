//! Children of the spawner that are no containers: podinit, and the one that fetches a socket.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::protocol::Failure;
use crate::plan::SandboxPlan;
use crate::sys;

/// Number at which podinit expects its listener.
const LISTENER: i32 = 3;

/// Sets the pod's namespaces up from inside and becomes podinit. Only returns on failure.
pub fn become_podinit(plan: &SandboxPlan, binary: &OwnedFd, listener: &OwnedFd) -> Failure {
    match set_up(plan) {
        Ok(()) => exec_podinit(binary, listener),
        Err(failure) => failure,
    }
}

fn set_up(plan: &SandboxPlan) -> Result<(), Failure> {
    sys::set_not_dumpable().map_err(|e| Failure::setup("prctl", e))?;
    if let Some(hostname) = &plan.hostname {
        rustix::system::sethostname(hostname.as_bytes()).map_err(|e| Failure::setup("sethostname", e))?;
    }
    if plan.new_net {
        sys::loopback_up().map_err(|e| Failure::setup("setting lo up", e))?;
    }
    // /proc/sys shows each process the sysctls of its own namespaces, whatever namespace /proc was mounted in.
    for (path, value) in &plan.sysctls {
        std::fs::write(path, value)
            .map_err(|e| Failure::setup(format!("sysctl {} = {value:?}", path.display()), e))?;
    }
    Ok(())
}

/// Becomes podinit with nothing open but its listener. Only returns on failure.
pub fn exec_podinit(binary: &OwnedFd, listener: &OwnedFd) -> Failure {
    let result = (|| {
        rustix::process::setsid()
            .or_else(|e| if e == rustix::io::Errno::PERM { Ok(rustix::process::getpid()) } else { Err(e) })?;
        rustix::process::chdir("/")?;
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        // A duplicate above the numbers that are about to be overwritten.
        let listener = rustix::io::fcntl_dupfd_cloexec(listener, 100)?;
        let binary = rustix::io::fcntl_dupfd_cloexec(binary, 100)?;
        for number in 0..3 {
            sys::place_at(&null, number)?;
        }
        sys::place_at(&listener, LISTENER)?;
        sys::close_on_exec_from(4)?;
        Ok::<_, std::io::Error>(binary)
    })();
    match result {
        Ok(binary) => {
            Failure::setup("exec of podinit", sys::exec_fd(&binary, &CString::from(c"keelson-podinit")))
        }
        Err(err) => Failure::setup("preparing podinit", err),
    }
}

/// Makes a TCP socket in a pod's network namespace and sends it over the sync socket.
pub fn send_socket(sync: &OwnedFd, podinit: &OwnedFd, v6: bool) -> Failure {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let result = (|| {
        move_into_thread_name_spaces(podinit.as_fd(), ThreadNameSpaceType::NETWORK)?;
        let socket =
            socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
        sys::send_fds(sync, b"socket", &[socket.as_fd()])
    })();
    match result {
        Ok(()) => sys::exit_now(0),
        Err(err) => Failure::setup("socket in the pod's network namespace", err),
    }
}
