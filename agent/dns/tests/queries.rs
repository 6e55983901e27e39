//! Queries against a small cluster: one line each.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{config, query, service, services, shown, slice, slices, zone};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use keelson_dns::Zone;
use keelson_dns::respond::{Decision, Received, Transport, decide, encode, limit, read};
use keelson_dns::zone::ObjectKey;
use proptest::prelude::*;
use serde_json::json;

fn ask(zone: &Zone, message: &Message) -> String {
    let request = match read(&message.to_vec().unwrap()) {
        Received::Noise => return "silence".into(),
        Received::Malformed(reply) => return shown(&reply),
        Received::Query(request) => request,
    };
    match decide(zone, &request, true) {
        Decision::Reply(reply) => {
            let bytes = encode(*reply, 65535).unwrap();
            let reply = Message::from_vec(&bytes).unwrap();
            let negative = reply.answers.is_empty()
                && matches!(reply.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
            assert_eq!(negative, !reply.authorities.is_empty() && reply.answers.is_empty(), "{reply:?}");
            shown(&reply)
        }
        Decision::Forward => "forward".into(),
        Decision::Complete { reply, target } => format!("{} then {target}", shown(&reply)),
    }
}

fn check(cases: &[(&str, RecordType, &str)]) {
    let zone = zone();
    for (name, kind, expected) in cases {
        assert_eq!(ask(&zone, &query(name, *kind)), *expected, "{name} {kind}");
    }
}

#[test]
fn cluster_ips() {
    use RecordType::{A, AAAA, ANY, MX, SRV};
    check(&[
        ("web.default.svc.cluster.local", A, "NoError 10.96.0.20"),
        ("WeB.Default.SVC.cluster.LOCAL", A, "NoError 10.96.0.20"),
        ("web.default.svc.cluster.local", AAAA, "NoError fd00:96::20"),
        ("web.default.svc.cluster.local", ANY, "NoError 10.96.0.20 fd00:96::20"),
        ("web.default.svc.cluster.local", MX, "NoError"),
        ("plain.default.svc.cluster.local", AAAA, "NoError"),
        ("none.default.svc.cluster.local", A, "NXDomain"),
        ("web.other.svc.cluster.local", A, "NXDomain"),
        ("x.web.default.svc.cluster.local", A, "NXDomain"),
        ("_http._tcp.web.default.svc.cluster.local", SRV, "NoError SRV:80:web.default.svc.cluster.local."),
        ("_dns._udp.web.default.svc.cluster.local", SRV, "NoError SRV:53:web.default.svc.cluster.local."),
        ("_http._tcp.web.default.svc.cluster.local", A, "NoError"),
        ("_http._udp.web.default.svc.cluster.local", SRV, "NXDomain"),
        ("_tcp.web.default.svc.cluster.local", SRV, "NoError"),
        ("_sctp.web.default.svc.cluster.local", SRV, "NXDomain"),
        ("_tcp.plain.default.svc.cluster.local", SRV, "NXDomain"),
        ("web-0.web.default.svc.cluster.local", A, "NXDomain"),
    ]);
}

#[test]
fn headless() {
    use RecordType::{A, AAAA, SRV};
    check(&[
        ("db.default.svc.cluster.local", A, "NoError 10.244.1.5 10.244.1.6"),
        ("db.default.svc.cluster.local", AAAA, "NoError"),
        ("db-0.db.default.svc.cluster.local", A, "NoError 10.244.1.5"),
        ("10-244-1-6.db.default.svc.cluster.local", A, "NoError 10.244.1.6"),
        ("10-244-1-5.db.default.svc.cluster.local", A, "NXDomain"),
        ("db-2.db.default.svc.cluster.local", A, "NXDomain"),
        (
            "_http._tcp.db.default.svc.cluster.local",
            SRV,
            "NoError SRV:8080:10-244-1-6.db.default.svc.cluster.local. SRV:8080:db-0.db.default.svc.cluster.local.",
        ),
        ("_http._tcp.db.default.svc.cluster.local", A, "NoError"),
        ("_none._tcp.db.default.svc.cluster.local", SRV, "NXDomain"),
        ("_tcp.db.default.svc.cluster.local", A, "NoError"),
        ("early.default.svc.cluster.local", A, "NoError 10.244.1.8"),
        ("empty.default.svc.cluster.local", A, "NXDomain"),
        ("empty.default.svc.cluster.local", AAAA, "NXDomain"),
    ]);
}

#[test]
fn aliases() {
    use RecordType::{A, CNAME, MX, TXT};
    check(&[
        ("ext.default.svc.cluster.local", CNAME, "NoError CNAME:example.org."),
        ("ext.default.svc.cluster.local", A, "NoError CNAME:example.org. then example.org."),
        ("ext.default.svc.cluster.local", MX, "NoError CNAME:example.org."),
        ("x.ext.default.svc.cluster.local", A, "NXDomain"),
        ("inside.default.svc.cluster.local", A, "NoError 10.96.0.20 CNAME:web.default.svc.cluster.local."),
        ("inside.default.svc.cluster.local", TXT, "NoError CNAME:web.default.svc.cluster.local."),
        ("astray.default.svc.cluster.local", A, "NXDomain CNAME:none.default.svc.cluster.local."),
        ("loop-a.default.svc.cluster.local", A, "ServFail"),
    ]);
}

#[test]
fn structure() {
    use RecordType::{A, AAAA, NS, SOA, TXT};
    check(&[
        ("cluster.local", SOA, "NoError SOA"),
        ("cluster.local", NS, "NoError NS:ns.dns.cluster.local."),
        ("cluster.local", A, "NoError"),
        ("ns.dns.cluster.local", A, "NoError 10.96.0.10"),
        ("dns-version.cluster.local", TXT, "NoError 1.1.0"),
        ("dns-version.cluster.local", A, "NoError"),
        ("svc.cluster.local", A, "NoError"),
        ("default.svc.cluster.local", A, "NoError"),
        ("other.svc.cluster.local", A, "NXDomain"),
        ("nonsense.cluster.local", A, "NXDomain"),
        ("10-244-1-5.default.pod.cluster.local", A, "NoError 10.244.1.5"),
        ("10-244-1-5.default.pod.cluster.local", AAAA, "NoError"),
        ("fd00--5.default.pod.cluster.local", AAAA, "NoError fd00::5"),
        ("10-244-1-500.default.pod.cluster.local", A, "NXDomain"),
        ("web.default.pod.cluster.local", A, "NXDomain"),
        ("default.pod.cluster.local", A, "NoError"),
        ("kubernetes.default.svc.cluster.local.svc.cluster.local", A, "NXDomain"),
    ]);
}

#[test]
fn reverse() {
    use RecordType::{A, PTR};
    check(&[
        ("20.0.96.10.in-addr.arpa", PTR, "NoError PTR:web.default.svc.cluster.local."),
        ("20.0.96.10.in-addr.arpa", A, "NoError"),
        ("5.1.244.10.in-addr.arpa", PTR, "NoError PTR:db-0.db.default.svc.cluster.local."),
        ("6.1.244.10.in-addr.arpa", PTR, "NoError PTR:10-244-1-6.db.default.svc.cluster.local."),
        ("7.1.244.10.in-addr.arpa", PTR, "NXDomain"),
        ("1.244.10.in-addr.arpa", PTR, "NoError"),
        ("1.2.0.192.in-addr.arpa", PTR, "forward"),
        ("10.in-addr.arpa", PTR, "forward"),
        ("05.1.244.10.in-addr.arpa", PTR, "forward"),
        (
            "0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa",
            PTR,
            "NoError PTR:web.default.svc.cluster.local.",
        ),
    ]);
}

#[test]
fn changes() {
    let mut zone = zone();
    let check = |zone: &Zone, name: &str, kind, expected: &str| {
        assert_eq!(ask(zone, &query(name, kind)), expected, "{name}");
    };
    let key = |name: &str| ObjectKey { namespace: "default".into(), name: name.into() };
    zone.delete_slice(&key("db-1"));
    check(&zone, "db.default.svc.cluster.local", RecordType::A, "NoError 10.244.1.5");
    zone.delete_slice(&key("db-2"));
    zone.delete_slice(&key("db-2"));
    check(&zone, "db.default.svc.cluster.local", RecordType::A, "NXDomain");
    check(&zone, "5.1.244.10.in-addr.arpa", RecordType::PTR, "NXDomain");
    let (web, entry) = service("web", json!({"clusterIP": "10.96.0.99"}));
    zone.apply_service(web, entry);
    check(&zone, "web.default.svc.cluster.local", RecordType::A, "NoError 10.96.0.99");
    check(&zone, "20.0.96.10.in-addr.arpa", RecordType::PTR, "NXDomain");
    // A slice that moves to another service.
    let (moved, entry) = slice("empty", "db-1", json!([{"addresses": ["10.244.1.5"]}]));
    zone.apply_slice(moved, entry);
    check(&zone, "empty.default.svc.cluster.local", RecordType::A, "NoError 10.244.1.5");
    zone.replace_services(Vec::new());
    check(&zone, "default.svc.cluster.local", RecordType::A, "NXDomain");
}

#[test]
fn only_what_changes_something_counts() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut zone = zone();
    let serial = zone.serial();
    let before = serial.load(Relaxed);
    for (key, entry) in services() {
        zone.apply_service(key, entry);
    }
    for (key, entry) in slices() {
        zone.apply_slice(key, entry);
    }
    assert_eq!(serial.load(Relaxed), before);
    let (key, entry) = service("web", json!({"clusterIP": "10.96.0.99"}));
    zone.apply_service(key, entry);
    assert_ne!(serial.load(Relaxed), before);
    let before = serial.load(Relaxed);
    let (key, entry) = slice("other", "db-1", json!([{"addresses": ["10.244.1.5"]}]));
    zone.apply_slice(key, entry);
    assert_ne!(serial.load(Relaxed), before);
    let before = serial.load(Relaxed);
    zone.replace_slices(Vec::new());
    assert_ne!(serial.load(Relaxed), before);
}

