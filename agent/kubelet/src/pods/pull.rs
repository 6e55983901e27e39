//! Gets images: pull policy, credentials, one pull at a time for the same image, back-off.
//!
//! Source: upstream `pkg/kubelet/images/image_manager.go` and `pkg/credentialprovider`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use keelson_cri::{CriError, Image, ImageService, RegistryAuth};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::backoff::{Backoff, INITIAL, MAX};
use super::podext::{ContainerKind, PodExt};
use super::start::StartError;
use crate::clock::Clock;
use crate::events::{EventRecorder, EventType};
use crate::objects::{Object, ObjectKind, ObjectView};

/// Pulls that run at the same time.
const PARALLEL: usize = 5;

/// Image pulls of this node.
pub struct Puller {
    backoff: Mutex<Backoff<String>>,
    slots: Semaphore,
    /// By key of the back-off: how the last pull failed.
    failures: Mutex<HashMap<String, String>>,
    same_image: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    clock: Clock,
}

/// What is to be pulled, and whom for.
pub struct PullFor<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The image, as the pod's author wrote it.
    pub reference: &'a str,
    /// Pull policy, if there is one.
    pub policy: Option<&'a str>,
    /// The container that the events are about; none for an image volume, whose events are about the pod.
    pub container: Option<(ContainerKind, &'a Container)>,
    /// Pull secrets.
    pub objects: &'a ObjectView,
}

impl<'a> PullFor<'a> {
    /// The image of a container.
    pub fn container(
        pod: &'a Pod,
        kind: ContainerKind,
        container: &'a Container,
        objects: &'a ObjectView,
    ) -> Self {
        Self {
            pod,
            reference: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
            container: Some((kind, container)),
            objects,
        }
    }

    /// The image of a volume.
    pub fn volume(pod: &'a Pod, source: &'a ImageVolumeSource, objects: &'a ObjectView) -> Self {
        Self {
            pod,
            reference: source.reference.as_deref().unwrap_or_default(),
            policy: source.pull_policy.as_deref(),
            container: None,
            objects,
        }
    }
}

/// When to pull. Without a policy: `Always` for `:latest` and no tag, else `IfNotPresent`.
fn policy<'a>(image: &str, given: Option<&'a str>) -> &'a str {
    if let Some(policy) = given.filter(|p| !p.is_empty()) {
        return policy;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    if !name.contains('@') && (!name.contains(':') || name.ends_with(":latest")) {
        "Always"
    } else {
        "IfNotPresent"
    }
}

