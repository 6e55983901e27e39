//! ServiceAccount: every pod has an account, and by default a token of it, the cluster CA and its namespace in a
//! projected volume (`plugin/pkg/admission/serviceaccount`).

use std::sync::Arc;
use std::time::Duration;

use keelson_api::meta::GroupResource;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::{concerns, forbidden};
use crate::authn::service_account::WARN_ONLY_SECONDS;
use crate::authz::rbac::text;
use crate::authz::relations::{is_mirror, secret_names};
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Operation, Result};

const DEFAULT_ACCOUNT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The `default` account of a new namespace is made by a controller: give it time.
const DEFAULT_TRIES: usize = 10;
const RETRY: Duration = Duration::from_millis(150);

/// The plug-in.
pub struct ServiceAccount {
    reader: Arc<dyn ObjectReader>,
}

impl ServiceAccount {
    /// Looks accounts up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    async fn account(&self, attributes: &Attributes, name: &str) -> Result<Arc<Value>> {
        let resource = GroupResource::new("", "serviceaccounts");
        let namespace = attributes.namespace.as_str();
        let tries = if name == DEFAULT_ACCOUNT { DEFAULT_TRIES } else { 2 };
        for attempt in 0..tries {
            if attempt > 0 {
                tokio::time::sleep(RETRY).await;
            }
            if let Some(found) = self.reader.get(&resource, Some(namespace), name) {
                return Ok(found);
            }
        }
        Err(forbidden(
            attributes,
            format!(
                "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
            ),
        ))
    }
}

#[async_trait::async_trait]
impl MutatingAdmission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        if attributes.operation != Operation::Create || !concerns(attributes, "", "pods", "") {
            return Ok(());
        }
        let Some(pod) = attributes.object.as_ref() else { return Ok(()) };
        if is_mirror(pod) {
            return check_mirror(pod).map_err(|why| forbidden(attributes, why));
        }
        let given = [text(pod, "/spec/serviceAccountName"), text(pod, "/spec/serviceAccount")];
        let name = given.into_iter().find(|n| !n.is_empty()).unwrap_or(DEFAULT_ACCOUNT).to_owned();
        let account = self.account(attributes, &name).await?;
        if enforces_mountable_secrets(&account) {
            check_secrets(&account, pod).map_err(|why| forbidden(attributes, why))?;
        }
        if let Some(spec) = attributes.object.as_mut().and_then(|o| o["spec"].as_object_mut()) {
            // The old name of the field is kept equal, as upstream's conversion does.
            spec.insert("serviceAccountName".into(), json!(name));
            spec.insert("serviceAccount".into(), json!(name));
            let volume = format!("{VOLUME_PREFIX}{}", suffix());
            complete(spec, &account, &volume);
        }
        Ok(())
    }
}

/// Adds the token volume and pull secrets.
fn complete(spec: &mut Map<String, Value>, account: &Value, new_volume: &str) {
    let flag = |v: &Value| v["automountServiceAccountToken"].as_bool();
    let wanted = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| flag(account))
        .unwrap_or(true);
    if wanted {
        mount_token(spec, new_volume);
    }
    let has_pull_secrets =
        spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|s| !s.is_empty());
    let secrets = account["imagePullSecrets"].as_array().filter(|s| !s.is_empty() && !has_pull_secrets);
    if let Some(secrets) = secrets {
        let names: Vec<Value> = secrets.iter().map(|s| json!({"name": s["name"]})).collect();
        spec.insert("imagePullSecrets".into(), Value::Array(names));
    }
}

