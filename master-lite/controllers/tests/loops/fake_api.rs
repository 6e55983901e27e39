//! A small API server in memory, as a tower service under a `kube::Client`: enough of the API's behaviour (versions,
//! conflicts, generations, finalizers, watches) for controllers to run against without any other crate.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Group and version, resource, kind, namespaced.
const RESOURCES: &[(&str, &str, &str, bool)] = &[
    ("v1", "pods", "Pod", true),
    ("v1", "nodes", "Node", false),
    ("v1", "namespaces", "Namespace", false),
    ("v1", "services", "Service", true),
    ("v1", "endpoints", "Endpoints", true),
    ("v1", "replicationcontrollers", "ReplicationController", true),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", true),
    ("v1", "serviceaccounts", "ServiceAccount", true),
    ("v1", "configmaps", "ConfigMap", true),
    ("v1", "secrets", "Secret", true),
    ("v1", "events", "Event", true),
    ("apps/v1", "controllerrevisions", "ControllerRevision", true),
    ("apps/v1", "daemonsets", "DaemonSet", true),
    ("apps/v1", "deployments", "Deployment", true),
    ("apps/v1", "replicasets", "ReplicaSet", true),
    ("apps/v1", "statefulsets", "StatefulSet", true),
    ("batch/v1", "cronjobs", "CronJob", true),
    ("batch/v1", "jobs", "Job", true),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", true),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
    ("coordination.k8s.io/v1", "leases", "Lease", true),
    ("certificates.k8s.io/v1", "certificatesigningrequests", "CertificateSigningRequest", false),
    ("authorization.k8s.io/v1", "subjectaccessreviews", "SubjectAccessReview", false),
];

/// The body of an answer.
type Reply = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

type Path = (String, String, String);

#[derive(Clone)]
struct Change {
    version: u64,
    resource: String,
    kind: &'static str,
    object: Value,
}

/// The server.
pub struct FakeApi {
    objects: Mutex<BTreeMap<Path, Value>>,
    version: AtomicU64,
    changes: broadcast::Sender<Change>,
}

