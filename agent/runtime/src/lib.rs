//! Sandboxes and containers made by the agent itself: namespaces, cgroup v2, overlayfs, capabilities, seccomp.
//!
//! - [`Runtime`] is [`keelson_cri::RuntimeService`]. It decides, keeps records and talks to podinits.
//! - `plan` and `seccomp` compute, without effects, what a process is to become.
//! - `spawner` is the one-threaded helper from which all of them are born, and what runs in them until exec.
//! - `podinit` is the agent's side of the protocol with PID 1 of each pod, which keeps logs and exit codes while no
//!   agent runs.
//! - `sys` is the only module with `unsafe` or raw system calls.
//!
//! This crate never talks to the API server, never reads a registry and never configures an address: images and network
//! come through [`keelson_cri::ImageRootfs`] and [`keelson_cri::PodNetwork`].

mod adopt;
mod cgroup;
mod config;
mod container;
mod image_volume;
mod oom_score;
mod plan;
mod podinit;
mod runtime;
mod sandbox;
mod seccomp;
mod service;
mod spawner;
mod state;
mod streams;
mod sys;

pub use cgroup::remove_cgroups;
pub use config::Config;
pub use runtime::{Runtime, RuntimeError};
/// Becomes the spawner if this process was started as one; `main` of the agent, and of every program that makes a
/// [`Runtime`], calls it before anything else, above all before there is a second thread.
pub use spawner::main_if_requested as spawner_main_if_requested;
