//! Pulling from a registry (OCI distribution specification) with oci-client.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::TryStreamExt;
use keelson_cri::{RegistryAuth, chain};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::{Client, RegistryOperation};
use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::ImageError;
use crate::digest::Digest;
use crate::index::{Record, canonical};
use crate::roots::machine_has_roots;
use crate::store::{ImageStore, Parts, unpack_verified};
use crate::transfer::{self, Transfer, patiently};

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
    /// A pull that gets no byte for this long has failed. The registry is asked again meanwhile, see [`Self::silence`].
    pub progress_timeout: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            extra_roots: Vec::new(),
            connect_timeout: Duration::from_secs(30),
            progress_timeout: Duration::from_secs(60),
        }
    }
}

impl RegistryConfig {
    /// Silence of a registry after which it is asked again.
    fn silence(&self) -> Duration {
        self.progress_timeout / transfer::TRIES
    }

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
            // For answers that do not begin; a body that stops is noticed by the transfer itself, a little before.
            read_timeout: Some(self.silence() + Duration::from_secs(1)),
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
    let mut refusal = None;
    let candidates = auths.iter().map(secret).chain([oci_client::secrets::RegistryAuth::Anonymous]);
    for auth in candidates {
        // A client remembers tokens by repository, so each try gets its own.
        let client = config.client(reference.resolve_registry())?;
        match (Pull { store, reference, client, config }).run(&auth).await {
            // What the registry says to the first, best fitting credentials tells most.
            Err(error @ ImageError::Refused { .. }) => drop(refusal.get_or_insert(error)),
            other => return other,
        }
    }
    Err(refusal.unwrap_or_else(|| ImageError::NotFound(canonical(reference))))
}

/// One pull, with one set of credentials.
struct Pull<'a> {
    store: &'a ImageStore,
    reference: &'a Reference,
    client: Client,
    config: &'a RegistryConfig,
}

impl Pull<'_> {
    fn failed(&self, error: &OciDistributionError) -> ImageError {
        let (reference, reason) = (canonical(self.reference), chain(error));
        if transfer::refused(error) {
            ImageError::Refused { reference, reason }
        } else {
            ImageError::Pull { reference, reason }
        }
    }

    async fn run(&self, auth: &oci_client::secrets::RegistryAuth) -> Result<Record, ImageError> {
        let (client, reference) = (&self.client, self.reference);
        patiently(|| client.auth(reference, auth, RegistryOperation::Pull))
            .await
            .map_err(|e| self.failed(&e))?;
        let bytes = self.manifest(reference, auth).await?;
        let digest = check_document(&bytes, reference.digest())?;
        let (bytes, named) = match choose_platform(&bytes)? {
            None => (bytes, digest),
            Some(chosen) => {
                let inner = reference.clone_with_digest(chosen.as_str().to_owned());
                let inner_bytes = self.manifest(&inner, auth).await?;
                check_document(&inner_bytes, Some(chosen.as_str()))?;
                // The name's digest is the index's, as other runtimes report it.
                (inner_bytes, digest)
            }
        };
        let manifest = ImageManifest::from_reader(&bytes[..])
            .map_err(|e| ImageError::Malformed { what: "image manifest".into(), reason: e.to_string() })?;
        let config = self.config_blob(manifest.config()).await?;
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let tags = match (reference.digest(), reference.tag()) {
            (None, Some(tag)) => BTreeSet::from([format!("{name}:{tag}")]),
            _ => BTreeSet::new(),
        };
        let parts = Parts { config, tags, digests: BTreeSet::from([format!("{name}@{}", named.as_str())]) };
        let layers = manifest.layers();
        self.store
            .assemble(parts, |n, diff_id| {
                let layer = layers.get(n).cloned();
                async move {
                    let layer = layer.ok_or_else(|| ImageError::Malformed {
                        what: "image manifest".into(),
                        reason: "fewer layers than the config says".into(),
                    })?;
                    self.layer(&layer, &diff_id).await
                }
            })
            .await
    }

    async fn manifest(
        &self,
        reference: &Reference,
        auth: &oci_client::secrets::RegistryAuth,
    ) -> Result<bytes::Bytes, ImageError> {
        let pulled = patiently(|| self.client.pull_manifest_raw(reference, auth, ACCEPTED)).await;
        Ok(pulled.map_err(|e| self.failed(&e))?.0)
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Transfer, ImageError> {
        let (digest, size) = (descriptor.digest().to_string(), descriptor.size());
        let silence = self.config.silence();
        let opened = Transfer::open(&self.client, self.reference, &digest, size, silence).await;
        opened.map_err(|e| self.failed(&e))
    }

    fn cut_off(&self, error: &std::io::Error) -> ImageError {
        ImageError::Pull { reference: canonical(self.reference), reason: error.to_string() }
    }

    async fn config_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let expected = Digest::parse(descriptor.digest().as_ref())?;
        let too_large =
            || ImageError::TooLarge { limit: MAX_DOCUMENT as u64, unit: "bytes of an image config" };
        if descriptor.size() > MAX_DOCUMENT as u64 {
            return Err(too_large());
        }
        let mut stream = std::pin::pin!(self.blob(descriptor).await?.stream());
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.try_next().await.map_err(|e| self.cut_off(&e))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_DOCUMENT {
                return Err(too_large());
            }
        }
        check_document(&bytes, Some(expected.as_str()))?;
        Ok(bytes)
    }

    async fn layer(&self, layer: &Descriptor, diff_id: &Digest) -> Result<u64, ImageError> {
        let expected = Digest::parse(layer.digest().as_ref())?;
        let size = layer.size();
        if let Some(size) = self.store.layer_size(diff_id) {
            return Ok(size);
        }
        let stream = self.blob(layer).await?.stream();
        let reader = SyncIoBridge::new(StreamReader::new(Box::pin(stream)));
        let unpacked = self.store.unpack_with(diff_id, move |into, limits, diff_id| {
            unpack_verified(reader, &expected, size, into, limits, diff_id)
        });
        unpacked.await.map_err(|error| match error {
            ImageError::Read(error) => self.cut_off(&error),
            other => other,
        })
    }
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
