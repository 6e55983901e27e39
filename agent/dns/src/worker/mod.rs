//! The worker: a process without privileges that holds the sockets and the zone, and answers whether an agent runs or
//! not.
//!
//! The agent feeds it ([`keep`]). An agent that starts finds the worker that its predecessor left by its socket in
//! [`Place::dir`], and goes on with it when it is the same program with the same settings. Otherwise it starts another,
//! which takes the sockets over, and retires the old one once the new one has a whole zone: no query is lost in
//! between.

mod keeper;
mod process;
mod wire;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use keeper::{keep, retire};
pub use process::run;

/// Name under which a program is the worker.
const ARGV0: &str = "keelson-dns";

/// Whether this process was started as the worker: then `main` has to call [`run`] and nothing else.
pub fn requested() -> bool {
    std::env::args_os().next().is_some_and(|name| name == ARGV0)
}

/// Where the agent has its worker.
#[derive(Debug, Clone)]
pub struct Place {
    /// Folder of the workers' sockets, made when it is missing. It must be the agent's alone.
    pub dir: PathBuf,
    /// A program whose `main` heeds [`requested`].
    pub program: PathBuf,
    /// The worker's environment.
    pub env: Vec<(String, String)>,
}

/// Which program a file is: one of the same place, age and size is taken for the same.
fn identity(program: &Path) -> io::Result<String> {
    let file = std::fs::metadata(program)?;
    Ok(format!(
        "{} {}:{} {}.{:09} {}",
        env!("CARGO_PKG_VERSION"),
        file.dev(),
        file.ino(),
        file.mtime(),
        file.mtime_nsec(),
        file.size()
    ))
}
