//! Running tests: workers that take a few tests at a time and give each batch to a process of the suite inside a test
//! host.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keelson_tests::testbed::host::Host;

use super::names;
use super::results::{Journal, Outcome, TestResult, first_line, read_report};

/// Set when the user asked to stop.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How the suite is called.
pub struct Runner<'a> {
    /// The host it runs in: a node, whose Service programs balance the suite's own connections.
    pub host: &'a Host,
    /// `e2e.test`.
    pub program: PathBuf,
    /// kubectl of the same release.
    pub kubectl: PathBuf,
    /// Kubeconfig and list of registries, as the host sees them.
    pub kubeconfig: String,
    /// The suite's switch for alternative registries, unless upstream's names are good.
    pub repo_list: Option<String>,
    /// Where the output of tests that did not pass is kept.
    pub output: PathBuf,
    /// Longest time for one batch.
    pub limit: Duration,
}

/// State that the workers share.
struct Shared {
    queue: VecDeque<String>,
    journal: Journal,
    results: Vec<TestResult>,
    total: usize,
}

impl Runner<'_> {
    /// Runs the tests with `workers` processes side by side; each result is in the journal when it is known. Tests that
    /// were not run because of an interruption have none.
    pub fn run(
        &self,
        tests: &[String],
        workers: usize,
        journal: Journal,
    ) -> Result<(Vec<TestResult>, Journal)> {
        let shared = Mutex::new(Shared {
            queue: tests.iter().cloned().collect(),
            journal,
            results: Vec::new(),
            total: tests.len(),
        });
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..workers.min(tests.len()))
                .map(|n| {
                    (
                        n,
                        scope.spawn({
                            let shared = &shared;
                            move || self.work(n, workers, shared)
                        }),
                    )
                })
                .collect();
            for (n, thread) in threads {
                match thread.join() {
                    Ok(result) => result.with_context(|| format!("worker {n}"))?,
                    Err(_panic) => anyhow::bail!("worker {n} panicked"),
                }
            }
            Ok(())
        })?;
        let shared = match shared.into_inner() {
            Ok(shared) => shared,
            Err(poisoned) => poisoned.into_inner(),
        };
        Ok((shared.results, shared.journal))
    }

    fn work(&self, worker: usize, workers: usize, shared: &Mutex<Shared>) -> Result<()> {
        let mut batch_number = 0;
        loop {
            let batch: Vec<String> = {
                let mut shared = lock(shared);
                if INTERRUPTED.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let size = names::chunk_size(shared.queue.len(), workers).min(shared.queue.len());
                shared.queue.drain(..size).collect()
            };
            if batch.is_empty() {
                return Ok(());
            }
            batch_number += 1;
            let results = self.batch(&format!("{worker}-{batch_number}"), &batch)?;
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Ok(());
            }
            let mut shared = lock(shared);
            for result in results {
                shared.journal.add(&result)?;
                shared.results.push(result.clone());
                let mark = match result.outcome {
                    Outcome::Passed => "ok  ",
                    Outcome::Failed => "FAIL",
                    Outcome::Skipped => "skip",
                };
                eprintln!(
                    "  {mark} [{}/{}] {} {:.1} s",
                    shared.results.len(),
                    shared.total,
                    result.name,
                    result.seconds
                );
                if result.outcome == Outcome::Failed {
                    eprintln!("         {}", first_line(&result.message));
                }
            }
        }
    }

    /// Runs a batch; a test whose process ended without a result for it is run once more by itself.
    fn batch(&self, id: &str, batch: &[String]) -> Result<Vec<TestResult>> {
        let (mut results, why) = self.process(id, batch)?;
        let missing: Vec<String> = batch
            .iter()
            .filter(|name| !results.iter().any(|result| result.name == **name))
            .cloned()
            .collect();
        for (n, name) in missing.into_iter().enumerate() {
            let mut reason = why.clone();
            if batch.len() > 1 && !INTERRUPTED.load(Ordering::Relaxed) {
                let (again, why) = self.process(&format!("{id}-{n}"), std::slice::from_ref(&name))?;
                if !again.is_empty() {
                    results.extend(again);
                    continue;
                }
                reason = why;
            }
            let message = format!("the suite's process gave no result: {reason}");
            results.push(TestResult { name, outcome: Outcome::Failed, seconds: 0.0, message });
        }
        Ok(results)
    }

    fn process(&self, id: &str, tests: &[String]) -> Result<(Vec<TestResult>, String)> {
        // As the machine and as the host see the folder.
        let outside = self.host.dir.join("var/log/conformance").join(id);
        let inside = format!("/var/log/conformance/{id}");
        fs::create_dir_all(&outside)?;
        let log = outside.join("log");
        let mut command = self.host.command("conformance", &self.program.to_string_lossy());
        self.arguments(&mut command, &inside, tests);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?);
        let mut child = command.spawn().context("start the suite")?;
        let ended = wait(&mut child, self.limit + Duration::from_secs(90))?;
        let report = fs::read(outside.join("report.json")).unwrap_or_default();
        let reported = if report.is_empty() { Vec::new() } else { read_report(&report, tests)? };
        let mut results = Vec::new();
        for one in reported {
            if one.result.outcome != Outcome::Passed {
                let text = format!("{}\n\n{}\n\n{}", one.result.name, one.result.message, one.output);
                fs::write(self.output.join(format!("{}.log", slug(&one.result.name))), text)?;
            }
            results.push(one.result);
        }
        let tail = tail(&log);
        if results.len() == tests.len() {
            let _ = fs::remove_dir_all(&outside);
        } else {
            fs::write(self.output.join(format!("process-{id}.log")), fs::read(&log).unwrap_or_default())?;
        }
        Ok((results, format!("{ended}; it printed last: {tail}")))
    }

    fn arguments(&self, command: &mut Command, inside: &str, tests: &[String]) {
        command
            .arg(format!("--ginkgo.focus={}", names::focus_of(tests)))
            .arg(format!("--ginkgo.json-report={inside}/report.json"))
            .arg(format!("--ginkgo.timeout={}s", self.limit.as_secs()))
            .args(["--ginkgo.silence-skips", "--ginkgo.no-color", "--ginkgo.vv=false"])
            .arg(format!("--kubeconfig={}", self.kubeconfig))
            .arg(format!("--kubectl-path={}", self.kubectl.display()))
            .arg(format!("--report-dir={inside}"))
            .arg(format!("--e2e-output-dir={inside}"))
            .args(["--provider=skeleton", "--dump-logs-on-failure=true", "--disable-log-dump=true"])
            // Two cores carry the nodes, the control plane and the suite: the default client limits are kept.
            .args(["--minStartupPods=0", "--allowed-not-ready-nodes=0"])
            // By environment, since some of the suite's images are chosen before it reads its flags.
            .envs(self.repo_list.iter().map(|list| ("KUBE_TEST_REPO_LIST", list)))
            .env("HOME", "/root")
            .env("TMPDIR", "/tmp");
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    match shared.lock() {
        Ok(guard) => guard,
        Err(poisoned) => poisoned.into_inner(),
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<String> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(format!("it ended with {status}"));
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            child.kill()?;
            child.wait()?;
            return Ok("it was interrupted".to_owned());
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(format!("it was ended after {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// A file name for a test.
fn slug(name: &str) -> String {
    let mut slug: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(150)
        .collect();
    while slug.contains("--") {
        slug = slug.replace("--", "-");
    }
    slug.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_file_name() {
        assert_eq!(slug("[sig-node] Pods: run /x (y)"), "sig-node-pods-run-x-y");
    }
}
