//! What `keelson-podinit`, PID 1 of every pod, and the agent have in common: the protocol between them, the exit
//! record, and the framing of CRI log lines.
//!
//! The binary of this crate is static and is built on its own, by this command and no other (xtask runs it):
//!
//! ```text
//! CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
//!   cargo build -p keelson-podinit --profile podinit --target x86_64-unknown-linux-gnu
//! ```
//!
//! It leaves `target/x86_64-unknown-linux-gnu/podinit/keelson-podinit`.
//!
//! What podinit never does: it never forks, never opens a file by path, never connects to anything, and holds no
//! capability. Everything that it writes to was opened by the agent and handed over.
//!
//! It ends when the agent says so. SIGTERM, which systemd sends to every process of a machine that goes down, has it end as
//! soon as no process of the pod is left, and after 30 seconds at the latest.

pub mod logline;
pub mod protocol;
pub mod record;
