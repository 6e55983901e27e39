//! One test host: made by [`init`] (in the helper program `keelson-testhost`), entered by [`enter`].

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, execvp, fork, getpid, pivot_root, sethostname, setsid};

use crate::paths;

/// A host that lives.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its host name, such as `node-1`.
    pub name: String,
    /// Its folder under the cluster's: `etc`, `var`, `opt`, `log`.
    pub dir: PathBuf,
    /// Its cgroup, as an absolute path of the machine.
    pub cgroup: PathBuf,
    /// Pid of its first process, as the machine sees it.
    pub pid: i32,
}

/// Where cgroup2 is mounted on this machine.
pub fn cgroup2_mount() -> Result<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            (right.split(' ').next() == Some("cgroup2")).then(|| left.split(' ').nth(4).map(PathBuf::from))?
        })
        .next()
        .context("no cgroup2 is mounted: mount it with 'mount -t cgroup2 none /sys/fs/cgroup/unified'")
}

impl Host {
    /// Makes a host and waits until its mounts are in place.
    pub fn create(testhost: &Path, name: &str, dir: &Path, cgroup: &Path) -> Result<Self> {
        for folder in ["etc", "var/lib", "var/log", "opt/cni/bin", "root", "log", "newroot"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        fs::create_dir_all(cgroup.join("init"))
            .with_context(|| format!("make the cgroup {}", cgroup.display()))?;
        write_etc(name, &dir.join("etc"))?;
        let output = Command::new(testhost)
            .args(["init", "--name", name, "--dir"])
            .arg(dir)
            .arg("--cgroup")
            .arg(cgroup)
            .output()
            .with_context(|| format!("start {}", testhost.display()))?;
        if !output.status.success() {
            bail!("the test host {name} did not start: {}", String::from_utf8_lossy(&output.stderr));
        }
        let pid = fs::read_to_string(dir.join("pid"))?.trim().parse()?;
        Ok(Self { name: name.to_owned(), dir: dir.to_owned(), cgroup: cgroup.to_owned(), pid })
    }

    /// A command that runs inside the host, in the cgroup `system/<unit>` of it, when started.
    pub fn command(&self, unit: &str, program: &str) -> Command {
        let mut command = Command::new(paths::bin("keelson-testhost"));
        command.arg("enter").arg("--pid").arg(self.pid.to_string());
        command.arg("--cgroup").arg(self.cgroup.join("system").join(unit)).arg("--").arg(program);
        command
    }

    /// Starts a daemon inside the host; its output is appended to `log/<unit>.log`. Gives its pid as the machine sees it.
    pub fn spawn_daemon(
        &self,
        unit: &str,
        program: &Path,
        args: &[String],
        listen_fd: Option<&std::net::TcpListener>,
    ) -> Result<i32> {
        use std::os::unix::process::CommandExt;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log").join(format!("{unit}.log")))?;
        let mut command = Command::new(paths::bin("keelson-testhost"));
        command.arg("enter").arg("--detach").arg("--pid").arg(self.pid.to_string());
        command.arg("--cgroup").arg(self.cgroup.join("system").join(unit));
        if let Some(listener) = listen_fd {
            command.arg("--listen");
            let fd = listener.as_raw_fd();
            // SAFETY: between fork and exec only dup2 and fcntl are called, which are async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    if fd == 3 {
                        if libc::fcntl(3, libc::F_SETFD, 0) < 0 {
                            return Err(std::io::Error::last_os_error());
                        }
                    } else if libc::dup2(fd, 3) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                    Ok(())
                });
            }
        }
        command.arg("--").arg(program).args(args);
        let output = command.stdin(std::process::Stdio::null()).stderr(log).output()?;
        if !output.status.success() {
            bail!("{unit} did not start on {}: see {}/log/{unit}.log", self.name, self.dir.display());
        }
        String::from_utf8_lossy(&output.stdout).trim().parse().context("keelson-testhost printed no pid")
    }

    /// Kills the host's first process, and with it all others, without waiting for their end.
    pub fn kill(&self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
    }

    /// Ends every process of the host and waits until they are gone.
    pub fn destroy(&self) -> Result<()> {
        self.kill();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ended(self.pid) {
            if Instant::now() > deadline {
                bail!("the test host {} (pid {}) does not end", self.name, self.pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Whether a process has ended: gone, or waiting only to be reaped.
pub fn ended(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => has_ended(&stat),
        Err(_gone) => true,
    }
}

/// Reads proc_pid_stat(5). Of a process that is killed the first thread may be gone while others still hold its files, a
/// listening socket for one: only when it is the last is the process at its end.
fn has_ended(stat: &str) -> bool {
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let (state, threads) = (fields.next(), fields.nth(16));
    matches!(state, Some("Z" | "X")) && matches!(threads, Some("0" | "1"))
}

/// Removes a cgroup with all below it, ending what still runs there.
pub fn remove_cgroup(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match remove_cgroup_once(path) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("remove the cgroup {}", path.display()));
            }
            Err(_busy) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn remove_cgroup_once(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup_once(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn write_etc(name: &str, etc: &Path) -> Result<()> {
    fs::create_dir_all(etc.join("cni/net.d"))?;
    fs::create_dir_all(etc.join("kubernetes"))?;
    fs::create_dir_all(etc.join("ssl/certs"))?;
    fs::write(etc.join("hostname"), format!("{name}\n"))?;
    fs::write(etc.join("hosts"), format!("127.0.0.1 localhost\n127.0.1.1 {name}\n"))?;
    fs::write(etc.join("resolv.conf"), "# a test host asks nobody\n")?;
    fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\nhosts: files dns\n")?;
    fs::write(etc.join("passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(etc.join("group"), "root:x:0:\n")?;
    let mut random = [0u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(etc.join("machine-id"), format!("{id}\n"))?;
    let release = etc.join("os-release");
    if !release.exists() {
        symlink("../usr/lib/os-release", release)?;
    }
    Ok(())
}

/// The work of `keelson-testhost init`: makes the namespaces, becomes the parent of the host's first process and ends
/// when that is ready. The first process reaps until it is killed; with it go all others and all mounts.
pub fn init(name: &str, dir: &Path, cgroup: &Path) -> Result<()> {
    close_from(3)?;
    fs::write(cgroup.join("cgroup.procs"), "0").context("enter the host's cgroup")?;
    unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare the cgroup namespace")?;
    fs::write(cgroup.join("init/cgroup.procs"), "0").context("enter the host's init cgroup")?;
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWPID,
    )
    .context("unshare the host's namespaces")?;
    let (mut ready, tell) = std::io::pipe()?;
    // Opened now: the child's pivot_root moves the root of this process too, and a path means something else from then on.
    let mut pid_file = File::create(dir.join("pid"))?;
    // SAFETY: this process has a single thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(tell);
            pid_file.write_all(child.to_string().as_bytes())?;
            let mut text = String::new();
            ready.read_to_string(&mut text)?;
            if text != "ready" {
                bail!("{text}");
            }
            Ok(())
        }
        ForkResult::Child => {
            drop((ready, pid_file));
            let mut tell = tell;
            if let Err(error) = become_host(name, dir) {
                let _ = write!(tell, "{error:#}");
                std::process::exit(1);
            }
            let _ = tell.write_all(b"ready");
            drop(tell);
            reap_forever()
        }
    }
}

fn become_host(name: &str, dir: &Path) -> Result<()> {
    setsid()?;
    let log = File::options().create(true).append(true).open(dir.join("log/init.log"))?;
    let null = File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null.as_fd())?;
    nix::unistd::dup2_stdout(log.as_fd())?;
    nix::unistd::dup2_stderr(log.as_fd())?;
    sethostname(name)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;

    let root = dir.join("newroot");
    mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=16m"))
        .context("mount the root")?;
    for folder in ["proc", "sys", "dev", "run", "tmp", "usr", "etc", "var", "opt", "root", "mnt", "home"] {
        fs::create_dir(root.join(folder))?;
    }
    for folder in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        // A merged /usr has links here; an unmerged one has folders.
        let path = Path::new("/").join(folder);
        if let Ok(to) = fs::read_link(&path) {
            symlink(to, root.join(folder))?;
        } else if path.is_dir() {
            fs::create_dir(root.join(folder))?;
            bind(&path, &root.join(folder), true)?;
        }
    }
    bind(Path::new("/usr"), &root.join("usr"), true)?;
    bind(Path::new("/dev"), &root.join("dev"), false)?;
    for own in ["etc", "var", "opt", "root"] {
        bind(&dir.join(own), &root.join(own), false)?;
    }
    // Certificate authorities, without which no client for registries can be made.
    if Path::new("/etc/ssl/certs").is_dir() {
        bind(Path::new("/etc/ssl/certs"), &root.join("etc/ssl/certs"), true)?;
    }
    let none = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &root.join("proc"), Some("proc"), none, None::<&str>).context("mount /proc")?;
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), none, None::<&str>).context("mount /sys")?;
    mount(Some("cgroup2"), &root.join("sys/fs/cgroup"), Some("cgroup2"), none, None::<&str>)
        .context("mount cgroup2")?;
    mount(Some("bpf"), &root.join("sys/fs/bpf"), Some("bpf"), none, None::<&str>).context("mount bpffs")?;
    mount(Some("tmpfs"), &root.join("run"), Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))
        .context("mount /run")?;
    mount(Some("tmpfs"), &root.join("tmp"), Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=1777"))
        .context("mount /tmp")?;
    // Last, since the checkout may be anywhere, below /tmp too. Where the downloads are a link to those of another
    // checkout, what it leads to must be there as well.
    let downloads = fs::canonicalize(paths::cache()).ok();
    for shown in [Some(paths::root().to_owned()), Some(paths::target()), downloads].into_iter().flatten() {
        let at = root.join(shown.strip_prefix("/").unwrap_or(&shown));
        // A guest has the target folder alone.
        if shown.exists() && !at.exists() {
            fs::create_dir_all(&at)?;
            bind(&shown, &at, true)?;
        }
    }
    fs::create_dir_all(root.join("run/netns"))?;

    chdir(&root)?;
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("let go of the machine's root")?;
    chdir("/")?;
    // As systemd leaves it on a real machine: mount propagation to pods depends on it.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)?;
    Ok(())
}

