//! The parameters of an invocation (CNI_* variables), checked once into types.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// What the caller wants (CNI_COMMAND).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Compare an attachment with its result.
    Check,
    /// Say whether ADD would work.
    Status,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// List the versions spoken here.
    Version,
}

impl Command {
    /// The text of CNI_COMMAND.
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Status => "STATUS",
            Command::Gc => "GC",
            Command::Version => "VERSION",
        }
    }

    fn parse(text: &str) -> Result<Command> {
        let all =
            [Command::Add, Command::Del, Command::Check, Command::Status, Command::Gc, Command::Version];
        all.into_iter()
            .find(|command| command.as_str() == text)
            .ok_or_else(|| invalid("CNI_COMMAND", format!("unknown CNI_COMMAND: {text:?}")))
    }
}

/// An attachment's identity: container and interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

impl Owner {
    /// Checks both parts by the specification's rules.
    ///
    /// # Errors
    /// [`Error::InvalidEnvironment`] that names the offending variable.
    pub fn new(container_id: &str, ifname: &str) -> Result<Owner> {
        if !is_identifier(container_id) {
            return Err(invalid("CNI_CONTAINERID", format!("invalid characters in {container_id:?}")));
        }
        if container_id.len() > 200 {
            return Err(invalid("CNI_CONTAINERID", "longer than 200 bytes".into()));
        }
        check_ifname(ifname)?;
        Ok(Owner { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }
}

/// A checked invocation.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// The attachment; absent for VERSION, STATUS and GC.
    pub owner: Option<Owner>,
    /// Path of the container's network namespace; DEL may come without.
    pub netns: Option<PathBuf>,
}

impl Invocation {
    /// Reads the CNI_* variables through `get` and checks that those which the command needs are there.
    ///
    /// # Errors
    /// [`Error::InvalidEnvironment`] (code 4) that names every missing variable, or the malformed one.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Invocation> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let Some(command) = get("CNI_COMMAND") else {
            return Err(missing(&["CNI_COMMAND"]));
        };
        let command = Command::parse(&command)?;
        let required: &[&str] = match command {
            Command::Add | Command::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Command::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Command::Status | Command::Gc | Command::Version => &[],
        };
        let absent: Vec<&str> = required.iter().copied().filter(|name| get(name).is_none()).collect();
        if !absent.is_empty() {
            return Err(missing(&absent));
        }
        let owner = match (required.is_empty(), get("CNI_CONTAINERID"), get("CNI_IFNAME")) {
            (false, Some(id), Some(ifname)) => Some(Owner::new(&id, &ifname)?),
            _ => None,
        };
        if let Some(args) = get("CNI_ARGS") {
            check_args(&args)?;
        }
        let netns = if required.is_empty() { None } else { get("CNI_NETNS").map(PathBuf::from) };
        Ok(Invocation { command, owner, netns })
    }
}

/// Whether `text` starts with an alphanumeric character and goes on with alphanumerics, `_`, `.` or `-`:
/// the rule for container ids and network names.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The kernel's rules for interface names (`dev_valid_name`).
fn check_ifname(name: &str) -> Result<()> {
    let reason = if name.len() > 15 {
        "interface name is longer than 15 bytes"
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        "interface name contains / or : or whitespace"
    } else {
        return Ok(());
    };
    Err(invalid("CNI_IFNAME", format!("{reason}: {name:?}")))
}

/// CNI_ARGS must be `KEY=VALUE` pairs separated by semicolons. No key changes what is done here, which is
/// what the convention `IgnoreUnknown` asks for; malformed text is refused all the same.
fn check_args(args: &str) -> Result<()> {
    match args.split(';').find(|pair| !pair.is_empty() && !pair.contains('=')) {
        Some(pair) => Err(invalid("CNI_ARGS", format!("invalid pair {pair:?}"))),
        None => Ok(()),
    }
}

fn missing(names: &[&str]) -> Error {
    Error::InvalidEnvironment {
        variable: names.join(","),
        reason: format!("required env variables [{}] missing", names.join(",")),
    }
}

fn invalid(variable: &str, reason: String) -> Error {
    Error::InvalidEnvironment { variable: variable.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(vars: &[(&str, &str)], expected: Result<Command, &str>) {
        let found = Invocation::from_env(|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        });
        match (found, expected) {
            (Ok(found), Ok(command)) => assert_eq!(found.command, command),
            (Err(error), Err(variable)) => {
                assert_eq!(error.code(), 4);
                assert!(error.to_string().contains(variable), "{error} lacks {variable}");
            }
            (found, expected) => panic!("{vars:?}: {found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn parameters() {
        let full = [
            ("CNI_CONTAINERID", "pod-1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_COMMAND", "ADD"),
        ];
        let with = |name, value| {
            let mut vars = full.to_vec();
            vars.retain(|(n, _)| *n != name);
            vars.push((name, value));
            vars
        };
        check(&full, Ok(Command::Add));
        check(&full[..3], Err("CNI_COMMAND"));
        check(&with("CNI_COMMAND", "FLY"), Err("CNI_COMMAND"));
        check(&with("CNI_CONTAINERID", "../etc"), Err("CNI_CONTAINERID"));
        check(&with("CNI_IFNAME", "a/b"), Err("CNI_IFNAME"));
        check(&with("CNI_IFNAME", "sixteen-bytes-xx"), Err("CNI_IFNAME"));
        check(&with("CNI_NETNS", ""), Err("CNI_NETNS"));
        check(&with("CNI_ARGS", "novalue"), Err("CNI_ARGS"));
        check(&with("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=a"), Ok(Command::Add));
        check(&[("CNI_COMMAND", "VERSION")], Ok(Command::Version));
        check(&[("CNI_COMMAND", "GC")], Ok(Command::Gc));
        check(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")], Ok(Command::Del));
    }
}
