//! The Services that are asked for, and the questions with what is right to answer: all by number, so that the object and
//! the question agree without anything being looked up.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde_json::{Value, json};

/// Namespaces that the Services are spread over.
pub const NAMESPACES: usize = 10;
/// One of so many Services is headless.
const HEADLESS: usize = 10;
/// Endpoints of each Service.
const ENDPOINTS: u16 = 4;
/// The address of every name outside of the cluster.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// Names outside of the cluster that are asked for again and again.
const REPEATED: usize = 100;

/// What the questions are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// A of a Service with a cluster IP.
    ClusterIp,
    /// A of a headless Service.
    Headless,
    /// What glibc asks for `NAME.NAMESPACE.svc.cluster.local` with a pod's search path and `ndots:5`: that name below each
    /// of three domains, which does not exist, and then as it stands.
    Walk,
    /// SRV of a headless Service's port, with EDNS.
    Srv,
    /// A of Services that don't exist.
    Nxdomain,
    /// AAAA of a Service that has only an IPv4 address.
    Nodata,
    /// PTR of cluster IPs.
    Ptr,
    /// Of ten questions four are A and two AAAA of a Service with a cluster IP, one is A of a headless one, one SRV, one
    /// PTR, and one of a name that does not exist.
    Mix,
    /// A of a hundred names outside of the cluster, again and again.
    Repeated,
    /// A of names outside of the cluster, each once.
    Once,
}

/// A question, and what is right to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, without a final dot.
    pub name: String,
    /// Type of record.
    pub kind: u16,
    /// With the OPT record of a resolver that takes 1,232 bytes.
    pub edns: bool,
    /// Response code.
    pub code: u8,
    /// Number of answers.
    pub answers: u16,
    /// Addresses that answers of type A may have.
    pub addresses: RangeInclusive<u32>,
}

/// Types of records.
pub const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const SRV: u16 = 33;
/// NOERROR and NXDOMAIN.
const OK: u8 = 0;
const NO_NAME: u8 = 3;

impl Workload {
    /// How many questions there are before they begin anew; none where no question comes twice.
    pub fn questions(self, services: usize) -> Option<usize> {
        match self {
            Self::Walk => Some(4 * services),
            Self::Mix => Some(10 * services),
            Self::Repeated => Some(REPEATED),
            Self::Once => None,
            _ => Some(services),
        }
    }

    /// One of the questions about so many Services. `run` makes those of [`Workload::Once`] new.
    pub fn question(self, services: usize, number: usize, run: u64) -> Question {
        match self {
            Self::ClusterIp => cluster_ip(services, number),
            Self::Headless => headless(services, number),
            Self::Walk => walk(services, number),
            Self::Srv => srv(services, number),
            Self::Nxdomain => {
                let name = format!("none-{number}.{}", below(number));
                nothing(name, A, NO_NAME)
            }
            Self::Nodata => nothing(cluster_ip(services, number).name, AAAA, OK),
            Self::Ptr => ptr(services, number),
            Self::Mix => mix(services, number),
            Self::Repeated => outside(format!("host-{number}.example.org")),
            Self::Once => outside(format!("host-{number}-{run:x}.example.org")),
        }
    }
}

fn cluster_ip(services: usize, number: usize) -> Question {
    let service = Service::with_cluster_ip(services, number);
    one(service.name(), A, 1, of(service.cluster_ip()))
}

fn headless(services: usize, number: usize) -> Question {
    let service = Service::headless(services, number);
    let first = u32::from(service.endpoint(0));
    one(service.name(), A, ENDPOINTS, first..=first + u32::from(ENDPOINTS) - 1)
}

/// A pod of the first namespace asks.
fn walk(services: usize, number: usize) -> Question {
    let asked = cluster_ip(services, number / 4);
    let search = match number % 4 {
        0 => below(0),
        1 => "svc.cluster.local".to_owned(),
        2 => "cluster.local".to_owned(),
        _ => return asked,
    };
    nothing(format!("{}.{search}", asked.name), A, NO_NAME)
}

fn srv(services: usize, number: usize) -> Question {
    let service = Service::headless(services, number);
    let asked = one(format!("_http._tcp.{}", service.name()), SRV, ENDPOINTS, none());
    Question { edns: true, ..asked }
}

fn ptr(services: usize, number: usize) -> Question {
    let [a, b, c, d] = Service::with_cluster_ip(services, number).cluster_ip().octets();
    one(format!("{d}.{c}.{b}.{a}.in-addr.arpa"), PTR, 1, none())
}

fn mix(services: usize, number: usize) -> Question {
    let which = number / 10;
    match number % 10 {
        0..4 => cluster_ip(services, which),
        4..6 => Workload::Nodata.question(services, which, 0),
        6 => headless(services, which),
        7 => srv(services, which),
        8 => ptr(services, which),
        _ => Workload::Nxdomain.question(services, which, 0),
    }
}

fn outside(name: String) -> Question {
    one(name, A, 1, of(OUTSIDE))
}

fn one(name: String, kind: u16, answers: u16, addresses: RangeInclusive<u32>) -> Question {
    Question { name, kind, edns: false, code: OK, answers, addresses }
}

fn nothing(name: String, kind: u16, code: u8) -> Question {
    Question { name, kind, edns: false, code, answers: 0, addresses: none() }
}

fn of(address: Ipv4Addr) -> RangeInclusive<u32> {
    u32::from(address)..=u32::from(address)
}

fn none() -> RangeInclusive<u32> {
    RangeInclusive::new(1, 0)
}

/// Domain of the Services of a namespace.
fn below(number: usize) -> String {
    format!("{}.svc.cluster.local", namespace(number))
}

