//! A node's images: all there are.

use std::path::PathBuf;

use keelson_cri::{Image, ImageService, RegistryAuth, Result};

/// Has every image that is asked for, and takes no time to pull it.
#[derive(Debug, Clone, Copy, Default)]
pub struct EveryImage;

/// The image of a reference. Its id is made of the reference, so that other references have other ids.
fn image(reference: &str) -> Image {
    let hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, reference.as_bytes()).simple().to_string();
    Image {
        id: format!("sha256:{hash}{hash}"),
        repo_tags: vec![reference.to_owned()],
        repo_digests: Vec::new(),
        size: 0,
        // No user that runAsNonRoot refuses.
        uid: Some(65_532),
        username: String::new(),
    }
}

#[async_trait::async_trait]
impl ImageService for EveryImage {
    async fn pull_image(&self, reference: &str, _auths: &[RegistryAuth]) -> Result<Image> {
        Ok(image(reference))
    }

    async fn image_status(&self, _reference: &str) -> Result<Option<Image>> {
        // Pulled when it is asked for: so that its pull shows in the pod's events, as on a new node.
        Ok(None)
    }

    async fn list_images(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }

    async fn remove_image(&self, _reference: &str) -> Result<()> {
        Ok(())
    }

    async fn fs_info(&self) -> Result<(PathBuf, u64)> {
        Ok(("/".into(), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_digests_that_differ() {
        let (a, b) = (image("nginx:1"), image("nginx:2"));
        assert_ne!(a.id, b.id);
        assert_eq!(a.id.strip_prefix("sha256:").map(str::len), Some(64));
        assert_eq!(a, image("nginx:1"));
    }
}
