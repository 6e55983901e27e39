//! The peer: upstream's kube-proxy on a host of its own, with Debian's iptables or nft.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use keelson_tests::cmd;
use keelson_tests::progress::Steps;
use keelson_tests::testbed::host::Host;
use serde_json::{Value, json};

use super::hosts::ADMIN;
use crate::build;
use crate::conformance::suite::{Suite, VERSION};

/// Its cgroup, below the host's `system`.
pub const UNIT: &str = "kube-proxy";
/// Its configuration, as the host has it.
const CONFIG: &str = "/etc/kubernetes/kube-proxy.json";

/// How it sets Services up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Rules of iptables, by Debian's default program for them (`iptables-nft`).
    Iptables,
    /// Rules, sets and maps of nftables.
    Nftables,
}

impl Mode {
    /// As kube-proxy's configuration has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// What is measured, for the output.
    pub fn describe(self) -> Result<String> {
        let program = match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nft",
        };
        let tool = cmd::text(Command::new(program).arg("--version"))?;
        Ok(format!("kube-proxy {VERSION}, {}, with {tool}", self.name()))
    }
}

/// Builds the program and has the tools that it calls.
pub fn build(steps: &mut Steps) -> Result<PathBuf> {
    steps.step("iptables, nft", || build::ensure_tools(&[("iptables", "iptables"), ("nft", "nftables")]))?;
    let suite = steps.step("upstream's module", Suite::prepare)?;
    steps.step("go build kube-proxy", || {
        suite.program("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", false)
    })
}

/// Starts it in a host that has an administrator's kubeconfig; gives its pid.
pub fn start(program: &Path, mode: Mode, host: &Host, pods: &str) -> Result<i32> {
    choose_iptables(&host.dir.join("etc/alternatives"))?;
    let config = config(mode, &host.name, pods);
    fs::write(host.dir.join(CONFIG.trim_start_matches('/')), config.to_string())
        .context("write kube-proxy's configuration")?;
    host.spawn_daemon(UNIT, program, &[format!("--config={CONFIG}")], None)
}

/// Debian's iptables goes through links in /etc, of which a host has its own. These are Debian's defaults.
fn choose_iptables(alternatives: &Path) -> Result<()> {
    fs::create_dir_all(alternatives)?;
    for family in ["iptables", "ip6tables"] {
        for part in ["", "-save", "-restore"] {
            symlink(format!("/usr/sbin/{family}-nft{part}"), alternatives.join(format!("{family}{part}")))
                .with_context(|| format!("make links in {}", alternatives.display()))?;
        }
    }
    Ok(())
}

/// Upstream's defaults, but for limits of connection tracking, which are the machine's and not a host's.
fn config(mode: Mode, host: &str, pods: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": mode.name(), "hostnameOverride": host, "clusterCIDR": pods,
        "clientConnection": {"kubeconfig": ADMIN},
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_leaves_the_machine_alone() {
        let config = config(Mode::Nftables, "node-3", "10.244.0.0/16");
        assert_eq!(config["mode"], "nftables");
        assert!(config["conntrack"].as_object().unwrap().values().all(|value| value == 0 || value == "0s"));
    }
}
