//! The last steps of a process on its way to the command: terminal, user, capabilities, seccomp, exec.
//!
//! Runs with the container's root as `/`, so every path here is the container's.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;

use caps::{CapSet, Capability};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread as rt;

use super::in_root::{self, Make};
use super::protocol::{ChildMessage, Failure, FailureKind};
use crate::plan::{ProcessPlan, ResolvedUser, resolve_user};
use crate::sys;

/// Sets oom_score_adj. That lowering it needs CAP_SYS_RESOURCE, which a nested agent may lack, is a warning.
pub fn set_oom_score(plan: &ProcessPlan) -> Result<Vec<String>, Failure> {
    let Some(score) = plan.oom_score_adj else { return Ok(Vec::new()) };
    match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Ok(()) => Ok(Vec::new()),
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            Ok(vec![format!("oom_score_adj {score} could not be set: {err}")])
        }
        Err(err) => Err(Failure::setup("oom_score_adj", err)),
    }
}

/// Everything from the terminal to exec; `first` for a container's first process, which also gets its working folder and
/// console made. Only returns on failure.
pub fn become_command(
    plan: &ProcessPlan,
    sync: &OwnedFd,
    stdio: &[OwnedFd],
    warnings: Vec<String>,
    first: bool,
) -> Failure {
    match prepare(plan, sync, stdio, warnings, first) {
        Ok((program, args, env)) => {
            let Err(err) = nix::unistd::execve(&program, &args, &env);
            let name = &plan.args[0];
            let kind = if err == nix::errno::Errno::ENOENT {
                FailureKind::CommandNotFound
            } else {
                FailureKind::CommandNotExecutable
            };
            // runc's words.
            let reason = match err {
                nix::errno::Errno::ENOEXEC => "exec format error".to_string(),
                nix::errno::Errno::ENOENT => "no such file or directory".to_string(),
                nix::errno::Errno::EACCES => "permission denied".to_string(),
                other => other.desc().to_string(),
            };
            Failure { kind, message: format!("exec {name}: {reason}") }
        }
        Err(failure) => failure,
    }
}

type Command = (CString, Vec<CString>, Vec<CString>);

fn prepare(
    plan: &ProcessPlan,
    sync: &OwnedFd,
    stdio: &[OwnedFd],
    warnings: Vec<String>,
    first: bool,
) -> Result<Command, Failure> {
    let step = |what: &'static str| move |err: rustix::io::Errno| Failure::setup(what, err);
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("opening the root"))?;
    let read = |path| in_root::read_small(&root, Path::new(path), crate::plan::MAX_USER_FILE);
    let user = resolve_user(&plan.user, &read("/etc/passwd"), &read("/etc/group"))
        .map_err(|e| Failure { kind: FailureKind::Setup, message: e.to_string() })?;
    if first {
        let made = in_root::open_or_make(root.as_fd(), &plan.cwd, Make::Dir);
        made.map_err(|e| Failure::setup(format!("mkdir {}", plan.cwd.display()), e))?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // A new session, so that the process group and the terminal are the container's own.
    rustix::process::setsid().map_err(step("setsid"))?;
    let master = set_stdio(plan, &user, stdio, first)?;
    set_nofile(plan).map_err(step("RLIMIT_NOFILE"))?;
    let chdir_early = rustix::process::chdir(&plan.cwd);

    limit_bounding_set(plan)?;
    if !plan.no_new_privs {
        // Installing a filter needs CAP_SYS_ADMIN or no_new_privs; the capability is about to go.
        install_filter(plan)?;
    }
    rt::set_keep_capabilities(true).map_err(step("PR_SET_KEEPCAPS"))?;
    set_user(&user).map_err(step("changing user"))?;
    set_capabilities(plan)?;
    rt::set_keep_capabilities(false).map_err(step("PR_SET_KEEPCAPS"))?;
    if plan.no_new_privs {
        rt::set_no_new_privs(true).map_err(step("PR_SET_NO_NEW_PRIVS"))?;
        install_filter(plan)?;
    }
    // Root may lack the right to enter (NFS with root_squash) where the user has it.
    chdir_early
        .or_else(|_| rustix::process::chdir(&plan.cwd))
        .map_err(|e| Failure::setup(format!("chdir to cwd ({:?}) set in config.json failed", plan.cwd), e))?;

    let mut env = plan.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    let path = env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("").to_string();
    let program = look_path(&plan.args, &path)?;
    sys::close_on_exec_from(3).map_err(|e| Failure::setup("close_range", e))?;

    let ready = ChildMessage::Ready { user, warnings };
    let ready = serde_json::to_vec(&ready).map_err(|e| Failure::setup("sync message", e))?;
    let fds: Vec<_> = master.iter().map(AsFd::as_fd).collect();
    sys::send_fds(sync, &ready, &fds).map_err(|e| Failure::setup("sync socket", e))?;
    drop(master);
    let mut go = [0; 1];
    match sys::recv_fds(sync, &mut go) {
        Ok((1, _)) => {}
        // The agent died: a container that nobody has registered must not run.
        _ => sys::exit_now(1),
    }
    let c_string =
        |s: &String| CString::new(s.as_str()).map_err(|e| Failure::setup("argument or variable", e));
    let args = plan.args.iter().map(c_string).collect::<Result<_, _>>()?;
    let env = env.iter().map(c_string).collect::<Result<_, _>>()?;
    Ok((c_string(&program)?, args, env))
}

