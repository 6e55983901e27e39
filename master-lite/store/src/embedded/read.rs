//! Reads, each over one snapshot of the file.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _};

use super::tables::{COMPACTED, CURRENT, Change, EXPIRY, HISTORY, META, REVISION, Row, TTL};
use crate::{
    Event, EventKind, KeyRange, KeyValue, RangeRequest, RangeResponse, Result, Revision, StoreError,
};

const READ: &str = "read the store";

pub(super) fn key_value(key: &str, row: Row<'_>) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(row.3),
        create_revision: row.0,
        mod_revision: row.1,
        version: row.2,
    }
}

pub(super) fn event(change: Change<'_>) -> Event {
    let (_, deleted, key, row, prev) = change;
    Event {
        kind: if deleted { EventKind::Delete } else { EventKind::Put },
        kv: key_value(key, row),
        prev: prev.map(|row| key_value(key, row)),
    }
}

fn begin(database: &Database) -> Result<ReadTransaction> {
    database.begin_read().map_err(StoreError::engine("begin a read"))
}

fn counter(tx: &ReadTransaction, name: &str) -> Result<u64> {
    let meta = tx.open_table(META).map_err(StoreError::engine(READ))?;
    Ok(meta.get(name).map_err(StoreError::engine(READ))?.map_or(0, |v| v.value()))
}

fn bounds(range: &KeyRange) -> (Bound<&str>, Bound<&str>) {
    let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    (Bound::Included(range.start.as_str()), end)
}

/// An inverted range would make redb panic.
fn is_empty(range: &KeyRange) -> bool {
    range.end.as_ref().is_some_and(|end| *end <= range.start)
}

pub(super) fn get(database: &Database, key: &str) -> Result<Option<KeyValue>> {
    let tx = begin(database)?;
    let table = tx.open_table(CURRENT).map_err(StoreError::engine(READ))?;
    let row = table.get(key).map_err(StoreError::engine(READ))?;
    Ok(row.map(|row| key_value(key, row.value())))
}

pub(super) fn count(database: &Database, range: &KeyRange) -> Result<u64> {
    if is_empty(range) {
        return Ok(0);
    }
    let tx = begin(database)?;
    let table = tx.open_table(CURRENT).map_err(StoreError::engine(READ))?;
    let rows = table.range::<&str>(bounds(range)).map_err(StoreError::engine(READ))?;
    Ok(u64::try_from(rows.count()).unwrap_or(u64::MAX))
}

pub(super) fn range(database: &Database, request: &RangeRequest) -> Result<RangeResponse> {
    let tx = begin(database)?;
    let newest = counter(&tx, REVISION)?;
    let revision = request.revision.unwrap_or(newest);
    if revision > newest {
        return Err(StoreError::FutureRevision { current: newest });
    }
    let compacted = counter(&tx, COMPACTED)?;
    if revision < compacted {
        return Err(StoreError::Compacted { oldest: compacted });
    }
    if is_empty(&request.range) {
        return Ok(RangeResponse { kvs: Vec::new(), count: 0, revision });
    }
    // The state at a revision is the newest state with every later change undone: for each key that changed
    // since, the value before its first later change.
    let mut undone: BTreeMap<String, Option<KeyValue>> = BTreeMap::new();
    if revision < newest {
        let history = tx.open_table(HISTORY).map_err(StoreError::engine(READ))?;
        for row in history.range((revision + 1, 0)..).map_err(StoreError::engine(READ))? {
            let (_, change) = row.map_err(StoreError::engine(READ))?;
            let (_, _, key, _, prev) = change.value();
            if request.range.contains(key) && !undone.contains_key(key) {
                undone.insert(key.to_owned(), prev.map(|row| key_value(key, row)));
            }
        }
    }
    let mut kvs = Vec::new();
    let mut count = 0_u64;
    let limit = if request.limit == 0 { usize::MAX } else { request.limit };
    let mut take = |make: &dyn Fn() -> KeyValue| {
        count += 1;
        if kvs.len() < limit {
            kvs.push(make());
        }
    };
    let table = tx.open_table(CURRENT).map_err(StoreError::engine(READ))?;
    let mut gone = undone.iter().peekable();
    for row in table.range::<&str>(bounds(&request.range)).map_err(StoreError::engine(READ))? {
        let (key, row) = row.map_err(StoreError::engine(READ))?;
        let key = key.value();
        while let Some((_, prev)) = gone.next_if(|(k, _)| k.as_str() < key) {
            if let Some(prev) = prev {
                take(&|| prev.clone());
            }
        }
        match gone.next_if(|(k, _)| k.as_str() == key) {
            Some((_, Some(prev))) => take(&|| prev.clone()),
            Some((_, None)) => {}
            None => take(&|| key_value(key, row.value())),
        }
    }
    for (_, prev) in gone {
        if let Some(prev) = prev {
            take(&|| prev.clone());
        }
    }
    Ok(RangeResponse { kvs, count, revision })
}

/// Changes from `first` to `last`, both inclusive.
pub(super) fn history(
    database: &Database,
    range: &KeyRange,
    first: Revision,
    last: Revision,
) -> Result<Vec<Arc<Event>>> {
    let tx = begin(database)?;
    let compacted = counter(&tx, COMPACTED)?;
    if first <= compacted {
        return Err(StoreError::Compacted { oldest: compacted });
    }
    let table = tx.open_table(HISTORY).map_err(StoreError::engine(READ))?;
    let mut events = Vec::new();
    for row in table.range((first, 0)..=(last, u32::MAX)).map_err(StoreError::engine(READ))? {
        let (_, change) = row.map_err(StoreError::engine(READ))?;
        let change = change.value();
        if range.contains(change.2) {
            events.push(Arc::new(event(change)));
        }
    }
    Ok(events)
}

/// Copies every table of one read snapshot to a new file.
pub(super) fn snapshot(database: &Database, path: &Path) -> Result<Revision> {
    const SNAPSHOT: &str = "write a snapshot";
    let fail = || StoreError::engine(SNAPSHOT);
    let tx = begin(database)?;
    // Made by create_new first, so that a snapshot never grows out of an older file.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(StoreError::engine(SNAPSHOT))?;
    let copy = Database::builder().create_file(file).map_err(StoreError::engine(SNAPSHOT))?;
    let out = copy.begin_write().map_err(StoreError::engine(SNAPSHOT))?;
    macro_rules! copy_table {
        ($table:expr) => {{
            let from = tx.open_table($table).map_err(StoreError::engine(SNAPSHOT))?;
            let mut to = out.open_table($table).map_err(StoreError::engine(SNAPSHOT))?;
            for row in from.iter().map_err(StoreError::engine(SNAPSHOT))? {
                let (key, value) = row.map_err(StoreError::engine(SNAPSHOT))?;
                to.insert(key.value(), value.value()).map_err(fail())?;
            }
        }};
    }
    copy_table!(CURRENT);
    copy_table!(HISTORY);
    copy_table!(EXPIRY);
    copy_table!(TTL);
    copy_table!(META);
    out.commit().map_err(StoreError::engine(SNAPSHOT))?;
    counter(&tx, REVISION)
}
