//! What a pod may ask for and this scheduler cannot arrange yet. It says so instead of placing the pod wrongly.

use k8s_openapi::api::core::v1::Pod;

use crate::framework::{ClusterEvent, Filter, Prepared};
use crate::node_info::{PodInfo, Snapshot};

/// Rejects pods whose volumes or devices would need a plugin that is not there.
pub struct Unsupported;

impl Filter for Unsupported {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn prepare<'a>(&self, pod: &'a PodInfo, _: &'a Snapshot) -> Prepared<'a> {
        let Some(spec) = &pod.pod.spec else { return Prepared::Skip };
        for volume in spec.volumes.iter().flatten() {
            let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => claim.claim_name.clone(),
                (None, Some(_)) => {
                    format!("{}-{}", pod.pod.metadata.name.as_deref().unwrap_or_default(), volume.name)
                }
                (None, None) => continue,
            };
            return Prepared::Never(format!(
                "pod uses persistentvolumeclaim {claim:?}, and this scheduler binds no volumes"
            ));
        }
        if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
            return Prepared::Never(
                "pod uses resource claims, and this scheduler has no dynamic resource allocation".into(),
            );
        }
        Prepared::Skip
    }

    fn wakes(&self, _: &Pod, _: &ClusterEvent) -> bool {
        false
    }
}
