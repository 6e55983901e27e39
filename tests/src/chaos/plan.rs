//! What is broken when: a pure function of the seed, the time and the number of nodes.

use std::fmt;

use serde::Serialize;

use crate::random::Random;

/// A host of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Place {
    /// The master's.
    Master,
    /// A node's, counted from 1.
    Node(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => write!(f, "master"),
            Self::Node(n) => write!(f, "node-{n}"),
        }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

/// Something that is broken and, but for a lost node, mended again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Fault {
    /// The daemon is killed with SIGKILL, and started again later.
    Kill(Place),
    /// The host's cable is out.
    Cut(Place),
    /// Two nodes don't reach each other, but all else.
    Split(usize, usize),
    /// The host's cable loses packets.
    Lossy(Place),
    /// The host's cable is slow: packets wait for each other.
    Slow(Place),
    /// Packets from the host overtake each other.
    Reordered(Place),
    /// The host's disk is full.
    FullDisk(Place),
    /// The image registry is killed, and started again later.
    NoRegistry,
    /// The node's agent is killed and its cable cut for good; its Node is deleted.
    LoseNode(usize),
}

impl Fault {
    /// Hosts that are not themselves meanwhile.
    pub fn places(self) -> Vec<Place> {
        match self {
            Self::Kill(place)
            | Self::Cut(place)
            | Self::Lossy(place)
            | Self::Slow(place)
            | Self::Reordered(place)
            | Self::FullDisk(place) => vec![place],
            Self::Split(a, b) => vec![Place::Node(a), Place::Node(b)],
            Self::LoseNode(n) => vec![Place::Node(n)],
            Self::NoRegistry => Vec::new(),
        }
    }

    /// Whether what runs on a node may lack news from the API, and go by what it knew.
    pub fn blinds(self, node: usize) -> bool {
        match self {
            Self::Split(..) | Self::NoRegistry => false,
            // Only what changes can't be stored.
            Self::FullDisk(place) => place == Place::Master,
            other => other.places().iter().any(|place| [Place::Master, Place::Node(node)].contains(place)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(place) => write!(f, "kill -9 of the daemon, {place}"),
            Self::Cut(place) => write!(f, "cable out, {place}"),
            Self::Split(a, b) => write!(f, "no way between node-{a} and node-{b}"),
            Self::Lossy(place) => write!(f, "packets lost, {place}"),
            Self::Slow(place) => write!(f, "packets delayed, {place}"),
            Self::Reordered(place) => write!(f, "packets out of order, {place}"),
            Self::FullDisk(place) => write!(f, "disk full, {place}"),
            Self::NoRegistry => write!(f, "registry gone"),
            Self::LoseNode(n) => write!(f, "node-{n} lost for good"),
        }
    }
}

/// A fault with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Milliseconds from the beginning to the fault.
    pub at: u64,
    /// Milliseconds from there to its end.
    pub lasts: u64,
    /// What is broken.
    pub fault: Fault,
}

impl Step {
    fn end(&self) -> u64 {
        self.at + self.lasts
    }
}

/// All faults of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What chose them.
    pub seed: u64,
    /// Seconds from the first to the end of the last.
    pub seconds: u64,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// The faults, by time.
    pub steps: Vec<Step>,
}

/// Kinds of faults; as often as each is dealt in one round of all.
#[derive(Debug, Clone, Copy)]
enum Card {
    KillMaster,
    KillAgent,
    Cut,
    CutMaster,
    Split,
    Lossy,
    Slow,
    Reordered,
    FullMaster,
    FullNode,
    NoRegistry,
}

const DECK: &[Card] = &[
    Card::KillMaster,
    Card::KillMaster,
    Card::KillAgent,
    Card::KillAgent,
    Card::KillAgent,
    Card::Cut,
    Card::CutMaster,
    Card::Split,
    Card::Lossy,
    Card::Slow,
    Card::Reordered,
    Card::FullMaster,
    Card::FullNode,
    Card::NoRegistry,
];

/// The most faults at a time.
pub const MOST: usize = 2;
/// From one fault to the next, milliseconds.
const PAUSE: (u64, u64) = (500, 5_000);
/// The longest that a daemon is away, and any other fault as a rule lasts.
const SHORT: u64 = 5_000;
const USUAL: u64 = 12_000;
/// The longest that anything lasts in a long run; in a short one a quarter of its time.
const LONGEST: u64 = 60_000;
/// Time without any other fault in which a lost node's Node is deleted.
const LOSS: u64 = 3_000;

impl Plan {
    /// The plan for a seed.
    pub fn new(seed: u64, seconds: u64, nodes: usize) -> Self {
        let mut dealer = Dealer { random: Random(seed), deck: Vec::new(), nodes, lost: None };
        let end = seconds * 1_000;
        let longest = (end / 4).clamp(1_000, LONGEST);
        let mut steps: Vec<Step> = Vec::new();
        // A node is lost where there are enough for the others to carry on; early, since its pods are given up late.
        let mut loss = (nodes >= 3 && seconds >= 20).then_some(end / 4);
        let mut at = 0;
        loop {
            at += dealer.random.between(PAUSE.0, PAUSE.1);
            if loss.is_some_and(|due| at >= due) {
                loss = None;
                // Once all else is mended.
                at = steps.iter().map(Step::end).fold(at, u64::max);
                let node = dealer.node();
                dealer.lost = Some(node);
                steps.push(Step { at, lasts: LOSS, fault: Fault::LoseNode(node) });
                at += LOSS;
                continue;
            }
            if at + 1_000 > end {
                break;
            }
            let card = dealer.draw();
            let fault = dealer.deal(card);
            let most = match fault {
                Fault::Kill(_) => SHORT,
                // Now and then for as long as a node needs to be given up.
                _ if dealer.random.below(4) == 0 => longest,
                _ => USUAL,
            };
            let lasts = dealer.random.between(500, most.min(longest)).min(end - at);
            let step = Step { at, lasts, fault };
            if bearable(&step, &steps) {
                steps.push(step);
            } else {
                dealer.deck.push(card);
            }
        }
        Self { seed, seconds, nodes, steps }
    }

