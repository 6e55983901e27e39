//! When a followed log ends: with its container.

use std::sync::Arc;

use keelson_cri::{ContainerEvent, ContainerState, CriError, RuntimeService};
use tokio::sync::broadcast::error::RecvError;

/// Returns once the container runs no more (or is gone).
pub(super) async fn ended(runtime: Arc<dyn RuntimeService>, id: String) {
    // Listening begins before asking, so that no end falls between.
    let mut events = runtime.events();
    loop {
        match runtime.container_status(&id).await {
            Ok(status) if matches!(status.state, ContainerState::Exited | ContainerState::Unknown) => return,
            Err(CriError::NotFound(_)) => return,
            Ok(_) | Err(_) => {}
        }
        loop {
            match events.recv().await {
                Ok(ContainerEvent::Exited { container_id, .. }) if container_id == id => break,
                Ok(ContainerEvent::SandboxDied { .. }) | Err(RecvError::Lagged(_)) => break,
                Ok(_) => {}
                // The runtime is going down, and this process with it.
                Err(RecvError::Closed) => return,
            }
        }
    }
}
