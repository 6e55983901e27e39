//! The programs in the running kernel, with real sockets, as root. The test process enters a cgroup and a network
//! namespace of its own, so that nothing else on the machine is translated and nothing leaves it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;

use keelson_ebpf_abi::{Backend, Be16, Be32, FrontendKey, NodePlace};
use keelson_proxy::kernel::Kernel;
use keelson_proxy::{MapImage, Target, diff};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 77);

/// A cgroup and a bpffs of this test's own, removed in the end.
struct Place {
    cgroup: PathBuf,
    bpffs: tempfile::TempDir,
}

impl Place {
    fn enter() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is mounted");
        let cgroup = PathBuf::from(mount.split(' ').nth(4).unwrap())
            .join(format!("keelson-test-{}", std::process::id()));
        std::fs::create_dir_all(&cgroup).unwrap();
        // This thread alone would need a threaded cgroup; the whole process enters.
        std::fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
        let bpffs = tempfile::tempdir().unwrap();
        let path = std::ffi::CString::new(bpffs.path().to_str().unwrap()).unwrap();
        // SAFETY: plain system calls with valid, null-terminated strings.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS), 0, "this test needs root");
            assert_eq!(
                libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null()
                ),
                0
            );
            assert_eq!(libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()), 0);
        }
        ip("link set lo up");
        Self { cgroup, bpffs }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let root = self.cgroup.parent().unwrap();
        let _ = std::fs::write(root.join("cgroup.procs"), "0");
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

