//! Folders of pods that are gone.

use std::collections::HashSet;
use std::path::Path;

use super::manager::PodManagerConfig;
use crate::volumes::mounter::Mounter;
use crate::volumes::setup::remove_dir;

/// Removes a pod's log folder and the symlinks that point into it.
pub fn remove_logs(config: &PodManagerConfig, dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(&config.container_logs_dir).into_iter().flatten().flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(dir)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes folders that belong to none of these pods: left by an agent that ended between two steps.
pub fn sweep(config: &PodManagerConfig, mounter: &dyn Mounter, known: &HashSet<String>) {
    for entry in std::fs::read_dir(config.root_dir.join("pods")).into_iter().flatten().flatten() {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if known.contains(&uid) {
            continue;
        }
        if let Err(error) = remove_dir(mounter, &entry.path()) {
            tracing::warn!(%error, uid, "folder of a pod that is gone not removed");
        }
    }
    for entry in std::fs::read_dir(&config.pod_logs_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let uid = name.rsplit('_').next().unwrap_or_default();
        if known.contains(uid) {
            continue;
        }
        if let Err(error) = remove_logs(config, &entry.path()) {
            tracing::warn!(%error, uid, "logs of a pod that is gone not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::mounter::FakeMounter;

    #[test]
    fn only_unknown_pods_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = PodManagerConfig::new("n1", vec![]);
        config.root_dir = dir.path().join("kubelet");
        config.pod_logs_dir = dir.path().join("pods");
        config.container_logs_dir = dir.path().join("containers");
        for path in
            ["kubelet/pods/a/volumes", "kubelet/pods/b", "pods/ns_p_a/c", "pods/ns_p_b/c", "containers"]
        {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::os::unix::fs::symlink(
            dir.path().join("pods/ns_p_b/c/0.log"),
            dir.path().join("containers/b.log"),
        )
        .unwrap();
        sweep(&config, &FakeMounter::default(), &HashSet::from(["a".to_owned()]));
        assert!(dir.path().join("kubelet/pods/a").exists() && dir.path().join("pods/ns_p_a").exists());
        assert!(!dir.path().join("kubelet/pods/b").exists() && !dir.path().join("pods/ns_p_b").exists());
        assert!(std::fs::symlink_metadata(dir.path().join("containers/b.log")).is_err());
    }
}