struct Failure(u16, &'static str, String);
type Answer = Result<Value, Failure>;

struct Target {
    resource: String,
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    subresource: String,
}

impl FakeApi {
    pub fn new() -> Arc<Self> {
        Arc::new(FakeApi {
            objects: Mutex::default(),
            version: AtomicU64::new(1),
            changes: broadcast::channel(10_000).0,
        })
    }

    pub fn client(self: &Arc<Self>) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn serve(&self, request: Request<Body>) -> Response<Reply> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.replace("%3D", "=")))
            .collect();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if let Some(answer) = discovery(&path) {
            return json_response(200, &answer);
        }
        let Some(target) = target(&path) else {
            return json_response(404, &status(404, "NotFound", "no such path"));
        };
        if query.contains_key("watch") {
            return self
                .watch(&target, query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0));
        }
        let strategic = parts
            .headers
            .get("content-type")
            .is_some_and(|v| v.to_str().unwrap_or_default().contains("strategic"));
        match self.handle(&parts.method, &target, &query, body, strategic) {
            Ok(value) => json_response(if parts.method == Method::POST { 201 } else { 200 }, &value),
            Err(Failure(code, reason, message)) => json_response(code, &status(code, reason, &message)),
        }
    }

    fn handle(
        &self,
        method: &Method,
        target: &Target,
        query: &BTreeMap<String, String>,
        body: Value,
        strategic: bool,
    ) -> Answer {
        let path = (target.resource.clone(), target.namespace.clone(), target.name.clone());
        let mut objects = self.objects.lock();
        let get = |objects: &BTreeMap<Path, Value>| {
            objects
                .get(&path)
                .cloned()
                .ok_or_else(|| Failure(404, "NotFound", format!("{} {:?} not found", path.0, path.2)))
        };
        match *method {
            Method::GET if target.name.is_empty() => {
                let items: Vec<Value> = objects
                    .iter()
                    .filter(|((resource, namespace, name), _)| {
                        *resource == target.resource
                            && (target.namespace.is_empty() || *namespace == target.namespace)
                            && query
                                .get("fieldSelector")
                                .and_then(|f| f.strip_prefix("metadata.name="))
                                .is_none_or(|wanted| wanted == name)
                    })
                    .map(|(_, object)| object.clone())
                    .collect();
                Ok(json!({
                    "apiVersion": target.api_version,
                    "kind": format!("{}List", target.kind),
                    "metadata": {"resourceVersion": self.version.load(Ordering::SeqCst).to_string()},
                    "items": items,
                }))
            }
            Method::GET => get(&objects),
            Method::POST if target.subresource == "binding" => {
                let mut pod = get(&objects)?;
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                self.commit(&mut objects, path, pod, "MODIFIED");
                Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}))
            }
            Method::POST if target.kind == "SubjectAccessReview" => {
                let mut review = body;
                review["status"] = json!({"allowed": true});
                Ok(review)
            }
            Method::POST => self.create(&mut objects, target, body),
            Method::PUT | Method::PATCH => {
                let old = get(&objects)?;
                let mut new = old.clone();
                if *method == Method::PUT {
                    new = body.clone();
                } else if strategic {
                    strategic_merge(&mut new, &body);
                } else {
                    json_patch::merge(&mut new, &body);
                }
                self.update(&mut objects, path, target, old, new)
            }
            Method::DELETE if target.name.is_empty() => {
                let all: Vec<Path> = objects
                    .keys()
                    .filter(|(r, ns, _)| *r == target.resource && *ns == target.namespace)
                    .cloned()
                    .collect();
                for path in all {
                    self.delete(&mut objects, path, &body)?;
                }
                Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            _ => {
                get(&objects)?;
                self.delete(&mut objects, path, &body)
            }
        }
    }

    fn create(&self, objects: &mut BTreeMap<Path, Value>, target: &Target, mut object: Value) -> Answer {
        // Admission's NamespaceLifecycle: nothing new in a namespace that goes away or is gone.
        let home = ("namespaces".to_owned(), String::new(), target.namespace.clone());
        match objects.get(&home) {
            Some(home) if home["metadata"]["deletionTimestamp"].is_string() => {
                return Err(Failure(403, "Forbidden", TERMINATING.into()));
            }
            None if !["", "kube-system", "kube-node-lease"].contains(&target.namespace.as_str()) => {
                return Err(Failure(404, "NotFound", "no such namespace".into()));
            }
            _ => {}
        }
        let version = self.version.load(Ordering::SeqCst);
        object["apiVersion"] = json!(target.api_version);
        object["kind"] = json!(target.kind);
        let meta = &mut object["metadata"];
        if meta["name"].as_str().unwrap_or_default().is_empty() {
            meta["name"] = json!(format!("{}{version:05}", meta["generateName"].as_str().unwrap_or("x")));
        }
        if !target.namespace.is_empty() {
            meta["namespace"] = json!(target.namespace);
        }
        meta["uid"] = json!(format!("uid-{}-{version}", target.resource));
        meta["generation"] = json!(1);
        meta["creationTimestamp"] = json!(keelson_client::meta::now());
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        if target.kind == "Namespace" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
        }
        let path = (target.resource.clone(), target.namespace.clone(), name);
        if objects.contains_key(&path) {
            return Err(Failure(409, "AlreadyExists", format!("{} {:?} already exists", path.0, path.2)));
        }
        Ok(self.commit(objects, path, object, "ADDED"))
    }

    fn update(
        &self,
        objects: &mut BTreeMap<Path, Value>,
        path: Path,
        target: &Target,
        old: Value,
        mut new: Value,
    ) -> Answer {
        let sent = &new["metadata"]["resourceVersion"];
        if sent.is_string() && *sent != old["metadata"]["resourceVersion"] {
            return Err(Failure(409, "Conflict", "the object has been modified".into()));
        }
        let sent = &new["metadata"]["uid"];
        if sent.is_string() && *sent != old["metadata"]["uid"] {
            return Err(Failure(409, "Conflict", "the uid does not match".into()));
        }
        match target.subresource.as_str() {
            "status" => new["spec"] = old["spec"].clone(),
            "finalize" | "approval" => {}
            _ => new["status"] = old["status"].clone(),
        }
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "namespace", "name"] {
            new["metadata"][field] = old["metadata"][field].clone();
        }
        new["apiVersion"] = old["apiVersion"].clone();
        new["kind"] = old["kind"].clone();
        if new["spec"] != old["spec"] {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = json!(generation);
        }
        let mut pruned = new.clone();
        prune_nulls(&mut pruned);
        let mut before = old.clone();
        prune_nulls(&mut before);
        if pruned == before {
            return Ok(old);
        }
        let no_finalizers = is_empty(&pruned["metadata"]["finalizers"])
            && (target.kind != "Namespace" || is_empty(&pruned["spec"]["finalizers"]));
        if pruned["metadata"]["deletionTimestamp"].is_string() && no_finalizers {
            objects.remove(&path);
            return Ok(self.announce(path, pruned, "DELETED"));
        }
        Ok(self.commit(objects, path, pruned, "MODIFIED"))
    }

    fn delete(&self, objects: &mut BTreeMap<Path, Value>, path: Path, options: &Value) -> Answer {
        let Some(mut object) = objects.get(&path).cloned() else { return Ok(Value::Null) };
        for field in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][field];
            if wanted.is_string() && *wanted != object["metadata"][field] {
                return Err(Failure(409, "Conflict", "precondition failed".into()));
            }
        }
        let added = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = added {
            let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !finalizers.contains(&json!(finalizer)) {
                finalizers.push(json!(finalizer));
            }
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        let held = !is_empty(&object["metadata"]["finalizers"])
            || (path.0 == "namespaces" && !is_empty(&object["spec"]["finalizers"]));
        if held {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            return Ok(self.commit(objects, path, object, "MODIFIED"));
        }
        objects.remove(&path);
        Ok(self.announce(path, object, "DELETED"))
    }

    fn commit(
        &self,
        objects: &mut BTreeMap<Path, Value>,
        path: Path,
        mut object: Value,
        kind: &'static str,
    ) -> Value {
        prune_nulls(&mut object);
        let object = self.announce(path.clone(), object, kind);
        objects.insert(path, object.clone());
        object
    }

    fn announce(&self, path: Path, mut object: Value, kind: &'static str) -> Value {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let _ = self.changes.send(Change { version, resource: path.0, kind, object: object.clone() });
        object
    }

    fn watch(&self, target: &Target, from: u64) -> Response<Reply> {
        // Subscribe and look for missed changes under the lock that commits hold.
        let objects = self.objects.lock();
        let receiver = self.changes.subscribe();
        let missed: Vec<Change> = objects
            .iter()
            .filter(|((resource, ..), _)| *resource == target.resource)
            .filter_map(|((resource, ..), object)| {
                let version = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
                let change =
                    Change { version, resource: resource.clone(), kind: "MODIFIED", object: object.clone() };
                (version > from).then_some(change)
            })
            .collect();
        drop(objects);
        let (resource, namespace) = (target.resource.clone(), target.namespace.clone());
        let stream =
            futures::stream::unfold((missed.into_iter(), receiver), move |(mut missed, mut receiver)| {
                let (resource, namespace) = (resource.clone(), namespace.clone());
                async move {
                    loop {
                        let change = match missed.next() {
                            Some(change) => change,
                            None => receiver.recv().await.ok()?,
                        };
                        let in_scope = namespace.is_empty()
                            || change.object["metadata"]["namespace"] == json!(namespace);
                        if change.version > from && change.resource == resource && in_scope {
                            let mut line = json!({"type": change.kind, "object": change.object}).to_string();
                            line.push('\n');
                            let frame = Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(line)));
                            return Some((frame, (missed, receiver)));
                        }
                    }
                }
            });
        Response::new(StreamBody::new(stream).boxed_unsync())
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_none_or(Vec::is_empty)
}

fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null());
            fields.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

/// Merges lists that have a merge key by it, other lists whole.
fn strategic_merge(object: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *object = patch.clone();
        return;
    };
    for (key, value) in fields {
        if let Some(key) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let doomed = value.as_array().cloned().unwrap_or_default();
            if let Some(list) = object[key].as_array_mut() {
                list.retain(|item| !doomed.contains(item));
            }
            continue;
        }
        let merge_key = match key.as_str() {
            "conditions" => Some("type"),
            "ownerReferences" => Some("uid"),
            _ => None,
        };
        match (merge_key, value) {
            (Some(merge_key), Value::Array(items)) => {
                let mut list = object[key].as_array().cloned().unwrap_or_default();
                for item in items {
                    let at = list.iter().position(|present| present[merge_key] == item[merge_key]);
                    match at {
                        Some(at) if item["$patch"] == "delete" => {
                            list.remove(at);
                        }
                        Some(at) => strategic_merge(&mut list[at], item),
                        None => list.push(item.clone()),
                    }
                }
                object[key] = Value::Array(list);
            }
            (_, Value::Object(_)) => strategic_merge(&mut object[key], value),
            _ => object[key] = value.clone(),
        }
    }
}

const TERMINATING: &str = "unable to create new content in namespace because it is being terminated";

