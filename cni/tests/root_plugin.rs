//! The plugin against a real kernel, in namespaces of its own. Needs root and busybox.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::Space;
use keelson_cni::plugin;
use keelson_cni::types::report::ErrorReport;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(30);

fn config(mode: &str, dir: &Path) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "keelson-cni", "mode": mode, "bridge": "cni0",
        "ipam": {"ranges": ["10.244.1.0/24", "fd00:244:1::/64"], "dataDir": dir},
        "ipMasq": true, "clusterCIDR": ["10.244.0.0/16", "fd00:244::/32"],
    })
}

fn call(
    host: &Space,
    command: &str,
    id: &str,
    pod: Option<&Space>,
    config: &Value,
) -> Result<Value, ErrorReport> {
    let netns = pod.map(|pod| pod.path.display().to_string()).unwrap_or_default();
    let env = [
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", id.to_owned()),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0".to_owned()),
    ];
    let stdin = config.to_string().into_bytes();
    host.run(move || {
        let get = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        plugin::run(get, &stdin, LIMIT).map(Option::unwrap_or_default)
    })
}

fn with_result(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}

fn ip(result: &Value, n: usize) -> String {
    result["ips"][n]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

fn records(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir.join("net")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
}

fn nothing_left(host: &Space, dir: &Path) {
    assert!(records(dir).is_empty(), "{:?}", records(dir));
    let links = host.command("ip link");
    assert!(!links.contains(" kl"), "{links}");
    let routes = host.command("ip route") + &host.command("ip -6 route");
    assert!(!routes.contains(" kl"), "{routes}");
}

fn two_pods_talk(mode: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (host, a, b) = (Space::new(), Space::new(), Space::new());
    let config = config(mode, dir.path());
    let one = call(&host, "ADD", "pod-a", Some(&a), &config).unwrap();
    let two = call(&host, "ADD", "pod-b", Some(&b), &config).unwrap();
    assert_eq!(one["cniVersion"], "1.1.0");
    let eth0 = one["interfaces"].as_array().unwrap().iter().find(|i| i["name"] == "eth0").unwrap();
    assert_eq!(eth0["sandbox"], a.path.display().to_string());
    assert_eq!((&eth0["mtu"], &eth0["mac"]), (&json!(1500), &json!("0a:58:0a:f4:01:02")));
    assert_eq!(one["ips"].as_array().unwrap().len(), 2);
    for family in 0..2 {
        assert!(a.pings(&ip(&two, family)), "{mode}: a to b over {}", ip(&two, family));
        assert!(b.pings(&ip(&one, family)), "{mode}: b to a over {}", ip(&one, family));
    }
    // The host reaches its pods: probes and logs go this way.
    host.command("ip address add 10.89.0.11/32 dev lo");
    assert!(host.pings(&ip(&one, 0)));
    assert!(a.pings("10.89.0.11"));
    host.block_on(|| async {
        keelson_cni::host::add_local_address("10.96.0.10".parse().unwrap()).await.unwrap();
    });
    assert!(a.pings("10.96.0.10"), "{mode}: the node's DNS address");
    for (id, pod, result) in [("pod-a", &a, &one), ("pod-b", &b, &two)] {
        call(&host, "CHECK", id, Some(pod), &with_result(&config, result)).unwrap();
    }
    let again = call(&host, "ADD", "pod-a", Some(&a), &config).unwrap_err();
    assert_eq!(again.code, 103, "{again:?}");
    call(&host, "DEL", "pod-a", Some(&a), &with_result(&config, &one)).unwrap();
    assert!(!a.command("ip link").contains("eth0"));
    assert!(!b.pings(&ip(&one, 0)));
    call(&host, "DEL", "pod-a", Some(&a), &config).unwrap();
    // The namespace is gone, as after a crash of the sandbox.
    drop(b);
    call(&host, "DEL", "pod-b", None, &config).unwrap();
    nothing_left(&host, dir.path());
}

#[test]
fn bridge_mode_connects_two_pods() {
    two_pods_talk("bridge");
}

#[test]
fn routed_mode_connects_two_pods() {
    two_pods_talk("routed");
}

#[test]
fn check_sees_damage() {
    for mode in ["bridge", "routed"] {
        let damages: &[(&str, bool)] = &[
            ("ip route del default", true),
            ("ip address flush dev eth0", true),
            ("ip link set eth0 down", true),
            ("ip link set eth0 address 02:00:00:00:00:99", true),
            ("ip link del eth0", true),
            ("ip link set LINK down", false),
        ];
        for (damage, in_pod) in damages {
            let dir = tempfile::tempdir().unwrap();
            let (host, pod) = (Space::new(), Space::new());
            let config = config(mode, dir.path());
            let result = call(&host, "ADD", "pod", Some(&pod), &config).unwrap();
            let checked = with_result(&config, &result);
            call(&host, "CHECK", "pod", Some(&pod), &checked).unwrap();
            let link = result["interfaces"].as_array().unwrap().iter().find_map(|i| {
                let name = i["name"].as_str().unwrap();
                name.starts_with("kl").then(|| name.to_owned())
            });
            let damage = damage.replace("LINK", &link.unwrap());
            if *in_pod {
                pod.command(&damage)
            } else {
                host.command(&damage)
            };
            let report = call(&host, "CHECK", "pod", Some(&pod), &checked).unwrap_err();
            assert_eq!(report.code, 104, "{mode}: {damage}: {report:?}");
            call(&host, "DEL", "pod", Some(&pod), &checked).unwrap();
            nothing_left(&host, dir.path());
        }
    }
}

#[test]
fn check_sees_a_lost_reservation() {
    let dir = tempfile::tempdir().unwrap();
    let (host, pod) = (Space::new(), Space::new());
    let config = config("bridge", dir.path());
    let result = call(&host, "ADD", "pod", Some(&pod), &config).unwrap();
    std::fs::remove_file(dir.path().join("net").join(ip(&result, 0))).unwrap();
    let report = call(&host, "CHECK", "pod", Some(&pod), &with_result(&config, &result)).unwrap_err();
    assert_eq!(report.code, 104);
}

#[test]
fn failed_add_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (host, pod) = (Space::new(), Space::new());
    let config = config("bridge", dir.path());
    let other = Space::new();
    host.connect("cni0", &other, "other");
    let report = call(&host, "ADD", "pod", Some(&pod), &config).unwrap_err();
    assert_eq!(report.code, 7, "{report:?}");
    nothing_left(&host, dir.path());
    assert!(!pod.command("ip link").contains("eth0"));
}

