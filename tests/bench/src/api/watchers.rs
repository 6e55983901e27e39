//! Events to many watchers of one namespace, each with a connection of its own, and one more that never reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::ensure_namespace;
use crate::objects;
use crate::wire::{Ask, Connection, Target, Watch, begin};

/// Who watches what.
#[derive(clap::Args)]
pub struct Args {
    /// Watchers, not counting the one that never reads.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Writes that all of them see, once one after another and once as fast as they go.
    #[arg(long, default_value_t = 200)]
    writes: usize,
}

/// Namespace that is watched.
const NAMESPACE: &str = "bench-watch";
/// Window of the watcher that never reads: HTTP/2's own default (RFC 9113 section 6.5.2). The writes exceed it.
const NEVER_READ: u32 = 65_535;
/// Longest time from a write to its last watcher.
const EVENT_LIMIT: Duration = Duration::from_secs(30);
/// Watches that are begun at a time.
const BEGINNING: usize = 32;

/// The number in a write, and when a watcher saw it; or why there is no more to see.
type Seen = Result<(usize, Instant)>;

/// Watches and writes, and prints the times.
pub async fn run(target: &Target, args: &Args) -> Result<()> {
    let mut writer = Writer::new(target).await?;
    let from = writer.write(0).await?;
    let (send, mut seen) = unbounded_channel();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    let mut silent = target.connect_with(NEVER_READ).await?;
    let unread = begin(&mut silent, &path, &from).await?;
    let ended = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    futures::stream::iter(0..args.watchers)
        .map(|_| async {
            let watch = Watch::begin(target.connect().await?, &path, &from, &ended).await?;
            tokio::spawn(follow(watch, send.clone()));
            anyhow::Ok(())
        })
        .buffer_unordered(BEGINNING)
        .try_collect::<Vec<()>>()
        .await?;
    let beginning = began.elapsed().as_secs_f64();

    let mut paced = Paced::default();
    for number in 1..=args.writes {
        let sent = Instant::now();
        writer.write(number).await?;
        let acknowledged = Instant::now();
        paced.take(sent, acknowledged, &arrivals(&mut seen, number, args.watchers).await?);
    }
    let burst = burst(&mut writer, &mut seen, args).await?;
    drop((unread, silent));
    println!(
        "{}",
        json!({
            "begin_s": beginning, "write_us": paced.write, "last_us": paced.last, "last_after_ack_us": paced.last_after_ack,
            "each_us": paced.each, "burst_s": burst, "ended": ended.load(Ordering::Relaxed),
        })
    );
    Ok(())
}

/// Times of writes that each went to all watchers before the next, microseconds.
#[derive(Default)]
struct Paced {
    /// From the request to its answer.
    write: Vec<u64>,
    /// From the request to the last watcher's event.
    last: Vec<u64>,
    /// From the answer to the last watcher's event; 0 where all were sooner.
    last_after_ack: Vec<u64>,
    /// From the request to each watcher's event.
    each: Vec<u64>,
}

impl Paced {
    fn take(&mut self, sent: Instant, acknowledged: Instant, arrivals: &[Instant]) {
        let us = |from: Instant, to: Instant| {
            u64::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u64::MAX)
        };
        let last = arrivals.iter().copied().max().unwrap_or(sent);
        self.write.push(us(sent, acknowledged));
        self.last.push(us(sent, last));
        self.last_after_ack.push(us(acknowledged, last));
        self.each.extend(arrivals.iter().map(|&arrival| us(sent, arrival)));
    }
}

/// The writes again, without waiting for the watchers between them; gives the seconds until all have seen all.
async fn burst(writer: &mut Writer, seen: &mut UnboundedReceiver<Seen>, args: &Args) -> Result<f64> {
    let began = Instant::now();
    let numbers = args.writes + 1..=2 * args.writes;
    let mut missing = args.watchers * args.writes;
    let write = async {
        for number in numbers {
            writer.write(number).await?;
        }
        anyhow::Ok(())
    };
    let read = async {
        while missing > 0 {
            next(seen).await.with_context(|| format!("{missing} events are missing"))?;
            missing -= 1;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(write, read)?;
    Ok(began.elapsed().as_secs_f64())
}

/// Waits until so many watchers have seen a write.
async fn arrivals(
    seen: &mut UnboundedReceiver<Seen>,
    number: usize,
    watchers: usize,
) -> Result<Vec<Instant>> {
    let mut arrivals = Vec::with_capacity(watchers);
    while arrivals.len() < watchers {
        let context = || format!("{} of {watchers} watchers saw write {number}", arrivals.len());
        let (of, at) = next(seen).await.with_context(context)?;
        if of != number {
            bail!("a watcher saw write {of} instead of {number}");
        }
        arrivals.push(at);
    }
    Ok(arrivals)
}

async fn next(seen: &mut UnboundedReceiver<Seen>) -> Seen {
    let event = tokio::time::timeout(EVENT_LIMIT, seen.recv()).await.context("no event in time")?;
    event.context("no watcher is left")?
}

/// Tells of each event.
async fn follow(watch: Watch, seen: UnboundedSender<Seen>) {
    let ended = watch.follow(|line, at| {
        if let Some(number) = objects::number_in(line) {
            // Nobody listens once all is measured.
            let _ = seen.send(Ok((number, at)));
        }
    });
    let ended = ended.await;
    let _ = seen.send(Err(ended));
}

/// Writes the one object.
struct Writer(Connection);

impl Writer {
    async fn new(target: &Target) -> Result<Self> {
        let mut connection = target.connect().await?;
        ensure_namespace(&mut connection, NAMESPACE).await?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
        connection.ensure(&path, &objects::config_map("fan-out", 0)).await?;
        Ok(Self(connection))
    }

    /// Gives the version that it has then.
    async fn write(&mut self, number: usize) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/fan-out");
        let body = self.0.ask(Ask::put(path, objects::config_map("fan-out", number).to_string())).await?;
        let written: Value = serde_json::from_slice(&body)?;
        Ok(written["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sooner_than_the_answer_is_no_delay_after_it() {
        let sent = Instant::now();
        let at = |ms| sent + Duration::from_millis(ms);
        let mut paced = Paced::default();
        paced.take(sent, at(5), &[at(2), at(4)]);
        paced.take(sent, at(5), &[at(9), at(4)]);
        assert_eq!((paced.write, paced.last), (vec![5_000, 5_000], vec![4_000, 9_000]));
        assert_eq!(paced.last_after_ack, [0, 4_000]);
        assert_eq!(paced.each, [2_000, 4_000, 9_000, 4_000]);
    }
}