#[test]
fn nothing_is_denied_before_it_was_listed() {
    let mut zone = Zone::new(&config()).unwrap();
    let web = query("web.default.svc.cluster.local", RecordType::A);
    assert_eq!(ask(&zone, &web), "ServFail");
    zone.replace_services(services());
    assert_eq!(ask(&zone, &web), "ServFail");
    assert_eq!(ask(&zone, &query("example.org", RecordType::A)), "forward");
    zone.replace_slices(Vec::new());
    assert_eq!(ask(&zone, &web), "NoError 10.96.0.20");
}

#[test]
fn odd_queries() {
    let zone = zone();
    let check = |change: &dyn Fn(&mut Message), expected: &str| {
        let mut message = query("web.default.svc.cluster.local", RecordType::A);
        change(&mut message);
        assert_eq!(ask(&zone, &message), expected);
    };
    check(&|m| m.metadata.message_type = MessageType::Response, "silence");
    check(&|m| m.metadata.op_code = OpCode::Notify, "NotImp");
    check(&|m| m.queries.clear(), "FormErr");
    check(&|m| m.queries.push(m.queries[0].clone()), "FormErr");
    check(&|m| m.queries[0].query_class = DNSClass::CH, "Refused");
    check(&|m| m.queries[0].query_type = RecordType::AXFR, "Refused");
    check(
        &|m| {
            let mut edns = Edns::new();
            edns.set_version(1);
            m.set_edns(edns);
        },
        // The same number, 16, with which the library knows another name.
        "BADSIG",
    );
    let mut outside = query("example.org", RecordType::A);
    assert_eq!(ask(&zone, &outside), "forward");
    outside.metadata.recursion_desired = false;
    assert_eq!(ask(&zone, &outside), "Refused");
    outside.metadata.recursion_desired = true;
    let code = |message: &Message| message.metadata.response_code;
    let refused = decide(&zone, &outside, false);
    assert!(matches!(refused, Decision::Reply(r) if code(&r) == ResponseCode::Refused));
    let bytes = outside.to_vec().unwrap();
    assert!(matches!(read(&bytes[..11]), Received::Noise));
    assert!(matches!(read(&bytes[..20]), Received::Malformed(r) if code(&r) == ResponseCode::FormErr));
}

