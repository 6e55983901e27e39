//! The API as clients see it, without a socket: CRUD, conflicts, watches, selectors, pages, tables, discovery,
//! deletion.

mod common;

use common::{CONFIG_MAPS, Fixture, PODS, pod};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn create_get_update_conflict() {
    let f = Fixture::new().await;
    let made = f.config_map("x", json!({})).await;
    assert_eq!(made["kind"], "ConfigMap");
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["resourceVersion"].is_string());
    assert_eq!(f.get(&format!("{CONFIG_MAPS}/x")).await, made);

    let (code, status) = f.send("POST", CONFIG_MAPS, "", json!({"metadata": {"name": "x"}})).await;
    assert_eq!((code, &status["message"]), (409, &json!("configmaps \"x\" already exists")));
    let (code, status) = f.send("GET", &format!("{CONFIG_MAPS}/y"), "", Value::Null).await;
    assert_eq!(code, 404);
    assert_eq!(status["details"], json!({"name": "y", "kind": "configmaps"}));

    let mut changed = made.clone();
    changed["data"]["k"] = "w".into();
    let (code, updated) = f.send("PUT", &format!("{CONFIG_MAPS}/x"), "", changed.clone()).await;
    assert_eq!(code, 200);
    assert_eq!(updated["data"]["k"], "w");
    let (code, status) = f.send("PUT", &format!("{CONFIG_MAPS}/x"), "", changed).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")));
    let (_, same) = f.send("PUT", &format!("{CONFIG_MAPS}/x"), "", updated.clone()).await;
    assert_eq!(same, updated, "an update that changes nothing takes no revision");

    let patches = [
        ("application/merge-patch+json", json!({"data": {"m": "1"}})),
        ("application/strategic-merge-patch+json", json!({"data": {"s": "1"}})),
        ("application/json-patch+json", json!([{"op": "add", "path": "/data/j", "value": "1"}])),
    ];
    for (kind, patch) in patches {
        let headers = format!("content-type: {kind}");
        let (code, value) = f.send("PATCH", &format!("{CONFIG_MAPS}/x"), &headers, patch).await;
        assert_eq!(code, 200, "{value}");
    }
    let data = f.get(&format!("{CONFIG_MAPS}/x")).await["data"].clone();
    assert_eq!(data, json!({"k": "w", "m": "1", "s": "1", "j": "1"}));

    let (code, _) =
        f.send("POST", &format!("{CONFIG_MAPS}?dryRun=All"), "", json!({"metadata": {"name": "dry"}})).await;
    assert_eq!(code, 201);
    assert_eq!(f.send("GET", &format!("{CONFIG_MAPS}/dry"), "", Value::Null).await.0, 404);
    let generated = f.create(CONFIG_MAPS, json!({"metadata": {"generateName": "g-"}})).await;
    assert_eq!(generated["metadata"]["name"].as_str().unwrap().len(), 7);
    let (code, status) = f.send("POST", CONFIG_MAPS, "", json!({"metadata": {"name": "Bad"}})).await;
    assert_eq!((code, status["reason"].as_str()), (422, Some("Invalid")));
    let (code, status) = f
        .send(
            "POST",
            &format!("{CONFIG_MAPS}?fieldValidation=Strict"),
            "",
            json!({"metadata": {"name": "z"}, "nope": 1}),
        )
        .await;
    assert_eq!(code, 400, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_select_and_page() {
    let f = Fixture::new().await;
    for i in 0..5 {
        f.config_map(&format!("c{i}"), json!({"parity": if i % 2 == 0 { "even" } else { "odd" }})).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let list = f.get(CONFIG_MAPS).await;
    assert_eq!(list["kind"], "ConfigMapList");
    assert_eq!(names(&list).len(), 5);
    assert_eq!(names(&f.get(&format!("{CONFIG_MAPS}?labelSelector=parity%3Dodd")).await), ["c1", "c3"]);
    assert_eq!(names(&f.get("/api/v1/configmaps?fieldSelector=metadata.name%3Dc2").await), ["c2"]);
    assert_eq!(f.send("GET", &format!("{CONFIG_MAPS}?fieldSelector=x%3Dy"), "", Value::Null).await.0, 400);

    let first = f.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["c0", "c1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    f.send("DELETE", &format!("{CONFIG_MAPS}/c3"), "", Value::Null).await;
    f.config_map("c25", json!({})).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = f.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&second), ["c2", "c3"], "pages show one revision");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = f.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&third), ["c4"]);
    assert!(third["metadata"]["continue"].is_null());
    let future = f.send("GET", &format!("{CONFIG_MAPS}?resourceVersion=999999"), "", Value::Null).await;
    assert_eq!(future.0, 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_follow_selectors() {
    let f = Fixture::new().await;
    let made = f.config_map("x", json!({"on": "1"})).await;
    let revision = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let headers = "content-type: application/merge-patch+json";
    let path = format!("{CONFIG_MAPS}/x");
    f.send("PATCH", &path, headers, json!({"data": {"k": "2"}})).await;
    f.send("PATCH", &path, headers, json!({"metadata": {"labels": {"on": "0"}}})).await;
    f.send("PATCH", &path, headers, json!({"metadata": {"labels": {"on": "1"}}})).await;
    let (_, gone) = f.send("DELETE", &path, "", Value::Null).await;
    assert_eq!(gone["status"], "Success");
    let events =
        f.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}&labelSelector=on%3D1"), 4).await;
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["MODIFIED", "DELETED", "ADDED", "DELETED"]);
    assert_eq!(events[1].1["metadata"]["labels"]["on"], "1", "the old object, as it was selected");
    let versions: Vec<u64> = events
        .iter()
        .map(|(_, o)| o["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(versions.is_sorted());

    f.config_map("y", json!({})).await;
    let initial = f
        .watch(
            &format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"),
            2,
        )
        .await;
    assert_eq!(initial[0].0, "ADDED");
    assert_eq!(initial[1].0, "BOOKMARK");
    assert_eq!(initial[1].1["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let timed = f.watch(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1"), 100).await;
    assert_eq!(timed.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_metadata() {
    let f = Fixture::new().await;
    f.config_map("x", json!({})).await;
    let accept = "accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let (_, table) = f.send("GET", CONFIG_MAPS, accept, Value::Null).await;
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"][0]["cells"][0], "x");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let accept = "accept: application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, list) = f.send("GET", CONFIG_MAPS, accept, Value::Null).await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0]["data"].is_null());
    let (code, _) = f.send("GET", CONFIG_MAPS, "accept: text/html", Value::Null).await;
    assert_eq!(code, 406);
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_health() {
    let f = Fixture::new().await;
    assert_eq!(f.get("/version").await["gitVersion"], "v1.36.0+keelson");
    let accept =
        "accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (_, groups) = f.send("GET", "/apis", accept, Value::Null).await;
    assert_eq!(groups["kind"], "APIGroupDiscoveryList");
    assert_eq!(f.get("/apis").await["kind"], "APIGroupList");
    assert_eq!(f.get("/api/v1").await["kind"], "APIResourceList");
    assert_eq!(f.get("/readyz").await, "ok");
    assert!(f.get("/readyz?verbose").await.as_str().unwrap().contains("[+]etcd ok"));
    assert!(f.get("/metrics").await.as_str().unwrap().contains("apiserver_request_total"));
    let index = f.get("/openapi/v3").await;
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    assert!(f.get(&url).await["components"]["schemas"].is_object());
    for path in [
        "/openapi/v3/apis/none/v1",
        "/apis/none/v1",
        "/api/v1/nonsense",
        "/nonsense",
        "/api/v1/namespaces/a/nodes",
    ] {
        assert_eq!(f.send("GET", path, "", Value::Null).await.0, 404, "{path}");
    }
    let (code, _) = f.send("POST", "/api/v1/componentstatuses", "", json!({})).await;
    assert_eq!(code, 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_defaulted_bound_and_deleted_gracefully() {
    let f = Fixture::new().await;
    let made = f.create(PODS, pod("p")).await;
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["status"]["qosClass"], "BestEffort");
    assert_eq!(made["spec"]["containers"][0]["imagePullPolicy"], "Always");
    assert_eq!(made["metadata"]["generation"], 1);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    f.create(&format!("{PODS}/p/binding"), binding.clone()).await;
    let (code, status) = f.send("POST", &format!("{PODS}/p/binding"), "", binding).await;
    assert_eq!(code, 409, "{status}");
    let bound = f.get(&format!("{PODS}/p")).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let selected = f.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await;
    assert_eq!(selected["items"].as_array().unwrap().len(), 1);

    // The status subresource writes status and nothing else.
    let mut status = bound.clone();
    status["status"]["phase"] = "Running".into();
    status["spec"]["nodeName"] = "other".into();
    let (code, running) = f.send("PUT", &format!("{PODS}/p/status"), "", status).await;
    assert_eq!(code, 200, "{running}");
    assert_eq!(
        (&running["status"]["phase"], &running["spec"]["nodeName"]),
        (&json!("Running"), &json!("n1"))
    );

    let (code, going) = f.send("DELETE", &format!("{PODS}/p"), "", Value::Null).await;
    assert_eq!(code, 200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(f.get(&format!("{PODS}/p")).await["metadata"]["deletionTimestamp"].is_string());
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": made["metadata"]["uid"]}});
    let (code, _) = f.send("DELETE", &format!("{PODS}/p"), "", options).await;
    assert_eq!(code, 200);
    assert_eq!(f.send("GET", &format!("{PODS}/p"), "", Value::Null).await.0, 404);
    f.create(PODS, pod("q")).await;
    f.send("DELETE", &format!("{PODS}/q"), "", Value::Null).await;
    assert_eq!(
        f.send("GET", &format!("{PODS}/q"), "", Value::Null).await.0,
        404,
        "unscheduled pods go at once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_and_namespaces_hold() {
    let f = Fixture::new().await;
    f.create(CONFIG_MAPS, json!({"metadata": {"name": "x", "finalizers": ["a/b"]}})).await;
    let path = format!("{CONFIG_MAPS}/x");
    let (_, held) = f.send("DELETE", &path, "", Value::Null).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let headers = "content-type: application/merge-patch+json";
    f.send("PATCH", &path, headers, json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(f.send("GET", &path, "", Value::Null).await.0, 404);

    let (_, namespace) = f.send("DELETE", "/api/v1/namespaces/a", "", Value::Null).await;
    assert_eq!(namespace["status"]["phase"], "Terminating");
    let mut last = namespace.clone();
    last["spec"]["finalizers"] = json!([]);
    let (code, _) = f.send("PUT", "/api/v1/namespaces/a/finalize", "", last).await;
    assert_eq!(code, 200);
    assert_eq!(f.send("GET", "/api/v1/namespaces/a", "", Value::Null).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_scale_and_count_generations() {
    let f = Fixture::new().await;
    let path = "/apis/apps/v1/namespaces/a/deployments";
    let object = json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
        },
    });
    let made = f.create(path, object).await;
    assert_eq!((&made["spec"]["replicas"], &made["metadata"]["generation"]), (&json!(1), &json!(1)));
    let scale = f.get(&format!("{path}/d/scale")).await;
    assert_eq!(scale["status"]["selector"], "app=d");
    let headers = "content-type: application/merge-patch+json";
    let (code, scale) =
        f.send("PATCH", &format!("{path}/d/scale"), headers, json!({"spec": {"replicas": 3}})).await;
    assert_eq!((code, &scale["spec"]["replicas"]), (200, &json!(3)));
    let now = f.get(&format!("{path}/d")).await;
    assert_eq!((&now["spec"]["replicas"], &now["metadata"]["generation"]), (&json!(3), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses() {
    let f = Fixture::new().await;
    let path = "/api/v1/namespaces/a/services";
    let object = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let made = f.create(path, object).await;
    let ip = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert!(ip.starts_with("10.96."));
    assert_eq!(made["spec"]["clusterIPs"], json!([ip]));
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    assert!(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap() >= 30000);
    let again = json!({"metadata": {"name": "t"}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
    assert_eq!(f.send("POST", path, "", again.clone()).await.0, 422);
    f.send("DELETE", &format!("{path}/s"), "", Value::Null).await;
    f.create(path, again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kube_client_works_in_process() {
    use k8s_openapi::api::core::v1::{ConfigMap, Event};
    use kube::api::{Api, DeleteParams, ListParams, PostParams};
    let f = Fixture::new().await;
    let client = f.server.admin_client();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "a");
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"a": "b"}})).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 1);
    maps.delete("m", &DeleteParams::default()).await.unwrap();
    assert!(maps.get_opt("m").await.unwrap().is_none());

    // One event, seen through both of its groups.
    let event = json!({
        "metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "a"},
        "reason": "R", "message": "text", "type": "Normal",
    });
    f.create("/api/v1/namespaces/a/events", event).await;
    let view = f.get("/apis/events.k8s.io/v1/namespaces/a/events/e").await;
    assert_eq!((&view["note"], &view["regarding"]["name"]), (&json!("text"), &json!("p")));
    let events: Api<Event> = Api::namespaced(client, "a");
    let selected = events.list(&ListParams::default().fields("involvedObject.name=p")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn join_tokens_do_not_pile_up() {
    use keelson_apiserver::bootstrap::join_token;
    const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
    let f = Fixture::new().await;
    let client = f.server.admin_client();
    let first = join_token(&client, None).await.unwrap();
    let again = join_token(&client, None).await.unwrap();
    assert_eq!(first, again);
    let secrets = f.get(SECRETS).await;
    let [secret] = secrets["items"].as_array().unwrap().as_slice() else { panic!("{secrets}") };
    assert!(secret["data"]["expiration"].is_string(), "{secret}");

    // One that somebody gave is kept as it is, and never taken for one of the server's own.
    let given = "abcdef.0123456789abcdef";
    for _ in 0..2 {
        assert_eq!(join_token(&client, Some(given)).await.unwrap(), given);
    }
    let secret = f.get(&format!("{SECRETS}/bootstrap-token-abcdef")).await;
    assert!(secret["data"].get("expiration").is_none(), "{secret}");
    let (code, _) =
        f.send("DELETE", &format!("{SECRETS}/bootstrap-token-{}", &first[..6]), "", Value::Null).await;
    assert_eq!(code, 200);
    assert_ne!(join_token(&client, None).await.unwrap(), given);
    assert!(join_token(&client, Some("short")).await.is_err());
}

#[tokio::test]
async fn autoscalers_are_one_object_in_two_versions() {
    const V1: &str = "/apis/autoscaling/v1/namespaces/a/horizontalpodautoscalers";
    const V2: &str = "/apis/autoscaling/v2/namespaces/a/horizontalpodautoscalers";
    const APPLY: &str = "content-type: application/apply-patch+yaml";
    let f = Fixture::new().await;
    let target = json!({"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"});
    let made = f
        .create(
            V1,
            json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": target, "maxReplicas": 5, "targetCPUUtilizationPercentage": 50}}),
        )
        .await;
    assert_eq!((&made["apiVersion"], &made["spec"]["minReplicas"]), (&json!("autoscaling/v1"), &json!(1)));
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 50);
    let newer = f.get(&format!("{V2}/h")).await;
    assert_eq!(newer["apiVersion"], "autoscaling/v2");
    assert_eq!(newer["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    assert_eq!(newer["metadata"]["managedFields"][0]["apiVersion"], "autoscaling/v1");

    // A change in one version is seen in the other, and what the older one has no field for stays.
    let behavior = json!({"spec": {"behavior": {"scaleDown": {"selectPolicy": "Disabled"}}}});
    let merge = "content-type: application/merge-patch+json";
    assert_eq!(f.send("PATCH", &format!("{V2}/h"), merge, behavior).await.0, 200);
    let (code, patched) =
        f.send("PATCH", &format!("{V1}/h"), merge, json!({"spec": {"maxReplicas": 7}})).await;
    assert_eq!((code, &patched["spec"]["maxReplicas"]), (200, &json!(7)), "{patched}");
    let newer = f.get(&format!("{V2}/h")).await;
    assert_eq!(newer["spec"]["behavior"]["scaleDown"]["selectPolicy"], "Disabled");
    assert_eq!(newer["metadata"]["annotations"], Value::Null);

    // Owners of fields are understood across versions.
    let config = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {"maxReplicas": 8}});
    let (code, status) = f.send("PATCH", &format!("{V2}/h?fieldManager=other"), APPLY, config.clone()).await;
    assert_eq!(code, 409, "{status}");
    assert!(status["message"].as_str().unwrap().contains(".spec.maxReplicas"), "{status}");
    let (code, _) = f.send("PATCH", &format!("{V2}/h?fieldManager=other&force=true"), APPLY, config).await;
    assert_eq!(code, 200);

    let (_, events) = f.watch(&format!("{V1}?watch=true"), 1).await.remove(0);
    assert_eq!(
        (&events["apiVersion"], &events["spec"]["maxReplicas"]),
        (&json!("autoscaling/v1"), &json!(8))
    );
    let (_, table) =
        f.send("GET", V1, "accept: application/json;as=Table;g=meta.k8s.io;v=v1", Value::Null).await;
    assert_eq!(table["rows"][0]["cells"][2], "cpu: <unknown>/50%");
}
