//! Where pods come from: the watch of pods bound to this node, the runtime's own list at start, runtime events.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use keelson_cri::{ContainerEvent, PodSandboxStatus};
use kube::Api;
use kube::runtime::reflector::{self, store::Writer};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_stream};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::event::Desired;
use super::gc;
use super::podext::PodExt;
use super::table::PodTable;
use super::worker::{self, WorkerHandle};

/// Keeps the store of Services current.
pub async fn follow_services(client: kube::Client, writer: Writer<Service>, shutdown: CancellationToken) {
    let stream = watch_stream(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(reflector::reflector(writer, stream));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = stream.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::warn!(%error, "watch of services failed, trying again"),
                None => return,
            },
        }
    }
}

/// Starts and feeds the workers until `shutdown`.
pub async fn follow_pods(ctx: Arc<Context>, table: Arc<PodTable>, shutdown: CancellationToken) {
    let mut runtime_events = ctx.runtime.events();
    let mut desk = Desk::new(ctx.clone(), table, shutdown.clone()).await;
    let selector = format!("spec.nodeName={}", ctx.config.node_name);
    let config = watcher::Config::default().fields(&selector);
    let stream = watch_stream(Api::<Pod>::all(ctx.client.clone()), config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            event = stream.next() => match event {
                Some(Ok(event)) => desk.take(event),
                Some(Err(error)) => tracing::warn!(%error, "watch of this node's pods failed, trying again"),
                None => break,
            },
            event = runtime_events.recv() => match event {
                Ok(event) => desk.runtime_event(&event),
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "runtime events missed, looking at every pod");
                    desk.workers.values().for_each(|w| w.runtime_changed.notify_one());
                }
                Err(RecvError::Closed) => break,
            },
            Some(ended) = desk.tasks.join_next() => desk.ended(ended).await,
        }
    }
    // Workers end by the same token; what they had going on is cut off, as by a kill.
    while desk.tasks.join_next().await.is_some() {}
}

/// Workers by pod uid, and what is known of pods that have none yet.
struct Desk {
    ctx: Arc<Context>,
    table: Arc<PodTable>,
    shutdown: CancellationToken,
    workers: HashMap<String, WorkerHandle>,
    tasks: JoinSet<String>,
    /// Sandboxes that the runtime had at start and no worker has adopted.
    found: HashMap<String, Vec<PodSandboxStatus>>,
    /// Uids of the list that is being received.
    listed: Option<HashSet<String>>,
    swept: bool,
}

