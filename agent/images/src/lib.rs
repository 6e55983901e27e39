//! Images on a node: pulled from registries, imported from OCI and docker archives, unpacked into overlayfs lower
//! folders.
//!
//! - [`ImageStore`] is the whole: it implements `keelson_cri::ImageService` for the kubelet and
//!   `keelson_cri::ImageRootfs` for the runtime.
//! - `registry` fetches by `transfer`s that survive interruptions, `archive` imports, `unpack` writes layers, `index`
//!   remembers.
//! - [`local`] takes the wishes of a person on the node: `keelson-agent image import`.
//!
//! Layers are unpacked while they stream in and their digests are checked before they are used: a compressed layer is
//! never kept. Everything in an image is hostile; nothing in it is run here.

mod archive;
mod digest;
mod error;
mod index;
pub mod local;
mod registry;
mod roots;
mod store;
mod transfer;
mod unpack;

pub use error::ImageError;
pub use registry::RegistryConfig;
pub use roots::{machine_has_roots, stand_in_if_missing};
pub use store::{ImageStore, ImageStoreConfig};
pub use unpack::{Limits, unpack_layer};
