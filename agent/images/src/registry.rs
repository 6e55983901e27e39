//! Pulling from a registry (OCI distribution specification) with oci-client.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::TryStreamExt;
use keelson_cri::{RegistryAuth, chain};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::manifest::OciDescriptor;
use oci_client::{Client, RegistryOperation};
use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::ImageError;
use crate::digest::Digest;
use crate::index::{Record, canonical};
use crate::roots::machine_has_roots;
use crate::store::{ImageStore, Parts, unpack_verified};

/// Largest manifest, index or config that is read. Registries cap manifests at 4 MiB.
const MAX_DOCUMENT: usize = 4 << 20;

/// Media types that a pull accepts, in order of preference.
const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) spoken to over plain HTTP; loopback addresses always are, as docker does.
    pub insecure: Vec<String>,
    /// Authorities trusted beside the system's, PEM.
    pub extra_roots: Vec<Vec<u8>>,
    /// Limit for making a connection.
    pub connect_timeout: Duration,
    /// A transfer that gets no byte for this long has failed.
    pub read_timeout: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            extra_roots: Vec::new(),
            connect_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
        }
    }
}

impl RegistryConfig {
    fn client(&self, registry: &str) -> Result<Client, ImageError> {
        // The client would panic.
        if !machine_has_roots() {
            let reason = "this machine has no CA certificates: install ca-certificates".to_owned();
            return Err(ImageError::Pull { reference: registry.to_owned(), reason });
        }
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let loopback =
            host == "localhost" || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        let plain = loopback || self.insecure.iter().any(|name| name == registry);
        let roots = self
            .extra_roots
            .iter()
            .map(|pem| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() })
            .collect();
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: roots,
            connect_timeout: Some(self.connect_timeout),
            read_timeout: Some(self.read_timeout),
            user_agent: concat!("keelson/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Client::try_from(config)
            .map_err(|e| ImageError::Pull { reference: registry.to_owned(), reason: chain(&e) })
    }
}

fn secret(auth: &RegistryAuth) -> oci_client::secrets::RegistryAuth {
    if auth.identity_token.is_empty() {
        oci_client::secrets::RegistryAuth::Basic(auth.username.clone(), auth.password.clone())
    } else {
        oci_client::secrets::RegistryAuth::Bearer(auth.identity_token.clone())
    }
}

/// Pulls an image into the store. Credentials are tried in order, anonymous access last.
pub(crate) async fn pull(
    store: &ImageStore,
    reference: &Reference,
    auths: &[RegistryAuth],
    config: &RegistryConfig,
) -> Result<Record, ImageError> {
    let mut last = None;
    let candidates = auths.iter().map(secret).chain([oci_client::secrets::RegistryAuth::Anonymous]);
    for auth in candidates {
        // A client remembers tokens by repository, so each try gets its own.
        let client = config.client(reference.resolve_registry())?;
        match pull_as(store, reference, &client, &auth).await {
            Ok(record) => return Ok(record),
            // What was fetched but wrong stays wrong with other credentials.
            Err(error @ ImageError::Pull { .. }) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| ImageError::NotFound(canonical(reference))))
}

async fn pull_as(
    store: &ImageStore,
    reference: &Reference,
    client: &Client,
    auth: &oci_client::secrets::RegistryAuth,
) -> Result<Record, ImageError> {
    let failed = |e: oci_client::errors::OciDistributionError| ImageError::Pull {
        reference: canonical(reference),
        reason: chain(&e),
    };
    client.auth(reference, auth, RegistryOperation::Pull).await.map_err(failed)?;
    let (bytes, _) = client.pull_manifest_raw(reference, auth, ACCEPTED).await.map_err(failed)?;
    let digest = check_document(&bytes, reference.digest())?;
    let (bytes, named) = match choose_platform(&bytes)? {
        None => (bytes, digest),
        Some(chosen) => {
            let inner = reference.clone_with_digest(chosen.as_str().to_owned());
            let (inner_bytes, _) = client.pull_manifest_raw(&inner, auth, ACCEPTED).await.map_err(failed)?;
            check_document(&inner_bytes, Some(chosen.as_str()))?;
            // The name's digest is the index's, as other runtimes report it.
            (inner_bytes, digest)
        }
    };
    let manifest = ImageManifest::from_reader(&bytes[..])
        .map_err(|e| ImageError::Malformed { what: "image manifest".into(), reason: e.to_string() })?;
    let config = fetch_config(client, reference, manifest.config()).await?;
    let name = format!("{}/{}", reference.registry(), reference.repository());
    let tags = match (reference.digest(), reference.tag()) {
        (None, Some(tag)) => BTreeSet::from([format!("{name}:{tag}")]),
        _ => BTreeSet::new(),
    };
    let parts = Parts { config, tags, digests: BTreeSet::from([format!("{name}@{}", named.as_str())]) };
    let layers = manifest.layers();
    store
        .assemble(parts, |n, diff_id| {
            let layer = layers.get(n).cloned();
            async move {
                let layer = layer.ok_or_else(|| ImageError::Malformed {
                    what: "image manifest".into(),
                    reason: "fewer layers than the config says".into(),
                })?;
                fetch_layer(store, client, reference, &layer, &diff_id).await
            }
        })
        .await
}

