//! Pulls from a registry on loopback: layers in gzip and zstd, an index, credentials, and a registry that lies. Root is
//! needed to unpack (owners).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use keelson_cri::{CriError, ImageRootfs, ImageService, RegistryAuth};
use keelson_images::{ImageStore, ImageStoreConfig, Limits, RegistryConfig};
use serde_json::{Value, json};
use sha2::Digest;

/// What the registry serves, by digest and by tag, and what it does wrong.
#[derive(Default)]
struct Content {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    access: Access,
    /// By digest or tag: how it answers next, once each.
    faults: Mutex<HashMap<String, VecDeque<Fault>>>,
    /// Digest and first byte of each answer to a request for a blob.
    asked: Mutex<Vec<(String, usize)>>,
    no_ranges: bool,
}

/// Whom it lets in.
#[derive(Default)]
enum Access {
    #[default]
    All,
    /// Who gives this password.
    Basic(&'static str),
    /// Who has a token, which it gives for this password at this address.
    Bearer(&'static str, String),
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Status(u16),
    /// Ends the connection after so many bytes.
    Cut(usize),
    /// Says nothing more after so many bytes.
    Stall(usize),
}

const TOKEN: &str = "the-token";

fn digest(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

impl Content {
    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    fn manifest(&mut self, tag: &str, media_type: &str, value: &Value) -> Value {
        let bytes = serde_json::to_vec(value).unwrap();
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len(),
            "platform": {"os": "linux", "architecture": "amd64"}});
        for name in [tag.to_owned(), digest] {
            self.manifests.insert(name, (media_type.to_owned(), bytes.clone()));
        }
        descriptor
    }

    /// An image of two layers under a tag, behind an index; gives the digest of its lower layer.
    fn image(&mut self, tag: &str) -> String {
        let (lower, upper) = (layer("lower", "from gzip"), layer("upper", "from zstd"));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&lower).unwrap();
        let layers = [
            self.blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.finish().unwrap()),
            self.blob(
                "application/vnd.oci.image.layer.v1.tar+zstd",
                zstd::encode_all(&upper[..], 3).unwrap(),
            ),
        ];
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/upper"], "User": "7"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&lower), digest(&upper)]}});
        let config =
            self.blob("application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config).unwrap());
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let inner = json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": layers});
        let inner = self.manifest("inner", manifest, &inner);
        let index = "application/vnd.oci.image.index.v1+json";
        self.manifest(tag, index, &json!({"schemaVersion": 2, "mediaType": index, "manifests": [inner]}));
        layers[0]["digest"].as_str().unwrap().to_owned()
    }

    fn fault(self, of: &str, faults: &[Fault]) -> Self {
        self.faults.lock().unwrap().insert(of.to_owned(), faults.iter().copied().collect());
        self
    }

    async fn serve(self) -> (String, Arc<Self>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.serve_at(listener).await
    }

    async fn serve_at(self, listener: tokio::net::TcpListener) -> (String, Arc<Self>) {
        let content = Arc::new(self);
        let routes = Router::new()
            .route("/v2/", get(ping))
            .route("/token", get(token))
            .route("/v2/app/manifests/{reference}", get(manifest))
            .route("/v2/app/blobs/{digest}", get(blob))
            .with_state(content.clone());
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (address.to_string(), content)
    }

