//! Keeps the logs of running containers within bounds (`containerLogMaxSize`, `containerLogMaxFiles`).
//!
//! Source: upstream `pkg/kubelet/logs/container_log_manager.go`. Upstream looks every ten seconds, however much is
//! written meanwhile: a container can write hundreds of megabytes in one. Here it is four times in a second, and more
//! often while a log grows so fast that it would be past its size by the next time. What a container takes of the disk is
//! thus bounded by size and number of files, and for each file what is written between two looks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use keelson_cri::{ContainerState, CriError, RuntimeService};
use keelson_quantity::Quantity;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::log_files;

/// How often a log is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often one that grows fast is.
const LOOK_FAST: Duration = Duration::from_millis(50);
/// How long one is left alone that could not be rotated.
const REST: Duration = Duration::from_secs(10);

/// What a container's log may take of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPolicy {
    /// Size at which a file is set aside; none: never.
    max_size: Option<u64>,
    /// Most files of a container, the one being written among them.
    max_files: usize,
}

impl Default for LogPolicy {
    /// kubelet's: 5 files of 10Mi.
    fn default() -> Self {
        Self { max_size: Some(10 << 20), max_files: 5 }
    }
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogPolicyError {
    /// Not a quantity of bytes.
    #[error("invalid containerLogMaxSize {0:?}: must be a quantity such as 10Mi")]
    Size(String),
    /// One file can't be set aside for another.
    #[error("invalid containerLogMaxFiles {0}: must be greater than 1")]
    Files(i32),
}

impl LogPolicy {
    /// No log is ever set aside.
    pub fn unbounded() -> Self {
        Self { max_size: None, ..Self::default() }
    }

