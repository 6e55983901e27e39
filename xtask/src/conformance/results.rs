//! What a run found: read from ginkgo's reports, kept line by line as it comes in, told as table, JSON and JUnit.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::names;

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed, or the process that ran it ended without a result for it.
    Failed,
    /// The suite chose not to run it here; the message says why.
    Skipped,
}

/// One test's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestResult {
    /// Upstream's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// Why it failed or was skipped; empty when it passed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A test of ginkgo's JSON report, with what it printed.
#[derive(Debug)]
pub struct Reported {
    /// The result.
    pub result: TestResult,
    /// The test's own output.
    pub output: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    #[serde(default)]
    state: String,
    /// Nanoseconds.
    #[serde(default)]
    run_time: f64,
    #[serde(default)]
    failure: Option<Failure>,
    #[serde(default)]
    captured_ginkgo_writer_output: String,
    #[serde(default, rename = "CapturedStdOutErr")]
    captured_std_out_err: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
    #[serde(default)]
    location: Location,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Location {
    #[serde(default)]
    file_name: String,
    #[serde(default)]
    line_number: u64,
}

/// Reads ginkgo's JSON report (`--ginkgo.json-report`): the tests among `asked` that it has a result for.
///
/// A failure of the suite's own set-up has no name of a test; it becomes every asked test's failure.
pub fn read_report(bytes: &[u8], asked: &[String]) -> Result<Vec<Reported>> {
    let reports: Vec<Report> = serde_json::from_slice(bytes).context("read ginkgo's JSON report")?;
    let mut found = Vec::new();
    let mut suite_failure = None;
    for spec in reports.into_iter().flat_map(|report| report.spec_reports.unwrap_or_default()) {
        let message = spec.failure.as_ref().map(|failure| {
            let file = failure.location.file_name.rsplit('/').next().unwrap_or_default();
            format!("{} ({file}:{})", failure.message.trim(), failure.location.line_number)
        });
        if spec.leaf_node_type != "It" {
            if !matches!(spec.state.as_str(), "passed" | "skipped" | "pending" | "") {
                suite_failure = Some((spec.leaf_node_type, message.unwrap_or_default()));
            }
            continue;
        }
        let mut texts = spec.container_hierarchy_texts.unwrap_or_default();
        texts.push(spec.leaf_node_text);
        let name = squeeze(&texts.join(" "));
        let Some(name) = asked.iter().find(|asked| squeeze(asked) == name) else { continue };
        let outcome = match spec.state.as_str() {
            "passed" => Outcome::Passed,
            "skipped" | "pending" => Outcome::Skipped,
            _ => Outcome::Failed,
        };
        // Skipped without a reason: it was not reached.
        if outcome == Outcome::Skipped && message.is_none() && spec.state == "skipped" {
            continue;
        }
        found.push(Reported {
            result: TestResult {
                name: name.clone(),
                outcome,
                seconds: (spec.run_time / 1e7).round() / 100.0,
                message: message.unwrap_or_default(),
            },
            output: format!("{}{}", spec.captured_std_out_err, spec.captured_ginkgo_writer_output),
        });
    }
    if let Some((node, message)) = suite_failure
        && found.is_empty()
    {
        for name in asked {
            found.push(Reported {
                result: TestResult {
                    name: name.clone(),
                    outcome: Outcome::Failed,
                    seconds: 0.0,
                    message: format!("{node}: {message}"),
                },
                output: String::new(),
            });
        }
    }
    Ok(found)
}

fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Results as they come in, a JSON object a line: what an interrupted run goes on from.
pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens the journal for appending; gives what it holds. A line cut off by an interruption is ignored.
    pub fn open(path: &Path) -> Result<(Self, Vec<TestResult>)> {
        let known = fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let file = File::options().create(true).append(true).open(path)?;
        Ok((Self { file }, known))
    }

    /// Appends a result.
    pub fn add(&mut self, result: &TestResult) -> Result<()> {
        let mut line = serde_json::to_vec(result)?;
        line.insert(0, b'\n');
        self.file.write_all(&line)?;
        Ok(())
    }
}

/// Counts of one group.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that did not run.
    pub skipped: usize,
}

/// Counts by group.
pub fn summary(results: &[TestResult]) -> BTreeMap<String, Counts> {
    let mut table: BTreeMap<String, Counts> = BTreeMap::new();
    for result in results {
        let counts = table.entry(names::sig(&result.name).to_owned()).or_default();
        match result.outcome {
            Outcome::Passed => counts.passed += 1,
            Outcome::Failed => counts.failed += 1,
            Outcome::Skipped => counts.skipped += 1,
        }
    }
    table
}

/// First line of a message, short enough for a table.
pub fn first_line(message: &str) -> String {
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let short: String = line.chars().take(240).collect();
    if short.len() < line.len() { format!("{short}…") } else { short }
}

