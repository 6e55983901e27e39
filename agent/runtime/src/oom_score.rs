//! `oom_score_adj` of processes that run already (`proc(5)`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use keelson_cri::CriError;
use rustix::fs::{Mode, OFlags};

/// Kernel's bounds.
const RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Processes fork while their scores are being set, and a child has its parent's: so the passes go on until one finds
/// nothing to do.
const PASSES: usize = 16;

/// Why a score was not set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Outside the kernel's bounds.
    #[error("oom_score_adj {0} is not within -1000..=1000")]
    Range(i32),
    /// The kernel lets only CAP_SYS_RESOURCE go below the score that a process was given with it.
    #[error("oom_score_adj of process {pid} cannot be lowered to {score} without CAP_SYS_RESOURCE")]
    Denied {
        /// The process.
        pid: u32,
        /// What was asked for.
        score: i32,
    },
    /// Some other refusal.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// New processes came faster than their scores could be set.
    #[error("oom_score_adj: processes fork too fast")]
    Unsettled,
}

impl From<Error> for CriError {
    fn from(error: Error) -> Self {
        match error {
            Error::Range(_) => CriError::Invalid(error.to_string()),
            Error::Denied { .. } => CriError::FailedPrecondition(error.to_string()),
            Error::Io { .. } | Error::Unsettled => CriError::Internal(error.to_string()),
        }
    }
}

/// What was changed, to be undone if the rest of an update fails.
#[derive(Debug, Default)]
#[must_use]
pub struct Changed(Vec<(Process, i32)>);

impl Changed {
    /// Puts the former scores back, as far as the kernel lets.
    pub fn undo(self) {
        for (process, former) in self.0 {
            if let Err(err) = process.write(former) {
                tracing::warn!(pid = process.pid, former, %err, "oom_score_adj not restored");
            }
        }
    }
}

/// Gives every process in a cgroup and below a score: all of them, or (on an error) none.
pub fn set(cgroup: &Path, score: i32) -> Result<Changed, Error> {
    if !RANGE.contains(&score) {
        return Err(Error::Range(score));
    }
    let mut changed = Changed::default();
    for _ in 0..PASSES {
        match pass(cgroup, score, &mut changed) {
            Ok(true) => {}
            Ok(false) => return Ok(changed),
            Err(err) => {
                changed.undo();
                return Err(err);
            }
        }
    }
    changed.undo();
    Err(Error::Unsettled)
}

/// One look at all processes. True if there was something to change.
fn pass(cgroup: &Path, score: i32, changed: &mut Changed) -> Result<bool, Error> {
    let mut found = false;
    let mut members = Vec::new();
    list(cgroup, &mut members)?;
    for pid in &members {
        let Some(process) = Process::open(*pid)? else { continue };
        let Some(former) = process.read()?.filter(|former| *former != score) else { continue };
        // The number may have gone to a stranger between the list and the opening. If the cgroup still names it, then
        // what is open is a member, or was one and has ended, and then the write finds nothing.
        let mut now = Vec::new();
        list(cgroup, &mut now)?;
        if !now.contains(pid) {
            continue;
        }
        match process.write(score) {
            Ok(()) => {
                found = true;
                changed.0.push((process, former));
            }
            Err(err) if gone(&err) => {}
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Error::Denied { pid: *pid, score });
            }
            Err(source) => {
                return Err(Error::Io { what: format!("oom_score_adj of process {pid}"), source });
            }
        }
    }
    Ok(found)
}

/// Process ids in a cgroup and below, as this PID namespace counts them.
fn list(cgroup: &Path, into: &mut Vec<u32>) -> Result<(), Error> {
    let fail = |source| Error::Io { what: format!("processes of {}", cgroup.display()), source };
    match std::fs::read_to_string(cgroup.join("cgroup.procs")) {
        // 0 stands for a process outside this namespace.
        Ok(text) => {
            into.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid > 0))
        }
        Err(err) if gone(&err) => return Ok(()),
        Err(err) => return Err(fail(err)),
    }
    let entries = match std::fs::read_dir(cgroup) {
        Ok(entries) => entries,
        Err(err) if gone(&err) => return Ok(()),
        Err(err) => return Err(fail(err)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), into)?;
        }
    }
    Ok(())
}

