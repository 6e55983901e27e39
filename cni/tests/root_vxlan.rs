//! VXLAN between nodes on different networks, against a real kernel. Needs root and busybox.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::Space;
use keelson_cni::vxlan::{self, Overlay, VxlanMode};
use keelson_cni::{Netlink, NodeRoute, Result, host, masquerade};

/// A node with a pod, on a wire of the router's. Its own addresses end in its number.
struct Node {
    space: Space,
    pod: Space,
    number: u8,
}

fn node(router: &Space, number: u8, wire: &'static str) -> Node {
    let (space, pod) = (Space::new(), Space::new());
    for space in [router, &space, &pod] {
        // No waiting for whether an address is somebody else's.
        space.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap());
    }
    router.connect(wire, &space, "eth0");
    space.connect("pod0", &pod, "eth0");
    let join = |net: &str, (gateway, link): (&Space, &str), (host, own): (&Space, &str)| {
        let net = at(net, number);
        let (family, prefix) = if net.contains(':') { ("-6", 64) } else { ("-4", 24) };
        gateway.command(&format!("ip address add {net}254/{prefix} dev {link}"));
        host.command(&format!("ip address add {net}{own}/{prefix} dev eth0"));
        host.command(&format!("ip {family} route add default via {net}254"));
    };
    for net in ["10.1.N.", "fd10:N::"] {
        join(net, (router, wire), (&space, &number.to_string()));
    }
    for net in ["10.244.N.", "fd44:N::"] {
        join(net, (&space, "pod0"), (&pod, "2"));
    }
    space.run(move || {
        host::ensure_forwarding().unwrap();
        // As strict as a node can be.
        for link in ["all", "default", "eth0", "pod0"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "1").unwrap();
        }
        let nets = |list: [&str; 2]| list.map(|net| at(net, number).parse().unwrap());
        let cluster = nets(["10.244.0.0/16", "fd44::/16"]);
        masquerade::ensure(&nets(["10.244.N.0/24", "fd44:N::/64"]), &cluster).unwrap();
    });
    Node { space, pod, number }
}

fn at(text: &str, number: u8) -> String {
    text.replace('N', &number.to_string())
}

/// The way to a node's pods.
fn to(number: u8) -> Vec<NodeRoute> {
    vec![route(number, "10.244.N.0/24", "10.1.N.N"), route(number, "fd44:N::/64", "fd10:N::N")]
}

fn route(number: u8, dst: &str, via: &str) -> NodeRoute {
    NodeRoute { dst: at(dst, number).parse().unwrap(), via: at(via, number).parse().unwrap(), link: None }
}

impl Node {
    fn overlay(&self, mode: VxlanMode) -> Overlay {
        Overlay {
            mode,
            addresses: ["10.1.N.N", "fd10:N::N"].map(|ip| at(ip, self.number).parse().unwrap()).into(),
            pod_cidrs: ["10.244.N.0/24", "fd44:N::/64"]
                .map(|net| at(net, self.number).parse().unwrap())
                .into(),
        }
    }

    fn sync(&self, mode: VxlanMode, routes: &[Vec<NodeRoute>]) -> Result<()> {
        self.sync_as(self.overlay(mode), routes)
    }

    fn sync_as(&self, overlay: Overlay, routes: &[Vec<NodeRoute>]) -> Result<()> {
        let desired = routes.concat();
        self.space
            .block_on(move || async move { vxlan::sync(&Netlink::open().unwrap(), &overlay, &desired).await })
    }
}

/// Sends this many bytes over TCP to a listener in the other place, and the same back. Gives whom the listener saw.
fn echo(from: &Space, to: &Space, address: &str, bytes: usize) -> IpAddr {
    let listener = to.run(|| TcpListener::bind("[::]:7000").unwrap());
    let server = to.run(move || {
        std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut all = vec![0; bytes];
            stream.read_exact(&mut all).unwrap();
            stream.write_all(&all).unwrap();
            peer.ip().to_canonical()
        })
    });
    let address: IpAddr = address.parse().unwrap();
    from.run(move || {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&(address, 7000).into(), limit).unwrap();
        stream.set_read_timeout(Some(limit)).unwrap();
        stream.set_write_timeout(Some(limit)).unwrap();
        let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        let mut writer = stream.try_clone().unwrap();
        let copy = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
        let mut got = vec![0; bytes];
        stream.read_exact(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == sent, "what came back is not what was sent");
    });
    server.join().unwrap()
}

