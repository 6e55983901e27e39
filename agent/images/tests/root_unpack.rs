//! Layers, as root: owners, whiteouts, and hostile entries. Root is needed for chown, mknod and trusted xattrs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use keelson_cri::{ImageRootfs, ImageService};
use keelson_images::{ImageStore, ImageStoreConfig, Limits, RegistryConfig, unpack_layer};

fn header(kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1000);
    header
}

/// Sets a path that the tar crate itself would refuse to write.
fn raw_path(header: &mut tar::Header, path: &str) {
    let name = &mut header.as_gnu_mut().unwrap().name;
    name.fill(0);
    name[..path.len()].copy_from_slice(path.as_bytes());
}

enum Node<'a> {
    File(&'a str, &'a str),
    Dir(&'a str),
    Symlink(&'a str, &'a str),
    Hardlink(&'a str, &'a str),
    Device(&'a str),
}

fn layer(nodes: &[Node<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for node in nodes {
        let (mut header, path, content) = match node {
            Node::File(path, content) => (header(tar::EntryType::Regular, content.len()), path, *content),
            Node::Dir(path) => (header(tar::EntryType::Directory, 0), path, ""),
            Node::Symlink(path, to) | Node::Hardlink(path, to) => {
                let kind = if matches!(node, Node::Symlink(..)) {
                    tar::EntryType::Symlink
                } else {
                    tar::EntryType::Link
                };
                let mut header = header(kind, 0);
                header.as_gnu_mut().unwrap().linkname[..to.len()].copy_from_slice(to.as_bytes());
                (header, path, "")
            }
            Node::Device(path) => {
                let mut header = header(tar::EntryType::Block, 0);
                header.set_device_major(8).unwrap();
                header.set_device_minor(0).unwrap();
                (header, path, "")
            }
        };
        raw_path(&mut header, path);
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn unpack(nodes: &[Node<'_>], into: &Path) -> Result<(String, u64), keelson_images::ImageError> {
    unpack_layer(&layer(nodes)[..], into, Limits::default())
}

#[test]
fn content_owners_and_whiteouts() {
    let dir = tempfile::tempdir().unwrap();
    unpack(
        &[
            Node::Dir("a"),
            Node::File("a/file", "hello"),
            Node::Hardlink("a/same", "a/file"),
            Node::Symlink("a/link", "/etc/passwd"),
            Node::File("a/.wh.gone", ""),
            Node::Dir("b"),
            Node::File("b/.wh..wh..opq", ""),
        ],
        dir.path(),
    )
    .unwrap();
    let at = |path: &str| std::fs::symlink_metadata(dir.path().join(path)).unwrap();
    assert_eq!((at("a/file").uid(), at("a/file").gid(), at("a/file").mtime()), (7, 8, 1000));
    assert_eq!(at("a/file").ino(), at("a/same").ino());
    assert!(at("a/link").is_symlink());
    assert!(at("a/gone").file_type().is_char_device() && at("a/gone").rdev() == 0);
    let mut value = [0; 4];
    let length = rustix::fs::getxattr(dir.path().join("b"), "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
}

#[test]
fn nothing_leads_out_of_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    std::fs::write(outside.path().join("victim"), "untouched").unwrap();
    let check_refused = |nodes: &[Node<'_>]| {
        let dir = tempfile::tempdir().unwrap();
        assert!(unpack(nodes, dir.path()).is_err());
    };
    check_refused(&[Node::File("../escape", "x")]);
    check_refused(&[Node::File("a/../../escape", "x")]);
    check_refused(&[Node::Hardlink("steal", "../../etc/passwd")]);
    check_refused(&[Node::Device("sda")]);

    // Links are resolved inside the layer: one to a folder outside dangles, one to the root is the layer's own.
    check_refused(&[Node::Symlink("out", target), Node::File("out/victim", "overwritten")]);
    let dir = tempfile::tempdir().unwrap();
    unpack(&[Node::Symlink("out", "/"), Node::File("out/inside", "x")], dir.path()).unwrap();
    assert!(dir.path().join("inside").exists());
    assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    let dir = tempfile::tempdir().unwrap();
    let victim = format!("{target}/victim");
    unpack(&[Node::Symlink("f", &victim), Node::File("f", "overwritten")], dir.path()).unwrap();
    assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    assert_eq!(std::fs::read_to_string(dir.path().join("f")).unwrap(), "overwritten");
    let dir = tempfile::tempdir().unwrap();
    assert!(
        unpack(&[Node::Symlink("d", "/"), Node::Hardlink("passwd", "d/etc/passwd")], dir.path()).is_err()
    );
}

#[test]
fn a_bomb_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut head = header(tar::EntryType::Regular, 64 << 20);
    raw_path(&mut head, "zeros");
    head.set_cksum();
    gzip.write_all(head.as_bytes()).unwrap();
    gzip.write_all(&vec![0; (64 << 20) + 1024]).unwrap();
    let bomb = gzip.finish().unwrap();
    let limits = Limits { bytes: 1 << 20, entries: 10 };
    assert!(unpack_layer(&bomb[..], dir.path(), limits).is_err());
    assert!(std::fs::metadata(dir.path().join("zeros")).unwrap().len() <= (1 << 20) + 1);
}

/// A store in a folder of its own, as an agent without settings has it.
fn config(dir: &tempfile::TempDir) -> ImageStoreConfig {
    ImageStoreConfig {
        root: dir.path().join("images"),
        import: dir.path().join("import"),
        registry: RegistryConfig::default(),
        limits: Limits::default(),
    }
}

#[tokio::test]
async fn an_archive_is_imported_leased_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    std::fs::create_dir_all(&config.import).unwrap();
    docker_archive(&config.import.join("app.tar"), &layer(&[Node::File("hello", "world")]));
    let store = ImageStore::open(config.clone()).await.unwrap();
    let image = store.image_status("example.test/app:v1").await.unwrap().expect("imported");
    assert_eq!(image.uid, Some(1000));
    // As the container's own image and as its volume.
    let leased = store.lease(&[&image.id, "example.test/app:v1"], "container-1").await.unwrap();
    let [unpacked, volume] = leased.as_slice() else { panic!("{leased:?}") };
    assert_eq!(unpacked, volume);
    assert!(store.lease(&[&image.id, "example.test/other"], "container-2").await.is_err());
    assert_eq!(std::fs::read_dir(config.root.join("leases")).unwrap().count(), 1);
    assert_eq!(std::fs::read_to_string(unpacked.lowerdirs[0].join("hello")).unwrap(), "world");
    // A leased layer outlives the image's name, an unleased one does not.
    store.remove_image("example.test/app:v1").await.unwrap();
    assert!(store.list_images().await.unwrap().is_empty());
    assert!(unpacked.lowerdirs[0].exists());
    assert!(store.lease(&[&image.id], "../../etc").await.is_err());
    store.release("container-1").await.unwrap();
    store.release("container-1").await.unwrap();
    drop(store);
    // After a restart the archive is imported again; removing it takes the layer along.
    let store = ImageStore::open(config).await.unwrap();
    store.remove_image(&image.id).await.unwrap();
    assert!(!unpacked.lowerdirs[0].exists());
}

#[tokio::test]
async fn archives_of_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let store = ImageStore::open(config.clone()).await.unwrap();
    let work = dir.path().join("work");
    std::fs::create_dir_all(&work).unwrap();
    let plain = work.join("plain");
    let import = async |name: &str, bytes: &[u8]| {
        std::fs::write(config.import.join(name), bytes).unwrap();
        let found = store.image_status("example.test/app:v1").await.unwrap();
        if let Some(image) = &found {
            let lowest =
                store.lease(&[&image.id], "c").await.unwrap()[0].lowerdirs.last().unwrap().join("hello");
            assert_eq!(std::fs::read_to_string(lowest).unwrap(), name);
            store.release("c").await.unwrap();
            store.remove_image(&image.id).await.unwrap();
        }
        assert!(std::fs::read_dir(config.root.join("tmp")).unwrap().next().is_none());
        found.is_some()
    };
    let archive = |content: &str| {
        docker_archive(&plain, &layer(&[Node::File("hello", content)]));
        std::fs::read(&plain).unwrap()
    };
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    assert!(import("a.tar", &archive("a.tar")).await);
    assert!(import("a.tar.gz", &gzip(&archive("a.tar.gz"))).await);
    assert!(import("a.tgz", &gzip(&archive("a.tgz"))).await);
    assert!(import("a.tar.zst", &zstd::encode_all(&archive("a.tar.zst")[..], 3).unwrap()).await);
    // By its content, not its name; and a name that says nothing is not looked at.
    assert!(import("b.tar", &gzip(&archive("b.tar"))).await);
    assert!(!import("readme", &archive("readme")).await);
    // One that is still being copied, and then is whole.
    let whole = archive("c.tar");
    assert!(!import("c.tar", &whole[..whole.len() / 2]).await);
    assert!(import("c.tar", &whole).await);
}

#[tokio::test]
async fn a_layer_that_comes_twice_may_be_a_link() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let store = ImageStore::open(config).await.unwrap();
    let layer = layer(&[Node::File("hello", "world")]);
    for (kind, target) in
        [(tar::EntryType::Symlink, "../first/layer.tar"), (tar::EntryType::Link, "first/layer.tar")]
    {
        let path = dir.path().join("twice.tar");
        let manifest = r#"[{"Config":"config.json","RepoTags":["example.test/twice:v1"],"Layers":["first/layer.tar","second/layer.tar"]}]"#;
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        let mut link = header(kind, 0);
        tar.append_link(&mut link, "second/layer.tar", target).unwrap();
        for (name, bytes) in [
            ("first/layer.tar", layer.as_slice()),
            ("config.json", image_config(&[&layer, &layer]).as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ] {
            let mut header = header(tar::EntryType::Regular, bytes.len());
            tar.append_data(&mut header, name, bytes).unwrap();
        }
        tar.finish().unwrap();
        let images = store.import(&path).await.unwrap();
        assert_eq!(images[0].repo_tags, ["example.test/twice:v1"]);
        store.remove_image(&images[0].id).await.unwrap();
    }
}

#[tokio::test]
async fn the_image_of_a_volume_is_kept_while_it_is_leased() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir);
    let store = ImageStore::open(config.clone()).await.unwrap();
    let import = async |content: &str| {
        let path = dir.path().join("app.tar");
        docker_archive(&path, &layer(&[Node::File("hello", content)]));
        store.import(&path).await.unwrap().remove(0).id
    };
    let (volume, own) = (import("volume").await, import("own").await);
    let leased = store.lease(&[&own, &volume], "c").await.unwrap();
    let hello = leased[1].lowerdirs[0].join("hello");
    store.remove_image(&volume).await.unwrap();
    assert_eq!(std::fs::read_to_string(&hello).unwrap(), "volume");
    // A new agent keeps it, too.
    drop(store);
    let store = ImageStore::open(config).await.unwrap();
    assert!(hello.exists());
    store.release("c").await.unwrap();
    store.remove_image(&own).await.unwrap();
    assert!(!hello.exists());
}

