//! A small cluster, and queries to it.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_dns::zone::{ObjectKey, ServiceEntry, SliceEntry};
use keelson_dns::{DnsConfig, Zone};
use serde_json::{Value, json};

pub fn service(name: &str, spec: Value) -> (ObjectKey, ServiceEntry) {
    let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    let service: Service = serde_json::from_value(object).unwrap();
    (ObjectKey::of(&service.metadata), ServiceEntry::from_object(&service).unwrap())
}

pub fn slice(service: &str, name: &str, endpoints: Value) -> (ObjectKey, SliceEntry) {
    let object = json!({
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "Http", "protocol": "TCP", "port": 8080}],
    });
    let slice: EndpointSlice = serde_json::from_value(object).unwrap();
    (ObjectKey::of(&slice.metadata), SliceEntry::from_object(&slice).unwrap())
}

pub fn services() -> Vec<(ObjectKey, ServiceEntry)> {
    let web = json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00:96::20"],
        "ports": [{"name": "http", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]});
    vec![
        service("web", web),
        service("plain", json!({"clusterIP": "10.96.0.21", "ports": [{"port": 80}]})),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]})),
        service("early", json!({"clusterIP": "None", "publishNotReadyAddresses": true})),
        service("empty", json!({"clusterIP": "None"})),
        service("ext", json!({"type": "ExternalName", "externalName": "example.org"})),
        service("inside", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local."})),
        service(
            "loop-a",
            json!({"type": "ExternalName", "externalName": "loop-b.default.svc.cluster.local"}),
        ),
        service(
            "loop-b",
            json!({"type": "ExternalName", "externalName": "loop-a.default.svc.cluster.local"}),
        ),
        service("astray", json!({"type": "ExternalName", "externalName": "none.default.svc.cluster.local"})),
    ]
}

pub fn slices() -> Vec<(ObjectKey, SliceEntry)> {
    vec![
        slice(
            "db",
            "db-1",
            json!([
                {"addresses": ["10.244.1.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.1.6"]},
                {"addresses": ["10.244.1.7"], "hostname": "db-2", "conditions": {"ready": false}},
            ]),
        ),
        slice("db", "db-2", json!([{"addresses": ["10.244.1.5"], "hostname": "db-0"}])),
        slice("early", "early-1", json!([{"addresses": ["10.244.1.8"], "conditions": {"ready": false}}])),
        slice("empty", "empty-1", json!([{"addresses": ["10.244.1.9"], "conditions": {"ready": false}}])),
        slice("web", "web-1", json!([{"addresses": ["10.244.1.5"], "hostname": "web-0"}])),
    ]
}

pub fn config() -> DnsConfig {
    DnsConfig {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "10.96.0.0/16".parse().unwrap()],
        ..DnsConfig::default()
    }
}

pub fn zone() -> Zone {
    let mut zone = Zone::new(&config()).unwrap();
    zone.replace_services(services());
    zone.replace_slices(slices());
    zone
}

pub fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0;
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

/// An answer in one line: the code, then what each answer says.
pub fn shown(message: &Message) -> String {
    let mut line = vec![format!("{:?}", message.metadata.response_code)];
    let mut answers: Vec<String> = message.answers.iter().map(|r| data(&r.data)).collect();
    answers.sort();
    line.extend(answers);
    line.join(" ")
}

pub fn data(data: &RData) -> String {
    match data {
        RData::A(a) => a.0.to_string(),
        RData::AAAA(a) => a.0.to_string(),
        RData::CNAME(c) => format!("CNAME:{}", c.0),
        RData::PTR(p) => format!("PTR:{}", p.0),
        RData::NS(n) => format!("NS:{}", n.0),
        RData::SRV(s) => format!("SRV:{}:{}", s.port, s.target),
        RData::TXT(t) => t.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect(),
        RData::SOA(_) => "SOA".into(),
        other => format!("{other:?}"),
    }
}
