//! The environment of one container. Source: upstream `makeEnvironmentVariables` in `pkg/kubelet/kubelet_pods.go`.

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVarSource, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::expansion::expand;
use super::fieldref::{Addresses, field_value, resource_value};
use crate::objects::{ObjectKind, ObjectView};
use crate::pods::podext::PodExt;

/// What variables may refer to.
pub struct Sources<'a> {
    /// ConfigMaps and Secrets of the pod.
    pub objects: &'a ObjectView,
    /// Variables that describe Services.
    pub services: &'a [(String, String)],
    /// Pod and node addresses.
    pub addresses: &'a Addresses,
    /// Allocatable resources of the node, for limits that are not set.
    pub allocatable: &'a BTreeMap<String, Quantity>,
}

/// The result: variables in order, and keys that can't be variable names with the object that they came from.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Names and values; each name once.
    pub variables: Vec<(String, String)>,
    /// Texts for `InvalidEnvironmentVariableNames` events.
    pub skipped: Vec<String>,
}

/// Builds the environment. The error is the message of `CreateContainerConfigError`.
pub fn build(pod: &Pod, container: &Container, sources: &Sources<'_>) -> Result<Environment, String> {
    let mut out = Environment::default();
    let mut values: HashMap<String, String> = HashMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |values: &mut HashMap<String, String>, name: String, value: String| {
        if values.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    // `env` overrides `envFrom`, so that comes first.
    for from in container.env_from.iter().flatten() {
        let (pairs, skipped) = env_from(pod, from, sources.objects)?;
        out.skipped.extend(skipped);
        for (name, value) in pairs {
            set(&mut values, name, value);
        }
    }
    let services: HashMap<&str, &str> =
        sources.services.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    for var in container.env.iter().flatten() {
        let value = match (var.value.as_deref().filter(|v| !v.is_empty()), &var.value_from) {
            (Some(text), _) => Some(expand(text, |name| {
                values.get(name).cloned().or_else(|| services.get(name).map(|v| (*v).to_owned()))
            })),
            (None, Some(source)) => value_from(pod, container, source, sources)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut values, var.name.clone(), value);
        }
    }
    let own: HashSet<String> = values.keys().cloned().collect();
    let fixed = sources.services.iter().filter(|(name, _)| !own.contains(name)).cloned();
    out.variables =
        order.into_iter().filter_map(|n| values.remove(&n).map(|v| (n, v))).chain(fixed).collect();
    Ok(out)
}

/// Upstream's relaxed rule for names: printable ASCII without `=`.
fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..=0x7e).contains(&b) && b != b'=')
}

type Pairs = Vec<(String, String)>;

fn env_from(
    pod: &Pod,
    from: &EnvFromSource,
    objects: &ObjectView,
) -> Result<(Pairs, Option<String>), String> {
    let (kind, word, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
        (Some(r), _) => (ObjectKind::ConfigMap, "configMap", &r.name, r.optional),
        (None, Some(r)) => (ObjectKind::Secret, "secret", &r.name, r.optional),
        (None, None) => return Ok((Vec::new(), None)),
    };
    if optional == Some(true) && objects.get(kind, name)?.is_none() {
        return Ok((Vec::new(), None));
    }
    let object = objects.require(kind, name)?;
    let prefix = from.prefix.as_deref().unwrap_or_default();
    let all = object.texts().into_iter().map(|(key, value)| (format!("{prefix}{key}"), value));
    let (good, bad): (Pairs, Pairs) = all.partition(|(key, _)| is_env_name(key));
    let skipped = (!bad.is_empty()).then(|| {
        let keys: Vec<&str> = bad.iter().map(|(k, _)| k.as_str()).collect();
        let ns = PodExt::namespace(pod);
        let keys = keys.join(", ");
        format!(
            "Keys [{keys}] from the EnvFrom {word} {ns}/{name} were skipped since they are considered invalid environment variable names."
        )
    });
    Ok((good, skipped))
}

