//! Seccomp filters: moby's profile format, evaluated for one container and compiled to classic BPF.
//!
//! The compiler is ours because the seccompiler crate allows one action for matches in a whole filter, while profiles
//! mix `ALLOW`, `ERRNO` with various numbers, `LOG` and `KILL`.

mod compile;
mod profile;
mod syscalls;

pub use compile::{Target, compile};
pub use profile::{Environment, Profile, parse_kernel};

/// The default profile of moby and containerd, which `RuntimeDefault` stands for.
pub const RUNTIME_DEFAULT: &str = include_str!("default.json");

#[cfg(test)]
mod interpreter;
