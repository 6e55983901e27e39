//! resolv.conf of a pod. Source: upstream `pkg/kubelet/network/dns/dns.go`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use keelson_cri::DnsConfig;

use super::podext::PodExt;

const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// Reads a resolver file; lines that mean nothing here are passed over.
pub fn parse(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => out.servers.extend(words.next()),
            // The last search line counts.
            Some("search") => out.searches = words.collect(),
            Some("options") => out.options.extend(words),
            _ => {}
        }
    }
    out
}

/// The file's text.
pub fn render(dns: &DnsConfig) -> String {
    let mut out = String::new();
    if !dns.searches.is_empty() {
        out.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        out.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    out
}

/// The configuration of a pod, and warnings for `DNSConfigForming` and `MissingClusterDNS` events.
pub fn pod_dns(
    pod: &Pod,
    host: &DnsConfig,
    cluster_dns: &[IpAddr],
    cluster_domain: &str,
) -> (DnsConfig, Vec<(&'static str, String)>) {
    let mut warnings = Vec::new();
    let policy = PodExt::spec(pod).dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirst" => !pod.host_network(),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = if policy == "None" {
        DnsConfig::default()
    } else if cluster_first && !cluster_dns.is_empty() {
        let ns = PodExt::namespace(pod);
        let mut searches = if cluster_domain.is_empty() {
            Vec::new()
        } else {
            vec![
                format!("{ns}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ]
        };
        append_new(&mut searches, &host.searches);
        DnsConfig {
            servers: cluster_dns.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else {
        if cluster_first {
            warnings.push((
                "MissingClusterDNS",
                format!("pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.", pod.describe()),
            ));
        }
        host.clone()
    };
    if let Some(own) = &PodExt::spec(pod).dns_config {
        append_new(&mut dns.servers, own.nameservers.as_deref().unwrap_or_default());
        append_new(&mut dns.searches, own.searches.as_deref().unwrap_or_default());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            dns.options.retain(|o| o.split(':').next() != Some(name));
            let value = option.value.as_deref().map(|v| format!(":{v}")).unwrap_or_default();
            dns.options.push(format!("{name}{value}"));
        }
    }
    limit(&mut dns, &mut warnings);
    (dns, warnings)
}

fn append_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn limit(dns: &mut DnsConfig, warnings: &mut Vec<(&'static str, String)>) {
    if dns.servers.len() > MAX_SERVERS {
        dns.servers.truncate(MAX_SERVERS);
        warnings.push((
            "DNSConfigForming",
            format!("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}", dns.servers.join(" ")),
        ));
    }
    let before = dns.searches.len();
    dns.searches.truncate(MAX_SEARCHES);
    while dns.searches.join(" ").len() > MAX_SEARCH_CHARS {
        dns.searches.pop();
    }
    if dns.searches.len() < before {
        warnings.push((
            "DNSConfigForming",
            format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}", dns.searches.join(" ")),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    fn check(spec: serde_json::Value, want: &str) {
        let host = parse("# x\nnameserver 1.1.1.1\nsearch corp.example\noptions rotate\n");
        let mut spec = spec;
        spec["containers"] = json!([]);
        let (dns, _) = pod_dns(&pod_json(spec), &host, &["10.96.0.10".parse().unwrap()], "cluster.local");
        assert_eq!(render(&dns), want);
    }

    #[test]
    fn policies() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n";
        let host = "search corp.example\nnameserver 1.1.1.1\noptions rotate\n";
        check(json!({}), cluster);
        check(json!({"hostNetwork": true}), host);
        check(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster);
        check(json!({"dnsPolicy": "Default"}), host);
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a.b"],
                "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
            "search a.b\nnameserver 9.9.9.9\noptions ndots:2 edns0\n",
        );
        check(
            json!({"dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:1\n",
        );
    }
}