    fn refuse(&self, headers: &HeaderMap) -> Option<Response> {
        let (wanted, challenge) = match &self.access {
            Access::All => return None,
            Access::Basic(password) => (basic(password), "Basic realm=\"test\"".to_owned()),
            Access::Bearer(_, realm) => {
                (format!("Bearer {TOKEN}"), format!("Bearer realm=\"{realm}\",service=\"test\""))
            }
        };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        (given != Some(&wanted)).then(|| {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)], "{}").into_response()
        })
    }

    /// The answer with these bytes from `from` on, or what is wrong with it.
    fn answer(&self, name: &str, bytes: &[u8], from: usize) -> Response {
        let fault = self.faults.lock().unwrap().get_mut(name).and_then(VecDeque::pop_front);
        let status = if from == 0 { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
        let part = |to: usize| Ok(bytes::Bytes::copy_from_slice(&bytes[from..(from + to).min(bytes.len())]));
        let body = match fault {
            None => return (status, bytes[from..].to_vec()).into_response(),
            Some(Fault::Status(code)) => {
                let text = if code == 429 { r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"# } else { "busy" };
                return (StatusCode::from_u16(code).unwrap(), text).into_response();
            }
            Some(Fault::Cut(to)) => {
                let broken = async {
                    // Until what came before is on its way.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(std::io::Error::other("cut off"))
                };
                Body::from_stream(futures::stream::iter([part(to)]).chain(futures::stream::once(broken)))
            }
            Some(Fault::Stall(to)) => {
                Body::from_stream(futures::stream::iter([part(to)]).chain(futures::stream::pending()))
            }
        };
        (status, body).into_response()
    }
}

fn basic(password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("user:{password}")))
}

