//! Objects and what is wrong with them, in upstream's words. Objects are defaulted first, as in a write.

use serde_json::{Value, json};

use crate::resources::{Resource, ResourceTable, StrategyContext};

fn row(kind: &str) -> std::sync::Arc<Resource> {
    let table = ResourceTable::builtin();
    table.rows().iter().find(|row| row.kind == kind && !row.is_virtual).unwrap().clone()
}

/// Fills in what the server always has by then.
fn complete(row: &Resource, mut object: Value) -> Value {
    object["kind"] = row.kind.as_str().into();
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = "x".into();
    }
    if row.namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = "default".into();
    }
    object["metadata"]["uid"] = "u".into();
    row.strategy.default(&mut object);
    object
}

fn check_invalid(kind: &str, object: Value, expected: &[&str]) {
    let row = row(kind);
    let mut object = complete(&row, object);
    row.strategy.prepare_for_create(&StrategyContext::default(), &mut object);
    let errors = row.strategy.validate_create(&StrategyContext::default(), &object);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{kind} {object}");
}

fn check_change(kind: &str, subresource: &str, old: Value, change: fn(&mut Value), expected: &[&str]) {
    let row = row(kind);
    let context = StrategyContext { subresource: subresource.to_owned(), ..StrategyContext::default() };
    let mut old = complete(&row, old);
    let status = old.get("status").cloned();
    row.strategy.prepare_for_create(&context, &mut old);
    if let Some(status) = status {
        old["status"] = status;
    }
    let mut new = old.clone();
    change(&mut new);
    let errors = row.strategy.validate_update(&context, &new, &old);
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, expected, "{kind} {new}");
}

/// A pod with one sound container, changed by `change`.
fn pod(change: impl Fn(&mut Value)) -> Value {
    let mut pod = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
    change(&mut pod["spec"]);
    pod
}

/// A pod whose container has more fields.
fn container(fields: Value) -> Value {
    pod(|spec| {
        for (key, value) in fields.as_object().into_iter().flatten() {
            spec["containers"][0][key] = value.clone();
        }
    })
}

#[test]
fn containers() {
    check_invalid("Pod", pod(|_| {}), &[]);
    check_invalid("Pod", json!({"spec": {}}), &["spec.containers: Required value"]);
    check_invalid(
        "Pod",
        json!({"spec": {"containers": [{}]}}),
        &["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
    );
    check_invalid(
        "Pod",
        json!({"spec": {"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": " i"}, {"name": "a.b", "image": "i"}]}}),
        &[
            "spec.containers[1].name: Duplicate value: \"a\"",
            "spec.containers[2].name: Invalid value: \"a.b\": must not contain dots",
            "spec.containers[1].image: Invalid value: \" i\": must not have leading or trailing whitespace",
        ],
    );
    check_invalid(
        "Pod",
        container(json!({"imagePullPolicy": "Sometimes", "terminationMessagePolicy": "Sky"})),
        &[
            "spec.containers[0].terminationMessagePolicy: Unsupported value: \"Sky\": supported values: \"File\", \"FallbackToLogsOnError\"",
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ],
    );
    check_invalid(
        "Pod",
        container(json!({"ports": [
            {"containerPort": 80, "name": "http"}, {"containerPort": 0, "name": "http"},
            {"containerPort": 70000, "protocol": "ICMP"}, {"containerPort": 1, "hostPort": 8}, {"containerPort": 2, "hostPort": 8}]})),
        &[
            "spec.containers[0].ports[1].name: Duplicate value: \"http\"",
            "spec.containers[0].ports[1].containerPort: Required value",
            "spec.containers[0].ports[2].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].ports[2].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            "spec.containers[0].ports[4].hostPort: Duplicate value: \"TCP//8\"",
        ],
    );
}

