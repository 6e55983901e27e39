//! The helper program behind test hosts: `init` makes one, `enter` runs a command in one. See
//! `keelson_tests::testbed::host`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use keelson_tests::testbed::host::{self, Mode};

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("keelson-testhost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<i32> {
    let mut args = std::env::args().skip(1);
    let verb = args.next().context("usage: keelson-testhost init|enter …")?;
    let (mut name, mut dir, mut cgroup, mut pid) = (String::new(), PathBuf::new(), PathBuf::new(), 0);
    let (mut detach, mut listen) = (false, false);
    let mut words = Vec::new();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--name" => name = value()?,
            "--dir" => dir = value()?.into(),
            "--cgroup" => cgroup = value()?.into(),
            "--pid" => pid = value()?.parse()?,
            "--detach" => detach = true,
            "--listen" => listen = true,
            "--" => {
                words.extend(args);
                break;
            }
            other => bail!("unknown argument {other}"),
        }
    }
    match verb.as_str() {
        "init" => host::init(&name, &dir, &cgroup).map(|()| 0),
        "enter" => {
            let mode = if detach { Mode::Detached { listen } } else { Mode::Foreground };
            host::enter(pid, &cgroup, mode, &words)
        }
        other => bail!("unknown verb {other}"),
    }
}