fn mount_token(spec: &mut Map<String, Value>, new_volume: &str) {
    let existing = spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find_map(|v| v["name"].as_str().filter(|n| n.starts_with(VOLUME_PREFIX)).map(str::to_owned));
    let volume = existing.clone().unwrap_or_else(|| new_volume.to_owned());
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            // A mount of the user's own at this path wins.
            if mounts.iter().all(|m| m["mountPath"] != MOUNT_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if needed && existing.is_none() {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if volumes.is_null() {
            *volumes = json!([]);
        }
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(token_volume(&volume));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": WARN_ONLY_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

/// Five characters out of those that upstream's name generator uses.
fn suffix() -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

/// A mirror pod must not reach for anything that the API would have to give.
fn check_mirror(pod: &Value) -> Result<(), &'static str> {
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    if secret_names(pod).next().is_some() {
        return Err("a mirror pod may not reference secrets");
    }
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut sources = volumes.flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
    if sources.any(|s| s["serviceAccountToken"].is_object()) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

fn enforces_mountable_secrets(account: &Value) -> bool {
    let value = account["metadata"]["annotations"].get("kubernetes.io/enforce-mountable-secrets");
    matches!(value.and_then(Value::as_str), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Only Secrets that the account lists may be referred to.
fn check_secrets(account: &Value, pod: &Value) -> Result<(), String> {
    let names = |key: &str| -> Vec<&str> {
        account[key].as_array().into_iter().flatten().map(|s| text(s, "/name")).collect()
    };
    let mountable = names("secrets");
    let shown = text(account, "/metadata/name");
    let allowed = |what: String, secret: &str| {
        if mountable.contains(&secret) {
            return Ok(());
        }
        Err(format!(
            "{what} secret.secretName=\"{secret}\" is not allowed because service account {shown} does not reference that secret"
        ))
    };
    let array = |v: &'_ Value, key: &str| v[key].as_array().cloned().unwrap_or_default();
    let spec = &pod["spec"];
    for volume in array(spec, "volumes") {
        if volume["secret"].is_object() {
            allowed("volume with".into(), text(&volume, "/secret/secretName"))?;
        }
    }
    for (list, kind) in [("initContainers", "init container"), ("containers", "container")] {
        for container in array(spec, list) {
            let name = text(&container, "/name");
            for env in array(&container, "env") {
                if env["valueFrom"]["secretKeyRef"].is_object() {
                    let what = format!("{kind} {name} with envVar {} referencing", text(&env, "/name"));
                    allowed(what, text(&env, "/valueFrom/secretKeyRef/name"))?;
                }
            }
            for from in array(&container, "envFrom") {
                if from["secretRef"].is_object() {
                    allowed(
                        format!("{kind} {name} with envFrom referencing"),
                        text(&from, "/secretRef/name"),
                    )?;
                }
            }
        }
    }
    let pull = names("imagePullSecrets");
    for (i, secret) in array(spec, "imagePullSecrets").iter().enumerate() {
        let name = text(secret, "/name");
        if !pull.contains(&name) {
            return Err(format!(
                "imagePullSecrets[{i}].name=\"{name}\" is not allowed because service account {shown} does not reference that imagePullSecret"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::create;
    use super::*;
    use crate::authz::fake::FakeReader;

    fn plugin() -> ServiceAccount {
        let account = |name: &str, more: Value| {
            let mut object = json!({"metadata": {"name": name, "namespace": "a"}});
            for (key, value) in more.as_object().unwrap() {
                object[key] = value.clone();
            }
            ("", "serviceaccounts", object)
        };
        ServiceAccount::new(Arc::new(FakeReader::new(vec![
            account("default", json!({"imagePullSecrets": [{"name": "reg"}]})),
            account("quiet", json!({"automountServiceAccountToken": false})),
            account(
                "strict",
                json!({"metadata": {"name": "strict", "namespace": "a",
                "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}}, "secrets": [{"name": "ok"}]}),
            ),
        ])))
    }

    async fn admit(spec: Value) -> Result<Value> {
        let mut attributes =
            create("", "pods", json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec}));
        plugin().admit(&mut attributes).await?;
        Ok(attributes.object.unwrap()["spec"].take())
    }

    #[tokio::test]
    async fn the_token_is_mounted() {
        let spec = admit(json!({"containers": [{"name": "c"}, {"name": "own", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}],
            "initContainers": [{"name": "i"}]}))
        .await
        .unwrap();
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["serviceAccount"], "default");
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "reg"}]));
        let volume = spec["volumes"][0]["name"].as_str().unwrap();
        assert_eq!(volume.len(), VOLUME_PREFIX.len() + 5);
        let mount = json!([{"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(spec["containers"][0]["volumeMounts"], mount);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
        assert_eq!(spec["containers"][1]["volumeMounts"][0]["name"], "x");
        assert_eq!(
            spec["volumes"][0]["projected"]["sources"][0],
            json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}})
        );
    }

    #[tokio::test]
    async fn flags_and_refusals() {
        let quiet =
            admit(json!({"serviceAccountName": "quiet", "containers": [{"name": "c"}]})).await.unwrap();
        assert!(quiet.get("volumes").is_none());
        let loud = json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true, "containers": [{"name": "c"}]});
        assert!(admit(loud).await.unwrap()["volumes"].is_array());
        let old_name = admit(json!({"serviceAccount": "quiet", "containers": []})).await.unwrap();
        assert_eq!(old_name["serviceAccountName"], "quiet");
        let message = async |spec: Value| admit(spec).await.unwrap_err().message;
        assert_eq!(
            message(json!({"serviceAccountName": "gone", "containers": []})).await,
            "pods \"p\" is forbidden: error looking up service account a/gone: serviceaccount \"gone\" not found"
        );
        assert_eq!(
            message(json!({"serviceAccountName": "strict", "volumes": [{"name": "v", "secret": {"secretName": "no"}}]})).await,
            "pods \"p\" is forbidden: volume with secret.secretName=\"no\" is not allowed because service account strict does not reference that secret"
        );
    }
}
