//! What the load's client notes down, line by line: the answer to each of its writes, and what its watches show.
//! `keelson-bench chaos-load` writes it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Annotation with the number of an object's last write.
pub const NUMBER: &str = "chaos.keelson.test/n";

/// Name of the ConfigMap that is written last.
pub const LAST: &str = "ConfigMap/last";

/// What the client prints once every write is answered and shown.
pub const WRITTEN: &str = "all is written";

/// Milliseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A write is over.
    Write(Write),
    /// A watch showed an object.
    Seen(Seen),
    /// A watch could not go on where it had stopped.
    Gap {
        /// What it shows.
        kind: String,
        /// Why.
        why: String,
    },
}

/// A write of an object that nobody else writes, or at least not its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// When its answer came.
    pub at: u64,
    /// Kind and name, as in `ConfigMap/w1-2`.
    pub object: String,
    /// What was asked for.
    pub change: Change,
    /// What came of it.
    pub outcome: Outcome,
    /// The newest resourceVersion that any write had been told of before this one began.
    pub floor: u64,
}

/// A change of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Made or changed, with this number.
    Put(u64),
    /// Deleted.
    Delete,
}

/// What is known of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, at this resourceVersion where the answer told it.
    Acknowledged(Option<u64>),
    /// No answer, or that the server failed; but the object shows that the write was done.
    Done,
    /// The same, and the object shows that it was not done.
    Lost,
    /// The server saw a mistake in what was asked.
    Refused(u16, String),
}

impl Outcome {
    /// Whether the object is now as was asked.
    pub fn done(&self) -> bool {
        matches!(self, Self::Acknowledged(_) | Self::Done)
    }
}

/// An object in a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When.
    pub at: u64,
    /// Kind and name.
    pub object: String,
    /// Its resourceVersion.
    pub revision: u64,
    /// Whether it is gone.
    pub deleted: bool,
    /// Its [`NUMBER`].
    pub n: Option<u64>,
    /// More of it, if it is a pod.
    pub pod: Option<Pod>,
}

/// A pod in a watch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its node.
    pub node: Option<String>,
    /// Its address.
    pub ip: Option<String>,
    /// All its containers have ended, and none will be started again.
    pub over: bool,
}

/// Reads a journal. A line that was being written when the client was killed is not there.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut lines = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        lines.push(serde_json::from_str(&line).with_context(|| format!("in the journal: {line}"))?);
    }
    Ok(lines)
}
