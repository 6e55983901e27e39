//! The one thread that writes: group commit, expiry, forgetting of history.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redb::{ReadableTable as _, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::read::{event, key_value};
use super::tables::{COMPACTED, CURRENT, Change, EXPIRY, HISTORY, META, REVISION, Row, TTL};
use crate::{Event, Op, Result, Revision, StoreError, Txn, TxnResponse};

/// Most transactions in one commit, so that one fsync never holds up too many answers.
const GROUP: usize = 256;
/// Most rows of history or expired keys handled in one tick, so that cleaning never stalls writers.
const CLEAN: usize = 5000;

const WRITE: &str = "write to the store";

/// What the writer is asked to do.
pub(super) enum Command {
    /// Apply a transaction.
    Txn { txn: Txn, reply: oneshot::Sender<Result<TxnResponse>> },
    /// Forget history up to and including a revision.
    Compact { revision: Revision, reply: oneshot::Sender<Result<()>> },
    /// Time has passed: expire keys, forget old history.
    Tick,
}

/// Starts the thread. It ends when all senders are gone.
pub(super) fn spawn(shared: Arc<Shared>, queue: mpsc::Receiver<Command>, history: Duration) -> Result<()> {
    std::thread::Builder::new()
        .name("store-writer".into())
        .spawn(move || run(Writer { shared, history, full: false, broken: None }, queue))
        .map(drop)
        .map_err(StoreError::engine("start the writer thread"))
}

/// Sends a tick each second for as long as the store is open.
pub(super) fn spawn_ticker(commands: mpsc::WeakSender<Command>) {
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(Duration::from_secs(1));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let Some(commands) = commands.upgrade() else { return };
            if commands.send(Command::Tick).await.is_err() {
                return;
            }
        }
    });
}

fn run(mut writer: Writer, mut queue: mpsc::Receiver<Command>) {
    let mut group = Vec::with_capacity(GROUP);
    while queue.blocking_recv_many(&mut group, GROUP) > 0 {
        writer.commit_group(std::mem::take(&mut group));
    }
}

/// An answer that is due once the commit is durable.
enum Pending {
    Txn(oneshot::Sender<Result<TxnResponse>>, Result<TxnResponse>),
    Compact(oneshot::Sender<Result<()>>, Result<()>),
}

impl Pending {
    // A receiver that is gone has given up waiting; the commit stands all the same.
    fn answer(self) {
        match self {
            Self::Txn(reply, result) => drop(reply.send(result)),
            Self::Compact(reply, result) => drop(reply.send(result)),
        }
    }

    fn fail(self, error: &str) {
        let error = || StoreError::Engine { operation: WRITE, source: error.into() };
        match self {
            Self::Txn(reply, _) => drop(reply.send(Err(error()))),
            Self::Compact(reply, _) => drop(reply.send(Err(error()))),
        }
    }
}

/// What the thread knows.
struct Writer {
    shared: Arc<Shared>,
    history: Duration,
    /// New values are being refused for want of space.
    full: bool,
    /// Set when the engine has met an error: its file must be opened again.
    broken: Option<Unsettled>,
}

/// A commit that failed. It may be found in the file all the same.
struct Unsettled {
    revision: Revision,
    events: Vec<Arc<Event>>,
}

impl Writer {
    fn commit_group(&mut self, group: Vec<Command>) {
        let (work, mut pending) = sort_out(group);
        let Err(error) = self.try_commit(work, &mut pending) else {
            pending.into_iter().for_each(Pending::answer);
            return;
        };
        let source = std::error::Error::source(&error).map_or(String::new(), |s| s.to_string());
        let text = format!("{error}: {source}");
        tracing::error!(error = %text, "commit failed");
        // Before anybody is told: until then the engine answers no reads either.
        if let Err(error) = self.mend() {
            tracing::error!(%error, "the store's file can't be opened again yet");
        }
        pending.into_iter().for_each(|p| p.fail(&text));
    }

    fn try_commit(&mut self, mut work: Vec<Work>, pending: &mut [Pending]) -> Result<()> {
        self.mend()?;
        self.refuse_without_room(&mut work, pending);
        let mut revision = self.shared.revision.load(Ordering::Acquire);
        let mut events = Vec::new();
        let applied = apply_group(&self.shared, work, self.history, &mut revision, pending, &mut events);
        match applied {
            Ok(()) => self.publish(revision, &events),
            Err(_) => self.broken = Some(Unsettled { revision, events }),
        }
        applied
    }

    fn publish(&self, revision: Revision, events: &[Arc<Event>]) {
        if self.shared.revision.swap(revision, Ordering::AcqRel) < revision {
            self.shared.hub.publish(revision, events);
        }
    }

    /// Opens the file again after an error. Whoever waited for the commit that failed was told so; if it is there, watchers
    /// learn of it all the same.
    fn mend(&mut self) -> Result<()> {
        if self.broken.is_none() {
            return Ok(());
        }
        let found = self.shared.file.reopen()?;
        tracing::warn!(revision = found, "the store's file was opened again");
        if let Some(failed) = self.broken.take().filter(|failed| failed.revision == found) {
            self.publish(failed.revision, &failed.events);
        }
        Ok(())
    }