    /// kubelet's `containerLogMaxSize`, where a negative one means without end, and `containerLogMaxFiles`.
    pub fn new(max_size: &str, max_files: i32) -> Result<Self, LogPolicyError> {
        let size = || LogPolicyError::Size(max_size.to_owned());
        let bytes = max_size.parse::<Quantity>().map_err(|_no_quantity| size())?.value();
        let files = usize::try_from(max_files).ok().filter(|files| *files > 1);
        Ok(Self {
            max_size: if bytes < 0 { None } else { Some(u64::try_from(bytes).map_err(|_too_big| size())?) },
            max_files: files.ok_or(LogPolicyError::Files(max_files))?,
        })
    }
}

/// Tends all logs until `shutdown`.
pub async fn keep(
    runtime: Arc<dyn RuntimeService>,
    policy: LogPolicy,
    clock: Clock,
    shutdown: CancellationToken,
) {
    let Some(max_size) = policy.max_size else { return };
    let mut tender = Tender {
        runtime,
        max_size,
        max_files: policy.max_files,
        clock,
        seen: HashMap::new(),
        resting: HashMap::new(),
        to_pack: BTreeSet::new(),
        packing: None,
    };
    loop {
        let pause = tender.look().await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

struct Tender {
    runtime: Arc<dyn RuntimeService>,
    max_size: u64,
    max_files: usize,
    clock: Clock,
    /// Size of each container's log when it was looked at last.
    seen: HashMap<String, (u64, Instant)>,
    /// Containers whose log could not be rotated, and until when they are left alone.
    resting: HashMap<String, Instant>,
    /// Logs that may have files set aside and not packed.
    to_pack: BTreeSet<PathBuf>,
    packing: Option<JoinHandle<()>>,
}

impl Tender {
    /// Looks at every log once; gives when to look again.
    async fn look(&mut self) -> Duration {
        let containers = match self.runtime.list_containers(None).await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::warn!(%error, "containers not listed: their logs are not looked at");
                return LOOK;
            }
        };
        // What has ended writes no more: its log stays as it is until the container is removed.
        let running: Vec<_> = containers.iter().filter(|c| c.state == ContainerState::Running).collect();
        if self.seen.len() > running.len() {
            let ids: HashSet<&str> = running.iter().map(|c| c.id.as_str()).collect();
            let logs: HashSet<&Path> = running.iter().map(|c| c.log_path.as_path()).collect();
            self.seen.retain(|id, _| ids.contains(id.as_str()));
            self.to_pack.retain(|log| logs.contains(log.as_path()));
        }
        let now = Instant::now();
        self.resting.retain(|_, until| *until > now);
        let mut fast = BTreeSet::new();
        for container in running {
            if self.resting.contains_key(&container.id) {
                continue;
            }
            let log = &container.log_path;
            match self.tend(&container.id, log).await {
                Ok(true) => drop(fast.insert(log.clone())),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, log = %log.display(), "a container's log can't be rotated");
                    self.resting.insert(container.id.clone(), now + REST);
                }
            }
        }
        self.pack_next(&fast);
        if fast.is_empty() { LOOK } else { LOOK_FAST }
    }

    /// Rotates a log that is due. Gives whether it grows fast.
    async fn tend(&mut self, id: &str, log: &Path) -> Result<bool, CriError> {
        let failed = |what: &str, error: io::Error| CriError::Internal(format!("{what}: {error}"));
        let size = match std::fs::metadata(log) {
            Ok(metadata) => metadata.len(),
            // Somebody took it away: what is written would be lost.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.runtime.reopen_container_log(id).await?;
                0
            }
            Err(error) => return Err(failed("stat", error)),
        };
        let now = Instant::now();
        let before = self.seen.insert(id.to_owned(), (size, now));
        if before.is_none() {
            self.to_pack.insert(log.to_owned());
        }
        let growth = before.map_or(0, |(then, at)| growth(size.saturating_sub(then), now - at));
        if size < self.max_size {
            return Ok(size.saturating_add(growth) >= self.max_size);
        }
        make_room(log, self.max_files).map_err(|e| failed("removing old files", e))?;
        let aside = set_aside(log, self.clock.now()).map_err(|e| failed("renaming", e))?;
        if let Err(error) = self.runtime.reopen_container_log(id).await {
            // As it was, so that it is tried again.
            std::fs::rename(&aside, log).map_err(|e| failed("renaming back", e))?;
            return Err(error);
        }
        self.seen.insert(id.to_owned(), (0, now));
        self.to_pack.insert(log.to_owned());
        Ok(growth >= self.max_size)
    }

    /// Packs one more file, unless one is being packed. Files of a log that grows fast are about to be removed and not
    /// worth it.
    fn pack_next(&mut self, fast: &BTreeSet<PathBuf>) {
        if self.packing.as_ref().is_some_and(|packing| !packing.is_finished()) {
            return;
        }
        let logs: Vec<PathBuf> = self.to_pack.difference(fast).cloned().collect();
        for log in logs {
            let Some(file) = next_to_pack(&log) else {
                self.to_pack.remove(&log);
                continue;
            };
            self.packing = Some(tokio::task::spawn_blocking(move || {
                // Meanwhile it may have been removed.
                if let Err(error) = pack(&file)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, file = %file.display(), "a rotated log can't be compressed");
                }
            }));
            return;
        }
    }
}

/// How much a log would grow until the next look.
fn growth(grown: u64, within: Duration) -> u64 {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    grown.saturating_mul(millis(LOOK)) / millis(within)
}

/// Files that were set aside, oldest first.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let mut files = log_files::all(log);
    files.pop();
    files
}

/// Removes what there is too much of once the log has been set aside, and what an interrupted compression left.
fn make_room(log: &Path, max_files: usize) -> io::Result<()> {
    for file in log_files::useless(log) {
        remove(&file)?;
    }
    let files = rotated(log);
    let keep = max_files - 2;
    files.iter().take(files.len().saturating_sub(keep)).try_for_each(|file| remove(file))
}

fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives a log the name by which readers find it behind the next one.
fn set_aside(log: &Path, now: std::time::SystemTime) -> io::Result<PathBuf> {
    let time = jiff::Timestamp::try_from(now).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let name = format!("{}.{}", log.display(), time.strftime("%Y%m%d-%H%M%S"));
    // Several in a second: their names sort in the order of their making, compressed or not.
    let free = |name: &String| !Path::new(name).exists() && !Path::new(&format!("{name}.gz")).exists();
    let mut names = std::iter::once(name.clone()).chain((1..100).map(|n| format!("{name}_{n:02}")));
    let aside = names.find(free).ok_or(io::ErrorKind::AlreadyExists)?;
    std::fs::rename(log, &aside)?;
    Ok(aside.into())
}

