//! What must be true of a cluster that was broken and has mended: judgements of what was observed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::journal::Seen;

/// A stretch of time, milliseconds since 1970, both ends in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its begin.
    pub from: u64,
    /// Its end.
    pub to: u64,
}

impl Window {
    fn meets(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// No two pods have one address at a time: as a watch showed them, in order.
pub fn shared_addresses(seen: &[Seen]) -> Vec<String> {
    let mut owners: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    let mut broken = Vec::new();
    for event in seen {
        let Some(pod) = &event.pod else { continue };
        let Some(ip) = pod.ip.as_deref() else { continue };
        let gone = event.deleted || pod.over;
        match owners.get(ip) {
            Some((uid, _)) if *uid == pod.uid && gone => drop(owners.remove(ip)),
            Some((uid, owner)) if *uid != pod.uid && !gone => {
                broken.push(format!("{ip} is of {owner} and of {}, at {}", event.object, event.at));
            }
            None if !gone => drop(owners.insert(ip, (&pod.uid, &event.object))),
            _ => {}
        }
    }
    broken
}

/// What a client of a Service was told: the name of the pod that answered, or what went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// When the answer came.
    pub at: u64,
    /// The answer.
    pub from: Result<String, String>,
}

/// Reads what `testapp ask` prints: milliseconds since 1970, the version, the pod's name; or `error`, and why.
pub fn answers(text: &str) -> Vec<Answer> {
    let parse = |line: &str| {
        let (at, said) = line.split_once(' ')?;
        let (first, rest) = said.split_once(' ')?;
        let from = if first == "error" { Err(rest.to_owned()) } else { Ok(rest.to_owned()) };
        Some(Answer { at: at.parse().ok()?, from })
    };
    text.lines().filter_map(parse).collect()
}

/// Time that a node has to learn that a pod is gone, once it can learn anything.
pub const GRACE: u64 = 10_000;

/// When each pod was gone, by name; those that are not are here with nothing.
pub fn deaths(seen: &[Seen]) -> BTreeMap<&str, Option<u64>> {
    let mut deaths = BTreeMap::new();
    for event in seen {
        let Some(pod) = &event.pod else { continue };
        let name = event.object.trim_start_matches("Pod/");
        let death: &mut Option<u64> = deaths.entry(name).or_default();
        *death = (event.deleted || pod.over).then(|| death.unwrap_or(event.at));
    }
    deaths
}

/// No Service is answered by a pod that is gone, or that is not its own, once the asking node could know it. `blind` is
/// when it could not.
pub fn answers_of_the_dead(
    service: &str,
    answers: &[Answer],
    deaths: &BTreeMap<&str, Option<u64>>,
    blind: &[Window],
) -> Vec<String> {
    let mut broken = Vec::new();
    for answer in answers {
        let Ok(name) = &answer.from else { continue };
        let before = Window { from: answer.at.saturating_sub(GRACE), to: answer.at };
        if blind.iter().any(|window| window.meets(before)) {
            continue;
        }
        let at = answer.at;
        if !name.starts_with(&format!("{service}-")) {
            broken.push(format!("{service} was answered by {name}, of another Service, at {at}"));
        }
        match deaths.get(name.as_str()) {
            Some(Some(death)) if death + GRACE < at => {
                broken.push(format!("{service} was answered at {at} by {name}, gone since {death}"));
            }
            None => broken.push(format!("{service} was answered by {name}, which no watch showed")),
            _ => {}
        }
    }
    broken
}

/// At rest each request is answered, by each of the Service's ready pods now and then, and by no other.
pub fn answers_at_rest(client: &str, answers: &[Answer], ready: &BTreeSet<String>) -> Vec<String> {
    let mut broken = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut failed = BTreeMap::new();
    for answer in answers {
        match &answer.from {
            Ok(name) => *counts.entry(name).or_default() += 1,
            Err(why) => *failed.entry(why.as_str()).or_insert(0) += 1,
        }
    }
    if counts.is_empty() {
        broken.push(format!("{client}: not one answer"));
    }
    broken.extend(failed.iter().map(|(why, count)| format!("{client}: {count} requests failed: {why}")));
    for name in counts.keys().filter(|name| !ready.contains(**name)) {
        broken.push(format!("{client}: answered by {name}, which is no ready pod of the Service"));
    }
    for name in ready.iter().filter(|name| !counts.contains_key(name.as_str())) {
        broken.push(format!("{client}: never answered by {name}, though it is ready"));
    }
    broken
}

/// A line of a container's log: when it was written, and its text.
pub type LogLine = (u64, String);

/// The log of `testapp count` that was ended is whole: no line is missing or there twice. `full` is when the disk had no
/// room, so that lines were dropped by rights.
pub fn log_damage(name: &str, lines: &[LogLine], full: &[Window]) -> Vec<String> {
    let mut broken = Vec::new();
    let Some(((end_at, end), numbered)) = lines.split_last() else { return vec![format!("{name}: no log")] };
    let mut next = 0;
    let mut last = numbered.first().map_or(*end_at, |(at, _)| *at);
    let mut expect = |n: u64, at: u64, text: &str| {
        let between = Window { from: last, to: at };
        if n < next {
            broken.push(format!("{name}: {text:?} is there twice, or late, at {at}"));
        } else if n > next && !full.iter().any(|window| window.meets(between)) {
            broken.push(format!("{name}: {} lines are missing before {text:?}, at {at}", n - next));
        }
        (next, last) = (n + 1, at);
    };
    for (at, text) in numbered {
        match text.strip_prefix("line ").and_then(|n| n.parse().ok()) {
            Some(n) => expect(n, *at, text),
            None => return vec![format!("{name}: a torn line: {text:?}, at {at}")],
        }
    }
    match end.strip_prefix("end ").and_then(|n| n.parse().ok()) {
        Some(n) => expect(n, *end_at, end),
        None => broken.push(format!("{name}: the last line is {end:?}")),
    }
    broken
}

/// What the API says that a node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// UIDs of its pods.
    pub uids: BTreeSet<String>,
    /// Pods that have not ended.
    pub pods: usize,
    /// Of these, those with a network of their own.
    pub links: usize,
    /// Containers that run.
    pub containers: usize,
}

