//! Admission policies: a server with all of its admission.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/whole.rs"]
mod whole;

use serde_json::{Value, json};
use whole::Whole;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const LIMITS: &str = "/apis/example.com/v1/limits";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn rule(group: &str, resource: &str) -> Value {
    json!({"operations": ["CREATE", "UPDATE"], "apiGroups": [group], "apiVersions": ["v1"], "resources": [resource]})
}

fn deployment(name: &str, replicas: i64) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn limit(name: &str, max: i64) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Limit", "metadata": {"name": name}, "max": max})
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

/// Makes a policy or binding; it counts from the next request on.
async fn make(server: &Whole, plural: &str, name: &str, spec: Value) {
    let path = format!("{GROUP}/{plural}");
    let object = json!({"metadata": {"name": name}, "spec": spec});
    let (code, headers, made) = server.send("POST", &path, object).await;
    assert_eq!((code, headers.get("warning")), (201, None), "{made}");
    // A read of the newest version waits for the cache.
    assert_eq!(server.send("GET", &format!("{path}/{name}"), Value::Null).await.0, 200);
}

async fn validate(server: &Whole, name: &str, policy: Value, mut binding: Value) {
    make(server, "validatingadmissionpolicies", name, policy).await;
    binding["policyName"] = name.into();
    if binding["validationActions"].is_null() {
        binding["validationActions"] = json!(["Deny"]);
    }
    make(server, "validatingadmissionpolicybindings", &format!("{name}-binding"), binding).await;
}

fn constraints(group: &str, resource: &str) -> Value {
    json!({"resourceRules": [rule(group, resource)]})
}

async fn refused(server: &Whole, path: &str, object: Value, code: u16, why: &str) -> Value {
    let (got, _, status) = server.send("POST", path, object).await;
    assert_eq!((got, status["message"].as_str().unwrap_or_default()), (code, why), "{status}");
    status
}

/// Defines a custom resource of the cluster, `limits.example.com`.
async fn define_limits(server: &Whole) {
    let schema = json!({"type": "object", "properties": {"max": {"type": "integer"}}});
    let definition = json!({"metadata": {"name": "limits.example.com"}, "spec": {"group": "example.com",
        "names": {"kind": "Limit", "plural": "limits"}, "scope": "Cluster",
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    server.create(DEFINITIONS, definition).await;
    let served = async {
        while server.send("GET", LIMITS, Value::Null).await.0 != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), served).await.unwrap();
}

#[tokio::test]
async fn deployments_are_validated() {
    let server = Whole::new().await;
    let policy = json!({
        "matchConstraints": constraints("apps", "deployments"),
        "variables": [
            {"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "odd", "expression": "variables.replicas % 2 == 1"},
        ],
        "validations": [
            {"expression": "variables.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"},
            {"expression": "variables.odd", "reason": "Forbidden", "message": "an odd number"},
            {"expression": "namespaceObject.metadata.name == 'default'"},
        ],
    });
    validate(&server, "p", policy, json!({})).await;
    let denied = "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p-binding' denied request:";
    let status = refused(
        &server,
        DEPLOYMENTS,
        deployment("d", 1),
        422,
        &format!("{denied} failed expression: variables.replicas > 1"),
    )
    .await;
    assert_eq!((&status["reason"], &status["details"]["kind"]), (&json!("Invalid"), &json!("deployments")));
    assert_eq!(
        status["details"]["causes"][0]["message"],
        "ValidatingAdmissionPolicy 'p' with binding 'p-binding' denied request: failed expression: variables.replicas > 1"
    );
    refused(&server, DEPLOYMENTS, deployment("d", 2), 403, &format!("{denied} an odd number")).await;
    server.create(DEPLOYMENTS, deployment("d", 3)).await;
    // A change is a write too, and so is its dry run; a delete is not asked for.
    let path = format!("{DEPLOYMENTS}/d");
    assert_eq!(server.send("PATCH", &path, json!({"spec": {"replicas": 4}})).await.0, 403);
    assert_eq!(
        server.send("PATCH", &format!("{path}?dryRun=All"), json!({"spec": {"replicas": 4}})).await.0,
        403
    );
    assert_eq!(server.send("PATCH", &path, json!({"spec": {"replicas": 5}})).await.0, 200);
    assert_eq!(server.send("DELETE", &path, Value::Null).await.0, 200);
    // Neither are policies themselves, nor does one count whose binding has gone.
    let binding = format!("{GROUP}/validatingadmissionpolicybindings/p-binding");
    assert_eq!(server.send("DELETE", &binding, Value::Null).await.0, 200);
    let gone = server.send("GET", &format!("{GROUP}/validatingadmissionpolicybindings"), Value::Null).await.2;
    assert_eq!(gone["items"], json!([]));
    server.create(DEPLOYMENTS, deployment("e", 1)).await;
}

#[tokio::test]
async fn bindings_choose_requests_and_actions() {
    let server = Whole::new().await;
    server
        .create("/api/v1/namespaces", json!({"metadata": {"name": "strict", "labels": {"level": "strict"}}}))
        .await;
    let policy = json!({
        "matchConstraints": constraints("", "configmaps"),
        "matchConditions": [{"name": "not-skipped", "expression": "object.metadata.name != 'skipped'"}],
        "validations": [{"expression": "has(object.data) && has(object.data.owner)", "message": "no owner"}],
        "auditAnnotations": [{"key": "name", "valueExpression": "object.metadata.name"}],
    });
    let binding = json!({"validationActions": ["Warn", "Audit"]});
    validate(&server, "p", policy, binding).await;
    let strict = json!({"policyName": "p", "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": {"matchLabels": {"level": "strict"}},
            "excludeResourceRules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["*"],
                "resources": ["configmaps"], "resourceNames": ["free"]}]}});
    make(&server, "validatingadmissionpolicybindings", "strict", strict).await;
    let (code, headers, _) = server.send("POST", CONFIG_MAPS, config_map("a", json!({}))).await;
    let warning =
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p-binding': no owner\"";
    assert_eq!((code, headers["warning"].to_str().unwrap()), (201, warning));
    let (code, headers, _) = server.send("POST", CONFIG_MAPS, config_map("skipped", json!({}))).await;
    assert_eq!((code, headers.get("warning")), (201, None));
    let path = "/api/v1/namespaces/strict/configmaps";
    let why = "configmaps \"a\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'strict' denied request: no owner";
    refused(&server, path, config_map("a", json!({})), 422, why).await;
    server.create(path, config_map("free", json!({}))).await;
    server.create(path, config_map("b", json!({"owner": "me"}))).await;
}