fn check_document(bytes: &[u8], expected: Option<&str>) -> Result<Digest, ImageError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(ImageError::TooLarge { limit: MAX_DOCUMENT as u64, unit: "bytes of a manifest" });
    }
    let found = Digest::of(bytes);
    match expected {
        Some(expected) if expected != found.as_str() => Err(ImageError::Mismatch {
            what: "digest of the manifest".into(),
            expected: expected.to_owned(),
            found: found.as_str().to_owned(),
        }),
        _ => Ok(found),
    }
}

/// When the document is an index, the digest of the manifest for this machine; none when it is a manifest itself.
pub(crate) fn choose_platform(bytes: &[u8]) -> Result<Option<Digest>, ImageError> {
    let malformed = |reason: String| ImageError::Malformed { what: "image index".into(), reason };
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    if value.get("manifests").is_none() {
        return Ok(None);
    }
    let index = ImageIndex::from_reader(bytes).map_err(|e| malformed(e.to_string()))?;
    let arch = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
    let fits = |descriptor: &&Descriptor| match descriptor.platform() {
        Some(platform) => platform.os().to_string() == "linux" && platform.architecture().to_string() == arch,
        None => true,
    };
    let chosen = index
        .manifests()
        .iter()
        .find(fits)
        .ok_or_else(|| malformed(format!("no manifest for linux/{arch}")))?;
    Digest::parse(chosen.digest().as_ref()).map(Some)
}

async fn fetch_config(
    client: &Client,
    reference: &Reference,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, ImageError> {
    let expected = Digest::parse(descriptor.digest().as_ref())?;
    if descriptor.size() > MAX_DOCUMENT as u64 {
        return Err(ImageError::TooLarge { limit: MAX_DOCUMENT as u64, unit: "bytes of an image config" });
    }
    let mut stream = blob(client, reference, descriptor).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.try_next().await.map_err(ImageError::Read)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_DOCUMENT {
            return Err(ImageError::TooLarge {
                limit: MAX_DOCUMENT as u64,
                unit: "bytes of an image config",
            });
        }
    }
    check_document(&bytes, Some(expected.as_str()))?;
    Ok(bytes)
}

type Chunks = futures::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>;

async fn blob(client: &Client, reference: &Reference, descriptor: &Descriptor) -> Result<Chunks, ImageError> {
    let wanted = OciDescriptor {
        digest: descriptor.digest().to_string(),
        size: i64::try_from(descriptor.size()).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    let sized = client
        .pull_blob_stream(reference, &wanted)
        .await
        .map_err(|e| ImageError::Pull { reference: canonical(reference), reason: chain(&e) })?;
    Ok(sized.stream)
}

async fn fetch_layer(
    store: &ImageStore,
    client: &Client,
    reference: &Reference,
    layer: &Descriptor,
    diff_id: &Digest,
) -> Result<u64, ImageError> {
    let expected = Digest::parse(layer.digest().as_ref())?;
    let size = layer.size();
    if let Some(size) = store.layer_size(diff_id) {
        return Ok(size);
    }
    let stream = blob(client, reference, layer).await?;
    let reader = SyncIoBridge::new(StreamReader::new(stream));
    store
        .unpack_with(diff_id, move |into, limits, diff_id| {
            unpack_verified(reader, &expected, size, into, limits, diff_id)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_for_this_machine_is_chosen() {
        let entry = |arch: &str, fill: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{}","size":1,
                    "platform":{{"architecture":"{arch}","os":"linux"}}}}"#,
                fill.repeat(64)
            )
        };
        let index =
            format!(r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#, entry("s390x", "a"), entry("amd64", "b"));
        if std::env::consts::ARCH == "x86_64" {
            let chosen = choose_platform(index.as_bytes()).unwrap().unwrap();
            assert_eq!(chosen.hex(), "b".repeat(64));
        }
        let none = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entry("s390x", "a"));
        assert!(choose_platform(none.as_bytes()).is_err());
        assert!(choose_platform(br#"{"schemaVersion":2,"layers":[]}"#).unwrap().is_none());
    }
}
