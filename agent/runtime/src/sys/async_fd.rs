//! Descriptors in tokio's event loop.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor, for reading only when asked.
pub fn async_fd<T: AsFd + AsRawFd>(inner: T, read_only: bool) -> io::Result<AsyncFd<T>> {
    let interest = if read_only { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
    // SAFETY: all types passed here (OwnedFd, BorrowedFd) own or borrow one descriptor for their whole life and never
    // exchange it, and AsyncFd gives out shared references only.
    Ok(unsafe { AsyncFd::register_with_interest(inner, interest) }?)
}
