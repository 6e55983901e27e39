//! The suite that every backend passes: the same checks for the embedded engine and for etcd.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;

use crate::{
    Compare, EventKind, KeyRange, Op, RangeRequest, Revision, Store, StoreError, Txn, WatchRequest,
    WatchStream,
};

/// Runs all checks on an empty store. Panics where the store breaks the contract.
pub async fn check_store<S: Store>(store: &S) {
    txn_compares(store).await;
    ranges_read_one_revision(store).await;
    watches_replay_and_follow(store).await;
    ttl_deletes(store).await;
    compaction(store).await;
}

async fn put<S: Store>(store: &S, key: &str, value: &str) -> Revision {
    let op = Op::Put { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), ttl: None };
    store.txn(Txn { compares: vec![], ops: vec![op] }).await.expect("put").revision
}

async fn delete<S: Store>(store: &S, key: &str) -> Revision {
    let op = Op::Delete { key: key.into() };
    store.txn(Txn { compares: vec![], ops: vec![op] }).await.expect("delete").revision
}

async fn next(stream: &mut WatchStream) -> Vec<(EventKind, String, Revision, Option<String>)> {
    let batch = tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .expect("an event in time")
        .expect("a live stream")
        .expect("no error");
    let text = |b: &Bytes| String::from_utf8_lossy(b).into_owned();
    batch
        .events
        .iter()
        .map(|e| (e.kind, e.kv.key.clone(), e.kv.mod_revision, e.prev.as_ref().map(|p| text(&p.value))))
        .collect()
}

async fn txn_compares<S: Store>(store: &S) {
    let made = store.txn(Txn::put_if("/t/a", 0, "1".into(), None)).await.expect("txn");
    assert!(made.succeeded);
    let again = store.txn(Txn::put_if("/t/a", 0, "2".into(), None)).await.expect("txn");
    assert!(!again.succeeded);
    let current = again.current[0].as_ref().expect("the key is there");
    assert_eq!((current.mod_revision, &current.value[..]), (made.revision, &b"1"[..]));
    assert_eq!(again.revision, made.revision, "a failed txn takes no revision");

    let two = Txn {
        compares: vec![Compare { key: "/t/a".into(), mod_revision: made.revision }],
        ops: vec![
            Op::Put { key: "/t/a".into(), value: "3".into(), ttl: None },
            Op::Put { key: "/t/b".into(), value: "4".into(), ttl: None },
        ],
    };
    let both = store.txn(two).await.expect("txn");
    assert_eq!(both.revision, made.revision + 1, "one revision for a whole txn");
    let a = store.get("/t/a", None).await.expect("get").expect("there");
    assert_eq!((a.create_revision, a.mod_revision, a.version), (made.revision, both.revision, 2));
    assert_eq!(store.get("/t/a", Some(made.revision)).await.expect("get").expect("there").value, "1");

    let twice = Txn {
        compares: vec![],
        ops: vec![Op::Delete { key: "/t/a".into() }, Op::Delete { key: "/t/a".into() }],
    };
    assert!(matches!(store.txn(twice).await, Err(StoreError::DuplicateKey(_))));
    let absent = delete(store, "/t/none").await;
    assert_eq!(absent, both.revision, "deleting nothing takes no revision");
    assert_eq!(store.count(KeyRange::prefix("/t/")).await.expect("count"), 2);
    assert!(store.current_revision().await.expect("revision") >= both.revision);
}

