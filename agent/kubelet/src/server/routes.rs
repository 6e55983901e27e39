//! Paths of the API, and the gate before them.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{any, get, post};
use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{Container, ContainerState, Pod, PodStatus};
use keelson_cri::{ExecRequest, RuntimeService};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::answer::{json, text, typed};
use super::auth::{Guard, User, subresources, verb};
use super::stats::Sampler;
use super::stream::{Kind, is_upgrade, port_forward, serve_session};
use super::{Backend, connect, logs, metrics, stats};

/// Most output of `/run` that is kept.
const MAX_RUN_OUTPUT: u64 = 16 << 20;

struct App {
    backend: Arc<Backend>,
    guard: Guard,
    sampler: Sampler,
    watcher: logs::DirWatcher,
}

type Shared = State<Arc<App>>;

/// The router; requests carry a [`User`] extension when their connection showed a certificate.
pub(super) fn router(backend: Arc<Backend>) -> Router {
    let app = Arc::new(App {
        backend,
        guard: Guard::new(),
        sampler: Sampler::default(),
        watcher: logs::DirWatcher::new(),
    });
    Router::new()
        .route("/healthz", get("ok"))
        .route("/healthz/{check}", get("ok"))
        .route("/pods", get(pods))
        .route("/runningpods/", get(running_pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(exec_uid))
        .route("/attach/{namespace}/{pod}/{container}", any(attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(attach_uid))
        .route("/portForward/{namespace}/{pod}", any(forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(forward_uid))
        .route("/run/{namespace}/{pod}/{container}", post(run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(run_uid))
        .route("/stats/summary", get(summary))
        .route("/metrics", get(kubelet_metrics))
        .route("/metrics/resource", get(resource_metrics))
        .route("/configz", get(configz))
        .fallback(other)
        .layer(from_fn_with_state(app.clone(), gate))
        .with_state(app)
}

/// Authenticates and authorizes every request.
async fn gate(State(app): Shared, request: Request, next: Next) -> Response {
    let reviews = &*app.backend.reviews;
    let user = match request.extensions().get::<User>() {
        Some(user) => Some(user.clone()),
        None => match bearer(&request) {
            Some(token) => match app.guard.authenticate(reviews, token).await {
                Ok(user) => user,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "could not authenticate a request"
                    );
                    None
                }
            },
            None => None,
        },
    };
    let Some(user) = user else { return text(StatusCode::UNAUTHORIZED, "Unauthorized") };
    let Some(verb) = verb(request.method()) else {
        return text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    };
    let node = &app.backend.config.node_name;
    let wanted = subresources(request.uri().path());
    match app.guard.allowed(reviews, &user, verb, wanted, node).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let message = format!(
                "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
                user.name,
                wanted.join(" ")
            );
            text(StatusCode::FORBIDDEN, message)
        }
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "could not authorize a request");
            let message = format!("Authorization error (user={}, verb={verb}, resource=nodes)", user.name);
            text(StatusCode::INTERNAL_SERVER_ERROR, message)
        }
    }
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// What has no path: `CONNECT`, whose target is an address.
async fn other(State(app): Shared, request: Request) -> Response {
    if *request.method() == Method::CONNECT {
        return connect::connect(&app.backend, request).await;
    }
    text(StatusCode::NOT_FOUND, "404 page not found")
}

/// The pod, or the answer that there is none.
fn find_pod(app: &App, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, Box<Response>> {
    app.backend
        .pods
        .get_pod(namespace, name)
        .filter(|pod| uid.is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid)))
        .ok_or_else(|| Box::new(text(StatusCode::NOT_FOUND, "pod does not exist")))
}

/// Id of the pod's running container of that name, or the answer why not.
fn find_container(app: &App, pod: &Pod, container: &str) -> Result<String, Box<Response>> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    app.backend.pods.container_id(uid, container, false).ok_or_else(|| {
        let message = format!("container not found (\"{container}\")");
        Box::new(text(StatusCode::NOT_FOUND, message))
    })
}

