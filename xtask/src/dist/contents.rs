//! What each package holds.

use std::path::Path;

use anyhow::{Context, Result};

use super::docs;
use super::package::{File, Package};

/// Both packages, of the programs in a folder.
pub fn packages(programs: &Path) -> Result<Vec<Package>> {
    let program = |name: &str, path: &str| -> Result<File> {
        let from = programs.join(name);
        let content = std::fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        Ok(File::new(path, 0o755, content))
    };
    let mut agent = vec![
        program("keelson-agent", "usr/sbin/keelson-agent")?,
        program("keelson-podinit", "usr/libexec/keelson/keelson-podinit")?,
        program("keelson-cni", "usr/libexec/keelson/keelson-cni")?,
        text("usr/lib/systemd/system/keelson-agent.service", include_str!("files/keelson-agent.service")),
        text("etc/default/keelson-agent", include_str!("files/keelson-agent.default")),
        copyright("keelson-agent"),
    ];
    agent.extend(docs::of_agent()?);
    let mut master = vec![
        program("keelson-master", "usr/sbin/keelson-master")?,
        text("usr/lib/systemd/system/keelson-master.service", include_str!("files/keelson-master.service")),
        text("etc/default/keelson-master", include_str!("files/keelson-master.default")),
        copyright("keelson-master"),
    ];
    master.extend(docs::of_master()?);
    Ok(vec![
        Package {
            name: "keelson-agent",
            summary: "Kubernetes node agent in one daemon",
            description: "Makes this machine a Kubernetes node: kubelet, container runtime, CNI plugin, service\n \
                          proxy and cluster DNS in one process. Start it with\n \
                          'systemctl enable --now keelson-agent'.",
            recommends: "ca-certificates",
            scripts: scripts(
                "keelson-agent",
                include_str!("files/agent-install.sh"),
                include_str!("files/agent-remove.sh"),
                // The default network configuration goes with the package's removal: the plugin is gone then.
                "/var/lib/keelson /var/lib/kubelet /var/log/pods /var/log/containers /run/keelson \
                 /etc/kubernetes/kubelet.conf",
                "/etc/kubernetes /etc/cni/net.d /etc/cni",
            ),
            // Where every runtime looks for plugins, so that any of them may use this one. /opt is Debian's and yet of no
            // package: dpkg would take it away with the last package that has something there.
            links: vec![("opt/cni/bin/keelson-cni", "/usr/libexec/keelson/keelson-cni")],
            // Written by the agent itself when it first learns its pods' addresses, unless there is a configuration.
            folders: vec!["etc/cni/net.d", "etc/kubernetes"],
            files: agent,
        },
        Package {
            name: "keelson-master",
            summary: "slim Kubernetes control plane in one daemon",
            description: "API server, scheduler and controllers of a Kubernetes cluster in one process. Start it\n \
                          with 'systemctl enable --now keelson-master'; a keelson-agent on the same machine joins\n \
                          by itself, others with a copy of /etc/kubernetes/bootstrap-kubelet.conf.",
            recommends: "ca-certificates",
            scripts: scripts(
                "keelson-master",
                "",
                "",
                "/var/lib/keelson-master /etc/kubernetes/pki /etc/kubernetes/admin.conf \
                 /etc/kubernetes/bootstrap-kubelet.conf",
                "/etc/kubernetes",
            ),
            links: Vec::new(),
            folders: vec!["etc/kubernetes"],
            files: master,
        },
    ])
}

fn text(path: &str, content: &str) -> File {
    File::new(path, 0o644, content.as_bytes().to_vec())
}

fn copyright(package: &str) -> File {
    text(&format!("usr/share/doc/{package}/copyright"), include_str!("../../../LICENSE"))
}

/// Maintainer scripts. `install` runs when the files are there, `remove` before they go, `files` and `folders` (those if
/// empty) go with a purge.
fn scripts(
    package: &str,
    install: &str,
    remove: &str,
    files: &str,
    folders: &str,
) -> Vec<(&'static str, String)> {
    [
        ("postinst", include_str!("files/postinst.sh")),
        ("prerm", include_str!("files/prerm.sh")),
        ("postrm", include_str!("files/postrm.sh")),
    ]
    .into_iter()
    .map(|(name, script)| {
        let script = script
            .replace("@UNIT@", &format!("{package}.service"))
            .replace("@INSTALL@\n", install)
            .replace("@REMOVE@\n", remove)
            .replace("@FILES@", files)
            .replace("@FOLDERS@", folders);
        (name, script)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn packages_do_not_share_files_and_their_scripts_parse() {
        let programs = tempfile::tempdir().unwrap();
        for name in ["keelson-agent", "keelson-master", "keelson-cni", "keelson-podinit"] {
            std::fs::write(programs.path().join(name), "program").unwrap();
        }
        let packages = packages(programs.path()).unwrap();
        let mut paths: Vec<&String> =
            packages.iter().flat_map(|package| &package.files).map(|f| &f.path).collect();
        let all = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), all);
        for (name, script) in packages.iter().flat_map(|package| &package.scripts) {
            assert!(!script.contains('@'), "{name}: {script}");
            let file = programs.path().join(name);
            std::fs::write(&file, script).unwrap();
            assert!(Command::new("sh").arg("-n").arg(&file).status().unwrap().success(), "{script}");
        }
    }
}
