//! Routes, local addresses and the in-process driver against a real kernel. Needs root and busybox.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::PathBuf;

use common::Space;
use keelson_cni::netconf::{DefaultNetwork, ensure_default};
use keelson_cni::{Attachment, Driver, DriverConfig, Mode, Netlink, NodeRoute, Owner, host, routes};

fn route(dst: &str, via: &str) -> NodeRoute {
    NodeRoute { dst: dst.parse().unwrap(), via: via.parse().unwrap() }
}

#[test]
fn only_own_routes_are_synced() {
    let space = Space::new();
    let other = Space::new();
    space.connect("lan0", &other, "lan1");
    space.command("ip address add 10.89.0.11/24 dev lan0");
    space.command("ip route add 10.50.0.0/16 via 10.89.0.1");
    let sync = |desired: Vec<NodeRoute>| {
        space.block_on(|| async move {
            let netlink = Netlink::open().unwrap();
            routes::sync(&netlink, &desired).await
        })
    };
    let a = route("10.244.1.0/24", "10.89.0.12");
    let b = route("10.244.2.0/24", "10.89.0.13");
    sync(vec![a.clone(), b.clone()]).unwrap();
    sync(vec![a.clone(), route("10.244.2.0/24", "10.89.0.14")]).unwrap();
    let listed = space.command("ip route");
    assert!(
        listed.contains("10.244.1.0/24 via 10.89.0.12") && listed.contains("10.244.2.0/24 via 10.89.0.14")
    );
    assert!(!listed.contains("10.89.0.13"), "{listed}");
    // One that can't be reached is reported, and the others are made all the same.
    assert!(sync(vec![route("10.244.9.0/24", "203.0.113.1"), b]).is_err());
    let listed = space.command("ip route");
    assert!(listed.contains("10.244.2.0/24 via 10.89.0.13") && !listed.contains("10.244.1.0/24"), "{listed}");
    sync(vec![]).unwrap();
    let listed = space.command("ip route");
    assert!(!listed.contains("10.244.") && listed.contains("10.50.0.0/16"), "{listed}");
}

#[test]
fn local_address_is_never_a_source_by_itself() {
    let space = Space::new();
    let add = || {
        space.block_on(|| async {
            host::ensure_forwarding().unwrap();
            host::add_local_address("10.96.0.10".parse().unwrap()).await.unwrap();
            host::add_local_address("fd00:96::a".parse().unwrap()).await.unwrap();
        });
    };
    add();
    add();
    let listed = space.command("ip address show dev lo");
    assert!(listed.contains("10.96.0.10/32 scope host") && listed.contains("fd00:96::a/128"), "{listed}");
    assert!(space.pings("10.96.0.10"));
    assert_eq!(space.command("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
}

#[test]
fn driver_runs_the_default_network_in_process() {
    let dir = tempfile::tempdir().unwrap();
    let (host, pod) = (Space::new(), Space::new());
    let root = dir.path().to_owned();
    let config = DriverConfig {
        conf_dir: root.join("net.d"),
        bin_dirs: vec![root.join("bin")],
        cache_dir: root.join("cache"),
        ..DriverConfig::default()
    };
    let (netns, root): (PathBuf, PathBuf) = (pod.path.clone(), root);
    host.block_on(|| async move {
        let driver = Driver::new(config);
        assert!(driver.status().await.is_err());
        let network = DefaultNetwork {
            mode: Mode::Bridge,
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            mtu: 0,
            data_dir: root.join("ipam"),
        };
        ensure_default(&driver.config().conf_dir, &network).unwrap();
        driver.status().await.unwrap();
        let attachment = Attachment::for_pod("sandbox1", Some(netns), "default", "web", "uid");
        let attached = driver.add(&attachment).await.unwrap();
        assert_eq!(attached.ips, ["10.244.1.2".parse::<std::net::IpAddr>().unwrap()]);
        driver.check(&attachment).await.unwrap();
        let owner = Owner::new("sandbox1", "eth0").unwrap();
        driver.gc(std::slice::from_ref(&owner)).await.unwrap();
        driver.check(&attachment).await.unwrap();
        assert_eq!(driver.attachments().unwrap(), [owner]);
        driver.gc(&[]).await.unwrap();
        assert!(driver.check(&attachment).await.is_err());
        driver.del(&attachment).await.unwrap();
        let again = driver.add(&attachment).await.unwrap();
        assert_eq!(again.ips, ["10.244.1.3".parse::<std::net::IpAddr>().unwrap()]);
        driver.del(&Attachment { netns: None, ..attachment }).await.unwrap();
        assert!(driver.attachments().unwrap().is_empty());
    });
}