#[tokio::test]
async fn parameters_are_objects_of_any_kind() {
    let server = Whole::new().await;
    define_limits(&server).await;
    let policy = |kind: Value, expression: &str| {
        json!({"matchConstraints": constraints("apps", "deployments"), "paramKind": kind,
            "validations": [{"expression": expression, "messageExpression": "'bound by ' + params.metadata.name"}]})
    };
    validate(
        &server,
        "custom",
        policy(
            json!({"apiVersion": "example.com/v1", "kind": "Limit"}),
            "object.spec.replicas <= params.max",
        ),
        json!({"paramRef": {"selector": {}, "parameterNotFoundAction": "Deny"}}),
    )
    .await;
    let refusal = |name: &str, why: &str| {
        format!(
            "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy '{name}' with binding '{name}-binding' denied request: {why}"
        )
    };
    let none =
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    refused(&server, DEPLOYMENTS, deployment("d", 1), 422, &refusal("custom", none)).await;
    server.create(LIMITS, limit("high", 10)).await;
    server.create(LIMITS, limit("low", 3)).await;
    assert_eq!(server.send("GET", LIMITS, Value::Null).await.2["items"].as_array().unwrap().len(), 2);
    refused(&server, DEPLOYMENTS, deployment("d", 5), 422, &refusal("custom", "bound by low")).await;
    server.create(DEPLOYMENTS, deployment("c", 3)).await;
    // A parameter in the object's own namespace, which may be missing.
    validate(
        &server,
        "own",
        policy(
            json!({"apiVersion": "v1", "kind": "ConfigMap"}),
            "object.spec.replicas >= int(params.data.min)",
        ),
        json!({"paramRef": {"name": "bounds", "parameterNotFoundAction": "Allow"}}),
    )
    .await;
    server.create(DEPLOYMENTS, deployment("e", 1)).await;
    server.create(CONFIG_MAPS, config_map("bounds", json!({"min": "2"}))).await;
    assert_eq!(server.send("GET", CONFIG_MAPS, Value::Null).await.0, 200);
    refused(&server, DEPLOYMENTS, deployment("d", 1), 422, &refusal("own", "bound by bounds")).await;
    server.create(DEPLOYMENTS, deployment("d", 2)).await;
}

