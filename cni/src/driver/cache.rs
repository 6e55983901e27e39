//! Results of ADD, kept for CHECK and DEL. The files have libcni's form and name, so that other tools on a
//! node can read them.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Attachment;
use crate::error::{Error, Result};
use crate::netconf::{NetworkConfig, PluginConfig, write_atomically};
use crate::types::invocation::Owner;
use crate::types::version::Version;

const KIND: &str = "cniCacheV1";

/// A folder of cached attachments.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

/// One cached attachment.
#[derive(Debug)]
pub(super) struct Entry {
    path: PathBuf,
    pub(super) owner: Owner,
    /// The network as it was at ADD: it "should not change between add and delete".
    pub(super) network: NetworkConfig,
    pub(super) result: Value,
    netns: Option<PathBuf>,
    args: Vec<(String, String)>,
    capability_args: Value,
}

impl Entry {
    /// The attachment as it was at ADD, but for a namespace that the caller knows better.
    pub(super) fn restore(&self, now: &Attachment) -> Attachment {
        let get = |key: &str| self.capability_args.get(key).cloned().unwrap_or_default();
        Attachment {
            container_id: self.owner.container_id.clone(),
            netns: now.netns.clone().or_else(|| self.netns.clone()),
            ifname: self.owner.ifname.clone(),
            args: self.args.clone(),
            port_mappings: serde_json::from_value(get("portMappings")).unwrap_or_default(),
            bandwidth: serde_json::from_value(get("bandwidth")).unwrap_or_default(),
            dns: serde_json::from_value(get("dns")).unwrap_or_default(),
            cgroup_path: serde_json::from_value(get("cgroupPath")).unwrap_or_default(),
        }
    }
}

impl Cache {
    pub(super) fn new(dir: PathBuf) -> Cache {
        Cache { dir }
    }

    pub(super) fn put(
        &self,
        owner: &Owner,
        network: &NetworkConfig,
        attachment: &Attachment,
        result: &Value,
    ) -> Result<()> {
        let plugins: Vec<&serde_json::Map<String, Value>> =
            network.plugins.iter().map(|p| &p.object).collect();
        let document = json!({
            "kind": KIND,
            "containerId": owner.container_id,
            "ifName": owner.ifname,
            "networkName": network.name,
            "netns": attachment.netns,
            "cniArgs": attachment.args,
            "capabilityArgs": {
                "portMappings": attachment.port_mappings,
                "bandwidth": attachment.bandwidth,
                "dns": attachment.dns,
                "cgroupPath": attachment.cgroup_path,
            },
            // The list as it was run, plugins of the sibling folder included.
            "configList": {
                "cniVersion": network.version.as_str(),
                "name": network.name,
                "disableCheck": network.disable_check,
                "disableGC": network.disable_gc,
                "plugins": plugins,
            },
            "result": result,
        });
        let name = format!("{}-{}-{}", network.name, owner.container_id, owner.ifname);
        write_atomically(&self.dir.join(name), document.to_string().as_bytes())
    }

    pub(super) fn find(&self, owner: &Owner) -> Result<Vec<Entry>> {
        let suffix = format!("-{}-{}", owner.container_id, owner.ifname);
        let names = self.names()?.into_iter().filter(|name| name.ends_with(&suffix));
        let entries = names.map(|name| self.read(&name)).collect::<Result<Vec<_>>>()?;
        Ok(entries.into_iter().flatten().filter(|entry| entry.owner == *owner).collect())
    }

    pub(super) fn all(&self) -> Result<Vec<Entry>> {
        let entries = self.names()?.into_iter().map(|name| self.read(&name)).collect::<Result<Vec<_>>>()?;
        Ok(entries.into_iter().flatten().collect())
    }

    /// Removes what a process that was killed before its rename left. Only while nobody else writes.
    pub(super) fn remove_unfinished(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') && name.ends_with(".tmp") {
                fs::remove_file(entry.path())
                    .map_err(|e| Error::io(format!("remove {}", entry.path().display()), e))?;
            }
        }
        Ok(())
    }

    pub(super) fn remove(&self, entry: &Entry) -> Result<()> {
        match fs::remove_file(&entry.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", entry.path.display()), e))
            }
            _ => Ok(()),
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let context = |e| Error::io(format!("read folder {}", self.dir.display()), e);
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(context)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(context)?.file_name().into_string();
            names.extend(name.ok().filter(|name| !name.starts_with('.')));
        }
        names.sort();
        Ok(names)
    }

    /// `None` for a file that vanished or isn't ours.
    fn read(&self, name: &str) -> Result<Option<Entry>> {
        let path = self.dir.join(name);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io(format!("read {}", path.display()), e))?,
        };
        Ok(parse(path, &text))
    }
}

fn parse(path: PathBuf, text: &[u8]) -> Option<Entry> {
    let document: Value = serde_json::from_slice(text).ok()?;
    let field = |key: &str| document.get(key).and_then(Value::as_str);
    if field("kind") != Some(KIND) {
        return None;
    }
    let list = document.get("configList")?;
    let plugins = list.get("plugins")?.as_array()?.iter();
    let plugins = plugins
        .map(|plugin| {
            let object = plugin.as_object()?.clone();
            Some(PluginConfig { kind: object.get("type")?.as_str()?.to_owned(), object })
        })
        .collect::<Option<Vec<_>>>()?;
    let flag = |key: &str| list.get(key).and_then(Value::as_bool).unwrap_or(false);
    Some(Entry {
        path,
        owner: Owner::new(field("containerId")?, field("ifName")?).ok()?,
        network: NetworkConfig {
            version: Version::parse(list.get("cniVersion")?.as_str()?).ok()?,
            name: field("networkName")?.to_owned(),
            disable_check: flag("disableCheck"),
            disable_gc: flag("disableGC"),
            plugins,
        },
        result: document.get("result")?.clone(),
        netns: field("netns").map(PathBuf::from),
        args: serde_json::from_value(document.get("cniArgs")?.clone()).ok()?,
        capability_args: document.get("capabilityArgs").cloned().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("results"));
        let text = br#"{"cniVersion":"1.1.0","name":"a-b","plugins":[{"type":"x","n":1}]}"#;
        let network = NetworkConfig::parse(text).unwrap();
        let owner = Owner::new("pod-1", "eth0").unwrap();
        let attachment = Attachment::for_pod("pod-1", Some("/run/netns/x".into()), "ns", "name", "uid");
        cache.put(&owner, &network, &attachment, &json!({"ips": []})).unwrap();
        fs::write(dir.path().join("results/a-b-pod-2-eth0"), "garbage").unwrap();
        let found = cache.find(&owner).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].network, network);
        assert_eq!(found[0].restore(&Attachment::default()).netns, attachment.netns);
        assert_eq!(found[0].restore(&Attachment::default()).args, attachment.args);
        // The id of another attachment may end in the same way.
        assert!(cache.find(&Owner::new("1", "eth0").unwrap()).unwrap().is_empty());
        fs::write(dir.path().join("results/.a-b-pod-3-eth0.tmp"), "half").unwrap();
        cache.remove_unfinished().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("results")).unwrap().count(), 2);
        cache.remove(&found[0]).unwrap();
        cache.remove(&found[0]).unwrap();
        assert!(cache.all().unwrap().is_empty());
    }
}
