//! The spawner's loop and the births themselves.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::protocol::{ChildMessage, Failure, MAX_PACKET, Reply, Request, SOCKET};
use super::{container, sandbox};
use crate::plan::PidNamespace;
use crate::sys::{self, Born, CloneFlags};

/// Serves until the agent is gone.
pub fn run() -> ! {
    let socket = sys::take_inherited(SOCKET);
    let code = match serve(&socket) {
        Ok(()) => 0,
        Err(err) => {
            // stderr is the agent's; this is the only place where the spawner speaks for itself.
            eprintln!("keelson-spawner: {err}");
            1
        }
    };
    sys::exit_now(code)
}

fn serve(socket: &OwnedFd) -> io::Result<()> {
    sys::set_not_dumpable()?;
    // It was executed by the number of a descriptor, which says nothing to who lists processes.
    rustix::thread::set_name(c"keelson-spawner")?;
    let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    loop {
        let mut buf = [0; 64];
        let (len, fds) = match sys::recv_fds(socket, &mut buf) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if len == 0 {
            return Ok(());
        }
        sys::send_fds(socket, b"ack", &[])?;
        // podinits that died since the last request are this process's children.
        sys::wait_any();
        let result = read_request(&fds).and_then(|request| birth(&request, &fds[1..], &own));
        let (reply, pidfd) = match result {
            Ok((pid, pidfd)) => (Reply { pid, error: None }, Some(pidfd)),
            Err(err) => (Reply { pid: 0, error: Some(err.to_string()) }, None),
        };
        let pidfd: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
        sys::send_fds(socket, &serde_json::to_vec(&reply)?, &pidfd)?;
    }
}

fn read_request(fds: &[OwnedFd]) -> io::Result<Request> {
    let payload = fds.first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = File::from(payload.try_clone()?);
    file.rewind()?;
    let mut json = Vec::new();
    file.read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

fn birth(request: &Request, fds: &[OwnedFd], own: &OwnedFd) -> io::Result<(i32, OwnedFd)> {
    let fd = |index: usize| fds.get(index).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
    match request {
        Request::Sandbox(plan) => {
            let flags = CloneFlags {
                pid: plan.new_pid,
                net: plan.new_net,
                ipc: plan.new_ipc,
                uts: plan.hostname.is_some(),
                mount: false,
            };
            let (sync, cgroup, binary, listener) = (fd(0)?, fd(1)?, fd(2)?, fd(3)?);
            match sys::clone3(flags, Some(cgroup.as_fd()))? {
                Born::Parent(pid, pidfd) => Ok((pid, pidfd)),
                Born::Child => {
                    let failure = sandbox::become_podinit(plan, binary, listener);
                    give_up(sync, failure);
                }
            }
        }
        Request::Socket { v6 } => {
            let (sync, podinit) = (fd(0)?, fd(1)?);
            match sys::clone3(CloneFlags::default(), None)? {
                Born::Parent(pid, pidfd) => {
                    sys::wait_pid(pid)?;
                    Ok((pid, pidfd))
                }
                Born::Child => give_up(sync, sandbox::send_socket(sync, podinit, *v6)),
            }
        }
        Request::Container(plan) => {
            let (sync, cgroup, podinit) = (fd(0)?, fd(1)?, fd(2)?);
            let enter = match plan.pid {
                PidNamespace::Node => Vec::new(),
                PidNamespace::Pod | PidNamespace::Container => vec![podinit],
                PidNamespace::Target => vec![podinit, fd(3)?],
            };
            let streams = if plan.pid == PidNamespace::Target { 4 } else { 3 };
            let stdio = if plan.process.tty { 0 } else { 3 };
            let stdio = fds.get(streams..streams + stdio).ok_or(io::ErrorKind::InvalidInput)?;
            let supervisor = Supervisor::new(!enter.is_empty(), &fds[streams + stdio.len()..])?;
            let new_pid = plan.pid == PidNamespace::Container;
            let flags = CloneFlags { pid: new_pid, mount: true, ..CloneFlags::default() };
            below_podinit(&enter, own, supervisor, cgroup, flags, || {
                give_up(sync, container::become_container(plan, sync, podinit, stdio))
            })
        }
        Request::Exec(plan) => {
            let stdio =
                if plan.process.tty { &[] } else { fds.get(4..7).ok_or(io::ErrorKind::InvalidInput)? };
            let supervisor = Supervisor::new(plan.pod_pid, &fds[4 + stdio.len()..])?;
            let (sync, cgroup, podinit, target) = (fd(0)?, fd(1)?, fd(2)?, fd(3)?);
            let enter = if plan.pod_pid { vec![podinit, target] } else { vec![] };
            below_podinit(&enter, own, supervisor, cgroup, CloneFlags::default(), || {
                give_up(sync, container::become_exec(plan, sync, target, stdio))
            })
        }
    }
}

/// Tells the agent why and ends the child.
fn give_up(sync: &OwnedFd, failure: Failure) -> ! {
    let code = match failure.kind {
        super::FailureKind::CommandNotFound => 127,
        super::FailureKind::CommandNotExecutable => 126,
        super::FailureKind::Setup => 128,
    };
    let message = serde_json::to_vec(&ChildMessage::Failed(failure)).unwrap_or_default();
    // If the agent is gone too there is nobody left to tell.
    let _ = sys::send_fds(sync, &message, &[]);
    sys::exit_now(code)
}

/// With hostPID no podinit can inherit an orphan: its PID namespace is the node's, where orphans go to the node's init.
/// There the intermediate does not exit but becomes a podinit for its one child.
struct Supervisor<'a> {
    cgroup: &'a OwnedFd,
    binary: &'a OwnedFd,
    listener: &'a OwnedFd,
}

