//! The objects that every cluster has, made at start and kept: namespaces, the `kubernetes` Service with its
//! endpoints, kube-dns, the network of Services, classes of priority, and what servers of other groups need to know.

mod priority;

use std::net::IpAddr;
use std::time::Duration;

use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::authn::bootstrap_token;
use crate::extension::BoxError;
use crate::pki::FRONT_PROXY_CLIENT;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
/// How often they are looked at, as upstream's endpoint reconciler.
const INTERVAL: Duration = Duration::from_secs(10);
/// In how many of those rounds one looks at what hardly ever changes.
const SLOW_ROUNDS: u32 = 6;
const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// What the built-in Services say.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Where nodes and pods reach the API server.
    pub advertise_address: IpAddr,
    /// Port of the same.
    pub advertise_port: u16,
    /// Network of cluster IPs.
    pub service_cidr: ipnet::Ipv4Net,
    /// Certificate (PEM) of the CA whose client certificates say who somebody is.
    pub client_ca: String,
    /// Certificate (PEM) of the CA whose client certificates front proxies show.
    pub front_proxy_ca: String,
}

impl Cluster {
    fn address(&self, nth: u32) -> String {
        std::net::Ipv4Addr::from(u32::from(self.service_cidr.network()) + nth).to_string()
    }
}

/// Makes the namespaces.
pub async fn namespaces(client: &Client) -> Result<(), BoxError> {
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ensure(client, "/api/v1/namespaces", &object, &[]).await?;
    }
    Ok(())
}

/// Makes the Services and endpoints, and puts right what differs.
pub async fn services(client: &Client, cluster: &Cluster) -> Result<(), BoxError> {
    let kubernetes = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster.address(1),
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": cluster.advertise_port}],
        },
    });
    ensure(client, "/api/v1/namespaces/default/services", &kubernetes, &["/spec/ports"]).await?;
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": cluster.advertise_address.to_string()}],
            "ports": [{"name": "https", "port": cluster.advertise_port, "protocol": "TCP"}],
        }],
    });
    ensure(client, "/api/v1/namespaces/default/endpoints", &endpoints, &["/subsets"]).await?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if cluster.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [cluster.advertise_address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": cluster.advertise_port, "protocol": "TCP"}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    ensure(client, slices, &slice, &["/endpoints", "/ports"]).await?;
    let dns = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster.address(10),
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
            ],
        },
    });
    ensure(client, "/api/v1/namespaces/kube-system/services", &dns, &["/spec/ports"]).await
}

/// The token with which machines join: `given`, which lasts, or one that the server makes.
///
/// A token of an earlier start serves again while it is in force for long enough; so starts don't pile tokens up,
/// and what they leave expires and is cleaned away.
///
/// # Errors
/// When `given` is not of the form `[a-z0-9]{6}.[a-z0-9]{16}`, or the API can't be reached.
pub async fn join_token(client: &Client, given: Option<&str>) -> Result<String, BoxError> {
    let now = chrono::Utc::now().timestamp();
    let (token, secret) = match given {
        Some(token) => (token.to_owned(), bootstrap_token::secret(token, None)),
        None => {
            let list = send(client, Method::GET, SECRETS, None).await?;
            let secrets = list["items"].as_array().into_iter().flatten();
            if let Some(token) = secrets.filter_map(|secret| bootstrap_token::reusable(secret, now)).next() {
                return Ok(token);
            }
            let token = bootstrap_token::generate();
            let secret = bootstrap_token::expiring_secret(&token, now);
            (token, secret)
        }
    };
    let secret = secret.ok_or("a bootstrap token must be of the form [a-z0-9]{6}.[a-z0-9]{16}")?;
    match send(client, Method::POST, SECRETS, Some(&secret)).await {
        Ok(_) => Ok(token),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(token),
        Err(error) => Err(error.into()),
    }
}

/// Makes the ServiceCIDR that says what `--service-cluster-ip-range` says, and calls it ready.
pub async fn service_cidr(client: &Client, cluster: &Cluster) -> Result<(), BoxError> {
    let wanted = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [cluster.service_cidr.to_string()]},
    });
    ensure(client, SERVICE_CIDRS, &wanted, &[]).await?;
    let path = format!("{SERVICE_CIDRS}/kubernetes");
    let mut current = send(client, Method::GET, &path, None).await?;
    let ready =
        current["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready");
    if ready || current["spec"] != wanted["spec"] || !current["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    current["status"] = json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": crate::write::now(),
    }]});
    send(client, Method::PUT, &format!("{path}/status"), Some(&current)).await?;
    Ok(())
}

/// Makes what servers of other groups read to know their users: `kube-system/extension-apiserver-authentication`.
pub async fn authentication(client: &Client, cluster: &Cluster) -> Result<(), BoxError> {
    let list = |name: &str| json!([name]).to_string();
    let wanted = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": cluster.client_ca,
            "requestheader-allowed-names": list(FRONT_PROXY_CLIENT),
            "requestheader-client-ca-file": cluster.front_proxy_ca,
            "requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
            "requestheader-group-headers": list("X-Remote-Group"),
            "requestheader-uid-headers": list("X-Remote-Uid"),
            "requestheader-username-headers": list("X-Remote-User"),
        },
    });
    ensure(client, "/api/v1/namespaces/kube-system/configmaps", &wanted, &["/data"]).await
}

/// Makes the classes of priority: of pods, and of requests.
pub async fn priorities(client: &Client) -> Result<(), BoxError> {
    priority::classes(client).await?;
    priority::flow_control(client).await
}

/// Looks at all of it again and again until `shutdown`.
pub(crate) async fn keep(client: Client, cluster: Cluster, shutdown: CancellationToken) {
    for round in 1_u32.. {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let result = async {
            namespaces(&client).await?;
            services(&client, &cluster).await?;
            service_cidr(&client, &cluster).await?;
            authentication(&client, &cluster).await?;
            if round.is_multiple_of(SLOW_ROUNDS) {
                priorities(&client).await?;
            }
            Ok::<_, BoxError>(())
        };
        if let Err(error) = result.await {
            tracing::warn!(%error, "keeping the built-in objects failed");
        }
    }
}

/// Makes an object, or brings the parts of it that are ours to what they should be.
async fn ensure(client: &Client, collection: &str, wanted: &Value, ours: &[&str]) -> Result<(), BoxError> {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("{collection}/{name}");
    let current: Value = match send(client, Method::GET, &path, None).await {
        Ok(current) => current,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            return match send(client, Method::POST, collection, Some(wanted)).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        Err(error) => return Err(error.into()),
    };
    let mut new = current.clone();
    for pointer in ours {
        if let (Some(place), Some(value)) = (new.pointer_mut(pointer), wanted.pointer(pointer)) {
            *place = value.clone();
        }
    }
    if new != current {
        send(client, Method::PUT, &path, Some(&new)).await?;
    }
    Ok(())
}

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, kube::Error> {
    let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}
