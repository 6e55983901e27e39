//! Runs a command in a container and gives its exit code and the beginning of its output.

use std::time::Duration;

use keelson_cri::{ExecRequest, RuntimeService};
use tokio::io::AsyncReadExt;

use super::ProbeOutcome;

/// Output beyond this is read and dropped: upstream's maxReadLength.
const MAX_OUTPUT: usize = 10 * 1024;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEnd {
    /// It ended, with this code and output.
    Exited(i32, String),
    /// It did not end in time and was killed.
    TimedOut,
    /// It could not be run.
    Error(String),
}

/// Runs it. Dropping the future kills the command.
pub async fn run(
    runtime: &dyn RuntimeService,
    container_id: &str,
    command: &[String],
    timeout: Duration,
) -> ExecEnd {
    let work = async {
        let request = ExecRequest { command: command.to_vec(), tty: false, stdin: false };
        let mut session = runtime.exec(container_id, request).await.map_err(|e| e.to_string())?;
        let out = session.stdout.take();
        let err = session.stderr.take();
        let (mut text, more) = tokio::join!(drain(out), drain(err));
        text.extend(more);
        text.truncate(MAX_OUTPUT);
        let code = (&mut session.exit)
            .await
            .map_err(|_closed| "exec session ended without an exit code".to_owned())?;
        let code = code.map_err(|e| e.to_string())?;
        Ok::<_, String>((code, String::from_utf8_lossy(&text).into_owned()))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(Ok((code, output))) => ExecEnd::Exited(code, output),
        Ok(Err(error)) => ExecEnd::Error(error),
        Err(_elapsed) => ExecEnd::TimedOut,
    }
}

async fn drain(stream: Option<keelson_cri::BoxRead>) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut kept = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return kept,
            Ok(n) => {
                let room = MAX_OUTPUT.saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..n.min(room)]);
            }
        }
    }
}

/// An exec probe.
pub async fn probe(
    runtime: &dyn RuntimeService,
    container_id: &str,
    command: &[String],
    timeout: Duration,
) -> ProbeOutcome {
    match run(runtime, container_id, command, timeout).await {
        ExecEnd::Exited(0, _) => ProbeOutcome::Success,
        ExecEnd::Exited(_, output) => ProbeOutcome::Failure(output),
        ExecEnd::TimedOut => ProbeOutcome::Failure(format!(
            "command timed out: {:?} timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
        ExecEnd::Error(error) => ProbeOutcome::Unknown(error),
    }
}
