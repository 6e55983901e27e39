//! Network namespaces for tests: each is held by a thread, and closures run inside it.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use keelson_cni::Netlink;
use keelson_cni::net::naming::Mac;
use keelson_cni::net::netlink::VethSpec;
use keelson_cni::net::netns::NetNs;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of our own, without any route out. It ends with the value.
pub struct Space {
    jobs: Sender<Job>,
    pub path: PathBuf,
}

impl Space {
    /// Fails the test when namespaces can't be made.
    pub fn new() -> Space {
        let (jobs, queue) = channel::<Job>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET);
            let path = PathBuf::from(format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid()));
            tell.send(made.map(|()| path)).unwrap();
            for job in queue {
                job();
            }
        });
        let path = told.recv().unwrap().expect("making a network namespace needs root (CAP_SYS_ADMIN)");
        let space = Space { jobs, path };
        space.command("ip link set lo up");
        space
    }

    /// Runs `work` on the thread inside.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job = move || {
            let _ = tell.send(work());
        };
        self.jobs.send(Box::new(job)).unwrap();
        told.recv_timeout(Duration::from_secs(60)).expect("the work inside the namespace panicked or hangs")
    }

    /// Runs an async block inside.
    pub fn block_on<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }

    /// Runs a busybox command inside; whether it succeeded and what it printed.
    pub fn try_command(&self, line: &str) -> (bool, String) {
        let words: Vec<String> = line.split_whitespace().map(ToOwned::to_owned).collect();
        self.run(move || {
            let output = Command::new("/bin/busybox").args(&words).output().expect("/bin/busybox is needed");
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            (output.status.success(), text)
        })
    }

    /// Runs a busybox command inside that must succeed.
    pub fn command(&self, line: &str) -> String {
        let (ok, text) = self.try_command(line);
        assert!(ok, "{line}: {text}");
        text
    }

    /// Makes a veth pair between this namespace (`here`) and `other` (`there`), both ends up.
    pub fn connect(&self, here: &'static str, other: &Space, there: &'static str) {
        let path = other.path.clone();
        self.block_on(move || async move {
            let netns = NetNs::open(&path).unwrap().unwrap();
            let spec = VethSpec {
                host: (here, Mac([2, 0, 0, 0, 0, 1])),
                container: (there, Mac([2, 0, 0, 0, 0, 2])),
                netns: &netns,
                mtu: 1500,
                bridge: None,
            };
            Netlink::open().unwrap().add_veth(&spec).await.unwrap();
        });
        self.command(&format!("ip link set {here} up"));
        other.command(&format!("ip link set {there} up"));
    }

    pub fn pings(&self, ip: &str) -> bool {
        self.try_command(&format!("ping -c 1 -W 2 {ip}")).0
    }
}