fn bind(from: &Path, to: &Path, readonly: bool) -> Result<()> {
    let context = || format!("bind {} to {}", from.display(), to.display());
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(context)?;
    if readonly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, to, None::<&str>, flags, None::<&str>).with_context(context)?;
    }
    Ok(())
}

/// Closes every descriptor from this one on: what lives on must not hold open what whoever started it had open, a lock for
/// one.
fn close_from(first: libc::c_uint) -> Result<()> {
    // SAFETY: nothing in this process owns such a descriptor: it has opened none yet, or is about to execute another.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } < 0 {
        return Err(std::io::Error::last_os_error()).context("close inherited descriptors");
    }
    Ok(())
}

fn reap_forever() -> ! {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    let _ = set.thread_block();
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        let _ = set.wait();
    }
}

/// How [`enter`] runs its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Wait for it and end with its exit code.
    Foreground,
    /// Print its pid and end; its output goes to this process's standard error.
    Detached {
        /// Descriptor 3 is a listening socket to hand over as systemd does (LISTEN_FDS).
        listen: bool,
    },
}

/// The work of `keelson-testhost enter`: joins a host's cgroup and namespaces and runs a command there.
pub fn enter(pid: i32, cgroup: &Path, mode: Mode, words: &[String]) -> Result<i32> {
    fs::create_dir_all(cgroup).with_context(|| format!("make the cgroup {}", cgroup.display()))?;
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("enter the cgroup {}", cgroup.display()))?;
    let kinds = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let mut open = Vec::new();
    for (name, flag) in kinds {
        let path = format!("/proc/{pid}/ns/{name}");
        open.push((
            File::open(&path).with_context(|| format!("open {path}: is the host still there?"))?,
            flag,
        ));
    }
    for (file, flag) in open {
        setns(file, flag).with_context(|| format!("join the host's namespaces ({flag:?})"))?;
    }
    chdir("/")?;
    // SAFETY: this process has a single thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => match mode {
            Mode::Detached { .. } => {
                println!("{child}");
                Ok(0)
            }
            Mode::Foreground => loop {
                match waitpid(child, None)? {
                    WaitStatus::Exited(_, code) => return Ok(code),
                    WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
                    _ => {}
                }
            },
        },
        ForkResult::Child => {
            let error = exec(mode, words);
            eprintln!("keelson-testhost: {error:#}");
            std::process::exit(127);
        }
    }
}

