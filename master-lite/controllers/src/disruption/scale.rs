//! How many pods the controllers of some pods want together.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::{Informer, Key, meta};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::{Api, Client, discovery};

use crate::error::{Error, Result};

/// Where controllers of pods are found.
pub struct Scales {
    /// For kinds that have no cache here.
    pub client: Client,
    /// All deployments.
    pub deployments: Arc<Informer<Deployment>>,
    /// All replica sets.
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    /// All stateful sets.
    pub stateful_sets: Arc<Informer<StatefulSet>>,
    /// All replication controllers.
    pub replication_controllers: Arc<Informer<ReplicationController>>,
}

/// What the controllers of some pods want.
#[derive(Debug, Default)]
pub struct Total {
    /// Pods, together.
    pub wanted: i32,
    /// Whether some pod has no controller.
    pub has_unmanaged: bool,
}

impl Scales {
    /// Adds up what the controllers of `pods` want. The scale of a deployment stands for those of its replica sets.
    ///
    /// # Errors
    /// A pod's controller is gone, or has no scale.
    pub async fn total(&self, pods: &[Arc<Pod>]) -> Result<Total> {
        let mut total = Total::default();
        // By the controller that a pod names; and by the one that it stands for.
        let mut known: HashMap<&str, String> = HashMap::new();
        let mut scales: HashMap<String, i32> = HashMap::new();
        for pod in pods {
            let Some(owner) = meta::controller_of(&pod.metadata) else {
                total.has_unmanaged = true;
                continue;
            };
            if known.contains_key(owner.uid.as_str()) {
                continue;
            }
            let (uid, scale) = self.of(meta::namespace(&pod.metadata), owner).await?.ok_or_else(|| {
                Error::Pending(format!("found no controllers for pod {:?}", meta::name(&pod.metadata)))
            })?;
            known.insert(owner.uid.as_str(), uid.clone());
            scales.insert(uid, scale);
        }
        total.wanted = scales.values().fold(0, |sum, scale| sum.saturating_add(*scale));
        Ok(total)
    }

    /// The controller that counts, and how many pods it wants.
    async fn of(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>> {
        let key = Key::new(namespace, &owner.name);
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        // One that is made anew under the name is another.
        let same = |uid: Option<&String>, wanted: Option<i32>| {
            uid.filter(|uid| **uid == owner.uid).map(|uid| (uid.clone(), wanted.unwrap_or(1)))
        };
        match (group, owner.kind.as_str()) {
            ("", "ReplicationController") => Ok(self.replication_controllers.get(&key).and_then(|found| {
                same(found.metadata.uid.as_ref(), found.spec.as_ref().and_then(|s| s.replicas))
            })),
            ("apps", "StatefulSet") => Ok(self.stateful_sets.get(&key).and_then(|found| {
                same(found.metadata.uid.as_ref(), found.spec.as_ref().and_then(|s| s.replicas))
            })),
            ("apps", "ReplicaSet") => Ok(self.of_replica_set(namespace, &key, owner)),
            _ => self.of_other(namespace, group, owner).await,
        }
    }

    fn of_replica_set(&self, namespace: &str, key: &Key, owner: &OwnerReference) -> Option<(String, i32)> {
        let set = self.replica_sets.get(key).filter(|set| meta::uid(&set.metadata) == owner.uid)?;
        let of = meta::controller_of(&set.metadata).filter(|of| of.kind == "Deployment");
        let Some(of) = of else {
            return Some((owner.uid.clone(), set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)));
        };
        let found = self.deployments.get(&Key::new(namespace, &of.name))?;
        let wanted = found.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        (meta::uid(&found.metadata) == of.uid).then(|| (of.uid.clone(), wanted))
    }

    /// Any kind that can be scaled.
    async fn of_other(
        &self,
        namespace: &str,
        group: &str,
        owner: &OwnerReference,
    ) -> Result<Option<(String, i32)>> {
        let version = owner.api_version.rsplit('/').next().unwrap_or_default();
        let gvk = GroupVersionKind::gvk(group, version, &owner.kind);
        let (resource, capabilities) = discovery::pinned_kind(&self.client, &gvk).await?;
        if !capabilities
            .subresources
            .iter()
            .any(|(sub, _)| sub.plural.ends_with("/scale") || sub.plural == "scale")
        {
            let name = if group.is_empty() {
                resource.plural.clone()
            } else {
                format!("{}.{group}", resource.plural)
            };
            return Err(Error::Pending(format!("{name} does not implement the scale subresource")));
        }
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        match api.get_scale(&owner.name).await {
            Ok(scale) if scale.metadata.uid.as_ref() == Some(&owner.uid) => {
                let wanted = scale.spec.and_then(|s| s.replicas).unwrap_or(0);
                Ok(Some((owner.uid.clone(), wanted)))
            }
            Ok(_) => Ok(None),
            Err(error) if meta::is_not_found(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
