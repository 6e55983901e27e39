//! Pulls from a registry on loopback: layers in gzip and zstd, an index, credentials, and a registry that lies. Root is
//! needed to unpack (owners).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use keelson_cri::{CriError, ImageRootfs, ImageService, RegistryAuth};
use keelson_images::{ImageStore, ImageStoreConfig, Limits, RegistryConfig};
use serde_json::{Value, json};
use sha2::Digest;

/// What the registry serves, by digest and by tag.
#[derive(Default)]
struct Content {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    password: Option<&'static str>,
}

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

    /// An image of two layers under a tag, behind an index.
    fn image(&mut self, tag: &str) {
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
    }

    async fn serve(self) -> String {
        let routes = Router::new()
            .route("/v2/", get(ping))
            .route("/v2/app/manifests/{reference}", get(manifest))
            .route("/v2/app/blobs/{digest}", get(blob))
            .with_state(Arc::new(self));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        address.to_string()
    }

    fn refuse(&self, headers: &HeaderMap) -> Option<Response> {
        use base64::Engine;
        let password = self.password?;
        let expected = base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        (given != Some(&format!("Basic {expected}"))).then(|| {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")], "{}")
                .into_response()
        })
    }
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
            ([(header::CONTENT_TYPE, media_type.clone())], bytes.clone()).into_response()
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
    content
        .blobs
        .get(&digest)
        .map_or_else(|| StatusCode::NOT_FOUND.into_response(), |bytes| bytes.clone().into_response())
}

async fn store() -> (tempfile::TempDir, Arc<ImageStore>) {
    // The process's TLS provider; a second test finds it set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let config = ImageStoreConfig {
        root: dir.path().join("images"),
        import: dir.path().join("import"),
        registry: RegistryConfig { read_timeout: Duration::from_secs(5), ..RegistryConfig::default() },
        limits: Limits::default(),
    };
    let store = ImageStore::open(config).await.unwrap();
    (dir, store)
}

#[tokio::test]
async fn an_index_with_gzip_and_zstd_layers() {
    let mut content = Content::default();
    content.image("v1");
    let registry = content.serve().await;
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
    let mut content = Content { password: Some("right"), ..Content::default() };
    content.image("v1");
    let reference = format!("{}/app:v1", content.serve().await);
    let (_dir, store) = store().await;
    let auth = |password: &str| RegistryAuth {
        username: "user".into(),
        password: password.into(),
        identity_token: String::new(),
    };
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
    let registry = content.serve().await;
    let (dir, store) = store().await;
    let error = store.pull_image(&format!("{registry}/app:v1"), &[]).await.unwrap_err();
    assert!(matches!(error, CriError::ImagePull(_)), "{error}");
    assert!(store.list_images().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(dir.path().join("images/layers")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);
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
