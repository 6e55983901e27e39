//! What is written about a run: the table, summary.json, junit.xml and, for a run with `--vm` to join, results.json.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result};
use keelson_tests::paths;
use serde::{Deserialize, Serialize};

use super::results::{self, Outcome, TestResult};
use super::{ConformanceArgs, ratchet, suite};

/// What a run found.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The commit that was checked out.
    pub commit: String,
    /// A result of each test.
    pub results: Vec<TestResult>,
    /// Images that could not be made, with the reasons.
    pub images_not_made: Vec<(String, String)>,
}

impl Found {
    /// What the last run in this checkout found, if there was one.
    pub fn last() -> Result<Option<Self>> {
        let path = file();
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).with_context(|| format!("read {}", path.display()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// This with what an earlier run found of other tests. Results of another commit say nothing about this one: they are
    /// left out, and a line says so.
    pub fn joined(mut self, earlier: Option<Self>) -> Self {
        match earlier {
            Some(earlier) if earlier.commit == self.commit => {
                let other = |old: &TestResult| self.results.iter().all(|one| one.name != old.name);
                let others: Vec<_> = earlier.results.into_iter().filter(other).collect();
                self.results.extend(others);
                self.images_not_made.extend(earlier.images_not_made);
                self.images_not_made.sort();
                self.images_not_made.dedup();
            }
            Some(earlier) => println!(
                "the last run was of commit {}, this is {}: its results are not joined",
                earlier.commit, self.commit
            ),
            None => {}
        }
        self.results.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }
}

fn file() -> PathBuf {
    paths::target().join("conformance/results.json")
}

/// What `--record` keeps.
#[derive(Serialize)]
struct Latest<'a> {
    commit: &'a str,
    suite: &'a str,
    nodes: u16,
    tests: usize,
    by_sig: BTreeMap<String, results::Counts>,
    failed: Vec<(&'a str, String)>,
    skipped: Vec<(&'a str, String)>,
    images_not_made: &'a [(String, String)],
}

/// Prints the table, and writes the files.
pub fn report(args: &ConformanceArgs, found: &Found) -> Result<()> {
    let results = &found.results;
    let base = paths::target().join("conformance");
    let by_sig = results::summary(results);
    fs::write(base.join("summary.json"), serde_json::to_vec_pretty(&by_sig)?)?;
    fs::write(base.join("junit.xml"), results::junit(results)?)?;
    fs::write(file(), serde_json::to_vec_pretty(found)?)?;
    println!("\n{}", results::table(results));
    println!(
        "summary: {}\nJUnit:   {}",
        base.join("summary.json").display(),
        base.join("junit.xml").display()
    );
    if args.record {
        let of = |outcome| {
            results
                .iter()
                .filter(|one| one.outcome == outcome)
                .map(|one| (one.name.as_str(), results::first_line(&one.message)))
                .collect()
        };
        let latest = Latest {
            commit: &found.commit,
            suite: suite::VERSION,
            nodes: args.nodes,
            tests: results.len(),
            failed: of(Outcome::Failed),
            skipped: of(Outcome::Skipped),
            by_sig,
            images_not_made: &found.images_not_made,
        };
        let path = ratchet::dir().join("latest.json");
        fs::write(&path, serde_json::to_string_pretty(&latest)? + "\n")?;
        println!("record:  {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(commit: &str, results: &[(&str, Outcome)], image: &str) -> Found {
        let result = |&(name, outcome): &(&str, Outcome)| TestResult {
            name: name.to_owned(),
            outcome,
            seconds: 1.0,
            message: String::new(),
        };
        Found {
            commit: commit.to_owned(),
            results: results.iter().map(result).collect(),
            images_not_made: vec![(image.to_owned(), "why".to_owned())],
        }
    }

    #[test]
    fn a_guests_results_take_the_place_of_what_was_skipped_here() {
        use Outcome::{Failed, Passed, Skipped};
        let here = found("a", &[("[sig-a] 1", Failed), ("[sig-a] 3", Passed), ("[sig-a] 2", Skipped)], "x");
        let guest = || found("a", &[("[sig-a] 2", Passed)], "x");
        let joined = guest().joined(Some(here));
        assert_eq!(
            joined,
            found("a", &[("[sig-a] 1", Failed), ("[sig-a] 2", Passed), ("[sig-a] 3", Passed)], "x")
        );
        let counts = results::summary(&joined.results)["sig-a"].clone();
        assert_eq!(counts, results::Counts { passed: 2, failed: 1, skipped: 0 });
        // Nothing is doubled when the guest runs again.
        assert_eq!(guest().joined(Some(guest().joined(None))), guest());
    }

    #[test]
    fn results_of_another_commit_are_not_joined() {
        let old = found("a", &[("[sig-a] 1", Outcome::Passed)], "x");
        let new = || found("b", &[("[sig-a] 2", Outcome::Failed)], "y");
        assert_eq!(new().joined(Some(old)), new());
    }
}