#[test]
fn environment() {
    check_invalid(
        "Pod",
        container(json!({"env": [
            {"value": "x"}, {"name": "a=b"},
            {"name": "a", "valueFrom": {}},
            {"name": "b", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "c", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}},
            {"name": "d", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}},
            {"name": "e", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
            {"name": "f", "valueFrom": {"secretKeyRef": {"name": "s", "key": ""}, "configMapKeyRef": {"name": "c", "key": "k"}}},
            {"name": "g", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}]})),
        &[
            "spec.containers[0].env[0].name: Required value",
            "spec.containers[0].env[1].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
            "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            "spec.containers[0].env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            "spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Unsupported value: \"metadata.labels\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            "spec.containers[0].env[5].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x",
            "spec.containers[0].env[7].valueFrom.secretKeyRef.key: Required value",
            "spec.containers[0].env[7].valueFrom: Invalid value: \"\": may not have more than one field specified at a time",
            "spec.containers[0].env[8].valueFrom.resourceFieldRef.resource: Unsupported value: \"limits.gpu\": supported values: \"limits.cpu\", \"limits.ephemeral-storage\", \"limits.memory\", \"requests.cpu\", \"requests.ephemeral-storage\", \"requests.memory\"",
        ],
    );
    check_invalid(
        "Pod",
        container(json!({"envFrom": [{"prefix": "p"}, {"configMapRef": {"name": "a"}, "secretRef": {}}]})),
        &[
            "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
            "spec.containers[0].envFrom[1].secretRef.name: Required value",
            "spec.containers[0].envFrom: Invalid value: \"\": may not have more than one field specified at a time",
        ],
    );
}

#[test]
fn volumes() {
    let volume = |volume: Value, expected: &[&str]| {
        check_invalid("Pod", pod(|spec| spec["volumes"] = json!([volume])), expected);
    };
    volume(json!({"name": "v"}), &[]);
    volume(
        json!({"name": "V", "emptyDir": {}, "hostPath": {"path": "/x"}}),
        &[
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            "spec.volumes[0].name: Invalid value: \"V\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ],
    );
    volume(
        json!({"name": "v", "hostPath": {"path": "/a/../b", "type": "Odd"}}),
        &[
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            "spec.volumes[0].hostPath.type: Unsupported value: \"Odd\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
        ],
    );
    volume(
        json!({"name": "v", "secret": {"defaultMode": 512, "items": [{"key": "k", "path": "/a"}, {"path": "..x"}]}}),
        &[
            "spec.volumes[0].secret.secretName: Required value",
            "spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
            "spec.volumes[0].secret.items[0].path: Invalid value: \"/a\": must be a relative path",
            "spec.volumes[0].secret.items[1].key: Required value",
            "spec.volumes[0].secret.items[1].path: Invalid value: \"..x\": must not start with '..'",
        ],
    );
    volume(
        json!({"name": "v", "projected": {"sources": [
            {"configMap": {"name": "a", "items": [{"key": "k", "path": "p"}]}},
            {"secret": {"name": "b", "items": [{"key": "k", "path": "p"}]}},
            {"downwardAPI": {"items": [{"path": "q"}]}, "secret": {"name": "c"}}]}}),
        &[
            "spec.volumes[0].projected: Invalid value: \"b\": conflicting duplicate paths",
            "spec.volumes[0].projected.sources[2].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
            "spec.volumes[0].projected.sources[2]: Forbidden: may not specify more than 1 volume type per source",
        ],
    );
    volume(
        json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 10}}]}}),
        &[
            "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes",
            "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set",
        ],
    );
    check_invalid(
        "Pod",
        pod(|spec| {
            spec["volumes"] = json!([{"name": "v"}, {"name": "v"}]);
            spec["containers"][0]["volumeMounts"] = json!([
                {"name": "v", "mountPath": "/a"}, {"name": "w", "mountPath": "/a", "subPath": "/x"},
                {"name": "v", "mountPath": "", "mountPropagation": "Bidirectional"}]);
        }),
        &[
            "spec.volumes[1].name: Duplicate value: \"v\"",
            "spec.containers[0].volumeMounts[1].name: Not found: \"w\"",
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
            "spec.containers[0].volumeMounts.subPath: Invalid value: \"/x\": must be a relative path",
            "spec.containers[0].volumeMounts[2].mountPath: Required value",
            "spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers",
        ],
    );
}

