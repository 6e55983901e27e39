//! Which capabilities a container holds: containerd's default set, then `add` and `drop` of its security context.

use std::collections::BTreeSet;

use keelson_cri::{CriError, SecurityContext};

/// containerd's and dockerd's default set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All names that the caps crate knows, `CAP_…`, which is all that Linux has up to 6.18.
pub fn capability_names() -> BTreeSet<String> {
    caps::all().iter().map(ToString::to_string).collect()
}

/// The set for a container. `held` is what this process itself may pass on (its bounding set): `ALL` means all of it.
pub fn container_capabilities(
    security: &SecurityContext,
    held: &BTreeSet<String>,
) -> Result<BTreeSet<String>, CriError> {
    if security.privileged {
        return Ok(held.clone());
    }
    let known = capability_names();
    let canonical = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        if known.contains(&full) {
            Ok(full)
        } else {
            Err(CriError::Invalid(format!("unknown capability {name:?}")))
        }
    };
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set: BTreeSet<String> = DEFAULT.iter().map(|c| format!("CAP_{c}")).collect();
    // containerd's order: ALL first, whichever list it is in, then single ones, so that `drop: [ALL], add: [X]` gives X.
    if security.add_capabilities.iter().any(is_all) {
        set.clone_from(held);
    }
    if security.drop_capabilities.iter().any(is_all) {
        set.clear();
    }
    for name in security.add_capabilities.iter().filter(|n| !is_all(n)) {
        let name = canonical(name)?;
        if !held.contains(&name) {
            return Err(CriError::Invalid(format!("the agent itself lacks {name} and can't give it")));
        }
        set.insert(name);
    }
    for name in security.drop_capabilities.iter().filter(|n| !is_all(n)) {
        set.remove(&canonical(name)?);
    }
    set.retain(|name| held.contains(name));
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str]) -> Result<BTreeSet<String>, CriError> {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let security = SecurityContext {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            ..SecurityContext::default()
        };
        container_capabilities(&security, &capability_names())
    }

    #[test]
    fn sets() {
        assert_eq!(check(&[], &[]).unwrap().len(), 14);
        assert_eq!(check(&["NET_ADMIN"], &["ALL"]).unwrap(), BTreeSet::from(["CAP_NET_ADMIN".to_string()]));
        assert_eq!(check(&["ALL"], &[]).unwrap(), capability_names());
        assert_eq!(check(&["ALL"], &["cap_sys_admin"]).unwrap().len(), capability_names().len() - 1);
        assert!(!check(&[], &["NET_RAW"]).unwrap().contains("CAP_NET_RAW"));
        assert!(matches!(check(&["SUDO"], &[]), Err(CriError::Invalid(_))));
    }
}
