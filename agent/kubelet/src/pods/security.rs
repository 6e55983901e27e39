//! Pod and container security contexts as one, resolved for the runtime.
//!
//! Source: upstream `pkg/securitycontext/util.go` and `pkg/kubelet/kuberuntime/security_context.go`.

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile as ApiSeccomp};
use keelson_cri::{Image, SeccompProfile, SecurityContext};

use super::podext::PodExt;

/// Merges; the container's own fields win. The error is the message of `CreateContainerConfigError`.
pub fn security_context(
    pod: &Pod,
    container: &Container,
    image: &Image,
    seccomp_root: &Path,
) -> Result<SecurityContext, String> {
    let own = container.security_context.clone().unwrap_or_default();
    let shared = PodExt::spec(pod).security_context.clone().unwrap_or_default();
    let id = |value: Option<i64>, field: &str| {
        value
            .map(|v| u32::try_from(v).map_err(|_out_of_range| format!("{field} {v} is out of range")))
            .transpose()
    };
    let run_as_user = id(own.run_as_user.or(shared.run_as_user), "runAsUser")?;
    let run_as_group = id(own.run_as_group.or(shared.run_as_group), "runAsGroup")?;
    let run_as_non_root = own.run_as_non_root.or(shared.run_as_non_root) == Some(true);
    if run_as_non_root {
        verify_non_root(pod, container, run_as_user, image)?;
    }
    let privileged = own.privileged == Some(true);
    let mut groups = Vec::new();
    for group in shared.supplemental_groups.iter().flatten().copied().chain(shared.fs_group) {
        groups.extend(id(Some(group), "supplementalGroups")?);
    }
    let (add, drop) = own.capabilities.map(|c| (c.add, c.drop)).unwrap_or_default();
    let strip = |list: Option<Vec<String>>| -> Vec<String> {
        list.into_iter().flatten().map(|c| c.strip_prefix("CAP_").map_or(c.clone(), str::to_owned)).collect()
    };
    Ok(SecurityContext {
        add_capabilities: strip(add),
        drop_capabilities: strip(drop),
        privileged,
        run_as_user,
        run_as_group,
        // Without a user of the pod, the image's user counts; the runtime reads it from the image.
        run_as_username: None,
        run_as_non_root,
        supplemental_groups: groups,
        strict_supplemental_groups: shared.supplemental_groups_policy.as_deref() == Some("Strict"),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp: seccomp(own.seccomp_profile.or(shared.seccomp_profile).as_ref(), privileged, seccomp_root)?,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
        target_id: None,
    })
}

fn verify_non_root(pod: &Pod, container: &Container, user: Option<u32>, image: &Image) -> Result<(), String> {
    let pod = pod.describe();
    let name = &container.name;
    match (user, image.uid) {
        (Some(0), _) => {
            Err(format!("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {name})"))
        }
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(format!(
            "container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {name})"
        )),
        (None, Some(_)) => Ok(()),
        (None, None) if !image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root (pod: {pod:?}, container: {name})",
            image.username
        )),
        // An image without a user runs as root.
        (None, None) => Err(format!(
            "container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {name})"
        )),
    }
}

fn seccomp(profile: Option<&ApiSeccomp>, privileged: bool, root: &Path) -> Result<SeccompProfile, String> {
    if privileged {
        return Ok(SeccompProfile::Unconfined);
    }
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        // Keelson's default is RuntimeDefault (upstream's seccompDefault: true).
        None | Some(("RuntimeDefault", _)) => Ok(SeccompProfile::RuntimeDefault),
        Some(("Unconfined", _)) => Ok(SeccompProfile::Unconfined),
        Some(("Localhost", Some(name))) if stays_below(name) => {
            Ok(SeccompProfile::Localhost(root.join(name)))
        }
        Some(("Localhost", Some(name))) => {
            Err(format!("localhostProfile {name:?} is not a path below the seccomp folder"))
        }
        Some(("Localhost", None)) => {
            Err("localhostProfile must be set if seccompProfile type is Localhost.".into())
        }
        Some((other, _)) => Err(format!("unknown seccompProfile type {other:?}")),
    }
}

/// Whether a relative path never leaves the folder that it is joined to.
pub fn stays_below(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    fn run(
        pod: serde_json::Value,
        own: serde_json::Value,
        uid: Option<u32>,
    ) -> Result<SecurityContext, String> {
        let pod =
            pod_json(json!({"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}));
        let image = Image {
            id: String::new(),
            repo_tags: vec![],
            repo_digests: vec![],
            size: 0,
            uid,
            username: String::new(),
        };
        security_context(&pod, &PodExt::spec(&pod).containers[0], &image, Path::new("/s"))
    }

    #[test]
    fn the_container_wins() {
        let got = run(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]}),
            json!({"runAsUser": 5, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["CAP_NET_RAW"]}}),
            None,
        )
        .unwrap();
        assert_eq!((got.run_as_user, got.run_as_group), (Some(5), Some(2)));
        assert_eq!(got.supplemental_groups, [4, 3]);
        assert!(got.no_new_privs);
        assert_eq!(
            (got.add_capabilities, got.drop_capabilities),
            (vec!["NET_RAW".into()], vec!["ALL".into()])
        );
        assert_eq!(got.seccomp, SeccompProfile::RuntimeDefault);
    }

    #[test]
    fn non_root() {
        let policy = json!({"runAsNonRoot": true});
        assert!(run(policy.clone(), json!({}), Some(1000)).is_ok());
        assert!(run(policy.clone(), json!({"runAsUser": 7}), Some(0)).is_ok());
        let error = run(policy.clone(), json!({}), Some(0)).unwrap_err();
        assert!(error.starts_with("container has runAsNonRoot and image will run as root"), "{error}");
        assert!(run(policy.clone(), json!({"runAsUser": 0}), Some(5)).is_err());
        assert!(run(policy, json!({}), None).is_err());
    }

    #[test]
    fn seccomp_profiles() {
        let profile =
            |v: serde_json::Value| run(json!({}), json!({"seccompProfile": v}), None).map(|s| s.seccomp);
        assert_eq!(
            profile(json!({"type": "Localhost", "localhostProfile": "a/b.json"})),
            Ok(SeccompProfile::Localhost("/s/a/b.json".into()))
        );
        assert!(profile(json!({"type": "Localhost", "localhostProfile": "../x"})).is_err());
        assert_eq!(profile(json!({"type": "Unconfined"})), Ok(SeccompProfile::Unconfined));
    }
}
