//! The JSON format of seccomp profiles (moby `profiles/seccomp`, also what a Localhost profile holds) and which of its
//! rules hold for a container.

use serde::Deserialize;

/// A profile can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON of the right shape.
    #[error("can't parse seccomp profile: {0}")]
    Json(#[from] serde_json::Error),
    /// An action or a comparison that this runtime does not do.
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(String),
    /// Longer than the kernel takes.
    #[error("seccomp profile needs {0} instructions, the kernel takes 4096")]
    TooLong(usize),
}

/// A profile as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<SyscallEntry>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    listener_path: Option<String>,
    #[serde(default)]
    flags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SyscallEntry {
    /// The older form with one name.
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// What a profile's conditions are evaluated against.
#[derive(Debug, Clone)]
pub struct Environment<'a> {
    /// Bounding set of the container, `CAP_…`.
    pub caps: &'a [String],
    /// Go's name of the machine: `amd64`, `arm64`.
    pub arch: &'a str,
    /// Kernel version.
    pub kernel: (u32, u32),
}

/// What a filter answers, as `SECCOMP_RET_*`.
pub type Action = u32;

/// A comparison of one 64-bit argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Argument number, 0 to 5.
    pub index: u8,
    /// How.
    pub op: Op,
    /// With what.
    pub value: u64,
}

/// Comparison operators of libseccomp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Not equal.
    Ne,
    /// Less than.
    Lt,
    /// Less or equal.
    Le,
    /// Equal.
    Eq,
    /// Greater or equal.
    Ge,
    /// Greater than.
    Gt,
    /// `arg & mask == value`.
    MaskedEq(u64),
}

/// One rule: all conditions hold, then the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Name of the call.
    pub name: String,
    /// All must hold; none means always.
    pub conditions: Vec<Condition>,
    /// Then.
    pub action: Action,
}

/// A profile evaluated for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// For calls that no rule matches.
    pub default: Action,
    /// In order of precedence: the first match wins.
    pub rules: Vec<Rule>,
    /// Whether 32-bit programs are filtered by the same rules; otherwise the default answers them.
    pub compat32: bool,
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, ProfileError> {
    // SECCOMP_RET_DATA is 16 bits; EPERM is what moby means when nothing is said.
    let data = errno.unwrap_or(1) & 0xffff;
    Ok(match name {
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | data,
        other => return Err(ProfileError::Unsupported(format!("action {other}"))),
    })
}

impl Profile {
    /// Reads a profile.
    pub fn parse(json: &str) -> Result<Self, ProfileError> {
        Ok(serde_json::from_str(json)?)
    }

    /// Keeps the rules whose includes and excludes hold, in moby's order (`setupSeccomp`).
    pub fn evaluate(&self, env: &Environment<'_>) -> Result<Rules, ProfileError> {
        if self.listener_path.as_ref().is_some_and(|p| !p.is_empty()) {
            return Err(ProfileError::Unsupported("listenerPath".into()));
        }
        if let Some(flag) = self.flags.iter().flatten().find(|f| *f != "SECCOMP_FILTER_FLAG_LOG") {
            return Err(ProfileError::Unsupported(format!("flag {flag}")));
        }
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut rules = Vec::new();
        for entry in &self.syscalls {
            if !entry.holds(env) {
                continue;
            }
            let action = action(&entry.action, entry.errno_ret.or(self.default_errno_ret))?;
            // An entry that says what the default says anyway is nothing (libseccomp refuses it, runc skips it).
            if action == default {
                continue;
            }
            let conditions: Vec<Condition> =
                entry.args.iter().flatten().map(Arg::condition).collect::<Result<_, _>>()?;
            for name in entry.names.iter().chain(&entry.name) {
                // runc `matchCall`: several conditions on one argument are alternatives, as libseccomp can't and them.
                let repeated = conditions
                    .iter()
                    .enumerate()
                    .any(|(i, c)| conditions[..i].iter().any(|earlier| earlier.index == c.index));
                if repeated {
                    rules.extend(conditions.iter().map(|c| Rule {
                        name: name.clone(),
                        conditions: vec![*c],
                        action,
                    }));
                } else {
                    rules.push(Rule { name: name.clone(), conditions: conditions.clone(), action });
                }
            }
        }
        Ok(Rules { default, rules, compat32: self.compat32() })
    }

