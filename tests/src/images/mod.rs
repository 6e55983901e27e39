//! Container images made here: OCI archives assembled from Debian packages, from our own static programs and, for
//! upstream's test suite, from its Go programs. No script of a package is run while its image is made.
//!
//! - [`builder`]: layers and the OCI archive.
//! - [`rootfs`]: what the root file systems are made of.
//! - [`own`]: the images of our own tests and of the sample; [`apps`]: those of them that are real applications.
//! - [`unpack`]: an image as a plain folder.
//! - [`suite`]: the images that upstream's e2e suite asks for.

pub mod apps;
pub mod builder;
pub mod own;
pub mod rootfs;
pub mod suite;
pub mod unpack;

pub use own::{ALL, ensure, reference};
