//! A store whose filesystem is full: reads go on, writes are refused, nothing acknowledged is lost, and all is well once
//! there is room again. Each test has a small tmpfs in a mount namespace of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use keelson_store::{
    EmbeddedStore, KeyRange, Op, Options, RangeRequest, Store as _, StoreError, Txn, WatchRequest,
};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs a test with a folder on a filesystem of that many MiB. Threads that it starts are in the same mount namespace.
fn on_small_disk<F: Future<Output = ()>>(mebibytes: u32, test: impl FnOnce(PathBuf) -> F) {
    let dir = tempfile::tempdir().unwrap();
    // SAFETY: this thread's own view of mounts and working folder; descriptors stay as they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("this test needs root");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let size = std::ffi::CString::new(format!("size={mebibytes}m")).unwrap();
    mount("small", dir.path(), "tmpfs", MountFlags::empty(), Some(size.as_c_str())).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(dir.path().to_owned()));
    drop(runtime);
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}

/// Takes all the room but that many bytes.
fn fill(dir: &Path, leave: u64) {
    let stat = rustix::fs::statvfs(dir).unwrap();
    let mut ballast = std::fs::File::options().create(true).append(true).open(dir.join("ballast")).unwrap();
    let mut left = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
    let block = vec![1; 1 << 16];
    while left > 0 {
        let part = left.min(block.len() as u64);
        match ballast.write(&block[..usize::try_from(part).unwrap()]) {
            Ok(written) => left -= written as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn make_room(dir: &Path) {
    std::fs::remove_file(dir.join("ballast")).unwrap();
}

fn put(number: u32) -> Txn {
    let value = vec![b'x'; 2000];
    let op = Op::Put { key: format!("/k/{number:06}"), value: value.into(), ttl: None };
    Txn { compares: vec![], ops: vec![op] }
}

async fn keys(store: &EmbeddedStore) -> Vec<String> {
    let request = RangeRequest { range: KeyRange::prefix("/k/"), limit: 0, revision: None };
    store.range(request).await.unwrap().kvs.into_iter().map(|kv| kv.key).collect()
}

#[test]
fn new_values_are_refused_in_time() {
    on_small_disk(48, |dir| async move {
        let path = dir.join("store.redb");
        let store = EmbeddedStore::open(Options::new(&path)).await.unwrap();
        let request = WatchRequest { range: KeyRange::prefix("/k/"), start_revision: None, progress: false };
        let mut watch = store.watch(request).await.unwrap();
        for number in 0..50 {
            store.txn(put(number)).await.unwrap();
        }
        let before = store.current_revision().await.unwrap();
        fill(&dir, 8 << 20);
        let error = store.txn(put(50)).await.unwrap_err();
        assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
        assert!(error.to_string().starts_with("no space left on the filesystem of the store: "), "{error}");
        // What makes room is allowed for some time more.
        let delete = Txn { compares: vec![], ops: vec![Op::Delete { key: "/k/000000".into() }] };
        assert_eq!(store.txn(delete).await.unwrap().revision, before + 1);
        fill(&dir, 0);
        // Ticks too must not write now.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let delete = Txn { compares: vec![], ops: vec![Op::Delete { key: "/k/000001".into() }] };
        for txn in [put(51), delete] {
            let error = store.txn(txn).await.unwrap_err();
            assert!(matches!(error, StoreError::NoSpace { free: 0, .. }), "{error}");
        }
        assert!(matches!(store.compact(before).await, Err(StoreError::NoSpace { .. })));
        assert_eq!(keys(&store).await.len(), 49);
        assert_eq!(store.get("/k/000007", None).await.unwrap().unwrap().value.len(), 2000);
        assert_eq!(store.current_revision().await.unwrap(), before + 1);
        make_room(&dir);
        assert_eq!(store.txn(put(60)).await.unwrap().revision, before + 2);
        for expected in 2..=before + 2 {
            let batch = watch.next().await.unwrap().unwrap();
            assert_eq!(batch.revision, expected, "watches go on without a gap");
        }
        // A full disk is no reason not to start.
        fill(&dir, 0);
        drop((store, watch));
        let again = reopen(&path, 16 << 20).await;
        assert_eq!(keys(&again).await.len(), 50);
        assert_eq!(again.current_revision().await.unwrap(), before + 2);
    });
}

/// The writer of a store that was just dropped may still hold the file for a moment.
async fn reopen(path: &Path, reserve: u64) -> EmbeddedStore {
    for _ in 0..200 {
        match EmbeddedStore::open(Options { reserve, ..Options::new(path) }).await {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("the store does not open");
}

/// Somebody else may fill the disk between looking and writing: then it is the engine that finds it full.
#[test]
fn the_engine_survives_a_full_disk() {
    on_small_disk(24, |dir| async move {
        let path = dir.join("store.redb");
        let store = reopen(&path, 0).await;
        let request = WatchRequest { range: KeyRange::prefix("/k/"), start_revision: None, progress: false };
        let mut watch = store.watch(request).await.unwrap();
        let (mut acknowledged, mut failed) = (Vec::new(), 0);
        for round in 0..5 {
            for number in 0..20 {
                acknowledged.push(store.txn(put(round * 1000 + number)).await.map(|r| r.revision).unwrap());
            }
            fill(&dir, 64 << 10);
            let mut refused = 0;
            for number in 20..120 {
                match store.txn(put(round * 1000 + number)).await {
                    Ok(response) => acknowledged.push(response.revision),
                    Err(error) => {
                        assert!(matches!(error, StoreError::Engine { .. }), "{error}");
                        refused += 1;
                    }
                }
                // Reads are answered whatever became of the write.
                assert!(keys(&store).await.len() >= acknowledged.len());
            }
            assert!(refused > 0, "the disk was full");
            failed += refused;
            make_room(&dir);
        }
        let last = store.txn(put(999_999)).await.unwrap().revision;
        assert!(acknowledged.is_sorted(), "{acknowledged:?}");
        let found = keys(&store).await.len();
        assert!(found > acknowledged.len() && found <= acknowledged.len() + failed + 1, "{found}");
        // Watchers see each change once, those included that were reported as failed and are there all the same.
        let (mut seen, mut revision) = (0, 0);
        while revision < last {
            let batch = watch.next().await.unwrap().unwrap();
            assert!(batch.revision > revision);
            revision = batch.revision;
            seen += batch.events.len();
        }
        assert_eq!(seen, found);
        drop((store, watch));
        let again = reopen(&path, 0).await;
        assert_eq!(keys(&again).await.len(), found);
        assert_eq!(again.current_revision().await.unwrap(), last);
    });
}
