//! A thread of its own for work that switches network namespaces.

use std::future::Future;
use std::time::Duration;

use crate::error::{Error, Result};

/// Runs the future that `work` makes on a new thread with its own single-threaded runtime, and blocks until
/// it ends or `deadline` has passed. The deadline is kept inside the thread, so nothing of it runs on after
/// the return.
pub(crate) fn run<T, W, F>(deadline: Duration, work: W) -> Result<T>
where
    T: Send + 'static,
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<T>>,
{
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("start runtime", e))?;
        runtime.block_on(async move {
            match tokio::time::timeout(deadline, work()).await {
                Ok(done) => done,
                Err(_elapsed) => Err(Error::TryAgain(format!("not done after {deadline:?}"))),
            }
        })
    };
    let thread = std::thread::Builder::new()
        .name("keelson-cni".into())
        .spawn(body)
        .map_err(|e| Error::io("start thread", e))?;
    match thread.join() {
        Ok(done) => done,
        Err(_panic) => Err(Error::io("network thread", std::io::Error::other("panicked"))),
    }
}
