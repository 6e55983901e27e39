//! Object to row, kind by kind. `now` is 1000 seconds after the objects were made.

use serde_json::{Value, json};

use super::printer;

const MADE: &str = "2026-01-01T00:00:00Z";
const NOW: i64 = 1_767_225_600 + 1000;

/// Prints all columns of an object and compares them, joined by ` | `.
fn check(group: &str, kind: &str, mut object: Value, expected: &str) {
    object["metadata"]["name"] = "x".into();
    object["metadata"]["creationTimestamp"] = MADE.into();
    let row = printer(group, kind).row(&object, NOW);
    let cells: Vec<String> = row["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned))
        .collect();
    assert_eq!(cells.join(" | "), expected, "{kind} {object}");
}

/// A pod with two containers; checks the columns from READY to RESTARTS.
fn check_pod(spec: Value, status: Value, deleted: bool, expected: &str) {
    let mut pod = json!({"metadata": {}, "spec": {"containers": [{}, {}]}, "status": status});
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    if deleted {
        pod["metadata"]["deletionTimestamp"] = MADE.into();
    }
    check("", "Pod", pod, &format!("x | {expected} | 16m | <none> | <none> | <none> | <none>"));
}

#[test]
fn pods() {
    let running = json!({"ready": true, "state": {"running": {}}});
    let waiting = |reason: &str| json!({"restartCount": 1, "state": {"waiting": {"reason": reason}}});
    let ended =
        |code: i64, reason: &str| json!({"state": {"terminated": {"exitCode": code, "reason": reason}}});
    let none = || json!({});
    check_pod(none(), json!({"phase": "Pending"}), false, "0/2 | Pending | 0");
    check_pod(none(), json!({"phase": "Failed", "reason": "Evicted"}), false, "0/2 | Evicted | 0");
    check_pod(
        none(),
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
        false,
        "0/2 | SchedulingGated | 0",
    );
    check_pod(
        none(),
        json!({"phase": "Running", "containerStatuses": [running, running]}),
        false,
        "2/2 | Running | 0",
    );
    check_pod(
        none(),
        json!({"phase": "Running", "containerStatuses": [waiting("CrashLoopBackOff"), running]}),
        false,
        "1/2 | CrashLoopBackOff | 1",
    );
    let restarted = json!({
        "ready": true, "restartCount": 3, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "2026-01-01T00:11:40Z"}},
    });
    check_pod(
        none(),
        json!({"phase": "Running", "containerStatuses": [restarted, running]}),
        false,
        "2/2 | Running | 3 (5m ago)",
    );
    check_pod(
        none(),
        json!({"phase": "Running", "containerStatuses": [running]}),
        true,
        "1/2 | Terminating | 0",
    );
    check_pod(none(), json!({"phase": "Running", "reason": "NodeLost"}), true, "0/2 | Unknown | 0");
    check_pod(
        none(),
        json!({"phase": "Succeeded", "containerStatuses": [ended(0, "Completed"), ended(0, "Completed")]}),
        true,
        "0/2 | Completed | 0",
    );
    check_pod(
        none(),
        json!({"phase": "Running", "containerStatuses": [ended(0, "Completed"), running]}),
        false,
        "1/2 | NotReady | 0",
    );
    check_pod(
        none(),
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [ended(0, "Completed"), running]}),
        false,
        "1/2 | Running | 0",
    );
    check_pod(
        none(),
        json!({"phase": "Failed", "containerStatuses": [ended(0, "Completed"), ended(1, "Error")]}),
        false,
        "0/2 | Error | 0",
    );
    check_pod(
        none(),
        json!({"phase": "Failed", "containerStatuses": [ended(3, ""),
            {"state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
        false,
        "0/2 | ExitCode:3 | 0",
    );
}

#[test]
fn pods_that_initialize() {
    let spec = || json!({"initContainers": [{"name": "a"}, {"name": "b", "restartPolicy": "Always"}]});
    let done = json!({"name": "a", "state": {"terminated": {"exitCode": 0}}});
    let check = |init: Value, conditions: Value, containers: Value, expected: &str| {
        check_pod(
            spec(),
            json!({"phase": "Pending", "initContainerStatuses": init, "conditions": conditions,
                "containerStatuses": containers}),
            false,
            expected,
        );
    };
    check(json!([{"name": "a", "state": {"running": {}}}]), json!([]), json!([]), "0/3 | Init:0/2 | 0");
    check(
        json!([{"name": "a", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
        json!([]),
        json!([]),
        "0/3 | Init:CrashLoopBackOff | 4",
    );
    check(
        json!([{"name": "a", "state": {"terminated": {"exitCode": 2}}}]),
        json!([]),
        json!([]),
        "0/3 | Init:ExitCode:2 | 0",
    );
    check(
        json!([{"name": "a", "state": {"terminated": {"exitCode": 2, "reason": "Error"}}}]),
        json!([]),
        json!([]),
        "0/3 | Init:Error | 0",
    );
    check(
        json!([done, {"name": "b", "state": {"waiting": {"reason": "PodInitializing"}}}]),
        json!([]),
        json!([]),
        "0/3 | Init:1/2 | 0",
    );
    check(
        json!([done, {"name": "b", "started": true, "ready": true, "restartCount": 2, "state": {"running": {}}}]),
        json!([{"type": "Initialized", "status": "True"}]),
        json!([{"state": {"waiting": {"reason": "PodInitializing"}}}]),
        "1/3 | PodInitializing | 2",
    );
}

#[test]
fn wide_pods_and_conditions() {
    check(
        "",
        "Pod",
        json!({
            "spec": {"nodeName": "n", "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "nominatedNodeName": "m",
                "conditions": [{"type": "a", "status": "True"}]},
        }),
        "x | 0/0 |  | 0 | 16m | 10.0.0.1 | n | m | 1/2",
    );
    let row = printer("", "Pod").row(&json!({"status": {"phase": "Failed"}}), NOW);
    assert_eq!(row["conditions"][0]["reason"], "Failed");
    assert!(printer("", "Pod").row(&json!({}), NOW)["conditions"].is_null());
}

#[test]
fn nodes() {
    check(
        "",
        "Node",
        json!({}),
        "x | Unknown | <none> | 16m |  | <none> | <none> | <unknown> | <unknown> | <unknown>",
    );
    check(
        "",
        "Node",
        json!({
            "metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": "",
                "kubernetes.io/role": "x", "node-role.kubernetes.io/": ""}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.0+keelson", "osImage": "Debian", "kernelVersion": "6.18",
                    "architecture": "amd64", "containerRuntimeVersion": "keelson://0.1.0"},
            },
        }),
        "x | Ready,SchedulingDisabled | control-plane,worker,x | 16m | v1.36.0+keelson | 10.0.0.1 | <none> | Debian | 6.18 (amd64) | keelson://0.1.0",
    );
    check(
        "",
        "Node",
        json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
        "x | NotReady | <none> | 16m |  | <none> | <none> | <unknown> | <unknown> | <unknown>",
    );
}

#[test]
fn events() {
    let expected = "40s | Warning | Failed | pod/p | spec.containers{c} | kubelet, n | boom | 16m | 7 | x";
    check(
        "",
        "Event",
        json!({
            "type": "Warning", "reason": "Failed", "message": " boom\n", "count": 7,
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
            "source": {"component": "kubelet", "host": "n"},
            "firstTimestamp": MADE, "lastTimestamp": "2026-01-01T00:16:00Z",
        }),
        expected,
    );
    check(
        "events.k8s.io",
        "Event",
        json!({
            "type": "Warning", "reason": "Failed", "note": "boom", "eventTime": "2026-01-01T00:00:00.000001Z",
            "regarding": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{c}"},
            "reportingController": "kubelet", "reportingInstance": "n",
            "series": {"count": 7, "lastObservedTime": "2026-01-01T00:16:00.000000Z"},
        }),
        expected,
    );
    check("", "Event", json!({}), "<unknown> |  |  |  |  |  |  | <unknown> | 1 | x");
}

#[test]
fn workloads() {
    let template = json!({"metadata": {"labels": {"b": "2", "a": "1"}},
        "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j:1"}], "nodeSelector": {"k": "v"}}});
    let selector = json!({"matchLabels": {"b": "2", "a": "1"},
        "matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["z", "y"]}, {"key": "d", "operator": "Exists"}]});
    let spec = json!({"replicas": 3, "template": template, "selector": selector});
    let status = json!({"replicas": 2, "readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1,
        "desiredNumberScheduled": 5, "currentNumberScheduled": 4, "numberReady": 3, "updatedNumberScheduled": 2, "numberAvailable": 1});
    let object = json!({"spec": spec, "status": status});
    let tail = "c,d | i,j:1 | a=1,b=2,c notin (y,z),d";
    check("apps", "Deployment", object.clone(), &format!("x | 1/3 | 2 | 1 | 16m | {tail}"));
    check("apps", "ReplicaSet", object.clone(), &format!("x | 3 | 2 | 1 | 16m | {tail}"));
    check("apps", "StatefulSet", object.clone(), "x | 1/3 | 16m | c,d | i,j:1");
    check("apps", "DaemonSet", object, &format!("x | 5 | 4 | 3 | 2 | 1 | k=v | 16m | {tail}"));
    check("apps", "Deployment", json!({}), "x | 0/0 | 0 | 0 | 16m |  |  | ");
    let bad = json!({"spec": {"selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}});
    check("apps", "Deployment", bad.clone(), "x | 0/0 | 0 | 0 | 16m |  |  | <invalid>");
    check("apps", "ReplicaSet", bad, "x | 0 | 0 | 0 | 16m |  |  | <error>");
    check(
        "",
        "ReplicationController",
        json!({"spec": {"replicas": 1, "selector": {"a": "b"}}}),
        "x | 1 | 0 | 0 | 16m |  |  | a=b",
    );
    check("", "PodTemplate", json!({"template": template}), "x | c,d | i,j:1 | a=1,b=2");
    check(
        "apps",
        "ControllerRevision",
        json!({"revision": 4, "metadata": {"ownerReferences":
            [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}}),
        "x | daemonset.apps/d | 4 | 16m",
    );
}

#[test]
fn jobs() {
    let check_job = |spec: Value, status: Value, expected: &str| {
        check(
            "batch",
            "Job",
            json!({"spec": spec, "status": status}),
            &format!("x | {expected} | 16m |  |  | <none>"),
        );
    };
    check_job(json!({"completions": 3}), json!({"succeeded": 1, "startTime": MADE}), "Running | 1/3 | 16m");
    check_job(json!({"parallelism": 4}), json!({}), "Running | 0/1 of 4 | ");
    check_job(
        json!({"parallelism": 1}),
        json!({"conditions": [{"type": "Complete", "status": "True"}], "startTime": MADE,
            "completionTime": "2026-01-01T00:02:05Z"}),
        "Complete | 0/1 | 2m5s",
    );
    check_job(
        json!({}),
        json!({"conditions": [{"type": "Suspended", "status": "True"}]}),
        "Suspended | 0/1 | ",
    );
    check(
        "batch",
        "CronJob",
        json!({"spec": {"schedule": "* * * * *", "suspend": false, "jobTemplate": {"spec": {"template": {"spec":
            {"containers": [{"name": "c", "image": "i"}]}}}}},
            "status": {"active": [{}], "lastScheduleTime": "2026-01-01T00:16:00Z"}}),
        "x | * * * * * | <none> | False | 1 | 40s | 16m | c | i | <none>",
    );
}

#[test]
fn services() {
    let check_service = |spec: Value, status: Value, expected: &str| {
        check("", "Service", json!({"spec": spec, "status": status}), expected);
    };
    check_service(
        json!({"type": "ClusterIP", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 443, "protocol": "TCP"}]}),
        json!({}),
        "x | ClusterIP | 10.96.0.1 | <none> | 443/TCP | 16m | <none>",
    );
    check_service(
        json!({"type": "NodePort", "clusterIPs": ["10.96.0.2"], "externalIPs": ["1.1.1.1", "2.2.2.2"],
            "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
            "selector": {"b": "2", "a": "1"}}),
        json!({}),
        "x | NodePort | 10.96.0.2 | 1.1.1.1,2.2.2.2 | 80:30000/TCP,53/UDP | 16m | a=1,b=2",
    );
    check_service(
        json!({"type": "LoadBalancer"}),
        json!({}),
        "x | LoadBalancer | <none> | <pending> | <none> | 16m | <none>",
    );
    check_service(
        json!({"type": "LoadBalancer", "externalIPs": ["3.3.3.3"]}),
        json!({"loadBalancer": {"ingress": [{"ip": "9.9.9.9"}, {"hostname": "h"}, {"ip": "9.9.9.9"}]}}),
        "x | LoadBalancer | <none> | 9.9.9.9,h,3.3.3.3 | <none> | 16m | <none>",
    );
    check_service(
        json!({"type": "ExternalName", "externalName": "a.example"}),
        json!({}),
        "x | ExternalName | <none> | a.example | <none> | 16m | <none>",
    );
}

#[test]
fn endpoints_and_slices() {
    check("", "Endpoints", json!({}), "x | <none> | 16m");
    check(
        "",
        "Endpoints",
        json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]},
            {"addresses": [{"ip": "10.0.0.9"}]}]}),
        "x | 10.0.0.1:80,[fd00::1]:80,10.0.0.1:81 + 2 more... | 16m",
    );
    check(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"addressType": "IPv4"}),
        "x | IPv4 | <unset> | <unset> | 16m",
    );
    check(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "n"}, {}],
            "endpoints": [{"addresses": ["a", "b"]}, {"addresses": ["c"]}, {"addresses": ["d"]}]}),
        "x | IPv4 | 80,n,* | a,b,c + 1 more... | 16m",
    );
}