/// Name of one of the namespaces.
pub fn namespace(number: usize) -> String {
    format!("dns-{}", number % NAMESPACES)
}

/// One of the Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service(pub usize);

impl Service {
    /// The questions go through the Services in an order without a pattern: this is prime.
    const STEP: usize = 7919;

    fn with_cluster_ip(services: usize, number: usize) -> Self {
        let group = number * Self::STEP % (services / HEADLESS).max(1);
        Self(group * HEADLESS + number % (HEADLESS - 1))
    }

    fn headless(services: usize, number: usize) -> Self {
        let group = number * Self::STEP % (services / HEADLESS).max(1);
        Self(group * HEADLESS + HEADLESS - 1)
    }

    fn is_headless(self) -> bool {
        self.0 % HEADLESS == HEADLESS - 1
    }

    fn label(self) -> String {
        format!("service-{}", self.0)
    }

    /// Number of its namespace.
    fn place(self) -> usize {
        self.0 / HEADLESS
    }

    fn name(self) -> String {
        format!("{}.{}", self.label(), below(self.place()))
    }

    /// In the upper part of 10.96.0.0/16, from which the allocator takes by itself: nothing else is made meanwhile.
    fn cluster_ip(self) -> Ipv4Addr {
        address(Ipv4Addr::new(10, 96, 32, 1), self.0)
    }

    fn endpoint(self, number: u16) -> Ipv4Addr {
        address(Ipv4Addr::new(10, 128, 0, 1), self.0 * usize::from(ENDPOINTS) + usize::from(number))
    }

    /// Paths and objects of it and its EndpointSlice.
    pub fn objects(self) -> [(String, Value); 2] {
        let (name, namespace) = (self.label(), namespace(self.place()));
        let cluster_ip = if self.is_headless() { "None".to_owned() } else { self.cluster_ip().to_string() };
        let ports = |http: u16| json!([{"name": "http", "port": http}, {"name": "metrics", "port": 9090}]);
        let endpoints: Vec<Value> = (0..ENDPOINTS)
            .map(|number| {
                json!({
                    "addresses": [self.endpoint(number)], "hostname": format!("{name}-{number}"),
                    "conditions": {"ready": true},
                })
            })
            .collect();
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"clusterIP": cluster_ip, "ports": ports(80)},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "ports": ports(8080), "endpoints": endpoints,
        });
        [
            (format!("/api/v1/namespaces/{namespace}/services"), service),
            (format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"), slice),
        ]
    }
}

fn address(first: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + u32::try_from(number).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ALL: [Workload; 8] = [
        Workload::ClusterIp,
        Workload::Headless,
        Workload::Walk,
        Workload::Srv,
        Workload::Nxdomain,
        Workload::Nodata,
        Workload::Ptr,
        Workload::Mix,
    ];

    /// The names of a cluster, as the objects say.
    fn names(services: usize) -> BTreeSet<String> {
        let all = (0..services).flat_map(|number| {
            let service = Service(number);
            let [a, b, c, d] = service.cluster_ip().octets();
            let own = [service.name(), format!("_http._tcp.{}", service.name())];
            let reverse = (!service.is_headless()).then(|| format!("{d}.{c}.{b}.{a}.in-addr.arpa"));
            own.into_iter().chain(reverse)
        });
        all.collect()
    }

    #[test]
    fn what_exists_is_asked_for_as_existing() {
        for services in [10, 100, 1000] {
            let names = names(services);
            for workload in ALL {
                for number in 0..workload.questions(services).unwrap() {
                    let question = workload.question(services, number, 0);
                    assert_eq!(names.contains(&question.name), question.code == OK, "{question:?}");
                }
            }
        }
    }

    #[test]
    fn many_services_are_asked_for() {
        let asked = |workload: Workload| {
            let all = (0..1000).map(|number| workload.question(1000, number, 0).name);
            all.collect::<BTreeSet<_>>().len()
        };
        assert!(asked(Workload::ClusterIp) > 400, "{}", asked(Workload::ClusterIp));
        assert_eq!(asked(Workload::Headless), 100);
        assert_eq!(asked(Workload::Once), 1000);
        assert_eq!(asked(Workload::Nxdomain), 1000);
    }

    #[test]
    fn a_walk_ends_with_the_name() {
        let walk: Vec<Question> = (0..4).map(|number| walk(10, number)).collect();
        let codes: Vec<u8> = walk.iter().map(|question| question.code).collect();
        assert_eq!(codes, [NO_NAME, NO_NAME, NO_NAME, OK]);
        let name = &walk[3].name;
        assert_eq!(name.matches('.').count(), 4, "fewer than ndots:5");
        let below = ["dns-0.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        assert_eq!([0, 1, 2].map(|n| walk[n].name.clone()), below.map(|domain| format!("{name}.{domain}")));
    }

    #[test]
    fn objects_say_what_is_right() {
        let [(path, service), (_, slice)] = Service(19).objects();
        assert_eq!(path, "/api/v1/namespaces/dns-1/services");
        assert_eq!(service["spec"]["clusterIP"], "None");
        let asked = headless(20, 1);
        assert_eq!((asked.name.as_str(), asked.answers), ("service-19.dns-1.svc.cluster.local", 4));
        for endpoint in slice["endpoints"].as_array().unwrap() {
            let address: Ipv4Addr = endpoint["addresses"][0].as_str().unwrap().parse().unwrap();
            assert!(asked.addresses.contains(&u32::from(address)));
        }
        let [(_, service), _] = Service(12).objects();
        assert_eq!(service["spec"]["clusterIP"], Service(12).cluster_ip().to_string());
    }
}
