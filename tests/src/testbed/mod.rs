//! Test hosts: each a set of network, mount, PID, IPC, UTS and cgroup namespaces under its own cgroup subtree, joined by
//! a bridge in a network namespace of its own with no way out. A host sees a machine of its own: `/usr` is this
//! machine's, `/etc`, `/var`, `/opt` and `/run` are its own, cgroup2 is at `/sys/fs/cgroup`.
//!
//! [`host`] makes and enters one host, [`network`] joins them, [`cluster`] puts the daemons in and takes all away
//! again, [`place`] makes namespaces inside of a host that are joined to it as pods are, [`disk`] makes disks that can be full, [`registry`] serves images inside a cluster, [`snapshot`] tells whether anything was left behind on the machine,
//! and [`node_state`] what a node holds for its pods.

mod bpf;
pub mod cluster;
pub mod disk;
pub mod fixture;
pub mod host;
pub mod network;
pub mod node_state;
pub mod place;
pub mod registry;
pub mod sample;
pub mod snapshot;