#[test]
fn resources_and_probes() {
    check_invalid(
        "Pod",
        container(
            json!({"resources": {"requests": {"cpu": "2", "memory": "-1", "gpu": "1"}, "limits": {"cpu": "1", "a.b/c": "1500m"}}}),
        ),
        &[
            "spec.containers[0].resources.limits[a.b/c]: Invalid value: \"1500m\": must be an integer",
            "spec.containers[0].resources.requests[a.b/c]: Invalid value: \"1500m\": must be an integer",
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
            "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
            "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
        ],
    );
    check_invalid(
        "Pod",
        container(json!({
            "livenessProbe": {"exec": {"command": ["a"]}, "httpGet": {"port": 1}, "successThreshold": 2},
            "readinessProbe": {"httpGet": {"port": "UP", "scheme": "FTP"}, "periodSeconds": -1, "terminationGracePeriodSeconds": 3},
            "startupProbe": {},
            "lifecycle": {"preStop": {"sleep": {"seconds": 31}}, "postStart": {"exec": {}}},
        })),
        &[
            "spec.containers[0].lifecycle.postStart.exec.command: Required value",
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
            "spec.containers[0].livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type",
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: \"UP\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
            "spec.containers[0].readinessProbe.httpGet.port: Invalid value: \"UP\": must contain at least one letter (a-z)",
            "spec.containers[0].readinessProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
            "spec.containers[0].readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 3: must not be set for readinessProbes",
            "spec.containers[0].startupProbe: Required value: must specify a handler type",
        ],
    );
}

#[test]
fn other_containers() {
    check_invalid(
        "Pod",
        pod(|spec| {
            spec["initContainers"] = json!([
                {"name": "c", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}},
                {"name": "s", "image": "i", "restartPolicy": "Always", "readinessProbe": {"exec": {"command": ["a"]}}},
                {"name": "t", "image": "i", "restartPolicy": "Maybe"}]);
            spec["ephemeralContainers"] = json!([{"name": "e", "image": "i", "ports": [{"containerPort": 1}], "targetContainerName": "z"}]);
        }),
        &[
            "spec.initContainers[0].name: Duplicate value: \"c\"",
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            "spec.initContainers[2].restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"z\"",
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers: Forbidden: cannot be set on create",
        ],
    );
}

#[test]
fn pod_fields() {
    let check = |fields: Value, expected: &[&str]| {
        check_invalid(
            "Pod",
            pod(|spec| {
                for (key, value) in fields.as_object().into_iter().flatten() {
                    spec[key] = value.clone();
                }
            }),
            expected,
        );
    };
    check(
        json!({"restartPolicy": "Perhaps", "dnsPolicy": "Mine"}),
        &[
            "spec.restartPolicy: Unsupported value: \"Perhaps\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "spec.dnsPolicy: Unsupported value: \"Mine\": supported values: \"ClusterFirstWithHostNet\", \"ClusterFirst\", \"Default\", \"None\"",
        ],
    );
    check(
        json!({"dnsPolicy": "None"}),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
    check(
        json!({"activeDeadlineSeconds": 0, "hostname": "A", "nodeSelector": {"a b": "c"}}),
        &[
            "spec.nodeSelector: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            "spec.hostname: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ],
    );
    check(
        json!({"tolerations": [{"operator": "Equal"}, {"key": "k", "operator": "Exists", "value": "v"}, {"key": "k", "tolerationSeconds": 1, "effect": "Odd"}]}),
        &[
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            "spec.tolerations[1].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'",
            "spec.tolerations[2].effect: Invalid value: \"Odd\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            "spec.tolerations[2].effect: Unsupported value: \"Odd\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ],
    );
    check(
        json!({"affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}},
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {"topologyKey": "k"}}]}}}),
        &[
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
            "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
        ],
    );
    check(
        json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "x"}]}),
        &[
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"x\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
        ],
    );
    check(
        json!({"securityContext": {"runAsUser": -1, "seccompProfile": {"type": "Localhost"}, "sysctls": [{"name": "Bad"}]}, "hostUsers": false, "hostPID": true}),
        &[
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            "spec.securityContext.sysctls[0].name: Invalid value: \"Bad\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
            "spec.HostPID: Forbidden: when `hostUsers` is false",
        ],
    );
    check_invalid(
        "Pod",
        pod(|spec| {
            spec["hostNetwork"] = true.into();
            spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 81}]);
            spec["containers"][0]["securityContext"] =
                json!({"privileged": true, "allowPrivilegeEscalation": false});
        }),
        &[
            "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
        ],
    );
}

