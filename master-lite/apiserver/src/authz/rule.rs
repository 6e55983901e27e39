//! RBAC policy rules: what one rule allows, and when a set of rules covers another.
//!
//! Pure functions over [`PolicyRule`], following upstream's `rbac/v1/evaluation_helpers.go` and
//! `auth/rbac/validation/policy_comparator.go` to the letter, since escalation checks depend on both.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// One rule of a Role or ClusterRole (`rbac.authorization.k8s.io/v1` PolicyRule).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PolicyRule {
    /// Verbs, `*` for all.
    pub verbs: Vec<String>,
    /// API groups, the empty string being core, `*` for all.
    pub api_groups: Vec<String>,
    /// Resources, `resource/subresource`, `*/subresource` or `*`.
    pub resources: Vec<String>,
    /// Names the rule is limited to; empty means any.
    pub resource_names: Vec<String>,
    /// URL paths outside the resource API; a trailing `*` matches any suffix.
    pub non_resource_urls: Vec<String>,
}

/// What a request asks for, as far as a rule can see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    /// A request to the resource API.
    Resource {
        /// Kubernetes verb, such as `list`.
        verb: &'a str,
        /// API group; empty for core.
        group: &'a str,
        /// Plural resource name.
        resource: &'a str,
        /// Subresource, or empty.
        subresource: &'a str,
        /// Object name, or empty.
        name: &'a str,
    },
    /// Any other request.
    NonResource {
        /// Lower-case HTTP method.
        verb: &'a str,
        /// URL path.
        path: &'a str,
    },
}

impl PolicyRule {
    /// Reads a rule from an API object; absent and null lists are empty.
    pub fn from_value(value: &Value) -> Self {
        Self {
            verbs: strings(value, "verbs"),
            api_groups: strings(value, "apiGroups"),
            resources: strings(value, "resources"),
            resource_names: strings(value, "resourceNames"),
            non_resource_urls: strings(value, "nonResourceURLs"),
        }
    }

    /// The rule as an API object has it, without empty lists.
    pub fn to_value(&self) -> Value {
        let mut out = serde_json::Map::new();
        let lists = [
            ("apiGroups", &self.api_groups),
            ("nonResourceURLs", &self.non_resource_urls),
            ("resourceNames", &self.resource_names),
            ("resources", &self.resources),
            ("verbs", &self.verbs),
        ];
        for (key, list) in lists {
            if !list.is_empty() {
                out.insert(key.to_owned(), json!(list));
            }
        }
        Value::Object(out)
    }

    /// Whether this rule alone allows the request.
    pub fn allows(&self, ask: &Ask<'_>) -> bool {
        match *ask {
            Ask::Resource { verb, group, resource, subresource, name } => {
                has_or_all(&self.verbs, verb)
                    && has_or_all(&self.api_groups, group)
                    && self.resource_matches(resource, subresource)
                    && (self.resource_names.is_empty() || has(&self.resource_names, name))
            }
            Ask::NonResource { verb, path } => {
                has_or_all(&self.verbs, verb)
                    && self.non_resource_urls.iter().any(|url| url == "*" || url_covers(url, path))
            }
        }
    }

