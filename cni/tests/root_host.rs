//! Routes, local addresses and the in-process driver against a real kernel. Needs root and busybox.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use common::Space;
use keelson_cni::netconf::{DefaultNetwork, ensure_default};
use keelson_cni::services::{self, Forward};
use keelson_cni::vxlan::{self, Overlay, VxlanMode};
use keelson_cni::{Attachment, Driver, DriverConfig, Mode, Netlink, NodeRoute, Owner, host, routes};

fn route(dst: &str, via: &str) -> NodeRoute {
    NodeRoute { dst: dst.parse().unwrap(), via: via.parse().unwrap(), link: None }
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

/// A pod that tells its name and who asks, on port 80.
fn server(host: &Space, name: &'static str, link: &'static str, network: &str) -> Space {
    let pod = Space::new();
    host.connect(link, &pod, "eth0");
    host.command(&format!("ip address add {network}.1/24 dev {link}"));
    pod.command(&format!("ip address add {network}.2/24 dev eth0"));
    pod.command(&format!("ip route add default via {network}.1"));
    pod.run(move || {
        let listener = TcpListener::bind("0.0.0.0:80").unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let answer = format!("{name} {}", stream.peer_addr().unwrap().ip());
                let _ = stream.write_all(answer.as_bytes());
            }
        });
    });
    pod
}