#[test]
fn pod_changes() {
    const FROZEN: &str = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    let old = || {
        pod(|spec| {
            spec["nodeName"] = "n".into();
            spec["activeDeadlineSeconds"] = 10.into();
            spec["tolerations"] = json!([{"key": "a", "operator": "Exists", "effect": "NoExecute"}]);
        })
    };
    let check = |change: fn(&mut Value), expected: &[&str]| check_change("Pod", "", old(), change, expected);
    check(|_| {}, &[]);
    check(|p| p["spec"]["containers"][0]["image"] = "j".into(), &[]);
    check(|p| p["metadata"]["labels"] = json!({"a": "b"}), &[]);
    check(|p| p["spec"]["activeDeadlineSeconds"] = 5.into(), &[]);
    check(|p| p["spec"]["tolerations"][0]["tolerationSeconds"] = 5.into(), &[]);
    check(|p| p["spec"]["nodeName"] = "m".into(), &[FROZEN]);
    check(|p| p["spec"]["containers"][0]["command"] = json!(["x"]), &[FROZEN]);
    check(
        |p| p["spec"]["activeDeadlineSeconds"] = 20.into(),
        &["spec.activeDeadlineSeconds: Invalid value: 20: must be less than or equal to previous value"],
    );
    check(
        |p| p["spec"]["tolerations"] = json!([]),
        &[
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
        ],
    );
    check(
        |p| {
            let extra = json!({"name": "d", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"});
            p["spec"]["containers"].as_array_mut().unwrap().push(extra);
        },
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    let gated = || pod(|spec| spec["schedulingGates"] = json!([{"name": "g"}]));
    check_change("Pod", "", gated(), |p| p["spec"]["nodeSelector"] = json!({"a": "b"}), &[]);
    check_change("Pod", "", gated(), |p| p["spec"]["schedulingGates"] = json!([]), &[]);
    check_change(
        "Pod",
        "",
        gated(),
        |p| p["spec"]["schedulingGates"][0]["name"] = "h".into(),
        &[
            "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'h'",
        ],
    );
    let debugged = || pod(|spec| spec["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]));
    check_change("Pod", "ephemeralcontainers", debugged(), |_| {}, &[]);
    check_change(
        "Pod",
        "ephemeralcontainers",
        debugged(),
        |p| p["spec"]["ephemeralContainers"] = json!([]),
        &["spec.ephemeralContainers: Forbidden: existing ephemeral containers \"e\" may not be removed\n"],
    );
}

#[test]
fn resizes() {
    let sized = || {
        pod(|spec| {
            let resources =
                json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}});
            spec["containers"][0]["resources"] = resources.clone();
            spec["initContainers"] = json!([{
                "name": "i", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
                "resources": resources,
            }]);
        })
    };
    let check = |change: fn(&mut Value), expected: &[&str]| {
        check_change("Pod", "resize", sized(), change, expected);
    };
    check(|_| {}, &[]);
    check(|p| p["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "1500m".into(), &[]);
    check(|p| p["spec"]["initContainers"][0]["resources"]["limits"]["memory"] = "1Gi".into(), &[]);
    check(
        |p| p["spec"]["containers"][0]["resources"]["limits"] = json!({"cpu": "2"}),
        &["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"],
    );
    check(
        |p| {
            for list in ["containers", "initContainers"] {
                p["spec"][list][0]["resources"]["limits"] = json!({"cpu": "1", "memory": "1Gi"});
            }
        },
        &["spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"],
    );
    check(
        |p| p["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = "1Gi".into(),
        &["spec: Forbidden: only cpu and memory resources are mutable"],
    );
    check(
        |p| {
            let policy = json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
            p["spec"]["containers"][0]["resizePolicy"] = policy;
        },
        &["spec: Forbidden: only cpu and memory resources are mutable"],
    );
    check(
        |p| p["spec"]["containers"][0]["name"] = "z".into(),
        &["spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize"],
    );
    check(
        |p| p["spec"]["initContainers"] = json!([]),
        &["spec.initContainers: Forbidden: initContainers may not be added or removed on resize"],
    );
    check_change(
        "Pod",
        "resize",
        {
            let mut running = sized();
            running["status"] = json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]});
            running
        },
        |_| {},
        &["spec: Forbidden: Pod running on node without support for resize"],
    );
    let mirror = {
        let mut pod = sized();
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        pod
    };
    check_change("Pod", "resize", mirror, |_| {}, &[": Forbidden: static pods cannot be resized"]);
}

/// A workload's spec.
fn workload(change: impl Fn(&mut Value)) -> Value {
    let mut object = json!({"spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    change(&mut object["spec"]);
    object
}

#[test]
fn workloads() {
    for kind in ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"] {
        check_invalid(kind, workload(|_| {}), &[]);
        check_invalid(
            kind,
            workload(|spec| spec["template"]["metadata"]["labels"] = json!({"a": "c"})),
            &[
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
            ],
        );
        check_invalid(
            kind,
            workload(|spec| spec["selector"] = Value::Null),
            &["spec.selector: Required value"],
        );
    }
    for kind in ["Deployment", "ReplicaSet", "DaemonSet"] {
        check_change(kind, "", workload(|_| {}), |o| o["metadata"]["labels"] = json!({"x": "y"}), &[]);
        check_change(
            kind,
            "",
            workload(|_| {}),
            |o| {
                o["spec"]["selector"]["matchLabels"] = json!({"z": "b"});
                o["spec"]["template"]["metadata"]["labels"] = json!({"z": "b"});
            },
            &["spec.selector: Invalid value: {\"matchLabels\":{\"z\":\"b\"}}: field is immutable"],
        );
    }
    check_invalid(
        "Deployment",
        workload(|spec| {
            spec["replicas"] = (-1).into();
            spec["template"]["spec"]["restartPolicy"] = "Never".into();
            spec["strategy"] =
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}});
            spec["minReadySeconds"] = 600.into();
        }),
        &[
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
        ],
    );
    check_invalid(
        "Deployment",
        workload(|spec| spec["strategy"] = json!({"type": "Recreate", "rollingUpdate": {}})),
        &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    check_invalid(
        "DaemonSet",
        workload(|spec| {
            spec["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": 1, "maxSurge": "150%"}})
        }),
        &[
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"150%\": must not be greater than 100%",
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"150%\": may not be set when maxUnavailable is non-zero",
        ],
    );
    let with_claim = |spec: &mut Value| {
        spec["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}}]);
        spec["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/d"}]);
    };
    check_invalid("StatefulSet", workload(with_claim), &[]);
    check_change(
        "StatefulSet",
        "",
        workload(|_| {}),
        |o| o["spec"]["serviceName"] = "s".into(),
        &[
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ],
    );
    check_invalid(
        "ReplicationController",
        json!({"spec": {}}),
        &["spec.selector: Required value", "spec.template: Required value"],
    );
}