/// The oldest file that is not compressed; the newest stays as it is, as somebody may still be reading it.
fn next_to_pack(log: &Path) -> Option<PathBuf> {
    let mut files = rotated(log);
    files.pop();
    files.into_iter().find(|file| file.extension().is_none_or(|extension| extension != "gz"))
}

/// Compresses a file to one beside it.
fn pack(file: &Path) -> io::Result<()> {
    let with = |suffix: &str| PathBuf::from(format!("{}{suffix}", file.display()));
    let unfinished = with(".tmp");
    let result = (|| {
        let mut from = std::fs::File::open(file)?;
        let to = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&unfinished)?;
        let mut encoder = GzEncoder::new(to, Compression::default());
        io::copy(&mut from, &mut encoder)?;
        encoder.finish()?;
        std::fs::rename(&unfinished, with(".gz"))?;
        remove(file)
    })();
    if result.is_err() {
        // A full disk, most likely: then every byte counts.
        remove(&unfinished)?;
    }
    result
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn names(log: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(log.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn policies() {
        let check = |size: &str, files, expected| {
            assert_eq!(
                LogPolicy::new(size, files).map(|p| (p.max_size, p.max_files)),
                expected,
                "{size} {files}"
            );
        };
        check("10Mi", 5, Ok((Some(10 << 20), 5)));
        check("1M", 2, Ok((Some(1_000_000), 2)));
        check("-1", 5, Ok((None, 5)));
        check("much", 5, Err(LogPolicyError::Size("much".into())));
        check("10Mi", 1, Err(LogPolicyError::Files(1)));
        check("10Mi", -1, Err(LogPolicyError::Files(-1)));
    }

    #[test]
    fn growth_until_the_next_look() {
        assert_eq!(growth(0, Duration::ZERO), 0);
        assert_eq!(growth(10, LOOK), 10);
        assert_eq!(growth(10, LOOK / 5), 50);
        assert_eq!(growth(10, LOOK * 10), 1);
    }

    #[test]
    fn old_files_make_room_and_are_packed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_697_600 + seconds);
        // Twice in the first second.
        for (n, second) in [0u64, 0, 1, 2].into_iter().enumerate() {
            std::fs::write(&log, format!("{n}\n")).unwrap();
            set_aside(&log, at(second)).unwrap();
        }
        std::fs::write(&log, "4\n").unwrap();
        std::fs::write(dir.path().join("1.log"), "another's\n").unwrap();
        let (a, b, c, d) = (
            "0.log.20251121-040000",
            "0.log.20251121-040000_01",
            "0.log.20251121-040001",
            "0.log.20251121-040002",
        );
        assert_eq!(names(&log), ["0.log", a, b, c, d, "1.log"]);
        while let Some(file) = next_to_pack(&log) {
            pack(&file).unwrap();
        }
        let gz = |name: &str| format!("{name}.gz");
        assert_eq!(names(&log), ["0.log", &gz(a), &gz(b), &gz(c), d, "1.log"]);
        assert_eq!(rotated(&log).len(), 4);
        // What was interrupted: a compression under way, and one whose original was not removed.
        std::fs::write(dir.path().join(format!("{d}.tmp")), "half").unwrap();
        std::fs::write(dir.path().join(c), "2\n").unwrap();
        assert_eq!(rotated(&log).len(), 4);
        make_room(&log, 5).unwrap();
        assert_eq!(names(&log), ["0.log", &gz(b), &gz(c), d, "1.log"]);
        make_room(&log, 2).unwrap();
        assert_eq!(names(&log), ["0.log", "1.log"]);
    }

    #[test]
    fn what_cannot_be_packed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("0.log.20251121-040000");
        std::fs::create_dir(&file).unwrap();
        assert!(pack(&file).is_err());
        assert!(file.exists() && !dir.path().join("0.log.20251121-040000.tmp").exists());
    }
}
