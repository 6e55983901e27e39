//! The sample application of `cargo xtask up`: a Deployment of three replicas behind a Service.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cluster::Cluster;

/// The sample's manifest.
pub const MANIFEST: &str = include_str!("sample.yaml");

/// Waits until the Deployment is rolled out.
pub fn wait_available(cluster: &Cluster, limit: Duration) -> Result<()> {
    let timeout = format!("--timeout={}s", limit.as_secs());
    cluster.kubectl()?.run(&["rollout", "status", "deployment/hello", &timeout]).map(drop)
}

/// Asks the sample through its ClusterIP and through its DNS name, from inside one of its pods; gives both answers.
pub fn ask(cluster: &Cluster, limit: Duration) -> Result<(String, String)> {
    let kubectl = cluster.kubectl()?;
    let ip = kubectl.run(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"])?;
    if ip.is_empty() {
        bail!("the Service hello has no clusterIP");
    }
    let get = |url: &str| {
        kubectl.run(&["exec", "deploy/hello", "--", "timeout", "3", "wget", "-q", "-O", "-", url])
    };
    let deadline = Instant::now() + limit;
    let by_ip = retry(deadline, || get(&format!("http://{ip}/"))).context("ask through the ClusterIP")?;
    let by_name = retry(deadline, || get("http://hello.default.svc.cluster.local/"))
        .context("ask through the DNS name")?;
    Ok((by_ip, by_name))
}

/// Tries until it succeeds or the deadline passes; the last error counts.
pub fn retry<T>(deadline: Instant, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match work() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_early) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
