//! The server on loopback sockets, with upstream servers made for the test. Needs no root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{config, query, service, shown, slice, zone};
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use keelson_dns::respond::{Decision, Transport, decide, encode, limit};
use keelson_dns::{DnsConfig, SharedZone, Sockets, Upstreams, server};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

struct Running {
    address: SocketAddr,
    zone: SharedZone,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn start(upstreams: Vec<SocketAddr>) -> Running {
    let sockets = Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 2).unwrap();
    let address = sockets.udp[0].local_addr().unwrap();
    start_on(sockets, address, upstreams)
}

fn start_on(sockets: Sockets, address: SocketAddr, upstreams: Vec<SocketAddr>) -> Running {
    let mut zone = zone();
    let many: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("10.244.2.{n}")]})).collect();
    let (key, entry) = slice("early", "early-1", json!(many));
    zone.apply_slice(key, entry);
    let zone = Arc::new(parking_lot::RwLock::new(zone));
    let config = DnsConfig {
        upstreams: Upstreams::Servers(upstreams),
        upstream_timeout: Duration::from_millis(300),
        ..config()
    };
    let shutdown = CancellationToken::new();
    tokio::spawn(server::serve(Arc::clone(&zone), config, sockets, shutdown.clone()));
    Running { address, zone, shutdown }
}

async fn udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&message.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0u8; 4096];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    let length = received.expect("no answer").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn tcp(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0u8; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

/// An upstream: answers every A query with one address, `large` ones only over TCP, and counts them. Each
/// datagram is answered with a forged id first.
async fn upstream(code: ResponseCode) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = move |bytes: &[u8], over_tcp: bool| {
        let request = Message::from_vec(bytes).unwrap();
        let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
        reply.metadata.response_code = code;
        let name = request.queries[0].name().clone();
        reply.add_query(request.queries[0].clone());
        if name.to_ascii().starts_with("large") && !over_tcp {
            reply.metadata.truncation = true;
        } else if code == ResponseCode::NoError {
            reply.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 7))));
        }
        reply
    };
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0u8; 4096];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut reply = answer(&buffer[..length], false);
            let real = reply.metadata.id;
            reply.metadata.id = real.wrapping_add(1);
            socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
            reply.metadata.id = real;
            socket.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut query = vec![0u8; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let bytes = answer(&query, true).to_vec().unwrap();
            stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn cluster_names_over_udp_and_tcp() {
    let server = start(Vec::new());
    let web = query("web.default.svc.cluster.local", RecordType::A);
    assert_eq!(shown(&udp(server.address, &web).await), "NoError 10.96.0.20");
    let many = query("early.default.svc.cluster.local", RecordType::A);
    assert!(udp(server.address, &many).await.metadata.truncation);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(shown(&tcp(&mut stream, &web).await), "NoError 10.96.0.20");
    let all = tcp(&mut stream, &many).await;
    assert_eq!((all.answers.len(), all.metadata.truncation), (200, false));
    let outside = udp(server.address, &query("example.org", RecordType::A)).await;
    assert_eq!(shown(&outside), "Refused");
    assert!(!outside.metadata.recursion_available);
}

#[tokio::test]
async fn other_names_are_forwarded() {
    let (good, asked) = upstream(ResponseCode::NoError).await;
    let (bad, _) = upstream(ResponseCode::ServFail).await;
    let server = start(vec![bad, good]);
    let mut message = query("eXample.org", RecordType::A);
    message.metadata.id = 4711;
    let reply = udp(server.address, &message).await;
    assert_eq!((shown(&reply).as_str(), reply.metadata.id), ("NoError 192.0.2.7", 4711));
    assert!(reply.queries[0].name().eq_case(message.queries[0].name()));
    // An alias that leads outside is completed.
    let ext = udp(server.address, &query("ext.default.svc.cluster.local", RecordType::A)).await;
    assert_eq!(shown(&ext), "NoError 192.0.2.7 CNAME:example.org.");
    // Equal questions at one time are one exchange.
    let before = asked.load(Ordering::SeqCst);
    let many =
        (0..20).map(|_| async { shown(&udp(server.address, &query("same.example", RecordType::A)).await) });
    assert!(futures::future::join_all(many).await.iter().all(|line| line == "NoError 192.0.2.7"));
    assert_eq!(asked.load(Ordering::SeqCst), before + 1);
    // Asked again, it is known, and the asker has its own id back.
    let mut again = query("same.example", RecordType::A);
    again.metadata.id = 4712;
    let reply = udp(server.address, &again).await;
    assert_eq!((shown(&reply).as_str(), reply.metadata.id), ("NoError 192.0.2.7", 4712));
    assert_eq!(asked.load(Ordering::SeqCst), before + 1);
    // What is too long for a datagram is said so, and fetched for who comes over TCP.
    let large = query("large.example", RecordType::A);
    assert!(udp(server.address, &large).await.metadata.truncation);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(shown(&tcp(&mut stream, &large).await), "NoError 192.0.2.7");
}

#[tokio::test]
async fn silent_and_circular_upstreams_end_in_servfail() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = start(vec![silent.local_addr().unwrap()]);
    let started = Instant::now();
    let reply = udp(server.address, &query("example.org", RecordType::A)).await;
    assert_eq!(shown(&reply), "ServFail");
    assert!(started.elapsed() < Duration::from_secs(2));
    // Two servers that forward to each other: neither config can see it.
    let bind = || Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 1).unwrap();
    let (one, two) = (bind(), bind());
    let (a, b) = (one.udp[0].local_addr().unwrap(), two.udp[0].local_addr().unwrap());
    let (_first, _second) = (start_on(one, a, vec![b]), start_on(two, b, vec![a]));
    let started = Instant::now();
    assert_eq!(shown(&udp(a, &query("example.org", RecordType::A)).await), "ServFail");
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn hostile_bytes_leave_the_server_standing() {
    let server = start(Vec::new());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for n in 0..200usize {
        let bytes: Vec<u8> = (0..n).map(|i| u8::try_from((i * 37 + n * 11) % 256).unwrap()).collect();
        socket.send_to(&bytes, server.address).await.unwrap();
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).await.unwrap();
    drop(stream);
    let web = query("web.default.svc.cluster.local", RecordType::A);
    assert_eq!(shown(&udp(server.address, &web).await), "NoError 10.96.0.20");
}

