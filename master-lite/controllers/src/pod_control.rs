//! Making, deleting, adopting and releasing what a controller manages.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{Delta, EventType, Recorder, Selector, meta, pods};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::{Error, Result};

/// Pods made at once at first; each batch that succeeds doubles the next.
const SLOW_START: usize = 1;

/// Writes pods on behalf of their owner, with the owner's events.
#[derive(Clone)]
pub struct PodControl {
    client: Client,
    recorder: Recorder,
}

impl PodControl {
    /// Acts through `client` and reports through `recorder`.
    pub fn new(client: Client, recorder: Recorder) -> Self {
        PodControl { client, recorder }
    }

    /// The pods of a namespace.
    pub fn api(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes a pod from `template`, managed by `owner`.
    ///
    /// # Errors
    /// What the API says; an event on the owner says it too, unless the namespace is going away.
    pub async fn create<K: Resource<DynamicType = ()>>(
        &self,
        owner: &K,
        template: &PodTemplateSpec,
    ) -> Result<Pod> {
        self.create_named(owner, template, &format!("{}-", meta::name(owner.meta()))).await
    }

    /// The same, with a name that begins with `base`.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub async fn create_named<K: Resource<DynamicType = ()>>(
        &self,
        owner: &K,
        template: &PodTemplateSpec,
        base: &str,
    ) -> Result<Pod> {
        let pod = pod_from_template(owner, template, base);
        match self.api(meta::namespace(owner.meta())).create(&PostParams::default(), &pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", meta::name(&pod.metadata));
                self.recorder.event(owner, EventType::Normal, "SuccessfulCreate", message);
                Ok(pod)
            }
            Err(error) => {
                if !meta::is_namespace_terminating(&error) {
                    let message = format!("Error creating: {}", meta::message(&error));
                    self.recorder.event(owner, EventType::Warning, "FailedCreate", message);
                }
                Err(error.into())
            }
        }
    }

    /// Deletes a pod of `owner`. One that is gone already counts as a failure to the caller, as upstream, for its
    /// deletion will not be seen.
    ///
    /// # Errors
    /// What the API says; an event on the owner says it too.
    pub async fn delete<K: Resource<DynamicType = ()>>(&self, owner: &K, pod: &Pod) -> Result {
        let name = meta::name(&pod.metadata);
        let deletion = self.api(meta::namespace(&pod.metadata)).delete(name, &DeleteParams::default()).await;
        match deletion {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.event(owner, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            Err(error) => {
                if !meta::is_not_found(&error) {
                    let message = format!("Error deleting: {}", meta::message(&error));
                    self.recorder.event(owner, EventType::Warning, "FailedDelete", message);
                }
                Err(error.into())
            }
        }
    }
}