#[test]
fn networking() {
    check("networking.k8s.io", "Ingress", json!({}), "x | <none> | * |  | 80 | 16m");
    check(
        "networking.k8s.io",
        "Ingress",
        json!({"spec": {"ingressClassName": "c", "tls": [{}], "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}),
        "x | c | a,b,c + 1 more... | 1.2.3.4 | 80, 443 | 16m",
    );
    check(
        "networking.k8s.io",
        "IngressClass",
        json!({"metadata": {"annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
            "spec": {"controller": "e/c", "parameters": {"kind": "K", "apiGroup": "g", "name": "n"}}}),
        "x (default) | e/c | K.g/n | 16m",
    );
    check("networking.k8s.io", "NetworkPolicy", json!({"spec": {"podSelector": {}}}), "x | <none> | 16m");
    check("networking.k8s.io", "ServiceCIDR", json!({"spec": {"cidrs": ["a", "b"]}}), "x | a,b | 16m");
    check(
        "networking.k8s.io",
        "IPAddress",
        json!({"spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}}),
        "x | services/n/s",
    );
}

#[test]
fn small_kinds() {
    check("", "ConfigMap", json!({"data": {"a": "", "b": ""}, "binaryData": {"c": ""}}), "x | 3 | 16m");
    check("", "Secret", json!({"type": "Opaque", "data": {"a": ""}}), "x | Opaque | 1 | 16m");
    check("", "ServiceAccount", json!({}), "x | 16m");
    check("", "Namespace", json!({"status": {"phase": "Active"}}), "x | Active | 16m");
    check("coordination.k8s.io", "Lease", json!({"spec": {"holderIdentity": "h"}}), "x | h | 16m");
    check(
        "scheduling.k8s.io",
        "PriorityClass",
        json!({"value": 5, "preemptionPolicy": "Never"}),
        "x | 5 | false | 16m | Never",
    );
    check(
        "",
        "ResourceQuota",
        json!({"status": {"hard": {"pods": "4", "limits.cpu": "2", "cpu": "1"}, "used": {"cpu": "500m"}}}),
        "x | cpu: 500m/1, pods: 0/4 | limits.cpu: 0/2 | 16m",
    );
    check(
        "",
        "ComponentStatus",
        json!({"conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]}),
        "x | Healthy | ok | ",
    );
    for (group, kind) in
        [("rbac.authorization.k8s.io", "Role"), ("", "LimitRange"), ("example.com", "Widget")]
    {
        check(group, kind, json!({}), &format!("x | {MADE}"));
    }
    check(
        "policy",
        "PodDisruptionBudget",
        json!({"spec": {"maxUnavailable": "50%"}, "status": {"disruptionsAllowed": 1}}),
        "x | N/A | 50% | 1 | 16m",
    );
}

#[test]
fn access() {
    check(
        "rbac.authorization.k8s.io",
        "ClusterRoleBinding",
        json!({"roleRef": {"kind": "ClusterRole", "name": "admin"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "Group", "name": "g"}, {"kind": "Group", "name": "h"},
            {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}),
        "x | ClusterRole/admin | 16m | u | g, h | n/s",
    );
    let csr = |status: Value| json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 3600}, "status": status});
    let group = "certificates.k8s.io";
    let kind = "CertificateSigningRequest";
    check(group, kind, csr(json!({})), "x | 16m | s | u | 60m | Pending");
    check(
        group,
        kind,
        csr(json!({"conditions": [{"type": "Approved"}], "certificate": "Yg=="})),
        "x | 16m | s | u | 60m | Approved,Issued",
    );
    check(
        group,
        kind,
        csr(json!({"conditions": [{"type": "Denied"}, {"type": "Failed"}]})),
        "x | 16m | s | u | 60m | Denied,Failed",
    );
}

#[test]
fn storage() {
    check(
        "",
        "PersistentVolume",
        json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "n", "name": "c"},
            "storageClassName": "s", "volumeMode": "Block"}, "status": {"phase": "Bound"}}),
        "x | 1Gi | RWO,RWX | Retain | Bound | n/c | s | <unset> |  | 16m | Block",
    );
    check(
        "",
        "PersistentVolumeClaim",
        json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound", "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOncePod"]}}),
        "x | Bound | v | 1Gi | RWOP |  | <unset> | 16m | <unset>",
    );
    check(
        "",
        "PersistentVolumeClaim",
        json!({"status": {"phase": "Pending"}}),
        "x | Pending |  |  |  |  | <unset> | 16m | <unset>",
    );
    check(
        "storage.k8s.io",
        "StorageClass",
        json!({"provisioner": "p", "metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}),
        "x (default) | p | Delete | Immediate | false | 16m",
    );
    check(
        "storage.k8s.io",
        "CSIDriver",
        json!({}),
        "x | true | false | false | <unset> | false | <none> | 16m",
    );
    check("storage.k8s.io", "CSINode", json!({"spec": {"drivers": [{}]}}), "x | 1 | 16m");
}

#[test]
fn api_services() {
    let check =
        |object: Value, expected: &str| check("apiregistration.k8s.io", "APIService", object, expected);
    let status = |status: &str, reason: &str| json!({"conditions": [{"type": "Available", "status": status, "reason": reason}]});
    check(json!({"spec": {}, "status": status("True", "Local")}), "x | Local | True | 16m");
    let service = json!({"service": {"namespace": "n", "name": "s"}});
    check(json!({"spec": service}), "x | n/s | Unknown | 16m");
    check(
        json!({"spec": service, "status": status("False", "MissingEndpoints")}),
        "x | n/s | False (MissingEndpoints) | 16m",
    );
    check(json!({"spec": service, "status": status("False", "")}), "x | n/s | False | 16m");
}

#[test]
fn autoscalers() {
    let check_hpa = |metrics: Value, current: Value, expected: &str| {
        check(
            "autoscaling",
            "HorizontalPodAutoscaler",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 9, "metrics": metrics},
                "status": {"currentReplicas": 2, "currentMetrics": current}}),
            &format!("x | Deployment/d | {expected} | <unset> | 9 | 2 | 16m"),
        );
    };
    check_hpa(json!([]), json!([]), "<none>");
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}});
    check_hpa(json!([cpu]), json!([]), "cpu: <unknown>/80%");
    check_hpa(
        json!([cpu, {"type": "Pods", "pods": {"target": {"averageValue": "10"}}}, {"type": "External"}]),
        json!([{"type": "Resource", "resource": {"current": {"averageUtilization": 12}}}, {"pods": {"current": {"averageValue": "3"}}}]),
        "cpu: 12%/80%, 3/10 + 1 more...",
    );
}

#[test]
fn definitions_carry_everything() {
    let definitions = printer("", "Event").definitions();
    assert_eq!(definitions[0]["name"], "Last Seen");
    assert_eq!(definitions.last().unwrap()["format"], "name");
    assert_eq!(definitions.last().unwrap()["priority"], 1);
    let definitions = printer("example.com", "Widget").definitions();
    assert_eq!(definitions[1]["name"], "Created At");
    assert_eq!(definitions[1]["type"], "date");
}

/// Trees of the wrong shape print something, but never panic.
#[test]
fn hostile_trees() {
    for row in crate::resources::ResourceTable::builtin().rows() {
        for hostile in
            [json!(null), json!([]), json!("x"), json!({"metadata": 1, "spec": "x", "status": [1]})]
        {
            row.printer.row(&hostile, NOW);
        }
    }
}
