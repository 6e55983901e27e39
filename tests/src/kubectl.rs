//! The real kubectl: the machine's own when it is 1.32 or newer, else Debian's.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{cmd, debian, paths};

/// kubectl with a kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// Finds or fetches kubectl.
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        Ok(Self { program: find()?, kubeconfig: kubeconfig.to_owned() })
    }

    /// Path of the program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A command that is not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.kubeconfig).args(args);
        // No discovery cache of another cluster, and none left in the home folder.
        command.env("KUBECACHEDIR", self.kubeconfig.with_file_name("kubectl-cache"));
        command
    }

    /// Runs kubectl to its end; gives standard output.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        cmd::text(&mut self.command(args))
    }

    /// Runs kubectl with text on its standard input.
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        use std::io::Write;
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl {args:?} ended with {}:\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.run_with_input(&["apply", "-f", "-"], manifest)
    }

    /// `kubectl … -o json`, parsed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.run(&all)?)?)
    }
}

fn find() -> Result<PathBuf> {
    if let Ok(version) = cmd::text(Command::new("kubectl").args(["version", "--client", "-o", "json"]))
        && let Ok(version) = serde_json::from_str::<Value>(&version)
        && minor(&version["clientVersion"]["minor"]) >= 32
    {
        return Ok(PathBuf::from("kubectl"));
    }
    let dir = paths::cache().join("kubectl");
    let program = dir.join("usr/bin/kubectl");
    if !program.exists() {
        // Debian's suites name the package differently; trixie carries 1.32.
        let deb = debian::Apt::suite("trixie")?
            .package("kubectl")
            .or_else(|_| debian::Apt::suite("trixie")?.package("kubernetes-client"))
            .context("fetch Debian's kubectl")?;
        debian::unpack(&deb, &dir)?;
    }
    Ok(program)
}

fn minor(value: &Value) -> u32 {
    let digits: String =
        value.as_str().unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}
