//! What one writer did, and what must be seen of it.

use std::collections::BTreeMap;

/// A write of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Made or changed, with this number.
    Put(u64),
    /// Deleted.
    Delete,
}

/// What is known of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, at this resourceVersion where the answer told it.
    Acknowledged(Option<u64>),
    /// The answer never came.
    Unknown,
    /// The answer never came, but the write was done.
    Done,
    /// The answer never came, and the write was not done.
    Lost,
}

/// A change of an object as a watch showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub name: String,
    pub write: Write,
    pub revision: u64,
}

/// One writer's writes, in order. Nobody else writes its objects.
#[derive(Debug, Default)]
pub struct Log {
    writes: Vec<(String, Write, Outcome)>,
    state: BTreeMap<String, u64>,
}

impl Log {
    /// Number of the next write.
    pub fn next(&self) -> u64 {
        self.writes.len() as u64
    }

    /// The number that an object has, if it exists.
    pub fn state(&self, name: &str) -> Option<u64> {
        self.state.get(name).copied()
    }

    pub fn push(&mut self, name: &str, write: Write, outcome: Outcome) {
        if outcome != Outcome::Unknown {
            self.apply(name, write);
        }
        self.writes.push((name.to_owned(), write, outcome));
    }

    fn apply(&mut self, name: &str, write: Write) {
        match write {
            Write::Put(n) => drop(self.state.insert(name.to_owned(), n)),
            Write::Delete => drop(self.state.remove(name)),
        }
    }

    /// Decides what became of the write without an answer, and that the rest is as it was acknowledged. `found` has
    /// each object's number and resourceVersion.
    pub fn settle(&mut self, found: &BTreeMap<String, (u64, u64)>) {
        let numbers: BTreeMap<String, u64> = found.iter().map(|(name, (n, _))| (name.clone(), *n)).collect();
        let last = self.writes.len() - 1;
        if self.writes[last].2 == Outcome::Unknown {
            let (name, write, _) = self.writes[last].clone();
            if self.state == numbers {
                self.writes[last].2 = Outcome::Lost;
            } else {
                self.apply(&name, write);
                self.writes[last].2 = Outcome::Done;
            }
        }
        assert_eq!(
            self.state, numbers,
            "objects after the restart; the last write was {:?}",
            self.writes[last]
        );
        for (name, write, outcome) in &self.writes {
            let (Write::Put(n), Outcome::Acknowledged(Some(revision))) = (write, outcome) else { continue };
            if let Some((found, at)) = found.get(name)
                && found == n
            {
                assert_eq!(at, revision, "{name}: its resourceVersion changed over the restart");
            }
        }
    }

    /// How many writes were done without an answer.
    pub fn applied_unknown(&self) -> usize {
        self.writes.iter().filter(|(_, _, outcome)| *outcome == Outcome::Done).count()
    }

    /// A watch must have shown exactly what was done, in that order.
    pub fn compare(&self, seen: &[Change]) {
        let done = self.writes.iter().filter(|(_, _, outcome)| *outcome != Outcome::Lost).collect::<Vec<_>>();
        for ((name, write, outcome), change) in done.iter().zip(seen) {
            assert_eq!((name, write), (&change.name, &change.write), "a gap, or an order that never was");
            if let Outcome::Acknowledged(Some(revision)) = outcome {
                assert_eq!(*revision, change.revision, "{name}: as acknowledged and as watched");
            }
        }
        assert_eq!(done.len(), seen.len(), "changes seen of one writer");
    }
}
