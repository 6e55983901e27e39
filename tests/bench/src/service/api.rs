//! The API server, from inside a pod's network namespace.

use std::fs::File;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Network namespace of the host's first process.
const HOST: &str = "/proc/1/ns/net";

/// Does work on a thread of its own in the host's network namespace, from where the API server can be reached.
pub fn in_host<T: Send + 'static, F: Future<Output = Result<T>>>(
    work: impl FnOnce() -> F + Send + 'static,
) -> JoinHandle<Result<T>> {
    std::thread::spawn(move || {
        let host = File::open(HOST).with_context(|| format!("open {HOST}"))?;
        setns(host, CloneFlags::CLONE_NEWNET).context("join the host's network namespace")?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
    })
}

/// What the thread came to.
pub fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_panic| anyhow::anyhow!("the thread for the API panicked"))?
}