#[test]
fn pods_reach_each_other_over_a_router_that_knows_no_pods() {
    let router = Space::new();
    let (left, right) = (node(&router, 1, "wire1"), node(&router, 2, "wire2"));
    router.run(|| host::ensure_forwarding().unwrap());
    assert!(!left.pod.pings("10.244.2.2"));
    // Straight over a router is no way.
    assert!(left.sync(VxlanMode::Never, &[to(2)]).is_err());
    for _ in 0..2 {
        left.sync(VxlanMode::CrossSubnet, &[to(2)]).unwrap();
        right.sync(VxlanMode::CrossSubnet, &[to(1)]).unwrap();
        for (one, other) in [("10.244.1.2", "10.244.2.2"), ("fd44:1::2", "fd44:2::2")] {
            // Nobody translates their addresses on the way.
            assert_eq!(echo(&left.pod, &right.pod, other, 1 << 20), one.parse::<IpAddr>().unwrap());
            assert_eq!(echo(&right.pod, &left.pod, one, 1 << 20), other.parse::<IpAddr>().unwrap());
        }
        // Larger than the wire: fragments go as well.
        assert!(left.pod.pings("-s 3000 10.244.2.2") && left.pod.pings("-s 3000 fd44:2::2"));
        // What a node itself sends is answered over the tunnel: its source is within its pods' range.
        for (own, other) in [("10.244.1.0", "10.244.2.2"), ("fd44:1::", "fd44:2::2")] {
            assert_eq!(echo(&left.space, &right.pod, other, 1 << 16), own.parse::<IpAddr>().unwrap());
        }
    }
    let links = left.space.command("ip link");
    assert!(links.contains("mtu 1450") && links.contains("mtu 1430"), "{links}");
    let routes = left.space.command("ip route") + &left.space.command("ip -6 route");
    assert!(routes.contains("10.244.2.0/24 via 10.1.2.2 dev vxlan.keelson"), "{routes}");
    assert!(routes.contains("fd44:2::/64 via fe80::") && routes.contains("dev vxlan6.keelson"), "{routes}");

    // The device goes with the last node that needs it.
    left.sync(VxlanMode::CrossSubnet, &[]).unwrap();
    let links = left.space.command("ip link");
    assert!(!vxlan::DEVICES.iter().any(|device| links.contains(device)), "{links}");
    assert!(!left.pod.pings("10.244.2.2"));
}

#[test]
fn only_what_must_be_is_wrapped() {
    let router = Space::new();
    let left = node(&router, 1, "wire1");
    let near = || vec![route(3, "10.244.N.0/24", "10.1.1.3"), route(3, "fd44:N::/64", "fd10:1::3")];
    let routes = || left.space.command("ip route") + &left.space.command("ip -6 route");
    left.sync(VxlanMode::CrossSubnet, &[near(), to(2)]).unwrap();
    let listed = routes();
    assert!(listed.contains("10.244.3.0/24 via 10.1.1.3 dev eth0"), "{listed}");
    assert!(listed.contains("fd44:3::/64 via fd10:1::3 dev eth0"), "{listed}");
    assert!(listed.contains("10.244.2.0/24 via 10.1.2.2 dev vxlan.keelson"), "{listed}");
    // From straight to wrapped, and back.
    left.sync(VxlanMode::Always, &[near()]).unwrap();
    let listed = routes();
    assert!(listed.contains("10.244.3.0/24 via 10.1.1.3 dev vxlan.keelson"), "{listed}");
    assert!(listed.contains("fd44:3::/64 via fe80::") && !listed.contains("10.244.2.0"), "{listed}");
    left.sync(VxlanMode::Never, &[near()]).unwrap();
    let listed = routes();
    assert!(listed.contains("10.244.3.0/24 via 10.1.1.3 dev eth0") && !listed.contains("vxlan"), "{listed}");
    left.space.block_on(|| async {
        let netlink = Netlink::open().unwrap();
        vxlan::remove(&netlink).await.unwrap();
        vxlan::remove(&netlink).await.unwrap();
    });
}

