//! An image archive whose documents name each other by the right digests, imported as a node does: index, manifest,
//! configuration and docker's manifest, with a NUL between them.
#![no_main]

use std::sync::OnceLock;

use keelson_images::{ImageStore, ImageStoreConfig, Limits, RegistryConfig};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

static RUNTIME: OnceLock<Runtime> = OnceLock::new();

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts digest and size of a blob where the document says `@DIGEST@` and `@SIZE@`.
fn refer(document: &str, blob: &[u8]) -> String {
    document.replace("@DIGEST@", &format!("sha256:{}", digest(blob))).replace("@SIZE@", &blob.len().to_string())
}

fuzz_target!(|input: &str| {
    let mut documents = input.splitn(4, '\0').map(str::to_owned);
    let mut next = || documents.next().unwrap_or_default();
    let (index, manifest, config, docker) = (next(), next(), next(), next());
    let manifest = refer(&manifest, config.as_bytes());
    let index = refer(&index, manifest.as_bytes());
    let Ok(dir) = tempfile::tempdir() else { return };
    let path = dir.path().join("archive.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).expect("a new file"));
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).expect("a plain entry");
    };
    add(&format!("blobs/sha256/{}", digest(manifest.as_bytes())), manifest.as_bytes());
    add(&format!("blobs/sha256/{}", digest(config.as_bytes())), config.as_bytes());
    match docker.is_empty() {
        true => add("index.json", index.as_bytes()),
        false => {
            add("manifest.json", docker.as_bytes());
            add("config.json", config.as_bytes());
        }
    }
    tar.finish().expect("the end of the archive");
    let runtime = RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"));
    runtime.block_on(async {
        let config = ImageStoreConfig {
            root: dir.path().join("store"),
            import: dir.path().join("import"),
            registry: RegistryConfig::default(),
            limits: Limits { bytes: 1 << 20, entries: 100 },
        };
        let store = ImageStore::open(config).await.expect("an empty store");
        let _ = store.import(&path).await;
    });
});
