//! The worker as a process: it answers while no agent feeds it, is found again, and is replaced without a lost query.
//! Needs no root; what it gives up when root starts it is seen by `e2e_crash`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{config, query, services, shown, slices};
use futures::StreamExt;
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use keelson_dns::worker::{Place, keep, retire};
use keelson_dns::zone::{Change, ZoneChange};
use keelson_dns::{DnsConfig, Sockets, Upstreams};
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An agent, as far as DNS goes.
struct Agent(JoinHandle<()>);

fn place(dir: &Path) -> Place {
    Place { dir: dir.to_owned(), program: env!("CARGO_BIN_EXE_keelson-dns-worker").into(), env: Vec::new() }
}

/// Starts one that has this to tell, and then says nothing more.
fn agent(dir: &Path, config: &DnsConfig, told: Vec<ZoneChange>) -> Agent {
    let (place, config) = (place(dir), config.clone());
    let changes = move || futures::stream::iter(told.clone()).chain(futures::stream::pending());
    Agent(tokio::spawn(async move {
        keep(changes, config, place, CancellationToken::new()).await.unwrap();
    }))
}

impl Agent {
    /// What SIGKILL amounts to: its connections are closed, and it does nothing more.
    async fn die(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

fn everything() -> Vec<ZoneChange> {
    vec![ZoneChange::Services(Change::Replace(services())), ZoneChange::Slices(Change::Replace(slices()))]
}

/// Settings with an address of this test's own.
fn settings() -> DnsConfig {
    let free = Sockets::bind(&["127.0.0.1:0".parse().unwrap()], 1).unwrap();
    let address = free.udp[0].local_addr().unwrap();
    DnsConfig { listen: vec![address], upstreams: Upstreams::Servers(Vec::new()), ..config() }
}

async fn ask(server: SocketAddr, name: &str) -> Option<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    let message = query(&format!("{name}.default.svc.cluster.local"), RecordType::A);
    socket.send(&message.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0u8; 4096];
    let received = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    Some(shown(&Message::from_vec(&buffer[..received.ok()?.ok()?]).unwrap()))
}

async fn until(server: SocketAddr, name: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = ask(server, name).await;
        if answer.as_deref() == Some(wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{name}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Pids of the workers of a folder: those whose standard input is one of its sockets.
fn workers(dir: &Path) -> Vec<i32> {
    let unix = std::fs::read_to_string("/proc/net/unix").unwrap();
    let inodes: Vec<String> = unix
        .lines()
        .filter(|line| line.contains(dir.to_str().unwrap()))
        .map(|line| format!("socket:[{}]", line.split_whitespace().nth(6).unwrap()))
        .collect();
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let is = |link: &Path| inodes.iter().any(|inode| Path::new(inode) == link);
        if pid != i32::try_from(std::process::id()).unwrap()
            && std::fs::read_link(entry.path().join("fd/0")).is_ok_and(|link| is(&link))
        {
            pids.push(pid);
        }
    }
    pids
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Ends all workers of a folder when the test does.
struct Cleared<'a>(&'a Path);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        for pid in workers(self.0) {
            kill(pid);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_without_an_agent_and_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let _cleared = Cleared(dir.path());
    let config = settings();
    let server = config.listen[0];
    let first = agent(dir.path(), &config, everything());
    until(server, "web", "NoError 10.96.0.20").await;
    let before = workers(dir.path());
    assert_eq!(before.len(), 1);
    first.die().await;
    for _ in 0..20 {
        assert_eq!(ask(server, "web").await.as_deref(), Some("NoError 10.96.0.20"));
    }
    // The next agent knows of other services, and tells the same worker.
    let (key, entry) = common::service("web", json!({"clusterIP": "10.96.0.99"}));
    let told = vec![
        ZoneChange::Services(Change::Replace(vec![(key, entry)])),
        ZoneChange::Slices(Change::Replace(Vec::new())),
    ];
    let second = agent(dir.path(), &config, told);
    until(server, "web", "NoError 10.96.0.99").await;
    until(server, "plain", "NXDomain").await;
    assert_eq!(workers(dir.path()), before);
    second.die().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_dies_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let _cleared = Cleared(dir.path());
    let config = settings();
    let server = config.listen[0];
    let agent = agent(dir.path(), &config, everything());
    until(server, "web", "NoError 10.96.0.20").await;
    let [old] = workers(dir.path())[..] else { panic!("one worker") };
    kill(old);
    // Asked while there is none: the query waits in the socket, which the agent holds too. (Before the zone is whole
    // again, the answer is SERVFAIL.)
    assert!(ask(server, "web").await.is_some());
    until(server, "web", "NoError 10.96.0.20").await;
    let [new] = workers(dir.path())[..] else { panic!("one worker") };
    assert_ne!(new, old);
    agent.die().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_replaced_without_a_lost_query() {
    let dir = tempfile::tempdir().unwrap();
    let _cleared = Cleared(dir.path());
    let config = settings();
    let server = config.listen[0];
    let first = agent(dir.path(), &config, everything());
    until(server, "web", "NoError 10.96.0.20").await;
    let old = workers(dir.path());
    first.die().await;
    let end = CancellationToken::new();
    let asking = tokio::spawn({
        let end = end.clone();
        async move {
            let mut asked = 0;
            while !end.is_cancelled() {
                assert_eq!(ask(server, "web").await.as_deref(), Some("NoError 10.96.0.20"), "query {asked}");
                asked += 1;
            }
            asked
        }
    });
    // Other settings want another worker. While that one has no whole zone, the old one answers; and when its agent dies
    // then, the next one finds both.
    let other = DnsConfig { max_forwards: 7, ..config };
    let half = everything().into_iter().take(1).collect();
    let second = agent(dir.path(), &other, half);
    let both = || workers(dir.path()).len() == 2;
    while !both() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(both(), "the old one is not retired early");
    second.die().await;
    let third = agent(dir.path(), &other, everything());
    let deadline = Instant::now() + Duration::from_secs(10);
    while workers(dir.path()).iter().any(|pid| old.contains(pid)) {
        assert!(Instant::now() < deadline, "the old worker stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(workers(dir.path()).len(), 1);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "its socket is gone too");
    end.cancel();
    assert!(asking.await.unwrap() > 50);
    third.die().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_retired_when_no_agent_is_to_come() {
    let dir = tempfile::tempdir().unwrap();
    let _cleared = Cleared(dir.path());
    let config = settings();
    let first = agent(dir.path(), &config, everything());
    until(config.listen[0], "web", "NoError 10.96.0.20").await;
    first.die().await;
    assert_eq!(workers(dir.path()).len(), 1);
    retire(&place(dir.path())).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !workers(dir.path()).is_empty() {
        assert!(Instant::now() < deadline, "the worker stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "its socket is gone too");
    retire(&place(dir.path())).await.unwrap();
    retire(&place(&dir.path().join("missing"))).await.unwrap();
    assert!(!dir.path().join("missing").exists());
}