#[test]
fn nodes_change_and_go() {
    let router = Space::new();
    let (left, right) = (node(&router, 1, "wire1"), node(&router, 2, "wire2"));
    router.run(|| host::ensure_forwarding().unwrap());
    let always = |routes: &[Vec<NodeRoute>]| left.sync(VxlanMode::Always, routes);
    let entries =
        || vxlan::DEVICES.map(|device| left.space.command(&format!("ip neigh show dev {device}"))).concat();
    right.sync(VxlanMode::Always, &[to(1)]).unwrap();
    always(&[to(2), to(3)]).unwrap();
    assert!(entries().contains("10.1.3.3 lladdr 02:4b:0a:01:03:03"), "{}", entries());
    assert_eq!(entries().lines().filter(|line| line.contains("PERMANENT")).count(), 4, "{}", entries());
    // One goes, and takes its entries along.
    always(&[to(2)]).unwrap();
    assert!(!entries().contains("10.1.3.3"), "{}", entries());
    assert_eq!(entries().lines().filter(|line| line.contains("PERMANENT")).count(), 2, "{}", entries());
    assert!(left.pod.pings("10.244.2.2") && left.pod.pings("fd44:2::2"));

    // One gets another address.
    right.space.command("ip address del 10.1.2.2/24 dev eth0");
    right.space.command("ip address add 10.1.2.9/24 dev eth0");
    right.space.command("ip route add default via 10.1.2.254");
    let mut moved = right.overlay(VxlanMode::Always);
    moved.addresses[0] = "10.1.2.9".parse().unwrap();
    right.sync_as(moved, &[to(1)]).unwrap();
    assert!(!left.pod.pings("10.244.2.2"));
    always(&[vec![route(2, "10.244.N.0/24", "10.1.2.9"), to(2)[1].clone()]]).unwrap();
    assert!(left.pod.pings("10.244.2.2") && left.pod.pings("fd44:2::2"));
    assert!(!entries().contains("10.1.2.2"), "{}", entries());

    // One gets another range.
    right.space.command("ip address add 10.244.7.1/24 dev pod0");
    right.pod.command("ip address add 10.244.7.2/24 dev eth0");
    always(&[vec![route(7, "10.244.N.0/24", "10.1.2.9")]]).unwrap();
    assert!(left.pod.pings("10.244.7.2"));
    let routes = left.space.command("ip route");
    assert!(!routes.contains("10.244.2.0"), "{routes}");

    // What somebody else changed is set right.
    left.space.command("ip link set vxlan.keelson down");
    left.space.command("ip link set vxlan.keelson mtu 1200");
    always(&[vec![route(7, "10.244.N.0/24", "10.1.2.9")]]).unwrap();
    assert!(left.pod.pings("10.244.7.2"));
    assert!(left.space.command("ip link show vxlan.keelson").contains("mtu 1450"));
}

#[test]
fn one_bad_node_is_no_other_nodes_trouble() {
    let router = Space::new();
    let (left, right) = (node(&router, 1, "wire1"), node(&router, 2, "wire2"));
    router.run(|| host::ensure_forwarding().unwrap());
    right.sync(VxlanMode::CrossSubnet, &[to(1)]).unwrap();
    for bad in ["10.1.1.1", "240.0.0.1", "0.0.0.0"] {
        let bad = vec![route(9, "10.244.N.0/24", bad)];
        let _ = left.sync(VxlanMode::CrossSubnet, &[bad.clone(), to(2)]);
        assert!(left.pod.pings("10.244.2.2"));
        let _ = left.sync(VxlanMode::Always, &[bad, to(2)]);
        assert!(left.pod.pings("10.244.2.2"));
    }
    // A node without an address of the family says so, and goes by the other.
    let mut four = left.overlay(VxlanMode::Always);
    four.addresses.truncate(1);
    assert!(left.sync_as(four, &[to(2)]).unwrap_err().to_string().contains("no IPv6 address"));
    assert!(left.pod.pings("10.244.2.2"));
}

#[test]
fn a_frame_for_nobody_goes_nowhere() {
    let router = Space::new();
    let left = node(&router, 1, "wire1");
    left.sync(VxlanMode::Always, &[to(2)]).unwrap();
    // An unknown neighbour would be asked for by broadcast: there is no entry for that, so nothing leaves.
    let listener = router.run(|| UdpSocket::bind("0.0.0.0:8472").unwrap());
    listener.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    left.space.command("ip route add 10.99.0.0/16 dev vxlan.keelson");
    assert!(!left.space.pings("10.99.0.1"));
    assert!(listener.recv(&mut [0; 64]).is_err());
}