    /// Takes out of a group what the filesystem may have no room for, so that the engine never finds it full.
    fn refuse_without_room(&mut self, work: &mut Vec<Work>, pending: &mut [Pending]) {
        let room = self.shared.file.room();
        let mut bytes = 0_u64;
        work.retain(|item| {
            let (slot, fits) = match item {
                Work::Txn(txn, slot) => {
                    let values = txn.ops.iter().filter_map(|op| match op {
                        Op::Put { value, .. } => Some(value.len() as u64),
                        Op::Delete { .. } => None,
                    });
                    let deletes = values.clone().next().is_none();
                    bytes = values.fold(bytes, u64::saturating_add);
                    (Some(*slot), if deletes { room.for_deletes() } else { room.for_values(bytes) })
                }
                Work::Compact(_, slot) => (Some(*slot), room.for_deletes()),
                Work::Tick => (None, room.for_deletes()),
            };
            match slot.and_then(|slot| pending.get_mut(slot)).filter(|_| !fits) {
                Some(Pending::Txn(_, result)) => *result = Err(room.error()),
                Some(Pending::Compact(_, result)) => *result = Err(room.error()),
                None => {}
            }
            fits
        });
        let full = !room.for_values(0);
        if full != self.full {
            self.full = full;
            if full {
                tracing::error!(error = %room.error(), "writes are refused");
            } else {
                tracing::info!(free = room.free, "there is room again: writes are accepted");
            }
        }
    }
}

/// The work of a group, and where its answers go: collected before anything can fail, so that a failure reaches every sender.
fn sort_out(group: Vec<Command>) -> (Vec<Work>, Vec<Pending>) {
    let mut work = Vec::with_capacity(group.len());
    let mut pending = Vec::with_capacity(group.len());
    for command in group {
        match command {
            Command::Txn { txn, reply } => {
                work.push(Work::Txn(txn, pending.len()));
                pending.push(Pending::Txn(reply, Err(StoreError::Closed)));
            }
            Command::Compact { revision, reply } => {
                work.push(Work::Compact(revision, pending.len()));
                pending.push(Pending::Compact(reply, Ok(())));
            }
            Command::Tick => work.push(Work::Tick),
        }
    }
    (work, pending)
}

/// Applies a group in one transaction of the engine and commits it durably. `revision` and `events` say what it comes to,
/// whether it succeeds or not.
fn apply_group(
    shared: &Shared,
    work: Vec<Work>,
    history: Duration,
    revision: &mut Revision,
    pending: &mut [Pending],
    events: &mut Vec<Arc<Event>>,
) -> Result<()> {
    let database = shared.file.database()?;
    let tx = database.begin_write().map_err(StoreError::engine(WRITE))?;
    let mut dirty = false;
    {
        let mut batch = Batch::open(&tx)?;
        for item in work {
            match item {
                Work::Txn(txn, slot) => {
                    let answer = batch.txn(txn, revision, events)?;
                    if let Some(Pending::Txn(_, result)) = pending.get_mut(slot) {
                        *result = answer;
                    }
                }
                Work::Compact(upto, _) => dirty |= batch.forget(upto, u64::MAX, usize::MAX)?,
                Work::Tick => {
                    batch.expire(revision, events)?;
                    let horizon = now_ms().saturating_sub(duration_ms(history));
                    dirty |= batch.forget(u64::MAX, horizon, CLEAN)?;
                }
            }
        }
        dirty |= !events.is_empty();
        if dirty {
            batch.meta.insert(REVISION, *revision).map_err(StoreError::engine(WRITE))?;
        }
    }
    if dirty {
        tx.commit().map_err(StoreError::engine("commit"))?;
    } else {
        // Nothing changed: no fsync for failed comparisons and idle ticks.
        tx.abort().map_err(StoreError::engine(WRITE))?;
    }
    Ok(())
}

/// A command, with the place of its answer.
enum Work {
    Txn(Txn, usize),
    Compact(Revision, usize),
    Tick,
}

/// The open tables of one redb transaction.
struct Batch<'tx> {
    current: Table<'tx, &'static str, Row<'static>>,
    history: Table<'tx, (u64, u32), Change<'static>>,
    expiry: Table<'tx, (u64, &'static str), ()>,
    ttl: Table<'tx, &'static str, u64>,
    meta: Table<'tx, &'static str, u64>,
    now: u64,
}

impl<'tx> Batch<'tx> {
    fn open(tx: &'tx WriteTransaction) -> Result<Self> {
        let fail = || StoreError::engine(WRITE);
        Ok(Self {
            current: tx.open_table(CURRENT).map_err(fail())?,
            history: tx.open_table(HISTORY).map_err(fail())?,
            expiry: tx.open_table(EXPIRY).map_err(fail())?,
            ttl: tx.open_table(TTL).map_err(fail())?,
            meta: tx.open_table(META).map_err(fail())?,
            now: now_ms(),
        })
    }

