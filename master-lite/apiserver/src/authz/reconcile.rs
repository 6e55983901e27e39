//! Writes the default policy at start, through the API like any other client.

use std::collections::HashMap;

use serde_json::Value;

use super::RBAC_GROUP;
use super::bootstrap::{Change, objects, reconcile};
use super::rbac::text;

/// Why the default policy couldn't be written.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API refused.
    #[error("{action} {path}")]
    Api {
        /// HTTP method.
        action: http::Method,
        /// Path of the request.
        path: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// A request can't be built; never happens for the embedded table.
    #[error("building a request")]
    Request(#[from] http::Error),
}

/// What [`reconcile_policy`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Objects made.
    pub created: usize,
    /// Objects that lacked something.
    pub updated: usize,
}

/// Brings all default roles and bindings into being. Needs the namespaces kube-system and kube-public, and a client
/// in `system:masters`.
///
/// Another master may do the same at the same time: objects that it made or changed in between are left to it.
///
/// # Errors
/// The first refusal that isn't such a race.
pub async fn reconcile_policy(client: &kube::Client) -> Result<Summary, ReconcileError> {
    let mut stored: HashMap<(String, String, String), Value> = HashMap::new();
    for kind in ["ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"] {
        let list = send(client, http::Method::GET, &collection(kind, ""), None).await?.unwrap_or_default();
        for item in list["items"].as_array().into_iter().flatten() {
            let mut item = item.clone();
            // Items of a list carry neither, but an update must.
            item["apiVersion"] = format!("{RBAC_GROUP}/v1").into();
            item["kind"] = kind.into();
            stored.insert(key(&item), item);
        }
    }
    let mut summary = Summary::default();
    for expected in objects() {
        let (kind, namespace, name) = key(&expected);
        let base = collection(&kind, &namespace);
        match reconcile(stored.get(&key(&expected)), &expected) {
            Change::Keep => {}
            Change::Create(object) => {
                send(client, http::Method::POST, &base, Some(&object)).await?;
                summary.created += 1;
            }
            Change::Update(object) => {
                send(client, http::Method::PUT, &format!("{base}/{name}"), Some(&object)).await?;
                summary.updated += 1;
            }
            Change::Recreate(object) => {
                send(client, http::Method::DELETE, &format!("{base}/{name}"), None).await?;
                send(client, http::Method::POST, &base, Some(&object)).await?;
                summary.updated += 1;
            }
        }
    }
    Ok(summary)
}

fn key(object: &Value) -> (String, String, String) {
    let part = |pointer| text(object, pointer).to_owned();
    (part("/kind"), part("/metadata/namespace"), part("/metadata/name"))
}

fn collection(kind: &str, namespace: &str) -> String {
    let plural = format!("{}s", kind.to_lowercase());
    if namespace.is_empty() {
        format!("/apis/{RBAC_GROUP}/v1/{plural}")
    } else {
        format!("/apis/{RBAC_GROUP}/v1/namespaces/{namespace}/{plural}")
    }
}

/// One request; `None` when another writer was there first.
async fn send(
    client: &kube::Client,
    method: http::Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Option<Value>, ReconcileError> {
    let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
    let request = http::Request::builder()
        .method(method.clone())
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(bytes)?;
    match client.request::<Value>(request).await {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(source) => {
            Err(ReconcileError::Api { action: method, path: path.to_owned(), source: Box::new(source) })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::Entry;
    use std::convert::Infallible;
    use std::sync::Arc;

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt as _;
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    type Objects = Arc<Mutex<HashMap<String, Value>>>;

    /// An API that keeps objects by path and answers lists of all below a collection.
    async fn serve(
        objects: Objects,
        request: Request<kube::client::Body>,
    ) -> Result<Response<kube::client::Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let object: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let mut objects = objects.lock();
        let mut status = StatusCode::OK;
        let answer = match parts.method {
            Method::GET => {
                let plural = path.rsplit('/').next().unwrap_or_default();
                let items: Vec<Value> = objects
                    .iter()
                    .filter(|(p, _)| p.split('/').any(|s| s == plural))
                    .map(|(_, o)| o.clone())
                    .collect();
                json!({"items": items})
            }
            Method::POST => {
                let key = format!("{path}/{}", text(&object, "/metadata/name"));
                match objects.entry(key) {
                    Entry::Occupied(_) => {
                        status = StatusCode::CONFLICT;
                        json!({"kind": "Status", "status": "Failure", "message": "there", "reason": "AlreadyExists", "code": 409})
                    }
                    Entry::Vacant(free) => free.insert(object).clone(),
                }
            }
            Method::PUT => {
                objects.insert(path, object.clone());
                object
            }
            _ => objects.remove(&path).unwrap_or_default(),
        };
        Ok(Response::builder()
            .status(status)
            .body(kube::client::Body::from(answer.to_string().into_bytes()))
            .unwrap())
    }

    #[tokio::test]
    async fn the_policy_is_written_once_and_mended() {
        let stored = Objects::default();
        let service = stored.clone();
        let client =
            kube::Client::new(tower::service_fn(move |request| serve(service.clone(), request)), "default");
        let first = reconcile_policy(&client).await.unwrap();
        assert_eq!(first, Summary { created: objects().len(), updated: 0 });
        assert_eq!(reconcile_policy(&client).await.unwrap(), Summary::default());
        let base = format!("/apis/{RBAC_GROUP}/v1/clusterrolebindings/cluster-admin");
        stored.lock().get_mut(&base).unwrap()["subjects"] = json!([]);
        stored.lock().remove(&format!("/apis/{RBAC_GROUP}/v1/clusterroles/view"));
        assert_eq!(reconcile_policy(&client).await.unwrap(), Summary { created: 1, updated: 1 });
        assert_eq!(stored.lock()[&base]["subjects"][0]["name"], "system:masters");
    }
}
