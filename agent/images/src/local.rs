//! What a person on the node asks of the running agent's image store, which no other process may write to: a line of
//! JSON each way, over a socket that root alone may open.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keelson_cri::Image;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::{ImageError, ImageStore};

/// Longest request.
const MAX_REQUEST: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Import the archive at this path.
    Import(PathBuf),
}

type Answer = Result<Vec<Image>, String>;

/// The socket, in the agent's folder of what does not outlive a boot.
#[must_use]
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("images.sock")
}

/// Makes the socket; one that an earlier agent left is replaced.
///
/// # Errors
/// The file operation that failed. Must be called within a tokio runtime.
pub fn listen(socket: &Path) -> Result<UnixListener, ImageError> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).map_err(ImageError::io("make", folder))?;
    }
    // Its name comes last, so that it is never there with other permissions.
    let unnamed = socket.with_extension("new");
    match std::fs::remove_file(&unnamed) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ImageError::io("remove", &unnamed)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&unnamed).map_err(ImageError::io("listen on", &unnamed))?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))
        .map_err(ImageError::io("chmod", &unnamed))?;
    std::fs::rename(&unnamed, socket).map_err(ImageError::io("name", socket))?;
    Ok(listener)
}

/// Answers for as long as it is polled.
pub async fn serve(listener: UnixListener, store: Arc<ImageStore>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let store = store.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &store).await {
                        tracing::debug!(%error, "request for the image store");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "socket of the image store");
                // Out of descriptors, as a rule: that passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, store: &ImageStore) -> std::io::Result<()> {
    let mut line = String::new();
    let (read, mut write) = stream.split();
    tokio::io::BufReader::new(read.take(MAX_REQUEST)).read_line(&mut line).await?;
    let answer: Answer = match serde_json::from_str(&line) {
        Ok(Request::Import(path)) => {
            let imported = store.import(&path).await;
            match &imported {
                Ok(images) => {
                    for image in images {
                        tracing::info!(image = %image.id, names = ?image.repo_tags, "imported image");
                    }
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "can't import image archive"),
            }
            imported.map_err(|error| error.to_string())
        }
        Err(error) => Err(format!("malformed request: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    write.write_all(&text).await
}

/// Has the agent behind a socket import an archive; gives the images of it.
///
/// # Errors
/// No agent answers there, or it can't import the archive: the text says why.
pub fn import(socket: &Path, archive: &Path) -> Result<Vec<Image>, String> {
    let archive = archive.canonicalize().map_err(|e| format!("{}: {e}", archive.display()))?;
    let talk = || -> std::io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        let mut request = serde_json::to_vec(&Request::Import(archive))?;
        request.push(b'\n');
        stream.write_all(&request)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = talk().map_err(|e| format!("ask the agent at {}: {e}", socket.display()))?;
    serde_json::from_str::<Answer>(&line).map_err(|e| format!("answer of the agent: {e}"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageStoreConfig, Limits, RegistryConfig};

    /// What `docker save` writes of an image without layers, which takes no privilege to unpack.
    fn archive(path: &Path) {
        let config =
            r#"{"architecture":"ARCH","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let arch = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
        let manifest = r#"[{"Config":"config.json","RepoTags":["example.test/app:v1"],"Layers":[]}]"#;
        let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
        for (name, text) in
            [("config.json", config.replace("ARCH", arch)), ("manifest.json", manifest.to_owned())]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        tar.finish().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_person_imports_through_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let config = ImageStoreConfig {
            root: dir.path().join("images"),
            import: dir.path().join("import"),
            registry: RegistryConfig::default(),
            limits: Limits::default(),
        };
        let file = dir.path().join("app.tar");
        archive(&file);
        let socket = socket(&dir.path().join("run"));
        let ask = |path: &Path| {
            let (socket, path) = (socket.clone(), path.to_owned());
            tokio::task::spawn_blocking(move || import(&socket, &path))
        };
        assert!(ask(&file).await.unwrap().unwrap_err().contains("images.sock"), "no agent is there");
        let store = ImageStore::open(config).await.unwrap();
        // An agent that was killed leaves its socket.
        drop(listen(&socket).unwrap());
        tokio::spawn(serve(listen(&socket).unwrap(), store.clone()));
        assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        let images = ask(&file).await.unwrap().unwrap();
        assert_eq!(images[0].repo_tags, ["example.test/app:v1"]);
        let kept = keelson_cri::ImageService::list_images(&*store).await.unwrap();
        assert_eq!(kept, images);
        std::fs::write(&file, "no archive").unwrap();
        ask(&file).await.unwrap().unwrap_err();
        assert!(ask(&dir.path().join("absent")).await.unwrap().unwrap_err().contains("absent"));
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(b"gibberish\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("malformed request"), "{answer}");
    }
}