impl Desk {
    async fn new(ctx: Arc<Context>, table: Arc<PodTable>, shutdown: CancellationToken) -> Self {
        let mut found: HashMap<String, Vec<PodSandboxStatus>> = HashMap::new();
        let mut wait = std::time::Duration::from_millis(100);
        loop {
            match ctx.runtime.list_pod_sandboxes().await {
                Ok(list) => {
                    for sandbox in list {
                        found.entry(sandbox.metadata.uid.clone()).or_default().push(sandbox);
                    }
                    break;
                }
                // Without the list a running pod would be started a second time: there is no going on.
                Err(error) => tracing::warn!(%error, "sandboxes not listed, trying again"),
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(std::time::Duration::from_secs(10)),
            }
        }
        let (workers, tasks) = (HashMap::new(), JoinSet::new());
        Self { ctx, table, shutdown, workers, tasks, found, listed: None, swept: false }
    }

    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(pod) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(PodExt::uid(&pod).to_owned());
                }
                self.desire(pod, false);
            }
            Event::InitDone => self.full_list_received(),
            Event::Apply(pod) => self.desire(pod, false),
            Event::Delete(pod) => self.desire(pod, true),
        }
    }

    fn desire(&mut self, pod: Pod, removed: bool) {
        let uid = PodExt::uid(&pod).to_owned();
        if removed {
            self.table.gone(&uid);
        }
        let desired = Desired { pod: Arc::new(held(pod)), removed };
        if let Some(worker) = self.workers.get(&uid) {
            // A worker that has just ended has no use for it.
            let _ = worker.desired.send(desired);
            return;
        }
        if removed && !self.found.contains_key(&uid) {
            return;
        }
        self.start(uid, desired);
    }

    fn start(&mut self, uid: String, first: Desired) {
        let sandboxes = self.found.remove(&uid).unwrap_or_default().into_iter().map(|s| s.id).collect();
        let (ctx, table, shutdown) = (self.ctx.clone(), self.table.clone(), self.shutdown.clone());
        // Known to readers before its worker has looked at it.
        table.set(first.pod.clone(), Arc::default());
        let handle = worker::spawn(ctx, table, first, sandboxes, shutdown, &mut self.tasks);
        self.workers.insert(uid, handle);
    }

    /// What is not in a full list is gone. Only now may what the runtime has without a pod be ended.
    fn full_list_received(&mut self) {
        let listed = self.listed.take().unwrap_or_default();
        for (uid, worker) in &self.workers {
            if !listed.contains(uid) {
                self.table.gone(uid);
                worker.desired.send_modify(|d| d.removed = true);
            }
        }
        for (uid, sandboxes) in std::mem::take(&mut self.found) {
            tracing::info!(uid, "ending a pod that is no longer bound to this node");
            let pod = orphan(&sandboxes);
            self.found.insert(uid.clone(), sandboxes);
            self.start(uid, Desired { pod: Arc::new(pod), removed: true });
        }
        if !std::mem::replace(&mut self.swept, true) {
            let known: HashSet<String> = self.workers.keys().cloned().collect();
            let ctx = self.ctx.clone();
            // A pod that arrives during the sweep is not known to it: the sweep must end first. It is short, and
            // happens once.
            gc::sweep(&ctx.config, &*ctx.mounter, &known);
        }
    }

    fn runtime_event(&self, event: &ContainerEvent) {
        let uid = match event {
            ContainerEvent::Started { pod_uid, .. }
            | ContainerEvent::Exited { pod_uid, .. }
            | ContainerEvent::SandboxDied { pod_uid, .. } => pod_uid,
        };
        if let Some(worker) = self.workers.get(uid) {
            worker.runtime_changed.notify_one();
        }
    }

    async fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        let error = match ended {
            Ok(uid) => {
                self.workers.remove(&uid);
                return;
            }
            Err(error) => error,
        };
        // A bug, but not one that should leave the pod without care: a new worker starts from what the runtime has.
        tracing::error!(%error, "pod worker panicked");
        let uid = self.workers.iter().find(|(_, w)| w.task == error.id()).map(|(uid, _)| uid.clone());
        let Some((uid, worker)) = uid.and_then(|uid| self.workers.remove_entry(&uid)) else { return };
        match self.ctx.runtime.list_pod_sandboxes().await {
            Ok(list) => {
                let own = list.into_iter().filter(|s| s.metadata.uid == uid).collect();
                self.found.insert(uid.clone(), own);
                let desired = worker.desired.borrow().clone();
                self.start(uid, desired);
            }
            Err(error) => {
                tracing::error!(%error, uid, "sandboxes not listed: the pod waits for the agent's restart")
            }
        }
    }
}

/// What is kept of a pod for as long as it runs: all but the record of who wrote which field, which takes more room than
/// the rest and concerns nobody here; and no room to grow, which decoded lists have.
fn held(mut pod: Pod) -> Pod {
    pod.metadata.managed_fields = None;
    pod.clone()
}

/// A pod known by its sandbox only.
fn orphan(sandboxes: &[PodSandboxStatus]) -> Pod {
    let mut pod = Pod::default();
    if let Some(sandbox) = sandboxes.first() {
        pod.metadata.name = Some(sandbox.metadata.name.clone());
        pod.metadata.namespace = Some(sandbox.metadata.namespace.clone());
        pod.metadata.uid = Some(sandbox.metadata.uid.clone());
    }
    pod
}
