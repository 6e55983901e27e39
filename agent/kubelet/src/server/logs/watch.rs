//! Waiting for changes in log folders. One inotify instance serves all readers: a user may have only 128.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Tells readers when something in their folder changed.
#[derive(Clone)]
pub(crate) struct DirWatcher {
    /// None when the kernel gives no inotify instance: readers then look once a second.
    shared: Option<Arc<Shared>>,
}

/// nix's Inotify with the trait that tokio asks for.
struct Instance(Inotify);

impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Shared {
    inotify: AsyncFd<Instance>,
    dirs: Mutex<Dirs>,
}

#[derive(Default)]
struct Dirs {
    by_path: HashMap<PathBuf, Watched>,
    by_descriptor: HashMap<WatchDescriptor, PathBuf>,
}

struct Watched {
    descriptor: WatchDescriptor,
    readers: usize,
    changed: watch::Sender<()>,
}

/// A reader's interest in one folder; ends when dropped.
pub(super) struct DirWatch {
    shared: Option<Arc<Shared>>,
    path: PathBuf,
    changed: Option<watch::Receiver<()>>,
}

impl DirWatcher {
    /// Starts watching nothing. Must run inside a tokio runtime.
    pub(crate) fn new() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(std::io::Error::from)
            .and_then(|inotify| {
                // SAFETY: `Instance` owns its descriptor, gives the same one at each call, and closes it only when it
                // is dropped, which `AsyncFd` does after deregistering.
                Ok(unsafe { AsyncFd::register(Instance(inotify)) }?)
            });
        match inotify {
            Ok(inotify) => {
                let shared = Arc::new(Shared { inotify, dirs: Mutex::default() });
                let weak = Arc::downgrade(&shared);
                tokio::spawn(async move {
                    // Held only for the time of one wait, so that the task ends with the last watcher.
                    while let Some(shared) = weak.upgrade() {
                        let wait =
                            tokio::time::timeout(std::time::Duration::from_secs(60), shared.dispatch());
                        if matches!(wait.await, Ok(Err(_))) {
                            return;
                        }
                    }
                });
                Self { shared: Some(shared) }
            }
            Err(error) => {
                tracing::warn!(%error, "no inotify instance: followed logs are looked at once a second");
                Self { shared: None }
            }
        }
    }

    /// Watches a folder from now on.
    pub(super) fn watch(&self, dir: &Path) -> DirWatch {
        let changed = self.shared.as_ref().and_then(|shared| shared.add(dir));
        let shared = changed.is_some().then(|| self.shared.clone()).flatten();
        DirWatch { shared, path: dir.to_owned(), changed }
    }
}

impl Shared {
    fn add(&self, dir: &Path) -> Option<watch::Receiver<()>> {
        let mut dirs = self.dirs.lock();
        if let Some(watched) = dirs.by_path.get_mut(dir) {
            watched.readers += 1;
            return Some(watched.changed.subscribe());
        }
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        match self.inotify.get_ref().0.add_watch(dir, flags) {
            Ok(descriptor) => {
                let (changed, receiver) = watch::channel(());
                dirs.by_descriptor.insert(descriptor, dir.to_owned());
                dirs.by_path.insert(dir.to_owned(), Watched { descriptor, readers: 1, changed });
                Some(receiver)
            }
            Err(error) => {
                tracing::debug!(%error, dir = %dir.display(), "folder can't be watched");
                None
            }
        }
    }

    fn remove(&self, dir: &Path) {
        let mut dirs = self.dirs.lock();
        let Some(watched) = dirs.by_path.get_mut(dir) else { return };
        watched.readers -= 1;
        if watched.readers == 0 {
            let descriptor = watched.descriptor;
            dirs.by_path.remove(dir);
            dirs.by_descriptor.remove(&descriptor);
            // Fails when the folder is gone, and its watch with it.
            let _ = self.inotify.get_ref().0.rm_watch(descriptor);
        }
    }

    /// Waits for events and hands them out.
    async fn dispatch(&self) -> std::io::Result<()> {
        let mut ready = self.inotify.readable().await?;
        match self.inotify.get_ref().0.read_events() {
            Ok(events) => {
                let dirs = self.dirs.lock();
                let overflow = events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW));
                for (path, watched) in &dirs.by_path {
                    let hit = events.iter().any(|event| dirs.by_descriptor.get(&event.wd) == Some(path));
                    if hit || overflow {
                        watched.changed.send_replace(());
                    }
                }
            }
            Err(nix::Error::EAGAIN) => ready.clear_ready(),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl DirWatch {
    /// Returns when something changed since the last time. Never, without inotify.
    pub(super) async fn changed(&mut self) {
        if let Some(changed) = &mut self.changed
            && changed.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}

impl Drop for DirWatch {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn changes_reach_all_readers_of_the_folder() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let watcher = DirWatcher::new();
        let (mut one, mut two) = (watcher.watch(dir.path()), watcher.watch(dir.path()));
        let mut elsewhere = watcher.watch(other.path());
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let both = async { tokio::join!(one.changed(), two.changed()) };
        tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), elsewhere.changed()).await.is_err());
        drop((one, two));
        assert_eq!(watcher.shared.as_ref().unwrap().dirs.lock().by_path.len(), 1);
    }
}