/// Standard streams: a pty of the container's own devpts, or the pipes given. Gives the pty's master.
fn set_stdio(
    plan: &ProcessPlan,
    user: &ResolvedUser,
    stdio: &[OwnedFd],
    first: bool,
) -> Result<Option<OwnedFd>, Failure> {
    let result = (|| {
        if !plan.tty {
            for (number, fd) in (0..).zip(stdio) {
                // So that a process of another user can open /dev/stdout again. /dev/null stays as it is.
                if rustix::fs::fstat(fd)?.st_rdev == 0 {
                    sys::chown_fd(fd, user.uid, None)?;
                }
                sys::place_at(fd, number)?;
            }
            return Ok(None);
        }
        let flags = rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC;
        let master = rustix::fs::open(
            "/dev/pts/ptmx",
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        sys::chown_fd(&slave, user.uid, None)?;
        rustix::process::ioctl_tiocsctty(&slave)?;
        if first {
            super::rootfs::mount_console(&slave)?;
        }
        for number in 0..3 {
            sys::place_at(&slave, number)?;
        }
        Ok::<_, io::Error>(Some(master))
    })();
    result.map_err(|e| Failure::setup("standard streams", e))
}

/// Lowered to the agent's own hard limit, which only CAP_SYS_RESOURCE could raise.
fn set_nofile(plan: &ProcessPlan) -> rustix::io::Result<()> {
    let own = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let hard = plan.nofile.1.min(own);
    let limit = Rlimit { current: Some(plan.nofile.0.min(hard)), maximum: Some(hard) };
    rustix::process::setrlimit(Resource::Nofile, limit)
}

fn capability_set(plan: &ProcessPlan) -> Result<HashSet<Capability>, Failure> {
    let parse = |name: &String| Capability::from_str(name).map_err(|e| Failure::setup(name, e));
    plan.capabilities.iter().map(parse).collect()
}

fn limit_bounding_set(plan: &ProcessPlan) -> Result<(), Failure> {
    let keep = capability_set(plan)?;
    let held = caps::read(None, CapSet::Bounding).map_err(|e| Failure::setup("bounding set", e))?;
    for cap in held.difference(&keep) {
        caps::drop(None, CapSet::Bounding, *cap).map_err(|e| Failure::setup("bounding set", e))?;
    }
    Ok(())
}

fn set_user(user: &ResolvedUser) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    rt::set_thread_groups(&groups)?;
    let gid = Gid::from_raw(user.gid);
    rt::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(user.uid);
    rt::set_thread_res_uid(uid, uid, uid)
}

/// Permitted and effective; nothing inheritable (CVE-2022-24769), nothing ambient.
fn set_capabilities(plan: &ProcessPlan) -> Result<(), Failure> {
    let set = capability_set(plan)?;
    let fail = |e| Failure::setup("capabilities", e);
    // After a change of user the effective set is empty; it is raised first so that the permitted one may shrink.
    caps::set(None, CapSet::Effective, &set).map_err(fail)?;
    caps::set(None, CapSet::Permitted, &set).map_err(fail)?;
    caps::set(None, CapSet::Inheritable, &HashSet::new()).map_err(fail)?;
    caps::clear(None, CapSet::Ambient).map_err(fail)
}

fn install_filter(plan: &ProcessPlan) -> Result<(), Failure> {
    match &plan.seccomp {
        Some(program) => sys::install_seccomp(program).map_err(|e| Failure::setup("seccomp filter", e)),
        None => Ok(()),
    }
}

/// Go's `exec.LookPath`, with runc's messages. Runs as the container's user, whose rights count.
fn look_path(args: &[String], path: &str) -> Result<String, Failure> {
    let name = args.first().map_or("", String::as_str);
    let fail = |kind, text: &str| Failure { kind, message: format!("exec: {name:?}: {text}") };
    let not_found = || fail(FailureKind::CommandNotFound, "executable file not found in $PATH");
    if name.is_empty() {
        return Err(not_found());
    }
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_string()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                Err(fail(FailureKind::CommandNotFound, &format!("stat {name}: no such file or directory")))
            }
            Err(_denied) => Err(fail(FailureKind::CommandNotExecutable, "permission denied")),
        };
    }
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = format!("{}/{name}", dir.trim_end_matches('/'));
        if executable(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(not_found())
}

fn executable(path: &str) -> io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?)
}
