//! Which files a volume made from API objects holds. Pure, but for tokens, which the caller gets first.
//!
//! Source: upstream `MakePayload` of `pkg/volume/{configmap,secret,projected,downwardapi}`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection,
    Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::VolumeError;
use super::atomic_writer::{FileProjection, Payload};
use crate::env::fieldref::{Addresses, field_value, resource_value};
use crate::objects::{ObjectKind, ObjectView};
use crate::pods::podext::PodExt;

const DEFAULT_MODE: i32 = 0o644;

/// What the files are made from.
pub struct PayloadSources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its ConfigMaps and Secrets.
    pub objects: &'a ObjectView,
    /// Its addresses.
    pub addresses: &'a Addresses,
    /// Allocatable resources of the node.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Tokens by (audience, seconds), got before.
    pub tokens: &'a dyn Fn(&ServiceAccountTokenProjection) -> Result<String, VolumeError>,
}

/// Files of a volume, or none when it is not one of these kinds.
pub fn payload(volume: &Volume, sources: &PayloadSources<'_>) -> Option<Result<Payload, VolumeError>> {
    if let Some(s) = &volume.config_map {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        return Some(object(sources, ObjectKind::ConfigMap, &s.name, s.items.as_deref(), mode, s.optional));
    }
    if let Some(s) = &volume.secret {
        let mode = s.default_mode.unwrap_or(DEFAULT_MODE);
        let name = s.secret_name.as_deref().unwrap_or_default();
        return Some(object(sources, ObjectKind::Secret, name, s.items.as_deref(), mode, s.optional));
    }
    if let Some(s) = &volume.downward_api {
        let items = s.items.as_deref().unwrap_or_default();
        return Some(downward(sources, items, s.default_mode.unwrap_or(DEFAULT_MODE)));
    }
    volume.projected.as_ref().map(|s| projected(sources, s))
}

/// The user that a token file belongs to: the one user that all containers of the pod run as, if there is one
/// (upstream's `FindEffectiveRunAsUser` with `all containers same`).
pub fn token_owner(pod: &Pod) -> Option<u32> {
    let shared = PodExt::spec(pod).security_context.as_ref().and_then(|s| s.run_as_user);
    let users = PodExt::spec(pod).containers.iter().chain(pod.init_containers()).map(|c| {
        let own = c.security_context.as_ref().and_then(|s| s.run_as_user);
        own.or(shared)
    });
    let mut users: Vec<Option<i64>> = users.collect();
    users.dedup();
    match users.as_slice() {
        [Some(one)] => u32::try_from(*one).ok(),
        _ => None,
    }
}

fn projected(sources: &PayloadSources<'_>, source: &ProjectedVolumeSource) -> Result<Payload, VolumeError> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut out = Payload::new();
    let fs_group = PodExt::spec(sources.pod).security_context.as_ref().and_then(|s| s.fs_group);
    for part in source.sources.iter().flatten() {
        if let Some(s) = &part.secret {
            out.extend(object(sources, ObjectKind::Secret, &s.name, s.items.as_deref(), mode, s.optional)?);
        } else if let Some(s) = &part.config_map {
            out.extend(object(
                sources,
                ObjectKind::ConfigMap,
                &s.name,
                s.items.as_deref(),
                mode,
                s.optional,
            )?);
        } else if let Some(s) = &part.downward_api {
            out.extend(downward(sources, s.items.as_deref().unwrap_or_default(), mode)?);
        } else if let Some(s) = &part.service_account_token {
            // A token is private to its user when that is known, else readable as the volume says.
            let owner = token_owner(sources.pod);
            let mode = match (fs_group, owner) {
                (Some(_), _) => 0o600,
                (None, Some(_)) => 0o600,
                (None, None) => mode_bits(mode),
            };
            let data = (sources.tokens)(s)?.into_bytes();
            out.insert(s.path.clone(), FileProjection { data, mode, owner });
        } else if part.cluster_trust_bundle.is_some() {
            return Err(VolumeError::Unsupported("clusterTrustBundle projections are not supported".into()));
        } else if part.pod_certificate.is_some() {
            return Err(VolumeError::Unsupported("podCertificate projections are not supported".into()));
        }
    }
    Ok(out)
}

fn mode_bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o7777
}

