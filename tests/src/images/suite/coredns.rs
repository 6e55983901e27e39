//! CoreDNS as the suite's DNS tests use it: built from its Go module with no more plugins than their Corefile names.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::go_module::{self, Module};

const GO_MOD: &str =
    "module keelson.test/coredns\n\ngo 1.25.0\n\nrequire github.com/coredns/coredns v1.14.7\n";

const MAIN: &str = r#"package main

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

/// Builds it, once; `go` gives the go command with what it needs in its environment.
pub fn build(go: impl Fn() -> Command) -> Result<PathBuf> {
    go_module::build(&Module { name: "coredns", go_mod: GO_MOD, main: MAIN, package: "." }, go)
}
