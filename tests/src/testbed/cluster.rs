//! A whole cluster of test hosts: `switch`, `master`, `node-1` … `node-N`, with the daemons in them.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::host::{Host, cgroup2_mount, ended, remove_cgroup};
use super::network::{self, PREFIX};
use crate::kubectl::Kubectl;
use crate::{images, paths};

/// What a cluster is made of; kept in `state.json` so that a later command finds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    /// Port on 127.0.0.1 of the machine on which the API answers.
    port: u16,
    /// Number of nodes.
    nodes: usize,
    /// Extra arguments of each agent.
    agent_args: Vec<String>,
    /// Extra arguments of the master.
    #[serde(default)]
    master_args: Vec<String>,
    /// Name and first process of each host.
    hosts: Vec<(String, i32)>,
    /// Pids of the daemons, as the machine sees them, by host.
    daemons: Vec<(String, i32)>,
}

/// A cluster on this machine.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    state: State,
}

/// Hands what controllers a cgroup has down to those below it.
fn delegate_controllers(cgroup: &Path) -> Result<()> {
    for controller in fs::read_to_string(cgroup.join("cgroup.controllers"))?.split_whitespace() {
        fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("hand the controller {controller} down"))?;
    }
    Ok(())
}

/// Whether limits can be enforced below a cgroup.
fn has_all_controllers(cgroup: &Path) -> Result<bool> {
    let have = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    Ok(["cpu", "cpuset", "memory", "pids", "io"]
        .iter()
        .all(|wanted| have.split_whitespace().any(|controller| controller == *wanted)))
}

/// What [`Cluster::create`] makes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Number of nodes, 0 to 200.
    pub nodes: usize,
    /// Arguments added to each agent's.
    pub agent_args: Vec<String>,
    /// Arguments added to the master's.
    pub master_args: Vec<String>,
}

/// The daemon of simulated nodes, on the master's host.
const SIMULATE: &str = "simulate";

impl Cluster {
    fn dir_of(name: &str) -> PathBuf {
        paths::target().join("cluster").join(name)
    }

    /// Folder of the cluster; `down` removes it.
    pub fn dir(&self) -> PathBuf {
        Self::dir_of(&self.name)
    }

    /// Kubeconfig of an administrator, for use on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// kubectl as administrator.
    pub fn kubectl(&self) -> Result<Kubectl> {
        Kubectl::new(&self.kubeconfig())
    }

