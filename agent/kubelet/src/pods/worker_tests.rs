//! Whole lives of pods on a runtime in memory, with tokio's clock paused: an hour of back-off takes no time.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_cri::ContainerState;
use kube::runtime::{reflector, watcher};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::event::Desired;
use super::fake::{FakeApi, FakeImages, FakeRuntime};
use super::manager::{PodManager, PodManagerConfig, PodManagerParts};
use super::pull::Puller;
use super::resize::allocate::Allocations;
use super::table::PodTable;
use super::testing::{cri_container, cri_sandbox, pod_json, t0};
use super::worker;
use crate::clock::{Clock, api_time};
use crate::objects::ObjectCache;
use crate::volumes::mounter::FakeMounter;

/// One node with one pod.
struct Bench {
    runtime: Arc<FakeRuntime>,
    api: Arc<FakeApi>,
    ctx: Arc<Context>,
    table: Arc<PodTable>,
    desired: watch::Sender<Desired>,
    tasks: JoinSet<String>,
    clock: Clock,
    dir: tempfile::TempDir,
    _router: tokio::task::JoinHandle<()>,
}

async fn bench(spec: serde_json::Value) -> Bench {
    bench_with(pod_json(spec), |_| Vec::new()).await
}

async fn bench_with(pod: Pod, prepare: impl FnOnce(&FakeRuntime) -> Vec<String>) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::virtual_from(t0());
    let runtime = FakeRuntime::new(clock);
    let sandboxes = prepare(&runtime);
    let api = FakeApi::new(&pod);
    let client = api.client();
    let mut config = PodManagerConfig::new("n1", vec!["10.89.0.11".parse().unwrap()]);
    config.root_dir = dir.path().join("kubelet");
    config.pod_logs_dir = dir.path().join("pods");
    config.container_logs_dir = dir.path().join("containers");
    config.resolv_conf = dir.path().join("resolv.conf");
    let (services, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    writer.apply_watcher_event(&watcher::Event::InitDone);
    let (events, sink) = crate::events::channel(client.clone(), "n1");
    let shutdown = CancellationToken::new();
    tokio::spawn(sink.run(shutdown.clone()));
    for (name, amount) in [("cpu", "4"), ("memory", "8Gi")] {
        config.allocatable.insert(name.into(), Quantity(amount.into()));
    }
    let ctx = Arc::new(Context {
        objects: ObjectCache::new(client.clone()),
        puller: Puller::new(clock),
        allocations: Allocations::new(config.allocatable.clone(), config.extended_resources.clone()),
        config,
        client,
        runtime: runtime.clone(),
        images: Arc::new(FakeImages),
        events,
        services,
        mounter: Arc::new(FakeMounter::default()),
        reach: crate::probes::Reach::Network,
        clock,
    });
    let mut tasks = JoinSet::new();
    let first = Desired { pod: Arc::new(api.pod()), removed: false };
    let table = Arc::new(PodTable::default());
    table.set(first.pod.clone(), Arc::default());
    let handle = worker::spawn(ctx.clone(), table.clone(), first, sandboxes, shutdown, &mut tasks);
    let mut news = keelson_cri::RuntimeService::events(&*runtime);
    let changed = handle.runtime_changed.clone();
    let router = tokio::spawn(async move {
        while news.recv().await.is_ok() {
            changed.notify_one();
        }
    });
    Bench { runtime, api, ctx, table, desired: handle.desired, tasks, clock, dir, _router: router }
}