async fn pods(State(app): Shared) -> Response {
    let items = app.backend.pods.pods();
    json(&json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

/// Pods as the runtime knows them, with what can be said of them without the API.
async fn running_pods(State(app): Shared) -> Response {
    let runtime = &app.backend.runtime;
    let (sandboxes, containers) =
        match tokio::try_join!(runtime.list_pod_sandboxes(), runtime.list_containers(None)) {
            Ok(lists) => lists,
            Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
    let ready = sandboxes.iter().filter(|sandbox| sandbox.state == keelson_cri::PodSandboxState::Ready);
    let items: Vec<_> = ready
        .map(|sandbox| {
            let running = containers.iter().filter(|container| {
                container.sandbox_id == sandbox.id && container.state == keelson_cri::ContainerState::Running
            });
            let containers: Vec<_> =
                running.map(|c| json!({ "name": c.name, "image": c.image_ref, "resources": {} })).collect();
            json!({
                "metadata": {
                    "name": sandbox.metadata.name,
                    "namespace": sandbox.metadata.namespace,
                    "uid": sandbox.metadata.uid,
                },
                "spec": { "containers": containers },
                "status": {},
            })
        })
        .collect();
    json(&json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

async fn container_logs(
    State(app): Shared,
    Path((namespace, name, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let options = match logs::LogOptions::from_uri(request.uri()) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::UNPROCESSABLE_ENTITY, message),
    };
    let Some(pod) = app.backend.pods.get_pod(&namespace, &name) else {
        return text(StatusCode::NOT_FOUND, format!("pod {name:?} not found"));
    };
    if !has_container(&pod, &container) {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {name:?}"));
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let (id, path) = match (
        app.backend.pods.container_id(uid, &container, options.previous),
        app.backend.pods.log_path(uid, &container, options.previous),
    ) {
        (Some(id), Some(path)) => (id, path),
        _ => return text(StatusCode::BAD_REQUEST, no_log(&pod, &container, options.previous)),
    };
    let body = logs::stream(options, path, id, app.backend.runtime.clone(), &app.watcher);
    typed(StatusCode::OK, "text/plain", body)
}

fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| container.name.as_str());
    all.map(|container: &Container| container.name.as_str()).chain(ephemeral).any(|known| known == name)
}

/// Why a container has no log, in upstream's words.
fn no_log(pod: &Pod, container: &str, previous: bool) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if previous {
        return format!("previous terminated container {container:?} in pod {name:?} not found");
    }
    let waiting =
        pod.status.as_ref().and_then(|status| state(status, container)).and_then(|state| state.waiting);
    match waiting.and_then(|waiting| waiting.reason) {
        Some(reason) => format!("container {container:?} in pod {name:?} is waiting to start: {reason}"),
        None => format!("container {container:?} in pod {name:?} is not available"),
    }
}

fn state(status: &PodStatus, container: &str) -> Option<ContainerState> {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == container)?.state.clone()
}

async fn exec(
    app: Shared,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    session(&app, Kind::Exec, &namespace, &pod, None, &container, request).await
}

async fn exec_uid(
    app: Shared,
    Path((namespace, pod, uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    session(&app, Kind::Exec, &namespace, &pod, Some(&uid), &container, request).await
}

async fn attach(
    app: Shared,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    session(&app, Kind::Attach, &namespace, &pod, None, &container, request).await
}

async fn attach_uid(
    app: Shared,
    Path((namespace, pod, uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    session(&app, Kind::Attach, &namespace, &pod, Some(&uid), &container, request).await
}

async fn session(
    app: &App,
    kind: Kind,
    namespace: &str,
    pod: &str,
    uid: Option<&str>,
    container: &str,
    request: Request<Body>,
) -> Response {
    let found = find_pod(app, namespace, pod, uid).and_then(|pod| find_container(app, &pod, container));
    match found {
        Ok(id) => {
            let idle = app.backend.config.streaming_idle;
            serve_session(request, kind, app.backend.runtime.clone(), id, idle).await
        }
        Err(response) => *response,
    }
}

async fn forward(app: Shared, Path((namespace, pod)): Path<(String, String)>, request: Request) -> Response {
    forward_to(&app, &namespace, &pod, None, request).await
}

async fn forward_uid(
    app: Shared,
    Path((namespace, pod, uid)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    forward_to(&app, &namespace, &pod, Some(&uid), request).await
}

async fn forward_to(app: &App, namespace: &str, name: &str, uid: Option<&str>, request: Request) -> Response {
    let pod = match find_pod(app, namespace, name, uid) {
        Ok(pod) => pod,
        Err(response) => return *response,
    };
    if !is_upgrade(&request) {
        return text(StatusCode::BAD_REQUEST, "unable to upgrade: need WebSocket or SPDY/3.1");
    }
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let Some(sandbox) = app.backend.pods.sandbox_id(uid) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("pod {name:?} has no running sandbox"));
    };
    let label = format!("{sandbox}, uid {uid}");
    port_forward(request, app.backend.runtime.clone(), sandbox, label, app.backend.config.streaming_idle)
        .await
}

async fn run(
    app: Shared,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    run_in(&app, &namespace, &pod, None, &container, request.uri()).await
}

async fn run_uid(
    app: Shared,
    Path((namespace, pod, uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    run_in(&app, &namespace, &pod, Some(&uid), &container, request.uri()).await
}

/// Runs `?cmd=`, split at spaces as upstream does, and answers with its output.
async fn run_in(
    app: &App,
    namespace: &str,
    pod: &str,
    uid: Option<&str>,
    container: &str,
    uri: &http::Uri,
) -> Response {
    let found = find_pod(app, namespace, pod, uid).and_then(|pod| find_container(app, &pod, container));
    let id = match found {
        Ok(id) => id,
        Err(response) => return *response,
    };
    let pairs = super::stream::query_pairs(uri);
    let command =
        pairs.into_iter().find(|(name, _)| name == "cmd").map(|(_, value)| value).unwrap_or_default();
    let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
    match output_of(&*app.backend.runtime, &id, command).await {
        Ok(output) => typed(StatusCode::OK, "text/plain", output),
        Err(message) => text(StatusCode::INTERNAL_SERVER_ERROR, message),
    }
}

async fn output_of(runtime: &dyn RuntimeService, id: &str, command: Vec<String>) -> Result<Vec<u8>, String> {
    let request = ExecRequest { command, tty: false, stdin: false };
    let session = runtime.exec(id, request).await.map_err(|error| error.to_string())?;
    let read = async |stream: Option<keelson_cri::BoxRead>| {
        let mut output = Vec::new();
        if let Some(stream) = stream {
            stream.take(MAX_RUN_OUTPUT).read_to_end(&mut output).await.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(output)
    };
    let (mut stdout, stderr) = tokio::try_join!(read(session.stdout), read(session.stderr))?;
    stdout.extend(stderr);
    match session.exit.await {
        Ok(Ok(0)) => Ok(stdout),
        Ok(Ok(code)) => {
            Err(format!("command terminated with exit code {code}: {}", String::from_utf8_lossy(&stdout)))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_dropped) => Err("session ended".to_owned()),
    }
}

async fn summary(State(app): Shared) -> Response {
    json(&stats::summary(&app.backend, &app.sampler).await)
}

async fn kubelet_metrics(State(app): Shared) -> Response {
    typed(StatusCode::OK, metrics::CONTENT_TYPE, metrics::kubelet(&app.backend).await)
}

async fn resource_metrics(State(app): Shared) -> Response {
    let body = metrics::resource(&stats::collect(&app.backend).await);
    typed(StatusCode::OK, metrics::CONTENT_TYPE, body)
}

async fn configz(State(app): Shared) -> Response {
    json(&json!({ "kubeletconfig": app.backend.config.configz }))
}
