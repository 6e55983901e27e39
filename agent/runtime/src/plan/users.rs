//! Who a container runs as: numbers from the pod, or names looked up in the image's own /etc/passwd and /etc/group.

use keelson_cri::{CriError, SecurityContext};
use serde::{Deserialize, Serialize};

/// Longest /etc/passwd or /etc/group that is read: both come from the image.
pub const MAX_FILE: usize = 4 * 1024 * 1024;

/// Who is asked for; what is left open the image's files decide.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// `user[:group]`, numbers or names, as an image's `User` is written; empty means 0.
    pub user: String,
    /// Overrides the primary group.
    pub gid: Option<u32>,
    /// Groups beside those of /etc/group.
    pub supplemental: Vec<u32>,
    /// Do not look into /etc/group for further groups.
    pub strict: bool,
    /// Refuse user 0.
    pub non_root: bool,
}

impl UserSpec {
    /// From the pod's security context and the image's `User`.
    pub fn new(security: &SecurityContext, image_user: &str) -> Self {
        let user = match (security.run_as_user, &security.run_as_username) {
            (Some(uid), _) => uid.to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => image_user.to_string(),
        };
        Self {
            user,
            gid: security.run_as_group,
            supplemental: security.supplemental_groups.clone(),
            strict: security.strict_supplemental_groups,
            non_root: security.run_as_non_root,
        }
    }
}

/// kubelet's `verifyRunAsNonRoot`, with its messages.
pub fn check_non_root(security: &SecurityContext, image_user: &str) -> Result<(), CriError> {
    if !security.run_as_non_root {
        return Ok(());
    }
    if let Some(uid) = security.run_as_user {
        return if uid == 0 {
            Err(CriError::Invalid("container's runAsUser breaks non-root policy".into()))
        } else {
            Ok(())
        };
    }
    let user = security.run_as_username.as_deref().unwrap_or(image_user);
    let name = user.split(':').next().unwrap_or("");
    match name.parse::<u32>() {
        _ if name.is_empty() => {
            Err(CriError::Invalid("container has runAsNonRoot and image will run as root".into()))
        }
        Ok(0) => Err(CriError::Invalid("container has runAsNonRoot and image will run as root".into())),
        Ok(_) => Ok(()),
        Err(_) => Err(CriError::Invalid(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ))),
    }
}

/// Numbers, and the home folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, sorted, the primary not among them unless asked for.
    pub groups: Vec<u32>,
    /// HOME; `/` when /etc/passwd doesn't say.
    pub home: String,
}

/// A name that the image doesn't know, or root where that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// As runc words it.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// As runc words it.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// As kubelet words it.
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_lines(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or("");
        Some(Passwd { name, uid: uid.trim().parse().ok()?, gid: gid.trim().parse().ok()?, home })
    })
}

/// name, gid, members
fn group_lines(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.trim().parse().ok()?, fields.next().unwrap_or("")))
    })
}

/// Resolves against the texts of /etc/passwd and /etc/group (empty when the image has none), as moby's `GetExecUser`.
pub fn resolve_user(spec: &UserSpec, passwd: &str, group: &str) -> Result<ResolvedUser, UserError> {
    let (user, group_name) = spec.user.split_once(':').map_or((spec.user.as_str(), ""), |(u, g)| (u, g));
    let number: Option<u32> = if user.is_empty() { Some(0) } else { user.parse().ok() };
    // A number may also be the name of an entry; the name comes first, as in moby.
    let entry = passwd_lines(passwd)
        .find(|p| p.name == user)
        .or_else(|| passwd_lines(passwd).find(|p| number == Some(p.uid)));
    let (uid, mut gid, home) = match (&entry, number) {
        (Some(p), _) => (p.uid, p.gid, p.home),
        (None, Some(uid)) => (uid, 0, ""),
        (None, None) => return Err(UserError::NoUser(user.to_string())),
    };
    let mut groups = spec.supplemental.clone();
    if !group_name.is_empty() {
        gid = match group_lines(group).find(|(name, ..)| *name == group_name) {
            Some((_, gid, _)) => gid,
            None => group_name.parse().or(Err(UserError::NoGroup(group_name.to_string())))?,
        };
    }
    if let Some(explicit) = spec.gid {
        gid = explicit;
    }
    if let Some(p) = entry.as_ref().filter(|_| !spec.strict) {
        let member = |members: &str| members.split(',').any(|m| m.trim() == p.name);
        groups.extend(group_lines(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid));
    }
    groups.sort_unstable();
    groups.dedup();
    if spec.non_root && uid == 0 {
        return Err(UserError::Root);
    }
    let home = if home.is_empty() { "/" } else { home }.to_string();
    Ok(ResolvedUser { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbad line\nwww:x:33:33::/var/www:\n1000:x:7:8::/odd:\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:www,other\nssl:x:90:www\n:::\n";

    fn check(user: &str, uid: u32, gid: u32, groups: &[u32], home: &str) {
        let spec = UserSpec { user: user.into(), ..UserSpec::default() };
        let expected = ResolvedUser { uid, gid, groups: groups.to_vec(), home: home.into() };
        assert_eq!(resolve_user(&spec, PASSWD, GROUP), Ok(expected), "{user}");
    }

    #[test]
    fn lookups() {
        check("", 0, 0, &[], "/root");
        check("www", 33, 33, &[4, 90], "/var/www");
        check("33", 33, 33, &[4, 90], "/var/www");
        check("www:adm", 33, 4, &[4, 90], "/var/www");
        check("www:77", 33, 77, &[4, 90], "/var/www");
        check("5000", 5000, 0, &[], "/");
        check("1000", 7, 8, &[], "/odd");
    }

    #[test]
    fn refusals_and_overrides() {
        let spec = |user: &str| UserSpec { user: user.into(), ..UserSpec::default() };
        assert_eq!(resolve_user(&spec("x"), PASSWD, ""), Err(UserError::NoUser("x".into())));
        assert_eq!(resolve_user(&spec("www:y"), PASSWD, ""), Err(UserError::NoGroup("y".into())));
        let non_root = UserSpec { non_root: true, ..spec("root") };
        assert_eq!(resolve_user(&non_root, PASSWD, ""), Err(UserError::Root));
        let strict = UserSpec { strict: true, gid: Some(9), supplemental: vec![5, 5], ..spec("www") };
        let resolved = resolve_user(&strict, PASSWD, GROUP).unwrap();
        assert_eq!((resolved.gid, resolved.groups), (9, vec![5]));
    }

    #[test]
    fn non_root_policy() {
        let check = |uid: Option<u32>, image: &str| {
            let security =
                SecurityContext { run_as_non_root: true, run_as_user: uid, ..SecurityContext::default() };
            check_non_root(&security, image).map_err(|e| e.to_string())
        };
        assert_eq!(check(None, "").unwrap_err(), "container has runAsNonRoot and image will run as root");
        assert_eq!(check(None, "0:5").unwrap_err(), "container has runAsNonRoot and image will run as root");
        assert_eq!(check(Some(0), "5").unwrap_err(), "container's runAsUser breaks non-root policy");
        assert!(check(None, "web").unwrap_err().contains("non-numeric user (web)"));
        assert_eq!(check(None, "101"), Ok(()));
        assert_eq!(check(Some(5), "0"), Ok(()));
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(user in ".{0,20}", passwd in ".{0,200}", group in "[a-z:0-9,\n]{0,200}") {
            let _ = resolve_user(&UserSpec { user, ..UserSpec::default() }, &passwd, &group);
        }
    }
}