impl Bench {
    async fn wait(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn phase(&self) -> String {
        self.api.pod().status.unwrap().phase.unwrap_or_default()
    }

    fn condition(&self, type_: &str) -> String {
        let status = self.api.pod().status.unwrap();
        let found = status.conditions.unwrap().into_iter().find(|c| c.type_ == type_);
        found.map(|c| c.status).unwrap_or_default()
    }

    fn waiting(&self, index: usize) -> (String, String) {
        let status = self.api.pod().status.unwrap().container_statuses.unwrap();
        let waiting = status[index].state.clone().unwrap().waiting.unwrap_or_default();
        (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())
    }

    /// Sends the API's pod to the worker, changed.
    fn update(&self, change: impl FnOnce(&mut Pod)) {
        let mut pod = self.api.pod();
        change(&mut pod);
        self.desired.send(Desired { pod: Arc::new(pod), removed: false }).unwrap();
    }

    fn delete(&self, grace: i64) {
        let now = api_time(self.clock.now());
        self.update(|pod| {
            pod.metadata.deletion_timestamp = Some(now);
            pod.metadata.deletion_grace_period_seconds = Some(grace);
        });
    }

    fn check_log(&self, want: &[&str]) {
        assert_eq!(self.runtime.take_log(), want);
    }
}

fn two() -> serde_json::Value {
    json!({"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "i:1"}]})
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts() {
    let b = bench(two()).await;
    b.wait(1).await;
    b.check_log(&["sandbox 0", "start a-0", "start b-0"]);
    assert_eq!(b.phase(), "Running");
    for condition in ["Ready", "ContainersReady", "Initialized", "PodReadyToStartContainers", "PodScheduled"]
    {
        assert_eq!(b.condition(condition), "True", "{condition}");
    }
    let status = b.api.pod().status.unwrap();
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("10.89.0.11"));
    let events = b.api.events();
    assert!(events.iter().any(|e| e == "Started: Container started"), "{events:?}");
    // What it was on the way is not written, and a pod that does not change is not written again.
    assert_eq!(b.api.writes(), 1);
    b.wait(3600).await;
    assert_eq!(b.api.writes(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_api_does_not_keep_is_not_written_without_end() {
    let b = bench(two()).await;
    b.api.drop_field("qosClass");
    b.wait(3600).await;
    assert_eq!(b.phase(), "Running");
    // Once a minute.
    assert!((55..65).contains(&b.api.writes()), "{}", b.api.writes());
    // Other news don't wait.
    b.runtime.exit("a", 1);
    b.wait(1).await;
    assert_eq!(b.api.pod().status.unwrap().container_statuses.unwrap()[0].restart_count, 1);
}

#[tokio::test(start_paused = true)]
async fn crash_loop() {
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1"}]})).await;
    b.wait(1).await;
    b.runtime.take_log();
    // The first restart is immediate, the next ones wait 10 s, 20 s, 40 s.
    for (attempt, wait) in [(1, 0), (2, 10), (3, 20), (4, 40)] {
        b.runtime.exit("a", 1);
        if wait > 0 {
            b.wait(wait - 1).await;
            assert_eq!(b.waiting(0).0, "CrashLoopBackOff");
            assert!(b.waiting(0).1.starts_with(&format!("back-off {wait}s restarting failed container=a")));
            assert!(!b.runtime.take_log().iter().any(|l| l.starts_with("start")));
        }
        b.wait(2).await;
        assert!(b.runtime.take_log().contains(&format!("start a-{attempt}")), "{attempt}");
    }
    let status = b.api.pod().status.unwrap().container_statuses.unwrap();
    assert_eq!(status[0].restart_count, 4);
    assert_eq!(status[0].last_state.clone().unwrap().terminated.unwrap().exit_code, 1);
    assert_eq!(b.phase(), "Running");
}

#[tokio::test(start_paused = true)]
async fn graceful_deletion() {
    let mut b = bench(two()).await;
    b.runtime.set_stubborn("b", Duration::from_secs(5));
    b.wait(1).await;
    b.runtime.take_log();
    b.delete(30);
    b.wait(1).await;
    assert!(b.api.deletes().is_empty(), "a container still runs");
    b.wait(10).await;
    b.check_log(&["term a-0 30s", "dead a", "term b-0 30s", "dead b", "stop sandbox-0"]);
    let deletes = b.api.deletes();
    assert_eq!(deletes.len(), 1);
    assert_eq!(
        (&deletes[0]["gracePeriodSeconds"], &deletes[0]["preconditions"]["uid"]),
        (&json!(0), &json!("u"))
    );
    let status = b.api.pod().status.unwrap();
    let ended = status.container_statuses.unwrap();
    assert!(ended.iter().all(|c| c.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code == 143));
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    b.desired.send_modify(|d| d.removed = true);
    assert_eq!(b.tasks.join_next().await.unwrap().unwrap(), "u");
    assert!(b.runtime.take_log().contains(&"remove sandbox-0".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_period_wins() {
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1"}]})).await;
    b.runtime.set_stubborn("a", Duration::from_secs(1000));
    b.wait(1).await;
    b.runtime.take_log();
    b.delete(600);
    b.wait(5).await;
    b.delete(3);
    b.wait(5).await;
    b.check_log(&["term a-0 600s", "term a-0 3s", "dead a", "stop sandbox-0"]);
    assert_eq!(b.api.deletes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn force_deletion_writes_nothing() {
    let mut b = bench(two()).await;
    b.wait(1).await;
    let writes = b.api.writes();
    b.desired.send_modify(|d| d.removed = true);
    assert_eq!(b.tasks.join_next().await.unwrap().unwrap(), "u");
    assert_eq!((b.api.writes(), b.api.deletes().len()), (writes, 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_succeeds() {
    let b = bench(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1"}]})).await;
    b.wait(1).await;
    b.runtime.take_log();
    b.runtime.exit("a", 0);
    b.wait(5).await;
    assert_eq!(b.phase(), "Succeeded");
    b.check_log(&["stop sandbox-0"]);
    assert_eq!(b.condition("Ready"), "False");
    assert!(b.api.deletes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn init_containers_then_sidecar_then_main() {
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1"}], "initContainers": [
        {"name": "i", "image": "i:1"}, {"name": "s", "image": "i:1", "restartPolicy": "Always"}]}))
    .await;
    b.wait(1).await;
    b.check_log(&["sandbox 0", "start i-0"]);
    assert_eq!((b.phase().as_str(), b.waiting(0).0.as_str()), ("Pending", "PodInitializing"));
    b.runtime.exit("i", 0);
    b.wait(1).await;
    b.check_log(&["start s-0", "start a-0"]);
    assert_eq!(b.phase(), "Running");
    assert_eq!(b.condition("Initialized"), "True");
    // The sidecar goes last.
    b.runtime.set_stubborn("a", Duration::from_secs(4));
    b.delete(30);
    b.wait(10).await;
    b.check_log(&["term a-0 30s", "dead a", "term s-0 26s", "dead s", "stop sandbox-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_init_container_fails_a_never_pod() {
    let b = bench(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i:1"}],
        "initContainers": [{"name": "i", "image": "i:1"}]}))
    .await;
    b.wait(1).await;
    b.runtime.exit("i", 3);
    b.wait(2).await;
    assert_eq!(b.phase(), "Failed");
}

#[tokio::test(start_paused = true)]
async fn a_running_pod_is_adopted_untouched() {
    let mut pod = pod_json(json!({"containers": [{"name": "a", "image": "i:1",
        "readinessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 3600}}]}));
    let id = "keelson://a-0";
    pod.status = Some(
        serde_json::from_value(json!({"phase": "Running", "containerStatuses": [{"name": "a", "image": "i",
            "imageID": "", "containerID": id, "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {}}}]}))
        .unwrap(),
    );
    let b = bench_with(pod, |runtime| {
        let mut c = cri_container("a", 0, ContainerState::Running, None);
        c.started_at = Some(t0());
        runtime.preload(cri_sandbox(0, true), vec![c]);
        vec!["sandbox-0".into()]
    })
    .await;
    b.wait(60).await;
    b.check_log(&[]);
    // Its readiness is kept until the first result of the probe.
    assert_eq!(b.condition("Ready"), "True");
}

#[tokio::test(start_paused = true)]
async fn a_dead_sandbox_is_made_anew() {
    let b = bench(two()).await;
    b.wait(1).await;
    b.runtime.take_log();
    b.runtime.kill_sandbox();
    b.wait(2).await;
    let log = b.runtime.take_log();
    assert!(log.contains(&"sandbox 1".to_owned()), "{log:?}");
    b.wait(30).await;
    assert_eq!(b.api.pod().status.unwrap().pod_ip.as_deref(), Some("10.244.0.6"));
    assert_eq!(b.phase(), "Running");
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_named() {
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1",
        "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}]}))
    .await;
    b.wait(2).await;
    assert_eq!(b.waiting(0), ("CreateContainerConfigError".into(), "configmap \"cm\" not found".into()));
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1"}],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}]}))
    .await;
    b.wait(2).await;
    assert_eq!(b.waiting(0).0, "ContainerCreating");
    let text = "FailedMount: MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found";
    assert!(b.api.events().iter().any(|e| e == text), "{:?}", b.api.events());
}

#[tokio::test(start_paused = true)]
async fn image_pull_back_off() {
    let b = bench(json!({"containers": [{"name": "a", "image": "missing:1"}]})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(b.waiting(0), ("ErrImagePull".into(), "missing:1: no such image".into()));
    b.wait(3).await;
    let text = "Back-off pulling image \"missing:1\": ErrImagePull: missing:1: no such image";
    assert_eq!(b.waiting(0), ("ImagePullBackOff".into(), text.into()));
    assert_eq!(b.phase(), "Pending");
    // Deletion does not wait for the pull.
    b.delete(30);
    b.wait(1).await;
    assert_eq!(b.api.deletes().len(), 1);
}

/// The one container of the pod, and one to look at it.
fn targeting(image: &str, share: bool) -> serde_json::Value {
    json!({
        "shareProcessNamespace": share,
        "containers": [{"name": "a", "image": image}],
        "ephemeralContainers": [{"name": "looker", "image": "i:1", "targetContainerName": "a"}],
    })
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_container_has_a_target() {
    for (share, want) in [(false, Some("a-0")), (true, None)] {
        let b = bench(targeting("i:1", share)).await;
        // Ephemeral containers come first, so that at the first attempt there is nothing to look at yet.
        b.wait(20).await;
        assert_eq!(b.runtime.config("looker-0").security.target_id.as_deref(), want);
        let events = b.api.events();
        assert!(events.iter().any(|e| e == "Failed: Error: unable to find target container a"), "{events:?}");
    }
    let b = bench(targeting("missing:1", false)).await;
    b.wait(1).await;
    let status = b.api.pod().status.unwrap().ephemeral_container_statuses.unwrap();
    let waiting = status[0].state.clone().unwrap().waiting.unwrap();
    let text = "unable to find target container a";
    assert_eq!(waiting.reason.as_deref(), Some("CreateContainerConfigError"));
    assert_eq!(waiting.message.as_deref(), Some(text));
}

#[tokio::test(start_paused = true)]
async fn image_volumes() {
    let b = bench(json!({
        "containers": [{"name": "a", "image": "i:1",
            "env": [{"name": "PART", "value": "etc"}],
            "volumeMounts": [{"name": "v", "mountPath": "/all"},
                {"name": "v", "mountPath": "part", "subPathExpr": "$(PART)/x"}]}],
        "volumes": [{"name": "v", "image": {"reference": "content:1"}},
            {"name": "unused", "image": {"reference": "missing:1"}}]}))
    .await;
    b.wait(2).await;
    assert_eq!(b.phase(), "Running");
    let mounts = b.runtime.config("a-0").mounts;
    let of_images: Vec<_> = mounts.iter().filter(|m| m.image.is_some()).collect();
    let seen = of_images.iter().map(|m| {
        let image = m.image.clone().unwrap();
        assert!(m.readonly && m.host_path.as_os_str().is_empty());
        (m.container_path.display().to_string(), image.image, image.sub_path)
    });
    let id = "sha256:1".to_owned();
    let wanted =
        [("/all".to_owned(), id.clone(), String::new()), ("/part".to_owned(), id, "etc/x".to_owned())];
    assert_eq!(seen.collect::<Vec<_>>(), wanted);
    let pulled =
        "Pulled: Container image \"content:1\" already present on machine and can be accessed by the pod";
    assert!(b.api.events().iter().any(|e| e == pulled), "{:?}", b.api.events());
}

#[tokio::test(start_paused = true)]
async fn an_image_volume_that_cannot_be_had() {
    let pod = |policy: &str, sub_path: &str| {
        json!({"containers": [{"name": "a", "image": "i:1",
                "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": sub_path}]}],
            "volumes": [{"name": "v", "image": {"reference": "missing:1", "pullPolicy": policy}}]})
    };
    let b = bench(pod("IfNotPresent", "")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(b.waiting(0), ("ErrImagePull".into(), "missing:1: no such image".into()));
    b.wait(3).await;
    assert_eq!(b.waiting(0).0, "ImagePullBackOff");
    let events = b.api.events();
    for wanted in [
        "Pulling: Pulling image \"missing:1\"",
        "Failed: Failed to pull image \"missing:1\": missing:1: no such image",
        "Failed: Error: ErrImagePull",
        "BackOff: Back-off pulling image \"missing:1\"",
    ] {
        assert!(events.iter().any(|e| e == wanted), "{wanted}: {events:?}");
    }
    let b = bench(pod("Never", "")).await;
    b.wait(2).await;
    assert_eq!(b.waiting(0).0, "ErrImageNeverPull");
    let mut present = pod("IfNotPresent", "../etc");
    present["volumes"][0]["image"]["reference"] = "content:1".into();
    let b = bench(present).await;
    b.wait(2).await;
    assert_eq!(b.waiting(0).0, "CreateContainerConfigError");
}

/// As after a reboot that left nothing: however long the sandbox takes, the restart is counted once.
#[tokio::test(start_paused = true)]
async fn a_lost_container_is_one_restart() {
    let mut pod = pod_json(json!({"containers": [{"name": "a", "image": "i:1"}]}));
    pod.status = serde_json::from_value(json!({
        "phase": "Running",
        "containerStatuses": [{
            "name": "a", "image": "i:1", "imageID": "", "ready": true, "restartCount": 2,
            "containerID": "keelson://a-2", "state": {"running": {"startedAt": "2023-11-14T22:13:20Z"}},
        }],
    }))
    .unwrap();
    let b = bench_with(pod, |runtime| {
        runtime.refuse_sandboxes(true);
        Vec::new()
    })
    .await;
    b.wait(30).await;
    b.runtime.refuse_sandboxes(false);
    b.wait(300).await;
    b.check_log(&["sandbox 0", "start a-3"]);
    assert_eq!(b.api.pod().status.unwrap().container_statuses.unwrap()[0].restart_count, 3);
}

#[tokio::test(start_paused = true)]
async fn sandbox_failures_are_retried() {
    let b = bench(two()).await;
    b.runtime.refuse_sandboxes(true);
    b.wait(3).await;
    let events = b.api.events();
    assert!(
        events.iter().any(|e| e == "FailedCreatePodSandBox: Failed to create pod sandbox: no network"),
        "{events:?}"
    );
    b.runtime.refuse_sandboxes(false);
    b.wait(10).await;
    assert_eq!(b.phase(), "Running");
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_sandbox_left_is_stopped_before_the_next() {
    let b = bench_with(pod_json(two()), |runtime| {
        runtime.break_network(true);
        Vec::new()
    })
    .await;
    b.wait(60).await;
    let events = b.api.events();
    for wanted in ["network broken", "network still broken"] {
        let wanted = format!("FailedCreatePodSandBox: Failed to create pod sandbox: {wanted}");
        assert!(events.contains(&wanted), "{events:?}");
    }
    let sandboxes = keelson_cri::RuntimeService::list_pod_sandboxes(&*b.runtime).await.unwrap();
    assert_eq!(sandboxes.len(), 1, "no second one while the first can't be undone");
    b.runtime.break_network(false);
    b.wait(600).await;
    assert_eq!(b.phase(), "Running");
    b.check_log(&["sandbox 1", "start a-0", "start b-0", "remove sandbox-0"]);
}

#[tokio::test(start_paused = true)]
async fn deadline_exceeded() {
    let b = bench(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "a", "image": "i:1"}]})).await;
    b.wait(59).await;
    assert_eq!(b.phase(), "Running");
    b.wait(5).await;
    let status = b.api.pod().status.unwrap();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
}

/// Fails the pod with this text, and kills its containers at once.
fn check_evicted(b: &Bench, text: &str) {
    let status = b.api.pod().status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Evicted"), Some(text)));
    let events = b.api.events();
    let evictions = events.iter().filter(|e| **e == format!("Evicted: {text}")).count();
    assert_eq!(evictions, 1, "{events:?}");
    b.check_log(&["term a-0 2s", "dead a", "stop sandbox-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_writes_too_much_is_evicted() {
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1",
        "resources": {"limits": {"ephemeral-storage": "1Mi"}}}]}))
    .await;
    b.runtime.write("a-0", 1 << 19);
    b.wait(60).await;
    assert_eq!(b.phase(), "Running");
    b.runtime.take_log();
    b.runtime.write("a-0", 1 << 20);
    b.wait(15).await;
    // /etc/hosts counts too.
    check_evicted(&b, "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ");
}

#[tokio::test(start_paused = true)]
async fn a_full_empty_dir_is_evicted() {
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1"}],
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]}))
    .await;
    b.wait(30).await;
    assert_eq!(b.phase(), "Running");
    b.runtime.take_log();
    let volume = b.dir.path().join("kubelet/pods/u/volumes/kubernetes.io~empty-dir/v");
    std::fs::write(volume.join("f"), vec![1; 2 << 20]).unwrap();
    b.wait(15).await;
    check_evicted(&b, "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
}

#[tokio::test(start_paused = true)]
async fn refused_pods_fail_with_a_reason() {
    let b = bench(json!({"hostUsers": false, "containers": [{"name": "a", "image": "i:1"}]})).await;
    b.wait(1).await;
    let status = b.api.pod().status.unwrap();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("PodFeatureUnsupported"))
    );
    b.check_log(&[]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_liveness_probe_restarts() {
    let b = bench(json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "a", "image": "i:1",
        "livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 2, "failureThreshold": 3}}]}))
    .await;
    b.wait(1).await;
    b.runtime.take_log();
    b.wait(6).await;
    let log: Vec<_> = b.runtime.take_log().into_iter().filter(|l| !l.starts_with("exec")).collect();
    assert_eq!(log, ["term a-0 7s", "dead a", "start a-1"]);
    let events = b.api.events();
    assert!(
        events.iter().any(|e| e == "Killing: Container a failed liveness probe, will be restarted"),
        "{events:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn hooks_run() {
    let b = bench(json!({"containers": [{"name": "a", "image": "i:1", "lifecycle": {
        "postStart": {"exec": {"command": ["hello"]}}, "preStop": {"sleep": {"seconds": 5}}}}]}))
    .await;
    b.wait(1).await;
    b.check_log(&["sandbox 0", "start a-0", "exec hello"]);
    b.delete(30);
    b.wait(10).await;
    b.check_log(&["term a-0 25s", "dead a", "stop sandbox-0"]);
}

#[tokio::test(start_paused = true)]
async fn the_container_gets_its_configuration() {
    let b = bench(json!({"hostname": "h", "containers": [{"name": "a", "image": "i:1", "command": ["sh", "$(X)"],
        "env": [{"name": "X", "value": "1"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}))
    .await;
    b.wait(1).await;
    let config = b.runtime.config("a-0");
    assert_eq!(config.command, ["sh", "1"]);
    assert!(config.envs.contains(&("IP".into(), "10.244.0.5".into())));
    let paths: Vec<_> =
        config.mounts.iter().map(|m| m.container_path.to_string_lossy().into_owned()).collect();
    assert_eq!(paths, ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/v"]);
    let hosts = std::fs::read_to_string(&config.mounts[0].host_path).unwrap();
    assert!(hosts.contains("10.244.0.5\th\n"), "{hosts}");
    assert!(config.mounts[4].host_path.is_dir());
}

#[tokio::test(start_paused = true)]
async fn the_manager_finds_pods_and_ends_orphans() {
    let pod = pod_json(two());
    let clock = Clock::virtual_from(t0());
    let runtime = FakeRuntime::new(clock);
    let mut left = cri_sandbox(0, true);
    left.id = "left".into();
    left.metadata.uid = "gone".into();
    let mut container = cri_container("x", 0, ContainerState::Running, None);
    container.sandbox_id = "left".into();
    runtime.preload(left, vec![container]);
    let api = FakeApi::new(&pod);
    let dir = tempfile::tempdir().unwrap();
    let mut config = PodManagerConfig::new("n1", vec!["10.89.0.11".parse().unwrap()]);
    config.root_dir = dir.path().join("kubelet");
    config.pod_logs_dir = dir.path().join("pods");
    config.container_logs_dir = dir.path().join("containers");
    let mounter = Arc::new(FakeMounter::default());
    let parts = PodManagerParts { mounter, clock, ..PodManagerParts::default() };
    let manager = PodManager::with_parts(config, api.client(), runtime.clone(), Arc::new(FakeImages), parts);
    let shutdown = CancellationToken::new();
    let run = tokio::spawn(manager.clone().run(shutdown.clone()));
    tokio::time::sleep(Duration::from_secs(50)).await;
    let log = runtime.take_log();
    for line in [
        "sandbox 0",
        "start a-0",
        "start b-0",
        "term x-0 30s",
        "stop left",
        "remove left",
        "update kubepods/besteffort shares=2",
    ] {
        assert!(log.iter().any(|l| l == line), "{line}: {log:?}");
    }
    assert_eq!(manager.get_pod("ns", "p").unwrap().metadata.uid.as_deref(), Some("u"));
    assert_eq!(manager.pods().len(), 1);
    assert_eq!(manager.container_id("u", "a", false).as_deref(), Some("a-0"));
    assert_eq!(manager.container_id("u", "a", true), None);
    assert_eq!(manager.sandbox_id("u").as_deref(), Some("sandbox-0"));
    assert_eq!(manager.log_path("u", "b", false), Some("b/0.log".into()));
    assert_eq!(api.pod().status.unwrap().phase.as_deref(), Some("Running"));
    shutdown.cancel();
    run.await.unwrap();
    // Pods outlive the agent.
    assert!(runtime.take_log().is_empty());
}

/// A pod with one container whose requests are its limits.
fn sized(cpu: &str, memory: &str, policy: &str) -> serde_json::Value {
    let amounts = json!({"cpu": cpu, "memory": memory});
    json!({"restartPolicy": "OnFailure", "containers": [{
        "name": "a", "image": "i:1", "resources": {"requests": amounts, "limits": amounts},
        "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": policy}, {"resourceName": "memory", "restartPolicy": policy},
        ],
    }]})
}

impl Bench {
    /// Sends the pod with new resources, as the `resize` subresource stores it.
    fn resize(&self, generation: i64, cpu: &str, memory: &str, policy: &str) {
        let spec = pod_json(sized(cpu, memory, policy)).spec;
        self.update(|pod| {
            pod.spec = spec;
            pod.metadata.generation = Some(generation);
        });
    }

    fn resize_condition(&self, type_: &str) -> Option<PodCondition> {
        self.api.pod().status?.conditions?.into_iter().find(|c| c.type_ == type_)
    }

    /// `allocated/in effect` cpu of the container.
    fn cpu(&self) -> String {
        let status = self.api.pod().status.unwrap().container_statuses.unwrap().remove(0);
        let text = |map: Option<std::collections::BTreeMap<String, Quantity>>| map.unwrap()["cpu"].0.clone();
        format!("{}/{}", text(status.allocated_resources), text(status.resources.unwrap().requests))
    }

    fn resize_events(&self) -> Vec<String> {
        let reasons = self.api.events();
        let reasons = reasons.iter().filter_map(|e| Some(e.split_once(':')?.0.to_owned()));
        reasons.filter(|r| r.starts_with("Resize")).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_container_is_resized() {
    let b = bench(sized("1", "1Gi", "NotRequired")).await;
    b.wait(1).await;
    b.runtime.take_log();
    assert_eq!(b.cpu(), "1/1");
    b.resize(2, "2", "2Gi", "NotRequired");
    b.wait(1).await;
    b.check_log(&[
        "update sandbox-0 memory=2147483648",
        "update a-0 memory=2147483648",
        "update sandbox-0 quota=200000",
        "update sandbox-0 shares=2048",
        "update a-0 quota=200000 shares=2048",
    ]);
    assert_eq!(b.cpu(), "2/2");
    let status = b.api.pod().status.unwrap();
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(status.container_statuses.unwrap()[0].restart_count, 0);
    assert_eq!(b.resize_condition("PodResizeInProgress"), None);
    assert_eq!(b.resize_events(), ["ResizeStarted", "ResizeCompleted"]);
}

#[tokio::test(start_paused = true)]
async fn a_resize_restarts_where_the_policy_says_so() {
    let b = bench(sized("1", "1Gi", "RestartContainer")).await;
    b.wait(1).await;
    b.runtime.take_log();
    b.resize(2, "2", "1Gi", "RestartContainer");
    b.wait(2).await;
    b.check_log(&[
        "term a-0 30s",
        "dead a",
        "update sandbox-0 quota=200000",
        "update sandbox-0 shares=2048",
        "start a-1",
    ]);
    assert_eq!(b.runtime.config("a-1").resources.cpu_quota, Some(200_000));
    assert_eq!((b.cpu().as_str(), b.phase().as_str()), ("2/2", "Running"));
    assert_eq!(b.resize_condition("PodResizeInProgress"), None);
    assert_eq!(b.resize_events(), ["ResizeStarted", "ResizeCompleted"]);
}

#[tokio::test(start_paused = true)]
async fn a_resize_waits_for_room() {
    let b = bench(sized("1", "1Gi", "NotRequired")).await;
    b.wait(1).await;
    let mut other = pod_json(sized("2", "1Gi", "NotRequired"));
    other.metadata.uid = Some("o".into());
    b.table.set(Arc::new(other), Arc::default());
    b.runtime.take_log();
    b.resize(2, "3", "1Gi", "NotRequired");
    b.wait(1).await;
    let pending = b.resize_condition("PodResizePending").unwrap();
    assert_eq!((pending.reason.as_deref(), pending.observed_generation), (Some("Deferred"), Some(2)));
    let lack = "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000";
    assert_eq!(pending.message.as_deref(), Some(lack));
    assert_eq!(b.cpu(), "1/1");
    b.check_log(&[]);
    b.table.remove("o");
    b.ctx.allocations.freed(&b.table);
    b.wait(1).await;
    assert_eq!((b.cpu().as_str(), b.resize_condition("PodResizePending")), ("3/3", None));
    b.resize(3, "9", "1Gi", "NotRequired");
    b.wait(1).await;
    let pending = b.resize_condition("PodResizePending").unwrap();
    assert_eq!(pending.reason.as_deref(), Some("Infeasible"));
    // Taken back.
    b.resize(4, "3", "1Gi", "NotRequired");
    b.wait(1).await;
    assert_eq!(b.resize_condition("PodResizePending"), None);
    assert_eq!(b.resize_events(), ["ResizeDeferred", "ResizeStarted", "ResizeCompleted", "ResizeInfeasible"]);
}

#[tokio::test(start_paused = true)]
async fn memory_in_use_is_not_taken_away() {
    let b = bench(sized("1", "2Gi", "NotRequired")).await;
    b.wait(1).await;
    b.runtime.take_log();
    b.runtime.take_memory("a-0", 3 << 29);
    b.resize(2, "1", "1Gi", "NotRequired");
    b.wait(1).await;
    b.check_log(&[]);
    let going = b.resize_condition("PodResizeInProgress").unwrap();
    assert_eq!(going.reason.as_deref(), Some("Error"));
    assert!(
        going.message.unwrap().starts_with("cannot decrease memory limits: [attempting to set container")
    );
    b.runtime.take_memory("a-0", 1 << 29);
    b.wait(120).await;
    b.check_log(&["update a-0 memory=1073741824", "update sandbox-0 memory=1073741824"]);
    assert_eq!(b.resize_condition("PodResizeInProgress"), None);
    assert_eq!(b.resize_events(), ["ResizeStarted", "ResizeError", "ResizeCompleted"]);
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_keeps_what_was_allocated() {
    let b = bench(sized("1", "1Gi", "NotRequired")).await;
    b.wait(1).await;
    b.runtime.refuse_updates(true);
    b.resize(2, "2", "1Gi", "NotRequired");
    b.wait(1).await;
    assert_eq!(b.cpu(), "2/1");
    assert_eq!(b.resize_condition("PodResizeInProgress").unwrap().reason.as_deref(), Some("Error"));
    drop(b.tasks);
    b.runtime.take_log();
    b.runtime.refuse_updates(false);
    // The next agent finds a spec that its node has no room for, and one resize half done.
    let mut pod = b.api.pod();
    pod.spec = pod_json(sized("9", "1Gi", "NotRequired")).spec;
    pod.metadata.generation = Some(3);
    let (mut tasks, shutdown) = (JoinSet::new(), CancellationToken::new());
    let first = Desired { pod: Arc::new(pod), removed: false };
    let found = vec!["sandbox-0".to_owned()];
    let _worker = worker::spawn(b.ctx.clone(), b.table.clone(), first, found, shutdown, &mut tasks);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let log = b.runtime.take_log();
    assert_eq!(
        log,
        [
            "update sandbox-0 quota=200000",
            "update sandbox-0 shares=2048",
            "update a-0 quota=200000 shares=2048"
        ]
    );
    let status = b.api.pod().status.unwrap();
    let own = &status.container_statuses.unwrap()[0];
    assert_eq!(own.allocated_resources.as_ref().unwrap()["cpu"].0, "2");
    let reasons: Vec<_> =
        status.conditions.unwrap().into_iter().filter(|c| c.type_.starts_with("PodResize")).collect();
    assert_eq!(reasons.len(), 1);
    assert_eq!(reasons[0].reason.as_deref(), Some("Infeasible"));
}