#[test]
fn services_are_open_to_clients_from_outside() {
    let (host, outside) = (Space::new(), Space::new());
    host.connect("wan0", &outside, "wan1");
    host.command("ip address add 192.0.2.1/24 dev wan0");
    outside.command("ip address add 192.0.2.2/24 dev wan1");
    outside.command("ip route add 198.51.100.0/24 via 192.0.2.1");
    host.run(|| host::ensure_forwarding().unwrap());
    let _pods = (server(&host, "a", "pod0", "10.0.1"), server(&host, "b", "pod1", "10.0.2"));
    let ask = |address: &'static str| {
        outside.run(move || -> std::io::Result<String> {
            let mut text = String::new();
            let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    };
    let ensure = |forwards: Vec<Forward>| host.run(move || services::ensure(&forwards, &[]).unwrap());
    let forward = |address: Option<&str>, port: u16, pods: &[&str]| Forward {
        address: address.map(|address| address.parse().unwrap()),
        port,
        protocol: 6,
        endpoints: pods.iter().map(|pod| format!("{pod}:80").parse().unwrap()).collect(),
        sticky: false,
        sources: Vec::new(),
        keep_source: false,
    };
    let (a, b) = ("10.0.1.2", "10.0.2.2");
    let sources = |net: &str| vec![net.parse().unwrap()];
    let wanted = vec![
        forward(None, 30080, &[a, b]),
        Forward { sticky: true, ..forward(None, 30081, &[a, b]) },
        Forward { keep_source: true, ..forward(None, 30082, &[a]) },
        Forward { sources: sources("192.0.2.0/24"), ..forward(Some("198.51.100.7"), 80, &[b]) },
        Forward { sources: sources("203.0.113.0/24"), ..forward(Some("198.51.100.8"), 80, &[b]) },
    ];
    ensure(wanted.clone());
    // Again is nothing to do.
    ensure(wanted);
    let many: Vec<String> = (0..40).map(|_| ask("192.0.2.1:30080").unwrap()).collect();
    let from = |answer: &str| many.iter().filter(|many| *many == answer).count();
    // Any node may hold the endpoint, so the node asks for its client.
    assert!(from("a 10.0.1.1") > 5 && from("b 10.0.2.1") > 5, "{many:?}");
    let first = ask("192.0.2.1:30081").unwrap();
    assert!((0..10).all(|_| ask("192.0.2.1:30081").unwrap() == first), "one client, one endpoint");
    assert_eq!(ask("192.0.2.1:30082").unwrap(), "a 192.0.2.2");
    assert_eq!(ask("198.51.100.7:80").unwrap(), "b 10.0.2.1");
    assert!(ask("198.51.100.8:80").is_err(), "not one of the clients that may");
    assert!(ask("192.0.2.1:30083").is_err());

    // Far more than fits one read or an ordinary send buffer.
    let pods: Vec<&str> = [a, b].into_iter().cycle().take(10).collect();
    ensure((0..300).map(|number| forward(None, 30100 + number, &pods)).collect());
    assert_eq!(ask("192.0.2.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(ask("192.0.2.1:30399").is_ok());
    ensure(Vec::new());
    assert_eq!(ask("192.0.2.1:30399").unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn nothing_leaves_for_addresses_of_services() {
    let (host, outside) = (Space::new(), Space::new());
    host.connect("wan0", &outside, "wan1");
    host.command("ip address add 192.0.2.1/24 dev wan0");
    host.command("ip route add default via 192.0.2.2");
    outside.command("ip address add 192.0.2.2/24 dev wan1");
    outside.command("ip address add 10.96.0.1/32 dev wan1");
    outside.command("ip route add default via 192.0.2.1");
    host.block_on(|| async {
        host::ensure_forwarding().unwrap();
        host::add_local_address("10.96.0.10".parse().unwrap()).await.unwrap();
    });
    let pod = server(&host, "a", "pod0", "10.0.1");
    let listener = outside.run(|| UdpSocket::bind("10.96.0.1:53").unwrap());
    listener.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // The socket's own address, and how it went to send.
    let send = |space: &Space| {
        space.run(|| {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            client.connect("10.96.0.1:53").unwrap();
            client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let sent = client.send(b"x").and_then(|_| client.recv(&mut [0]));
            (client.local_addr().unwrap().ip().to_string(), sent.unwrap_err().kind())
        })
    };
    let mut buffer = [0; 1];
    for space in [&pod, &host] {
        // Without the rules it leaves.
        assert_eq!(send(space).1, ErrorKind::WouldBlock);
        listener.recv(&mut buffer).unwrap();
    }
    let ensure = || services::ensure(&[], &["10.96.0.0/16".parse().unwrap()]).unwrap();
    host.run(ensure);
    host.run(ensure);
    listener.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(send(&pod), ("10.0.1.2".to_owned(), ErrorKind::ConnectionRefused));
    // The packet of a local socket does not even get on its way.
    assert_eq!(send(&host), ("192.0.2.1".to_owned(), ErrorKind::PermissionDenied));
    assert_eq!(listener.recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock, "nothing left");
    let connect = || {
        let to = "10.96.0.1:80".parse().unwrap();
        TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap_err().kind()
    };
    assert_eq!(
        (pod.run(connect), host.run(connect)),
        (ErrorKind::ConnectionRefused, ErrorKind::ConnectionRefused)
    );
    // The host's own address of a Service is there as before.
    assert!(pod.pings("10.96.0.10") && host.pings("10.96.0.10"));
    host.run(|| services::ensure(&[], &[]).unwrap());
    send(&pod);
    listener.recv(&mut buffer).unwrap();
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
            overhead: 0,
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

#[test]
fn a_reset_takes_all_of_it_back() {
    let (host, other) = (Space::new(), Space::new());
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().to_owned();
    host.connect("lan0", &other, "lan1");
    host.command("ip address add 10.89.0.11/24 dev lan0");
    host.command("ip route add 10.50.0.0/16 via 10.89.0.1");
    let picture = || ["ip link", "ip -4 address", "ip route"].map(|command| host.command(command));
    let before = picture();
    let pods: Vec<ipnet::IpNet> = vec!["10.244.1.0/24".parse().unwrap()];
    let network = DefaultNetwork {
        mode: Mode::Bridge,
        pod_cidrs: pods.clone(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        mtu: 0,
        overhead: 50,
        data_dir: conf.join("addresses"),
    };
    ensure_default(&conf, &network).unwrap();
    host.command("ip link add cni0 type bridge");
    let dns = "10.96.0.10".parse().unwrap();
    let overlay = Overlay {
        mode: VxlanMode::CrossSubnet,
        addresses: vec!["10.89.0.11".parse().unwrap()],
        pod_cidrs: pods.clone(),
    };
    host.block_on(move || async move {
        host::add_local_address(dns).await.unwrap();
        let netlink = Netlink::open().unwrap();
        // One straight, and one behind a router.
        let routes = [route("10.244.2.0/24", "10.89.0.12"), route("10.244.3.0/24", "10.50.0.13")];
        vxlan::sync(&netlink, &overlay, &routes).await.unwrap();
    });
    assert!(host.command("ip link").contains(vxlan::DEVICES[0]));
    let masqueraded = || {
        let pods = pods.clone();
        host.run(move || keelson_cni::masquerade::is_in_place(&pods, &[]).unwrap())
    };
    let ranges = pods.clone();
    host.run(move || keelson_cni::masquerade::ensure(&ranges, &[]).unwrap());
    assert!(masqueraded() && picture() != before);
    // A second time there is nothing to take back.
    for _ in 0..2 {
        let conf = conf.clone();
        host.block_on(move || async move { keelson_cni::reset::reset(&conf, &[dns]).await }).unwrap();
        assert_eq!(picture(), before);
        assert!(!masqueraded());
        assert!(!conf_file(&dir).exists());
    }
}

fn conf_file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join(keelson_cni::netconf::DEFAULT_FILE)
}
