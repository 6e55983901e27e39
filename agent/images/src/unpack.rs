//! Unpacking one layer: a hostile tar stream becomes a folder for overlayfs.
//!
//! Whiteouts (OCI image specification, layer.md) become overlayfs' own: `.wh.NAME` a character device 0:0,
//! `.wh..wh..opq` the xattr `trusted.overlay.opaque`. Every path is resolved by the kernel inside the layer's folder
//! (openat2 with RESOLVE_IN_ROOT, since 5.6), so no link in the layer leads out of it.

use std::ffi::OsStr;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use tar::{Entry, EntryType};

use crate::ImageError;
use crate::digest::{Digest, HashingReader};

/// What one layer may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the uncompressed tar stream and of all file contents.
    pub bytes: u64,
    /// Number of entries.
    pub entries: u64,
}

impl Default for Limits {
    /// 32 GiB and two million entries: beyond any sane layer, short of filling a machine's inodes.
    fn default() -> Self {
        Self { bytes: 32 << 30, entries: 2_000_000 }
    }
}

/// Unpacks a layer (plain, gzip or zstd, told apart by its first bytes) into an existing, empty folder. Gives the
/// diff_id (digest of the uncompressed stream) and the bytes of file content written.
///
/// # Errors
/// A malformed stream, an entry that leads out of the folder or is a device, or a limit exceeded. The folder is then
/// half filled, for the caller to remove.
pub fn unpack_layer(stream: impl Read, into: &Path, limits: Limits) -> Result<(String, u64), ImageError> {
    let plain = decompress(stream)?;
    // One byte over the limit is readable, so that reaching it can be told from ending at it.
    let mut hashing = HashingReader::new(plain.take(limits.bytes.saturating_add(1)));
    let root = rustix::fs::open(into, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| ImageError::io("open", into)(e.into()))?;
    let mut unpacker = Unpacker { root, written: 0, dirs: Vec::new() };
    {
        let mut archive = tar::Archive::new(&mut hashing);
        let mut count = 0;
        for entry in archive.entries().map_err(ImageError::Read)? {
            count += 1;
            if count > limits.entries {
                return Err(ImageError::TooLarge { limit: limits.entries, unit: "entries" });
            }
            unpacker.entry(entry.map_err(ImageError::Read)?, limits)?;
        }
    }
    unpacker.finish_dirs()?;
    let written = unpacker.written;
    let (digest, read) = hashing.finish().map_err(ImageError::Read)?;
    if read > limits.bytes {
        return Err(ImageError::TooLarge { limit: limits.bytes, unit: "bytes" });
    }
    Ok((digest.as_str().to_owned(), written))
}

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether what begins so is compressed, in one of the ways that [`decompress`] knows.
pub(crate) fn is_compressed(magic: &[u8]) -> bool {
    magic.starts_with(&GZIP) || magic.starts_with(&ZSTD)
}

/// A stream without its compression, if it has any.
pub(crate) fn decompress<'a>(stream: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ImageError> {
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut magic = [0u8; 4];
    let mut have = 0;
    while have < magic.len() {
        match stream.read(&mut magic[have..]).map_err(ImageError::Read)? {
            0 => break,
            read => have += read,
        }
    }
    let whole = std::io::Cursor::new(magic[..have].to_vec()).chain(stream);
    Ok(match magic {
        magic if magic.starts_with(&GZIP) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        ZSTD => Box::new(zstd::Decoder::new(whole).map_err(ImageError::Read)?),
        _ => Box::new(whole),
    })
}

