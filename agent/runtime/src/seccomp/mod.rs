//! Seccomp filters: moby's profile format, evaluated for one container and compiled to classic BPF.
//!
//! The compiler is ours because the seccompiler crate allows one action for matches in a whole filter, while profiles
//! mix `ALLOW`, `ERRNO` with various numbers, `LOG` and `KILL`.

mod compile;
mod profile;
mod syscalls;

pub use compile::{Target, compile};
pub use profile::{Environment, Profile, parse_kernel};

/// What `RuntimeDefault` stands for: the system calls that the default profile of moby and containerd allows on x86_64 and
/// aarch64, so that images find what they find elsewhere. Derived from moby's profiles/seccomp (Apache-2.0).
pub const RUNTIME_DEFAULT: &str = include_str!("runtime_default.json");

#[cfg(test)]
mod interpreter;
