//! Mounts that the kubelet makes itself, on the real kernel. Needs root; each test has a mount namespace of its own.

use std::fs;
use std::path::Path;

use keelson_kubelet::volumes::mounter::{HostMounter, Mounter};
use keelson_kubelet::volumes::{setup, subpath};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a thread with its own mount namespace; what it mounts ends with the thread.
fn isolated(test: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("needs root: unshare(CLONE_NEWNS)");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("needs root: private mounts");
        let dir = tempfile::tempdir().expect("a folder for the test");
        test(dir.path());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn tmpfs_with_a_limit_comes_and_goes() {
    isolated(|dir| {
        let target = dir.join("volumes/v");
        fs::create_dir_all(&target).unwrap();
        HostMounter.tmpfs(&target, Some(1 << 20)).unwrap();
        assert_eq!(HostMounter.mounts_below(dir).unwrap(), std::slice::from_ref(&target));
        assert!(fs::write(target.join("big"), vec![0; 2 << 20]).is_err(), "the limit holds");
        setup::remove_dir(&HostMounter, dir).unwrap();
        assert!(!target.exists());
    });
}

#[test]
fn a_busy_volume_is_detached() {
    isolated(|dir| {
        let target = dir.join("v");
        fs::create_dir_all(&target).unwrap();
        HostMounter.tmpfs(&target, None).unwrap();
        let open = fs::File::create(target.join("f")).unwrap();
        setup::tear_down(&HostMounter, dir).unwrap();
        assert_eq!(HostMounter.mounts_below(dir).unwrap().len(), 0);
        drop(open);
    });
}

#[test]
fn a_subpath_is_bound_to_what_was_checked() {
    isolated(|dir| {
        let volume = dir.join("volume");
        fs::create_dir_all(volume.join("a")).unwrap();
        fs::write(volume.join("a/f"), "inside").unwrap();
        let fd = subpath::open_beneath(&volume, "a").unwrap();
        // The pod swaps the folder for a link to the host after the check.
        fs::rename(volume.join("a"), volume.join("old")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("a")).unwrap();
        let target = subpath::target(dir, "volume", "c", 0);
        let bound = subpath::bind(&HostMounter, &fd, &target).unwrap();
        assert_eq!(fs::read_to_string(bound.join("f")).unwrap(), "inside");
        assert!(subpath::open_beneath(&volume, "a").is_err());
        // Again, as for the next start of the container.
        subpath::bind(&HostMounter, &subpath::open_beneath(&volume, "old/f").unwrap(), &target).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "inside");
        setup::tear_down(&HostMounter, dir).unwrap();
    });
}