/// Runs a test with a folder on a filesystem of that many MiB, in a mount namespace of its own: of this thread and of
/// those that it starts.
fn on_small_disk<F: Future<Output = ()>>(mebibytes: u32, test: impl FnOnce(tempfile::TempDir) -> F) {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
    let dir = tempfile::tempdir().unwrap();
    // SAFETY: only this thread's view of mounts and its working folder change; descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let size = std::ffi::CString::new(format!("size={mebibytes}m")).unwrap();
    mount("small", dir.path(), "tmpfs", MountFlags::empty(), Some(size.as_c_str())).unwrap();
    let path = dir.path().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(dir));
    drop(runtime);
    // Its folder is removed by now, or the test has failed.
    let _ = unmount(&path, UnmountFlags::DETACH);
}

#[test]
fn a_full_disk_leaves_nothing_half_done() {
    on_small_disk(24, |dir| async move {
        let config = config(&dir);
        let names = |folder: &str| {
            let mut names: Vec<_> = std::fs::read_dir(config.root.join(folder))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let elsewhere = tempfile::tempdir_in("/var/tmp").unwrap();
        let archive = elsewhere.path().join("app.tar");
        let store = ImageStore::open(config.clone()).await.unwrap();
        docker_archive(&archive, &layer(&[Node::File("hello", "small")]));
        let small = store.import(&archive).await.unwrap().remove(0).id;
        let layers = names("layers");

        // One layer fits, the next does not: neither stays.
        let (fits, big) = ("x".repeat(1 << 20), "y".repeat(30 << 20));
        let (fits, big) = (layer(&[Node::File("fits", &fits)]), layer(&[Node::File("big", &big)]));
        let manifest = r#"[{"Config":"config.json","RepoTags":["example.test/big:v1"],"Layers":["a","b"]}]"#;
        let mut tar = tar::Builder::new(std::fs::File::create(&archive).unwrap());
        for (name, bytes) in [
            ("a", fits.as_slice()),
            ("b", big.as_slice()),
            ("config.json", image_config(&[&fits, &big]).as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ] {
            tar.append_data(&mut header(tar::EntryType::Regular, bytes.len()), name, bytes).unwrap();
        }
        tar.finish().unwrap();
        let error = store.import(&archive).await.unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!((names("layers"), names("tmp")), (layers.clone(), vec![]));
        assert!(store.image_status("example.test/big:v1").await.unwrap().is_none());

        // Not a byte is left: what is there can be looked at, and what can't be written down has not happened.
        let ballast = dir.path().join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        drop(file);
        let error = store.lease(&[&small], "c").await.unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{error}");
        assert_eq!(names("leases"), Vec::<String>::new());
        assert!(store.remove_image(&small).await.is_err());
        assert_eq!(store.list_images().await.unwrap().len(), 1);
        docker_archive(&archive, &layer(&[Node::File("hello", "other")]));
        std::fs::hard_link(&archive, config.import.join("other.tar")).unwrap_err();
        std::os::unix::fs::symlink(&archive, config.import.join("other.tar")).unwrap();
        assert!(store.image_status("example.test/app:v2").await.unwrap().is_none());
        assert_eq!((names("layers"), names("tmp")), (layers, vec![]));
        drop(store);
        // Nor is it a reason for the next agent not to start.
        let store = ImageStore::open(config.clone()).await.unwrap();
        assert_eq!(store.list_images().await.unwrap().len(), 1);

        std::fs::remove_file(&ballast).unwrap();
        // What could not be imported is tried again, though the archive is the same as before.
        assert!(store.image_status("example.test/app:v2").await.unwrap().is_none());
        assert_eq!(store.list_images().await.unwrap().len(), 2);
        assert_eq!(store.lease(&[&small], "c").await.unwrap()[0].lowerdirs.len(), 1);
        store.release("c").await.unwrap();
        store.remove_image(&small).await.unwrap();
        assert_eq!((names("layers").len(), names("leases")), (1, vec![]));
    });
}

fn image_config(layers: &[&[u8]]) -> String {
    use sha2::Digest;
    let diff_ids = layers.iter().map(|layer| {
        let hex: String = sha2::Sha256::digest(layer).iter().map(|b| format!("{b:02x}")).collect();
        format!("\"sha256:{hex}\"")
    });
    let diff_ids = diff_ids.collect::<Vec<_>>().join(",");
    format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"User":"1000:1000","Cmd":["/hello"]}},
            "rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}},"history":[]}}"#
    )
}

fn docker_archive(path: &Path, layer: &[u8]) {
    let config = image_config(&[layer]);
    let manifest = r#"[{"Config":"config.json","RepoTags":["example.test/app:v1"],"Layers":["layer.tar"]}]"#;
    let mut tar = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in
        [("manifest.json", manifest.as_bytes()), ("config.json", config.as_bytes()), ("layer.tar", layer)]
    {
        let mut header = header(tar::EntryType::Regular, bytes.len());
        tar.append_data(&mut header, name, bytes).unwrap();
    }
    tar.finish().unwrap();
}
