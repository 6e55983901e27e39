//! How long a change of an EndpointSlice takes to be in effect: a Service's only endpoint is replaced by another, while
//! connections to the Service go on.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::load::nanos;
use super::{PATIENCE, Processor, api, ask_name, objects};
use crate::wire::{Ask, Connection, Target};

/// What to change.
#[derive(clap::Args)]
pub struct Args {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The endpoint before and after, whose name is `a`.
    #[arg(long)]
    endpoint: Ipv4Addr,
    /// The one in between, whose name is `b`.
    #[arg(long)]
    other: Ipv4Addr,
    /// Changes: an even number, so that all is as before in the end.
    #[arg(long)]
    changes: usize,
    /// Time between two changes, milliseconds.
    #[arg(long)]
    gap: u64,
    /// Time between two connections, microseconds.
    #[arg(long, default_value_t = 200)]
    pause: u64,
    /// How long a change may take, seconds.
    #[arg(long, default_value_t = 60)]
    limit: u64,
}

/// A connection: when it began, and whom it reached; nobody when it failed.
#[derive(Debug, Clone, Copy)]
struct Probe {
    began: u64,
    reached: Option<u8>,
}

/// A change: when it was sent and answered, and whom connections should reach from then on.
#[derive(Debug, Clone, Copy)]
struct Change {
    sent: u64,
    answered: u64,
    to: u8,
}

/// What came of a change, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Effect {
    /// From the write to its answer.
    write: u64,
    /// From the write until the first connection that reached the new endpoint began.
    sent_to_new: u64,
    /// From the answer until the same; nothing when that was before.
    answered_to_new: u64,
    /// From the answer until the last connection that reached the old endpoint began; nothing when that was before.
    answered_to_last_old: u64,
}

/// Changes, and prints what came of it.
pub fn run(args: &Args) -> Result<()> {
    if !args.changes.is_multiple_of(2) {
        bail!("an odd number of changes leaves the Service with another endpoint");
    }
    Processor::First.keep()?;
    let start = Instant::now();
    let (seen, over) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = Writer {
        endpoints: [(b'b', args.other), (b'a', args.endpoint)],
        kubeconfig: args.kubeconfig.clone(),
        changes: args.changes,
        gap: Duration::from_millis(args.gap),
        limit: Duration::from_secs(args.limit),
        seen: seen.clone(),
        start,
    };
    let ended = over.clone();
    let thread = api::in_host(move || async move {
        let changes = writer.run().await;
        ended.store(true, Ordering::Relaxed);
        changes
    });
    let mut probes = Vec::new();
    // The thread may end early, without having changed anything.
    while !over.load(Ordering::Relaxed) && !thread.is_finished() {
        let began = nanos(start.elapsed());
        let reached = ask_name(objects::cluster_ip(0), PATIENCE).ok();
        if let Some(name) = reached {
            seen.store(name, Ordering::Relaxed);
        }
        probes.push(Probe { began, reached });
        std::thread::sleep(Duration::from_micros(args.pause));
    }
    let changes = api::joined(thread)?;
    let effects = effects(&changes, &probes)?;
    let list = |of: fn(&Effect) -> u64| effects.iter().map(of).collect::<Vec<u64>>();
    println!(
        "{}",
        json!({
            "write": list(|effect| effect.write),
            "sent to new": list(|effect| effect.sent_to_new),
            "answered to new": list(|effect| effect.answered_to_new),
            "answered to last old": list(|effect| effect.answered_to_last_old),
            "connections": probes.len(),
            "failed": probes.iter().filter(|probe| probe.reached.is_none()).count(),
        })
    );
    Ok(())
}

struct Writer {
    /// Name and address of the endpoints, in the order of the changes.
    endpoints: [(u8, Ipv4Addr); 2],
    kubeconfig: PathBuf,
    changes: usize,
    gap: Duration,
    limit: Duration,
    /// Whom the last connection reached.
    seen: Arc<AtomicU8>,
    start: Instant,
}

impl Writer {
    async fn run(self) -> Result<Vec<Change>> {
        let mut connection = Target::of(&self.kubeconfig).await?.connect().await?;
        let mut changes = Vec::new();
        for (to, address) in self.endpoints.iter().cycle().take(self.changes) {
            tokio::time::sleep(self.gap).await;
            let sent = nanos(self.start.elapsed());
            self.write(&mut connection, *address).await?;
            changes.push(Change { sent, answered: nanos(self.start.elapsed()), to: *to });
            let deadline = Instant::now() + self.limit;
            while self.seen.load(Ordering::Relaxed) != *to {
                if Instant::now() > deadline {
                    bail!("a change of endpoints is not in effect after {:?}", self.limit);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        // A late connection to the old endpoint would still be seen.
        tokio::time::sleep(self.gap).await;
        Ok(changes)
    }

    async fn write(&self, connection: &mut Connection, address: Ipv4Addr) -> Result<()> {
        let path = format!("{}/{}", objects::SLICES, objects::name(0));
        let patch: Value = json!({"endpoints": objects::endpoints(address)});
        connection.drain(Ask::merge_patch(path, patch.to_string())).await.map(drop)
    }
}

/// What came of each change, by the connections between it and the next.
fn effects(changes: &[Change], probes: &[Probe]) -> Result<Vec<Effect>> {
    let next = changes.iter().skip(1).map(|change| change.sent).chain([u64::MAX]);
    changes
        .iter()
        .zip(next)
        .map(|(change, next)| {
            let mut after = probes.iter().filter(|probe| (change.sent..next).contains(&probe.began));
            let new = after.clone().find(|probe| probe.reached == Some(change.to));
            let Some(new) = new.map(|probe| probe.began) else {
                bail!("no connection reached a new endpoint")
            };
            let old = after.rfind(|probe| probe.reached.is_some_and(|name| name != change.to));
            let last_old = old.map_or(0, |probe| probe.began);
            Ok(Effect {
                write: change.answered - change.sent,
                sent_to_new: new - change.sent,
                answered_to_new: new.saturating_sub(change.answered),
                answered_to_last_old: last_old.saturating_sub(change.answered),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_are_told_by_connections() {
        let probe = |began, name: u8| Probe { began, reached: (name != b'-').then_some(name) };
        let probes = [
            probe(90, b'a'),
            probe(105, b'a'),
            probe(110, b'-'),
            probe(115, b'b'),
            // A proxy that is not of one mind.
            probe(120, b'a'),
            probe(130, b'b'),
            probe(202, b'a'),
        ];
        let changes =
            [Change { sent: 100, answered: 110, to: b'b' }, Change { sent: 200, answered: 210, to: b'a' }];
        let expected = [
            Effect { write: 10, sent_to_new: 15, answered_to_new: 5, answered_to_last_old: 10 },
            Effect { write: 10, sent_to_new: 2, answered_to_new: 0, answered_to_last_old: 0 },
        ];
        assert_eq!(effects(&changes, &probes).unwrap(), expected);
        assert!(effects(&changes, &probes[..3]).is_err());
    }
}