    /// The outer error is the engine's and fails the whole group; the inner one is the transaction's own.
    fn txn(
        &mut self,
        txn: Txn,
        revision: &mut Revision,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<Result<TxnResponse>> {
        let mut seen = HashSet::new();
        if let Some(twice) = txn.ops.iter().map(Op::key).find(|key| !seen.insert(*key)) {
            return Ok(Err(StoreError::DuplicateKey(twice.to_owned())));
        }
        let mut holds = true;
        for compare in &txn.compares {
            let row = self.current.get(compare.key.as_str()).map_err(StoreError::engine(WRITE))?;
            holds &= row.map_or(0, |row| row.value().1) == compare.mod_revision;
        }
        if !holds {
            let mut current = Vec::with_capacity(txn.compares.len());
            for compare in &txn.compares {
                let row = self.current.get(compare.key.as_str()).map_err(StoreError::engine(WRITE))?;
                current.push(row.map(|row| key_value(&compare.key, row.value())));
            }
            return Ok(Ok(TxnResponse { succeeded: false, revision: *revision, current }));
        }
        let next = *revision + 1;
        let mut place = 0;
        for op in &txn.ops {
            if self.apply(op, next, place, events)? {
                place += 1;
            }
        }
        if place > 0 {
            *revision = next;
        }
        Ok(Ok(TxnResponse { succeeded: true, revision: *revision, current: Vec::new() }))
    }

    /// Applies one change at `revision`; false if there was nothing to change.
    fn apply(
        &mut self,
        op: &Op,
        revision: Revision,
        place: u32,
        events: &mut Vec<Arc<Event>>,
    ) -> Result<bool> {
        let fail = || StoreError::engine(WRITE);
        let key = op.key();
        let old = match op {
            Op::Put { value, .. } => {
                let (create, version) = match self.current.get(key).map_err(fail())? {
                    Some(row) => (row.value().0, row.value().2 + 1),
                    None => (revision, 1),
                };
                let row: Row<'_> = (create, revision, version, value);
                let old = self.current.insert(key, row).map_err(fail())?;
                let prev = old.as_ref().map(|row| row.value());
                let change: Change<'_> = (self.now, false, key, row, prev);
                self.history.insert((revision, place), change).map_err(fail())?;
                events.push(Arc::new(event(change)));
                prev.is_some()
            }
            Op::Delete { .. } => {
                let Some(old) = self.current.remove(key).map_err(fail())? else { return Ok(false) };
                let prev = old.value();
                let change: Change<'_> = (self.now, true, key, (prev.0, revision, 0, &[]), Some(prev));
                self.history.insert((revision, place), change).map_err(fail())?;
                events.push(Arc::new(event(change)));
                true
            }
        };
        if old {
            let due = self.ttl.remove(key).map_err(fail())?.map(|due| due.value());
            if let Some(due) = due {
                self.expiry.remove((due, key)).map_err(fail())?;
            }
        }
        if let Op::Put { ttl: Some(ttl), .. } = op {
            let due = self.now.saturating_add(duration_ms(*ttl));
            self.ttl.insert(key, due).map_err(fail())?;
            self.expiry.insert((due, key), ()).map_err(fail())?;
        }
        Ok(true)
    }

    fn expire(&mut self, revision: &mut Revision, events: &mut Vec<Arc<Event>>) -> Result<()> {
        let mut due = Vec::new();
        let rows = self.expiry.range(..(self.now, "")).map_err(StoreError::engine(WRITE))?;
        for row in rows.take(CLEAN) {
            let (key, ()) =
                row.map(|(k, v)| (k.value().1.to_owned(), v.value())).map_err(StoreError::engine(WRITE))?;
            due.push(key);
        }
        for key in due {
            // One revision a key: clients rely on an object's resourceVersion being its own.
            if self.apply(&Op::Delete { key }, *revision + 1, 0, events)? {
                *revision += 1;
            }
        }
        Ok(())
    }

    /// Removes whole revisions of history: up to `upto`, older than `horizon` (ms), at most about `most` rows.
    fn forget(&mut self, upto: Revision, horizon: u64, most: usize) -> Result<bool> {
        let mut last = None;
        for (seen, row) in self.history.iter().map_err(StoreError::engine(WRITE))?.enumerate() {
            let (key, change) = row.map_err(StoreError::engine(WRITE))?;
            let revision = key.value().0;
            if revision > upto || change.value().0 >= horizon || (seen >= most && last != Some(revision)) {
                break;
            }
            last = Some(revision);
        }
        let Some(last) = last else { return Ok(false) };
        self.history.retain_in(..=(last, u32::MAX), |_, _| false).map_err(StoreError::engine(WRITE))?;
        self.meta.insert(COMPACTED, last).map_err(StoreError::engine(WRITE))?;
        Ok(true)
    }
}

fn now_ms() -> u64 {
    duration_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn duration_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
