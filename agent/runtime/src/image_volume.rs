//! Images that a container has as volumes: leased with its own, checked when it is made, mounted when it starts
//! (`spawner/image_volume.rs`), gone with it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use keelson_cri::{ContainerConfig, CriError, ImageMount, Mount, MountPropagation, Result, UnpackedImage};

use crate::plan::{self, ImagePlan};
use crate::runtime::{Runtime, internal, make_dir};
use crate::spawner::check_image_volume;
use crate::state::ContainerRecord;

/// What CRI says of such a mount.
pub(crate) fn check(mount: &Mount) -> Result<()> {
    let at = mount.container_path.display();
    let wrong = |what: &str| Err(CriError::Invalid(format!("mount {at} of an image {what}")));
    if !mount.container_path.is_absolute() {
        return wrong("is not absolute");
    }
    if !mount.host_path.as_os_str().is_empty() {
        return wrong("has a path on the node too");
    }
    if !mount.readonly {
        return wrong("must be read-only");
    }
    // Nothing is ever mounted below the image on the node, so there is nothing that HostToContainer would not show.
    if mount.propagation == MountPropagation::Bidirectional {
        return wrong("is the container's alone: mount propagation Bidirectional is not possible");
    }
    Ok(())
}

fn volumes(config: &ContainerConfig) -> impl Iterator<Item = (&Mount, &ImageMount)> {
    config.mounts.iter().filter_map(|mount| Some((mount, mount.image.as_ref()?)))
}

impl Runtime {
    /// Leases the container's image and those of its volumes; of the latter, gives the folders by image id.
    pub(crate) async fn lease_images(
        &self,
        config: &ContainerConfig,
        id: &str,
    ) -> Result<(UnpackedImage, BTreeMap<String, Vec<PathBuf>>)> {
        let names: Vec<&str> = std::iter::once(config.image.as_str())
            .chain(volumes(config).map(|(_, volume)| volume.image.as_str()))
            .collect();
        let mut leased = self.images.lease(&names, id).await?.into_iter();
        let own = leased.next().ok_or_else(|| CriError::Internal("no image was leased".into()))?;
        let empty = self.empty_layer(id);
        let folders = names[1..].iter().map(|name| (*name).to_owned());
        let layers = leased.map(|image| plan::image_lowerdirs(&image.lowerdirs, &empty));
        Ok((own, folders.zip(layers).collect()))
    }

    fn empty_layer(&self, id: &str) -> PathBuf {
        self.config.container_dir(id).join("empty")
    }

    /// A sub path that an image does not have must fail the making of the container, not its start (CRI, Mount).
    pub(crate) async fn check_image_volumes(&self, record: &ContainerRecord) -> Result<()> {
        if record.image_volumes.is_empty() {
            return Ok(());
        }
        make_dir(&self.empty_layer(&record.id), 0o755).map_err(internal("making the container's folders"))?;
        for (mount, volume) in volumes(&record.config).filter(|(_, volume)| !volume.sub_path.is_empty()) {
            let lowerdirs = record.image_volumes.get(&volume.image).cloned().unwrap_or_default();
            let plan = ImagePlan { lowerdirs, sub_path: PathBuf::from(&volume.sub_path) };
            let at = self.config.container_dir(&record.id).join("rootfs");
            let checked = tokio::task::spawn_blocking(move || check_image_volume(&plan, &at)).await;
            checked
                .map_err(internal("checking an image volume"))?
                .map_err(|error| failed(mount, volume, &error))?;
        }
        Ok(())
    }
}

fn failed(mount: &Mount, volume: &ImageMount, error: &io::Error) -> CriError {
    let ImageMount { image, sub_path } = volume;
    let reason = match error.kind() {
        io::ErrorKind::NotFound => format!("the image {image} has no path {sub_path:?}"),
        _ => format!("path {sub_path:?} of the image {image}: {error}"),
    };
    // The first word is the name of the error in cri-api (`pkg/errors`), by which a kubelet knows it.
    CriError::Internal(format!("ImageVolumeMountFailed: {}: {reason}", mount.container_path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_images() {
        let fine = Mount {
            container_path: "/volume".into(),
            host_path: PathBuf::new(),
            image: Some(ImageMount { image: "sha256:a".into(), sub_path: String::new() }),
            readonly: true,
            recursive_read_only: false,
            propagation: MountPropagation::HostToContainer,
        };
        check(&fine).unwrap();
        for wrong in [
            Mount { container_path: "volume".into(), ..fine.clone() },
            Mount { host_path: "/host".into(), ..fine.clone() },
            Mount { readonly: false, ..fine.clone() },
            Mount { propagation: MountPropagation::Bidirectional, ..fine.clone() },
        ] {
            assert!(matches!(check(&wrong), Err(CriError::Invalid(_))), "{wrong:?}");
        }
    }
}
