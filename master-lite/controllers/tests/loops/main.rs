//! The controllers and the scheduler at work together, against an API server in memory and a kubelet that makes every
//! bound pod ready.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, in helpers too")]

mod cluster;
mod daemon_sets;
mod deployments;
mod fake_api;
mod namespaces;
mod nodes;
mod workloads;
