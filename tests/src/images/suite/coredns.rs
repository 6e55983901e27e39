//! CoreDNS, built from its Go module with no more plugins than a Corefile names: for the suite's DNS tests, and as the peer of
//! `cargo xtask bench dns`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::go_module::{self, Module};

macro_rules! version {
    () => {
        "v1.14.7"
    };
}

/// The release.
pub const VERSION: &str = version!();

const GO_MOD: &str = concat!(
    "module keelson.test/coredns\n\ngo 1.25.0\n\nrequire github.com/coredns/coredns ",
    version!(),
    "\n"
);

/// What it can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plugins {
    /// What the suite's tests use: names out of a file.
    Hosts,
    /// Those of the Corefile that kubeadm writes, and `bind`.
    Kubernetes,
}

const HOSTS: &str = r#"package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/log"
)

func init() {
	dnsserver.Directives = []string{"errors", "log", "hosts"}
}

func main() {
	coremain.Run()
}
"#;

/// The order is that of CoreDNS' own `plugin.cfg`: in it a query goes through them.
const KUBERNETES: &str = r#"package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
)

func init() {
	dnsserver.Directives = []string{
		"reload", "bind", "ready", "health", "prometheus", "errors", "loadbalance", "cache", "kubernetes", "loop", "forward",
	}
}

func main() {
	coremain.Run()
}
"#;

/// Builds it, once; `go` gives the go command with what it needs in its environment.
pub fn build(plugins: Plugins, go: impl Fn() -> Command) -> Result<PathBuf> {
    let main = match plugins {
        Plugins::Hosts => HOSTS,
        Plugins::Kubernetes => KUBERNETES,
    };
    go_module::build(&Module { name: "coredns", go_mod: GO_MOD, main, package: "." }, go)
}
