//! Host name and /etc/hosts of a pod. Source: upstream `pkg/kubelet/kubelet_pods.go`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::podext::PodExt;

/// Longest host name that the kernel takes.
const MAX_HOSTNAME: usize = 63;
/// The same for a full name (`__NEW_UTS_LEN`).
const MAX_FQDN: usize = 64;

/// Host name and domain of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// UTS host name.
    pub hostname: String,
    /// Short name, as /etc/hosts shows it.
    pub short: String,
    /// `<subdomain>.<namespace>.svc.<cluster domain>`, empty without a subdomain.
    pub domain: String,
}

/// Computes it. The error is the message of `FailedCreatePodSandBox`.
pub fn host_name(pod: &Pod, cluster_domain: &str) -> Result<HostName, String> {
    let spec = PodExt::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return Ok(HostName { hostname: name.to_owned(), short: name.to_owned(), domain: String::new() });
    }
    let given = spec.hostname.as_deref().filter(|h| !h.is_empty());
    let short = given.map_or_else(|| truncate(PodExt::name(pod)), str::to_owned);
    let subdomain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    let domain =
        subdomain.map(|s| format!("{s}.{}.svc.{cluster_domain}", PodExt::namespace(pod))).unwrap_or_default();
    let mut hostname = short.clone();
    if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        hostname = format!("{short}.{domain}");
        if hostname.len() > MAX_FQDN {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {hostname} is too long ({MAX_FQDN} characters is the max, {} characters requested)",
                hostname.len()
            ));
        }
    }
    Ok(HostName { hostname, short, domain })
}

fn truncate(name: &str) -> String {
    let end = name.len().min(MAX_HOSTNAME);
    name.get(..end).unwrap_or(name).trim_end_matches(['-', '.']).to_owned()
}

/// Text of /etc/hosts.
pub fn hosts_file(pod: &Pod, name: &HostName, ips: &[IpAddr], node_hosts: &str) -> String {
    let mut out = String::new();
    if pod.host_network() {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(node_hosts);
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in ips {
            if name.domain.is_empty() {
                out.push_str(&format!("{ip}\t{}\n", name.short));
            } else {
                out.push_str(&format!("{ip}\t{}.{}\t{}\n", name.short, name.domain, name.short));
            }
        }
    }
    let aliases = PodExt::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            out.push_str(&format!(
                "{}\t{}\n",
                alias.ip,
                alias.hostnames.as_deref().unwrap_or_default().join("\t")
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    fn check(spec: serde_json::Value, want: Option<(&str, &str)>) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let got = host_name(&pod_json(spec), "cluster.local").ok();
        assert_eq!(got.as_ref().map(|n| (n.hostname.as_str(), n.domain.as_str())), want);
    }

    #[test]
    fn names() {
        check(json!({}), Some(("p", "")));
        check(json!({"hostname": "h", "subdomain": "s"}), Some(("h", "s.ns.svc.cluster.local")));
        check(
            json!({"subdomain": "s", "setHostnameAsFQDN": true}),
            Some(("p.s.ns.svc.cluster.local", "s.ns.svc.cluster.local")),
        );
        check(json!({"hostname": "h".repeat(60), "subdomain": "s", "setHostnameAsFQDN": true}), None);
        assert_eq!(truncate(&format!("{}-x", "a".repeat(62))), "a".repeat(62));
    }

    #[test]
    fn file() {
        let pod = pod_json(json!({"containers": [], "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let name = host_name(&pod, "cluster.local").unwrap();
        let text = hosts_file(&pod, &name, &["10.244.0.5".parse().unwrap()], "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with(
            "10.244.0.5\tp.s.ns.svc.cluster.local\tp\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
        ));
    }
}
