//! Listening sockets handed over by who started us (`sd_listen_fds(3)`).

use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// First handed-over descriptor, by the protocol.
const FIRST: i32 = 3;

/// The sockets of `LISTEN_FDS`; none if it is not set or meant for another process.
pub fn inherited() -> anyhow::Result<Vec<TcpListener>> {
    let meant_for_us = std::env::var("LISTEN_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let Ok(count) = std::env::var("LISTEN_FDS") else { return Ok(Vec::new()) };
    if !meant_for_us {
        return Ok(Vec::new());
    }
    let count: i32 = count.parse()?;
    anyhow::ensure!((0..=16).contains(&count), "LISTEN_FDS={count} is out of range");
    Ok((FIRST..FIRST + count)
        .map(|fd| {
            // SAFETY: by the sd_listen_fds protocol the descriptors from 3 on are open and ours alone; this runs
            // once, at the start of main, before anything else could have opened or closed descriptors.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            TcpListener::from(fd)
        })
        .collect())
}
