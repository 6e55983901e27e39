//! A machine without CA certificates: pulls over plain HTTP fail for their own reasons only, and say so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use keelson_cri::ImageService;
use keelson_images::{
    ImageStore, ImageStoreConfig, Limits, RegistryConfig, machine_has_roots, stand_in_if_missing,
};

const INNER: &str = "KEELSON_TEST_WITHOUT_ROOTS";

/// Runs the test named in a process of its own that finds no CA certificates. `true`: this is that process.
fn without_roots(test: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let mut inner = std::process::Command::new(std::env::current_exe().unwrap());
    inner.args(["--exact", test, "--test-threads=1"]);
    inner.env(INNER, "1").env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
    let output = inner.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

fn pull_from_nowhere(dir: &std::path::Path) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = ImageStoreConfig {
            root: dir.join("images"),
            import: dir.join("import"),
            registry: RegistryConfig::default(),
            limits: Limits::default(),
        };
        let store = ImageStore::open(config).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        store.pull_image(&format!("{address}/app:v1"), &[]).await.unwrap_err().to_string()
    })
}

#[test]
fn without_a_stand_in_the_reason_is_told() {
    if !without_roots("without_a_stand_in_the_reason_is_told") {
        return;
    }
    assert!(!machine_has_roots());
    let dir = tempfile::tempdir().unwrap();
    let error = pull_from_nowhere(dir.path());
    assert!(error.contains("install ca-certificates"), "{error}");
}

#[test]
fn with_a_stand_in_registries_over_plain_http_are_asked() {
    if !without_roots("with_a_stand_in_registries_over_plain_http_are_asked") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // SAFETY: the process was started for this one test, whose thread waits for nothing else; nobody reads the
    // environment meanwhile.
    assert!(unsafe { stand_in_if_missing(dir.path()) }.unwrap());
    assert!(machine_has_roots());
    let error = pull_from_nowhere(dir.path());
    assert!(error.contains("Connection refused"), "{error}");
}
