//! Prepares every volume of a pod, keeps those made from API objects current, takes all down again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Container, Pod, ServiceAccountTokenProjection, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_cri::{ImageMount, Mount, MountPropagation};

use super::mounter::Mounter;
use super::payload::{PayloadSources, payload};
use super::token::PodTokens;
use super::{VolumeError, atomic_writer, host_path, ownership, subpath};
use crate::env::fieldref::Addresses;
use crate::objects::ObjectView;
use crate::pods::podext::PodExt;
use keelson_quantity as quantity;

/// What all volumes of a pod are made from.
pub struct VolumeContext<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// `/var/lib/kubelet/pods/<uid>`.
    pub pod_dir: &'a Path,
    /// Its ConfigMaps and Secrets.
    pub objects: &'a ObjectView,
    /// Its addresses.
    pub addresses: &'a Addresses,
    /// Allocatable resources of the node.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// Its tokens.
    pub tokens: &'a PodTokens,
    /// Mounts.
    pub mounter: &'a dyn Mounter,
}

/// A volume that could not be prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Volume name.
    pub volume: String,
    /// Why.
    pub error: VolumeError,
}

/// The result of one round over all volumes.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What failed; empty: the pod's containers can start.
    pub failures: Vec<Failure>,
    /// When a token must be renewed.
    pub renew_at: Option<SystemTime>,
}

/// Sets up what is not set up and updates the rest. Idempotent: run it again when an object changed.
pub async fn set_up(ctx: &VolumeContext<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    for volume in PodExt::spec(ctx.pod).volumes.iter().flatten() {
        match set_up_one(ctx, volume).await {
            Ok(renew_at) => {
                outcome.renew_at = match (outcome.renew_at, renew_at) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                }
            }
            Err(error) => outcome.failures.push(Failure { volume: volume.name.clone(), error }),
        }
    }
    outcome
}

async fn set_up_one(ctx: &VolumeContext<'_>, volume: &Volume) -> Result<Option<SystemTime>, VolumeError> {
    // Pulled when a container that mounts it starts, and mounted by the runtime.
    if volume.image.is_some() {
        return Ok(None);
    }
    let Some(dir) = path(ctx.pod_dir, volume) else {
        return Err(VolumeError::Unsupported(format!(
            "volume type of {:?} is not supported by this node (supported: emptyDir, hostPath, configMap, secret, projected, downwardAPI, image)",
            volume.name
        )));
    };
    if let Some(source) = &volume.host_path {
        host_path::check(&source.path, source.type_.as_deref().unwrap_or_default())?;
        return Ok(None);
    }
    let security = PodExt::spec(ctx.pod).security_context.as_ref();
    let group = security.and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
    if let Some(source) = &volume.empty_dir {
        empty_dir(ctx, &dir, source.medium.as_deref().unwrap_or_default(), source.size_limit.as_ref())?;
        if let Some(group) = group {
            // The content of an emptyDir belongs to the pod already, after a restart of the agent too.
            ownership::set(&dir, group, true)?;
        }
        return Ok(None);
    }
    // Tokens first: they need the API, the rest is pure.
    let mut tokens = Vec::new();
    let mut renew_at: Option<SystemTime> = None;
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    for projection in sources.filter_map(|s| s.service_account_token.as_ref()) {
        let (text, at) = ctx.tokens.get(ctx.pod, projection).await?;
        tokens.push((projection.clone(), text));
        renew_at = Some(renew_at.map_or(at, |r| r.min(at)));
    }
    let lookup = |p: &ServiceAccountTokenProjection| {
        let found = tokens.iter().find(|(q, _)| q == p).map(|(_, t)| t.clone());
        found.ok_or_else(|| VolumeError::Retry("token not requested".into()))
    };
    let sources = PayloadSources {
        pod: ctx.pod,
        objects: ctx.objects,
        addresses: ctx.addresses,
        allocatable: ctx.allocatable,
        tokens: &lookup,
    };
    let Some(files) = payload(volume, &sources) else {
        return Err(VolumeError::Unsupported(format!("volume {:?} has no source", volume.name)));
    };
    let files = files?;
    // What is secret never reaches a disk.
    let in_memory = volume.config_map.is_none();
    make_dir(ctx.mounter, &dir, in_memory.then_some(None))?;
    atomic_writer::write(&dir, &files, group)?;
    Ok(renew_at)
}

fn empty_dir(
    ctx: &VolumeContext<'_>,
    dir: &Path,
    medium: &str,
    limit: Option<&Quantity>,
) -> Result<(), VolumeError> {
    let limit = limit.map(|q| quantity::of(q).value()).and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    match medium {
        // The size limit of a disk-backed emptyDir is held by eviction, not by the mount.
        "" => make_dir(ctx.mounter, dir, None)?,
        "Memory" => make_dir(ctx.mounter, dir, Some(limit))?,
        other => {
            return Err(VolumeError::Unsupported(format!(
                "emptyDir medium {other:?} is not supported by this node"
            )));
        }
    }
    Ok(())
}