impl Puller {
    /// Knows of no failure yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            backoff: Mutex::new(Backoff::new(INITIAL, MAX)),
            slots: Semaphore::new(PARALLEL),
            failures: Mutex::default(),
            same_image: Mutex::default(),
            clock,
        }
    }

    /// The image, pulled when its policy asks for it. Events as upstream's.
    pub async fn ensure(
        &self,
        images: &dyn ImageService,
        events: &EventRecorder,
        who: &PullFor<'_>,
    ) -> Result<Image, StartError> {
        let reference = who.reference;
        let say = |type_, reason: &str, message: String| match who.container {
            Some((kind, container)) => {
                events.container(who.pod, kind, &container.name, type_, reason, message);
            }
            None => events.pod(who.pod, type_, reason, message),
        };
        let present = match images.image_status(reference).await {
            Ok(image) => image,
            Err(CriError::InvalidImageName(error) | CriError::Invalid(error)) => {
                let message = format!("Failed to apply default image tag {reference:?}: {error}");
                say(EventType::Warning, "InspectFailed", message.clone());
                return Err(StartError::new("InvalidImageName", message));
            }
            Err(error) => {
                let message = format!("Failed to inspect image {reference:?}: {error}");
                say(EventType::Warning, "InspectFailed", message.clone());
                return Err(StartError::new("ImageInspectError", message));
            }
        };
        let pull = match (policy(reference, who.policy), &present) {
            ("Always", _) => true,
            ("Never", None) => {
                let message =
                    format!("Container image {reference:?} is not present with pull policy of Never");
                say(EventType::Warning, "ErrImageNeverPull", message.clone());
                return Err(StartError::new("ErrImageNeverPull", message));
            }
            (_, present) => present.is_none(),
        };
        if let Some(image) = present.filter(|_| !pull) {
            say(
                EventType::Normal,
                "Pulled",
                format!(
                    "Container image {reference:?} already present on machine and can be accessed by the pod"
                ),
            );
            return Ok(image);
        }
        let key = format!("{}_{reference}", PodExt::uid(who.pod));
        let until = self.backoff.lock().until_since_update(&key, self.clock.now());
        if let Some(until) = until {
            let mut message = format!("Back-off pulling image {reference:?}");
            say(EventType::Normal, "BackOff", message.clone());
            // The status goes on saying what is wrong, not only that it was tried.
            if let Some(failure) = self.failures.lock().get(&key) {
                message = format!("{message}: {failure}");
            }
            return Err(StartError { retry_at: Some(until), ..StartError::new("ImagePullBackOff", message) });
        }
        self.pull(images, reference, key, who, &say).await
    }

    async fn pull(
        &self,
        images: &dyn ImageService,
        reference: &str,
        key: String,
        who: &PullFor<'_>,
        say: &(dyn Fn(EventType, &str, String) + Sync),
    ) -> Result<Image, StartError> {
        say(EventType::Normal, "Pulling", format!("Pulling image {reference:?}"));
        let asked = Instant::now();
        // Pods that want the same image wait for the first, which leaves little to do for the others.
        let gate = self.same_image.lock().entry(reference.to_owned()).or_default().clone();
        let _one = gate.lock().await;
        let _slot = self.slots.acquire().await;
        let started = Instant::now();
        let auths = credentials(who.pod, who.objects, reference);
        let result = images.pull_image(reference, &auths).await;
        drop(_one);
        self.same_image.lock().retain(|_, gate| Arc::strong_count(gate) > 1);
        let now = self.clock.now();
        match result {
            Ok(image) => {
                self.failures.lock().remove(&key);
                let mut backoff = self.backoff.lock();
                backoff.gc(now);
                // Of pods that are gone.
                self.failures.lock().retain(|key, _| !backoff.wait(key).is_zero());
                drop(backoff);
                let (took, waited) = (go_millis(started.elapsed()), go_millis(asked.elapsed()));
                let size = image.size;
                say(
                    EventType::Normal,
                    "Pulled",
                    format!(
                        "Successfully pulled image {reference:?} in {took} ({waited} including waiting). Image size: {size} bytes."
                    ),
                );
                Ok(image)
            }
            Err(error) => {
                let reason = if matches!(error, CriError::InvalidImageName(_)) {
                    "InvalidImageName"
                } else {
                    "ErrImagePull"
                };
                say(EventType::Warning, "Failed", format!("Failed to pull image {reference:?}: {error}"));
                self.backoff.lock().next(key.clone(), now, now);
                let until = self.backoff.lock().until_since_update(&key, now);
                let mut failed = StartError::new(reason, error.to_string());
                self.failures.lock().insert(key, failed.to_string());
                // `ErrImagePull` is shown first; the next round turns it into `ImagePullBackOff`.
                failed.retry_at = until.map(|u| u.min(now + std::time::Duration::from_secs(1)));
                Err(failed)
            }
        }
    }
}

/// Go's `Duration.Round(time.Millisecond).String()`.
fn go_millis(d: std::time::Duration) -> String {
    let ms = d.as_millis();
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let minutes = ms / 60_000;
    let rest = format!("{}.{:03}", ms % 60_000 / 1000, ms % 1000);
    let rest = rest.trim_end_matches('0').trim_end_matches('.');
    if minutes == 0 { format!("{rest}s") } else { format!("{minutes}m{rest}s") }
}

/// Credentials of a pod's pull secrets for this image, the best match first.
pub fn credentials(pod: &Pod, objects: &ObjectView, reference: &str) -> Vec<RegistryAuth> {
    let mut found: Vec<(usize, RegistryAuth)> = Vec::new();
    for secret in PodExt::spec(pod).image_pull_secrets.iter().flatten() {
        // A secret that is missing is passed over, as upstream does: the image may not need it.
        let Ok(Some(object)) = objects.get(ObjectKind::Secret, &secret.name) else { continue };
        let Object::Secret(secret) = &*object else { continue };
        let data = secret.data.as_ref();
        let text = data.and_then(|d| d.get(".dockerconfigjson").or_else(|| d.get(".dockercfg")));
        let Some(text) = text else { continue };
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&text.0) else { continue };
        let auths = json.get("auths").unwrap_or(&json);
        for (host, entry) in auths.as_object().into_iter().flatten() {
            if let (Some(weight), Some(auth)) = (match_weight(host, reference), parse_auth(entry)) {
                found.push((weight, auth));
            }
        }
    }
    found.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn parse_auth(entry: &serde_json::Value) -> Option<RegistryAuth> {
    let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let mut auth = RegistryAuth {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
    };
    let encoded = text("auth");
    if !encoded.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, password) = decoded.trim_end_matches('\0').split_once(':')?;
        auth.username = user.to_owned();
        auth.password = password.to_owned();
    }
    let empty = auth.username.is_empty() && auth.identity_token.is_empty();
    (!empty).then_some(auth)
}