fn object(
    sources: &PayloadSources<'_>,
    kind: ObjectKind,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
) -> Result<Payload, VolumeError> {
    let optional = optional == Some(true);
    let found = if optional {
        sources.objects.get(kind, name)
    } else {
        sources.objects.require(kind, name).map(Some)
    };
    let Some(object) = found.map_err(VolumeError::Retry)? else { return Ok(Payload::new()) };
    let entries: BTreeMap<&str, &[u8]> = object.entries().into_iter().collect();
    let file =
        |data: &[u8], mode: i32| FileProjection { data: data.to_vec(), mode: mode_bits(mode), owner: None };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(entries.into_iter().map(|(k, v)| (k.to_owned(), file(v, mode))).collect());
    };
    let mut out = Payload::new();
    for item in items {
        match entries.get(item.key.as_str()) {
            Some(data) => {
                out.insert(item.path.clone(), file(data, item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => {
                let what = match kind {
                    ObjectKind::ConfigMap => "configmap references non-existent config key",
                    ObjectKind::Secret => "references non-existent secret key",
                };
                return Err(VolumeError::Retry(format!("{what}: {}", item.key)));
            }
        }
    }
    Ok(out)
}

fn downward(
    sources: &PayloadSources<'_>,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
) -> Result<Payload, VolumeError> {
    let mut out = Payload::new();
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            field_value(sources.pod, field, sources.addresses)
        } else if let Some(resource) = &item.resource_field_ref {
            // A volume belongs to no container: the reference names one (validated by the API server).
            resource_value(sources.pod, &Container::default(), resource, sources.allocatable)
        } else {
            Err(format!("downwardAPI item {:?} has no source", item.path))
        };
        let data = text.map_err(VolumeError::Unsupported)?.into_bytes();
        let mode = mode_bits(item.mode.unwrap_or(mode));
        out.insert(item.path.clone(), FileProjection { data, mode, owner: None });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Object;
    use crate::pods::testing::pod_json;
    use serde_json::json;
    use std::sync::Arc;

    fn check(volume: serde_json::Value, want: Result<&str, &str>) {
        let pod = pod_json(json!({"containers": [{"name": "c", "securityContext": {"runAsUser": 7}}]}));
        let mut objects = ObjectView::default();
        let map = json!({"data": {"k": "v", "l": "w"}, "binaryData": {"b": "AAE="}});
        let map = Object::ConfigMap(serde_json::from_value(map).unwrap());
        objects.insert(ObjectKind::ConfigMap, "cm", Ok(Some(Arc::new(map))));
        objects.insert(ObjectKind::ConfigMap, "none", Ok(None));
        let sources = PayloadSources {
            pod: &pod,
            objects: &objects,
            addresses: &Addresses::default(),
            allocatable: &BTreeMap::new(),
            tokens: &|t| Ok(format!("token-{}", t.expiration_seconds.unwrap_or(0))),
        };
        let mut volume = volume;
        volume["name"] = "v".into();
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let got = payload(&volume, &sources).unwrap().map_err(|e| e.to_string()).map(|p| {
            let show = |f: &FileProjection| {
                format!("{}:{:o}", String::from_utf8_lossy(&f.data).escape_debug(), f.mode)
            };
            p.iter().map(|(n, f)| format!("{n}={}", show(f))).collect::<Vec<_>>().join(" ")
        });
        assert_eq!(got.as_deref().map_err(String::as_str), want);
    }

    #[test]
    fn objects() {
        check(json!({"configMap": {"name": "cm"}}), Ok("b=\\0\\u{1}:644 k=v:644 l=w:644"));
        check(
            json!({"configMap": {"name": "cm", "defaultMode": 0o400, "items": [{"key": "k", "path": "x/y", "mode": 0o600}]}}),
            Ok("x/y=v:600"),
        );
        check(
            json!({"configMap": {"name": "cm", "items": [{"key": "q", "path": "x"}]}}),
            Err("configmap references non-existent config key: q"),
        );
        check(json!({"configMap": {"name": "none"}}), Err("configmap \"none\" not found"));
        check(json!({"configMap": {"name": "none", "optional": true}}), Ok(""));
    }

    #[test]
    fn projections() {
        check(
            json!({"projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"configMap": {"name": "cm", "items": [{"key": "k", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}),
            Ok("ca.crt=v:644 namespace=ns:644 token=token-3607:600"),
        );
        check(
            json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "x", "name": "y"}}]}}),
            Err("clusterTrustBundle projections are not supported"),
        );
    }
}