/// The table by group, and each failure's first line.
pub fn table(results: &[TestResult]) -> String {
    let mut text = format!("{:<24} {:>7} {:>7} {:>8}\n", "", "passed", "failed", "skipped");
    let mut total = Counts::default();
    for (sig, counts) in summary(results) {
        text.push_str(&format!(
            "{sig:<24} {:>7} {:>7} {:>8}\n",
            counts.passed, counts.failed, counts.skipped
        ));
        total.passed += counts.passed;
        total.failed += counts.failed;
        total.skipped += counts.skipped;
    }
    text.push_str(&format!("{:<24} {:>7} {:>7} {:>8}\n", "total", total.passed, total.failed, total.skipped));
    for (title, outcome) in [("failed", Outcome::Failed), ("skipped", Outcome::Skipped)] {
        let mut some: Vec<_> = results.iter().filter(|result| result.outcome == outcome).collect();
        some.sort_by(|a, b| a.name.cmp(&b.name));
        if !some.is_empty() {
            text.push_str(&format!("\n{title}:\n"));
        }
        for result in some {
            text.push_str(&format!("  {}\n      {}\n", result.name, first_line(&result.message)));
        }
    }
    text
}

/// A JUnit report of the results.
pub fn junit(results: &[TestResult]) -> Result<String> {
    use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
    let mut report = Report::new("conformance");
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for result in results {
        let mut status = match result.outcome {
            Outcome::Passed => TestCaseStatus::success(),
            Outcome::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
            Outcome::Skipped => TestCaseStatus::skipped(),
        };
        if result.outcome != Outcome::Passed {
            status.set_message(first_line(&result.message));
            status.set_description(result.message.clone());
        }
        let mut case = TestCase::new(result.name.clone(), status);
        case.set_time(std::time::Duration::from_secs_f64(result.seconds.max(0.0)));
        let sig = names::sig(&result.name);
        suites.entry(sig).or_insert_with(|| TestSuite::new(sig)).add_test_case(case);
    }
    report.add_test_suites(suites.into_values());
    report.to_string().context("write JUnit")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Vec<String> {
        ["[sig-a] one runs", "[sig-a] one fails", "[sig-b] is skipped", "[sig-b] not reached"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn a_report_gives_outcomes_by_name() {
        let report = serde_json::json!([{"SpecReports": [
            {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
            {"ContainerHierarchyTexts": ["[sig-a] one"], "LeafNodeType": "It", "LeafNodeText": "runs", "State": "passed",
             "RunTime": 1_500_000_000u64},
            {"ContainerHierarchyTexts": ["[sig-a] one"], "LeafNodeType": "It", "LeafNodeText": "fails", "State": "timedout",
             "Failure": {"Message": "late\nvery", "Location": {"FileName": "/a/b.go", "LineNumber": 7}}},
            {"ContainerHierarchyTexts": ["[sig-b]"], "LeafNodeType": "It", "LeafNodeText": "is skipped", "State": "skipped",
             "Failure": {"Message": "needs more"}},
            {"ContainerHierarchyTexts": ["[sig-b]"], "LeafNodeType": "It", "LeafNodeText": "not reached", "State": "skipped"},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "It", "LeafNodeText": "other", "State": "skipped"},
        ]}]);
        let found = read_report(report.to_string().as_bytes(), &asked()).unwrap();
        let short: Vec<_> = found.iter().map(|r| (r.result.name.as_str(), r.result.outcome)).collect();
        assert_eq!(
            short,
            [
                ("[sig-a] one runs", Outcome::Passed),
                ("[sig-a] one fails", Outcome::Failed),
                ("[sig-b] is skipped", Outcome::Skipped)
            ]
        );
        assert_eq!(found[0].result.seconds, 1.5);
        assert_eq!(found[1].result.message, "late\nvery (b.go:7)");
        let results: Vec<_> = found.into_iter().map(|r| r.result).collect();
        assert_eq!(summary(&results)["sig-a"], Counts { passed: 1, failed: 1, skipped: 0 });
        assert!(table(&results).contains("late"), "{}", table(&results));
        assert!(junit(&results).unwrap().contains("<failure"));
    }

    #[test]
    fn a_failed_set_up_fails_every_test() {
        let report = serde_json::json!([{"SpecReports": [
            {"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed", "Failure": {"Message": "no node"}},
        ]}]);
        let found = read_report(report.to_string().as_bytes(), &asked()).unwrap();
        assert_eq!(found.len(), 4);
        assert!(found[0].result.message.starts_with("SynchronizedBeforeSuite: no node"));
    }

    #[test]
    fn a_journal_survives_being_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.jsonl");
        let result = |name: &str| TestResult {
            name: name.into(),
            outcome: Outcome::Passed,
            seconds: 1.0,
            message: String::new(),
        };
        let (mut journal, known) = Journal::open(&path).unwrap();
        assert!(known.is_empty());
        journal.add(&result("a")).unwrap();
        journal.add(&result("b")).unwrap();
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 3]).unwrap();
        let (mut journal, known) = Journal::open(&path).unwrap();
        assert_eq!(known, [result("a")]);
        journal.add(&result("c")).unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, [result("a"), result("c")]);
    }
}
