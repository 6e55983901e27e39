//! [`Runtime`] as CRI's RuntimeService.

use std::time::Duration;

use keelson_cri::{
    ContainerConfig, ContainerEvent, ContainerStatus, ExecRequest, LinuxResources, PodSandboxConfig,
    PodSandboxStatus, ResourceUsage, Result, RuntimeService, RuntimeStatus, StreamSession,
};
use tokio::sync::broadcast;

use crate::runtime::{Runtime, internal, lock};

#[async_trait::async_trait]
impl RuntimeService for Runtime {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandboxStatus> {
        self.make_sandbox(config).await
    }

    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        self.stop_sandbox(sandbox_id).await
    }

    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<()> {
        self.remove_sandbox(sandbox_id).await
    }

    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus> {
        let sandbox = self.sandbox(sandbox_id)?;
        let record = lock(&sandbox.record);
        Ok(record.status())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>> {
        Ok(lock(&self.sandboxes).values().map(|s| lock(&s.record).status()).collect())
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        self.make_container(sandbox_id, config).await
    }

    async fn start_container(&self, container_id: &str) -> Result<()> {
        self.launch_container(container_id).await
    }

    async fn stop_container(&self, container_id: &str, grace: Duration) -> Result<()> {
        self.end_container(container_id, grace).await
    }

    async fn remove_container(&self, container_id: &str) -> Result<()> {
        self.drop_container(container_id).await
    }

    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus> {
        let container = self.container(container_id)?;
        let record = lock(&container.record);
        Ok(record.status())
    }

    async fn list_containers(&self, sandbox_id: Option<&str>) -> Result<Vec<ContainerStatus>> {
        let containers = lock(&self.containers);
        let of = |id: &str| sandbox_id.is_none_or(|wanted| wanted == id);
        Ok(containers.values().filter(|c| of(&c.sandbox.id)).map(|c| lock(&c.record).status()).collect())
    }

    async fn update_container_resources(&self, container_id: &str, resources: LinuxResources) -> Result<()> {
        self.update_resources(container_id, resources).await
    }

    async fn update_pod_sandbox_resources(&self, sandbox_id: &str, resources: LinuxResources) -> Result<()> {
        self.update_sandbox_resources(sandbox_id, resources).await
    }

    async fn update_cgroup(&self, cgroup: &str, resources: LinuxResources) -> Result<()> {
        self.cgroups.create(cgroup)?;
        self.cgroups.apply_above_containers(cgroup, &resources)
    }

    async fn exec(&self, container_id: &str, request: ExecRequest) -> Result<StreamSession> {
        self.run_exec(container_id, request).await
    }

    async fn attach(&self, container_id: &str, stdin: bool) -> Result<StreamSession> {
        self.join_streams(container_id, stdin).await
    }

    async fn port_forward(&self, sandbox_id: &str, port: u16) -> Result<tokio::net::TcpStream> {
        self.connect_port(sandbox_id, port).await
    }

    async fn reopen_container_log(&self, container_id: &str) -> Result<()> {
        self.reopen_log(container_id).await
    }

    async fn container_usage(&self, container_id: &str) -> Result<ResourceUsage> {
        let container = self.container(container_id)?;
        let mut usage = self.cgroups.usage(&container.cgroup());
        let upper = self.config.container_dir(container_id).join("upper");
        let used = tokio::task::spawn_blocking(move || keelson_tree::disk_usage(&upper));
        let what = "measuring the writable layer";
        usage.rootfs_used = Some(used.await.map_err(internal(what))?.map_err(internal(what))?);
        Ok(usage)
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        self.events.subscribe()
    }

    fn missing_controllers(&self) -> Vec<String> {
        self.cgroups.missing()
    }

    async fn status(&self) -> RuntimeStatus {
        let runtime = if self.config.cgroup_root.join("cgroup.procs").exists() {
            Ok(())
        } else {
            Err(format!("cgroup root {} is gone", self.config.cgroup_root.display()))
        };
        RuntimeStatus {
            runtime,
            network: self.network.status().await,
            missing_controllers: self.missing_controllers(),
        }
    }
}
