//! The lists under tests/conformance: what passes and must go on passing, what can never pass here, what needs QEMU.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use keelson_tests::paths;

/// Folder of the lists.
pub fn dir() -> PathBuf {
    paths::root().join("tests/conformance")
}

fn read(name: &str) -> Result<String> {
    let path = dir().join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// Names of `passing.txt`, in their order.
pub fn passing() -> Result<Vec<String>> {
    Ok(lines(&read("passing.txt")?))
}

/// Names of `vm.txt`.
pub fn in_vm() -> Result<Vec<String>> {
    Ok(lines(&read("vm.txt")?))
}

/// Names of `excluded.txt` with their reasons: a name a line, then its reason on an indented line.
pub fn excluded() -> Result<Vec<(String, String)>> {
    excluded_in(&read("excluded.txt")?)
}

fn lines(text: &str) -> Vec<String> {
    text.lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn excluded_in(text: &str) -> Result<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in lines(text) {
        if line.starts_with(char::is_whitespace) {
            let Some((_, reason)) = found.last_mut() else {
                bail!("excluded.txt starts with a reason: {line}")
            };
            if !reason.is_empty() {
                reason.push(' ');
            }
            reason.push_str(line.trim());
        } else {
            found.push((line, String::new()));
        }
    }
    if let Some((name, _)) = found.iter().find(|(_, reason)| reason.is_empty()) {
        bail!("excluded.txt gives no reason for: {name}");
    }
    Ok(found)
}

/// Adds names to `passing.txt`, which stays sorted and without doubles.
pub fn admit(names: &[String]) -> Result<usize> {
    let text = read("passing.txt")?;
    let head: String =
        text.lines().take_while(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let mut all: BTreeSet<String> = lines(&text).into_iter().collect();
    let before = all.len();
    all.extend(names.iter().cloned());
    let body: String = all.iter().map(|name| format!("{name}\n")).collect();
    fs::write(dir().join("passing.txt"), head + &body)?;
    Ok(all.len() - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_tests_have_a_reason() {
        let text = "# why\n[sig-a] x\n    needs a kernel\n    with y\n[sig-b] z\n    none\n";
        let found = excluded_in(text).unwrap();
        assert_eq!(found[0], ("[sig-a] x".to_owned(), "needs a kernel with y".to_owned()));
        assert_eq!(found.len(), 2);
        assert!(excluded_in("[sig-a] x\n").is_err());
        assert!(excluded_in("  y\n").is_err());
    }

    #[test]
    fn the_committed_lists_are_sorted_and_agree() {
        let passing = passing().unwrap();
        let mut sorted = passing.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(passing, sorted, "passing.txt is sorted and has no doubles");
        for (name, _) in excluded().unwrap() {
            assert!(!passing.contains(&name), "passes and is excluded: {name}");
        }
        for name in in_vm().unwrap() {
            assert!(!passing.contains(&name), "passes here and needs QEMU: {name}");
        }
    }
}
