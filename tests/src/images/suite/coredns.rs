//! CoreDNS as the suite's DNS tests use it: built from its Go module with no more plugins than their Corefile names.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::images::builder::digest;
use crate::{cmd, paths};

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
    let key = digest(format!("{GO_MOD}{MAIN}").as_bytes());
    let dir = paths::cache().join("coredns").join(&key["sha256:".len()..][..16]);
    let program = dir.join("coredns");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("go.mod"), GO_MOD)?;
    fs::write(dir.join("main.go"), MAIN)?;
    let mut build = go();
    build.current_dir(&dir).env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0");
    build.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", "partial", "."]);
    cmd::fetch(&mut build).context("build CoreDNS")?;
    fs::rename(dir.join("partial"), &program)?;
    Ok(program)
}