#[test]
fn the_case_of_the_question_is_kept() {
    let message = query("wEb.DeFault.svc.ClusTer.local", RecordType::A);
    let Decision::Reply(reply) = decide(&zone(), &message, true) else { panic!() };
    let reply = Message::from_vec(&encode(*reply, 512).unwrap()).unwrap();
    assert!(reply.queries[0].name().eq_case(message.queries[0].name()));
    assert!(reply.answers[0].name.eq_case(message.queries[0].name()));
    assert!(reply.metadata.authoritative);
    assert_eq!(reply.answers[0].ttl, 5);
}

#[test]
fn long_answers_are_cut_to_size() {
    let mut zone = zone();
    let many: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("10.244.2.{n}")]})).collect();
    let (key, entry) = slice("db", "db-1", json!(many));
    zone.apply_slice(key, entry);
    let check = |payload: Option<u16>, transport, expected_limit: usize| {
        let mut message = query("db.default.svc.cluster.local", RecordType::A);
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let Decision::Reply(reply) = decide(&zone, &message, true) else { panic!() };
        let limit = limit(message.max_payload(), transport);
        assert_eq!(limit, expected_limit);
        let bytes = encode(*reply, limit).unwrap();
        assert!(bytes.len() <= limit);
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.edns.is_some(), payload.is_some());
        assert_eq!(reply.metadata.truncation, reply.answers.len() < 201);
        reply.answers.len()
    };
    assert!((25..40).contains(&check(None, Transport::Udp, 512)));
    assert!((25..40).contains(&check(Some(100), Transport::Udp, 512)));
    assert!((50..80).contains(&check(Some(4096), Transport::Udp, 1232)));
    assert_eq!(check(None, Transport::Tcp, 65535), 201);
}