impl Expected {
    /// Of a node, by all pods of the API.
    pub fn of<'a>(node: &str, pods: impl Iterator<Item = &'a Value>) -> Self {
        let mut expected = Self::default();
        for pod in pods.filter(|pod| pod["spec"]["nodeName"] == node) {
            expected.uids.extend(pod["metadata"]["uid"].as_str().map(str::to_owned));
            if pod["status"]["phase"] != "Running" {
                continue;
            }
            expected.pods += 1;
            expected.links += usize::from(pod["spec"]["hostNetwork"] != true);
            let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
            expected.containers += statuses.filter(|status| status["state"]["running"].is_object()).count();
        }
        expected
    }
}

/// The UID in a text, if there is one.
fn uid(text: &str) -> Option<&str> {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    let shaped = |part: &[u8]| {
        part.iter()
            .enumerate()
            .all(|(at, byte)| if DASHES.contains(&at) { *byte == b'-' } else { byte.is_ascii_hexdigit() })
    };
    let at = text.as_bytes().windows(36).position(shaped)?;
    text.get(at..at + 36)
}

/// A node holds what the API says, nothing more and nothing less: `lines` are those of its state, each with its number.
pub fn beyond_the_api<'a>(
    node: &str,
    lines: impl Iterator<Item = (&'a str, usize)>,
    expected: &Expected,
) -> Vec<String> {
    let mut broken = Vec::new();
    let (mut pods, mut links, mut containers) = (0, 0, 0);
    for (line, count) in lines {
        match line {
            "process keelson-podinit" => pods += count,
            "process testapp" => containers += count,
            // As CNI names the host's end of a pod's link.
            _ if line.starts_with("link kl") => links += count,
            _ => {
                if let Some(uid) = uid(line).filter(|uid| !expected.uids.contains(*uid)) {
                    broken.push(format!("{node}: {line}, but there is no pod {uid}"));
                }
            }
        }
    }
    for (what, found, wanted) in [
        ("podinits", pods, expected.pods),
        ("links of pods", links, expected.links),
        ("containers", containers, expected.containers),
    ] {
        if found != wanted {
            broken.push(format!("{node}: {found} {what}, not {wanted}"));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::journal::Pod;
    use super::*;

    fn seen(at: u64, name: &str, uid: &str, ip: &str, deleted: bool, over: bool) -> Seen {
        let pod = Pod { uid: uid.into(), node: Some("node-1".into()), ip: Some(ip.into()), over };
        Seen { at, object: format!("Pod/{name}"), revision: at, deleted, n: None, pod: Some(pod) }
    }

    #[test]
    fn an_address_of_two_pods_is_seen() {
        let well = [
            seen(1, "a", "1", "10.0.0.1", false, false),
            seen(2, "a", "1", "10.0.0.1", false, true),
            seen(3, "b", "2", "10.0.0.1", false, false),
            // Gone later than its address.
            seen(4, "a", "1", "10.0.0.1", true, true),
            seen(5, "b", "2", "10.0.0.1", true, false),
            seen(6, "b", "3", "10.0.0.1", false, false),
        ];
        assert_eq!(shared_addresses(&well), Vec::<String>::new());
        let broken = [&well[..1], &well[2..3]].concat();
        assert_eq!(shared_addresses(&broken).len(), 1);
    }

    #[test]
    fn an_answer_of_the_dead_is_seen() {
        let seen =
            [seen(1_000, "web-a", "1", "i", false, false), seen(50_000, "web-a", "1", "i", true, false)];
        let deaths = deaths(&seen);
        let answer = |at, name: &str| [Answer { at, from: Ok(name.into()) }];
        let judge = |at, name: &str, blind: &[Window]| {
            answers_of_the_dead("web", &answer(at, name), &deaths, blind).len()
        };
        assert_eq!(judge(49_000, "web-a", &[]), 0);
        assert_eq!(judge(59_000, "web-a", &[]), 0, "in its grace");
        assert_eq!(judge(61_000, "web-a", &[]), 1);
        assert_eq!(judge(61_000, "web-a", &[Window { from: 40_000, to: 52_000 }]), 0, "it could not know");
        assert_eq!(judge(63_000, "web-a", &[Window { from: 40_000, to: 52_000 }]), 1, "it could by now");
        assert_eq!(judge(49_000, "web-b", &[]), 1, "nobody knows it");
        assert_eq!(judge(49_000, "db-0", &[]), 2, "another Service's, which nobody knows");
    }

    #[test]
    fn answers_are_read() {
        let read = answers("12 v1 web-a\n13 error timed out twice\nhalf");
        let expected = [(12, Ok("web-a".to_owned())), (13, Err("timed out twice".to_owned()))];
        assert_eq!(read, expected.map(|(at, from)| Answer { at, from }));
    }

    #[test]
    fn at_rest_everyone_answers() {
        let ready: BTreeSet<String> = ["a", "b"].map(str::to_owned).into();
        let said = |names: &[&str]| -> Vec<Answer> {
            names.iter().map(|name| Answer { at: 0, from: Ok((*name).into()) }).collect()
        };
        assert_eq!(answers_at_rest("c", &said(&["a", "b", "a"]), &ready), Vec::<String>::new());
        assert_eq!(answers_at_rest("c", &said(&["a"]), &ready).len(), 1, "a forgotten endpoint");
        assert_eq!(answers_at_rest("c", &said(&["a", "b", "c"]), &ready).len(), 1, "a stale endpoint");
        assert_eq!(answers_at_rest("c", &[], &ready).len(), 3);
        let mut failed = said(&["a", "b"]);
        failed.push(Answer { at: 0, from: Err("refused".into()) });
        assert_eq!(answers_at_rest("c", &failed, &ready).len(), 1);
    }

    #[test]
    fn a_log_with_a_hole_is_seen() {
        let log = |texts: &[&str]| -> Vec<LogLine> {
            texts.iter().zip(0..).map(|(text, at)| (at, (*text).to_owned())).collect()
        };
        let judge = |texts: &[&str], full: &[Window]| log_damage("p", &log(texts), full).len();
        assert_eq!(judge(&["line 0", "line 1", "end 2"], &[]), 0);
        assert_eq!(judge(&["line 0", "line 2", "end 3"], &[]), 1, "one is missing");
        assert_eq!(judge(&["line 1", "end 2"], &[]), 1, "the first is missing");
        assert_eq!(judge(&["line 0", "line 1", "end 3"], &[]), 1, "the last is missing");
        assert_eq!(judge(&["line 0", "line 0", "line 1", "end 2"], &[]), 1, "one is there twice");
        assert_eq!(judge(&["line 0", "lin", "end 2"], &[]), 1, "torn");
        assert_eq!(judge(&["line 0", "line 1"], &[]), 1, "no end");
        assert_eq!(judge(&[], &[]), 1);
        let full = [Window { from: 1, to: 1 }];
        assert_eq!(judge(&["line 0", "line 5", "line 6", "end 7"], &full), 0, "there was no room");
        assert_eq!(judge(&["line 0", "line 1", "line 2", "line 5", "end 6"], &full), 1, "there was");
    }

    #[test]
    fn what_no_pod_explains_is_seen() {
        let uid = "0b4d1f8e-59d7-4b0c-8f7e-0123456789ab";
        let pods = [
            json!({"metadata": {"uid": uid}, "spec": {"nodeName": "n"}, "status": {"phase": "Running",
                "containerStatuses": [{"state": {"running": {}}}, {"state": {"waiting": {}}}]}}),
            json!({"metadata": {"uid": "other"}, "spec": {"nodeName": "m"}, "status": {"phase": "Running"}}),
            json!({"metadata": {"uid": "done"}, "spec": {"nodeName": "n"}, "status": {"phase": "Succeeded"}}),
        ];
        let expected = Expected::of("n", pods.iter());
        assert_eq!((expected.pods, expected.links, expected.containers), (1, 1, 1));
        assert_eq!(expected.uids.len(), 2);
        let cgroup = format!("cgroup kubepods/pod{uid}");
        let well =
            vec![("process keelson-podinit", 1), ("process testapp", 1), ("link kl01", 1), (&*cgroup, 1)];
        let judge = |lines: &[(&str, usize)]| beyond_the_api("n", lines.iter().copied(), &expected).len();
        assert_eq!(judge(&well), 0);
        let leak = "mount /var/lib/kubelet/pods/1b4d1f8e-59d7-4b0c-8f7e-0123456789ab/volumes/x";
        for more in [(leak, 1), ("link kl02", 1), ("process testapp", 1), ("process keelson-podinit", 1)] {
            assert_eq!(judge(&[&well[..], &[more]].concat()), 1, "{more:?}");
        }
        assert_eq!(judge(&well[1..]), 1, "a pod that the node does not have");
    }
}
