//! A driver whose plugins are shell scripts.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use keelson_cni::{Attachment, Driver, DriverConfig};

pub struct Setup {
    pub dir: tempfile::TempDir,
    pub driver: Driver,
}

impl Setup {
    pub fn new(plugins: &str) -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for name in ["net.d", "bin"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let list = format!(r#"{{"cniVersion":"1.1.0","name":"net","plugins":[{plugins}]}}"#);
        fs::write(root.join("net.d/10.conflist"), list).unwrap();
        let driver = Driver::new(DriverConfig {
            conf_dir: root.join("net.d"),
            bin_dirs: vec![root.join("bin")],
            cache_dir: root.join("cache"),
            timeout: Duration::from_secs(2),
            in_process: true,
        });
        Setup { dir, driver }
    }

    pub fn plugin(&self, name: &str, script: &str) {
        let path = self.dir.path().join("bin").join(name);
        let log = self.dir.path().join("log");
        let text = format!(
            "#!/bin/sh\ninput=$(cat)\necho \"{name} $CNI_COMMAND $CNI_CONTAINERID $CNI_ARGS $input\" >> {}\n{script}\n",
            log.display()
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }
}

pub fn attachment(dir: &Path) -> Attachment {
    Attachment::for_pod("pod", Some(dir.join("netns")), "default", "web", "uid")
}

pub const RESULT: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.0.0.5/24","interface":0}]}'; exit 0"#;