#[test]
fn batch() {
    let job = |change: fn(&mut Value)| {
        let mut job = json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        change(&mut job["spec"]);
        job
    };
    check_invalid("Job", job(|_| {}), &[]);
    check_invalid(
        "Job",
        job(|spec| {
            spec["template"]["spec"]["restartPolicy"] = "Always".into();
            spec["parallelism"] = (-1).into();
        }),
        &[
            "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ],
    );
    check_change("Job", "", job(|_| {}), |o| o["spec"]["parallelism"] = 3.into(), &[]);
    check_change(
        "Job",
        "",
        job(|_| {}),
        |o| o["spec"]["completions"] = 3.into(),
        &["spec.completions: Invalid value: 3: field is immutable"],
    );
    check_invalid(
        "CronJob",
        json!({"spec": {"schedule": "* *", "timeZone": "../x", "concurrencyPolicy": "Odd", "jobTemplate": job(|_| {})}}),
        &[
            "spec.schedule: Invalid value: \"* *\": expected exactly 5 fields, found 2: [* *]",
            "spec.timeZone: Invalid value: \"../x\": unknown time zone ../x",
            "spec.concurrencyPolicy: Unsupported value: \"Odd\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
        ],
    );
}

#[test]
fn services() {
    let check = |spec: Value, expected: &[&str]| check_invalid("Service", json!({"spec": spec}), expected);
    check(json!({"ports": [{"port": 80}], "selector": {"a": "b"}}), &[]);
    check(json!({"clusterIP": "None"}), &[]);
    check(json!({}), &["spec.ports: Required value"]);
    check(
        json!({"type": "Odd", "ports": [{"port": 80}, {"port": 80, "name": "a"}, {"port": 0, "name": "a", "targetPort": "x--y"}]}),
        &[
            "spec.ports[0].name: Required value",
            "spec.ports[2].name: Duplicate value: \"a\"",
            "spec.ports[2].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[2].targetPort: Invalid value: \"x--y\": must not contain consecutive hyphens",
            "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ],
    );
    check(
        json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}),
        &["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
    );
    check(
        json!({"clusterIP": "1.2.3", "ports": [{"port": 1, "nodePort": 30000}], "externalIPs": ["127.0.0.1"], "sessionAffinity": "Odd"}),
        &[
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            "spec.sessionAffinity: Unsupported value: \"Odd\": supported values: \"ClientIP\", \"None\"",
            "spec.clusterIPs[0]: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ],
    );
    check(json!({"type": "ExternalName"}), &["spec.externalName: Required value"]);
    check_change(
        "Service",
        "",
        json!({"spec": {"ports": [{"port": 1}], "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"]}}),
        |o| {
            o["spec"]["clusterIP"] = "10.96.0.2".into();
            o["spec"]["clusterIPs"] = json!(["10.96.0.2"]);
        },
        &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"],
    );
}

#[test]
fn config() {
    check_invalid(
        "ConfigMap",
        json!({"data": {"a/b": "", "c": ""}, "binaryData": {"c": ""}}),
        &[
            "data[a/b]: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
            "data[c]: Invalid value: \"c\": duplicate of key present in binaryData",
        ],
    );
    let big = "x".repeat(1024 * 1024 + 1);
    check_invalid(
        "ConfigMap",
        json!({"data": {"a": big}}),
        &[": Too long: may not be more than 1048576 bytes"],
    );
    check_invalid(
        "Secret",
        json!({"stringData": {"a": big}}),
        &["data: Too long: may not be more than 1048576 bytes"],
    );
    check_invalid(
        "Secret",
        json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
        &["data[tls.key]: Required value"],
    );
    check_invalid(
        "Secret",
        json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "[]"}}),
        &["data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": must be a JSON object"],
    );
    check_change(
        "Secret",
        "",
        json!({"immutable": true, "data": {"a": "eA=="}}),
        |o| {
            o["type"] = "x".into();
            o["data"] = json!({});
        },
        &[
            "type: Invalid value: \"x\": field is immutable",
            "data: Forbidden: field is immutable when `immutable` is set",
        ],
    );
}

