//! Watches that begin before what the cache has in memory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{CONFIG_MAPS, Fixture};
use futures::StreamExt as _;
use keelson_store::Store as _;
use serde_json::{Value, json};

const MERGE: &str = "content-type: application/merge-patch+json";

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_no_change() {
    let f = Fixture::new().await;
    let from = revision(&f.config_map("x", json!({"on": "1"})).await);
    let path = format!("{CONFIG_MAPS}/x");
    for patch in [
        json!({"data": {"k": "2"}}),
        json!({"metadata": {"labels": {"on": "0"}}}),
        json!({"metadata": {"labels": {"on": "1"}}}),
    ] {
        f.send("PATCH", &path, MERGE, patch).await;
    }
    f.send("DELETE", &path, "", Value::Null).await;
    let watch = format!("{CONFIG_MAPS}?watch=1&labelSelector=on%3D1&resourceVersion=");
    let before = f.watch(&format!("{watch}{from}"), 4).await;
    let kinds: Vec<&str> = before.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["MODIFIED", "DELETED", "ADDED", "DELETED"]);

    let f = f.restarted().await;
    f.config_map("y", json!({"on": "1"})).await;
    let mut all = f.watch(&format!("{watch}{from}"), 5).await;
    let (kind, last) = all.pop().unwrap();
    assert_eq!((kind.as_str(), &last["metadata"]["name"]), ("ADDED", &json!("y")));
    assert_eq!(all, before);
    // Once read, it is in memory, also for who comes from further on.
    let some = f.watch(&format!("{watch}{}", revision(&before[1].1)), 3).await;
    assert_eq!(some[..2], before[2..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_changes_than_are_in_memory() {
    const CHANGES: usize = 1500;
    let f = Fixture::new().await;
    let from = revision(&f.config_map("first", json!({})).await);
    futures::stream::iter(0..CHANGES)
        .for_each_concurrent(64, |n| {
            let f = &f;
            async move {
                f.config_map(&format!("c{n}"), json!({})).await;
            }
        })
        .await;
    let watch = format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}");
    let check = |events: Vec<(String, Value)>| {
        let revisions: Vec<u64> = events.iter().map(|(_, object)| revision(object)).collect();
        assert!(revisions.is_sorted_by(|a, b| a < b), "in order, none twice");
        let mut names: Vec<_> =
            events.iter().map(|(_, object)| object["metadata"]["name"].to_string()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHANGES);
        assert!(events.iter().all(|(kind, _)| kind == "ADDED"));
    };
    check(f.watch(&watch, CHANGES).await);
    check(f.restarted().await.watch(&watch, CHANGES).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forgotten_is_said_to_be() {
    let f = Fixture::new().await;
    let from = revision(&f.config_map("x", json!({})).await);
    let to = revision(&f.config_map("y", json!({})).await);
    f.store.compact(to).await.unwrap();
    let f = f.restarted().await;
    let events = f.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={from}"), 1).await;
    assert_eq!((events[0].0.as_str(), &events[0].1["code"]), ("ERROR", &json!(410)));
    f.config_map("z", json!({})).await;
    let events = f.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={to}"), 1).await;
    assert_eq!((events[0].0.as_str(), &events[0].1["metadata"]["name"]), ("ADDED", &json!("z")));
}
