//! What a container leaves as its last words. Source: upstream `getTerminationMessage` in
//! `pkg/kubelet/kuberuntime/kuberuntime_container.go`.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use keelson_cri::ContainerStatus;

/// Annotation: where the container sees the file; empty means that it has none.
pub const PATH_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub const POLICY_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePolicy";

const MAX_MESSAGE: u64 = 4096;
const MAX_LOG: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// The file on the node, one for each start: `containers/<name>/<attempt>` in the pod's folder.
pub fn file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(container).join(attempt.to_string())
}

/// Reads the message of an ended container; empty when it left none.
pub fn message(pod_dir: &Path, status: &ContainerStatus) -> String {
    let mut text = String::new();
    if status.annotations.get(PATH_ANNOTATION).is_some_and(|p| !p.is_empty()) {
        text = read_head(&file(pod_dir, &status.name, status.attempt), MAX_MESSAGE);
    }
    let fallback = status.annotations.get(POLICY_ANNOTATION).is_some_and(|p| p == "FallbackToLogsOnError");
    if text.is_empty() && fallback && status.exit_code != Some(0) {
        text = log_tail(&status.log_path);
    }
    text
}

fn read_head(path: &Path, limit: u64) -> String {
    let mut bytes = Vec::new();
    // Gone with the pod's folder, or never written: no message either way.
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(limit).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of a CRI log, without time, stream and tag.
fn log_tail(path: &Path) -> String {
    let Ok(mut file) = std::fs::File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    // Each line has some 45 bytes before its text.
    let window = (MAX_LOG + MAX_LOG_LINES * 64) as u64;
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(window))).is_err()
        || file.take(window).read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    tail_of(&String::from_utf8_lossy(&bytes))
}

/// The texts of the last lines; a partial one (tag `P`) is not ended by a newline, as upstream's reader has it.
fn tail_of(log: &str) -> String {
    let lines: Vec<(&str, &str)> = log
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(4, ' ').skip(2);
            Some((parts.next()?, parts.next()?))
        })
        .collect();
    let start = lines.len().saturating_sub(MAX_LOG_LINES);
    let mut text = String::new();
    for (tag, content) in &lines[start..] {
        text.push_str(content);
        if !tag.starts_with('P') {
            text.push('\n');
        }
    }
    if text.len() > MAX_LOG {
        let cut = (text.len() - MAX_LOG..text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.drain(..cut);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::cri_container;
    use keelson_cri::ContainerState;

    #[test]
    fn a_partial_line_is_not_ended() {
        let line = |tag: &str, text: &str| format!("2026-01-01T00:00:00Z stdout {tag} {text}\n");
        assert_eq!(tail_of(&line("P", "DONE")), "DONE");
        assert_eq!(tail_of(&[line("P", "one "), line("F", "line"), line("F", "")].concat()), "one line\n\n");
    }

    #[test]
    fn file_wins_then_log() {
        let dir = tempfile::tempdir().unwrap();
        let mut status = cri_container("a", 2, ContainerState::Exited, Some(1));
        status.log_path = dir.path().join("2.log");
        std::fs::write(
            &status.log_path,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two words\n",
        )
        .unwrap();
        assert_eq!(message(dir.path(), &status), "");
        status.annotations.insert(POLICY_ANNOTATION.into(), "FallbackToLogsOnError".into());
        assert_eq!(message(dir.path(), &status), "one\ntwo words\n");
        status.annotations.insert(PATH_ANNOTATION.into(), "/dev/termination-log".into());
        let path = file(dir.path(), "a", 2);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x".repeat(5000)).unwrap();
        assert_eq!(message(dir.path(), &status).len(), 4096);
    }

    #[test]
    fn tails() {
        let log: String = (0..200).map(|i| format!("t stdout F line {i}\n")).collect();
        let tail = tail_of(&log);
        assert!(tail.starts_with("line 120\n") && tail.ends_with("line 199\n"));
        assert!(tail_of(&format!("t stdout F {}\n", "ü".repeat(3000))).len() <= MAX_LOG);
    }
}