/// Sends bytes from a socket; gives those that come back.
async fn exchange(socket: &UdpSocket, bytes: &[u8]) -> Vec<u8> {
    socket.send(bytes).await.unwrap();
    let mut buffer = vec![0u8; 4096];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    buffer.truncate(received.unwrap().unwrap());
    buffer
}

#[tokio::test]
async fn an_answer_that_comes_again_is_the_same_until_the_zone_changes() {
    use RecordType::{A, AAAA, ANY, PTR, SRV};
    // One socket, so that every query comes where the last one came.
    let sockets = Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 1).unwrap();
    let address = sockets.udp[0].local_addr().unwrap();
    let server = start_on(sockets, address, Vec::new());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    let names = [
        ("web.default.svc.cluster.local", A),
        ("web.default.svc.cluster.local", AAAA),
        ("web.default.svc.cluster.local", ANY),
        ("plain.default.svc.cluster.local", AAAA),
        ("db.default.svc.cluster.local", A),
        ("_http._tcp.db.default.svc.cluster.local", SRV),
        ("early.default.svc.cluster.local", A),
        ("none.default.svc.cluster.local", A),
        ("web.default.svc.cluster.local.default.svc.cluster.local", A),
        ("inside.default.svc.cluster.local", A),
        ("ext.default.svc.cluster.local", A),
        ("loop-a.default.svc.cluster.local", A),
        ("20.0.96.10.in-addr.arpa", PTR),
        ("example.org", A),
    ];
    for id in [0, 1, 2, 3, 8, 4711, 2] {
        for (name, kind) in names {
            for payload in [None, Some(1232)] {
                let mut message = query(name, kind);
                message.metadata.id = id;
                if let Some(payload) = payload {
                    message.set_edns(Edns::new().set_max_payload(payload).clone());
                }
                let Decision::Reply(reply) = decide(&server.zone.read(), &message, false) else { panic!() };
                let expected = encode(*reply, limit(message.max_payload(), Transport::Udp)).unwrap();
                for again in 0..2 {
                    let answer = exchange(&socket, &message.to_vec().unwrap()).await;
                    assert_eq!(answer, expected, "{name} {kind} {id} {payload:?} {again}");
                }
            }
        }
    }
    // Whoever writes letters otherwise gets them back.
    let message = query("wEb.default.SVC.cluster.local", A);
    let answer = Message::from_vec(&exchange(&socket, &message.to_vec().unwrap()).await).unwrap();
    assert_eq!(shown(&answer), "NoError 10.96.0.20");
    assert!(answer.queries[0].name().eq_case(message.queries[0].name()));
    assert!(answer.answers[0].name.eq_case(message.queries[0].name()));

    let ask = async |name: &str| {
        let message = query(name, A).to_vec().unwrap();
        shown(&Message::from_vec(&exchange(&socket, &message).await).unwrap())
    };
    let (key, entry) = service("web", json!({"clusterIP": "10.96.0.99"}));
    server.zone.write().apply_service(key.clone(), entry);
    assert_eq!(ask("web.default.svc.cluster.local").await, "NoError 10.96.0.99");
    server.zone.write().delete_service(&key);
    assert_eq!(ask("web.default.svc.cluster.local").await, "NXDomain");
    let (key, entry) = slice("db", "db-1", json!([{"addresses": ["10.244.1.77"]}]));
    server.zone.write().apply_slice(key, entry);
    assert_eq!(ask("db.default.svc.cluster.local").await, "NoError 10.244.1.5 10.244.1.77");
    server.zone.write().replace_slices(Vec::new());
    assert_eq!(ask("db.default.svc.cluster.local").await, "NXDomain");
    server.zone.write().replace_services(Vec::new());
    assert_eq!(ask("plain.default.svc.cluster.local").await, "NXDomain");
}
