//! The embedded engine: the common suite, recovery, and random histories against a model.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use keelson_store::{
    Compare, EmbeddedStore, KeyRange, Op, Options, RangeRequest, Store as _, StoreError, Txn, WatchRequest,
};
use proptest::prelude::*;

async fn open(dir: &tempfile::TempDir) -> EmbeddedStore {
    // The writer of a store that was just dropped may still hold the file for a moment.
    for _ in 0..200 {
        match EmbeddedStore::open(Options::new(dir.path().join("store.redb"))).await {
            Ok(store) => return store,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("the store does not open");
}

#[tokio::test(flavor = "multi_thread")]
async fn common_suite() {
    let dir = tempfile::tempdir().unwrap();
    keelson_store::testing::check_store(&open(&dir).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reopening_keeps_state_revision_and_history() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let first = store.txn(Txn::put_if("/a", 0, "1".into(), None)).await.unwrap().revision;
    let last = store.txn(Txn::delete_if("/a", first)).await.unwrap().revision;
    drop(store);
    let store = open(&dir).await;
    assert_eq!(store.current_revision().await.unwrap(), last);
    let request = WatchRequest { range: KeyRange::prefix("/"), start_revision: Some(first), progress: false };
    let batch = store.watch(request).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(batch.events.len(), 2);
    assert_eq!(batch.events[1].prev.as_ref().unwrap().value, "1");
    let copy = dir.path().join("copy.redb");
    assert_eq!(store.snapshot(&copy).await.unwrap(), last);
    let copied = EmbeddedStore::open(Options::new(copy)).await.unwrap();
    assert_eq!(copied.current_revision().await.unwrap(), last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_dropped_and_can_resume() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let request = WatchRequest { range: KeyRange::prefix("/"), start_revision: None, progress: false };
    let mut slow = store.watch(request.clone()).await.unwrap();
    for i in 0..1200 {
        let op = Op::Put { key: "/k".into(), value: format!("{i}").into(), ttl: None };
        store.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
    }
    let mut last = 0;
    loop {
        match slow.next().await {
            Some(Ok(batch)) => last = batch.revision,
            Some(Err(StoreError::WatchLagged)) => break,
            other => panic!("{other:?}"),
        }
    }
    let mut again = store.watch(WatchRequest { start_revision: Some(last + 1), ..request }).await.unwrap();
    let rest = again.next().await.unwrap().unwrap();
    assert_eq!(rest.events.first().unwrap().kv.mod_revision, last + 1);
    assert_eq!(rest.revision, store.current_revision().await.unwrap());
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    PutIfAbsent(u8, u8),
    Delete(u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..6_u8, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        2 => (0..6_u8, any::<u8>()).prop_map(|(k, v)| Step::PutIfAbsent(k, v)),
        3 => (0..6_u8).prop_map(Step::Delete),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every state that ever was can be read back at its revision.
    #[test]
    fn states_match_a_model(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = open(&dir).await;
            let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut states = vec![(1, model.clone())];
            for step in steps {
                let txn = match step {
                    Step::Put(k, v) => {
                        model.insert(format!("/{k}"), vec![v]);
                        Txn { compares: vec![], ops: vec![Op::Put { key: format!("/{k}"), value: vec![v].into(), ttl: None }] }
                    }
                    Step::PutIfAbsent(k, v) => {
                        model.entry(format!("/{k}")).or_insert(vec![v]);
                        Txn::put_if(&format!("/{k}"), 0, vec![v].into(), None)
                    }
                    Step::Delete(k) => {
                        model.remove(&format!("/{k}"));
                        Txn { compares: vec![], ops: vec![Op::Delete { key: format!("/{k}") }] }
                    }
                    Step::Reopen => {
                        drop(store);
                        store = open(&dir).await;
                        Txn { compares: vec![Compare { key: "/none".into(), mod_revision: 0 }], ops: vec![] }
                    }
                };
                let revision = store.txn(txn).await.unwrap().revision;
                assert!(revision >= states.last().unwrap().0, "revisions never go back");
                if revision == states.last().unwrap().0 { states.pop(); }
                states.push((revision, model.clone()));
            }
            for (revision, state) in states {
                let request = RangeRequest { range: KeyRange::prefix("/"), limit: 0, revision: Some(revision) };
                let found = store.range(request).await.unwrap();
                let found: BTreeMap<_, _> = found.kvs.into_iter().map(|kv| (kv.key, kv.value.to_vec())).collect();
                assert_eq!(found, state, "at {revision}");
            }
        });
    }
}