struct Unpacker {
    root: OwnedFd,
    written: u64,
    /// Folders whose times are set last, since filling them changes their mtime.
    dirs: Vec<(PathBuf, Timestamps)>,
}

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl Unpacker {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>, limits: Limits) -> Result<(), ImageError> {
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let refuse =
            |reason: &str| ImageError::HostileEntry { entry: shown.clone(), reason: reason.to_owned() };
        let Some(path) = clean(Path::new(OsStr::from_bytes(&raw)))
            .ok_or_else(|| refuse("its path leads out of the layer"))?
        else {
            // The layer's own root: its attributes apply.
            return self.attributes_of_root(&mut entry);
        };
        let io = |action: &'static str| {
            let path = path.clone();
            move |e: rustix::io::Errno| ImageError::Io { action, path, source: e.into() }
        };
        let name = path.file_name().ok_or_else(|| refuse("it has no name"))?.to_owned();
        let parent = self.parent(&path)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, &path, OsStr::from_bytes(hidden), &refuse);
        }
        let kind = entry.header().entry_type();
        let mode = Mode::from_raw_mode(entry.header().mode().map_err(ImageError::Read)? & 0o7777);
        match kind {
            EntryType::Directory => match rustix::fs::mkdirat(&parent, name.as_os_str(), Mode::RWXU) {
                Ok(()) => {}
                // A folder given twice is the same folder; anything else in its place goes.
                Err(rustix::io::Errno::EXIST) if is_dir(&parent, &name) => {}
                Err(rustix::io::Errno::EXIST) => {
                    remove(&parent, &name).map_err(io("replace"))?;
                    rustix::fs::mkdirat(&parent, name.as_os_str(), Mode::RWXU).map_err(io("make"))?;
                }
                Err(e) => return Err(io("make")(e)),
            },
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                remove(&parent, &name).map_err(io("replace"))?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, name.as_os_str(), flags, Mode::RUSR | Mode::WUSR)
                    .map_err(io("make"))?;
                let allowed = limits.bytes.saturating_sub(self.written);
                let mut file = std::fs::File::from(file);
                let copied = std::io::copy(&mut (&mut entry).take(allowed.saturating_add(1)), &mut file)
                    .map_err(|error| match error.kind() {
                        std::io::ErrorKind::StorageFull => ImageError::io("write", &path)(error),
                        _ => ImageError::Read(error),
                    })?;
                if copied > allowed {
                    return Err(ImageError::TooLarge { limit: limits.bytes, unit: "bytes" });
                }
                self.written += copied;
            }
            EntryType::Symlink => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| refuse("a symbolic link without a target"))?
                    .into_owned();
                remove(&parent, &name).map_err(io("replace"))?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, name.as_os_str())
                    .map_err(io("make"))?;
            }
            EntryType::Link => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| refuse("a hard link without a target"))?
                    .into_owned();
                let target = clean(Path::new(OsStr::from_bytes(&target)))
                    .flatten()
                    .ok_or_else(|| refuse("its target leads out of the layer"))?;
                let from_dir = self.parent(&target)?;
                let from = target.file_name().ok_or_else(|| refuse("its target has no name"))?;
                if is_dir(&from_dir, from) {
                    return Err(refuse("a hard link to a folder"));
                }
                remove(&parent, &name).map_err(io("replace"))?;
                rustix::fs::linkat(&from_dir, from, &parent, name.as_os_str(), AtFlags::empty())
                    .map_err(io("link"))?;
                // Attributes are the target's.
                return Ok(());
            }
            EntryType::Fifo => {
                remove(&parent, &name).map_err(io("replace"))?;
                rustix::fs::mknodat(&parent, name.as_os_str(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                    .map_err(io("make"))?;
            }
            EntryType::Char | EntryType::Block => {
                // /dev of every container is a filesystem of its own, so nodes there are never seen.
                if path.starts_with("dev") {
                    tracing::debug!(entry = %shown, "device node in an image's /dev left out");
                    return Ok(());
                }
                return Err(refuse("a device node"));
            }
            EntryType::XGlobalHeader => return Ok(()),
            _ => return Err(refuse("an unknown type of entry")),
        }
        self.attributes(&mut entry, &parent, &name, &path, mode)
    }

    /// The folder that holds `path`, made when missing, resolved inside the layer.
    fn parent(&self, path: &Path) -> Result<OwnedFd, ImageError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match rustix::fs::openat2(&self.root, at, flags, Mode::empty(), RESOLVE) {
            Ok(dir) => Ok(dir),
            Err(rustix::io::Errno::NOENT) if !parent.as_os_str().is_empty() => {
                let above = self.parent(parent)?;
                let name = parent.file_name().unwrap_or_default();
                match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(ImageError::io("make", parent)(e.into())),
                }
                rustix::fs::openat2(&self.root, at, flags, Mode::empty(), RESOLVE)
                    .map_err(|e| ImageError::io("open", parent)(e.into()))
            }
            Err(e) => Err(ImageError::io("open", parent)(e.into())),
        }
    }

    fn whiteout(
        &self,
        parent: &OwnedFd,
        path: &Path,
        hidden: &OsStr,
        refuse: &dyn Fn(&str) -> ImageError,
    ) -> Result<(), ImageError> {
        if hidden.as_bytes() == b".wh..opq" {
            let dir = reopen(parent, OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|e| ImageError::io("open", path)(e.into()))?;
            return rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(|e| ImageError::io("mark opaque", path)(e.into()));
        }
        if hidden.as_bytes().starts_with(b".wh.") {
            // Metadata of aufs (.wh..wh.plnk, …) that means nothing to overlayfs.
            return Ok(());
        }
        if hidden.is_empty() || matches!(hidden.as_bytes(), b"." | b"..") {
            return Err(refuse("a whiteout of nothing"));
        }
        remove(parent, hidden).map_err(|e| ImageError::io("replace", path)(e.into()))?;
        rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|e| ImageError::io("make a whiteout of", path)(e.into()))
    }

    fn attributes(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        mode: Mode,
    ) -> Result<(), ImageError> {
        let io = |action: &'static str| move |e: rustix::io::Errno| ImageError::io(action, path)(e.into());
        let header = entry.header();
        let (uid, gid) = (id(header.uid())?, id(header.gid())?);
        let kind = header.entry_type();
        let mtime = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        // Owner before mode: chown clears set-user-id bits.
        rustix::fs::chownat(
            parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(io("chown"))?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: mtime, tv_nsec: 0 },
            last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
        };
        if kind == EntryType::Symlink {
            return rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(io("set times of"));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(io("open"))?;
        let by_fd = format!("/proc/self/fd/{}", node.as_raw_fd());
        rustix::fs::chmod(&by_fd, mode).map_err(io("chmod"))?;
        self.xattrs(entry, &by_fd, path)?;
        if kind == EntryType::Directory {
            self.dirs.push((path.to_owned(), times));
            return Ok(());
        }
        rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(io("set times of"))
    }

    fn xattrs(&self, entry: &mut Entry<'_, impl Read>, by_fd: &str, path: &Path) -> Result<(), ImageError> {
        let Some(extensions) = entry.pax_extensions().map_err(ImageError::Read)? else { return Ok(()) };
        for extension in extensions {
            let extension = extension.map_err(ImageError::Read)?;
            let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr.")) else {
                continue;
            };
            // Only what programs rely on: file capabilities and user attributes. trusted.* steers overlayfs itself.
            if name == "security.capability" || name.starts_with("user.") {
                rustix::fs::setxattr(by_fd, name, extension.value_bytes(), XattrFlags::empty())
                    .map_err(|e| ImageError::io("set an extended attribute of", path)(e.into()))?;
            }
        }
        Ok(())
    }

    fn attributes_of_root(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), ImageError> {
        if entry.header().entry_type() != EntryType::Directory {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(entry.header().mode().map_err(ImageError::Read)? & 0o7777);
        let (uid, gid) = (id(entry.header().uid())?, id(entry.header().gid())?);
        let by_fd = format!("/proc/self/fd/{}", self.root.as_raw_fd());
        let io = |e: rustix::io::Errno| ImageError::io("set attributes of", Path::new("/"))(e.into());
        rustix::fs::chown(&by_fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(io)?;
        rustix::fs::chmod(&by_fd, mode).map_err(io)
    }

    fn finish_dirs(&mut self) -> Result<(), ImageError> {
        for (path, times) in self.dirs.drain(..).rev() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            // A later entry may have replaced the folder; then there is nothing to set.
            if let Ok(dir) = rustix::fs::openat2(&self.root, &path, flags, Mode::empty(), RESOLVE) {
                let by_fd = format!("/proc/self/fd/{}", dir.as_raw_fd());
                rustix::fs::utimensat(rustix::fs::CWD, &by_fd, &times, AtFlags::empty())
                    .map_err(|e| ImageError::io("set times of", &path)(e.into()))?;
            }
        }
        Ok(())
    }
}

