//! Steps on the screen: what is being done, and when done how long it took.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints steps as they run and keeps their times.
#[derive(Default)]
pub struct Steps {
    done: Vec<(String, Duration)>,
}

impl Steps {
    /// No step yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs one step. On a terminal a spinner turns meanwhile; a line with the time taken stays.
    pub fn step<T>(&mut self, name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("  {spinner} {msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.set_message(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        bar.finish_and_clear();
        let mark = if result.is_ok() { "ok  " } else { "FAIL" };
        eprintln!("  {mark} {name:<52} {:>8.2} s", took.as_secs_f64());
        self.done.push((name.to_owned(), took));
        result
    }

    /// Total of all steps so far.
    pub fn total(&self) -> Duration {
        self.done.iter().map(|(_, took)| *took).sum()
    }

    /// Each step with its time, in order.
    pub fn done(&self) -> &[(String, Duration)] {
        &self.done
    }
}
