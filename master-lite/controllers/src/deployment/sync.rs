//! One pass over a deployment.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use keelson_client::{EventType, Key, Selector, meta, pods};
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use super::{Controller, math, revision, status};
use crate::error::{Error, Result};
use crate::hash;
use crate::pod_control::claim_all;
use crate::template;

/// The longest name that an object may have.
const MAX_NAME: usize = 253;

impl Controller {
    pub(crate) async fn sync(&self, key: &Key) -> Result {
        let Some(cached) = self.deployments.get(key) else { return Ok(()) };
        let mut pass = Pass {
            controller: self,
            api: Api::namespaced(self.client.clone(), &key.namespace),
            sets_api: Api::namespaced(self.client.clone(), &key.namespace),
            deployment: (*cached).clone(),
            key: key.clone(),
        };
        if pass.deployment.spec.as_ref().is_some_and(|s| s.selector == LabelSelector::default()) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(&*cached, EventType::Warning, "SelectingAll", message);
            return pass.observe_generation().await;
        }
        let selector = Selector::compile(pass.deployment.spec.as_ref().map(|s| &s.selector))?;
        let mut found = self.sets.controlled_by(meta::uid(&cached.metadata));
        found.extend(self.sets.orphans_in(&key.namespace));
        let sets = claim_all(&pass.api, &*cached, &selector, &pass.sets_api, found).await?;
        let mut sets: Vec<ReplicaSet> = sets.into_iter().map(Arc::unwrap_or_clone).collect();
        // The oldest set with the deployment's template is the new one, if there are several.
        sets.sort_by(|a, b| {
            let by_age = a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp);
            by_age.then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        pass.run(sets).await
    }
}

struct Pass<'a> {
    controller: &'a Controller,
    api: Api<Deployment>,
    sets_api: Api<ReplicaSet>,
    /// The deployment; its newest version after each write.
    deployment: Deployment,
    key: Key,
}

/// The set of the present template, and all others.
struct Sets {
    new: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
}

impl Sets {
    fn all(&self) -> Vec<ReplicaSet> {
        self.old.iter().chain(&self.new).cloned().collect()
    }

    fn replace(&mut self, set: ReplicaSet) {
        let present = self.old.iter_mut().chain(&mut self.new).find(|s| s.metadata.uid == set.metadata.uid);
        if let Some(present) = present {
            *present = set;
        }
    }
}