/// The pod that `template` describes, with a name that begins with `base`.
pub fn pod_from_template<K: Resource<DynamicType = ()>>(
    owner: &K,
    template: &PodTemplateSpec,
    base: &str,
) -> Pod {
    let of_template = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(base.to_owned()),
            namespace: owner.meta().namespace.clone(),
            labels: of_template.labels,
            annotations: of_template.annotations,
            finalizers: of_template.finalizers,
            owner_references: Some(vec![meta::controller_ref(owner)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Runs `work` `count` times, with the numbers from 0, in batches that double as long as all goes well, so that a set whose pods are all
/// refused asks once and not a thousand times. Returns how often it succeeded, and the first error.
pub async fn slow_start<F, Fut>(count: usize, work: F) -> (usize, Option<Error>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result>,
{
    let (mut done, mut batch) = (0, SLOW_START.min(count));
    while batch > 0 {
        let outcomes = join_all((done..done + batch).map(&work)).await;
        let (good, bad): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.is_ok());
        done += good.len();
        if let Some(Err(error)) = bad.into_iter().next() {
            return (done, Some(error));
        }
        batch = (2 * batch).min(count - done);
    }
    (done, None)
}

/// How long after this change of a pod its owner has to look again: a pod that has just become ready counts as
/// available only after a while.
pub fn wait_for_availability(delta: &Delta<Pod>, min_ready_seconds: i32) -> Option<Duration> {
    let became_ready = delta.old().is_some_and(|old| !pods::is_ready(old)) && pods::is_ready(delta.object());
    let wait = u64::try_from(min_ready_seconds).ok().filter(|wait| *wait > 0 && became_ready)?;
    // One second more, for clocks are cut to seconds.
    Some(Duration::from_secs(wait + 1))
}

/// What shall become of an object that an owner with a selector finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the owner's.
    Keep,
    /// It is no one's and matches: take it.
    Adopt,
    /// It is the owner's and matches no more: let it go.
    Release,
    /// It is none of the owner's business.
    Ignore,
}

/// Decides about one object (`BaseControllerRefManager.ClaimObject`).
pub fn claim(owner: &ObjectMeta, selector: &Selector, object: &ObjectMeta) -> Claim {
    let matches = selector.matches(object.labels.as_ref());
    let owner_going = owner.deletion_timestamp.is_some();
    match meta::controller_of(object) {
        Some(present) if present.uid != meta::uid(owner) => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner_going => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_going || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// Adopts and releases as [`claim`] says, and returns what is the owner's.
///
/// # Errors
/// What the API says; objects that are gone meanwhile are no error.
pub async fn claim_all<O, K>(
    owners: &Api<O>,
    owner: &O,
    selector: &Selector,
    objects: &Api<K>,
    found: Vec<Arc<K>>,
) -> Result<Vec<Arc<K>>>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    Adoption { owners, owner, finalizer: None }.claim(selector, objects, found).await
}

/// How an owner takes objects and lets them go.
pub struct Adoption<'a, O: Resource<DynamicType = ()>> {
    /// Where the owner is read anew before the first adoption: if it is being deleted, or another has its name by
    /// now, nothing may be adopted.
    pub owners: &'a Api<O>,
    /// The owner.
    pub owner: &'a O,
    /// What holds the owner's objects, if anything does.
    pub finalizer: Option<&'static str>,
}

impl<O> Adoption<'_, O>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    /// Adopts and releases as [`claim`] says, and returns what is the owner's.
    ///
    /// # Errors
    /// What the API says; objects that are gone meanwhile are no error.
    pub async fn claim<K>(
        &self,
        selector: &Selector,
        objects: &Api<K>,
        found: Vec<Arc<K>>,
    ) -> Result<Vec<Arc<K>>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let owner = self.owner.meta();
        let mut claimed = Vec::with_capacity(found.len());
        let mut may_adopt = false;
        for object in found {
            let patch = match claim(owner, selector, object.meta()) {
                Claim::Ignore => continue,
                Claim::Keep => {
                    claimed.push(object);
                    continue;
                }
                Claim::Adopt => {
                    if !may_adopt {
                        self.recheck().await?;
                        may_adopt = true;
                    }
                    adoption(meta::controller_ref(self.owner), object.meta(), self.finalizer)
                }
                Claim::Release => release(meta::uid(owner), object.meta(), self.finalizer),
            };
            let name = meta::name(object.meta());
            match objects.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(patched) => {
                    if meta::is_controlled_by(patched.meta(), meta::uid(owner)) {
                        claimed.push(Arc::new(patched));
                    }
                }
                Err(error) if meta::is_not_found(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(claimed)
    }

    async fn recheck(&self) -> Result {
        let owner = self.owner.meta();
        let name = meta::name(owner);
        let fresh = self.owners.get(name).await?;
        if fresh.meta().uid != owner.uid {
            return Err(Error::Pending(format!("{name} is gone: another object has its name")));
        }
        if fresh.meta().deletion_timestamp.is_some() {
            return Err(Error::Pending(format!("{name} is being deleted and adopts nothing")));
        }
        Ok(())
    }
}

/// The uid guards against another object of the same name.
fn adoption(owner: OwnerReference, object: &ObjectMeta, finalizer: Option<&str>) -> serde_json::Value {
    let mut patch = json!({"metadata": {"uid": object.uid, "ownerReferences": [owner]}});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["finalizers"] = json!([finalizer]);
    }
    patch
}

fn release(owner: &str, object: &ObjectMeta, finalizer: Option<&str>) -> serde_json::Value {
    let gone = json!({"$patch": "delete", "uid": owner});
    let mut patch = json!({"metadata": {"uid": object.uid, "ownerReferences": [gone]}});
    if let Some(finalizer) = finalizer {
        patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    patch
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn check_slow_start(count: usize, fail_from: usize, tried: usize, done: usize) {
        let calls = AtomicUsize::new(0);
        let (succeeded, _) = slow_start(count, |_| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            async move { if call < fail_from { Ok(()) } else { Err(Error::Stale) } }
        })
        .await;
        assert_eq!((calls.into_inner(), succeeded), (tried, done));
    }

    #[tokio::test]
    async fn slow_start_stops_at_the_first_batch_that_fails() {
        check_slow_start(10, 100, 10, 10).await;
        check_slow_start(10, 0, 1, 0).await;
        check_slow_start(10, 2, 3, 2).await;
        check_slow_start(0, 0, 0, 0).await;
    }

    #[test]
    fn claims() {
        let labels = |app: &str| Some([("app".to_string(), app.to_string())].into());
        let owner = ObjectMeta { uid: Some("me".into()), ..Default::default() };
        let selector = Selector::from_map(&labels("web").unwrap());
        let object = |app: &str, by: Option<&str>| ObjectMeta {
            labels: labels(app),
            owner_references: by.map(|uid| {
                vec![OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() }]
            }),
            ..Default::default()
        };
        assert_eq!(claim(&owner, &selector, &object("web", Some("me"))), Claim::Keep);
        assert_eq!(claim(&owner, &selector, &object("web", None)), Claim::Adopt);
        assert_eq!(claim(&owner, &selector, &object("db", Some("me"))), Claim::Release);
        assert_eq!(claim(&owner, &selector, &object("web", Some("other"))), Claim::Ignore);
        assert_eq!(claim(&owner, &selector, &object("db", None)), Claim::Ignore);
    }
}
