//! Running other programs.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Runs a command to its end; an exit code other than 0 is an error that carries what it printed.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// As [`run`], for a command that fetches from a network and keeps what it has: a registry that answers badly once is
/// asked again, three times in all.
pub fn fetch(command: &mut Command) -> Result<Output> {
    let mut pause = Duration::from_secs(2);
    for _ in 0..2 {
        match run(command) {
            Ok(output) => return Ok(output),
            Err(error) => eprintln!("will be tried again in {pause:?}: {error:#}"),
        }
        std::thread::sleep(pause);
        pause *= 5;
    }
    run(command)
}

/// As [`run`], giving standard output as text without the last line end.
pub fn text(command: &mut Command) -> Result<String> {
    Ok(trimmed(&run(command)?))
}

/// Standard output as text without the last line end.
pub fn trimmed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Whether a program is on PATH.
pub fn have(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}
