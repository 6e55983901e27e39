//! What an agent does at its start: it finds what its predecessor left. Records on disk say what there should be; the
//! kernel (pidfds) and podinits say what there is.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use keelson_cri::{ContainerState, CriError, NamespaceMode, Result};

use crate::podinit::Podinit;
use crate::runtime::{Container, Runtime, Sandbox, internal, lock, podinit_cgroup};
use crate::sandbox::SOCKET;
use crate::state::{self, ContainerRecord, SandboxPhase, SandboxRecord};

impl Runtime {
    /// Adopts all sandboxes and containers, then clears away what belongs to none.
    pub(crate) async fn adopt(&self) {
        for path in entries(&self.config.root.join("sandboxes")) {
            if path.extension().is_none_or(|e| e != "json") {
                // A record that was being written.
                if let Err(err) = std::fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %err, "clearing an unfinished record");
                }
                continue;
            }
            match state::load::<SandboxRecord>(&path) {
                Ok(record) if record.phase == SandboxPhase::Creating => {
                    self.undo_sandbox(Sandbox::new(record)).await;
                }
                Ok(record) => {
                    let sandbox = Sandbox::new(record);
                    lock(&self.sandboxes).insert(sandbox.id.clone(), sandbox);
                }
                Err(err) => tracing::error!(path = %path.display(), %err, "unreadable sandbox record"),
            }
        }
        for dir in entries(&self.config.root.join("containers")) {
            let Some(id) = dir.file_name().and_then(|n| n.to_str()).map(ToString::to_string) else {
                continue;
            };
            let loaded = state::load::<ContainerRecord>(&self.config.container_record(&id));
            let adopted = loaded.map_err(internal("record")).and_then(|record| {
                let sandbox = self.sandbox(&record.sandbox_id)?;
                Ok(Container::new(sandbox, record))
            });
            match adopted {
                Ok(container) => drop(lock(&self.containers).insert(id, container)),
                Err(err) => {
                    tracing::info!(container = id, %err, "clearing a half-made container");
                    if let Err(err) = self.clear_container(&id).await {
                        tracing::warn!(container = id, %err, "clearing a half-made container");
                    }
                }
            }
        }
        let sandboxes: Vec<_> = lock(&self.sandboxes).values().cloned().collect();
        for sandbox in &sandboxes {
            self.adopt_sandbox(sandbox).await;
        }
        self.clear_strays();
        let ids: Vec<String> = sandboxes.iter().map(|s| s.id.clone()).collect();
        if let Err(err) = self.network.gc(&ids).await {
            tracing::warn!(%err, "garbage collection of pod networks");
        }
    }

    async fn adopt_sandbox(&self, sandbox: &Arc<Sandbox>) {
        let (phase, process) = {
            let record = lock(&sandbox.record);
            (record.phase, record.podinit)
        };
        if phase == SandboxPhase::Ready {
            match process.ok_or(std::io::ErrorKind::NotFound.into()).and_then(crate::state::ProcessId::open) {
                Ok(pidfd) => {
                    let pidfd = Arc::new(pidfd);
                    *lock(&sandbox.pidfd) = Some(pidfd.clone());
                    self.watch_podinit(sandbox, &pidfd);
                    match self.join_podinit(sandbox).await {
                        Ok(()) => return,
                        Err(err) => {
                            tracing::error!(sandbox = sandbox.id, %err, "podinit lives but can't be joined")
                        }
                    }
                }
                Err(_gone) => {
                    self.sandbox_died(sandbox);
                }
            }
        }
        // No podinit to ask: what ran has ended, and its record on disk says how.
        for container in self.containers_of(&sandbox.id) {
            if container.state() == ContainerState::Running {
                self.finish(&container, self.exit_record(&container.id));
            }
        }
    }

    /// Connects to a living podinit and catches up with what happened meanwhile.
    pub(crate) async fn join_podinit(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let run = self.config.sandbox_run(&sandbox.id);
        let podinit = Podinit::connect(&run, SOCKET, &sandbox.id, self.notices.clone()).await;
        let podinit = podinit.map_err(internal("connecting to podinit"))?;
        let known = podinit.list().await.map_err(internal("asking podinit"))?;
        *lock(&sandbox.podinit) = Some(podinit.clone());
        let host_pid = lock(&sandbox.record).config.namespaces.pid == NamespaceMode::Node;
        let containers = self.containers_of(&sandbox.id);
        for process in &known {
            self.on_exit(process);
            let ours =
                containers.iter().any(|c| c.id == process.id) || lock(&self.execs).contains_key(&process.id);
            // An exec of an agent that is gone has lost its streams: it is left to end by itself.
            if !ours && process.exit.is_some() {
                podinit.release(&process.id).await;
            }
        }
        for container in containers {
            match container.state() {
                ContainerState::Running if host_pid => {
                    let name = format!("{}.sock", container.id);
                    if let Ok(own) = Podinit::connect(&run, &name, &sandbox.id, self.notices.clone()).await {
                        for process in own.list().await.unwrap_or_default() {
                            self.on_exit(&process);
                        }
                        *lock(&container.own_podinit) = Some(own);
                    } else {
                        self.finish(&container, self.exit_record(&container.id));
                    }
                }
                ContainerState::Running if !known.iter().any(|p| p.id == container.id) => {
                    self.finish(&container, self.exit_record(&container.id));
                }
                // The agent died between the registration and the start: the process has given up by itself.
                ContainerState::Created if known.iter().any(|p| p.id == container.id) => {
                    podinit.release(&container.id).await;
                }
                _ => {}
            }
            if container.state() == ContainerState::Running {
                let process = lock(&container.record).process;
                let opened = process
                    .ok_or(std::io::ErrorKind::NotFound.into())
                    .and_then(crate::state::ProcessId::open);
                *lock(&container.pidfd) = opened.ok().map(Arc::new);
            }
        }
        Ok(())
    }

    /// A container's folder without a record that can be used.
    async fn clear_container(&self, id: &str) -> Result<()> {
        let cgroup = find_cgroup(&self.config.cgroup_root.join("kubepods"), id, 4)
            .and_then(|p| p.strip_prefix(&self.config.cgroup_root).ok()?.to_str().map(ToString::to_string));
        match cgroup {
            Some(cgroup) => self.drop_container_files(id, &cgroup).await,
            None => {
                self.images.release(id).await?;
                std::fs::remove_dir_all(self.config.container_dir(id))
                    .map_err(|e| CriError::Internal(e.to_string()))
            }
        }
    }

    /// Folders, mounts and podinit cgroups of sandboxes that have no record.
    fn clear_strays(&self) {
        let known: HashSet<String> = lock(&self.sandboxes).keys().cloned().collect();
        let mut strays = HashSet::new();
        for dir in [self.config.run.join("sandboxes"), self.config.run.join("netns")] {
            strays.extend(
                entries(&dir).iter().filter_map(|p| p.file_name()?.to_str().map(ToString::to_string)),
            );
        }
        let cgroups = entries(&self.config.cgroup_root.join(crate::cgroup::PODINIT));
        let is_id = |n: &str| n.len() == 64 && n.bytes().all(|b| b.is_ascii_hexdigit());
        strays.extend(
            cgroups.iter().filter(|p| p.is_dir()).filter_map(|p| Some(p.file_name()?.to_str()?.to_string())),
        );
        for id in strays.iter().filter(|id| is_id(id) && !known.contains(*id)) {
            tracing::info!(sandbox = id, "clearing what is left of an unknown sandbox");
            let cgroup = podinit_cgroup(id);
            // cgroup.kill is asynchronous; a cgroup still busy is removed at the next start.
            let killed = std::fs::write(self.cgroups.path(&cgroup).join("cgroup.kill"), "1");
            if let Err(err) = self.drop_mounts(id) {
                tracing::warn!(sandbox = id, %err, "clearing an unknown sandbox");
            }
            if killed.is_ok()
                && let Err(err) = self.cgroups.remove(&cgroup)
            {
                tracing::debug!(sandbox = id, %err, "cgroup of an unknown sandbox is still busy");
            }
        }
    }
}

fn entries(dir: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

fn find_cgroup(dir: &Path, id: &str, depth: u32) -> Option<std::path::PathBuf> {
    for path in entries(dir).into_iter().filter(|p| p.is_dir()) {
        if path.file_name().is_some_and(|n| n == id) {
            return Some(path);
        }
        if depth > 0
            && let Some(found) = find_cgroup(&path, id, depth - 1)
        {
            return Some(found);
        }
    }
    None
}
