//! Running one plugin once: as a program, or within this process.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::{DriverError, Result};
use crate::error::Error;
use crate::types::invocation::Command;
use crate::types::report::ErrorReport;

/// The longest output that is read from a plugin, in bytes. One that writes more breaks the protocol.
const MAX_OUTPUT: u64 = 1 << 20;
/// What is kept of its standard error, in bytes. That is for people, and how much there is of it is no error.
const MAX_LOG: u64 = 64 << 10;

/// One call of one plugin.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) plugin: String,
    pub(super) command: Command,
    pub(super) env: Vec<(&'static str, String)>,
    pub(super) stdin: Vec<u8>,
    pub(super) timeout: Duration,
}

/// The executable of a plugin: the first of `dirs` that has one.
pub(super) fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    dirs.iter()
        .map(|dir| dir.join(plugin))
        .find(executable)
        .ok_or_else(|| DriverError::NotFound { plugin: plugin.to_owned(), path: dirs.to_vec() })
}

/// Runs keelson-cni's own code, which takes the same bytes as the binary does.
pub(super) async fn in_process(call: Call) -> Result<Option<Value>> {
    let Call { plugin, command, env, stdin, timeout } = call;
    let work = move || {
        let get = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        crate::plugin::run(get, &stdin, timeout)
    };
    // The blocking thread only waits: the work itself is on a thread of its own, and ends by the deadline.
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::io("run plugin", std::io::Error::other(e)))?;
    done.map_err(|report| DriverError::Plugin { plugin, command: command.as_str(), report })
}

/// Runs a program, killing it and all it has started when it takes too long.
pub(super) async fn program(path: &Path, call: Call) -> Result<Option<Value>> {
    let broke = |reason: String| DriverError::Protocol {
        plugin: call.plugin.clone(),
        command: call.command.as_str(),
        reason,
    };
    let mut child = tokio::process::Command::new(path)
        .envs(call.env.iter().map(|(key, value)| (*key, value.as_str())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: plugins start further programs (delegated IPAM), which must not outlive it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Error::io(format!("execute {}", path.display()), e))?;
    let mut group = KillGroup(child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A plugin may end without reading its input; its status tells what that means.
            let _ = stdin.write_all(&call.stdin).await;
        }
    };
    let talk = async {
        let (_, out, err, status) = tokio::join!(write, read_output(stdout), read_log(stderr), child.wait());
        (out, err, status)
    };
    let Ok((out, err, status)) = tokio::time::timeout(call.timeout, talk).await else {
        return Err(DriverError::TimedOut {
            plugin: call.plugin.clone(),
            command: call.command.as_str(),
            timeout: call.timeout,
        });
    };
    // It ended in time: its process id may be someone else's from now on.
    group.0 = None;
    let status = status.map_err(|e| Error::io(format!("wait for {}", path.display()), e))?;
    let logged = excerpt(&err);
    if !logged.is_empty() {
        tracing::debug!(plugin = call.plugin, stderr = logged, "plugin wrote to stderr");
    }
    if out.len() as u64 > MAX_OUTPUT {
        return Err(broke(format!("output is longer than {MAX_OUTPUT} bytes")));
    }
    if !status.success() {
        return match serde_json::from_slice::<ErrorReport>(&out) {
            Ok(report) => Err(DriverError::Plugin {
                plugin: call.plugin.clone(),
                command: call.command.as_str(),
                report,
            }),
            Err(_not_a_report) => Err(broke(format!(
                "{status} without an error document; stdout {:?}, stderr {logged:?}",
                excerpt(&out)
            ))),
        };
    }
    if out.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&out)
        .map(Some)
        .map_err(|e| broke(format!("unreadable output {:?}: {e}", excerpt(&out))))
}

async fn read_output(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // One byte over the limit is enough to see that it was passed. What comes then meets a closed pipe.
        let _ = stream.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await;
    }
    bytes
}

async fn read_log(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(MAX_LOG).read_to_end(&mut bytes).await;
        // Read on, so that it is not the length of its log that ends a plugin.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    bytes
}

/// The start of what a plugin wrote, for messages that end up in events.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(512)];
    String::from_utf8_lossy(cut).trim().to_owned()
}

/// Kills a plugin's process group when its call is cut short: by the limit, or by a caller that drops it.
struct KillGroup(Option<u32>);

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // ESRCH: it ended at this moment.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