/// None: an optional reference to what is not there; the variable is left out.
fn value_from(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources<'_>,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return field_value(pod, field, sources.addresses).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(pod, container, resource, sources.allocatable).map(Some);
    }
    let (kind, word, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(r), _) => (ObjectKind::ConfigMap, "ConfigMap", &r.name, &r.key, r.optional),
        (None, Some(r)) => (ObjectKind::Secret, "Secret", &r.name, &r.key, r.optional),
        (None, None) => return Err("env source is not supported on this node".into()),
    };
    let optional = optional == Some(true);
    if optional && sources.objects.get(kind, name)?.is_none() {
        return Ok(None);
    }
    let value = sources.objects.require(kind, name)?.text(key);
    match value {
        None if optional => Ok(None),
        None => Err(format!("couldn't find key {key} in {word} {}/{name}", PodExt::namespace(pod))),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Object;
    use crate::pods::testing::pod_json;
    use serde_json::json;
    use std::sync::Arc;

    fn check(container: serde_json::Value, want: Result<&str, &str>) {
        let mut container = container;
        container["name"] = "c".into();
        let pod = pod_json(json!({"containers": [container]}));
        let mut objects = ObjectView::default();
        let map = json!({"data": {"k": "v", "bad=key": "x"}});
        let map = Object::ConfigMap(serde_json::from_value(map).unwrap());
        objects.insert(ObjectKind::ConfigMap, "cm", Ok(Some(Arc::new(map))));
        objects.insert(ObjectKind::ConfigMap, "none", Ok(None));
        objects.insert(ObjectKind::Secret, "none", Ok(None));
        let secret = Object::Secret(serde_json::from_value(json!({"data": {"p": "c2VjcmV0"}})).unwrap());
        objects.insert(ObjectKind::Secret, "s", Ok(Some(Arc::new(secret))));
        let sources = Sources {
            objects: &objects,
            services: &[("KUBERNETES_SERVICE_HOST".into(), "10.96.0.1".into())],
            addresses: &Addresses::default(),
            allocatable: &BTreeMap::new(),
        };
        let got = build(&pod, &PodExt::spec(&pod).containers[0], &sources).map(|e| {
            let pairs: Vec<_> = e.variables.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
            pairs.join(" ")
        });
        assert_eq!(got.as_deref().map_err(String::as_str), want);
    }

    const K: &str = "KUBERNETES_SERVICE_HOST=10.96.0.1";

    #[test]
    fn order_and_expansion() {
        check(
            json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(KUBERNETES_SERVICE_HOST)-$(Z)-$$(A)"}]}),
            Ok(&format!("A=1 B=1-10.96.0.1-$(Z)-$(A) {K}")),
        );
        check(
            json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}]}),
            Ok(&format!("A=12 {K}")),
        );
        check(
            json!({"env": [{"name": "KUBERNETES_SERVICE_HOST", "value": "mine"}]}),
            Ok("KUBERNETES_SERVICE_HOST=mine"),
        );
    }

    #[test]
    fn sources() {
        check(
            json!({"envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}], "env": [{"name": "P_k", "value": "own"}]}),
            Ok(&format!("P_k=own {K}")),
        );
        check(
            json!({"env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}}]}),
            Ok(&format!("S=secret {K}")),
        );
        check(
            json!({"env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "q", "optional": true}}}]}),
            Ok(K),
        );
        check(
            json!({"env": [{"name": "S", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            Ok(&format!("S=p {K}")),
        );
    }

    #[test]
    fn what_is_missing() {
        check(json!({"envFrom": [{"configMapRef": {"name": "none"}}]}), Err("configmap \"none\" not found"));
        check(json!({"envFrom": [{"configMapRef": {"name": "none", "optional": true}}]}), Ok(K));
        check(
            json!({"env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "none", "key": "p"}}}]}),
            Err("secret \"none\" not found"),
        );
        check(
            json!({"env": [{"name": "S", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "q"}}}]}),
            Err("couldn't find key q in ConfigMap ns/cm"),
        );
    }
}