#[test]
fn endpoints() {
    check_invalid(
        "Endpoints",
        json!({"subsets": [{"ports": [{"port": 80}]}, {"addresses": [{"ip": "169.254.1.1"}], "ports": [{"port": 0}, {"port": 1, "name": "a"}]}]}),
        &[
            "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
            "subsets[1].addresses[0].ip: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            "subsets[1].ports[0].name: Required value",
            "subsets[1].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ],
    );
    check_invalid(
        "EndpointSlice",
        json!({"addressType": "IPv4", "endpoints": [{"addresses": []}, {"addresses": ["fd00::1"]}], "ports": [{"name": "a"}, {"name": "a"}]}),
        &[
            "ports[1].name: Duplicate value: \"a\"",
            "endpoints[0].addresses: Required value: must contain at least 1 address",
            "endpoints[1].addresses: Invalid value: \"fd00::1\": must be an IPv4 address",
        ],
    );
    check_change(
        "EndpointSlice",
        "",
        json!({"addressType": "IPv4"}),
        |o| o["addressType"] = "IPv6".into(),
        &["addressType: Invalid value: \"IPv6\": field is immutable"],
    );
}

#[test]
fn nodes() {
    check_invalid(
        "Node",
        json!({"spec": {"podCIDRs": ["10.0.0.1/24"], "taints": [{"key": "a", "effect": "Odd"}]}, "status": {"capacity": {"pods": "0.5"}}}),
        &[
            "metadata.taints[0].effect: Unsupported value: \"Odd\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            "status.capacity.pods: Invalid value: \"500m\": must be an integer",
            "status.allocatable.pods: Invalid value: \"500m\": must be an integer",
            "spec.podCIDRs[0]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length",
        ],
    );
    let old = || json!({"spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "providerID": "a"}});
    check_change(
        "Node",
        "",
        old(),
        |o| o["spec"] = json!({"podCIDRs": ["10.0.1.0/24"], "providerID": "b"}),
        &[
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
            "spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid",
        ],
    );
    check_change("Node", "", json!({}), |o| o["spec"] = json!({"podCIDRs": ["10.0.1.0/24"]}), &[]);
}

#[test]
fn access() {
    check_invalid(
        "Role",
        json!({"rules": [{}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        &[
            "rules[0].verbs: Required value: verbs must contain at least one value",
            "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            "rules[0].resources: Required value: resource rules must supply at least one resource",
            "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
        ],
    );
    check_invalid(
        "ClusterRoleBinding",
        json!({"roleRef": {"kind": "Role", "name": ""}, "subjects": [{"kind": "ServiceAccount", "name": "a"}, {"kind": "Robot", "name": "r"}]}),
        &[
            "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
            "roleRef.name: Required value",
            "subjects[0].namespace: Required value",
            "subjects[1].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
        ],
    );
    check_change(
        "RoleBinding",
        "",
        json!({"roleRef": {"kind": "Role", "name": "a"}}),
        |o| o["roleRef"]["name"] = "b".into(),
        &[
            "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"b\"}: cannot change roleRef",
        ],
    );
}

#[test]
fn certificates() {
    check_invalid(
        "CertificateSigningRequest",
        json!({"spec": {"request": "eA==", "signerName": "plain", "usages": ["flying", "flying"], "expirationSeconds": 1}}),
        &[
            "spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST",
            &format!("spec.usages[0]: Unsupported value: \"flying\": supported values: {}", usages()),
            &format!("spec.usages[1]: Unsupported value: \"flying\": supported values: {}", usages()),
            "spec.usages[1]: Duplicate value: \"flying\"",
            "spec.signerName: Invalid value: \"plain\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            "spec.expirationSeconds: Invalid value: 1: may not specify a duration less than 600 seconds (10 minutes)",
        ],
    );
    let approved = || json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    check_change(
        "CertificateSigningRequest",
        "approval",
        approved(),
        |o| {
            o["status"]["conditions"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "Denied", "status": "True"}))
        },
        &[
            "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
        ],
    );
    check_change(
        "CertificateSigningRequest",
        "",
        approved(),
        |o| o["status"] = json!({"certificate": "eA=="}),
        &[
            "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\"",
            "status.certificate: Forbidden: updates may not set certificate content",
        ],
    );
}

fn usages() -> String {
    let all = "any|cert sign|client auth|code signing|content commitment|crl sign|data encipherment|decipher only|digital signature|email protection|encipher only|ipsec end system|ipsec tunnel|ipsec user|key agreement|key encipherment|microsoft sgc|netscape sgc|ocsp signing|s/mime|server auth|signing|timestamping";
    all.split('|').map(|usage| format!("{usage:?}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn small_kinds() {
    check_invalid(
        "Lease",
        json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}),
        &[
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
            "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
        ],
    );
    check_invalid(
        "Event",
        json!({"involvedObject": {"namespace": "other"}}),
        &["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"],
    );
    check_invalid(
        "Event",
        json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reportingComponent": "a.b/c", "reportingInstance": "i", "reason": "R"}),
        &["action: Required value"],
    );
    check_invalid(
        "PriorityClass",
        json!({"value": 1_000_000_001}),
        &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
    );
    check_invalid(
        "PriorityClass",
        json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}),
        &[],
    );
    check_change(
        "PriorityClass",
        "",
        json!({"value": 1}),
        |o| o["value"] = 2.into(),
        &["value: Forbidden: may not be changed in an update."],
    );
    check_change(
        "Namespace",
        "status",
        json!({}),
        |o| o["status"]["phase"] = "Terminating".into(),
        &[
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty",
        ],
    );
}

#[test]
fn ingresses_and_policies() {
    let nothing = "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified";
    check_invalid("Ingress", json!({"spec": {}}), &[nothing]);
    check_invalid(
        "Ingress",
        json!({"spec": {"rules": [{"host": "1.2.3.4", "http": {"paths": [
            {"pathType": "Prefix", "path": "a", "backend": {"service": {"name": "s", "port": {}}}}, {}]}}]}}),
        &[
            "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
            "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
            "spec.rules[0].http.paths[1].pathType: Required value: pathType must be specified",
        ],
    );
    check_invalid(
        "NetworkPolicy",
        json!({"spec": {"podSelector": {}, "ingress": [{"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}, "podSelector": {}}],
            "ports": [{"port": 80, "endPort": 79}, {"endPort": 1}]}], "policyTypes": ["Sideways"]}}),
        &[
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
            "spec.ingress[0].ports[1].endPort: Invalid value: 1: may not be specified when `port` is not specified",
            "spec.ingress[0].from[0]: Required value: must specify a peer",
            "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
            "spec.policyTypes[0]: Unsupported value: \"Sideways\": supported values: \"Ingress\", \"Egress\"",
        ],
    );
}

/// Trees of any shape are complained of, or not, but never panic.
#[test]
fn hostile_trees() {
    let context = StrategyContext::default();
    for row in ResourceTable::builtin().rows() {
        for hostile in [
            json!(null),
            json!([]),
            json!({"spec": "x"}),
            json!({"spec": {"template": [], "containers": {}}}),
        ] {
            row.strategy.validate_create(&context, &hostile);
            row.strategy.validate_update(&context, &hostile, &hostile);
        }
    }
}
