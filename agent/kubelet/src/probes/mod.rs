//! Startup, readiness and liveness probes.
//!
//! - [`schedule`] counts results against thresholds, purely.
//! - [`worker`] runs one task for each probe of each running container and keeps the table of verdicts.
//! - [`http`], [`tcp`](dial), [`exec`] and [`grpc`] ask the container; lifecycle hooks use the same.

pub mod exec;
pub mod grpc;
pub mod http;
pub mod schedule;
pub mod worker;

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// Well.
    Success,
    /// Not well, and why.
    Failure(String),
    /// The probe itself could not run: its result counts for nothing.
    Unknown(String),
}

/// Whether the addresses of pods can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Over the network.
    #[default]
    Network,
    /// Pods that only seem to run have nobody at their addresses: all that would be asked there succeeds, and nothing is sent.
    Nobody,
}

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// `startupProbe`.
    Startup,
    /// `livenessProbe`.
    Liveness,
    /// `readinessProbe`.
    Readiness,
}

impl ProbeKind {
    /// As in event messages: `Liveness probe failed: …`.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// A port number, or the number of a container's named port.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(p) => p.container_port,
                None => name.parse().map_err(|_not_a_number: std::num::ParseIntError| {
                    format!("couldn't find port: {name} in container {}", container.name)
                })?,
            }
        }
    };
    u16::try_from(number).ok().filter(|p| *p != 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// Opens a TCP connection and closes it.
pub async fn dial(host: &str, port: u16, timeout: Duration) -> ProbeOutcome {
    let address = host.parse::<IpAddr>().map(|ip| std::net::SocketAddr::new(ip, port).to_string());
    let address = address.unwrap_or_else(|_name| format!("{host}:{port}"));
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect(&address)).await {
        Ok(Ok(_stream)) => ProbeOutcome::Success,
        Ok(Err(e)) => ProbeOutcome::Failure(format!("dial tcp {address}: connect: {e}")),
        Err(_elapsed) => ProbeOutcome::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}