fn id(value: std::io::Result<u64>) -> Result<u32, ImageError> {
    let value = value.map_err(ImageError::Read)?;
    u32::try_from(value).map_err(|_out_of_range| ImageError::Malformed {
        what: "owner of a layer entry".into(),
        reason: format!("{value} is no user or group id"),
    })
}

fn reopen(fd: &OwnedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(fd.as_fd(), ".", flags | OFlags::CLOEXEC, Mode::empty())
}

/// A path of a tar entry without `/`, `.` and empty parts. `Some(None)` is the root itself, `None` one with `..`.
fn clean(path: &Path) -> Option<Option<PathBuf>> {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => return None,
        }
    }
    Some((!cleaned.as_os_str().is_empty()).then_some(cleaned))
}

fn is_dir(parent: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Removes what stands at a name, whole folders too; nothing there is fine. Links are never followed.
fn remove(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            for entry in rustix::fs::Dir::read_from(&dir)? {
                let entry = entry?;
                let inner = entry.file_name().to_bytes();
                if inner != b"." && inner != b".." {
                    remove(&dir, OsStr::from_bytes(inner))?;
                }
            }
            rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
        }
        Err(e) => Err(e),
    }
}

/// Digest newtype for callers inside the crate.
pub(crate) fn unpack_checked(
    stream: impl Read,
    into: &Path,
    limits: Limits,
    diff_id: &Digest,
) -> Result<u64, ImageError> {
    let (found, written) = unpack_layer(stream, into, limits)?;
    if found != diff_id.as_str() {
        return Err(ImageError::Mismatch {
            what: "diff_id of a layer".into(),
            expected: diff_id.as_str().into(),
            found,
        });
    }
    Ok(written)
}
