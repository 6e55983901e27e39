//! The plugin: one invocation in, one document out. The binary and the in-process driver both come here.

mod add;
mod check;
mod del;
mod gc;
mod setup;
mod status;

use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::ipam::Ipam;
use crate::ipam::range::Range;
use crate::net::netns::NetNs;
use crate::net::thread;
use crate::types::config::{Config, parse_object};
use crate::types::invocation::{Command, Invocation, Owner};
use crate::types::report::ErrorReport;
use crate::types::version::Version;

/// The name that configurations give as `type`.
pub const PLUGIN_TYPE: &str = "keelson-cni";

/// The longest an operation may take when the caller sets no limit.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// Runs one invocation: `get` reads CNI_* variables, `stdin` is the request configuration. The document to
/// print on success is returned; `None` when the command prints nothing. Blocks; all work on namespaces
/// happens on a thread of its own that ends by `deadline`.
///
/// # Errors
/// The report to print, before the process ends with a non-zero status.
pub fn run(
    get: impl Fn(&str) -> Option<String>,
    stdin: &[u8],
    deadline: Duration,
) -> Result<Option<Value>, ErrorReport> {
    // An error should be told in the version of the question, if that can be read at all.
    let version = parse_object(stdin)
        .ok()
        .and_then(|root| Version::parse(root.get("cniVersion")?.as_str()?).ok())
        .unwrap_or(Version::V1_1_0);
    dispatch(get, stdin, deadline).map_err(|error| ErrorReport::new(&error, version))
}

fn dispatch(get: impl Fn(&str) -> Option<String>, stdin: &[u8], deadline: Duration) -> Result<Option<Value>> {
    let invocation = Invocation::from_env(get)?;
    if invocation.command == Command::Version {
        return version(stdin).map(Some);
    }
    let config = Config::parse(stdin)?;
    let needs = match invocation.command {
        Command::Check => Version::V0_4_0,
        Command::Gc | Command::Status => Version::V1_1_0,
        _ => Version::V0_3_1,
    };
    if config.version < needs {
        return Err(Error::InvalidConfig(format!(
            "config version {} does not allow {}",
            config.version,
            invocation.command.as_str()
        )));
    }
    let command = invocation.command;
    thread::run(deadline, move || async move {
        let owner = || {
            invocation.owner.as_ref().ok_or_else(|| Error::InvalidEnvironment {
                variable: "CNI_CONTAINERID".into(),
                reason: "missing".into(),
            })
        };
        match command {
            Command::Add => {
                let netns = open_netns(&invocation)?;
                let result = add::add(&config, owner()?, &netns).await?;
                Ok(Some(result.to_json(config.version)))
            }
            Command::Del => del::del(&config, owner()?).await.map(|()| None),
            Command::Check => {
                let netns = open_netns(&invocation)?;
                check::check(&config, owner()?, &netns).await.map(|()| None)
            }
            Command::Gc => gc::gc(&config).await.map(|()| None),
            Command::Status => status::status(&config).map(|()| None),
            Command::Version => version(b"{}").map(Some),
        }
    })
}

fn version(stdin: &[u8]) -> Result<Value> {
    let root = parse_object(stdin)?;
    Ok(json!({
        "cniVersion": root.get("cniVersion").and_then(Value::as_str).unwrap_or(Version::V1_1_0.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    }))
}

/// A container's namespace with the path that results must repeat.
#[derive(Debug)]
struct Sandbox {
    path: String,
    netns: NetNs,
}

fn open_netns(invocation: &Invocation) -> Result<Sandbox> {
    let path = invocation.netns.as_deref().unwrap_or_else(|| std::path::Path::new(""));
    let shown = path.display().to_string();
    let Some(netns) = NetNs::open(path)? else {
        return Err(Error::UnknownContainer { netns: shown });
    };
    if netns.is(&NetNs::current()?)? {
        return Err(Error::InvalidEnvironment {
            variable: "CNI_NETNS".into(),
            reason: "the container's network namespace is the plugin's own".into(),
        });
    }
    Ok(Sandbox { path: shown, netns })
}

fn ranges(config: &Config) -> Vec<Range> {
    config.ranges.iter().copied().map(Range::new).collect()
}

fn open_ipam(config: &Config) -> Result<Ipam> {
    Ipam::open(&config.data_dir, &config.name, &ranges(config))
}

/// The range that an address was given from.
fn range_of(config: &Config, ip: std::net::IpAddr) -> Result<Range> {
    ranges(config).into_iter().find(|range| range.net().contains(&ip)).ok_or_else(|| {
        Error::InvalidConfig(format!("address {ip} is in no range of network {}", config.name))
    })
}

/// The attachment that IPAM, links and rules are filed under.
fn describe(owner: &Owner) -> String {
    format!("{}/{}", owner.container_id, owner.ifname)
}
