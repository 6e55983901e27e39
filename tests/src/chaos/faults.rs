//! Breaking things, and mending them: the effects of a plan.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::invariants::Window;
use super::journal::now;
use super::plan::{Fault, Place, Plan};
use crate::testbed::fixture::TestCluster;
use crate::testbed::host::{Host, ended};
use crate::testbed::network::{self, BadCable};
use crate::testbed::sample::retry;
use crate::testbed::{disk, registry};

/// How many of a hundred packets a bad cable loses, each way.
const LOSS: u8 = 20;
/// How many of a hundred packets take a detour.
const DETOUR: u8 = 25;
/// Kilobits a second of a slow cable, and how long a packet may wait there, milliseconds.
const SLOW: (u32, u32) = (1_000, 400);
/// How long a lost node's Node may resist its deletion.
const PATIENCE: Duration = Duration::from_secs(20);

/// A fault that was done, with its true times.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// What it was.
    pub fault: Fault,
    /// Its begin, milliseconds since 1970.
    pub from: u64,
    /// When it was mended.
    pub to: u64,
}

/// When some of the faults were.
pub fn windows(done: &[Done], which: impl Fn(Fault) -> bool) -> Vec<Window> {
    let some = done.iter().filter(|done| which(done.fault));
    some.map(|done| Window { from: done.from, to: done.to }).collect()
}

/// Who breaks and mends.
pub struct Hands<'a> {
    cluster: &'a mut TestCluster,
    registry: i32,
    bad_cables: BTreeMap<Place, BadCable>,
    lost: Option<usize>,
    /// Daemons that ended though nobody killed them.
    pub fallen: Vec<String>,
}

impl<'a> Hands<'a> {
    /// For a cluster whose registry has this pid.
    pub fn new(cluster: &'a mut TestCluster, registry: i32) -> Self {
        Self { cluster, registry, bad_cables: BTreeMap::new(), lost: None, fallen: Vec::new() }
    }

    /// Does what is planned, and mends it all; `say` hears of each.
    pub fn carry_out(&mut self, plan: &Plan, say: &dyn Fn(&str)) -> Result<Vec<Done>> {
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        for (number, step) in plan.steps.iter().enumerate() {
            events.push((step.at, true, number));
            events.push((step.at + step.lasts, false, number));
        }
        // What ends goes before what begins at the same time.
        events.sort_unstable();
        let start = Instant::now();
        let mut done: Vec<Done> = Vec::new();
        let mut begun: BTreeMap<usize, u64> = BTreeMap::new();
        for (at, begins, number) in events {
            let due = start + Duration::from_millis(at);
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                self.look_after_daemons()?;
                std::thread::sleep(left.min(Duration::from_millis(200)));
            }
            let fault = plan.steps[number].fault;
            if begins {
                begun.insert(number, now());
                say(&format!("{:>7.1} s  {fault}", start.elapsed().as_secs_f64()));
                self.begin(fault).with_context(|| fault.to_string())?;
            } else {
                self.end(fault).with_context(|| format!("mend: {fault}"))?;
                say(&format!("{:>7.1} s  mended: {fault}", start.elapsed().as_secs_f64()));
                let from = begun.get(&number).copied().unwrap_or_default();
                done.push(Done { fault, from, to: now() });
            }
        }
        let rest = start + Duration::from_secs(plan.seconds);
        std::thread::sleep(rest.saturating_duration_since(Instant::now()));
        self.look_after_daemons()?;
        Ok(done)
    }

    /// Notes daemons that ended by themselves, and starts them again, so that the rest can be seen.
    fn look_after_daemons(&mut self) -> Result<()> {
        let places = std::iter::once(Place::Master).chain((1..=self.cluster.nodes()).map(Place::Node));
        for place in places {
            let name = place.to_string();
            if self.cluster.daemon_pid(&name).is_some_and(ended) {
                self.fallen.push(format!("the daemon of {name} ended by itself, at {}", now()));
                self.start(place)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, place: Place) -> Result<()> {
        match place {
            Place::Master => self.cluster.start_master(),
            Place::Node(n) => self.cluster.start_agent(n),
        }
    }

    fn host(&self, place: Place) -> Result<Host> {
        self.cluster.host(&place.to_string())
    }

    fn begin(&mut self, fault: Fault) -> Result<()> {
        let switch = self.cluster.host("switch")?;
        match fault {
            Fault::Kill(place) => self.cluster.kill_daemon(&place.to_string()),
            Fault::Cut(place) => network::connect(&switch, &place.to_string(), false),
            Fault::Split(a, b) => network::isolate(&switch, &both(a, b), true),
            Fault::Lossy(place) => {
                let cable = network::lose_packets(&switch, &place.to_string(), LOSS)?;
                self.bad_cables.insert(place, cable);
                Ok(())
            }
            Fault::Reordered(place) => {
                let cable = network::reorder_packets(&switch, &place.to_string(), DETOUR)?;
                self.bad_cables.insert(place, cable);
                Ok(())
            }
            Fault::Slow(place) => network::slow_down(&switch, &place.to_string(), Some(SLOW)),
            Fault::FullDisk(place) => disk::fill(&self.host(place)?),
            Fault::NoRegistry => kill(self.registry),
            Fault::LoseNode(n) => {
                self.lost = Some(n);
                let name = Place::Node(n).to_string();
                self.cluster.kill_daemon(&name)?;
                network::connect(&switch, &name, false)?;
                retry(Instant::now() + PATIENCE, || {
                    self.cluster.kubectl.run(&["delete", "node", &name, "--ignore-not-found"])
                })
                .map(drop)
            }
        }
    }

    fn end(&mut self, fault: Fault) -> Result<()> {
        let switch = self.cluster.host("switch")?;
        match fault {
            Fault::Kill(place) => self.start(place),
            Fault::Cut(place) => network::connect(&switch, &place.to_string(), true),
            Fault::Split(a, b) => network::isolate(&switch, &both(a, b), false),
            Fault::Lossy(place) => {
                self.bad_cables.remove(&place);
                Ok(())
            }
            Fault::Reordered(place) => {
                let cable = self.bad_cables.remove(&place).context("it was bent")?;
                network::straighten(&switch, &place.to_string(), cable)
            }
            Fault::Slow(place) => network::slow_down(&switch, &place.to_string(), None),
            Fault::FullDisk(place) => disk::empty(&self.host(place)?),
            Fault::NoRegistry => {
                self.registry = registry::start(self.cluster)?;
                Ok(())
            }
            Fault::LoseNode(_) => Ok(()),
        }
    }
}

fn both(a: usize, b: usize) -> [String; 2] {
    [a, b].map(|n| Place::Node(n).to_string())
}

fn kill(pid: i32) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_those_of_the_faults_asked_for() {
        let done = [
            Done { fault: Fault::Cut(Place::Node(1)), from: 1, to: 2 },
            Done { fault: Fault::Cut(Place::Node(2)), from: 3, to: 4 },
            Done { fault: Fault::Kill(Place::Master), from: 5, to: 6 },
            Done { fault: Fault::NoRegistry, from: 7, to: 8 },
        ];
        let blind = windows(&done, |fault| fault.blinds(2));
        assert_eq!(blind, [Window { from: 3, to: 4 }, Window { from: 5, to: 6 }]);
    }
}
