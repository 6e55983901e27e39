//! Nanoseconds that the BPF programs of the proxy take, as the kernel counts them (BPF_ENABLE_STATS). Counting costs time
//! itself, so it is on only here.

use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use keelson_ebpf_abi::PIN_VERSION;
use serde_json::{Map, Value, json};

use super::load::{Asking, Sockets};
use super::{PATIENCE, Processor, Towards, ask_name, objects};

/// Which programs, and how often.
#[derive(clap::Args)]
pub struct Args {
    /// Folder under which their links are pinned (`--bpf-dir` of the agent).
    #[arg(long)]
    pins: PathBuf,
    /// An endpoint, for connections that are not to a Service.
    #[arg(long)]
    other: SocketAddrV4,
    /// Services that are asked in turn.
    #[arg(long)]
    services: usize,
    /// How often each is run.
    #[arg(long)]
    count: usize,
}

/// Runs them, and prints runs and nanoseconds by what was done.
pub fn run(args: &Args) -> Result<()> {
    Processor::First.keep()?;
    let _counting = enable_stats(Stats::RunTime).context("have the kernel count")?;
    let towards = Towards { endpoint: None, services: args.services };
    let udp = objects::cluster_ip(0);
    let mut told = Map::new();
    let mut tell = |what: &str, name: &str, work: &mut dyn FnMut(usize) -> Result<()>| -> Result<()> {
        let program = args.pins.join(PIN_VERSION).join(format!("link_{name}"));
        let before = counted(&program)?;
        for n in 0..args.count {
            work(n)?;
        }
        let after = counted(&program)?;
        let runs = after.1 - before.1;
        if usize::try_from(runs)? < args.count {
            bail!("{name} ran {runs} times for {} of: {what}", args.count);
        }
        let ns = nanoseconds(after.0.saturating_sub(before.0), runs);
        told.insert(format!("{name}: {what}"), json!({"runs": runs, "ns": ns}));
        Ok(())
    };
    tell("TCP to a ClusterIP", "connect4", &mut |n| Ok(ask_name(towards.nth(n), PATIENCE).map(drop)?))?;
    tell("TCP to another address", "connect4", &mut |_| Ok(ask_name(args.other, PATIENCE).map(drop)?))?;
    let mut unconnected = Asking::new(Sockets::Unconnected, udp)?;
    tell("UDP to a ClusterIP, each request", "sendmsg4", &mut |_| unconnected.ask())?;
    let mut unconnected = Asking::new(Sockets::Unconnected, udp)?;
    tell("UDP from an endpoint, each answer", "recvmsg4", &mut |_| unconnected.ask())?;
    let connected = TcpStream::connect(udp)?;
    tell("of a connection to a ClusterIP", "getpeername4", &mut |_| {
        (connected.peer_addr()? == SocketAddr::V4(udp)).then_some(()).context("the peer is not the Service")
    })?;
    println!("{}", Value::Object(told));
    Ok(())
}

/// Time and runs of the program behind a pinned link so far.
fn counted(pin: &Path) -> Result<(Duration, u64)> {
    let link = PinnedLink::from_pin(pin).with_context(|| format!("open {}", pin.display()))?;
    let id = FdLink::from(link).info()?.program_id();
    let mut programs = loaded_programs().filter_map(Result::ok);
    let info: ProgramInfo =
        programs.find(|info| info.id() == id).with_context(|| format!("no program {id}"))?;
    Ok((info.run_time(), info.run_count()))
}

/// Nanoseconds of a run.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn nanoseconds(time: Duration, runs: u64) -> f64 {
    time.as_nanos() as f64 / runs as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_shared_by_the_runs() {
        assert_eq!(nanoseconds(Duration::from_nanos(1_500), 10), 150.0);
    }
}
