//! A cluster of one node in a guest with the whole of cgroup v2: it is made, runs pods and answers through Services.
//!
//! `on_6_12` boots the guest; the `guest_*` tests run in there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::Result;
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;
use keelson_tests::vm::Kernel;
use keelson_tests::vm::programs::GuestTests;

#[test]
fn on_6_12() -> Result<()> {
    GuestTests {
        prefix: "guest_",
        kernel: Kernel::V6_12,
        memory_mib: 2048,
        images: &["testapp-v1"],
        limit: Duration::from_secs(300),
    }
    .run()
}

#[test]
#[ignore = "runs in a guest"]
fn guest_services_answer() -> Result<()> {
    let cluster = TestCluster::up("guest", 1, &["testapp-v1"])?;
    cluster.kubectl.apply(sample::MANIFEST)?;
    sample::wait_available(&cluster, Duration::from_secs(120))?;
    let (by_ip, by_name) = sample::ask(&cluster, Duration::from_secs(60))?;
    assert!(by_ip.starts_with("v1 hello-") && by_name.starts_with("v1 hello-"), "{by_ip} {by_name}");
    cluster.down()
}