impl<'a> Supervisor<'a> {
    fn new(pod_pid: bool, fds: &'a [OwnedFd]) -> io::Result<Option<Self>> {
        match fds {
            _ if pod_pid => Ok(None),
            [cgroup, binary, listener, ..] => Ok(Some(Self { cgroup, binary, listener })),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Gives birth below podinit: an intermediate in the pod's PID namespace clones the child and exits, so that podinit
/// inherits it. `enter` are processes whose PID namespaces to enter, outermost first: the pod's, then that of the
/// container which an exec or a debugger is for. The intermediate is born in the first and the child in the last; a process whose parent lives outside
/// the pod's namespace would never be podinit's to reap, and one whose parent lives in the container's would be left
/// to the container's first process.
fn below_podinit(
    enter: &[&OwnedFd],
    own: &OwnedFd,
    supervisor: Option<Supervisor<'_>>,
    cgroup: &OwnedFd,
    flags: CloneFlags,
    child: impl FnOnce(),
) -> io::Result<(i32, OwnedFd)> {
    let (report, theirs) = sys::socketpair()?;
    let pid_namespace =
        |fd: &OwnedFd| move_into_thread_name_spaces(fd.as_fd(), ThreadNameSpaceType::PROCESS_ID);
    if let Some(pod) = enter.first() {
        pid_namespace(pod)?;
    }
    let intermediate_cgroup = supervisor.as_ref().map(|s| s.cgroup.as_fd());
    let born = sys::clone3(CloneFlags::default(), intermediate_cgroup);
    if !enter.is_empty() && !matches!(born, Ok(Born::Child)) {
        // A spawner that can't come back would bear the next sandbox into this pod: it must not live on.
        if pid_namespace(own).is_err() {
            sys::exit_now(1);
        }
    }
    match born? {
        Born::Child => {
            let outcome = intermediate(enter, supervisor, cgroup, flags, &theirs, child);
            let reply = Reply { pid: 0, error: Some(outcome.to_string()) };
            let _ = sys::send_fds(&theirs, &serde_json::to_vec(&reply).unwrap_or_default(), &[]);
            sys::exit_now(1)
        }
        Born::Parent(pid, _) => {
            drop(theirs);
            let mut buf = vec![0; MAX_PACKET];
            let (len, mut fds) = sys::recv_fds(&report, &mut buf)?;
            if !enter.is_empty() {
                // Only when the intermediate has gone is the child podinit's.
                sys::wait_pid(pid)?;
            }
            if len == 0 {
                return Err(io::Error::other("the intermediate process died"));
            }
            let reply: Reply = serde_json::from_slice(&buf[..len])?;
            if let Some(error) = reply.error {
                return Err(io::Error::other(error));
            }
            let pidfd =
                fds.pop().ok_or_else(|| io::Error::other("no pidfd from the intermediate process"))?;
            Ok((reply.pid, pidfd))
        }
    }
}

fn intermediate(
    enter: &[&OwnedFd],
    supervisor: Option<Supervisor<'_>>,
    cgroup: &OwnedFd,
    flags: CloneFlags,
    report: &OwnedFd,
    child: impl FnOnce(),
) -> io::Error {
    let result = (|| {
        sys::set_not_dumpable()?;
        if let Some(inner) = enter.get(1) {
            move_into_thread_name_spaces(inner.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
        }
        match sys::clone3(flags, Some(cgroup.as_fd()))? {
            Born::Child => {
                child();
                sys::exit_now(1)
            }
            Born::Parent(pid, pidfd) => {
                let reply = Reply { pid, error: None };
                sys::send_fds(report, &serde_json::to_vec(&reply)?, &[pidfd.as_fd()])
            }
        }
    })();
    match (result, supervisor) {
        (Ok(()), None) => sys::exit_now(0),
        (Ok(()), Some(s)) => {
            let failure = sandbox::exec_podinit(s.binary, s.listener);
            eprintln!("keelson-spawner: {failure}");
            sys::exit_now(1)
        }
        (Err(err), _) => err,
    }
}