fn layer(name: &str, content: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

async fn ping(State(content): State<Arc<Content>>, headers: HeaderMap) -> Response {
    content.refuse(&headers).unwrap_or_else(|| "{}".into_response())
}

async fn token(State(content): State<Arc<Content>>, uri: axum::http::Uri, headers: HeaderMap) -> Response {
    let Access::Bearer(password, _) = &content.access else { return StatusCode::NOT_FOUND.into_response() };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let query = uri.query().unwrap_or_default();
    let scoped = query.contains("service=test") && query.contains("scope=repository%3Aapp%3Apull");
    if given == Some(&basic(password)) && scoped {
        json!({"token": TOKEN, "expires_in": 300}).to_string().into_response()
    } else {
        (StatusCode::UNAUTHORIZED, "no token for you").into_response()
    }
}

async fn manifest(
    State(content): State<Arc<Content>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = content.refuse(&headers) {
        return refused;
    }
    match content.manifests.get(&name) {
        Some((media_type, bytes)) => {
            let mut answer = content.answer(&name, bytes, 0);
            answer.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
            answer
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn blob(
    State(content): State<Arc<Content>>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Some(refused) = content.refuse(&headers) {
        return refused;
    }
    let Some(bytes) = content.blobs.get(&digest) else { return StatusCode::NOT_FOUND.into_response() };
    let range =
        headers.get(header::RANGE).and_then(|value| value.to_str().ok()).filter(|_| !content.no_ranges);
    let from = range
        .map_or(0, |range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap());
    content.asked.lock().unwrap().push((digest.clone(), from));
    content.answer(&digest, bytes, from)
}

fn auth(password: &str) -> RegistryAuth {
    RegistryAuth { username: "user".into(), password: password.into(), identity_token: String::new() }
}

/// What a store's folder holds of images: layers, half-unpacked ones, pins of pulls.
fn kept(dir: &tempfile::TempDir) -> Vec<usize> {
    let count = |name: &str| std::fs::read_dir(dir.path().join("images").join(name)).unwrap().count();
    ["layers", "tmp", "leases"].map(count).to_vec()
}

async fn store() -> (tempfile::TempDir, Arc<ImageStore>) {
    // The process's TLS provider; a second test finds it set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let config = ImageStoreConfig {
        root: dir.path().join("images"),
        import: dir.path().join("import"),
        registry: RegistryConfig {
            progress_timeout: Duration::from_millis(1500),
            ..RegistryConfig::default()
        },
        limits: Limits::default(),
    };
    let store = ImageStore::open(config).await.unwrap();
    (dir, store)
}

#[tokio::test]
async fn an_index_with_gzip_and_zstd_layers() {
    let mut content = Content::default();
    content.image("v1");
    let (registry, _) = content.serve().await;
    let (_dir, store) = store().await;
    let image = store.pull_image(&format!("{registry}/app:v1"), &[]).await.unwrap();
    assert_eq!(image.repo_tags, [format!("{registry}/app:v1")]);
    assert_eq!((image.repo_digests.len(), image.uid), (1, Some(7)));
    let unpacked = store.lease(&[&image.id], "c").await.unwrap().remove(0);
    let read = |n: usize, name: &str| std::fs::read_to_string(unpacked.lowerdirs[n].join(name)).unwrap();
    assert_eq!((read(0, "upper"), read(1, "lower")), ("from zstd".to_owned(), "from gzip".to_owned()));
    // By digest it is the same image, and there already.
    let by_digest = store.pull_image(&image.repo_digests[0], &[]).await.unwrap();
    assert_eq!(by_digest.id, image.id);
    assert!(store.image_status(&image.repo_digests[0]).await.unwrap().is_some());
}

#[tokio::test]
async fn credentials_are_tried_in_order() {
    let mut content = Content { access: Access::Basic("right"), ..Content::default() };
    content.image("v1");
    let reference = format!("{}/app:v1", content.serve().await.0);
    let (_dir, store) = store().await;
    let refused = store.pull_image(&reference, &[auth("wrong")]).await.unwrap_err();
    assert!(matches!(refused, CriError::ImagePull(_)), "{refused}");
    assert!(!refused.to_string().contains("wrong"), "no secret in an error: {refused}");
    store.pull_image(&reference, &[auth("wrong"), auth("right")]).await.unwrap();
}

#[tokio::test]
async fn wrong_content_is_never_used() {
    let mut content = Content::default();
    content.image("v1");
    let layers: Vec<String> = content.blobs.keys().cloned().collect();
    for digest in layers {
        content.blobs.get_mut(&digest).unwrap().push(0);
    }
    let (registry, _) = content.serve().await;
    let (dir, store) = store().await;
    let error = store.pull_image(&format!("{registry}/app:v1"), &[]).await.unwrap_err();
    assert!(matches!(error, CriError::ImagePull(_)), "{error}");
    assert!(store.list_images().await.unwrap().is_empty());
    assert_eq!(kept(&dir), [0, 0, 0]);
    let missing = store.pull_image(&format!("{registry}/app:nope"), &[]).await.unwrap_err();
    assert!(matches!(missing, CriError::ImagePull(_)), "{missing}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named_with_the_cause() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (_dir, store) = store().await;
    let error = store.pull_image(&format!("{address}/app:v1"), &[]).await.unwrap_err().to_string();
    assert!(error.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_token_is_got_with_the_credentials() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let mut content = Content { access: Access::Bearer("right", realm), ..Content::default() };
    content.image("v1");
    let reference = format!("{}/app:v1", content.serve_at(listener).await.0);
    let (_dir, store) = store().await;
    for refused in [&[][..], &[auth("wrong")]] {
        let error = store.pull_image(&reference, refused).await.unwrap_err();
        assert!(error.to_string().contains("no token for you"), "{error}");
    }
    store.pull_image(&reference, &[auth("wrong"), auth("right")]).await.unwrap();
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let mut content = Content::default();
    let layer = content.image("v1");
    let content =
        content.fault("v1", &[Fault::Status(429)]).fault(&layer, &[Fault::Status(503), Fault::Status(429)]);
    let (registry, _) = content.serve().await;
    let (_dir, store) = store().await;
    store.pull_image(&format!("{registry}/app:v1"), &[]).await.unwrap();
    // Not for ever.
    let mut content = Content::default();
    content.image("v1");
    let (registry, _) = content.fault("v1", &[Fault::Status(503); 3]).serve().await;
    let error = store.pull_image(&format!("{registry}/app:v1"), &[]).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_was_left() {
    for (fault, no_ranges, resumed) in [
        (Fault::Cut(20), false, 20),
        (Fault::Stall(30), false, 30),
        (Fault::Cut(20), true, 0),
        (Fault::Cut(0), false, 0),
    ] {
        let mut content = Content { no_ranges, ..Content::default() };
        let layer = content.image("v1");
        let (registry, content) = content.fault(&layer, &[fault]).serve().await;
        let (_dir, store) = store().await;
        let image = store.pull_image(&format!("{registry}/app:v1"), &[]).await.unwrap();
        let asked = content.asked.lock().unwrap().clone();
        let of_layer: Vec<usize> =
            asked.iter().filter(|(of, _)| *of == layer).map(|(_, from)| *from).collect();
        assert_eq!(of_layer, [0, resumed], "{fault:?}");
        let unpacked = store.lease(&[&image.id], "c").await.unwrap().remove(0);
        assert_eq!(std::fs::read_to_string(unpacked.lowerdirs[1].join("lower")).unwrap(), "from gzip");
    }
}

#[tokio::test]
async fn a_registry_that_stays_silent_is_given_up() {
    let mut content = Content::default();
    let layer = content.image("v1");
    let size = content.blobs[&layer].len();
    let (registry, content) =
        content.fault(&layer, &[Fault::Stall(10), Fault::Stall(0), Fault::Stall(0)]).serve().await;
    let (dir, store) = store().await;
    let reference = format!("{registry}/app:v1");
    let begun = std::time::Instant::now();
    let error = store.pull_image(&reference, &[auth("x")]).await.unwrap_err().to_string();
    let wanted = format!(
        "failed to pull image \"{reference}\": the registry sent nothing for 500ms, after 10 of {size} bytes of {layer} (tried 3 times)"
    );
    assert_eq!(error, wanted);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(store.list_images().await.unwrap().is_empty());
    // The other layer is whole and is not fetched again by the next try, which finds the registry well.
    assert_eq!(kept(&dir), [1, 0, 0]);
    content.asked.lock().unwrap().clear();
    store.pull_image(&reference, &[]).await.unwrap();
    let layers = content.asked.lock().unwrap().iter().filter(|(digest, _)| *digest == layer).count();
    assert_eq!((layers, content.asked.lock().unwrap().len()), (1, 2), "config and layer");
}

#[tokio::test]
async fn of_an_image_with_one_wrong_layer_nothing_is_kept() {
    let mut content = Content::default();
    let layer = content.image("v1");
    // As long as it should be.
    *content.blobs.get_mut(&layer).unwrap().last_mut().unwrap() ^= 1;
    let (registry, _) = content.serve().await;
    let (dir, store) = store().await;
    let error = store.pull_image(&format!("{registry}/app:v1"), &[]).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("digest of a layer: expected {layer}")), "{error}");
    assert!(store.list_images().await.unwrap().is_empty());
    assert_eq!(kept(&dir), [0, 0, 0]);
}

#[tokio::test]
async fn a_manifest_must_be_what_its_digest_says() {
    let mut content = Content::default();
    content.image("v1");
    let bytes = content.manifests["v1"].1.clone();
    let named = digest(&bytes);
    content.manifests.get_mut(&named).unwrap().1.push(b' ');
    let (registry, _) = content.serve().await;
    let (dir, store) = store().await;
    let error = store.pull_image(&format!("{registry}/app@{named}"), &[]).await.unwrap_err();
    assert!(matches!(error, CriError::ImagePull(_)) && error.to_string().contains(&named), "{error}");
    assert_eq!(kept(&dir), [0, 0, 0]);
}

#[tokio::test]
async fn what_an_interrupted_pull_left_goes_at_the_next_start() {
    let (dir, store) = store().await;
    let images = dir.path().join("images");
    drop(store);
    let hex = "0".repeat(64);
    std::fs::create_dir_all(images.join("layers").join(&hex).join("fs")).unwrap();
    let lease = json!({"image": "", "layers": [format!("sha256:{hex}")]}).to_string();
    std::fs::write(images.join("leases/pull-1-1"), lease).unwrap();
    std::fs::write(images.join("leases/abc.partial"), "{").unwrap();
    let config = ImageStoreConfig {
        root: images,
        import: dir.path().join("import"),
        registry: RegistryConfig::default(),
        limits: Limits::default(),
    };
    ImageStore::open(config).await.unwrap();
    assert_eq!(kept(&dir), [0, 0, 0]);
}
