//! The test cluster and what whole-system tests are made of.
//!
//! - [`chaos`]: faults at random under load, and what must be true after them.
//! - [`testbed`]: test hosts out of namespaces on a private bridge, with the daemons in them.
//! - [`images`]: container images assembled from Debian packages and from our own binaries.
//! - [`go_module`]: programs of other projects out of the Go module proxy.
//! - [`debian`]: packages of any Debian suite, fetched with the machine's own apt settings.
//! - [`kubectl`]: the real kubectl.
//! - [`vm`]: guests in QEMU, with a kernel of choice and the whole of cgroup v2.
//! - [`progress`]: steps on the screen, each with the time it took.
//! - [`random`], [`checkout`]: numbers by a seed, and the commit that something was seen on.
//!
//! `xtask` drives the same code from the command line.

pub mod chaos;
pub mod checkout;
pub mod cmd;
pub mod debian;
pub mod dist;
pub mod go_module;
pub mod images;
pub mod kubectl;
pub mod paths;
pub mod progress;
pub mod random;
pub mod testbed;
pub mod vm;
