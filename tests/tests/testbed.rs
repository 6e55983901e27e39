//! Test hosts come up, reach each other, and go without a trace.

use anyhow::Result;
use keelson_tests::cmd;
use keelson_tests::testbed::cluster::{Cluster, Options};
use keelson_tests::testbed::snapshot::Snapshot;

#[test]
fn hosts_come_and_go_without_a_trace() -> Result<()> {
    let before = Snapshot::take()?;
    // A descriptor that every program started here inherits, as a shell's lock on a file is.
    let inherited = nix::unistd::dup(std::fs::File::open("/dev/null")?)?;
    nix::fcntl::fcntl(&inherited, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
    let cluster = Cluster::create("testbed", &Options { nodes: 2, ..Options::default() })?;
    let node = cluster.node(1)?;

    let ping =
        cmd::text(node.command("client", "busybox").args(["ping", "-c", "1", "-W", "2", "10.89.0.12"]));
    let routes = cmd::text(node.command("client", "ip").args(["route"]))?;
    let controllers = cmd::text(node.command("client", "ls").arg("/sys/fs/cgroup"))?;
    let name = cmd::text(node.command("client", "uname").arg("-n"))?;
    let daemon = node.spawn_daemon("sleep", "/usr/bin/sleep".as_ref(), &["60".to_owned()], None)?;
    let open =
        [node.pid, daemon].map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count));
    cluster.destroy()?;

    assert!(ping.is_ok(), "node-1 reaches node-2: {ping:?}");
    assert_eq!(routes, "10.89.0.0/24 dev eth0 proto kernel scope link src 10.89.0.11", "no way out");
    assert!(
        controllers.contains("cgroup.kill") && controllers.contains("init"),
        "its own cgroup tree: {controllers}"
    );
    assert_eq!(name, "node-1");
    assert!(
        open.iter().all(|count| matches!(count, Ok(3))),
        "only standard input and outputs are open: {open:?}"
    );
    drop(inherited);
    let left: Vec<String> =
        Snapshot::take()?.added_since(&before).into_iter().filter(|e| !e.starts_with("bpf")).collect();
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}