fn ip(args: &str) {
    assert!(std::process::Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

fn image(ports: &[(u16, u8, &[SocketAddr])], affinity_seconds: u32) -> MapImage {
    let mut image = MapImage::default();
    for (port, protocol, endpoints) in ports {
        let address = Be32::from_octets(SERVICE.octets());
        image.claimed.insert(address);
        image.frontends.insert(
            FrontendKey { address, port: Be16::new(*port), protocol: *protocol, pad: 0 },
            image.targets.len(),
        );
        let mut backends: Vec<Backend> = endpoints
            .iter()
            .map(|endpoint| match endpoint {
                SocketAddr::V4(v4) => Backend {
                    address: Be32::from_octets(v4.ip().octets()),
                    port: Be16::new(v4.port()),
                    pad: 0,
                },
                SocketAddr::V6(_) => panic!("IPv4 only"),
            })
            .collect();
        backends.sort();
        image.targets.push(Target { backends, affinity_seconds });
    }
    image
}

fn apply(kernel: &mut Kernel, image: &MapImage) {
    for op in diff(&kernel.installed().unwrap(), image) {
        kernel.apply(&op).unwrap();
    }
}

/// Node ports of two nodes: this one, 192.0.2.1, has an endpoint, the other, 192.0.2.2, has none.
fn node_ports(kernel: &mut Kernel, endpoint: SocketAddr, listener: &TcpListener) {
    const PORT: u16 = 30080;
    let mut nodes = image(&[(80, 6, &[endpoint])], 0);
    let (here, other) = (Be32::from_octets([192, 0, 2, 1]), Be32::from_octets([192, 0, 2, 2]));
    nodes.nodes = [(here, NodePlace::Here), (other, NodePlace::Elsewhere)].into();
    let at = |place: NodePlace| FrontendKey::node_port(place as u32, Be16::new(PORT), 6);
    nodes.frontends.insert(at(NodePlace::Here), 0);
    nodes.frontends.insert(at(NodePlace::Elsewhere), 1);
    nodes.targets.push(Target::default());
    apply(kernel, &nodes);

    let connect = |address: &str, port: u16| {
        let address: SocketAddr = format!("{address}:{port}").parse().unwrap();
        TcpStream::connect_timeout(&address, std::time::Duration::from_secs(2))
            .map(|stream| stream.peer_addr().unwrap() == address)
            .map_err(|error| error.kind())
    };
    while listener.accept().is_ok() {}
    for address in ["192.0.2.1", "127.0.0.1", "127.1.2.3", "[::ffff:192.0.2.1]"] {
        assert_eq!(connect(address, PORT), Ok(true), "{address}");
        assert!(listener.accept().is_ok(), "{address} led to the endpoint");
    }
    assert_eq!(connect("192.0.2.2", PORT), Err(ErrorKind::ConnectionRefused));
    // Any other port of a node is the node's own.
    assert_eq!(connect("127.0.0.1", endpoint.port()), Ok(true));
    assert!(listener.accept().is_ok());
    // Once the other node has an endpoint of its own, that entry decides.
    let own = FrontendKey { address: other, port: Be16::new(PORT), protocol: 6, pad: 0 };
    nodes.frontends.insert(own, 0);
    apply(kernel, &nodes);
    assert_eq!(connect("192.0.2.2", PORT), Ok(true));
    assert!(listener.accept().is_ok());

    // The loopback of another network namespace, such as a pod's, is not the node's.
    let elsewhere = std::thread::spawn(|| {
        // SAFETY: a plain system call, which affects this thread alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        ip("link set lo up");
        let own = TcpListener::bind(("127.0.0.1", PORT)).unwrap();
        TcpStream::connect(("127.0.0.1", PORT)).unwrap();
        own.accept().unwrap();
        // A node's address is the same from everywhere: nothing listens at the endpoint's address in here.
        TcpStream::connect(("192.0.2.1", PORT)).unwrap_err().kind()
    });
    assert_eq!(elsewhere.join().unwrap(), ErrorKind::ConnectionRefused);
    apply(kernel, &image(&[(80, 6, &[endpoint])], 100));
}

/// One test: the steps share the process's cgroup.
#[test]
fn sockets_see_services() {
    let place = Place::enter();
    let pin = place.bpffs.path().join("keelson");
    let mut kernel = Kernel::attach(&place.cgroup, &pin).unwrap();
    let one = TcpListener::bind("127.0.0.1:0").unwrap();
    let two = TcpListener::bind("127.0.0.1:0").unwrap();
    let (first, second) = (one.local_addr().unwrap(), two.local_addr().unwrap());
    let service = SocketAddrV4::new(SERVICE, 80);
    let connect = || TcpStream::connect_timeout(&service.into(), std::time::Duration::from_secs(2));

    // Connections are spread over both endpoints, and each sees the Service as its peer.
    apply(&mut kernel, &image(&[(80, 6, &[first, second])], 0));
    let streams: Vec<TcpStream> = (0..64).map(|_| connect().unwrap()).collect();
    assert!(streams.iter().all(|stream| stream.peer_addr().unwrap() == SocketAddr::V4(service)));
    let count = |listener: &TcpListener| {
        listener.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| listener.accept().ok()).count()
    };
    let (a, b) = (count(&one), count(&two));
    assert_eq!(a + b, 64);
    assert!(a > 8 && b > 8, "spread {a}:{b}");

    // An IPv4-mapped IPv6 socket reaches it too.
    let mapped: SocketAddr = format!("[::ffff:{SERVICE}]:80").parse().unwrap();
    let stream = TcpStream::connect(mapped).unwrap();
    assert_eq!(stream.peer_addr().unwrap(), mapped);
    assert_eq!(count(&one) + count(&two), 1);

    // A port that the Service does not have is refused, not routed; so is a Service without endpoints.
    let refused = |port| {
        TcpStream::connect(SocketAddrV4::new(SERVICE, port)).unwrap_err().kind()
            == ErrorKind::ConnectionRefused
    };
    assert!(refused(81));
    apply(&mut kernel, &image(&[(80, 6, &[])], 0));
    assert!(refused(80));
    // Connections that exist are not touched by the change.
    assert!(streams.iter().all(|stream| stream.peer_addr().is_ok()));

    // UDP without connect: the answer comes from the address that was asked, mapped sockets included.
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    apply(&mut kernel, &image(&[(53, 17, &[server.local_addr().unwrap()])], 0));
    let mut buffer = [0; 16];
    for (local, target) in
        [("127.0.0.1:0", format!("{SERVICE}:53")), ("[::]:0", format!("[::ffff:{SERVICE}]:53"))]
    {
        let client = UdpSocket::bind(local).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let target: SocketAddr = target.parse().unwrap();
        client.send_to(b"ask", target).unwrap();
        let (_, peer) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"answer", peer).unwrap();
        let (_, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(from, target);
    }

    // A UDP socket may be connected to a port that the Service does not have, to learn its own address; sending there is
    // refused when the address is given, and else netfilter's (the tests of keelson-cni). Nothing is there for TCP.
    ip("route add 10.96.0.0/16 dev lo src 127.0.0.1");
    for (local, target) in
        [("0.0.0.0:0", format!("{SERVICE}:54")), ("[::]:0", format!("[::ffff:{SERVICE}]:54"))]
    {
        let client = UdpSocket::bind(local).unwrap();
        let target: SocketAddr = target.parse().unwrap();
        assert_eq!(client.send_to(b"ask", target).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        client.connect(target).unwrap();
        assert_eq!(client.peer_addr().unwrap(), target);
        assert!(!client.local_addr().unwrap().ip().is_unspecified());
    }
    assert!(refused(54));
    ip("route del 10.96.0.0/16 dev lo");
    // Without endpoints it is refused, or the socket would not find those that come.
    apply(&mut kernel, &image(&[(53, 17, &[])], 0));
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    let kind = client.connect((SERVICE, 53)).unwrap_err().kind();
    assert_eq!(kind, ErrorKind::ConnectionRefused);

    // With affinity one client stays with one endpoint, until that is gone.
    apply(&mut kernel, &image(&[(80, 6, &[first, second])], 100));
    for _ in 0..32 {
        connect().unwrap();
    }
    let (a, b) = (count(&one), count(&two));
    assert!(a == 0 || b == 0, "one endpoint only: {a}:{b}");
    let (stay, left) = if a == 0 { (first, &one) } else { (second, &two) };
    apply(&mut kernel, &image(&[(80, 6, &[stay])], 100));
    connect().unwrap();
    assert_eq!(count(left), 1);

    node_ports(&mut kernel, first, &one);

    // Another agent takes over what is pinned, and traffic goes on when the first is gone.
    let before = kernel.installed().unwrap();
    let mut next = Kernel::attach(&place.cgroup, &pin).unwrap();
    drop(kernel);
    assert_eq!(next.installed().unwrap(), before);
    connect().unwrap();
    drop(next);
    connect().unwrap();
    next = Kernel::attach(&place.cgroup, &pin).unwrap();
    apply(&mut next, &MapImage::default());
    assert_eq!(next.installed().unwrap(), keelson_proxy::Installed::default());
}
