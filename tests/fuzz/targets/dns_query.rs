//! A DNS query from a pod, and the answer to it.
#![no_main]

use std::sync::OnceLock;

use keelson_dns::respond::{Decision, Received, Transport, decide, encode, limit, read};
use keelson_dns::{DnsConfig, Zone};
use libfuzzer_sys::fuzz_target;

static ZONE: OnceLock<Zone> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let zone = ZONE.get_or_init(|| Zone::new(&DnsConfig::default()).expect("the default domain"));
    let Received::Query(request) = read(bytes) else { return };
    if let Decision::Reply(reply) = decide(zone, &request, true) {
        let limit = limit(request.max_payload(), Transport::Udp);
        if let Some(answer) = encode(*reply, limit) {
            assert!(answer.len() <= limit, "an answer longer than the client takes");
        }
    }
});
