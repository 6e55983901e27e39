//! What owners of fields cost on the hottest write: a kubelet's patch of a Pod's status. `without` is the rest of what
//! the write does to trees (decode, patch, normalize, encode), `with` the same and the owners.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use keelson_api::codec::{self, FieldValidation};
use keelson_api::managed_fields::FieldManager;
use keelson_api::meta::GroupVersionKind;
use keelson_api::patch;
use keelson_api::schema::Schema;
use keelson_api::smd::update::Versions;
use keelson_api::smd::{Filter, Set, TypeId, Types, field_path};
use serde_json::{Value, json};

struct PodVersions;

impl Versions for PodVersions {
    fn type_of(&self, version: &str) -> Option<(&Types, TypeId)> {
        (version == "v1").then(|| (Types::builtin(), Types::builtin_kind(&pod_kind()).unwrap()))
    }

    fn convert(&self, _object: &Value, version: &str) -> Result<Value, String> {
        Err(format!("no version {version}"))
    }
}

fn pod_kind() -> GroupVersionKind {
    GroupVersionKind::new("", "v1", "Pod")
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// A pod as a Deployment makes it.
fn pod() -> Value {
    let probe = json!({
        "httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1,
        "successThreshold": 1, "failureThreshold": 3,
    });
    let env: Vec<Value> = (0..10).map(|n| json!({"name": format!("VAR_{n}"), "value": "x"})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-6d4cf56db6-abcde", "generateName": "web-6d4cf56db6-", "namespace": "default", "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web", "pod-template-hash": "6d4cf56db6"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4cf56db6", "uid": "r",
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "containers": [{
                "name": "web", "image": "web:1", "imagePullPolicy": "IfNotPresent", "env": env,
                "ports": [{"containerPort": 8080, "protocol": "TCP", "name": "http"}],
                "resources": {"limits": {"cpu": "1", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "32Mi"}},
                "livenessProbe": probe, "readinessProbe": probe,
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": true}],
            }],
            "volumes": [{"name": "token", "emptyDir": {}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "serviceAccount": "default", "nodeName": "n1", "securityContext": {},
            "schedulerName": "default-scheduler", "priority": 0, "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {"phase": "Pending", "qosClass": "Burstable"},
    })
}

/// What a kubelet says of a pod, at one of its probes.
fn status(ready: &str) -> Value {
    json!({"status": {
        "phase": "Running", "hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}], "podIP": "10.244.0.5",
        "podIPs": [{"ip": "10.244.0.5"}], "startTime": "2026-01-01T00:00:00Z",
        "conditions": [
            condition("PodReadyToStartContainers", "True"), condition("Initialized", "True"),
            condition("Ready", ready), condition("ContainersReady", ready), condition("PodScheduled", "True"),
        ],
        "containerStatuses": [{
            "name": "web", "image": "web:1", "imageID": "sha256:0", "containerID": "keelson://0", "ready": ready == "True",
            "started": true, "restartCount": 0, "lastState": {}, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    }})
}

struct Bench {
    gvk: GroupVersionKind,
    filters: BTreeMap<String, Filter>,
    empty: Value,
}

impl Bench {
    fn new() -> Self {
        let gvk = pod_kind();
        let schema = Schema::builtin();
        let empty = schema.zero(schema.kind(&gvk).unwrap());
        let filter = Filter::Exclude(Set::new([field_path(&["spec"])]));
        Self { gvk, filters: BTreeMap::from([("v1".to_owned(), filter)]), empty }
    }

    fn manager<'b>(&'b self, subresource: &'b str) -> FieldManager<'b> {
        FieldManager {
            versions: &PodVersions,
            gvk: &self.gvk,
            subresource,
            filters: &self.filters,
            empty: &self.empty,
            now: "2026-01-01T00:00:01Z",
        }
    }

    /// The write without its owners; `stored` is the object's JSON.
    fn patch(&self, stored: &[u8], patch: &Value) -> (Value, Value) {
        let live: Value = serde_json::from_slice(stored).unwrap();
        let mut new = patch::strategic(&self.gvk, &live, patch).unwrap();
        codec::normalize_object(&self.gvk, &mut new, FieldValidation::Ignore).unwrap();
        (live, new)
    }
}

fn pod_status(c: &mut Criterion) {
    let bench = Bench::new();
    let mut made = pod();
    codec::normalize_object(&bench.gvk, &mut made, FieldValidation::Strict).unwrap();
    let bare = serde_json::to_vec(&made).unwrap();
    bench.manager("").update(None, &mut made, "kube-controller-manager").unwrap();
    let (live, mut running) = bench.patch(&serde_json::to_vec(&made).unwrap(), &status("False"));
    bench.manager("status").update(Some(&live), &mut running, "kubelet").unwrap();
    let stored = serde_json::to_vec(&running).unwrap();
    let bare_running = {
        let (_, running) = bench.patch(&bare, &status("False"));
        serde_json::to_vec(&running).unwrap()
    };
    println!("{} bytes with owners, {} without", stored.len(), bare_running.len());
    let ready = status("True");

    let mut group = c.benchmark_group("pod_status");
    group.bench_function("without", |b| {
        b.iter(|| {
            let (_, new) = bench.patch(black_box(&bare_running), &ready);
            serde_json::to_vec(&new).unwrap()
        });
    });
    group.bench_function("with", |b| {
        b.iter(|| {
            let (live, mut new) = bench.patch(black_box(&stored), &ready);
            bench.manager("status").update(Some(&live), &mut new, "kubelet").unwrap();
            serde_json::to_vec(&new).unwrap()
        });
    });
    group.bench_function("owners_alone", |b| {
        let (live, new) = bench.patch(&stored, &ready);
        b.iter_batched(
            || new.clone(),
            |mut new| {
                bench.manager("status").update(Some(black_box(&live)), &mut new, "kubelet").unwrap();
                new
            },
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, pod_status);
criterion_main!(benches);