#[tokio::test]
async fn what_can_not_be_run_is_refused_at_once() {
    let server = Whole::new().await;
    let policies = format!("{GROUP}/validatingadmissionpolicies");
    let errors = |spec: Value| {
        let mut object = json!({"metadata": {"name": "p"}, "spec": spec});
        object["spec"]["matchConstraints"] = constraints("", "configmaps");
        let (server, policies) = (&server, &policies);
        async move {
            let (code, _, status) = server.send("POST", policies, object).await;
            assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{status}");
            let causes = status["details"]["causes"].as_array().unwrap().clone();
            causes.into_iter().map(|cause| cause["field"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    let wrong = errors(json!({
        "matchConditions": [{"name": "c", "expression": "variables.x"}],
        "variables": [{"name": "x", "expression": "variables.y"}, {"name": "y", "expression": "1 +"}],
        "validations": [{"expression": "params.a == 1", "messageExpression": "1"}, {"expression": "'no bool'"}],
        "auditAnnotations": [{"key": "k", "valueExpression": "true"}],
    }))
    .await;
    assert_eq!(
        wrong,
        [
            "spec.matchConditions[0].expression",
            "spec.variables[0].expression",
            "spec.variables[1].expression",
            "spec.validations[0].expression",
            "spec.validations[0].messageExpression",
            "spec.validations[1].expression",
            "spec.auditAnnotations[0].valueExpression",
        ]
    );
    let asks = "authorizer.requestResource.check('get').allowed()";
    assert!(!errors(json!({"validations": [{"expression": asks}]})).await.is_empty());
    assert!(!errors(json!({"validations": [{"expression": "Object{spec: 1} == null"}]})).await.is_empty());
}

#[tokio::test]
async fn failures_count_as_the_policy_says() {
    let server = Whole::new().await;
    let policy = |policy: &str| {
        json!({"matchConstraints": constraints("", "configmaps"), "failurePolicy": policy,
            "validations": [{"expression": "object.data.none == 'x'"}]})
    };
    validate(&server, "open", policy("Ignore"), json!({})).await;
    server.create(CONFIG_MAPS, config_map("a", json!({"k": "v"}))).await;
    validate(&server, "closed", policy("Fail"), json!({})).await;
    let why = "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'closed' with binding 'closed-binding' denied request: expression 'object.data.none == 'x'' resulted in error: No such key: none";
    refused(&server, CONFIG_MAPS, config_map("b", json!({"k": "v"})), 422, why).await;
    // What is not stored is validated too.
    let tokens = json!({"matchConstraints": {"resourceRules": [rule("", "serviceaccounts/token")]},
        "validations": [{"expression": "object.spec.expirationSeconds <= 600", "message": "too long"}]});
    validate(&server, "tokens", tokens, json!({})).await;
    let token = |seconds: u32| {
        json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "spec": {"audiences": [], "expirationSeconds": seconds}})
    };
    let account = json!({"metadata": {"name": "s"}});
    server.create("/api/v1/namespaces/default/serviceaccounts", account).await;
    let path = "/api/v1/namespaces/default/serviceaccounts/s/token";
    assert_eq!(server.send("GET", "/api/v1/namespaces/default/serviceaccounts/s", Value::Null).await.0, 200);
    server.create(path, token(600)).await;
    let (code, _, status) = server.send("POST", path, token(3600)).await;
    assert!(status["message"].as_str().unwrap().ends_with("denied request: too long"), "{status}");
    assert_eq!(code, 422);
}

async fn mutate(server: &Whole, name: &str, mut policy: Value, mut binding: Value) {
    if policy["reinvocationPolicy"].is_null() {
        policy["reinvocationPolicy"] = "Never".into();
    }
    make(server, "mutatingadmissionpolicies", name, policy).await;
    binding["policyName"] = name.into();
    make(server, "mutatingadmissionpolicybindings", &format!("{name}-binding"), binding).await;
}

fn configuration(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

#[tokio::test]
async fn deployments_are_changed() {
    let server = Whole::new().await;
    let policy = json!({
        "matchConstraints": constraints("apps", "deployments"),
        "matchConditions": [{"name": "few", "expression": "object.spec.replicas < 3"}],
        "variables": [{"name": "wanted", "expression": "object.spec.replicas + 2"}],
        "mutations": [
            configuration("Object{metadata: Object.metadata{annotations: {\"mutated-by\": \"admission-policy\"}}}"),
            configuration("Object{spec: Object.spec{replicas: variables.wanted, template: Object.spec.template{spec: \
                Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'side', image: 's'}]}}}}"),
            patch("[JSONPatch{op: 'add', path: '/metadata/annotations/' + jsonpatch.escapeKey('a/b'), value: namespaceObject.metadata.name}]"),
            patch("[JSONPatch{op: 'test', path: '/spec/replicas', value: 99}, JSONPatch{op: 'remove', path: '/metadata/annotations'}]"),
        ],
    });
    mutate(&server, "m", policy, json!({})).await;
    let made = server.create(DEPLOYMENTS, deployment("d", 1)).await;
    assert_eq!(
        made["metadata"]["annotations"],
        json!({"mutated-by": "admission-policy", "a/b": "default"}),
        "{made}"
    );
    assert_eq!(made["spec"]["replicas"], 3);
    let containers = made["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let mut names: Vec<&str> = containers.iter().map(|c| c["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["c", "side"]);
    // What a policy adds gets its defaults, but no owner.
    assert!(containers.iter().all(|c| c["imagePullPolicy"].is_string()), "{containers:?}");
    assert!(!made["metadata"]["managedFields"].to_string().contains("side"), "{made}");
    let kept = server.create(DEPLOYMENTS, deployment("e", 4)).await;
    assert_eq!((&kept["metadata"]["annotations"], &kept["spec"]["replicas"]), (&Value::Null, &json!(4)));
}

#[tokio::test]
async fn policies_run_again_after_a_change() {
    let server = Whole::new().await;
    let policy = |mutation: Value, again: &str| json!({"matchConstraints": constraints("", "configmaps"), "mutations": [mutation], "reinvocationPolicy": again});
    let count = "Object{data: {'seen': string(size(object.data))}}";
    mutate(&server, "a", policy(configuration(count), "IfNeeded"), json!({})).await;
    let once = "Object{data: {'once': string(size(object.data))}}";
    mutate(&server, "b", policy(configuration(once), "Never"), json!({})).await;
    let made = server.create(CONFIG_MAPS, config_map("x", json!({"k": "v"}))).await;
    assert_eq!(made["data"], json!({"k": "v", "seen": "3", "once": "2"}));
}

#[tokio::test]
async fn custom_resources_are_changed() {
    let server = Whole::new().await;
    define_limits(&server).await;
    let policy = json!({"matchConstraints": constraints("example.com", "limits"),
        "mutations": [configuration("object.max > 5 ? Object{max: 5} : Object{}")]});
    mutate(&server, "m", policy, json!({})).await;
    assert_eq!(server.create(LIMITS, limit("high", 10)).await["max"], 5);
    assert_eq!(server.create(LIMITS, limit("low", 3)).await["max"], 3);
    let path = format!("{LIMITS}/low");
    assert_eq!(server.send("PATCH", &path, json!({"max": 7})).await.2["max"], 5);
}

#[tokio::test]
async fn changes_that_fail_refuse() {
    let server = Whole::new().await;
    let policy = |policy: &str, expression: &str| {
        json!({"matchConstraints": constraints("apps", "deployments"), "failurePolicy": policy,
            "mutations": [configuration(expression)]})
    };
    mutate(&server, "open", policy("Ignore", "Object{spec: object.none}"), json!({})).await;
    server.create(DEPLOYMENTS, deployment("a", 1)).await;
    let atomic = "Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'b'}}}}";
    mutate(&server, "closed", policy("Fail", atomic), json!({})).await;
    let why = "policy 'closed' with binding 'closed-binding' denied request: error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector";
    refused(&server, DEPLOYMENTS, deployment("b", 1), 403, why).await;
    let path = format!("{GROUP}/mutatingadmissionpolicies");
    for (mutation, field) in [
        (configuration("{'a': 'b'}"), "applyConfiguration"),
        (configuration("Other{}"), "applyConfiguration"),
        (patch("Object{}"), "jsonPatch"),
    ] {
        let spec = json!({"matchConstraints": constraints("", "pods"), "reinvocationPolicy": "Never", "mutations": [mutation]});
        let (code, _, status) =
            server.send("POST", &path, json!({"metadata": {"name": "p"}, "spec": spec})).await;
        let cause = &status["details"]["causes"][0]["field"];
        assert_eq!((code, cause), (422, &json!(format!("spec.mutations[0].{field}.expression"))), "{status}");
    }
}