fn exec(mode: Mode, words: &[String]) -> anyhow::Error {
    let run = || -> Result<std::convert::Infallible> {
        if let Mode::Detached { listen } = mode {
            close_from(if listen { 4 } else { 3 })?;
            setsid()?;
            nix::unistd::dup2_stdout(std::io::stderr().as_fd())?;
            if listen {
                // SAFETY: single-threaded, just after fork.
                unsafe {
                    std::env::set_var("LISTEN_FDS", "1");
                    std::env::set_var("LISTEN_PID", getpid().to_string());
                }
            }
        } else {
            // The command must not outlive whoever asked for it.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        }
        let words: Vec<CString> = words
            .iter()
            .map(|word| CString::new(Path::new(word).as_os_str().as_bytes()))
            .collect::<Result<_, _>>()?;
        let program = words.first().context("no command was given")?;
        Ok(execvp(program, &words)?)
    };
    match run() {
        Ok(never) => match never {},
        Err(error) => error.context(format!("run {words:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_ends_with_its_last_thread() {
        let stat = |state: &str, threads: usize| {
            format!("7 (a ) b) {state} 1 7 7 0 -1 4228364 0 0 0 0 0 0 0 0 20 0 {threads} 0 123 0 0")
        };
        assert!(has_ended(&stat("Z", 1)));
        assert!(!has_ended(&stat("Z", 2)));
        assert!(!has_ended(&stat("S", 1)));
    }
}
