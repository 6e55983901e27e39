//! The hosts: alike, but for what has Services answered on them. Each has a client and two endpoints in network namespaces of
//! their own, with the same addresses everywhere.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_tests::progress::Steps;
use keelson_tests::testbed::cluster::Cluster;
use keelson_tests::testbed::host::{Host, ended};
use keelson_tests::testbed::network::PREFIX;
use keelson_tests::testbed::place;
use keelson_tests::{cmd, paths};
use serde_json::{Value, json};

use super::figures::Way;
use super::kube_proxy::{self, Mode};
use crate::bench::plane::{last_words, set_frozen};

/// Of all pods; that of no node's.
pub const PODS: &str = "10.244.0.0/16";
/// Addresses of the client.
const CLIENTS: u8 = 16;
/// The endpoint that answers by the name `a`.
pub const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 244, 200, 20);
/// The one that answers by the name `b`.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 200, 21);
/// An administrator's kubeconfig, as the hosts have it.
pub const ADMIN: &str = "/etc/kubernetes/admin.conf";
/// How long a proxy may take to have what it missed.
const LIMIT: Duration = Duration::from_secs(300);

/// What answers for Services on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// Nothing does.
    None,
    /// Keelson's agent.
    Keelson,
    /// Upstream's kube-proxy.
    Peer(Mode),
}

impl Proxy {
    /// Name in the table, of what goes through it as well.
    pub fn name(self) -> String {
        match self {
            Self::None => "direct, on a host without a proxy".to_owned(),
            Self::Keelson => "Keelson".to_owned(),
            Self::Peer(mode) => format!("kube-proxy, {}", mode.name()),
        }
    }
}

/// A host.
pub struct Place {
    /// What answers there.
    pub proxy: Proxy,
    node: Host,
    client: Host,
    /// Unit of the proxy, and its pid.
    daemon: Option<(&'static str, i32)>,
}

impl Place {
    /// Makes the namespaces in one of the cluster's nodes and starts the endpoints.
    pub fn make(cluster: &Cluster, number: usize, proxy: Proxy) -> Result<Self> {
        let node = cluster.node(number)?;
        let clients: Vec<Ipv4Addr> = (1..=CLIENTS).map(|last| Ipv4Addr::new(10, 244, 201, last)).collect();
        let client = place::make(&node, "client", &clients)?;
        for (unit, address, name) in [("endpoint-a", ENDPOINT, "a"), ("endpoint-b", OTHER, "b")] {
            let endpoint = place::make(&node, unit, &[address])?;
            let args = ["service", "serve", "--address", &address.to_string(), "--name", name];
            endpoint.spawn_daemon(unit, &paths::bin("keelson-bench"), &args.map(str::to_owned), None)?;
        }
        let admin = cluster.host("master")?.dir.join(ADMIN.trim_start_matches('/'));
        fs::copy(admin, node.dir.join(ADMIN.trim_start_matches('/')))
            .context("copy the administrator's kubeconfig")?;
        Ok(Self { proxy, node, client, daemon: None })
    }

    /// The agent, which the cluster has started there, is its proxy.
    pub fn has_agent(&mut self, cluster: &Cluster) -> Result<()> {
        self.daemon = Some(("agent", cluster.daemon_pid(&self.node.name).context("no agent runs")?));
        Ok(())
    }

    /// Starts kube-proxy there, on a Node object that says only what kube-proxy wants to know.
    pub fn start_peer(&mut self, cluster: &Cluster, number: usize, mode: Mode, program: &Path) -> Result<()> {
        let name = &self.node.name;
        let kubectl = cluster.kubectl()?;
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        kubectl.apply(&node.to_string())?;
        let address = format!("{PREFIX}.{}", number + 10);
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        kubectl.run(&[
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ])?;
        self.daemon = Some((kube_proxy::UNIT, kube_proxy::start(program, mode, &self.node, PODS)?));
        Ok(())
    }

    /// Stops the proxy where it is: what it set up goes on.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Lets the proxy go on.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        match self.daemon {
            Some((unit, _)) => set_frozen(&self.node.cgroup.join("system").join(unit), frozen),
            None => Ok(()),
        }
    }

    /// Waits until so many Services are in effect there. A proxy that has ended is not waited for.
    pub fn wait(&self, services: usize) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some((unit, pid)) = self.daemon
                && ended(pid)
            {
                bail!("{} ended:\n{}", self.proxy.name(), last_words(&self.node, unit));
            }
            match self.ask(false, &["wait", "--services", &services.to_string(), "--limit", "5"]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_not_yet) => {}
            }
        }
    }

    /// Runs the measuring program in the client's namespace; gives what it prints. `outside`: outside of the cgroup in which
    /// sockets see Services.
    pub fn ask(&self, outside: bool, words: &[&str]) -> Result<Value> {
        let mut client = self.client.clone();
        if outside {
            let above = client.cgroup.parent().context("the host's cgroup is below the cluster's")?;
            client.cgroup = above.join("outside");
        }
        let mut command = client.command("load", &paths::bin("keelson-bench").to_string_lossy());
        command.arg("service").args(words);
        let text =
            cmd::text(&mut command).with_context(|| format!("on the host of {}", self.proxy.name()))?;
        match text.as_str() {
            "" => Ok(Value::Null),
            text => Ok(serde_json::from_str(text)?),
        }
    }

    /// As [`Place::ask`], for what writes to the API, too.
    pub fn ask_with_api(&self, words: &[&str]) -> Result<Value> {
        let mut all = words.to_vec();
        all.extend(["--kubeconfig", ADMIN]);
        self.ask(false, &all)
    }

    /// The ways from its client to its endpoint.
    pub fn ways(&self, place: usize) -> Vec<Way> {
        let way = |name: String, services, outside, direct: Option<String>| Way {
            name,
            place,
            services,
            outside,
            direct,
        };
        match self.proxy {
            Proxy::None => vec![way(self.proxy.name(), false, false, None)],
            Proxy::Keelson => {
                let direct = "host of Keelson: direct, without its programs".to_owned();
                vec![
                    way(direct.clone(), false, true, None),
                    way("host of Keelson: direct".to_owned(), false, false, Some(direct.clone())),
                    way(self.proxy.name(), true, false, Some(direct)),
                ]
            }
            Proxy::Peer(mode) => {
                let direct = format!("host of {}: direct", mode.name());
                vec![
                    way(direct.clone(), false, false, None),
                    way(self.proxy.name(), true, false, Some(direct)),
                ]
            }
        }
    }
}

/// Takes the places of which the proxy does not come up out of the list; gives why it does not.
pub fn keep_those_that_work(
    places: &mut Vec<Place>,
    steps: &mut Steps,
    mut bring_up: impl FnMut(&mut Place) -> Result<()>,
) -> Vec<(String, String)> {
    let mut missing = Vec::new();
    places.retain_mut(|place| {
        let name = place.proxy.name();
        match steps.step(&format!("start {name}"), || bring_up(place)) {
            Ok(()) => true,
            Err(error) => {
                missing.push((name, format!("{error:#}")));
                false
            }
        }
    });
    missing
}
