//! What a long run leaves beside the commit that it was made on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

/// How long restarts took.
pub fn restarts(stored: usize, mut ready: Vec<Duration>) -> Value {
    ready.sort();
    let milliseconds: Vec<u128> = ready.iter().map(Duration::as_millis).collect();
    let median = milliseconds[milliseconds.len() / 2];
    println!("median of {} restarts over {stored} objects: {median} ms", ready.len());
    json!({ "objects": stored, "ready_ms": milliseconds, "median_ms": median })
}

/// Writes `tests/crash/master.json`, unless it was another program than the one built here.
pub fn record(mut summary: Value) {
    if std::env::var_os("KEELSON_MASTER").is_some() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(root).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    summary["commit"] = git(&["rev-parse", "HEAD"]).into();
    summary["changed_since_commit"] =
        (!git(&["status", "--porcelain", "--untracked-files=no"]).is_empty()).into();
    summary["optimised"] = (!cfg!(debug_assertions)).into();
    summary["cpus"] = std::thread::available_parallelism().unwrap().get().into();
    std::fs::write(root.join("tests/crash/master.json"), format!("{summary:#}\n")).unwrap();
}