#[test]
fn gc_removes_what_is_not_valid() {
    let dir = tempfile::tempdir().unwrap();
    let (host, a, b) = (Space::new(), Space::new(), Space::new());
    let config = config("bridge", dir.path());
    let one = call(&host, "ADD", "pod-a", Some(&a), &config).unwrap();
    call(&host, "ADD", "pod-b", Some(&b), &config).unwrap();
    let mut request = config.clone();
    request["cni.dev/valid-attachments"] = json!([{"containerID": "pod-a", "ifname": "eth0"}]);
    call(&host, "GC", "", None, &request).unwrap();
    assert_eq!(records(dir.path()).len(), 2);
    assert!(!b.command("ip link").contains("eth0"));
    call(&host, "CHECK", "pod-a", Some(&a), &with_result(&config, &one)).unwrap();
    call(&host, "STATUS", "", None, &config).unwrap();
    let unlisted = call(&host, "GC", "", None, &config).unwrap_err();
    assert_eq!(unlisted.code, 7);
}

/// A machine that knows no route to the pods: only what is masqueraded is answered.
fn outside(host: &Space) -> Space {
    let outside = Space::new();
    host.connect("wan0", &outside, "wan1");
    host.command("ip address add 192.0.2.1/24 dev wan0");
    outside.command("ip address add 192.0.2.2/24 dev wan1");
    outside
}

