//! Images, as CRI's ImageService, and what the runtime needs of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Result;

/// Credentials for one registry host, from an imagePullSecret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
    /// OAuth2 identity token, when given instead of a password.
    pub identity_token: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// One image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of the image config.
    pub id: String,
    /// `name:tag` references, fully qualified.
    pub repo_tags: Vec<String>,
    /// `name@sha256:…` references.
    pub repo_digests: Vec<String>,
    /// Size on disk, bytes.
    pub size: u64,
    /// User of the image config: `Some(Ok(uid))` when numeric.
    pub uid: Option<u32>,
    /// User name of the image config, when not numeric.
    pub username: String,
}

/// CRI ImageService.
#[async_trait::async_trait]
pub trait ImageService: Send + Sync {
    /// Pulls an image; `auths` are tried in order, anonymous last. Gives the image as stored.
    async fn pull_image(&self, reference: &str, auths: &[RegistryAuth]) -> Result<Image>;
    /// The image that a reference, a digest reference or an id names, if present.
    async fn image_status(&self, reference: &str) -> Result<Option<Image>>;
    /// All images.
    async fn list_images(&self) -> Result<Vec<Image>>;
    /// Removes all references of an image; layers go when nothing uses them. Idempotent.
    async fn remove_image(&self, reference: &str) -> Result<()>;
    /// Folder of the store and bytes used in it.
    async fn fs_info(&self) -> Result<(PathBuf, u64)>;
}

/// The parts of an OCI image config that a container is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `User`: `uid`, `name`, `uid:gid`, …
    pub user: String,
    /// `Env`: `NAME=value`.
    pub env: Vec<String>,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
    /// `Volumes`: paths that get an anonymous volume.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
}

/// Unpacked layers of an image, ready to be overlayfs lower folders, with its config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackedImage {
    /// Image id.
    pub id: String,
    /// Lower folders, the topmost first (the order of overlayfs' `lowerdir=`).
    pub lowerdirs: Vec<PathBuf>,
    /// Config.
    pub config: ImageConfig,
}

/// What the runtime sees of the image store. An image in use by a container is never removed: the runtime leases it.
#[async_trait::async_trait]
pub trait ImageRootfs: Send + Sync {
    /// Layers and configs of images (ids or references), in the order given: that of a container and those of its
    /// volumes. Leased for `container_id` together, all or none.
    async fn lease(&self, images: &[&str], container_id: &str) -> Result<Vec<UnpackedImage>>;
    /// Ends the leases of a container. Idempotent.
    async fn release(&self, container_id: &str) -> Result<()>;
}
