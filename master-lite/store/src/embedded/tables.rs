//! The file's tables. Changing one of these is a change of the file format.

use redb::{Database, ReadableDatabase as _, TableDefinition};

use crate::{Result, Revision, StoreError};

/// `create_revision`, `mod_revision`, `version`, value.
pub(super) type Row<'a> = (u64, u64, u64, &'a [u8]);

/// Newest state of each key.
pub(super) const CURRENT: TableDefinition<'_, &str, Row<'_>> = TableDefinition::new("current");

/// One change: commit time (ms since 1970), deleted, key, new state (empty value if deleted), state before.
pub(super) type Change<'a> = (u64, bool, &'a str, Row<'a>, Option<Row<'a>>);

/// Changes by revision and place in their transaction.
pub(super) const HISTORY: TableDefinition<'_, (u64, u32), Change<'_>> = TableDefinition::new("history");

/// When a key vanishes (ms since 1970), by time.
pub(super) const EXPIRY: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("expiry");

/// The same by key.
pub(super) const TTL: TableDefinition<'_, &str, u64> = TableDefinition::new("ttl");

/// Counters, see the names below.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Newest revision.
pub(super) const REVISION: &str = "revision";
/// Newest revision whose history is gone.
pub(super) const COMPACTED: &str = "compacted";

/// The revision in the file; none in a new one.
pub(super) fn revision(database: &Database) -> Result<Option<Revision>> {
    let tx = database.begin_read().map_err(StoreError::engine("begin a read"))?;
    let meta = match tx.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        other => other.map_err(StoreError::engine("open table meta"))?,
    };
    Ok(meta.get(REVISION).map_err(StoreError::engine("read the revision"))?.map(|v| v.value()))
}

/// Makes absent tables; returns the revision found (1 in a new file, as in etcd).
pub(super) fn initialize(database: &Database) -> Result<Revision> {
    // The tables are made in one transaction with the revision. Nothing is written when they are there: the disk may be
    // full, which is no reason not to start.
    if let Some(revision) = revision(database)? {
        return Ok(revision);
    }
    let tx = database.begin_write().map_err(StoreError::engine("begin the first transaction"))?;
    let revision = {
        tx.open_table(CURRENT).map_err(StoreError::engine("make table current"))?;
        tx.open_table(HISTORY).map_err(StoreError::engine("make table history"))?;
        tx.open_table(EXPIRY).map_err(StoreError::engine("make table expiry"))?;
        tx.open_table(TTL).map_err(StoreError::engine("make table ttl"))?;
        let mut meta = tx.open_table(META).map_err(StoreError::engine("make table meta"))?;
        meta.insert(REVISION, 1).map_err(StoreError::engine("write the first revision"))?;
        meta.insert(COMPACTED, 0).map_err(StoreError::engine("write the first revision"))?;
        1
    };
    tx.commit().map_err(StoreError::engine("commit the first transaction"))?;
    Ok(revision)
}