async fn ranges_read_one_revision<S: Store>(store: &S) {
    for i in 0..5 {
        put(store, &format!("/r/{i}"), "old").await;
    }
    let page = |start: &str, revision| RangeRequest {
        range: KeyRange::prefix_from("/r/", start.to_owned()),
        limit: 2,
        revision,
    };
    let first = store.range(page("/r/", None)).await.expect("range");
    assert_eq!((first.kvs.len(), first.count), (2, 5));
    put(store, "/r/3", "new").await;
    delete(store, "/r/4").await;
    put(store, "/r/25", "new").await;
    let rest = store.range(page("/r/1\0", Some(first.revision))).await.expect("range");
    let keys: Vec<_> = rest.kvs.iter().map(|kv| (kv.key.as_str(), &kv.value[..])).collect();
    assert_eq!(keys, [("/r/2", &b"old"[..]), ("/r/3", &b"old"[..])]);
    assert_eq!(rest.count, 3);
    let now = store.range(page("/r/2", None)).await.expect("range");
    let keys: Vec<_> = now.kvs.iter().map(|kv| kv.key.as_str()).collect();
    assert_eq!(keys, ["/r/2", "/r/25"]);
    let future = page("/r/", Some(now.revision + 1000));
    assert!(matches!(store.range(future).await, Err(StoreError::FutureRevision { .. })));
}

async fn watches_replay_and_follow<S: Store>(store: &S) {
    let first = put(store, "/w/a", "1").await;
    put(store, "/other", "x").await;
    let second = put(store, "/w/a", "2").await;
    let request =
        WatchRequest { range: KeyRange::prefix("/w/"), start_revision: Some(first), progress: false };
    let mut stream = store.watch(request).await.expect("watch");
    let mut seen = next(&mut stream).await;
    while seen.len() < 2 {
        seen.extend(next(&mut stream).await);
    }
    assert_eq!(
        seen,
        [
            (EventKind::Put, "/w/a".into(), first, None),
            (EventKind::Put, "/w/a".into(), second, Some("1".into())),
        ]
    );
    let gone = delete(store, "/w/a").await;
    assert_eq!(next(&mut stream).await, [(EventKind::Delete, "/w/a".to_owned(), gone, Some("2".to_owned()))]);

    let mut progress = store
        .watch(WatchRequest { range: KeyRange::prefix("/none/"), start_revision: None, progress: true })
        .await
        .expect("watch");
    let other = put(store, "/other", "y").await;
    let batch = tokio::time::timeout(Duration::from_secs(10), progress.next())
        .await
        .expect("progress in time")
        .expect("a live stream")
        .expect("no error");
    assert!(batch.events.is_empty() && batch.revision >= other);
}

async fn ttl_deletes<S: Store>(store: &S) {
    let ttl = Some(Duration::from_secs(1));
    let kept = Op::Put { key: "/l/kept".into(), value: "1".into(), ttl };
    let lost = Op::Put { key: "/l/lost".into(), value: "1".into(), ttl };
    let made = store.txn(Txn { compares: vec![], ops: vec![kept, lost] }).await.expect("txn");
    put(store, "/l/kept", "a put without a time to live ends the old one").await;
    let request = WatchRequest {
        range: KeyRange::prefix("/l/lost"),
        start_revision: Some(made.revision + 1),
        progress: false,
    };
    let mut stream = store.watch(request).await.expect("watch");
    let mut events = next(&mut stream).await;
    while events.is_empty() {
        events = next(&mut stream).await;
    }
    assert_eq!((events[0].0, events[0].3.as_deref()), (EventKind::Delete, Some("1")));
    assert!(store.get("/l/kept", None).await.expect("get").is_some());
}

async fn compaction<S: Store>(store: &S) {
    let old = put(store, "/c/a", "1").await;
    let new = put(store, "/c/a", "2").await;
    store.compact(new).await.expect("compact");
    assert!(matches!(store.get("/c/a", Some(old)).await, Err(StoreError::Compacted { .. })));
    assert!(store.get("/c/a", Some(new)).await.expect("get").is_some());
    let watch =
        |start| WatchRequest { range: KeyRange::prefix("/c/"), start_revision: Some(start), progress: false };
    let refused = match store.watch(watch(old)).await {
        Err(StoreError::Compacted { .. }) => true,
        Err(_) => false,
        // etcd reports it on the stream.
        Ok(mut stream) => matches!(stream.next().await, Some(Err(StoreError::Compacted { .. }))),
    };
    assert!(refused, "a watch from compacted history is refused");
    assert!(store.watch(watch(new + 1)).await.is_ok());
}
