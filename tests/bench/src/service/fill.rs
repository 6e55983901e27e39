//! Many Services: created and in effect, deleted and gone.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;

use super::{api, ask_name, objects};
use crate::wire::{Ask, Connection, Target};

/// What a connection that goes through is given; one that does not may be answered by nobody.
const PATIENCE: Duration = Duration::from_millis(20);
/// Between two looks at a Service that is not there yet.
const PAUSE: Duration = Duration::from_millis(1);
/// So many Services, evenly spread, are waited for before all are looked at: looking at thousands takes time by itself.
const SAMPLE: usize = 200;

/// Services to write.
#[derive(clap::Args)]
struct Range {
    /// Kubeconfig of an administrator.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Number of the first.
    #[arg(long)]
    first: usize,
    /// How many there are with all before the first.
    #[arg(long)]
    services: usize,
    /// Connections to the API server.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// How long the proxy may take, seconds.
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

/// Services to create.
#[derive(clap::Args)]
pub struct FillArgs {
    #[command(flatten)]
    range: Range,
    /// Their endpoint.
    #[arg(long)]
    endpoint: Ipv4Addr,
}

/// Services to delete.
#[derive(clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    range: Range,
}

/// Services to wait for.
#[derive(clap::Args)]
pub struct WaitArgs {
    /// How many.
    #[arg(long)]
    services: usize,
    /// How long they may take, seconds.
    #[arg(long, default_value_t = 300)]
    limit: u64,
    /// Name of the endpoint that must answer.
    #[arg(long, default_value_t = 'a')]
    name: char,
}

/// Creates, and prints the seconds from the first write to the last answer and to the last that is in effect.
pub fn fill(args: &FillArgs) -> Result<()> {
    let endpoint = args.endpoint;
    let make = move |number| {
        [
            Ask::post(objects::SERVICES, objects::service(number).to_string()),
            Ask::post(objects::SLICES, objects::slice(number, endpoint).to_string()),
        ]
    };
    let began = Instant::now();
    write(&args.range, make)?;
    let written = began.elapsed();
    let numbers: Vec<usize> = (args.range.first..args.range.services).collect();
    let there = settled(&numbers, Duration::from_secs(args.range.limit), |number| reaches(number, 'a'))?;
    println!("{}", json!({"written_s": written.as_secs_f64(), "in_effect_s": (there - began).as_secs_f64()}));
    Ok(())
}

/// Deletes, and waits until none is reached.
pub fn remove(args: &RemoveArgs) -> Result<()> {
    let delete = |number| {
        [objects::SLICES, objects::SERVICES]
            .map(|folder| Ask::delete(format!("{folder}/{}", objects::name(number))))
    };
    write(&args.range, delete)?;
    let numbers: Vec<usize> = (args.range.first..args.range.services).collect();
    let limit = Duration::from_secs(args.range.limit);
    settled(&sample(&numbers), limit, |number| !reaches(number, 'a')).map(drop)
}

/// Waits.
pub fn wait(args: &WaitArgs) -> Result<()> {
    let numbers: Vec<usize> = (0..args.services).collect();
    settled(&numbers, Duration::from_secs(args.limit), |number| reaches(number, args.name)).map(drop)
}

/// Sends what each number takes, over several connections at once.
fn write(range: &Range, asks: impl Fn(usize) -> [Ask; 2] + Send + 'static) -> Result<()> {
    if range.services > objects::MOST {
        bail!("at most {} Services have addresses", objects::MOST);
    }
    let (numbers, at_once) = (range.first..range.services, range.at_once.max(1));
    let kubeconfig = range.kubeconfig.clone();
    api::joined(api::in_host(move || async move {
        let connections = Target::of(&kubeconfig).await?.connections(at_once).await?;
        let shares = connections.into_iter().enumerate().map(|(share, connection)| {
            let numbers = numbers.clone().skip(share).step_by(at_once);
            send(connection, numbers.flat_map(&asks))
        });
        let sent = futures::stream::iter(shares).buffer_unordered(at_once);
        sent.try_collect::<Vec<()>>().await.map(drop)
    }))
}

async fn send(mut connection: Connection, asks: impl Iterator<Item = Ask>) -> Result<()> {
    for ask in asks {
        connection.drain(ask).await?;
    }
    Ok(())
}

fn reaches(number: usize, name: char) -> bool {
    ask_name(objects::cluster_ip(number), PATIENCE).is_ok_and(|answer| char::from(answer) == name)
}

/// When the last of them was first seen as it should be: a sample is waited for, and then all are looked at.
fn settled(numbers: &[usize], limit: Duration, mut is_so: impl FnMut(usize) -> bool) -> Result<Instant> {
    let deadline = Instant::now() + limit;
    let mut last = Instant::now();
    for (numbers, counts) in [(sample(numbers), true), (numbers.to_vec(), false)] {
        for number in numbers {
            let mut waited = false;
            while !is_so(number) {
                if Instant::now() > deadline {
                    bail!("{} is not as it should be after {limit:?}", objects::name(number));
                }
                waited = true;
                std::thread::sleep(PAUSE);
            }
            // Of the second look only what was late counts.
            if counts || waited {
                last = Instant::now();
            }
        }
    }
    Ok(last)
}

/// Some of them, evenly spread, and the last.
fn sample(numbers: &[usize]) -> Vec<usize> {
    let step = numbers.len().div_ceil(SAMPLE).max(1);
    let mut sample: Vec<usize> = numbers.iter().copied().step_by(step).collect();
    sample.extend(numbers.last().filter(|last| !sample.contains(last)).copied());
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_and_has_the_last() {
        let numbers: Vec<usize> = (5..10_005).collect();
        let sample = sample(&numbers);
        assert_eq!(sample.len(), SAMPLE + 1);
        assert_eq!((sample[0], sample[1], sample[SAMPLE]), (5, 55, 10_004));
        assert_eq!(super::sample(&[7]), [7]);
        assert!(super::sample(&[]).is_empty());
    }

    #[test]
    fn the_last_to_settle_counts_and_none_is_forgotten() {
        let numbers: Vec<usize> = (0..1_000).collect();
        let mut looks = vec![0; 1_000];
        // Number 3 is not in the sample.
        let late = 3;
        settled(&numbers, Duration::from_secs(5), |number| {
            looks[number] += 1;
            number != late || looks[number] > 2
        })
        .unwrap();
        assert!(looks.iter().all(|&count| count > 0));
        assert_eq!(looks[late], 3);
        assert!(settled(&numbers, Duration::ZERO, |number| number != late).is_err());
    }
}
