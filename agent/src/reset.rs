//! `keelson-agent reset`: all that agents made on this machine is taken back, in the spirit of `kubeadm reset`.
//!
//! It stands on the same parts as the agent: the runtime adopts what runs and ends it, which also has the CNI plugin free
//! each pod's network. What is left then belongs to nobody else and is removed piece by piece.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use keelson_cri::RuntimeService;
use keelson_images::ImageStore;
use keelson_kubelet::volumes::mounter::{HostMounter, Mounter};
use keelson_runtime::Runtime;

use crate::config::Config;
use crate::network::CniNetwork;

/// Resets. Every step is tried; files are removed only when nothing is mounted on them and no pod is left.
pub async fn run(config: &Config, keep_files: bool) -> anyhow::Result<()> {
    let mut steps = Steps::default();
    steps.note("end the pods", end_pods(config).await);
    let kubepods = [config.pods.cgroup_parent.as_str()];
    let cgroups = keelson_runtime::remove_cgroups(&config.runtime.cgroup_root, &kubepods).await;
    steps.note("remove the pods' cgroups", cgroups.map_err(Into::into));
    for dir in [&config.pods.root_dir, &config.runtime.root, &config.runtime.run] {
        steps.note("unmount", unmount_below(dir, &HostMounter));
    }
    let detached = keelson_proxy::kernel::detach(&config.proxy.pin_dir);
    steps.note("remove the BPF programs", detached.map_err(Into::into));
    let retired = keelson_dns::worker::retire(&config.dns_worker).await;
    steps.note("end the DNS worker", retired.map_err(Into::into));
    let local: Vec<_> = config.dns.listen.iter().map(std::net::SocketAddr::ip).collect();
    let network = keelson_cni::reset::reset(&config.network.conf_dir, &local).await;
    steps.note("remove the pod network", network.map_err(Into::into));
    if steps.failed.is_empty() {
        for path in files(config, keep_files) {
            steps.note("remove files", remove(&path));
        }
    }
    steps.finish()
}

/// What is removed in the end. Nothing of these is mounted on any more.
fn files(config: &Config, keep_files: bool) -> Vec<PathBuf> {
    let mut files = vec![config.runtime.run.clone()];
    if !keep_files {
        files.extend([
            config.join.kubeconfig.clone(),
            config.join.cert_dir.clone(),
            config.pods.root_dir.clone(),
            config.pods.pod_logs_dir.clone(),
            config.pods.container_logs_dir.clone(),
            config.runtime.root.clone(),
        ]);
    }
    files
}

/// Ends and removes every sandbox that an agent made.
async fn end_pods(config: &Config) -> anyhow::Result<()> {
    if !config.runtime.root.join("sandboxes").exists() {
        // No agent ever ran, and opening the stores would leave traces.
        return Ok(());
    }
    let images = ImageStore::open(config.images.clone()).await.context("open the image store")?;
    let network = Arc::new(CniNetwork::new(config.network.clone()));
    // Nothing is started here that would need a limit.
    let runtime = keelson_runtime::Config { allow_missing_controllers: true, ..config.runtime.clone() };
    let runtime = Runtime::new(runtime, network, images).await.context("start the runtime")?;
    let mut steps = Steps::default();
    for sandbox in runtime.list_pod_sandboxes().await? {
        let ended = runtime.remove_pod_sandbox(&sandbox.id).await;
        steps.note(&format!("end sandbox {}", sandbox.id), ended.map_err(Into::into));
    }
    steps.finish()
}

/// Unmounts all that is mounted at or below a folder, so that removing it can't reach what is mounted there.
fn unmount_below(dir: &Path, mounter: &dyn Mounter) -> anyhow::Result<()> {
    for point in mounter.mounts_below(dir)? {
        // A disk of the state's own, which is the administrator's: its content goes, the mount stays.
        if point != *dir {
            mounter.unmount(&point).with_context(|| point.display().to_string())?;
        }
    }
    Ok(())
}

/// Removes a file or a folder with what is in it. A mount point is emptied and stays.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ResourceBusy) =>
        {
            Ok(())
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Failures of steps that don't need each other.
#[derive(Default)]
struct Steps {
    failed: Vec<String>,
}

impl Steps {
    fn note(&mut self, what: &str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => tracing::debug!(what, "done"),
            Err(error) => self.failed.push(format!("{what}: {error:#}")),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        anyhow::ensure!(self.failed.is_empty(), "{}", self.failed.join("; "));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::flags::Flags;

    #[test]
    fn files_stay_where_they_are_wanted() {
        let args = ["keelson-agent", "--root-dir=/r", "--state-dir=/s", "--run-dir=/n"];
        let config = Config::new(Flags::try_parse_from(args).unwrap()).unwrap();
        assert_eq!(files(&config, true), [PathBuf::from("/n")]);
        let all = files(&config, false);
        for path in ["/n", "/r", "/s", "/etc/kubernetes/kubelet.conf", "/r/pki", "/var/log/pods"] {
            assert!(all.contains(&PathBuf::from(path)), "{path}: {all:?}");
        }
    }

    #[test]
    fn removing_is_idempotent() {
        let dir = std::env::temp_dir().join(format!("keelson-reset-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        let outside = dir.with_extension("outside");
        std::fs::write(&outside, "kept").unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("a/link")).unwrap();
        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists() && outside.exists());
        remove(&outside).unwrap();
    }

    #[test]
    fn every_failure_is_told() {
        let mut steps = Steps::default();
        steps.note("one", Ok(()));
        steps.note("two", Err(anyhow::anyhow!("broken")));
        steps.note("three", Err(anyhow::anyhow!("too")));
        assert_eq!(steps.finish().unwrap_err().to_string(), "two: broken; three: too");
    }
}