fn never_too_long(bytes: &[u8]) {
    let reply = match read(bytes) {
        Received::Noise => return,
        Received::Malformed(reply) => reply,
        Received::Query(request) => match decide(&zone(), &request, true) {
            Decision::Reply(reply) => reply,
            Decision::Forward | Decision::Complete { .. } => return,
        },
    };
    assert!(encode(*reply, 512).is_none_or(|answer| answer.len() <= 512));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        never_too_long(&bytes);
    }

    #[test]
    fn damaged_queries_never_panic(at in 0usize..60, value in any::<u8>(), cut in 0usize..80) {
        let mut bytes = query("_http._tcp.db.default.svc.cluster.local", RecordType::SRV).to_vec().unwrap();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(cut);
        never_too_long(&bytes);
    }

    #[test]
    fn arbitrary_names_are_answered(labels in proptest::collection::vec("[_a-z0-9-]{1,12}", 0..6), kind in 0u16..300) {
        let name = labels.join(".") + if labels.is_empty() { "" } else { "." } + "cluster.local";
        let Ok(name) = hickory_proto::rr::Name::from_ascii(&name) else { return Ok(()) };
        let mut message = query("x", RecordType::from(kind));
        message.queries[0].set_name(name);
        let decision = decide(&zone(), &message, true);
        prop_assert!(matches!(decision, Decision::Reply(_) | Decision::Complete { .. }), "{decision:?}");
    }
}
