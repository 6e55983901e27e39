//! What came of a run: a table, and `target/chaos/SEED.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::faults::Done;
use super::plan::Plan;
use crate::checkout;

/// What is not broken here, and why. (Packets are lost, delayed and reordered without the queue netem, which not every
/// kernel has.)
pub const NOT_HAD: &[(&str, &str)] = &[
    ("OOM of a pod", "limits of memory need the whole of cgroup v2, so a guest in QEMU"),
    ("jumps of the clock", "test hosts have the machine's own clock; a guest in QEMU has one"),
];

/// Something that must be true, and what speaks against it.
#[derive(Debug, Serialize)]
pub struct Invariant {
    /// What must be true.
    pub name: &'static str,
    /// Nothing, if it is.
    pub broken: Vec<String>,
}

/// What came of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was planned.
    pub plan: Plan,
    /// What was done.
    pub done: Vec<Done>,
    /// Writes acknowledged, by kind of object.
    pub acknowledged: BTreeMap<String, usize>,
    /// Writes without an answer.
    pub unanswered: usize,
    /// Answers that clients of Services got, and requests of theirs that failed, while things were broken.
    pub answers: (usize, usize),
    /// Seconds from the last fault's end until the cluster was at rest.
    pub quiet_after: u64,
    /// What came to rest last.
    pub rested_last: Vec<String>,
    /// What must be true.
    pub invariants: Vec<Invariant>,
}

/// The most that is printed of what speaks against an invariant.
const SHOWN: usize = 12;

impl Report {
    /// Whether any invariant is broken.
    pub fn broken(&self) -> bool {
        self.invariants.iter().any(|invariant| !invariant.broken.is_empty())
    }

    /// As text for the screen.
    pub fn table(&self) -> String {
        let mut rows = vec![String::new(), "faults".to_owned()];
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for done in &self.done {
            *counts.entry(done.fault.to_string()).or_default() += 1;
        }
        rows.extend(counts.iter().map(|(fault, count)| format!("  {fault:<46} {count:>9}")));
        rows.extend(NOT_HAD.iter().map(|(fault, why)| format!("  {fault:<46} not here: {why}")));
        rows.push("writes acknowledged".to_owned());
        rows.extend(self.acknowledged.iter().map(|(kind, count)| format!("  {kind:<46} {count:>9}")));
        rows.push(format!("  {:<46} {:>9}", "without an answer", self.unanswered));
        rows.push("clients of Services meanwhile".to_owned());
        rows.push(format!("  {:<46} {:>9}", "answered", self.answers.0));
        rows.push(format!("  {:<46} {:>9}", "failed", self.answers.1));
        rows.push(format!("at rest after {} s; last:", self.quiet_after));
        rows.extend(self.rested_last.iter().take(SHOWN).map(|what| format!("  {what}")));
        rows.push("invariants".to_owned());
        for invariant in &self.invariants {
            let verdict = if invariant.broken.is_empty() { "ok" } else { "BROKEN" };
            rows.push(format!("  {:<46} {verdict:>9}", invariant.name));
            rows.extend(invariant.broken.iter().take(SHOWN).map(|detail| format!("      {detail}")));
            if let Some(more) = invariant.broken.len().checked_sub(SHOWN).filter(|more| *more > 0) {
                rows.push(format!("      and {more} more"));
            }
        }
        rows.join("\n")
    }

    /// Writes it, with the commit.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut document = serde_json::to_value(self)?;
        let (commit, changed) = checkout::commit()?;
        document["commit"] = commit.into();
        document["changed_since_commit"] = changed.into();
        document["not_had"] = NOT_HAD.iter().map(|(fault, why)| format!("{fault}: {why}")).collect();
        fs::write(path, format!("{document:#}\n")).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_invariant_breaks_the_run_and_is_shown() {
        let mut report = Report {
            plan: Plan::new(1, 20, 3),
            done: Vec::new(),
            acknowledged: [("ConfigMap".to_owned(), 12)].into(),
            unanswered: 3,
            answers: (4, 5),
            quiet_after: 6,
            rested_last: Vec::new(),
            invariants: vec![Invariant { name: "first", broken: Vec::new() }],
        };
        assert!(!report.broken() && !report.table().contains("BROKEN"));
        let details = (0..20).map(|n| format!("detail {n}")).collect();
        report.invariants.push(Invariant { name: "second", broken: details });
        assert!(report.broken());
        let table = report.table();
        assert!(
            table.contains("BROKEN") && table.contains("detail 11") && table.contains("and 8 more"),
            "{table}"
        );
    }
}