    fn resource_matches(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|rule| {
            if rule == "*" {
                return true;
            }
            if subresource.is_empty() {
                return rule == resource;
            }
            // Without a subresource in the rule's text only `*/subresource` or the exact pair matches:
            // a rule on `pods` never grants `pods/exec`.
            match rule.split_once('/') {
                Some((left, right)) => right == subresource && (left == "*" || left == resource),
                None => false,
            }
        })
    }

    /// The rule split into rules of one verb, one group, one resource and at most one name each.
    pub fn breakdown(&self) -> Vec<PolicyRule> {
        let one = |s: &String| vec![s.clone()];
        let mut out = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let atom = PolicyRule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..PolicyRule::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(atom);
                    } else {
                        out.extend(
                            self.resource_names
                                .iter()
                                .map(|n| PolicyRule { resource_names: one(n), ..atom.clone() }),
                        );
                    }
                }
            }
        }
        for url in &self.non_resource_urls {
            for verb in &self.verbs {
                out.push(PolicyRule {
                    verbs: one(verb),
                    non_resource_urls: one(url),
                    ..PolicyRule::default()
                });
            }
        }
        out
    }

    /// Whether this rule grants all that `atom` (a rule from [`breakdown`](Self::breakdown)) grants.
    fn covers(&self, atom: &PolicyRule) -> bool {
        let all = |set: &[String], wanted: &[String]| wanted.iter().all(|w| has_or_all(set, w));
        let resources = atom.resources.iter().all(|path| {
            has_or_all(&self.resources, path)
                || path
                    .split_once('/')
                    .is_some_and(|(_, sub)| self.resources.iter().any(|r| r.strip_prefix("*/") == Some(sub)))
        });
        let names = if atom.resource_names.is_empty() {
            self.resource_names.is_empty()
        } else {
            self.resource_names.is_empty() || atom.resource_names.iter().all(|n| has(&self.resource_names, n))
        };
        let urls = atom
            .non_resource_urls
            .iter()
            .all(|path| self.non_resource_urls.iter().any(|owner| url_covers(owner, path)));
        all(&self.verbs, &atom.verbs) && all(&self.api_groups, &atom.api_groups) && resources && names && urls
    }

    /// The form in which escalation errors show a rule, such as `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
    pub fn compact_string(&self) -> String {
        let parts: Vec<String> = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ]
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(key, list)| format!("{key}:{}", go_quoted_list(list)))
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// The atoms of `wanted` that `owned` doesn't grant; empty when it covers all of them.
pub fn uncovered(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    wanted
        .iter()
        .flat_map(PolicyRule::breakdown)
        .filter(|atom| !owned.iter().any(|rule| rule.covers(atom)))
        .collect()
}

/// Joins atoms that differ only by verb, so that a message about missing rules stays short.
pub fn compact(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut simple: BTreeMap<(String, String, Option<String>), PolicyRule> = BTreeMap::new();
    let mut out = Vec::new();
    for rule in rules {
        let is_simple = rule.resource_names.len() <= 1
            && rule.non_resource_urls.is_empty()
            && rule.api_groups.len() == 1
            && rule.resources.len() == 1;
        if !is_simple {
            out.push(rule);
            continue;
        }
        let key =
            (rule.api_groups[0].clone(), rule.resources[0].clone(), rule.resource_names.first().cloned());
        match simple.get_mut(&key) {
            Some(existing) => existing.verbs.extend(rule.verbs),
            None => {
                simple.insert(key, rule);
            }
        }
    }
    out.extend(simple.into_values());
    out
}

/// The error of a user who hands out rights they don't hold, as upstream words it.
pub fn escalation_message(user: &str, groups: &[String], missing: Vec<PolicyRule>) -> String {
    let lines: BTreeSet<String> = compact(missing).iter().map(PolicyRule::compact_string).collect();
    let lines: Vec<String> = lines.into_iter().collect();
    format!(
        "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        go_quote(user),
        go_quoted_list(groups),
        lines.join("\n")
    )
}

/// Go's `%q` of a string, for the characters that can be in a name.
pub fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Go's `%q` of a slice of strings: `["a" "b"]`.
pub fn go_quoted_list(list: &[String]) -> String {
    let quoted: Vec<String> = list.iter().map(|s| go_quote(s)).collect();
    format!("[{}]", quoted.join(" "))
}

fn has(set: &[String], item: &str) -> bool {
    set.iter().any(|s| s == item)
}

fn has_or_all(set: &[String], item: &str) -> bool {
    set.iter().any(|s| s == "*" || s == item)
}

fn url_covers(owner: &str, path: &str) -> bool {
    owner == path || (owner.ends_with('*') && path.starts_with(owner.trim_end_matches('*')))
}