fn gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(libc::ESRCH)
}

/// One process, held by its folder in /proc: that never comes to mean another one.
#[derive(Debug)]
struct Process {
    pid: u32,
    dir: OwnedFd,
}

impl Process {
    /// None if it has ended.
    fn open(pid: u32) -> Result<Option<Self>, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(io::Error::from) {
            Ok(dir) => Ok(Some(Self { pid, dir })),
            Err(err) if gone(&err) => Ok(None),
            Err(source) => Err(Error::Io { what: format!("process {pid}"), source }),
        }
    }

    fn file(&self, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.dir, "oom_score_adj", flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// None if it has ended.
    fn read(&self) -> Result<Option<i32>, Error> {
        match self.file(OFlags::RDONLY).and_then(|file| io::read_to_string(std::fs::File::from(file))) {
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(err) if gone(&err) => Ok(None),
            Err(source) => Err(Error::Io { what: format!("oom_score_adj of process {}", self.pid), source }),
        }
    }

    fn write(&self, score: i32) -> io::Result<()> {
        rustix::io::write(self.file(OFlags::WRONLY)?, score.to_string().as_bytes())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    struct Fake {
        cgroup: tempfile::TempDir,
        children: Vec<Child>,
    }

    impl Fake {
        /// A cgroup's folder with one process in it and one below it.
        fn new() -> Self {
            let cgroup = tempfile::tempdir().unwrap();
            let children: Vec<Child> =
                (0..2).map(|_| Command::new("sleep").arg("60").spawn().unwrap()).collect();
            std::fs::create_dir(cgroup.path().join("below")).unwrap();
            // 4194304 is above any process id; 0 is how the kernel shows a process outside the namespace.
            std::fs::write(cgroup.path().join("cgroup.procs"), format!("0\n4194304\n{}\n", children[0].id()))
                .unwrap();
            std::fs::write(cgroup.path().join("below/cgroup.procs"), format!("{}\n", children[1].id()))
                .unwrap();
            Self { cgroup, children }
        }

        fn scores(&self) -> Vec<String> {
            let read = |child: &Child| {
                std::fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id()))
                    .unwrap()
                    .trim()
                    .to_owned()
            };
            self.children.iter().map(read).collect()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            for child in &mut self.children {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }

    #[test]
    fn all_processes_are_set_and_put_back() {
        let fake = Fake::new();
        let before = fake.scores();
        let changed = set(fake.cgroup.path(), 900).unwrap();
        assert_eq!(fake.scores(), ["900", "900"]);
        assert!(set(fake.cgroup.path(), 900).unwrap().0.is_empty());
        changed.undo();
        assert_eq!(fake.scores(), before);
    }

    #[test]
    fn lowering_without_the_capability_is_told() {
        let fake = Fake::new();
        let before = fake.scores();
        // Of this thread alone.
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap();
        let err = set(fake.cgroup.path(), -1000).unwrap_err();
        assert!(matches!(err, Error::Denied { score: -1000, .. }), "{err}");
        assert!(
            matches!(CriError::from(err), CriError::FailedPrecondition(text) if text.contains("CAP_SYS_RESOURCE"))
        );
        assert_eq!(fake.scores(), before);
    }

    #[test]
    fn bounds() {
        let nowhere = Path::new("/nonexistent");
        for score in [-1001, 1001, i32::MAX] {
            assert!(matches!(CriError::from(set(nowhere, score).unwrap_err()), CriError::Invalid(_)));
        }
        assert!(set(nowhere, 1000).unwrap().0.is_empty());
    }
}
