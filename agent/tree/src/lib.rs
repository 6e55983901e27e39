//! Walks folders whose content is hostile: volumes and writable layers, which running containers may change at any
//! moment of the walk.
//!
//! - [`walk`] shows every file and folder of a tree by descriptor. A name is looked up once, in the descriptor of the
//!   folder that it was read from, and never through a symlink or into another mount: a container that swaps a folder
//!   for a symlink changes what is found in its own volume, and nothing else.
//! - [`disk_usage`] measures a tree as `du` does.

mod usage;
mod walk;

pub use usage::disk_usage;
pub use walk::{Entry, WalkError, walk};
