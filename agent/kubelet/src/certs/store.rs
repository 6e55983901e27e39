//! The certificate folder: `<prefix>-current.pem` is a symbolic link to the newest dated file, as upstream keeps it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

use super::{Error, Identity, Result};

/// Where one certificate of the node is kept. All files are readable by root alone.
#[derive(Debug, Clone)]
pub struct CertificateStore {
    dir: PathBuf,
    prefix: &'static str,
}

impl CertificateStore {
    /// A store in `dir` for files that begin with `prefix`, such as `kubelet-client`.
    pub fn new(dir: impl Into<PathBuf>, prefix: &'static str) -> Self {
        Self { dir: dir.into(), prefix }
    }

    /// Path of the link to the current certificate and key.
    pub fn current_path(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.prefix))
    }

    /// The current certificate; none when there is no file yet.
    pub fn load(&self) -> Result<Option<Identity>> {
        let path = self.current_path();
        match fs::read_to_string(&path) {
            Ok(pem) => Identity::from_pem(&pem, &path.display().to_string()).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// Stores a new certificate and key and makes them current. A crash leaves either the old or the new pair.
    pub fn update(&self, certificates: &str, key: &str) -> Result<Identity> {
        let pem = format!("{}\n{}\n", certificates.trim_end(), key.trim_end());
        let identity = Identity::from_pem(&pem, "issued certificate")?;
        let stamp = Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S");
        let file = self.dir.join(format!("{}-{stamp}.pem", self.prefix));
        self.write_private(&file, &pem)?;
        let (link, current) = (self.dir.join(format!(".{}-current.tmp", self.prefix)), self.current_path());
        remove_if_there(&link)?;
        symlink(file.file_name().unwrap_or_default(), &link).map_err(Error::io("link", &link))?;
        fs::rename(&link, &current).map_err(Error::io("rename", &current))?;
        self.forget_pending_key()?;
        self.prune(&file);
        Ok(identity)
    }

    /// The key of a request under way: a restarted agent goes on with the same request instead of making another.
    pub fn pending_key(&self) -> Result<KeyPair> {
        let path = self.pending_path();
        match fs::read_to_string(&path) {
            Ok(pem) => match KeyPair::from_pem(&pem) {
                Ok(key) => return Ok(key),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "unreadable pending key, making a new one")
                }
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", path)(error)),
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        self.write_private(&path, &key.serialize_pem())?;
        Ok(key)
    }

    /// Drops the key of a request that was issued or refused.
    pub fn forget_pending_key(&self) -> Result<()> {
        remove_if_there(&self.pending_path())
    }

    fn pending_path(&self) -> PathBuf {
        self.dir.join(format!("{}.key.tmp", self.prefix))
    }

    fn write_private(&self, path: &Path, text: &str) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        write_atomically(path, text, 0o600)
    }

    /// Removes dated files but the newest and the one before it. Failure is harmless: they are only clutter.
    fn prune(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let start = format!("{}-2", self.prefix);
        let mut dated: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path != newest)
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start)))
            .collect();
        dated.sort();
        dated.pop();
        for path in dated {
            if let Err(error) = fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "could not remove an old certificate");
            }
        }
    }
}

/// Writes a file beside its place, flushes it to disk and renames it into place.
pub(super) fn write_atomically(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    remove_if_there(&temporary)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(Error::io("create", &temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("rename", path))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::identity::tests::self_signed;
    use super::*;

    #[test]
    fn current_follows_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(dir.path().join("pki"), "kubelet-client");
        assert!(store.load().unwrap().is_none());
        for name in ["first", "second"] {
            let pem = self_signed(name, &[]);
            let identity = Identity::from_pem(&pem, "test").unwrap();
            store.update(&identity.certificates_pem(), &identity.key_pem()).unwrap();
            assert_eq!(store.load().unwrap().unwrap().common_name, name);
        }
        let mode = fs::metadata(store.current_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn pending_key_survives_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = CertificateStore::new(dir.path(), "kubelet-client");
        let first = store.pending_key().unwrap().serialize_pem();
        assert_eq!(store.pending_key().unwrap().serialize_pem(), first);
        store.forget_pending_key().unwrap();
        assert_ne!(store.pending_key().unwrap().serialize_pem(), first);
    }
}
