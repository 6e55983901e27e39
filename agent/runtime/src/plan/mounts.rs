//! The mounts of a container, in order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use keelson_cri::{CriError, Mount, MountPropagation, Result, SecurityContext};
use serde::{Deserialize, Serialize};

use super::DeviceNode;

/// Masked in /proc and /sys unless procMount is Unmasked or the container is privileged: containerd's list.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Read-only likewise.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindPlan {
    /// On the node.
    pub source: PathBuf,
    /// Read-only.
    pub readonly: bool,
    /// Read-only below too.
    pub recursive_readonly: bool,
    /// Propagation.
    pub propagation: MountPropagation,
}

/// An image as a volume, read-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePlan {
    /// Folders of its layers, the topmost first. A single one is shown as it is.
    pub lowerdirs: Vec<PathBuf>,
    /// What of the image; empty for all.
    pub sub_path: PathBuf,
}

/// The folders that an image volume is made of. Without a writable folder overlayfs wants two or more: `empty`, a folder
/// without content, is added where there are fewer.
pub fn image_lowerdirs(layers: &[PathBuf], empty: &Path) -> Vec<PathBuf> {
    let mut lowerdirs = layers.to_vec();
    if lowerdirs.len() < 2 {
        lowerdirs.push(empty.to_path_buf());
    }
    lowerdirs
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// procfs of the container's PID namespace.
    Proc,
    /// tmpfs with the device nodes and links of [`MountPlan::devices`].
    Dev,
    /// A devpts instance of its own.
    Devpts,
    /// POSIX message queues of the pod's IPC namespace.
    Mqueue,
    /// sysfs of the pod's network namespace.
    Sysfs { readonly: bool },
    /// cgroup2, rooted at the container's own cgroup.
    Cgroup { readonly: bool },
    /// Something of the node.
    Bind(BindPlan),
    /// An image.
    Image(ImagePlan),
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStep {
    /// Path in the container; resolved inside its root, so that no symlink of the image leads out of it.
    pub target: PathBuf,
    /// What.
    pub kind: MountKind,
}

/// Everything below the root of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// In order.
    pub steps: Vec<MountStep>,
    /// Nodes in /dev.
    pub devices: Vec<DeviceNode>,
    /// Hidden paths.
    pub masked: Vec<PathBuf>,
    /// Read-only paths.
    pub readonly: Vec<PathBuf>,
}

/// Plans the mounts: the OCI defaults, then the pod's own, which replace a default at the same place; parents come
/// before what lies in them (a stable sort by depth, as containerd's). `images`: by image id, the folders of volumes.
pub fn mount_plan(
    security: &SecurityContext,
    mounts: &[Mount],
    shm: &Path,
    devices: Vec<DeviceNode>,
    images: &BTreeMap<String, Vec<PathBuf>>,
) -> Result<MountPlan> {
    let step = |target: &str, kind| MountStep { target: target.into(), kind };
    let readonly = !security.privileged;
    let shm = BindPlan {
        source: shm.to_path_buf(),
        readonly: false,
        recursive_readonly: false,
        propagation: MountPropagation::Private,
    };
    let mut steps = vec![
        step("/proc", MountKind::Proc),
        step("/dev", MountKind::Dev),
        step("/dev/pts", MountKind::Devpts),
        step("/dev/mqueue", MountKind::Mqueue),
        step("/dev/shm", MountKind::Bind(shm)),
        step("/sys", MountKind::Sysfs { readonly }),
        step("/sys/fs/cgroup", MountKind::Cgroup { readonly }),
    ];
    for mount in mounts {
        let target = clean(&mount.container_path);
        steps.retain(|s| s.target != target);
        let kind = match &mount.image {
            Some(volume) => {
                let lowerdirs = images.get(&volume.image).ok_or_else(|| {
                    CriError::Internal(format!("layers of the image volume {} are not known", volume.image))
                })?;
                let sub_path = PathBuf::from(&volume.sub_path);
                MountKind::Image(ImagePlan { lowerdirs: lowerdirs.clone(), sub_path })
            }
            None => MountKind::Bind(BindPlan {
                source: mount.host_path.clone(),
                readonly: mount.readonly,
                recursive_readonly: mount.recursive_read_only,
                propagation: mount.propagation,
            }),
        };
        steps.push(MountStep { target, kind });
    }
    steps.sort_by_key(|s| s.target.components().count());
    let masks = !security.privileged && !security.unmasked_proc;
    let list = |paths: &[&str]| if masks { paths.iter().map(PathBuf::from).collect() } else { Vec::new() };
    Ok(MountPlan { steps, devices, masked: list(&MASKED), readonly: list(&READONLY) })
}