    /// The cluster of that name, if `up` made one.
    pub fn find(name: &str) -> Result<Option<Self>> {
        let path = Self::dir_of(name).join("state.json");
        if !path.exists() {
            return Ok(None);
        }
        let state =
            serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("read {}", path.display()))?;
        Ok(Some(Self { name: name.to_owned(), state }))
    }

    fn save(&self) -> Result<()> {
        let path = self.dir().join("state.json");
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(&self.state)?)?;
        fs::rename(partial, path)?;
        Ok(())
    }

    fn cgroup_of(name: &str) -> Result<PathBuf> {
        Ok(cgroup2_mount()?.join(format!("keelson-{name}")))
    }

    /// Makes the hosts and the wire between them; no daemon runs yet.
    pub fn create(name: &str, options: &Options) -> Result<Self> {
        if Self::find(name)?.is_some() {
            bail!("the cluster {name} is up already: end it with 'cargo xtask down'");
        }
        if !nix::unistd::geteuid().is_root() {
            bail!("test hosts are made of namespaces, cgroups and BPF programs: run this as root");
        }
        let dir = Self::dir_of(name);
        let cgroup = Self::cgroup_of(name)?;
        // What an interrupted run left.
        remove_cgroup(&cgroup)?;
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        delegate_controllers(&cgroup)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let state = State {
            port,
            nodes: options.nodes,
            agent_args: options.agent_args.clone(),
            master_args: options.master_args.clone(),
            hosts: Vec::new(),
            daemons: Vec::new(),
        };
        let mut cluster = Self { name: name.to_owned(), state };
        cluster.save()?;
        match cluster.create_hosts() {
            Ok(()) => Ok(cluster),
            Err(error) => {
                let _ = cluster.destroy();
                Err(error)
            }
        }
    }

    fn create_hosts(&mut self) -> Result<()> {
        let mut names = vec!["switch".to_owned(), "master".to_owned()];
        names.extend((1..=self.state.nodes).map(|n| format!("node-{n}")));
        let testhost = paths::bin("keelson-testhost");
        let cgroup = Self::cgroup_of(&self.name)?;
        for name in names {
            let host = Host::create(&testhost, &name, &self.dir().join(&name), &cgroup.join(&name))?;
            self.state.hosts.push((name, host.pid));
            self.save()?;
        }
        let switch = self.host("switch")?;
        network::setup_switch(&switch)?;
        network::plug(&switch, &self.host("master")?, 2)?;
        for n in 1..=self.state.nodes {
            network::plug(&switch, &self.node(n)?, Self::octet(n)?)?;
        }
        Ok(())
    }

    fn octet(node: usize) -> Result<u8> {
        u8::try_from(node + 10).context("at most 245 nodes fit on the wire")
    }

    /// One of the hosts.
    pub fn host(&self, name: &str) -> Result<Host> {
        let (_, pid) = self
            .state
            .hosts
            .iter()
            .find(|(host, _)| host == name)
            .with_context(|| format!("no host {name}"))?;
        Ok(Host {
            name: name.to_owned(),
            dir: self.dir().join(name),
            cgroup: Self::cgroup_of(&self.name)?.join(name),
            pid: *pid,
        })
    }

    /// Node number `n`, counted from 1.
    pub fn node(&self, n: usize) -> Result<Host> {
        self.host(&format!("node-{n}"))
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.state.nodes
    }

    fn set_daemon(&mut self, host: &str, pid: Option<i32>) -> Result<()> {
        self.state.daemons.retain(|(name, _)| name != host);
        if let Some(pid) = pid {
            self.state.daemons.push((host.to_owned(), pid));
        }
        self.save()
    }

    /// Starts the master and waits until its API is ready; writes the kubeconfig.
    pub fn start_master(&mut self) -> Result<()> {
        let master = self.host("master")?;
        // The API also answers on the machine's own loopback: the socket is made here and handed over.
        let listener = TcpListener::bind(("127.0.0.1", self.state.port))
            .with_context(|| format!("listen on 127.0.0.1:{}", self.state.port))?;
        let mut args = vec![
            "--advertise-address".to_owned(),
            format!("{PREFIX}.2"),
            "--bind-address".to_owned(),
            format!("{PREFIX}.2"),
        ];
        args.extend(self.state.master_args.iter().cloned());
        let pid = master.spawn_daemon("master", &paths::bin("keelson-master"), &args, Some(&listener))?;
        drop(listener);
        self.set_daemon("master", Some(pid))?;
        let admin = master.dir.join("etc/kubernetes/admin.conf");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(text) = fs::read_to_string(&admin) {
                let here = text.replace(
                    &format!("https://{PREFIX}.2:6443"),
                    &format!("https://127.0.0.1:{}", self.state.port),
                );
                fs::write(self.kubeconfig(), here)?;
                if self.kubectl()?.run(&["get", "--raw", "/readyz"]).is_ok() {
                    return Ok(());
                }
            }
            self.check_daemon("master")?;
            if Instant::now() > deadline {
                bail!("the master is not ready after 60 s: see {}", self.log("master").display());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Log of a host's daemon.
    pub fn log(&self, host: &str) -> PathBuf {
        let (host, unit) = match host {
            "master" => (host, "master"),
            SIMULATE => ("master", SIMULATE),
            node => (node, "agent"),
        };
        self.dir().join(host).join(format!("log/{unit}.log"))
    }

    fn check_daemon(&self, host: &str) -> Result<()> {
        if let Some(pid) = self.daemon_pid(host)
            && ended(pid)
        {
            let log = fs::read_to_string(self.log(host)).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            bail!("the daemon of {host} ended:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        Ok(())
    }

    /// Pid of a host's daemon, as the machine sees it.
    pub fn daemon_pid(&self, host: &str) -> Option<i32> {
        self.state.daemons.iter().find(|(name, _)| name == host).map(|(_, pid)| *pid)
    }

    /// Puts images where a node imports them at start.
    pub fn preload_images(&self, names: &[&str]) -> Result<()> {
        for n in 1..=self.state.nodes {
            let into = self.node(n)?.dir.join("var/lib/keelson/import");
            fs::create_dir_all(&into)?;
            for name in names {
                let archive = images::ensure(name)?;
                let to = into.join(format!("{name}.tar"));
                if fs::hard_link(&archive, &to).is_err() {
                    fs::copy(&archive, &to)?;
                }
            }
        }
        Ok(())
    }

    /// Starts the agent of node `n`.
    pub fn start_agent(&mut self, n: usize) -> Result<()> {
        let node = self.node(n)?;
        let master = self.host("master")?;
        let bootstrap = "etc/kubernetes/bootstrap-kubelet.conf";
        if !node.dir.join(bootstrap).exists() {
            fs::copy(master.dir.join(bootstrap), node.dir.join(bootstrap))
                .context("copy the bootstrap kubeconfig")?;
        }
        let plugin = node.dir.join("opt/cni/bin/keelson-cni");
        if !plugin.exists() {
            fs::copy(paths::bin("keelson-cni"), plugin)?;
        }
        let mut args = vec![
            "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf".to_owned(),
            "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
            format!("--node-ip={PREFIX}.{}", Self::octet(n)?),
            format!("--hostname-override={}", node.name),
            format!(
                "--podinit={}",
                paths::target().join("x86_64-unknown-linux-gnu/podinit/keelson-podinit").display()
            ),
            // The disk is the machine's, and how full it is not the test's business.
            "--eviction-hard=memory.available<50Mi,nodefs.available<50Mi,imagefs.available<50Mi".to_owned(),
        ];
        if !has_all_controllers(&node.cgroup)? {
            // The machine holds them in cgroup v1.
            args.push("--allow-missing-controllers".to_owned());
        }
        args.extend(self.state.agent_args.iter().cloned());
        let pid = node.spawn_daemon("agent", &paths::bin("keelson-agent"), &args, None)?;
        let name = node.name;
        self.set_daemon(&name, Some(pid))
    }

    /// Starts simulated nodes, on the master's host; ended like a host named `simulate`.
    pub fn start_simulation(&mut self, nodes: usize, args: &[&str]) -> Result<()> {
        let mut words =
            vec![SIMULATE.to_owned(), format!("--nodes={nodes}"), format!("--address={PREFIX}.2")];
        words.extend(args.iter().map(|&arg| arg.to_owned()));
        let master = self.host("master")?;
        let pid = master.spawn_daemon(SIMULATE, &paths::bin("keelson-agent"), &words, None)?;
        self.set_daemon(SIMULATE, Some(pid))
    }

    /// Kills a host's daemon with SIGKILL and waits until it is gone.
    pub fn kill_daemon(&mut self, host: &str) -> Result<()> {
        let pid = self.daemon_pid(host).with_context(|| format!("no daemon runs on {host}"))?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ended(pid) {
            if Instant::now() > deadline {
                bail!("the daemon of {host} (pid {pid}) does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.set_daemon(host, None)
    }

    /// Waits until every node is Ready.
    pub fn wait_nodes_ready(&self, limit: Duration) -> Result<()> {
        self.wait_ready(self.state.nodes, limit)
    }

    /// Waits until there are so many nodes that are Ready, simulated ones too.
    pub fn wait_ready(&self, nodes: usize, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let kubectl = self.kubectl()?;
        loop {
            let list = kubectl.json(&["get", "nodes"])?;
            let ready = list["items"].as_array().map_or(0, |nodes| {
                nodes
                    .iter()
                    .filter(|node| {
                        node["status"]["conditions"].as_array().is_some_and(|conditions| {
                            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
                        })
                    })
                    .count()
            });
            if ready == nodes {
                return Ok(());
            }
            self.check_daemon(SIMULATE)?;
            for n in 1..=self.state.nodes {
                self.check_daemon(&format!("node-{n}"))?;
            }
            if Instant::now() > deadline {
                bail!(
                    "{ready} of {nodes} nodes are Ready after {limit:?}: see {}",
                    self.log(if self.state.nodes == 0 { SIMULATE } else { "node-1" }).display()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends everything and removes every trace.
    pub fn destroy(self) -> Result<()> {
        // All at once: the kernel takes a network namespace down in its own time, many in the time of one.
        for (name, _) in &self.state.hosts {
            self.host(name)?.kill();
        }
        for (name, _) in self.state.hosts.iter().rev() {
            self.host(name)?.destroy()?;
        }
        remove_cgroup(&Self::cgroup_of(&self.name)?)?;
        let dir = self.dir();
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        // The folder of clusters goes with the last of them.
        let _ = fs::remove_dir(paths::target().join("cluster"));
        Ok(())
    }
}