    fn compat32(&self) -> bool {
        let listed = |names: &[String]| names.iter().any(|n| n == "SCMP_ARCH_X86");
        self.architectures.as_deref().is_some_and(listed)
            || self.arch_map.iter().flatten().any(|m| {
                m.architecture == "SCMP_ARCH_X86_64" && m.sub_architectures.as_deref().is_some_and(listed)
            })
    }
}

impl SyscallEntry {
    fn holds(&self, env: &Environment<'_>) -> bool {
        let has_cap = |cap: &String| env.caps.contains(cap);
        let has_arch = |arch: &String| arch == env.arch;
        if let Some(includes) = &self.includes {
            let caps = includes.caps.as_deref().unwrap_or_default();
            let arches = includes.arches.as_deref().unwrap_or_default();
            if !caps.iter().all(has_cap) || !(arches.is_empty() || arches.iter().any(has_arch)) {
                return false;
            }
            if let Some(min) = &includes.min_kernel
                && parse_kernel(min).is_none_or(|min| env.kernel < min)
            {
                return false;
            }
        }
        if let Some(excludes) = &self.excludes {
            if excludes.caps.iter().flatten().any(has_cap) || excludes.arches.iter().flatten().any(has_arch) {
                return false;
            }
            if let Some(min) = &excludes.min_kernel
                && parse_kernel(min).is_some_and(|min| env.kernel >= min)
            {
                return false;
            }
        }
        true
    }
}

impl Arg {
    fn condition(&self) -> Result<Condition, ProfileError> {
        if self.index > 5 {
            return Err(ProfileError::Unsupported(format!("argument {}", self.index)));
        }
        let (op, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (Op::Ne, self.value),
            "SCMP_CMP_LT" => (Op::Lt, self.value),
            "SCMP_CMP_LE" => (Op::Le, self.value),
            "SCMP_CMP_EQ" => (Op::Eq, self.value),
            "SCMP_CMP_GE" => (Op::Ge, self.value),
            "SCMP_CMP_GT" => (Op::Gt, self.value),
            "SCMP_CMP_MASKED_EQ" => (Op::MaskedEq(self.value), self.value_two),
            other => return Err(ProfileError::Unsupported(format!("comparison {other}"))),
        };
        Ok(Condition { index: self.index, op, value })
    }
}

/// `6.18.44-fc` to (6, 18).
pub fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(caps: &[&str], kernel: (u32, u32)) -> Rules {
        let caps: Vec<String> = caps.iter().map(ToString::to_string).collect();
        let env = Environment { caps: &caps, arch: "amd64", kernel };
        Profile::parse(super::super::RUNTIME_DEFAULT).unwrap().evaluate(&env).unwrap()
    }

    fn has(rules: &Rules, name: &str) -> bool {
        rules.rules.iter().any(|r| r.name == name && r.action == libc::SECCOMP_RET_ALLOW)
    }

    #[test]
    fn default_profile_follows_caps_arch_and_kernel() {
        let plain = evaluate(&["CAP_SYS_CHROOT"], (6, 18));
        assert!(plain.compat32);
        assert!(
            has(&plain, "read")
                && has(&plain, "chroot")
                && has(&plain, "ptrace")
                && has(&plain, "arch_prctl")
        );
        assert!(!has(&plain, "mount") && !has(&plain, "bpf") && !has(&plain, "sync_file_range2"));
        assert!(!has(&evaluate(&[], (4, 7)), "ptrace"));
        assert!(has(&evaluate(&["CAP_SYS_ADMIN"], (6, 18)), "mount"));
        let clone3 = plain.rules.iter().find(|r| r.name == "clone3").unwrap();
        assert_eq!(clone3.action, libc::SECCOMP_RET_ERRNO | 38);
    }

    #[test]
    fn older_form_and_refusals() {
        let check = |json: &str| {
            Profile::parse(json)
                .and_then(|p| p.evaluate(&Environment { caps: &[], arch: "amd64", kernel: (6, 1) }))
                .map_err(|e| e.to_string())
        };
        let one =
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"mkdir","action":"SCMP_ACT_ERRNO"}]}"#;
        assert_eq!(check(one).unwrap().rules[0].name, "mkdir");
        let notify = r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#;
        assert_eq!(check(notify).unwrap_err(), "seccomp profile: action SCMP_ACT_NOTIFY is not supported");
        assert!(check("{").unwrap_err().starts_with("can't parse seccomp profile"));
        assert_eq!(parse_kernel("6.18.44-fc-v669"), Some((6, 18)));
    }
}