/// Makes the folder of a volume, world-writable as upstream's, on a tmpfs when `memory` is given.
fn make_dir(mounter: &dyn Mounter, dir: &Path, memory: Option<Option<u64>>) -> Result<(), VolumeError> {
    let what = || format!("creating {}", dir.display());
    if !dir.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(VolumeError::io(what()))?;
    }
    if let Some(size) = memory {
        let mounted = mounter.mounts_below(dir).map_err(VolumeError::io(what()))?;
        if !mounted.iter().any(|m| m == dir) {
            mounter
                .tmpfs(dir, size)
                .map_err(VolumeError::io(format!("mounting tmpfs at {}", dir.display())))?;
        } else {
            return Ok(());
        }
    }
    let mode = fs::metadata(dir).map_err(VolumeError::io(what()))?.permissions().mode();
    if mode & 0o777 != 0o777 {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o777))
            .map_err(VolumeError::io(what()))?;
    }
    Ok(())
}

/// Where a volume is on the node; none for an image, which is nowhere, and kinds that are not supported.
pub fn path(pod_dir: &Path, volume: &Volume) -> Option<PathBuf> {
    let plugin = if let Some(source) = &volume.host_path {
        return Some(PathBuf::from(&source.path));
    } else if volume.empty_dir.is_some() {
        "kubernetes.io~empty-dir"
    } else if volume.config_map.is_some() {
        "kubernetes.io~configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io~secret"
    } else if volume.projected.is_some() {
        "kubernetes.io~projected"
    } else if volume.downward_api.is_some() {
        "kubernetes.io~downward-api"
    } else {
        return None;
    };
    Some(pod_dir.join("volumes").join(plugin).join(&volume.name))
}

/// By name of the volume, the id of its image.
pub type ImageVolumes = BTreeMap<String, String>;

/// The mounts of one container. `images` are there already; `expand` resolves `subPathExpr` with the container's
/// environment.
pub fn mounts(
    ctx: &VolumeContext<'_>,
    container: &Container,
    images: &ImageVolumes,
    expand: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Vec<Mount>, VolumeError> {
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volumes = PodExt::spec(ctx.pod).volumes.as_deref().unwrap_or_default();
        let volume = volumes.iter().find(|v| v.name == mount.name);
        let missing = || VolumeError::Retry(format!("volume {:?} is not mounted", mount.name));
        let volume = volume.ok_or_else(missing)?;
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(p), _) if !p.is_empty() => Some(p.clone()),
            (_, Some(expr)) if !expr.is_empty() => Some(expand(expr).map_err(VolumeError::Retry)?),
            _ => None,
        };
        let (host_path, image) = if volume.image.is_some() {
            let image = images.get(&mount.name).ok_or_else(missing)?.clone();
            let sub_path = sub.unwrap_or_default();
            if !sub_path.is_empty() {
                subpath::check(&sub_path)?;
            }
            (PathBuf::new(), Some(ImageMount { image, sub_path }))
        } else {
            let root = path(ctx.pod_dir, volume).ok_or_else(missing)?;
            let host_path = match sub {
                Some(sub) => {
                    let fd = subpath::open_beneath(&root, &sub)?;
                    let target = subpath::target(ctx.pod_dir, &mount.name, &container.name, index);
                    subpath::bind(ctx.mounter, &fd, &target)?
                }
                None => root,
            };
            (host_path, None)
        };
        let container_path = if mount.mount_path.starts_with('/') {
            PathBuf::from(&mount.mount_path)
        } else {
            Path::new("/").join(&mount.mount_path)
        };
        // What the API or a registry owns can't be written by a container.
        let volume_readonly = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
            || volume.image.is_some();
        let readonly = mount.read_only == Some(true) || volume_readonly;
        out.push(Mount {
            container_path,
            host_path,
            image,
            readonly,
            recursive_read_only: recursive_read_only(mount, readonly)?,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
        });
    }
    Ok(out)
}

fn recursive_read_only(mount: &VolumeMount, readonly: bool) -> Result<bool, VolumeError> {
    match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => Ok(false),
        Some("IfPossible" | "Enabled") if readonly => Ok(true),
        Some("IfPossible") => Ok(false),
        Some(other) => {
            Err(VolumeError::Unsupported(format!("recursiveReadOnly {other:?} needs a read-only mount")))
        }
    }
}

/// Unmounts everything below the pod's folder. Keeps going; the first failure is returned.
pub fn tear_down(mounter: &dyn Mounter, pod_dir: &Path) -> Result<(), VolumeError> {
    let mounts = mounter
        .mounts_below(pod_dir)
        .map_err(VolumeError::io(format!("mounts below {}", pod_dir.display())))?;
    let mut first = Ok(());
    for target in mounts {
        let result =
            mounter.unmount(&target).map_err(VolumeError::io(format!("unmounting {}", target.display())));
        first = first.and(result);
    }
    first
}

/// Removes the pod's folder. Refuses while anything is mounted below it: that data is not the pod's.
pub fn remove_dir(mounter: &dyn Mounter, pod_dir: &Path) -> Result<(), VolumeError> {
    tear_down(mounter, pod_dir)?;
    let left = mounter
        .mounts_below(pod_dir)
        .map_err(VolumeError::io(format!("mounts below {}", pod_dir.display())))?;
    if let Some(mount) = left.first() {
        return Err(VolumeError::Retry(format!("{} is still mounted", mount.display())));
    }
    match fs::remove_dir_all(pod_dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(VolumeError::io(format!("removing {}", pod_dir.display()))(e)),
    }
}
