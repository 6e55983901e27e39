//! The agent killed by SIGKILL: for five seconds under traffic, and again and again while pods come, change and go.
//!
//! `KEELSON_CRASH=long cargo test -p keelson-tests --test e2e_crash random -- --nocapture` is the long form of the latter:
//! 200 kills in 300 pods, and a summary in `tests/crash/agent.json`. `KEELSON_CRASH_SEED` repeats a run's choices.

mod crash {
    pub mod kills;
    pub mod load;
    pub mod outage;
}

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crash::kills::{Before, Form, kill_at_random};
use crash::outage::{Watched, ask_dns, dns_worker, finish_all, knock, now, pods};
use keelson_tests::testbed::fixture::TestCluster;
use keelson_tests::testbed::sample;

/// How long the agent stays away.
const OUTAGE: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_hurt_while_the_agent_is_dead() -> Result<()> {
    let mut cluster = TestCluster::up("e2e-outage", 1, &["testapp-v1"])?;
    cluster.kubectl.apply(sample::MANIFEST)?;
    let watched = Watched::start(&cluster)?;
    let before = pods(&cluster)?;
    let worker = dns_worker(&cluster)?;
    worker.check_unprivileged()?;

    cluster.kill_daemon("node-1")?;
    let killed = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    // Both end with code 7 now.
    knock(&cluster, &watched.leaver)?;
    knock(&cluster, &watched.returner)?;
    ask_dns(&cluster)?;
    std::thread::sleep(OUTAGE.saturating_sub(killed.elapsed()));
    ask_dns(&cluster)?;
    let restarted = now()?;
    cluster.start_agent(1)?;
    cluster.eventually(30, || cluster.sh("by-name", "true"))?;
    cluster.eventually(30, || {
        let returner = pods(&cluster)?.remove("returner").context("the pod returner")?;
        ensure!(returner.restarts == 1 && returner.running, "{returner:?}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(1));

    let after = pods(&cluster)?;
    for (name, pod) in &before {
        let now = after.get(name).with_context(|| format!("{name} is gone"))?;
        match name.as_str() {
            "leaver" => {
                assert_eq!((now.phase.as_str(), now.code, now.restarts), ("Failed", Some(7), 0), "{now:?}");
                assert_eq!((&now.uid, &now.container), (&pod.uid, &pod.container));
                assert!(
                    now.ended.as_ref().is_some_and(|at| *at <= restarted),
                    "{now:?}, back at {restarted}"
                );
            }
            "returner" => {
                assert_eq!((now.restarts, now.last_code), (1, Some(7)), "{now:?}");
                assert_eq!((&now.uid, &now.ip), (&pod.uid, &pod.ip), "the sandbox stays");
            }
            _ => assert_eq!(now, pod, "{name} was touched"),
        }
    }
    assert_eq!(before.len(), after.len());
    assert_eq!(dns_worker(&cluster)?.pid, worker.pid, "the new agent goes on with the worker");

    let said = finish_all(&cluster, &["by-address", "by-name", "holder", "resolver"])?;
    for client in ["by-address", "by-name"] {
        assert!(said[client].ends_with("failed=0"), "new connections {client}: {}", said[client]);
    }
    assert!(said["holder"].starts_with("done answers="), "the old connection lives: {}", said["holder"]);
    let resolver = &said["resolver"];
    assert!(resolver.contains(" failed=0 "), "{resolver}");
    let slowest: u64 = resolver.rsplit('=').next().context("a number")?.parse()?;
    assert!(slowest < 2000, "names were answered all the while: {resolver}");

    cluster.terminate("counter");
    let log = cluster.eventually(20, || {
        let log = cluster.kubectl.run(&["logs", "counter"])?;
        ensure!(log.lines().last().is_some_and(|line| line.starts_with("end ")), "still counting");
        Ok(log)
    })?;
    let lines: Vec<&str> = log.lines().collect();
    let (end, numbered) = lines.split_last().context("a log")?;
    for (n, line) in numbered.iter().enumerate() {
        assert_eq!(*line, format!("line {n}"), "the log is whole");
    }
    assert_eq!(*end, format!("end {}", numbered.len()));
    assert!(numbered.len() > 5_000, "it logged on while the agent was away: {} lines", numbered.len());
    cluster.down()
}

#[test]
fn nothing_is_doubled_orphaned_or_leaked_when_it_is_killed_at_random() -> Result<()> {
    let form = Form::chosen()?;
    println!("seed {}", form.seed);
    let started = Instant::now();
    let mut cluster = TestCluster::up("e2e-kills", 1, &["testapp-v1", "testapp-v2"])?;
    let before = Before::look(&cluster)?;
    let load = kill_at_random(&mut cluster, &form).with_context(|| format!("seed {}", form.seed))?;
    let summary = before.settle(&cluster, load, &form).with_context(|| format!("seed {}", form.seed))?;
    println!("{summary:#} in {:.0} s", started.elapsed().as_secs_f64());
    if form.long {
        crash::kills::record(summary, started.elapsed())?;
    }
    cluster.down()
}
