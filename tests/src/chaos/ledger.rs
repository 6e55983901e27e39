//! What the API acknowledged, against what it then shows: nothing is lost, nothing goes back, watches have no gap.

use std::collections::{BTreeMap, BTreeSet};

use super::journal::{Change, LAST, Line, Outcome, Seen, Write};

/// What an object is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub n: u64,
    /// Its resourceVersion.
    pub revision: u64,
}

/// The journal, taken apart.
pub struct Ledger {
    writes: Vec<Write>,
    seen: Vec<Seen>,
    gaps: Vec<String>,
}

/// Only the load's client writes these.
fn private(object: &str) -> bool {
    object.starts_with("ConfigMap/")
}

impl Ledger {
    /// Takes a journal apart.
    pub fn new(journal: Vec<Line>) -> Self {
        let mut ledger = Self { writes: Vec::new(), seen: Vec::new(), gaps: Vec::new() };
        for line in journal {
            match line {
                Line::Write(write) => ledger.writes.push(write),
                Line::Seen(seen) => ledger.seen.push(seen),
                Line::Gap { kind, why } => ledger.gaps.push(format!("the watch of {kind} broke: {why}")),
            }
        }
        ledger
    }

    /// Everything that watches showed.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.writes.iter().filter(|write| matches!(write.outcome, Outcome::Acknowledged(_))).count()
    }

    /// The same by kind of object.
    pub fn acknowledged_by_kind(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for write in self.writes.iter().filter(|write| matches!(write.outcome, Outcome::Acknowledged(_))) {
            *counts.entry(write.object.split('/').next().unwrap_or_default()).or_default() += 1;
        }
        counts
    }

    /// How many writes had no answer, or that of a server that failed.
    pub fn unanswered(&self) -> usize {
        self.writes.iter().filter(|write| matches!(write.outcome, Outcome::Done | Outcome::Lost)).count()
    }

    /// Pods that a watch showed on a node.
    pub fn pods_on(&self, node: &str) -> BTreeSet<String> {
        let on = |seen: &&Seen| seen.pod.as_ref().is_some_and(|pod| pod.node.as_deref() == Some(node));
        self.seen.iter().filter(on).map(|seen| seen.object.clone()).collect()
    }

    /// Every object is as its last write left it. `excused` went with a node that was lost, by rights.
    pub fn lost_writes(&self, found: &BTreeMap<String, Found>, excused: &BTreeSet<String>) -> Vec<String> {
        let mut broken = Vec::new();
        let mut last: BTreeMap<&str, &Write> = BTreeMap::new();
        for write in &self.writes {
            if let Outcome::Refused(code, why) = &write.outcome
                && !(*code == 404 && excused.contains(&write.object))
            {
                broken.push(format!(
                    "{}: {:?} was refused, though all writes before it were acknowledged: {code} {why}",
                    write.object, write.change
                ));
            }
            if write.outcome.done() {
                last.insert(&write.object, write);
            }
        }
        for (object, write) in &last {
            match (write.change, found.get(*object)) {
                (Change::Delete, None) => {}
                (Change::Delete, Some(found)) => {
                    broken.push(format!("{object} is there ({found:?}), but was deleted: {write:?}"));
                }
                (Change::Put(_), None) if excused.contains(*object) => {}
                (Change::Put(_), None) => broken.push(format!("{object} is gone: {write:?}")),
                (Change::Put(n), Some(found)) if found.n != n => {
                    broken.push(format!("{object} has number {}: {write:?}", found.n));
                }
                (Change::Put(_), Some(found)) => {
                    let Outcome::Acknowledged(Some(revision)) = write.outcome else { continue };
                    if found.revision < revision || (private(object) && found.revision != revision) {
                        broken.push(format!("{object} has resourceVersion {}: {write:?}", found.revision));
                    }
                }
            }
        }
        let unasked = found.keys().filter(|object| !last.contains_key(object.as_str()));
        broken.extend(unasked.map(|object| format!("{object} is there, but was never written")));
        broken
    }

    /// No write was told a resourceVersion that another had been told of before it began, or an older one; and no watch
    /// went back.
    pub fn revisions_going_back(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for write in &self.writes {
            // What changes nothing keeps its resourceVersion; the client's numbers always change something.
            if let Outcome::Acknowledged(Some(revision)) = write.outcome
                && revision <= write.floor
            {
                broken.push(format!("{} was acknowledged after {}: {write:?}", revision, write.floor));
            }
        }
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for seen in &self.seen {
            let kind = seen.object.split('/').next().unwrap_or_default();
            let newest = newest.entry(kind).or_default();
            if seen.revision <= *newest {
                broken.push(format!("a watch showed {newest} and then {seen:?}"));
            }
            *newest = (*newest).max(seen.revision);
        }
        broken
    }

    /// The watch showed of every object just what was done to it, in that order.
    pub fn watch_gaps(&self) -> Vec<String> {
        let mut broken = self.gaps.clone();
        let mut shown: BTreeMap<&str, Vec<(Change, u64)>> = BTreeMap::new();
        for seen in self.seen.iter().filter(|seen| private(&seen.object)) {
            let change = if seen.deleted { Change::Delete } else { Change::Put(seen.n.unwrap_or_default()) };
            shown.entry(&seen.object).or_default().push((change, seen.revision));
        }
        let mut done: BTreeMap<&str, Vec<&Write>> = BTreeMap::new();
        for write in self.writes.iter().filter(|write| private(&write.object) && write.outcome.done()) {
            done.entry(&write.object).or_default().push(write);
        }
        if !shown.contains_key(LAST) {
            broken.push("the watch never showed the last write".to_owned());
        }
        for (object, writes) in &done {
            let shown = shown.remove(object).unwrap_or_default();
            let differs = writes.iter().zip(&shown).position(|(write, (change, revision))| {
                let told = match write.outcome {
                    Outcome::Acknowledged(told) => told,
                    _ => None,
                };
                write.change != *change || told.is_some_and(|told| told != *revision)
            });
            if let Some(at) = differs {
                broken.push(format!(
                    "{object}: {:?} was done, and the watch showed {:?}",
                    writes[at], shown[at]
                ));
            } else if writes.len() != shown.len() {
                broken.push(format!(
                    "{object}: {} writes were done, {} were shown",
                    writes.len(),
                    shown.len()
                ));
            }
        }
        broken.extend(shown.keys().map(|object| format!("the watch showed {object}, which nobody wrote")));
        broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(object: &str, n: u64, revision: u64, floor: u64) -> Line {
        let outcome = Outcome::Acknowledged(Some(revision));
        Line::Write(Write { at: 0, object: object.into(), change: Change::Put(n), outcome, floor })
    }

    fn other(object: &str, change: Change, outcome: Outcome) -> Line {
        Line::Write(Write { at: 0, object: object.into(), change, outcome, floor: 0 })
    }

    fn seen(object: &str, n: u64, revision: u64, deleted: bool) -> Line {
        Line::Seen(Seen { at: 0, object: object.into(), revision, deleted, n: Some(n), pod: None })
    }

    /// A run in which all is well.
    fn good() -> Vec<Line> {
        vec![
            put("ConfigMap/a", 1, 10, 0),
            put("ConfigMap/a", 2, 11, 10),
            put("ConfigMap/b", 3, 12, 11),
            other("ConfigMap/b", Change::Delete, Outcome::Acknowledged(None)),
            other("ConfigMap/a", Change::Put(4), Outcome::Lost),
            other("ConfigMap/c", Change::Put(5), Outcome::Done),
            put("Pod/p", 6, 15, 12),
            put(LAST, 7, 16, 15),
            seen("ConfigMap/a", 1, 10, false),
            seen("ConfigMap/a", 2, 11, false),
            seen("ConfigMap/b", 3, 12, false),
            seen("ConfigMap/b", 3, 13, true),
            seen("ConfigMap/c", 5, 14, false),
            seen(LAST, 7, 16, false),
        ]
    }

    fn end() -> BTreeMap<String, Found> {
        [("ConfigMap/a", 2, 11), ("ConfigMap/c", 5, 14), ("Pod/p", 6, 20), (LAST, 7, 16)]
            .map(|(object, n, revision)| (object.to_owned(), Found { n, revision }))
            .into()
    }

    fn judge(journal: Vec<Line>, end: &BTreeMap<String, Found>) -> (usize, usize, usize) {
        let ledger = Ledger::new(journal);
        let none = BTreeSet::new();
        (ledger.lost_writes(end, &none).len(), ledger.revisions_going_back().len(), ledger.watch_gaps().len())
    }

    #[test]
    fn what_is_well_is_not_complained_of() {
        assert_eq!(judge(good(), &end()), (0, 0, 0));
        let ledger = Ledger::new(good());
        assert_eq!((ledger.acknowledged(), ledger.unanswered()), (6, 2));
        assert_eq!(ledger.acknowledged_by_kind()["Pod"], 1);
    }

    #[test]
    fn a_write_that_was_lost_is_seen() {
        for (object, wrong) in [
            ("ConfigMap/a", Some(Found { n: 1, revision: 10 })),
            ("ConfigMap/a", Some(Found { n: 2, revision: 12 })),
            ("ConfigMap/a", None),
            ("ConfigMap/b", Some(Found { n: 3, revision: 12 })),
            ("ConfigMap/x", Some(Found { n: 3, revision: 12 })),
            ("Pod/p", None),
            ("Pod/p", Some(Found { n: 6, revision: 14 })),
        ] {
            let mut end = end();
            match wrong {
                Some(found) => drop(end.insert(object.to_owned(), found)),
                None => drop(end.remove(object)),
            }
            assert_eq!(judge(good(), &end), (1, 0, 0), "{object} {wrong:?}");
        }
        let mut journal = good();
        let refused = Outcome::Refused(404, "not found".into());
        journal.push(other("ConfigMap/a", Change::Put(8), refused));
        assert_eq!(judge(journal, &end()), (1, 0, 0));
    }

    #[test]
    fn a_pod_may_go_with_its_node() {
        let ledger = Ledger::new(good());
        let mut end = end();
        end.remove("Pod/p");
        assert_eq!(ledger.lost_writes(&end, &["Pod/p".to_owned()].into()), Vec::<String>::new());
    }

    #[test]
    fn a_revision_that_goes_back_is_seen() {
        let mut journal = good();
        journal.push(put("Pod/q", 9, 15, 16));
        let mut end = end();
        end.insert("Pod/q".into(), Found { n: 9, revision: 15 });
        assert_eq!(judge(journal, &end), (0, 1, 0));
        let mut journal = good();
        journal.swap(8, 9);
        // In another order than it was done in, too.
        assert_eq!(judge(journal, &self::end()), (0, 1, 1));
    }

    #[test]
    fn a_gap_in_a_watch_is_seen() {
        for missing in 8..14 {
            let mut journal = good();
            journal.remove(missing);
            assert!(judge(journal, &end()).2 > 0, "without line {missing}");
        }
        let mut journal = good();
        journal.push(seen("ConfigMap/z", 1, 30, false));
        journal.push(Line::Gap { kind: "ConfigMap".into(), why: "410 Gone".into() });
        assert_eq!(judge(journal, &end()), (0, 0, 2));
    }
}
