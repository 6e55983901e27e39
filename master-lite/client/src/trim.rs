//! What caches leave out of pods.
//!
//! A cached pod is decoded into structs whose every possible field takes room, so what no reader looks at is most of it.
//! Whoever writes a whole pod back reads it from the API first.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// What `kubectl apply` keeps of the manifest, in an annotation.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Leaves of a pod what the scheduler and the controllers read: identity and status; names, images, ports, resources and
/// restart policies of containers; volumes that are claims; everything that has to do with placement.
pub fn pod(pod: &mut Pod) {
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(spec) = &mut pod.spec {
        trim_spec(spec);
    }
    let status = pod.status.iter_mut();
    let statuses = status.flat_map(|status| {
        [
            &mut status.container_statuses,
            &mut status.init_container_statuses,
            &mut status.ephemeral_container_statuses,
        ]
    });
    for status in statuses.flatten().flatten() {
        status.volume_mounts = None;
        status.user = None;
    }
}

fn trim_spec(spec: &mut PodSpec) {
    for containers in [Some(&mut spec.containers), spec.init_containers.as_mut()].into_iter().flatten() {
        *containers = std::mem::take(containers).into_iter().map(trimmed).collect();
    }
    spec.ephemeral_containers = None;
    spec.security_context = None;
    spec.dns_config = None;
    spec.host_aliases = None;
    spec.image_pull_secrets = None;
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
        volumes.shrink_to_fit();
    }
}

fn trimmed(container: Container) -> Container {
    let Container { name, image, ports, resources, restart_policy, .. } = container;
    Container { name, image, ports, resources, restart_policy, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn trimmed_json(value: Value) -> Value {
        let mut object: Pod = serde_json::from_value(value).unwrap();
        pod(&mut object);
        serde_json::to_value(object).unwrap()
    }

    #[test]
    fn what_places_a_pod_stays() {
        let kept = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a", "labels": {"app": "a"}, "annotations": {"batch.kubernetes.io/job-completion-index": "1"}},
            "spec": {
                "nodeName": "n", "hostname": "a-0", "subdomain": "a", "schedulerName": "s", "priority": 7,
                "nodeSelector": {"disk": "fast"},
                "tolerations": [{"key": "k", "operator": "Exists"}],
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
                "overhead": {"cpu": "10m"},
                "containers": [{
                    "name": "main", "image": "i", "ports": [{"name": "http", "containerPort": 80, "hostPort": 80}],
                    "resources": {"requests": {"cpu": "1"}},
                }],
                "initContainers": [{"name": "side", "image": "s", "restartPolicy": "Always"}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-a-0"}}],
            },
            "status": {
                "phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
                "containerStatuses": [{
                    "name": "main", "image": "i", "imageID": "x", "ready": true, "restartCount": 2,
                    "state": {"terminated": {"exitCode": 3}},
                }],
            },
        });
        assert_eq!(trimmed_json(kept.clone()), kept);
    }

    #[test]
    fn what_only_the_node_reads_goes() {
        let whole = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a", "annotations": {LAST_APPLIED: "{}"}},
            "spec": {
                "securityContext": {"runAsUser": 1},
                "imagePullSecrets": [{"name": "s"}],
                "containers": [{
                    "name": "main", "command": ["x"], "args": ["y"], "env": [{"name": "A", "value": "b"}],
                    "livenessProbe": {"exec": {"command": ["x"]}},
                    "volumeMounts": [{"name": "c", "mountPath": "/c"}],
                }],
                "volumes": [{"name": "c", "configMap": {"name": "c"}}, {"name": "e", "emptyDir": {}}],
            },
        });
        let expected = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a", "annotations": {}},
            "spec": {"containers": [{"name": "main"}], "volumes": []},
        });
        assert_eq!(trimmed_json(whole), expected);
    }
}
