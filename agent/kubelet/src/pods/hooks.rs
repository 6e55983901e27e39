//! postStart and preStop. Source: upstream `pkg/kubelet/lifecycle/handlers.go`.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use keelson_cri::RuntimeService;

use crate::probes::Reach;
use crate::probes::exec::{ExecEnd, run};
use crate::probes::http::{HttpTarget, get};

/// A hook without a limit of its own ends with the pod's grace period; this bounds a postStart.
const MAX_HTTP: Duration = Duration::from_secs(30);

/// Runs a hook. The error is the message of `FailedPostStartHook` or `FailedPreStopHook`.
pub async fn run_hook(
    runtime: &dyn RuntimeService,
    reach: Reach,
    container_id: &str,
    container: &Container,
    hook: &LifecycleHandler,
    pod_ip: Option<IpAddr>,
    limit: Duration,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return match run(runtime, container_id, command, limit).await {
            ExecEnd::Exited(0, _) => Ok(()),
            ExecEnd::Exited(code, output) => {
                Err(format!("command '{}' exited with {code}: {output}", command.join(" ")))
            }
            ExecEnd::TimedOut => Err(format!("command '{}' timed out", command.join(" "))),
            ExecEnd::Error(error) => Err(error),
        };
    }
    if let Some(action) = &hook.http_get {
        let target = HttpTarget::new(action, container, pod_ip)?;
        if reach == Reach::Nobody {
            return Ok(());
        }
        let answer = get(&target, limit.min(MAX_HTTP)).await?;
        let status = answer.status;
        return if status < 400 {
            Ok(())
        } else {
            Err(format!("HTTP hook failed with statuscode: {status}"))
        };
    }
    if let Some(action) = &hook.sleep {
        let seconds = Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0));
        tokio::time::sleep(seconds.min(limit)).await;
        return Ok(());
    }
    Err("invalid handler: tcpSocket is not supported as a lifecycle hook".into())
}