impl Pass<'_> {
    async fn run(&mut self, sets: Vec<ReplicaSet>) -> Result {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            let sets = self.new_and_old(sets, false).await?;
            return self
                .write_status(status::compute(&self.deployment, &sets.all(), sets.new.as_ref()))
                .await;
        }
        self.note_pause().await?;
        if self.is_paused() {
            return self.resize(sets).await;
        }
        if let Some(to) = revision::rollback_to(&self.deployment) {
            return self.roll_back(sets, to).await;
        }
        let wanted = math::replicas(&self.deployment);
        let scaled = sets
            .iter()
            .filter(|set| math::set_replicas(set) > 0)
            .any(|set| math::desired_annotation(set).is_some_and(|desired| desired != wanted));
        if scaled {
            return self.resize(sets).await;
        }
        if math::is_rolling(&self.deployment) { self.roll(sets).await } else { self.recreate(sets).await }
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false)
    }

    async fn observe_generation(&mut self) -> Result {
        let mut new = self.deployment.status.clone().unwrap_or_default();
        new.observed_generation = self.deployment.metadata.generation;
        self.write_status(new).await
    }

    /// Says that the deployment is paused or goes on, so that the pause does not count as lack of progress.
    async fn note_pause(&mut self) -> Result {
        if status::deadline(&self.deployment).is_none() {
            return Ok(());
        }
        let mut new = self.deployment.status.clone().unwrap_or_default();
        let present = status::get(&new, status::PROGRESSING).and_then(|c| c.reason.clone());
        if present.as_deref() == Some(status::reason::TIMED_OUT) {
            return Ok(());
        }
        let noted = present.as_deref() == Some(status::reason::PAUSED);
        let condition = match (self.is_paused(), noted) {
            (true, false) => ("Deployment is paused", status::reason::PAUSED),
            (false, true) => ("Deployment is resumed", status::reason::RESUMED),
            _ => return Ok(()),
        };
        let (message, reason) = condition;
        status::set(&mut new, status::condition(status::PROGRESSING, "Unknown", reason, message));
        self.write_status(new).await
    }

    /// Finds the set of the present template and brings its revision up to date, or makes it
    /// (`getAllReplicaSetsAndSyncRevision`).
    async fn new_and_old(&mut self, sets: Vec<ReplicaSet>, create: bool) -> Result<Sets> {
        let wanted = self.deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let is_new = |set: &ReplicaSet| {
            let of_set = set.spec.as_ref().and_then(|s| s.template.as_ref());
            of_set.is_some_and(|t| template::equal(t, &wanted))
        };
        let mut old = sets;
        let new = old.iter().position(is_new).map(|at| old.remove(at));
        let next = revision::highest(&old) + 1;
        match new {
            Some(set) => {
                let new = Some(self.update_new_set(set, next).await?);
                Ok(Sets { new, old })
            }
            None if create => {
                let new = Some(self.create_new_set(&old, next).await?);
                Ok(Sets { new, old })
            }
            None => Ok(Sets { new: None, old }),
        }
    }

    async fn update_new_set(&mut self, mut set: ReplicaSet, next: i64) -> Result<ReplicaSet> {
        let annotated = revision::annotate_new_set(&self.deployment, &mut set, next, true);
        let wait = self.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        let spec = set.spec.get_or_insert_default();
        if annotated || spec.min_ready_seconds.unwrap_or(0) != wait.unwrap_or(0) {
            spec.min_ready_seconds = wait;
            set = self.sets_api.replace(meta::name(&set.metadata), &PostParams::default(), &set).await?;
        }
        let mut target = self.deployment.clone();
        let mut changed = false;
        if let Some(number) = meta::annotation(&set.metadata, revision::REVISION) {
            changed |= revision::set_on(&mut target, number);
        }
        let state = target.status.get_or_insert_default();
        if status::deadline(&self.deployment).is_some() && status::get(state, status::PROGRESSING).is_none() {
            let message = format!("Found new replica set {:?}", meta::name(&set.metadata));
            let found = status::condition(status::PROGRESSING, "True", status::reason::FOUND, message);
            status::set(state, found);
            changed = true;
        }
        if changed {
            self.write(target).await?;
        }
        Ok(set)
    }

    async fn create_new_set(&mut self, old: &[ReplicaSet], next: i64) -> Result<ReplicaSet> {
        let set = self.new_set(old, next);
        let name = meta::name(&set.metadata).to_owned();
        let (created, is_ours) = match self.sets_api.create(&PostParams::default(), &set).await {
            Ok(created) => (created, true),
            Err(error) if meta::is_already_exists(&error) => (self.same_set(&name, error).await?, false),
            Err(error) if meta::is_namespace_terminating(&error) => return Err(error.into()),
            Err(error) => {
                let message = format!("Failed to create new replica set {name:?}: {}", meta::message(&error));
                let reason = status::reason::CREATE_ERROR;
                if status::deadline(&self.deployment).is_some() {
                    let mut new = self.deployment.status.clone().unwrap_or_default();
                    let failed = status::condition(status::PROGRESSING, "False", reason, message.clone());
                    status::set(&mut new, failed);
                    // The failure itself is what the caller must hear of.
                    if let Err(error) = self.write_status(new).await {
                        tracing::debug!(deployment = %self.key, %error, "cannot report the failure");
                    }
                }
                self.controller.recorder.event(&self.deployment, EventType::Warning, reason, message);
                return Err(error.into());
            }
        };
        let size = math::set_replicas(&created);
        if is_ours && size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            self.controller.recorder.event(&self.deployment, EventType::Normal, "ScalingReplicaSet", message);
        }
        let mut target = self.deployment.clone();
        let mut changed = revision::set_on(&mut target, next.to_string());
        if is_ours && status::deadline(&self.deployment).is_some() {
            let message = format!("Created new replica set {name:?}");
            let made = status::condition(status::PROGRESSING, "True", status::reason::CREATED, message);
            status::set(target.status.get_or_insert_default(), made);
            changed = true;
        }
        if changed {
            self.write(target).await?;
        }
        Ok(created)
    }

    /// The set of the deployment's template: its name is made from the template's hash, so that a second attempt
    /// finds the first one's work.
    fn new_set(&self, old: &[ReplicaSet], next: i64) -> ReplicaSet {
        let spec = self.deployment.spec.clone().unwrap_or_default();
        let collisions = self.deployment.status.as_ref().and_then(|s| s.collision_count);
        let hash = hash::of_template(&spec.template, collisions);
        let mut pods = spec.template;
        let of_template = pods.metadata.get_or_insert_default();
        let labels = template::with_hash(of_template.labels.as_ref(), &hash);
        of_template.labels = Some(labels.clone());
        let mut selector = spec.selector;
        selector.match_labels = Some(template::with_hash(selector.match_labels.as_ref(), &hash));
        let mut name = meta::name(&self.deployment.metadata).to_owned();
        name.truncate(MAX_NAME - 1 - hash.len());
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{hash}")),
                namespace: self.deployment.metadata.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![meta::controller_ref(&self.deployment)]),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(math::new_set_size(&self.deployment, math::total(old), 0)),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(pods),
            }),
            status: None,
        };
        revision::annotate_new_set(&self.deployment, &mut set, next, false);
        set
    }

    /// The name is taken. If by our own set, the cache was behind. Otherwise two templates have one hash: the
    /// collision count changes the next one.
    async fn same_set(&mut self, name: &str, error: kube::Error) -> Result<ReplicaSet> {
        let wanted = self.deployment.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let present = self.sets_api.get(name).await?;
        let same = present
            .spec
            .as_ref()
            .and_then(|s| s.template.as_ref())
            .is_some_and(|t| template::equal(t, &wanted));
        if same && meta::is_controlled_by(&present.metadata, meta::uid(&self.deployment.metadata)) {
            return Ok(present);
        }
        let mut new = self.deployment.status.clone().unwrap_or_default();
        new.collision_count = Some(new.collision_count.unwrap_or(0).saturating_add(1));
        self.write_status(new).await?;
        Err(error.into())
    }

    /// The wanted number has changed, or the deployment is paused: sizes change, the rollout does not go on.
    async fn resize(&mut self, sets: Vec<ReplicaSet>) -> Result {
        let mut sets = self.new_and_old(sets, false).await?;
        let wanted = math::replicas(&self.deployment);
        let active: Vec<ReplicaSet> =
            sets.all().into_iter().filter(|set| math::set_replicas(set) > 0).collect();
        let newest = || sets.new.clone().or_else(|| sets.old.last().cloned());
        let only = match &active[..] {
            [] => newest(),
            [only] => Some(only.clone()),
            _ => None,
        };
        if let Some(only) = only {
            if math::set_replicas(&only) != wanted {
                let scaled = self.scale(only, wanted).await?;
                sets.replace(scaled);
            }
        } else if sets.new.as_ref().is_some_and(|new| math::is_saturated(&self.deployment, new)) {
            for old in sets.old.clone().into_iter().filter(|set| math::set_replicas(set) > 0) {
                let scaled = self.scale(old, 0).await?;
                sets.replace(scaled);
            }
        } else if math::is_rolling(&self.deployment) {
            for (set, size) in math::proportional_sizes(&self.deployment, &active) {
                let scaled = self.scale(set, size).await?;
                sets.replace(scaled);
            }
        }
        if self.is_paused() && revision::rollback_to(&self.deployment).is_none() {
            self.clean_up(&sets.old).await?;
        }
        self.write_status(status::compute(&self.deployment, &sets.all(), sets.new.as_ref())).await
    }

    async fn roll(&mut self, sets: Vec<ReplicaSet>) -> Result {
        let mut sets = self.new_and_old(sets, true).await?;
        let Some(new) = sets.new.clone() else { return Err(Error::Stale) };
        let wanted = math::replicas(&self.deployment);
        let size = math::set_replicas(&new);
        let target = if size >= wanted {
            wanted
        } else {
            math::new_set_size(&self.deployment, math::total(&sets.all()), size)
        };
        if target != size {
            let scaled = self.scale(new, target).await?;
            sets.replace(scaled);
            return self.finish(&sets).await;
        }
        let active: Vec<ReplicaSet> =
            sets.old.iter().filter(|set| math::set_replicas(set) > 0).cloned().collect();
        let most = math::max_scaled_down(&self.deployment, math::total(&sets.all()), &new);
        if !active.is_empty() && most > 0 {
            let available = sets.all().iter().map(math::lasting).sum();
            let down = math::scale_down_old(&self.deployment, &active, available, most);
            if !down.is_empty() {
                for (set, size) in down {
                    let scaled = self.scale(set, size).await?;
                    sets.replace(scaled);
                }
                return self.finish(&sets).await;
            }
        }
        self.clean_up_if_complete(&sets).await?;
        self.finish(&sets).await
    }

    async fn recreate(&mut self, sets: Vec<ReplicaSet>) -> Result {
        let mut sets = self.new_and_old(sets, false).await?;
        let mut scaled_down = false;
        for set in sets.old.clone().into_iter().filter(|set| math::set_replicas(set) > 0) {
            let scaled = self.scale(set, 0).await?;
            sets.replace(scaled);
            scaled_down = true;
        }
        if scaled_down || self.old_pods_run(&sets) {
            return self.finish(&sets).await;
        }
        if sets.new.is_none() {
            sets = self.new_and_old(sets.old, true).await?;
        }
        let wanted = math::replicas(&self.deployment);
        if let Some(new) = sets.new.clone().filter(|new| math::set_replicas(new) != wanted) {
            let scaled = self.scale(new, wanted).await?;
            sets.replace(scaled);
        }
        self.clean_up_if_complete(&sets).await?;
        self.finish(&sets).await
    }

    fn old_pods_run(&self, sets: &Sets) -> bool {
        sets.old.iter().any(|set| {
            set.status.as_ref().is_some_and(|s| s.replicas > 0)
                || self
                    .controller
                    .pods
                    .controlled_by(meta::uid(&set.metadata))
                    .iter()
                    .any(|pod| !pods::is_terminal(pod))
        })
    }

    async fn roll_back(&mut self, sets: Vec<ReplicaSet>, to: i64) -> Result {
        let sets = self.new_and_old(sets, true).await?;
        let all = sets.all();
        let to = if to == 0 { revision::last(&all) } else { to };
        let recorder = self.controller.recorder.clone();
        let mut target = self.deployment.clone();
        let found = all.iter().find(|set| to != 0 && revision::of(&set.metadata) == to);
        match found.and_then(|set| Some((set, set.spec.as_ref()?.template.as_ref()?))) {
            None => {
                let message = if to == 0 {
                    "Unable to find last revision."
                } else {
                    "Unable to find the revision to rollback to."
                };
                let reason = "DeploymentRollbackRevisionNotFound";
                recorder.event(&self.deployment, EventType::Warning, reason, message);
            }
            Some((set, pods)) => {
                let spec = target.spec.get_or_insert_default();
                let name = meta::name(&self.deployment.metadata);
                if template::equal(&spec.template, pods) {
                    let message = format!(
                        "The rollback revision contains the same template as current deployment {name:?}"
                    );
                    let reason = "DeploymentRollbackTemplateUnchanged";
                    recorder.event(&self.deployment, EventType::Warning, reason, message);
                } else {
                    spec.template = template::without_hash(pods);
                    revision::restore(&mut target, set);
                    let message = format!("Rolled back deployment {name:?} to revision {to}");
                    recorder.event(&self.deployment, EventType::Normal, "DeploymentRollback", message);
                }
            }
        }
        if let Some(annotations) = &mut target.metadata.annotations {
            annotations.remove(revision::ROLLBACK_TO);
        }
        self.api.replace(&self.key.name, &PostParams::default(), &target).await?;
        Ok(())
    }

    /// Sets the size of a set, and notes on it what it is sized for.
    async fn scale(&self, set: ReplicaSet, size: i32) -> Result<ReplicaSet> {
        let before = math::set_replicas(&set);
        let mut target = set;
        let annotated = revision::annotate_size(&self.deployment, &mut target);
        if before == size && !annotated {
            return Ok(target);
        }
        target.spec.get_or_insert_default().replicas = Some(size);
        let name = meta::name(&target.metadata).to_owned();
        let scaled = self.sets_api.replace(&name, &PostParams::default(), &target).await?;
        if before != size {
            let direction = if size > before { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {before} to {size}");
            self.controller.recorder.event(&self.deployment, EventType::Normal, "ScalingReplicaSet", message);
        }
        Ok(scaled)
    }

    async fn clean_up_if_complete(&self, sets: &Sets) -> Result {
        let present = self.deployment.status.clone().unwrap_or_default();
        if status::is_complete(&self.deployment, &present) { self.clean_up(&sets.old).await } else { Ok(()) }
    }

    /// Deletes old sets beyond the history limit.
    async fn clean_up(&self, old: &[ReplicaSet]) -> Result {
        let limit = self.deployment.spec.as_ref().and_then(|s| s.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return Ok(()) };
        let mut alive: Vec<&ReplicaSet> =
            old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        alive.sort_by_key(|set| revision::of(&set.metadata));
        for set in alive.into_iter().take(surplus) {
            let state = set.status.clone().unwrap_or_default();
            let is_observed = state.observed_generation >= set.metadata.generation;
            if state.replicas != 0 || math::set_replicas(set) != 0 || !is_observed {
                continue;
            }
            match self.sets_api.delete(meta::name(&set.metadata), &DeleteParams::default()).await {
                Err(error) if !meta::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the status of a rollout, and sees to it that a missed deadline is noticed.
    async fn finish(&mut self, sets: &Sets) -> Result {
        let now = meta::now();
        let new = status::rollout(&self.deployment, &sets.all(), sets.new.as_ref(), &now);
        if self.deployment.status.as_ref() == Some(&new) {
            if let Some(after) = status::next_check(&self.deployment, &new, &now) {
                self.controller.queue.add_after(self.key.clone(), after.max(Duration::from_secs(1)));
            }
            return Ok(());
        }
        self.write_status(new).await
    }

    async fn write_status(&mut self, new: DeploymentStatus) -> Result {
        if self.deployment.status.as_ref() == Some(&new) {
            return Ok(());
        }
        let mut target = self.deployment.clone();
        target.status = Some(new);
        self.write(target).await
    }

    /// Writes status and annotations. As upstream one status update carries both; a server that keeps metadata out
    /// of status updates gets the annotation by a second write.
    async fn write(&mut self, target: Deployment) -> Result {
        let params = PostParams::default();
        let mut written = self.api.replace_status(&self.key.name, &params, &target).await?;
        let wanted = meta::annotation(&target.metadata, revision::REVISION).map(str::to_owned);
        if let Some(wanted) = wanted
            && revision::set_on(&mut written, wanted)
        {
            written = self.api.replace(&self.key.name, &params, &written).await?;
        }
        self.deployment = written;
        Ok(())
    }
}
