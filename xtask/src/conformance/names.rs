//! Decisions about names of tests: which to run, in which order, by which expression.

use anyhow::{Context, Result};
use regex::Regex;
use sha2::{Digest, Sha256};

/// What ginkgo puts before each name when it matches a focus.
const DESCRIPTION: &str = "Kubernetes e2e suite";

/// The special interest group that owns a test: `[sig-node] …` is `sig-node`'s.
pub fn sig(name: &str) -> &str {
    name.split(['[', ']']).find(|part| part.starts_with("sig-")).unwrap_or("other")
}

/// Whether a test may not run beside others.
pub fn is_serial(name: &str) -> bool {
    name.contains("[Serial]") || name.contains("[Disruptive]")
}

/// Which tests are asked for.
#[derive(Debug, Default, Clone)]
pub struct Selection {
    /// Regular expression that a name must match; none: `\[Conformance\]`.
    pub focus: Option<String>,
    /// Regular expression that a name must not match.
    pub skip: Option<String>,
    /// The group, with or without `sig-`.
    pub sig: Option<String>,
}

impl Selection {
    /// The names that are selected, in their order.
    pub fn choose(&self, names: &[String]) -> Result<Vec<String>> {
        let focus = self.focus.as_deref().unwrap_or(r"\[Conformance\]");
        let focus = Regex::new(focus).context("--focus is no regular expression")?;
        let skip =
            self.skip.as_deref().map(Regex::new).transpose().context("--skip is no regular expression")?;
        let wanted = self.sig.as_deref().map(|sig| sig.trim_start_matches("sig-"));
        Ok(names
            .iter()
            .filter(|name| focus.is_match(name))
            .filter(|name| skip.as_ref().is_none_or(|skip| !skip.is_match(name)))
            .filter(|name| wanted.is_none_or(|wanted| sig(name).trim_start_matches("sig-") == wanted))
            .cloned()
            .collect())
    }
}

/// A ginkgo focus that matches just these tests.
pub fn focus_of(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| regex::escape(name).replace(' ', " +")).collect();
    format!("^{DESCRIPTION} +(?:{})\\s*$", names.join("|"))
}

fn rank(seed: &str, name: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.as_bytes());
    hash.update([0]);
    hash.update(name.as_bytes());
    hash.finalize().into()
}

/// `count` of the names by the hash of seed and name: each group's share is as large as its share of the names, and at
/// least one. `[Slow]` tests are left out.
pub fn sample(names: &[String], count: usize, seed: &str) -> Vec<String> {
    let mut groups: std::collections::BTreeMap<&str, Vec<&String>> = std::collections::BTreeMap::new();
    for name in names.iter().filter(|name| !name.contains("[Slow]")) {
        groups.entry(sig(name)).or_default().push(name);
    }
    let total: usize = groups.values().map(Vec::len).sum();
    let mut chosen = Vec::new();
    for members in groups.values_mut() {
        members.sort_by_key(|name| rank(seed, name));
        let share = (members.len() * count).div_ceil(total.max(1)).max(1);
        chosen.extend(members.iter().take(share).map(|name| (*name).clone()));
    }
    chosen.sort();
    chosen
}

/// How many tests a process is given at once: few, so that the workers end together and an interruption costs little,
/// yet not one by one, since the suite takes seconds to start.
pub fn chunk_size(remaining: usize, workers: usize) -> usize {
    (remaining / (workers.max(1) * 3)).clamp(1, 6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> Vec<String> {
        let mut names = Vec::new();
        for (sig, count) in [("sig-node", 60), ("sig-network", 30), ("sig-cli", 3)] {
            names.extend((0..count).map(|n| format!("[{sig}] does thing {n} [Conformance]")));
        }
        names.push("[sig-apps] waits [Slow] [Conformance]".into());
        names.push("[sig-apps] is no conformance test".into());
        names
    }

    #[test]
    fn groups_and_serial_tests_are_told_by_name() {
        assert_eq!(sig("[sig-node] [DRA] CRUD [Conformance]"), "sig-node");
        assert_eq!(sig("something"), "other");
        assert!(is_serial("[sig-apps] Daemon set [Serial] x"));
        assert!(!is_serial("[sig-apps] x"));
    }

    #[test]
    fn a_selection_is_narrowed_by_each_switch() {
        let all = names();
        assert_eq!(Selection::default().choose(&all).unwrap().len(), all.len() - 1);
        let cli = Selection { sig: Some("cli".into()), ..Default::default() };
        assert_eq!(cli.choose(&all).unwrap().len(), 3);
        let some = Selection { focus: Some("thing 1".into()), skip: Some("network".into()), sig: None };
        assert!(
            some.choose(&all)
                .unwrap()
                .iter()
                .all(|name| name.contains("thing 1") && !name.contains("network"))
        );
        assert!(Selection { focus: Some("(".into()), ..Default::default() }.choose(&all).is_err());
    }

    #[test]
    fn a_focus_matches_whole_names_only() {
        let focus = focus_of(&["[sig-a] x (y) [Conformance]".to_owned()]);
        let focus = Regex::new(&focus).unwrap();
        assert!(focus.is_match("Kubernetes e2e suite [sig-a] x (y) [Conformance]"));
        assert!(!focus.is_match("Kubernetes e2e suite [sig-a] x (y) [Conformance] more"));
        assert!(!focus.is_match("Kubernetes e2e suite [sig-a] x y [Conformance]"));
    }

    #[test]
    fn a_sample_has_some_of_every_group_and_is_the_same_for_a_seed() {
        let all = names();
        let one = sample(&all, 12, "seed");
        for sig_name in ["sig-node", "sig-network", "sig-cli"] {
            assert!(one.iter().any(|name| sig(name) == sig_name), "{sig_name} of {one:?}");
        }
        assert!(one.len() >= 12 && one.len() < 20, "{}", one.len());
        assert!(!one.iter().any(|name| name.contains("[Slow]")));
        assert_eq!(one, sample(&all, 12, "seed"));
        assert_ne!(one, sample(&all, 12, "other"));
    }

    proptest! {
        #[test]
        fn a_chunk_is_never_empty_nor_large(remaining in 1usize..2000, workers in 0usize..40) {
            let size = chunk_size(remaining, workers);
            prop_assert!((1..=6).contains(&size));
        }
    }
}
