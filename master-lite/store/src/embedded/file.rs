//! The file: opened again after the engine has met an error, and kept from filling its filesystem to the last byte.

use std::path::PathBuf;

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use redb::Database;

use super::{Options, tables};
use crate::{Result, Revision, StoreError};

/// The engine's file. After an I/O error the engine refuses everything, reads too, until it is closed and opened again.
pub(super) struct StoreFile {
    path: PathBuf,
    cache_bytes: usize,
    reserve: u64,
    /// None while it can't be opened again.
    database: RwLock<Option<Database>>,
}

impl StoreFile {
    /// Opens or makes it; gives the revision found.
    pub(super) fn open(options: Options) -> Result<(Self, Revision)> {
        let Options { path, cache_bytes, reserve, history: _ } = options;
        let file = Self { path, cache_bytes, reserve, database: RwLock::new(None) };
        let database = file.load()?;
        let revision = tables::initialize(&database)?;
        *file.database.write() = Some(database);
        Ok((file, revision))
    }

    fn load(&self) -> Result<Database> {
        Database::builder()
            .set_cache_size(self.cache_bytes)
            .create(&self.path)
            .map_err(StoreError::engine("open the store's file"))
    }

    /// Closes it and opens it again; gives the revision found, which is the last one that was committed durably. Waits for
    /// reads that are under way.
    pub(super) fn reopen(&self) -> Result<Revision> {
        let mut open = self.database.write();
        // Closed first: the engine locks its file.
        *open = None;
        let database = self.load()?;
        let revision = tables::revision(&database)?.unwrap_or(1);
        *open = Some(database);
        Ok(revision)
    }

    /// The open database. Not to be asked for again while the answer is held: a reopening that waits would come between.
    pub(super) fn database(&self) -> Result<MappedRwLockReadGuard<'_, Database>> {
        RwLockReadGuard::try_map(self.database.read(), Option::as_ref).map_err(|_closed| StoreError::Engine {
            operation: "the store's file could not be opened again yet",
            source: self.path.display().to_string().into(),
        })
    }

    /// What may be written now.
    pub(super) fn room(&self) -> Room {
        let folder =
            self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
        match rustix::fs::statvfs(folder) {
            Ok(stat) => Room { free: stat.f_bavail.saturating_mul(stat.f_frsize), reserve: self.reserve },
            // Not known to be full.
            Err(_) => Room { free: u64::MAX, reserve: self.reserve },
        }
    }
}

/// Space on the file's filesystem. As with an etcd that is out of space, there is less than is needed for new values long
/// before there is none for deletes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) free: u64,
    reserve: u64,
}

impl Room {
    /// Whether values of that many bytes can be written: once as they are and twice into history, and pages are copied.
    pub(super) fn for_values(self, bytes: u64) -> bool {
        self.reserve == 0 || self.free >= self.reserve.saturating_add(bytes.saturating_mul(4))
    }

    /// Whether something can be written at all.
    pub(super) fn for_deletes(self) -> bool {
        self.free >= self.reserve / 4
    }

    /// Why something is refused.
    pub(super) fn error(self) -> StoreError {
        StoreError::NoSpace { free: self.free, reserve: self.reserve }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletes_go_on_for_longer_than_writes() {
        let check = |free, bytes, values, deletes| {
            let room = Room { free, reserve: 1000 };
            assert_eq!((room.for_values(bytes), room.for_deletes()), (values, deletes), "{free} {bytes}");
        };
        check(2000, 250, true, true);
        check(2000, 251, false, true);
        check(999, 0, false, true);
        check(250, 0, false, true);
        check(249, 0, false, false);
        check(u64::MAX, u64::MAX, true, true);
        assert!(Room { free: 0, reserve: 0 }.for_values(1), "nothing is kept back");
    }
}
