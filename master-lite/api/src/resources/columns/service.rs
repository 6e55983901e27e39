//! Services, endpoints, ingresses, policies.

use std::collections::BTreeSet;

use serde_json::Value;

use super::tree::{
    annotated, at, get, get_or, int_at, join, labels, list_at, scalar, selector_or_none, some, str_at,
};
use super::{AGE, NAME, Spec, text};

pub(super) const SERVICE: &[Spec] = &[
    NAME,
    text("Type", "How the service is exposed.", |o, _| get(o, "spec.type")),
    text("Cluster-IP", "Address inside the cluster.", |o, _| {
        list_at(o, "spec.clusterIPs").first().map_or("<none>", |ip| ip.as_str().unwrap_or_default()).into()
    }),
    text("External-IP", "Addresses or name outside the cluster.", |o, _| external_ip(o).into()),
    text("Port(s)", "Ports, node ports and protocols.", |o, _| ports(o).into()),
    AGE,
    text("Selector", "Labels of the pods behind it.", |o, _| labels(at(o, "spec.selector")).into()).wide(),
];

fn external_ip(service: &Value) -> String {
    let external = list_at(service, "spec.externalIPs");
    match str_at(service, "spec.type") {
        "ClusterIP" | "NodePort" if external.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => join(external),
        "LoadBalancer" => match (load_balancer(service), join(external)) {
            (balancer, external) if balancer.is_empty() && external.is_empty() => "<pending>".to_owned(),
            (balancer, external) if external.is_empty() => balancer,
            (balancer, external) if balancer.is_empty() => external,
            (balancer, external) => format!("{balancer},{external}"),
        },
        "ExternalName" => str_at(service, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// Addresses in `status.loadBalancer`, each once, sorted.
fn load_balancer(object: &Value) -> String {
    let addresses: BTreeSet<&str> = list_at(object, "status.loadBalancer.ingress")
        .iter()
        .map(|ingress| match str_at(ingress, "ip") {
            "" => str_at(ingress, "hostname"),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .collect();
    addresses.into_iter().collect::<Vec<_>>().join(",")
}

fn ports(service: &Value) -> String {
    let ports: Vec<String> = list_at(service, "spec.ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (int_at(port, "port"), str_at(port, "protocol"));
            match int_at(port, "nodePort") {
                node if node > 0 => format!("{number}:{node}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }
}

pub(super) const ENDPOINTS: &[Spec] =
    &[NAME, text("Endpoints", "Addresses and ports.", |o, _| endpoints(o).into()), AGE];

fn endpoints(object: &Value) -> String {
    let subsets = list_at(object, "subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let ips = || list_at(subset, "addresses").iter().map(|address| str_at(address, "ip"));
        let ports = list_at(subset, "ports");
        if ports.is_empty() {
            // A headless service may have no ports at all.
            all.extend(ips().map(str::to_owned));
        }
        for port in ports {
            let number = int_at(port, "port");
            all.extend(ips().map(|ip| {
                if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }
            }));
        }
    }
    some(&all, 3)
}

pub(super) const ENDPOINT_SLICE: &[Spec] = &[
    NAME,
    text("AddressType", "IPv4, IPv6 or FQDN.", |o, _| get(o, "addressType")),
    text("Ports", "Ports of every endpoint.", |o, _| {
        let ports = list_at(o, "ports").iter().map(|port| {
            scalar(&port["port"]).or_else(|| scalar(&port["name"])).unwrap_or_else(|| "*".to_owned())
        });
        some_or_unset(ports.collect()).into()
    }),
    text("Endpoints", "Addresses.", |o, _| {
        let addresses = list_at(o, "endpoints").iter().flat_map(|e| list_at(e, "addresses"));
        some_or_unset(addresses.filter_map(Value::as_str).map(str::to_owned).collect()).into()
    }),
    AGE,
];

fn some_or_unset(items: Vec<String>) -> String {
    let shown = some(&items, 3);
    if shown.is_empty() { "<unset>".to_owned() } else { shown }
}

pub(super) const INGRESS: &[Spec] = &[
    NAME,
    text("Class", "Class whose controller serves it.", |o, _| get_or(o, "spec.ingressClassName", "<none>")),
    text("Hosts", "Host names it matches.", |o, _| hosts(o).into()),
    text("Address", "Addresses it is reached at.", |o, _| load_balancer(o).into()),
    text("Ports", "Ports it is reached at.", |o, _| {
        if list_at(o, "spec.tls").is_empty() { "80" } else { "80, 443" }.into()
    }),
    AGE,
];

fn hosts(ingress: &Value) -> String {
    const MAX: usize = 3;
    let rules = list_at(ingress, "spec.rules");
    let mut shown: Vec<&str> = Vec::new();
    let mut more = false;
    for rule in rules {
        more |= shown.len() == MAX;
        let host = str_at(rule, "host");
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, false) => shown.join(","),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - MAX),
    }
}

pub(super) const INGRESS_CLASS: &[Spec] = &[
    text("Name", NAME.description, |o, _| {
        default_name(o, annotated(o, "ingressclass.kubernetes.io/is-default-class")).into()
    })
    .name_format(),
    text("Controller", "Controller that serves the class.", |o, _| get(o, "spec.controller")),
    text("Parameters", "Object with more settings.", |o, _| {
        let parameters = &o["spec"]["parameters"];
        if !parameters.is_object() {
            return "<none>".into();
        }
        let group = parameters["apiGroup"].as_str().map(|group| format!(".{group}")).unwrap_or_default();
        format!("{}{group}/{}", str_at(parameters, "kind"), str_at(parameters, "name")).into()
    }),
    AGE,
];

/// The name, marked if the object is the default of its kind.
pub(super) fn default_name(object: &Value, default: bool) -> String {
    format!("{}{}", str_at(object, "metadata.name"), if default { " (default)" } else { "" })
}

pub(super) const NETWORK_POLICY: &[Spec] = &[
    NAME,
    text("Pod-Selector", "Labels of the pods it holds for.", |o, _| {
        selector_or_none(at(o, "spec.podSelector")).into()
    }),
    AGE,
];

pub(super) const SERVICE_CIDR: &[Spec] =
    &[NAME, text("CIDRs", "Ranges of service addresses.", |o, _| join(list_at(o, "spec.cidrs")).into()), AGE];

pub(super) const IP_ADDRESS: &[Spec] =
    &[NAME, text("ParentRef", "Object that uses the address.", |o, _| parent_ref(o).into())];

fn parent_ref(object: &Value) -> String {
    let parent = &object["spec"]["parentRef"];
    if !parent.is_object() {
        return "<none>".to_owned();
    }
    let resource = match (str_at(parent, "resource"), str_at(parent, "group")) {
        (resource, "") => resource.to_lowercase(),
        (resource, group) => format!("{resource}.{group}").to_lowercase(),
    };
    match (str_at(parent, "namespace"), str_at(parent, "name")) {
        ("", name) => format!("{resource}/{name}"),
        (namespace, name) => format!("{resource}/{namespace}/{name}"),
    }
}
