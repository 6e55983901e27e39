//! Small objects for tests of this crate.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::{ContainerState, ContainerStatus, PodSandboxMetadata, PodSandboxState, PodSandboxStatus};

/// The moment at which tests happen.
pub fn t0() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// A pod `ns/p` with uid `u` on node `n1` and this spec.
pub fn pod_json(mut spec: serde_json::Value) -> Pod {
    spec.as_object_mut().unwrap().entry("nodeName").or_insert("n1".into());
    serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec
    }))
    .unwrap()
}

/// A container record `<name>-<attempt>`; later attempts are younger, and it ended at [`t0`].
pub fn cri_container(
    name: &str,
    attempt: u32,
    state: ContainerState,
    exit_code: Option<i32>,
) -> ContainerStatus {
    let created = t0() - Duration::from_secs(1000) + Duration::from_secs(u64::from(attempt));
    ContainerStatus {
        id: format!("{name}-{attempt}"),
        sandbox_id: "sandbox-0".into(),
        name: name.into(),
        attempt,
        state,
        created_at: created,
        started_at: Some(created),
        finished_at: exit_code.map(|_| t0()),
        exit_code,
        reason: exit_code.map(|c| if c == 0 { "Completed".into() } else { "Error".into() }),
        message: None,
        image: "sha256:1".into(),
        image_ref: "docker.io/library/i:latest".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: format!("/var/log/pods/ns_p_u/{name}/{attempt}.log").into(),
        pid: None,
        user: None,
    }
}

/// A sandbox `sandbox-<attempt>` of the pod of [`pod_json`].
pub fn cri_sandbox(attempt: u32, ready: bool) -> PodSandboxStatus {
    PodSandboxStatus {
        id: format!("sandbox-{attempt}"),
        metadata: PodSandboxMetadata { name: "p".into(), namespace: "ns".into(), uid: "u".into(), attempt },
        state: if ready { PodSandboxState::Ready } else { PodSandboxState::NotReady },
        created_at: t0() - Duration::from_secs(2000) + Duration::from_secs(u64::from(attempt)),
        ips: vec!["10.244.0.5".parse().unwrap()],
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}