    /// The node that is lost, if one is.
    pub fn lost(&self) -> Option<usize> {
        self.steps.iter().find_map(|step| match step.fault {
            Fault::LoseNode(n) => Some(n),
            _ => None,
        })
    }
}

/// Whether a step leaves a cluster that can recover: few faults at a time, no host with two, and nothing beside the loss
/// of a node.
fn bearable(step: &Step, before: &[Step]) -> bool {
    let together: Vec<&Step> = before.iter().filter(|other| other.end() > step.at).collect();
    together.len() < MOST
        && together.iter().all(|other| {
            other.fault != step.fault
                && !other.fault.places().iter().any(|place| step.fault.places().contains(place))
        })
}

/// Chooses faults.
struct Dealer {
    random: Random,
    deck: Vec<Card>,
    nodes: usize,
    lost: Option<usize>,
}

impl Dealer {
    /// Each kind comes before any comes again more often.
    fn draw(&mut self) -> Card {
        if self.deck.is_empty() {
            self.deck = DECK.to_vec();
        }
        let at = self.pick(self.deck.len());
        self.deck.swap_remove(at)
    }

    fn deal(&mut self, card: Card) -> Fault {
        match card {
            Card::KillMaster => Fault::Kill(Place::Master),
            Card::KillAgent => Fault::Kill(self.place()),
            Card::Cut => Fault::Cut(self.place()),
            Card::CutMaster => Fault::Cut(Place::Master),
            Card::Split => {
                let mut nodes = self.living();
                let at = self.pick(nodes.len());
                let a = nodes.swap_remove(at);
                if nodes.is_empty() {
                    return Fault::Lossy(Place::Node(a));
                }
                let b = nodes[self.pick(nodes.len())];
                Fault::Split(a.min(b), a.max(b))
            }
            Card::Lossy => Fault::Lossy(self.place()),
            Card::Slow => Fault::Slow(self.place()),
            Card::Reordered => Fault::Reordered(self.place()),
            Card::FullMaster => Fault::FullDisk(Place::Master),
            Card::FullNode => Fault::FullDisk(self.place()),
            Card::NoRegistry => Fault::NoRegistry,
        }
    }

    fn pick(&mut self, of: usize) -> usize {
        usize::try_from(self.random.below(of as u64)).unwrap_or_default()
    }

    /// Nodes that are not lost.
    fn living(&self) -> Vec<usize> {
        (1..=self.nodes).filter(|n| self.lost != Some(*n)).collect()
    }

    fn node(&mut self) -> usize {
        let living = self.living();
        living[self.pick(living.len())]
    }

    fn place(&mut self) -> Place {
        Place::Node(self.node())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan() {
        assert_eq!(Plan::new(7, 60, 3), Plan::new(7, 60, 3));
        assert_ne!(Plan::new(7, 60, 3), Plan::new(8, 60, 3));
    }

    #[test]
    fn every_plan_can_be_recovered_from() {
        for seed in 0..300 {
            for (seconds, nodes) in [(20, 3), (60, 3), (600, 3), (60, 1), (60, 5)] {
                let plan = Plan::new(seed, seconds, nodes);
                assert!(plan.steps.is_sorted_by_key(|step| step.at), "{plan:?}");
                assert!(plan.steps.iter().all(|step| step.end() <= seconds * 1_000 + LOSS + LONGEST));
                let lost = plan.steps.iter().filter(|step| matches!(step.fault, Fault::LoseNode(_))).count();
                assert_eq!(lost, usize::from(nodes >= 3), "{plan:?}");
                for (i, step) in plan.steps.iter().enumerate() {
                    let beside: Vec<&Step> =
                        plan.steps[..i].iter().filter(|other| other.end() > step.at).collect();
                    assert!(beside.len() < MOST, "{plan:?}");
                    for other in beside {
                        let (a, b) = (step.fault.places(), other.fault.places());
                        assert!(!a.iter().any(|place| b.contains(place)), "{step:?} beside {other:?}");
                        assert!(!matches!(step.fault, Fault::LoseNode(_)), "{step:?} beside {other:?}");
                        assert!(!matches!(other.fault, Fault::LoseNode(_)), "{step:?} beside {other:?}");
                    }
                    let gone = plan.lost().map(Place::Node).filter(|_| {
                        plan.steps[..i].iter().any(|other| matches!(other.fault, Fault::LoseNode(_)))
                    });
                    assert!(gone.is_none_or(|gone| !step.fault.places().contains(&gone)), "{plan:?}");
                }
            }
        }
    }

    #[test]
    fn a_minute_has_most_kinds_and_ten_have_all() {
        let kinds = |plan: &Plan| {
            let mut kinds: Vec<_> =
                plan.steps.iter().map(|step| std::mem::discriminant(&step.fault)).collect();
            kinds.dedup();
            let mut distinct = Vec::new();
            kinds.retain(|kind| {
                !distinct.contains(kind) && {
                    distinct.push(*kind);
                    true
                }
            });
            kinds.len()
        };
        for seed in 0..50 {
            assert!(kinds(&Plan::new(seed, 60, 3)) >= 5, "{seed}");
            assert_eq!(kinds(&Plan::new(seed, 600, 3)), 9, "{seed}");
        }
    }
}