/// Absolute, without `.` and `..`, as Go's filepath.Clean.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => out.push(name),
            std::path::Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_cri::ImageMount;

    fn mount(path: &str) -> Mount {
        Mount {
            container_path: path.into(),
            host_path: "/host".into(),
            image: None,
            readonly: true,
            recursive_read_only: false,
            propagation: MountPropagation::Private,
        }
    }

    fn targets(security: &SecurityContext, mounts: &[Mount]) -> Vec<String> {
        let plan = mount_plan(security, mounts, Path::new("/run/shm"), Vec::new(), &BTreeMap::new()).unwrap();
        plan.steps.iter().map(|s| s.target.display().to_string()).collect()
    }

    #[test]
    fn parents_first_and_pod_replaces_default() {
        let mounts = [mount("/a/b/c"), mount("data/../dev/shm/"), mount("/a"), mount("/etc/hosts")];
        assert_eq!(
            targets(&SecurityContext::default(), &mounts),
            [
                "/proc",
                "/dev",
                "/sys",
                "/a",
                "/dev/pts",
                "/dev/mqueue",
                "/dev/shm",
                "/etc/hosts",
                "/sys/fs/cgroup",
                "/a/b/c"
            ]
        );
    }

    #[test]
    fn privileged_sees_everything_writable() {
        let plan = |security: &SecurityContext| {
            mount_plan(security, &[], Path::new("/s"), Vec::new(), &BTreeMap::new()).unwrap()
        };
        let all = plan(&SecurityContext { privileged: true, ..SecurityContext::default() });
        assert!(all.masked.is_empty() && all.readonly.is_empty());
        assert!(
            all.steps
                .contains(&MountStep { target: "/sys".into(), kind: MountKind::Sysfs { readonly: false } })
        );
        assert!(
            plan(&SecurityContext { unmasked_proc: true, ..SecurityContext::default() }).masked.is_empty()
        );
    }

    #[test]
    fn image_volumes_know_their_layers() {
        let volume = Mount {
            host_path: PathBuf::new(),
            image: Some(ImageMount { image: "sha256:a".into(), sub_path: "etc".into() }),
            ..mount("/volume")
        };
        let plan = |images: &BTreeMap<String, Vec<PathBuf>>| {
            let mounts = std::slice::from_ref(&volume);
            mount_plan(&SecurityContext::default(), mounts, Path::new("/s"), Vec::new(), images)
        };
        let lowerdirs = vec![PathBuf::from("/top"), PathBuf::from("/bottom")];
        let known = plan(&BTreeMap::from([("sha256:a".to_owned(), lowerdirs.clone())])).unwrap();
        let image = MountKind::Image(ImagePlan { lowerdirs, sub_path: "etc".into() });
        assert!(known.steps.contains(&MountStep { target: "/volume".into(), kind: image }));
        assert!(plan(&BTreeMap::new()).is_err());
    }

    #[test]
    fn few_layers_stand_on_an_empty_one() {
        let check = |layers: &[&str], want: &[&str]| {
            let layers: Vec<PathBuf> = layers.iter().map(PathBuf::from).collect();
            let want: Vec<PathBuf> = want.iter().map(PathBuf::from).collect();
            assert_eq!(image_lowerdirs(&layers, Path::new("/empty")), want);
        };
        check(&[], &["/empty"]);
        check(&["/a"], &["/a", "/empty"]);
        check(&["/a", "/b"], &["/a", "/b"]);
    }
}
