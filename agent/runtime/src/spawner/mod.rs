//! The spawner: a helper process with one thread, from which podinits, containers and execs are born. tokio's threads
//! can't do that: setns to a mount namespace and fork need a process with one thread.
//!
//! It is this very program, started again under the name [`ARGV0`] from a read-only clone of its file (so that a
//! container that gets hold of /proc/<pid>/exe can't write to the agent's binary, CVE-2019-5736). `main` must call
//! [`main_if_requested`] before anything else. It lives and dies with the agent; what it gave birth to does not.

mod client;
mod container;
mod image_volume;
mod in_root;
mod process;
mod protocol;
mod rootfs;
mod sandbox;
mod server;

pub use client::{ChildSync, Spawned, Spawner, readonly_clone};
pub use image_volume::check as check_image_volume;
pub use protocol::{Failure, FailureKind, Request};

/// Name under which this program is the spawner.
pub const ARGV0: &str = "keelson-spawner";

/// Becomes the spawner when started as one, and then never returns.
pub fn main_if_requested() {
    if std::env::args_os().next().is_some_and(|name| name == ARGV0) {
        server::run();
    }
}
