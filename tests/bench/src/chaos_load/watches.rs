//! Watches that go on where they stopped, whatever happens to the server.

use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt;
use keelson_tests::chaos::journal::{Line, Pod, Seen, now};
use kube::api::{DynamicObject, WatchEvent, WatchParams};
use serde_json::Value;

use super::client::{Journal, Kind, number, revision};

/// Writes down all changes of a kind after a resourceVersion, for ever.
pub async fn follow(kubeconfig: PathBuf, kind: Kind, mut revision: String, journal: Journal) {
    loop {
        // Broken off, or not up yet: both pass.
        if let Err(error) = watch(&kubeconfig, kind, &mut revision, &journal).await
            && let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>()
            && status.code == 410
        {
            let why = format!("resuming at {revision}: {}", status.message);
            return journal.add(&Line::Gap { kind: format!("{kind:?}"), why });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One watch with a connection of its own, until it breaks off.
async fn watch(
    kubeconfig: &std::path::Path,
    kind: Kind,
    from: &mut String,
    journal: &Journal,
) -> anyhow::Result<()> {
    let api = kind.api(&crate::client(kubeconfig).await?);
    let mut events = std::pin::pin!(api.watch(&WatchParams::default(), from).await?);
    while let Some(event) = events.try_next().await? {
        let (object, deleted) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        };
        let Some(at) = revision(&object) else { continue };
        *from = at.to_string();
        // Objects that everyone gets, such as kube-root-ca.crt, are not the writers'.
        let n = number(&object);
        if kind == Kind::Pod || n.is_some() {
            let pod = (kind == Kind::Pod).then(|| pod(&object));
            let name = kind.object(object.metadata.name.as_deref().unwrap_or_default());
            journal.add(&Line::Seen(Seen { at: now(), object: name, revision: at, deleted, n, pod }));
        }
    }
    Ok(())
}

fn pod(object: &DynamicObject) -> Pod {
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    let all_terminated = status["containerStatuses"].as_array().is_some_and(|all| {
        !all.is_empty() && all.iter().all(|container| container["state"]["terminated"].is_object())
    });
    Pod {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        node: text(&spec["nodeName"]),
        ip: text(&status["podIP"]).filter(|_| spec["hostNetwork"] != true),
        over: ended || (all_terminated && object.metadata.deletion_timestamp.is_some()),
    }
}
