//! Mounts of a simulated node: none.

use std::io::Result;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use keelson_kubelet::volumes::mounter::Mounter;

/// Leaves folders as plain folders. What volumes hold is written, as on any node.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMounts;

impl Mounter for NoMounts {
    fn tmpfs(&self, _target: &Path, _size: Option<u64>) -> Result<()> {
        Ok(())
    }

    fn bind_fd(&self, _source: BorrowedFd<'_>, _target: &Path) -> Result<()> {
        Ok(())
    }

    fn unmount(&self, _target: &Path) -> Result<()> {
        Ok(())
    }

    fn mounts_below(&self, _root: &Path) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}