/// The strings of an array field; absent, null and other shapes are empty.
pub(crate) fn strings(value: &Value, key: &str) -> Vec<String> {
    value[key]
        .as_array()
        .map(|a| a.iter().filter_map(|s| s.as_str().map(str::to_owned)).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(groups: &str, resources: &str, names: &str, urls: &str, verbs: &str) -> PolicyRule {
        let list = |s: &str| {
            if s == "-" {
                vec![]
            } else {
                s.split(',').map(|s| if s == "core" { String::new() } else { s.to_owned() }).collect()
            }
        };
        PolicyRule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            non_resource_urls: list(urls),
        }
    }

    fn ask<'a>(
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        name: &'a str,
    ) -> Ask<'a> {
        Ask::Resource { verb, group, resource, subresource, name }
    }

    #[test]
    fn a_rule_allows() {
        let check = |rule: &PolicyRule, ask: Ask<'_>, want: bool| {
            assert_eq!(rule.allows(&ask), want, "{rule:?} {ask:?}")
        };
        let pods = rule("core", "pods", "-", "-", "get,list");
        check(&pods, ask("get", "", "pods", "", "a"), true);
        check(&pods, ask("delete", "", "pods", "", "a"), false);
        check(&pods, ask("get", "apps", "pods", "", "a"), false);
        check(&pods, ask("get", "", "pods", "exec", "a"), false);
        check(&pods, Ask::NonResource { verb: "get", path: "/pods" }, false);
        let scale = rule("*", "*/scale", "-", "-", "*");
        check(&scale, ask("patch", "apps", "deployments", "scale", "a"), true);
        check(&scale, ask("patch", "apps", "deployments", "", "a"), false);
        check(&scale, ask("patch", "apps", "deployments", "xscale", "a"), false);
        let exec = rule("core", "pods/exec", "-", "-", "create");
        check(&exec, ask("create", "", "pods", "exec", "a"), true);
        check(&exec, ask("create", "", "pods", "", "a"), false);
        check(&exec, ask("create", "", "nodes", "exec", "a"), false);
        let named = rule("core", "configmaps", "cluster-info", "-", "get,list");
        check(&named, ask("get", "", "configmaps", "", "cluster-info"), true);
        check(&named, ask("list", "", "configmaps", "", ""), false);
        let all = rule("*", "*", "-", "-", "*");
        check(&all, ask("x", "y", "z", "s", "n"), true);
        check(&all, Ask::NonResource { verb: "get", path: "/metrics" }, false);
        let urls = rule("-", "-", "-", "/healthz,/apis/*", "get");
        check(&urls, Ask::NonResource { verb: "get", path: "/apis/apps/v1" }, true);
        check(&urls, Ask::NonResource { verb: "get", path: "/apis" }, false);
        check(&urls, Ask::NonResource { verb: "post", path: "/healthz" }, false);
        check(&urls, ask("get", "", "pods", "", ""), false);
    }

    #[test]
    fn cover_follows_upstream() {
        let check = |owned: &[PolicyRule], wanted: PolicyRule, want: bool| {
            assert_eq!(
                uncovered(owned, std::slice::from_ref(&wanted)).is_empty(),
                want,
                "{owned:?} {wanted:?}"
            );
        };
        let pods = [rule("core", "pods", "-", "-", "get"), rule("core", "pods", "-", "-", "list")];
        check(&pods, rule("core", "pods", "-", "-", "get,list"), true);
        check(&pods, rule("core", "pods", "-", "-", "*"), false);
        check(&pods, rule("core", "pods", "a", "-", "get"), true);
        check(&pods, rule("core", "pods/log", "-", "-", "get"), false);
        let named = [rule("core", "secrets", "a", "-", "get")];
        check(&named, rule("core", "secrets", "-", "-", "get"), false);
        check(&named, rule("core", "secrets", "a", "-", "get"), true);
        check(&named, rule("core", "secrets", "a,b", "-", "get"), false);
        let all = [rule("*", "*", "-", "-", "*")];
        check(&all, rule("apps,core", "x/y,z", "n", "-", "get"), true);
        check(&all, rule("-", "-", "-", "/x", "get"), false);
        check(&[rule("core", "*/log", "-", "-", "get")], rule("core", "pods/log", "-", "-", "get"), true);
        check(&[rule("-", "-", "-", "/apis/*", "get")], rule("-", "-", "-", "/apis/x", "get"), true);
        check(&[rule("-", "-", "-", "/apis/*", "get")], rule("-", "-", "-", "*", "get"), false);
    }

    #[test]
    fn escalation_reads_as_upstream() {
        let missing = uncovered(
            &[],
            &[rule("core", "pods,secrets", "-", "-", "get,list"), rule("-", "-", "-", "/x", "get")],
        );
        assert_eq!(
            escalation_message("jane", &["dev".to_owned(), "system:authenticated".to_owned()], missing),
            "user \"jane\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}\n\
             {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}\n\
             {NonResourceURLs:[\"/x\"], Verbs:[\"get\"]}"
        );
    }
}