/// How well a key of the config fits an image: the length of what matched, none when it does not.
fn match_weight(key: &str, reference: &str) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (mut key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    let key_path = key_path.trim_start_matches("v1").trim_start_matches("v2").trim_matches('/');
    let (host, path) = match reference.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("docker.io", reference),
    };
    if matches!(key_host, "index.docker.io" | "registry-1.docker.io") {
        key_host = "docker.io";
    }
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host };
    let key_parts: Vec<&str> = key_host.split('.').collect();
    let parts: Vec<&str> = host.split('.').collect();
    let fits = key_parts.len() == parts.len()
        && key_parts.iter().zip(&parts).all(|(k, p)| k == p || glob(k.as_bytes(), p.as_bytes()));
    let path_fits = key_path.is_empty()
        || path == key_path
        || path.strip_prefix(key_path).is_some_and(|r| r.starts_with(['/', ':', '@']));
    (fits && path_fits).then_some(key_host.len() + key_path.len())
}

/// `*` within one part of a host name.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|i| glob(rest, &text[i..])),
        Some((c, rest)) => text.split_first().is_some_and(|(t, more)| t == c && glob(rest, more)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::testing::pod_json;
    use serde_json::json;

    fn check_policy(image: &str, want: &str) {
        assert_eq!(policy(image, None), want, "{image}");
        assert_eq!(policy(image, Some("Never")), "Never");
    }

    #[test]
    fn policies() {
        check_policy("nginx", "Always");
        check_policy("nginx:latest", "Always");
        check_policy("nginx:1", "IfNotPresent");
        check_policy("host:5000/nginx", "Always");
        check_policy("nginx@sha256:0", "IfNotPresent");
    }

    #[test]
    fn hosts() {
        let fits = |key: &str, image: &str| match_weight(key, image).is_some();
        assert!(fits("https://index.docker.io/v1/", "nginx:1"));
        assert!(fits("registry.example.com", "registry.example.com/a/b:1"));
        assert!(fits("registry.example.com/a", "registry.example.com/a/b:1"));
        assert!(!fits("registry.example.com/a", "registry.example.com/ab:1"));
        assert!(fits("*.example.com", "registry.example.com/a"));
        assert!(!fits("*.example.com", "a.registry.example.com/a"));
        assert!(!fits("other.com", "registry.example.com/a"));
    }

    #[test]
    fn longest_match_first() {
        let config = json!({"auths": {
            "r.io": {"username": "short", "password": "x"},
            "r.io/team": {"auth": base64::engine::general_purpose::STANDARD.encode("long:p:w")}}});
        let secret = k8s_openapi::api::core::v1::Secret {
            data: Some(
                [(".dockerconfigjson".to_owned(), k8s_openapi::ByteString(config.to_string().into_bytes()))]
                    .into(),
            ),
            ..Default::default()
        };
        let mut objects = ObjectView::default();
        objects.insert(ObjectKind::Secret, "s", Ok(Some(Arc::new(Object::Secret(secret)))));
        let pod = pod_json(json!({"containers": [], "imagePullSecrets": [{"name": "s"}]}));
        let got = credentials(&pod, &objects, "r.io/team/app:1");
        let users: Vec<_> = got.iter().map(|a| (a.username.as_str(), a.password.as_str())).collect();
        assert_eq!(users, [("long", "p:w"), ("short", "x")]);
    }

    #[test]
    fn durations() {
        use std::time::Duration;
        assert_eq!(go_millis(Duration::from_millis(12)), "12ms");
        assert_eq!(go_millis(Duration::from_millis(1500)), "1.5s");
        assert_eq!(go_millis(Duration::from_millis(61_000)), "1m1s");
    }
}