fn status(code: u16, reason: &str, message: &str) -> Value {
    let causes = if message == TERMINATING { json!([{"reason": "NamespaceTerminating"}]) } else { json!([]) };
    json!({"details": {"causes": causes},
           "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "code": code, "reason": reason, "message": message})
}

fn json_response(code: u16, value: &Value) -> Response<Reply> {
    let body = http_body_util::Full::new(Bytes::from(value.to_string()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
    response
}

fn discovery(path: &str) -> Option<Value> {
    let list = |version: &str| {
        let resources: Vec<Value> = RESOURCES
            .iter()
            .filter(|(v, ..)| *v == version)
            .map(|(_, plural, kind, namespaced)| {
                let verbs = if plural.ends_with("reviews") {
                    json!(["create"])
                } else {
                    json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"])
                };
                json!({"name": plural, "singularName": "", "kind": kind, "namespaced": namespaced, "verbs": verbs})
            })
            .collect();
        json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources})
    };
    match path {
        "/api/v1" => Some(list("v1")),
        "/apis" => {
            let mut groups: Vec<&str> =
                RESOURCES.iter().map(|(v, ..)| *v).filter(|v| v.contains('/')).collect();
            groups.dedup();
            let groups: Vec<Value> = groups
                .into_iter()
                .map(|gv| {
                    let (group, version) = gv.split_once('/').unwrap();
                    json!({"name": group, "versions": [{"groupVersion": gv, "version": version}],
                           "preferredVersion": {"groupVersion": gv, "version": version}})
                })
                .collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        _ => {
            let rest = path.strip_prefix("/apis/")?;
            (rest.split('/').count() == 2).then(|| list(rest))
        }
    }
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (api_version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, resource, rest @ ..]
            if RESOURCES.iter().any(|(_, plural, _, _)| plural == resource) =>
        {
            (*namespace, [&[*resource], rest].concat())
        }
        rest => ("", rest.to_vec()),
    };
    let resource = *rest.first()?;
    let (_, _, kind, _) =
        RESOURCES.iter().find(|(v, plural, ..)| *v == api_version && *plural == resource)?;
    Some(Target {
        resource: resource.into(),
        api_version,
        kind: (*kind).into(),
        namespace: namespace.into(),
        name: rest.get(1).copied().unwrap_or_default().into(),
        subresource: rest.get(2).copied().unwrap_or_default().into(),
    })
}