#[test]
fn egress_is_masqueraded_and_host_ports_lead_in() {
    for mode in ["bridge", "routed"] {
        let dir = tempfile::tempdir().unwrap();
        let (host, pod) = (Space::new(), Space::new());
        let outside = outside(&host);
        let mut config = config(mode, dir.path());
        config["runtimeConfig"] =
            json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let result = call(&host, "ADD", "pod", Some(&pod), &config).unwrap();
        assert!(pod.pings("192.0.2.2"), "{mode}: masquerade");
        pod.run(|| {
            let listener = TcpListener::bind("[::]:80").unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.unwrap().write_all(b"hello");
                }
            });
        });
        let ask = |from: &Space, address: &'static str| {
            from.run(move || {
                let mut text = String::new();
                let mut stream =
                    TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5)).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                stream.read_to_string(&mut text).unwrap();
                text
            })
        };
        assert_eq!(ask(&outside, "192.0.2.1:8080"), "hello", "{mode}: from outside");
        assert_eq!(ask(&host, "192.0.2.1:8080"), "hello", "{mode}: from the host");
        assert_eq!(ask(&host, "127.0.0.1:8080"), "hello", "{mode}: from the host's loopback");
        assert_eq!(ask(&pod, "192.0.2.1:8080"), "hello", "{mode}: from the pod itself");
        let checked = with_result(&config, &result);
        call(&host, "CHECK", "pod", Some(&pod), &checked).unwrap();
        let second = Space::new();
        let taken = call(&host, "ADD", "second", Some(&second), &config).unwrap_err();
        assert_eq!(taken.code, 7, "{taken:?}");
        call(&host, "DEL", "pod", Some(&pod), &checked).unwrap();
        nothing_left(&host, dir.path());
        call(&host, "ADD", "second", Some(&second), &config).unwrap();
    }
}

#[test]
fn killed_at_any_instant_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let host = Space::new();
    let config = config("bridge", dir.path());
    for round in 0..24u64 {
        let pod = Space::new();
        let netns = pod.path.clone();
        let stdin = config.to_string();
        host.run(move || {
            let mut child = Command::new(env!("CARGO_BIN_EXE_keelson-cni"))
                .env("CNI_COMMAND", "ADD")
                .env("CNI_CONTAINERID", "pod")
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_micros(round * 1500));
            child.kill().unwrap();
            child.wait().unwrap();
        });
        call(&host, "DEL", "pod", Some(&pod), &config).unwrap();
        nothing_left(&host, dir.path());
    }
    let pod = Space::new();
    call(&host, "ADD", "pod", Some(&pod), &config).unwrap();
}

#[test]
fn wrong_namespaces_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let host = Space::new();
    let config = config("bridge", dir.path());
    let own = call(&host, "ADD", "pod", Some(&host), &config);
    assert_eq!(own.unwrap_err().code, 4);
    let mut gone = Space::new();
    gone.path = "/run/netns/keelson-test-missing".into();
    assert_eq!(call(&host, "ADD", "pod", Some(&gone), &config).unwrap_err().code, 3);
    gone.path = dir.path().join("plain");
    std::fs::write(&gone.path, "").unwrap();
    assert_eq!(call(&host, "ADD", "pod", Some(&gone), &config).unwrap_err().code, 3);
    call(&host, "DEL", "pod", Some(&gone), &config).unwrap();
}

#[test]
fn mtu_follows_the_default_route() {
    let check = |host_mtu: u32, overhead: u32, expected: u32| {
        let dir = tempfile::tempdir().unwrap();
        let (host, pod) = (Space::new(), Space::new());
        let _outside = outside(&host);
        host.command(&format!("ip link set wan0 mtu {host_mtu}"));
        host.command("ip route add default via 192.0.2.2");
        let mut config = config("bridge", dir.path());
        config["overhead"] = json!(overhead);
        let result = call(&host, "ADD", "pod", Some(&pod), &config).unwrap();
        for interface in result["interfaces"].as_array().unwrap() {
            assert_eq!(interface["mtu"], expected, "{interface}");
        }
        for (space, link) in [(&pod, "eth0"), (&host, "cni0")] {
            let shown = space.command(&format!("ip link show {link}"));
            assert!(shown.contains(&format!("mtu {expected} ")), "{shown}");
        }
    };
    check(1400, 0, 1400);
    check(1500, 70, 1430);
    // IPv6 works with no less.
    check(1300, 70, 1280);
}

/// Not a limit but a record: what an ADD costs, printed with --nocapture.
#[test]
fn add_is_quick() {
    for mode in ["bridge", "routed"] {
        let dir = tempfile::tempdir().unwrap();
        let host = Space::new();
        let config = config(mode, dir.path());
        let pods: Vec<Space> = (0..20).map(|_| Space::new()).collect();
        let start = std::time::Instant::now();
        for (n, pod) in pods.iter().enumerate() {
            call(&host, "ADD", &format!("pod{n}"), Some(pod), &config).unwrap();
        }
        println!("{mode}: {:?} an ADD", start.elapsed() / 20);
    }
}
